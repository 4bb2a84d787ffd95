"""The base's abilities before and after: every bundled task scored item by item, and what is left of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from graftwood.base import Base
from graftwood.evals import asking, shares, stats
from graftwood.evals.asking import Scores, score_task
from graftwood.evals.card import Compared, Estimate, Kept, Skill
from graftwood.evals.retention import Moved
from graftwood.evals.shares import Share
from graftwood.evals.task import TASKS, Task
from graftwood.files import cache_home, storage, write_json
from graftwood.generate.engine import Engine
from graftwood.model.expected import Expected

MARGIN = 0.02  # a skill counts where the base's lower bound is this far above chance: what was never there is not lost


def score_again(base: Base, engine: Engine, note: Callable[[str], None], before: Sequence[Scores]) -> list[Scores]:
    """What the base was asked asked again of what became of it; `note` is told which task is being asked."""
    results = []
    for scores in before:
        note(scores.task.title)
        results.append(score_task(base, engine, scores.task, scores))
    return results


def base_scores(
    base: Base, engine: Engine, note: Callable[[str], None], tasks: Sequence[Task] | None = None
) -> list[Scores]:
    """The untouched base's scores, from the cache where this base was asked the same before."""
    shelf = cache_home() / "base-scores" / f"{base.fingerprint[:16]}-{base.decoder.precision}"
    results = []
    for task in TASKS.all().values() if tasks is None else tasks:
        path = shelf / f"{task.name}-{asking.key(base, task)[:16]}.json"
        if path.exists():
            results.append(restored(task, json.loads(path.read_text(encoding="utf-8"))))
            continue
        note(task.title)
        results.append(score_task(base, engine, task))
        with storage(f"write {path}"):
            write_json(path, {"base": base.fingerprint, "task": task.name, **results[-1].columns()})
    return results


def restored(task: Task, kept: Mapping[str, Any]) -> Scores:
    """Scores from the columns a file kept."""
    return Scores(task, tuple(kept["right"]), tuple(kept["soft"]), tuple(kept["said"]))


def work(base: Base, tasks: Sequence[Task]) -> tuple[int, int]:
    """Tokens that all tasks together have a model read, and at most write."""
    parts = [asking.work(base, task) for task in tasks]
    return sum(read for read, _ in parts), sum(written for _, written in parts)


def kept(before: Sequence[Scores], after: Sequence[Scores], moved: Moved, probe: Expected) -> Kept:
    """The KEPT part: what is left of each ability, and how far the next-word distribution moved."""
    compared = compare_skills(before, after)
    drift, agreement = moved.estimates()
    windows, length = probe.ids.shape
    return Kept(
        kept=kept_share(before, after, compared),
        worst=worst_skill(compared),
        skills=compared,
        drift=drift,
        same_next_word=agreement,
        probe=f"{windows} texts of {length} tokens that the base wrote itself",
    )


def compare_skills(before: Sequence[Scores], after: Sequence[Scores]) -> tuple[Skill, ...]:
    """Each task before and after, with items lost and won; the tests of all tasks count as one family (Holm)."""
    skills = [_skill(b, a) for b, a in zip(before, after, strict=True)]
    corrected = stats.holm([stats.mcnemar(skill.lost, skill.won) for skill in skills])
    return tuple(skill.model_copy(update={"p_value": p}) for skill, p in zip(skills, corrected, strict=True))


def counts(before: Scores) -> bool:
    """Whether the base has an ability to lose: by every measure its lower bound is clearly above chance."""
    task = before.task
    bounds = [stats.mean(column, task.units()).low for column in (before.right, before.soft) if column]
    return bool(bounds) and all(low is not None and low > task.chance + MARGIN for low in bounds)


def share(before: Scores, after: Scores) -> Share:
    """A task as what `shares.py` reckons with: by probabilities where both models have them."""
    task = before.task
    b, a = (before.soft, after.soft) if before.soft and after.soft else (before.right, after.right)
    return Share.of(np.array(a), np.array(b), task.chance, task.units())


def kept_of(pairs: Sequence[tuple[Scores, Scores]]) -> Estimate:
    """The kept share of tasks; where every answer is the same to the last digit, nothing has moved at all."""
    if pairs and all(b.columns() == a.columns() for b, a in pairs):
        return Estimate(value=1.0, low=1.0, high=1.0, n=sum(len(b.right) for b, _ in pairs))
    return shares.kept([share(b, a) for b, a in pairs])


def kept_share(before: Sequence[Scores], after: Sequence[Scores], skills: Sequence[Skill]) -> Estimate:
    """The mean over the skills that count of what is left of each."""
    pairs = zip(before, after, skills, strict=True)
    return kept_of([(b, a) for b, a, skill in pairs if skill.counted])


def worst_skill(skills: Sequence[Skill]) -> str | None:
    """The counted skill with the smallest kept share."""
    counted = [
        (skill.kept.value, skill.measure.name) for skill in skills if skill.counted and skill.kept.value is not None
    ]
    return min(counted)[1] if counted else None


def _skill(before: Scores, after: Scores) -> Skill:
    task, b, a = before.task, np.array(before.right), np.array(after.right)
    measure, counted = _compared(task, before.right, after.right), counts(before)
    return Skill(
        measure=measure,
        kind=task.kind,
        chance=task.chance,
        lost=int((a < b).sum()),
        won=int((a > b).sum()),
        counted=counted,
        kept=kept_of([(before, after)]) if counted else Estimate(value=None, note="the base is not above chance here"),
        soft=_compared(task, before.soft, after.soft) if before.soft and after.soft else None,
    )


def _compared(task: Task, before: Sequence[float], after: Sequence[float]) -> Compared:
    units = task.units()
    return Compared(
        name=task.name,
        title=task.title,
        unit="share",
        higher_is_better=True,
        base=stats.mean(before, units),
        tuned=stats.mean(after, units),
        change=stats.change(after, before, units),
    )
