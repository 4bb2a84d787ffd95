"""The same adapter here and in PEFT: bases, adapters, logits and one step of both."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import tiny
from conftest import CPU
from graftwood.base import Base, open_base
from graftwood.checkpoint import ADAPTER_WEIGHTS, load_adapter, save_adapter
from graftwood.data.batch import Examples
from graftwood.technique import Technique
from graftwood.train.loop import Trainer

IDS = torch.randint(0, 320, (2, 20), generator=torch.Generator().manual_seed(5))
ROWS = [row for row in tiny.examples(100) if len(row.ids) == 12][:3]
PLAN = tiny.plan(learning_rate=1e-3, batch=3, clip=0.05, weight_decay=0.1)
# What the two libraries say of each other and of the hub is not our matter.
noisy = pytest.mark.filterwarnings("ignore")


def tuned(folder: Path, name: str = "lora", **options: Any) -> tuple[Base, Technique]:
    """A base with a technique whose trained values are all moved at random."""
    base, technique = open_base(str(folder), CPU), tiny.technique(name, **options)
    technique.apply(base.decoder, seed=0)
    move(base.decoder.trained().values())
    return base, technique


def move(parameters: Iterable[Tensor], seed: int = 1) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in parameters:
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found = model(IDS)
    # PEFT gives those of the prompt, too.
    return found if isinstance(found, Tensor) else found.logits[:, -IDS.shape[1] :]


def their_base(folder: Path) -> Any:
    transformers = pytest.importorskip("transformers", reason="needs the extra `peers`")
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def their_adapter(folder: Path, adapter: Path, train: bool = False) -> Any:
    peft = pytest.importorskip("peft", reason="needs the extra `peers`")
    return peft.PeftModel.from_pretrained(their_base(folder), adapter, is_trainable=train)


def distance(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def check_both_read(base: Base, folder: Path, adapter: Path) -> None:
    """PEFT opens the adapter that this base was saved as, and so do we, to the base's logits."""
    theirs = their_adapter(folder, adapter)
    assert distance(logits(theirs), logits(base.decoder)) < 1e-5
    with base.decoder.without_deltas():
        assert distance(logits(base.decoder), logits(theirs)) > 1e-3, "the adapter must matter"
    again = open_base(str(folder), CPU)
    load_adapter(again, adapter)
    assert distance(logits(again.decoder), logits(base.decoder)) < 1e-5


def their_step(theirs: Any) -> None:
    """What our loop does in a step, done by their parts: clipped, vectors not decayed."""
    ids, answer = (torch.tensor(list(side)) for side in zip(*((row.ids, row.answer) for row in ROWS), strict=True))
    answer[:, 0] = False  # a prompt would predict the first token, which our packs never ask for
    theirs(input_ids=ids, labels=ids.masked_fill(~answer, -100)).loss.backward()
    trained = [parameter for parameter in theirs.parameters() if parameter.requires_grad]
    norm = torch.nn.utils.clip_grad_norm_(trained, 0.05)
    assert norm > 0.05, "clipping must matter"
    groups = [
        {"params": [p for p in trained if sum(size > 1 for size in p.shape) > 1], "weight_decay": 0.1},
        {"params": [p for p in trained if sum(size > 1 for size in p.shape) <= 1], "weight_decay": 0.0},
    ]
    torch.optim.AdamW(groups, lr=1e-3).step()


def one_step_of_both(
    base: Base, technique: Technique, folder: Path, out: Path
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """The adapter's tensors before a step on `ROWS`, after ours, and after theirs from the same folder."""
    save_adapter(base, technique, out / "before")
    theirs = their_adapter(folder, out / "before", train=True).train()
    for module in theirs.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0  # the family's own, which is not here
    Trainer(base.decoder, Examples(ROWS), Examples([]), PLAN, out / "steps").step()
    their_step(theirs)
    theirs.save_pretrained(out / "theirs")
    save_adapter(base, technique, out / "ours")
    before, ours, other = (load_file(out / name / ADAPTER_WEIGHTS) for name in ("before", "ours", "theirs"))
    assert ours.keys() == other.keys()
    return before, ours, other
