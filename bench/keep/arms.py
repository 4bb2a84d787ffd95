"""The arms: what each of them is, in which order they run, and how long one is expected to take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Literal

from bench.keep.records import ArmRecord
from bench.keep.tasks import TARGETS

EPOCHS = 3  # TRL's default; every arm passes over the rows as often
LADDER = (2e-5, 5e-5, 1e-4)
SCORING = 240.0  # seconds of the scorer on two idle cores, until a finished arm says more

# Training tokens a second, and seconds that come once a run (loading, measuring, choosing), on two idle cores; replaced
# by what finished arms took.
_SPEED = {"full": (100.0, 60.0), "lora": (170.0, 60.0), "keep": (120.0, 700.0), "peer": (80.0, 60.0)}


@dataclass(frozen=True)
class Arm:
    """One way to tune: by `graft` with `flags`, or by the peers' packages with `recipe`; the base has neither.

    Of several `rates` the one with the lowest validation loss is taken, and all are paid for.
    """

    name: str
    title: str
    side: Literal["base", "graft", "peer"]
    pace: str = ""
    flags: tuple[str, ...] = ()
    recipe: Mapping[str, Any] = field(default_factory=dict)
    rates: tuple[float, ...] = ()
    budget: float | None = None


def _full(*anchors: str) -> tuple[str, ...]:
    # What is reported of these arms is measured by the benchmark, so their own report asks little.
    return ("--technique", "full", "--keep", "none", "--skills", "piqa", *(w for a in anchors for w in ("--anchor", a)))


def _kept(percent: int) -> Arm:
    name, flags = f"O{percent}", ("--keep", f"{percent}%")
    return Arm(name, f"graft tune --keep {percent}%", "graft", "keep", flags, budget=percent / 100)


_TRL_LORA = {
    "kind": "lora",
    "options": {"r": 16, "lora_alpha": 32, "lora_dropout": 0.05, "target_modules": "all-linear"},
}
_OFT = {"kind": "oft", "options": {"oft_block_size": 32, "target_modules": "all-linear"}, "dial": 0.4}

ARMS = {
    arm.name: arm
    for arm in (
        Arm("A0", "the base", "base"),
        Arm("A1", "full fine-tuning tuned for gain", "graft", "full", _full(), rates=LADDER),
        Arm("P1", "TRL's SFT defaults", "peer", "peer", recipe={"kind": "full"}, rates=(2e-5,)),
        Arm("P2", "TRL's LoRA recipe", "peer", "peer", recipe=_TRL_LORA, rates=(2e-4,)),
        Arm("P2b", "PEFT's LoRA defaults", "peer", "peer", recipe={"kind": "lora", "options": {}}, rates=(2e-5,)),
        Arm("P6", "PEFT's OFT, dialled to 0.4", "peer", "peer", recipe=_OFT, rates=(2e-4,)),
        Arm("P7", "TRL's LoRA, best of three rates", "peer", "peer", recipe=_TRL_LORA, rates=(1e-4, 2e-4, 5e-4)),
        Arm("O1", "full + kl", "graft", "full", _full("kl"), rates=(5e-5,)),
        Arm("O2", "full + kl, half dial", "graft", "full", _full("kl", "interpolate:alpha=0.5"), rates=(5e-5,)),
        *(_kept(percent) for percent in (90, 95, 98, 99)),
    )
}
SLIM_ARMS = ("A0", "A1", "P1", "O95", "P2")
SLIM_TASKS, SLIM_SEEDS, FULL_SEEDS = ("messages", "sums", "code"), (0, 1), (0, 1, 2)


@dataclass(frozen=True)
class Entry:
    """One arm on one task with one seed."""

    task: str
    arm: str
    seed: int


def slim() -> list[Entry]:
    """The arms of the claims: a first picture of two tasks, then their second seed, then a third task."""
    order = [(task, seed) for seed in SLIM_SEEDS for task in SLIM_TASKS[:2]]
    order += [(SLIM_TASKS[2], seed) for seed in SLIM_SEEDS]
    return [Entry(task, arm, seed) for task, seed in order for arm in SLIM_ARMS if _once(arm, seed)]


def full() -> list[Entry]:
    """The slim plan, then every other arm, seed by seed, dear tasks last."""
    first = slim()
    every = [Entry(task, arm, seed) for seed in FULL_SEEDS for task in TARGETS for arm in ARMS if _once(arm, seed)]
    return first + [entry for entry in every if entry not in first]


def _once(arm: str, seed: int) -> bool:
    """The base is the same for every seed."""
    return arm != "A0" or seed == 0


def forecast(arm: Arm, tokens: int, known: Sequence[ArmRecord]) -> float:
    """Seconds that an arm will take where one pass over the rows reads so many tokens; by finished arms if any are."""
    scoring = median([record.score_seconds for record in known if record.arm != "A0"] or [SCORING])
    if arm.side == "base":
        return scoring
    alike = [r.training.seconds / max(1, r.training.tokens) for r in known if r.arm == arm.name]
    work = tokens * EPOCHS * len(arm.rates or (0,))
    if alike:
        return median(alike) * work + scoring
    speed, once = _SPEED[arm.pace]
    return work / speed + once * len(arm.rates or (0,)) + scoring
