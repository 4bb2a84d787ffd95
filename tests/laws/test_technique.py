"""Every technique begins as the base, changes only what it says, survives the disk, and comes off or merges in."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import tiny
from conftest import CPU
from graftwood.data.batch import pack
from graftwood.errors import ConfigError
from graftwood.model.decoder import Decoder
from graftwood.model.tensor_files import SINGLE
from graftwood.model.weights import load_decoder
from graftwood.technique import TECHNIQUES, Technique
from graftwood.train.loss import summed_loss, token_losses

techniques = pytest.mark.parametrize("name", TECHNIQUES.names())
adapters = pytest.mark.parametrize("name", [n for n in TECHNIQUES.names() if not TECHNIQUES.get(n).writes_base])
BATCH = pack(tiny.examples(8))
IDS = torch.randint(0, 320, (2, 20), generator=torch.Generator().manual_seed(5))


@pytest.fixture
def folder(tmp_path: Path, tokenizer_files: Callable[[Path], None]) -> Path:
    return tiny.model_folder(tmp_path / "tiny", tokenizer_files)


@pytest.fixture
def base(folder: Path) -> Decoder:
    return load_decoder(folder, CPU)


def put(name: str, decoder: Decoder, seed: int = 0) -> Technique:
    technique = TECHNIQUES.get(name).parse({})
    technique.apply(decoder, seed)
    return technique


def logits(decoder: Decoder) -> Tensor:
    with torch.no_grad():
        return decoder(IDS)


def train(decoder: Decoder, steps: int = 3) -> None:
    """Plain AdamW steps with an evaluation pass before each."""
    optimiser = torch.optim.AdamW(decoder.trained().values(), lr=1e-2)
    for _ in range(steps):
        decoder.eval()
        token_losses(decoder, BATCH)
        decoder.train()
        optimiser.zero_grad()
        summed_loss(decoder, BATCH).backward()
        optimiser.step()
    decoder.eval()


def trained_pair(name: str, base: Decoder) -> tuple[Technique, Tensor, Tensor]:
    """The technique after some steps, the logits before it and with it."""
    before = logits(base)
    technique = put(name, base)
    train(base)
    after = logits(base)
    assert not torch.allclose(before, after, atol=1e-3), "a law about a change needs a change"
    return technique, before, after


@techniques
def test_at_first_the_output_is_the_bases(name: str, base: Decoder) -> None:
    before = logits(base)
    put(name, base)
    assert torch.equal(logits(base.train()), before)
    assert torch.equal(logits(base.eval()), before)


@techniques
def test_what_trains_is_what_the_files_hold(name: str, base: Decoder) -> None:
    own = {path for path, _ in base.named_parameters()}
    technique = put(name, base)
    trained = base.trained()
    assert trained
    assert all(p.dtype == torch.float32 for p in trained.values())
    assert set(trained) == own if technique.writes_base else not own & set(trained)
    held = {tensor.data_ptr() for tensor in technique.files(base).values()}
    assert held == {parameter.data_ptr() for parameter in trained.values()}


@techniques
def test_every_trained_tensor_has_a_gradient_by_the_second_step(name: str, base: Decoder) -> None:
    put(name, base)
    train(base, steps=2)
    still = [path for path, p in base.trained().items() if p.grad is None or not p.grad.abs().max() > 0]
    assert still == []


@techniques
def test_training_changes_what_it_may_and_nothing_else(name: str, base: Decoder, folder: Path) -> None:
    digest = hashlib.sha256((folder / SINGLE).read_bytes()).hexdigest()
    own = {path: p.detach().clone() for path, p in base.named_parameters()}
    technique = put(name, base)
    train(base)
    same = {path for path, p in base.named_parameters() if path in own and torch.equal(p, own[path])}
    assert same == (set() if technique.writes_base else set(own))
    assert hashlib.sha256((folder / SINGLE).read_bytes()).hexdigest() == digest


@techniques
def test_what_is_saved_and_loaded_gives_the_same_logits(name: str, base: Decoder, folder: Path, tmp_path: Path) -> None:
    technique, _, after = trained_pair(name, base)
    save_file(technique.files(base), tmp_path / "trained.safetensors")
    again = load_decoder(folder, CPU)
    put(name, again, seed=1).load(again, load_file(tmp_path / "trained.safetensors"))
    assert torch.equal(logits(again), after)


@techniques
def test_the_seed_decides_the_start(name: str, folder: Path) -> None:
    def start(seed: int) -> list[Tensor]:
        decoder = load_decoder(folder, CPU)
        return list(put(name, decoder, seed).files(decoder).values())

    assert all(torch.equal(a, b) for a, b in zip(start(3), start(3), strict=True))
    if not TECHNIQUES.get(name).writes_base:
        assert not all(torch.equal(a, b) for a, b in zip(start(3), start(4), strict=True))


@techniques
def test_merged_equals_unmerged(name: str, base: Decoder) -> None:
    paths = {path for path, _ in base.named_parameters()}
    technique, _, after = trained_pair(name, base)
    technique.merge(base)
    assert {path for path, _ in base.named_parameters()} == paths
    assert base.trained() == {}
    assert (logits(base) - after).norm() / after.norm() < 1e-5


@adapters
def test_without_deltas_it_is_the_base(name: str, base: Decoder) -> None:
    _, before, after = trained_pair(name, base)
    with base.without_deltas():
        assert torch.equal(logits(base), before)
    assert torch.equal(logits(base), after)
    with pytest.raises(KeyError), base.without_deltas():
        raise KeyError
    assert torch.equal(logits(base), after)


@techniques
def test_every_tensor_that_does_not_fit_is_named_at_once(name: str, base: Decoder) -> None:
    technique, _, after = trained_pair(name, base)
    tensors = {path: tensor.clone() for path, tensor in technique.files(base).items()}
    missing, misshapen, *_ = tensors
    del tensors[missing]
    tensors[misshapen] = torch.zeros(1, 1)  # would broadcast
    tensors["model.strange.weight"] = torch.zeros(3)
    with pytest.raises(ConfigError) as caught:
        technique.load(base, tensors)
    for part in (f"{missing} is missing", f"{misshapen} is [1, 1], not", "model.strange.weight has no place"):
        assert part in str(caught.value)
    assert torch.equal(logits(base), after), "a refused file changes nothing"


@techniques
def test_an_unknown_option_is_an_error(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"{name}: no option 'learnign'.*Options: "):
        TECHNIQUES.get(name).parse({"learnign": 1})


@techniques
@pytest.mark.parametrize("training", [True, False])
def test_the_decoders_mode_stays(name: str, training: bool, base: Decoder) -> None:
    base.train(training)
    put(name, base)
    assert {module.training for module in base.modules()} == {training}


LORA = TECHNIQUES.get("lora")


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"ranks": 8}, ("no option 'ranks'", "Did you mean 'rank'")),
        ({"rank": 0}, ("rank=0", "greater than or equal to 1")),
        ({"rank": "many"}, ("rank='many'", "integer")),
        ({"alpha": float("inf")}, ("alpha=inf", "finite")),
        ({"dropout": 1.0, "targets": []}, ("dropout=1.0", "targets=[]", "at least 1 item")),
        ({"targets": " , "}, ("targets=()", "at least 1 item")),
    ],
)
def test_bad_options_of_lora_are_named_together(options: dict[str, object], parts: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        LORA.parse(options)
    for part in parts:
        assert part in str(caught.value)


def test_targets_may_be_a_list_or_a_comma_string(base: Decoder) -> None:
    text = LORA.parse({"targets": "q_proj, mlp.up_proj,"})
    assert text.targets == ("q_proj", "mlp.up_proj")
    assert text == LORA.parse({"targets": ["q_proj", "mlp.up_proj"]})
    text.apply(base, seed=0)
    leaves = {path.rsplit(".", 3)[1] for path in base.trained() if path.endswith("lora_A")}
    assert leaves == {"q_proj", "up_proj"}
    assert len(base.trained()) == 2 * 2 * base.config.layers


def test_a_target_may_be_a_full_path(base: Decoder) -> None:
    LORA.parse({"targets": ["model.layers.1.self_attn.q_proj"]}).apply(base, seed=0)
    assert {path.rsplit(".", 2)[0] for path in base.trained()} == {"model.layers.1.self_attn.q_proj"}


def test_every_target_that_matches_nothing_is_named_with_its_neighbours(base: Decoder) -> None:
    with pytest.raises(ConfigError) as caught:
        LORA.parse({"targets": "q_proj,k_prj,roj"}).apply(base, seed=0)
    message = str(caught.value)
    assert "'k_prj', 'roj'" in message
    assert "Did you mean 'k_proj'" in message
    assert re.search(r"Linears: .*down_proj.*all-linear", message)
    assert base.trained() == {}


def test_a_rank_above_the_size_of_a_matrix_is_an_error(base: Decoder) -> None:
    LORA.parse({"rank": 16}).apply(base, seed=0)
    with pytest.raises(ConfigError, match=r"rank 17 is above the size of .*k_proj \[16, 32\] and \d+ more"):
        LORA.parse({"rank": 17}).apply(base, seed=0)


@pytest.mark.parametrize(("rslora", "scale"), [(False, 8.0), (True, 16.0)])
def test_the_scale(rslora: bool, scale: float) -> None:
    assert LORA.parse({"rank": 4, "alpha": 32, "rslora": rslora}).scale == scale


def test_dropout_acts_in_training_alone(base: Decoder) -> None:
    LORA.parse({"dropout": 0.5}).apply(base, seed=0)
    train(base)
    assert torch.equal(logits(base.eval()), logits(base.eval()))
    assert not torch.equal(logits(base.train()), logits(base.train()))
