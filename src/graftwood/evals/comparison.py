"""What `graft eval` finds: a base and adapters on it, the same items put to all of them."""

from __future__ import annotations

from collections.abc import Sequence

from graftwood.evals import stats
from graftwood.evals.asking import Scores
from graftwood.evals.card import Estimate, Kept, Record
from graftwood.evals.programs import pass_at


class Asked(Record):
    """One task of one model: its mean score, and the mean probability of the right answer where choices are weighed.

    `pass_at` has a code task's pass@k by name.
    """

    name: str
    title: str
    kind: str
    items: int
    chance: float
    score: Estimate
    soft: Estimate | None
    pass_at: dict[str, Estimate]


class Judged(Record):
    """One model's results; `kept` compares an adapter with the base it is on."""

    name: str
    source: str
    technique: str | None
    tasks: tuple[Asked, ...]
    kept: Kept | None


class Sitting(Record):
    """When which model was asked in which precision; `settings` say how."""

    version: int = 1
    created: str
    model: str
    model_fingerprint: str
    precision: str
    settings: dict[str, str]


class Evaluation(Sitting):
    """The whole of it; `left_out` says what was asked of nobody, for want of positions."""

    base: Judged
    adapters: tuple[Judged, ...]
    left_out: tuple[str, ...] = ()


class Measured(Record):
    """One metric of one of lm-eval's tasks in its own unit; `change` is against the base on the same items."""

    task: str
    metric: str
    version: str
    shots: int | None
    higher_is_better: bool | None
    score: Estimate
    change: Estimate | None


class Outside(Record):
    """One model's results on lm-eval's tasks."""

    name: str
    source: str
    technique: str | None
    measures: tuple[Measured, ...]


class LmEvaluation(Sitting):
    """What lm-eval finds of a base and of adapters on it; its version is among the settings."""

    base: Outside
    adapters: tuple[Outside, ...]


def asked(scores: Sequence[Scores]) -> tuple[Asked, ...]:
    """Each task's means with their intervals."""
    return tuple(
        Asked(
            name=one.task.name,
            title=one.task.title,
            kind=one.task.kind,
            items=len(one.right),
            chance=one.task.chance,
            score=stats.mean(one.right, one.task.units()),
            soft=stats.mean(one.soft, one.task.units()) if one.soft else None,
            pass_at=pass_at(one.task, one.right) if one.task.kind == "code" else {},
        )
        for one in scores
    )
