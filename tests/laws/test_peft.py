"""LoRA folders travel between Graftwood and PEFT, and both learn the same from a batch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import tiny
from conftest import CPU
from graftwood.base import Base, open_base
from graftwood.checkpoint import ADAPTER_CONFIG, ADAPTER_WEIGHTS, load_adapter, save_adapter
from graftwood.data.batch import Examples
from graftwood.errors import ConfigError
from graftwood.techniques.lora import LoRA
from graftwood.train.loop import Trainer

IDS = torch.randint(0, 320, (2, 20), generator=torch.Generator().manual_seed(5))
noisy = pytest.mark.filterwarnings(
    "ignore"
)  # what the two libraries say of each other and of the hub is not our matter


@pytest.fixture
def folder(tmp_path: Path, tokenizer_files: Callable[[Path], None]) -> Path:
    return tiny.model_folder(tmp_path / "tiny", tokenizer_files)


def tuned(folder: Path, **options: Any) -> tuple[Base, LoRA]:
    """A base with a LoRA whose factors are both random."""
    base, technique = open_base(str(folder), CPU), LoRA.parse(options)
    technique.apply(base.decoder, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in base.decoder.trained().values():
            parameter.normal_(0.0, 0.1, generator=generator)
    return base, technique


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found = model(IDS)
    return found if isinstance(found, Tensor) else found.logits


def their_base(folder: Path) -> Any:
    transformers = pytest.importorskip("transformers", reason="needs the extra `peers`")
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def their_adapter(folder: Path, adapter: Path, train: bool = False) -> Any:
    peft = pytest.importorskip("peft", reason="needs the extra `peers`")
    return peft.PeftModel.from_pretrained(their_base(folder), adapter, is_trainable=train)


def distance(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@noisy
@pytest.mark.parametrize("options", [{}, {"rank": 4, "rslora": True, "targets": "q_proj,down_proj"}])
def test_peft_reads_what_we_write(options: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    base, technique = tuned(folder, **options)
    save_adapter(base, technique, tmp_path / "adapter")
    theirs = their_adapter(folder, tmp_path / "adapter")
    assert distance(logits(theirs), logits(base.decoder)) < 1e-5
    with base.decoder.without_deltas():
        assert distance(logits(base.decoder), logits(theirs)) > 1e-2, "the adapter must matter"


@noisy
@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["v_proj", "up_proj"], "r": 4, "lora_alpha": 12, "use_rslora": True},
        {"target_modules": None},
        {"target_modules": "all-linear", "lora_dropout": 0.1},
    ],
    ids=["a list and rsLoRA", "the family's defaults", "all-linear"],
)
def test_we_read_what_peft_writes(options: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="needs the extra `peers`")
    config = peft.LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **options)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = peft.get_peft_model(their_base(folder), config).eval()
    theirs.save_pretrained(tmp_path / "adapter")
    base = open_base(str(folder), CPU)
    plain = logits(base.decoder)
    technique = load_adapter(base, tmp_path / "adapter")
    assert distance(logits(base.decoder), logits(theirs)) < 1e-5
    assert distance(plain, logits(theirs)) > 1e-2, "the adapter must matter"
    assert base.decoder.trained() == {}
    if options["target_modules"] is None:
        assert set(technique.targets) == {"q_proj", "v_proj"}


@noisy
def test_one_step_gives_the_same_update(folder: Path, tmp_path: Path) -> None:
    base, technique = tuned(folder, rank=4, alpha=8)
    save_adapter(base, technique, tmp_path / "before")
    theirs = their_adapter(folder, tmp_path / "before", train=True).train()
    rows = [row for row in tiny.examples(100) if len(row.ids) == 12][:3]
    plan = tiny.plan(learning_rate=1e-3, batch=3, clip=0.05, weight_decay=0.1)
    Trainer(base.decoder, Examples(rows), Examples([]), plan, tmp_path / "steps").step()

    ids, answer = (torch.tensor(list(side)) for side in zip(*((row.ids, row.answer) for row in rows), strict=True))
    theirs(input_ids=ids, labels=ids.masked_fill(~answer, -100)).loss.backward()
    trained = [parameter for parameter in theirs.parameters() if parameter.requires_grad]
    norm = torch.nn.utils.clip_grad_norm_(trained, 0.05)
    assert norm > 0.05, "clipping must matter"
    torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.1).step()
    theirs.save_pretrained(tmp_path / "theirs")
    save_adapter(base, technique, tmp_path / "ours")

    before, mine, other = (load_file(tmp_path / name / ADAPTER_WEIGHTS) for name in ("before", "ours", "theirs"))
    assert mine.keys() == other.keys()
    for name in mine:
        # Adam divides a gradient by its own size, so the rounding of the smallest ones shows.
        assert distance(mine[name] - before[name], other[name] - before[name]) < 1e-2, name


@pytest.mark.parametrize(
    "change",
    [
        {"use_dora": True},
        {"bias": "lora_only"},
        {"modules_to_save": ["lm_head"]},
        {"rank_pattern": {"q_proj": 4}},
        {"layers_to_transform": [0]},
        {"init_lora_weights": "pissa_niter_4"},
        {"target_modules": r".*\.(q|v)_proj"},
        {"a_field_of_next_year": 2},
        {"use_dora": True, "fan_in_fan_out": True},
    ],
    ids=str,
)
def test_what_is_not_read_is_refused_by_name(change: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    base, technique = tuned(folder)
    save_adapter(base, technique, tmp_path / "adapter")
    file = tmp_path / "adapter" / ADAPTER_CONFIG
    config = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(config | change), encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_adapter(open_base(str(folder), CPU), tmp_path / "adapter")
    assert "\n" not in str(caught.value)
    for name, value in change.items():
        assert f"{name}={value!r}" in str(caught.value)


def test_another_kind_of_adapter_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / ADAPTER_CONFIG).write_text('{"peft_type": "IA3"}', encoding="utf-8")
    with pytest.raises(ConfigError, match=r"peft_type 'IA3' is not read; readable: LORA"):
        load_adapter(open_base(str(folder), CPU), tmp_path)


def test_an_adapter_of_another_base_is_refused_with_both_names(
    folder: Path, tmp_path: Path, tokenizer_files: Callable[[Path], None]
) -> None:
    base, technique = tuned(folder)
    save_adapter(base, technique, tmp_path / "adapter")
    other = open_base(str(tiny.model_folder(tmp_path / "sister", tokenizer_files, tiny.decoder(seed=1))), CPU)
    with pytest.raises(ConfigError) as caught:
        load_adapter(other, tmp_path / "adapter")
    for part in (base.name, base.fingerprint[:12], other.name, other.fingerprint[:12]):
        assert part in str(caught.value)
    assert all(linear.delta is None for linear in other.decoder.linears().values())
