"""The base's abilities before and after: every bundled task scored item by item, and what is left of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from graftwood.base import Base
from graftwood.evals import asking, stats
from graftwood.evals.asking import Scores, score_task
from graftwood.evals.card import Compared, Estimate, Kept, Skill
from graftwood.evals.retention import Moved
from graftwood.evals.task import TASKS, Task
from graftwood.files import cache_home, storage, write_json
from graftwood.generate.engine import Engine
from graftwood.model.expected import Expected

MARGIN = 0.02  # a skill counts where the base's lower bound is this far above chance: what was never there is not lost


def score_all(
    base: Base, engine: Engine, note: Callable[[str], None], tasks: Sequence[Task] | None = None
) -> list[Scores]:
    """Every task, the registered ones where none are given; `note` is told which one is being asked."""
    results = []
    for task in TASKS.all().values() if tasks is None else tasks:
        note(task.title)
        results.append(score_task(base, engine, task))
    return results


def base_scores(
    base: Base, engine: Engine, note: Callable[[str], None], tasks: Sequence[Task] | None = None
) -> list[Scores]:
    """The untouched base's scores, from the cache where this base was asked the same before."""
    shelf = cache_home() / "base-scores" / f"{base.fingerprint[:16]}-{base.decoder.precision}"
    results = []
    for task in TASKS.all().values() if tasks is None else tasks:
        path = shelf / f"{task.name}-{task.key[:16]}.json"
        if path.exists():
            results.append(restored(task, json.loads(path.read_text(encoding="utf-8"))))
            continue
        note(task.title)
        results.append(score_task(base, engine, task))
        with storage(f"write {path}"):
            write_json(path, {"base": base.fingerprint, "task": task.name, **stored(results[-1])})
    return results


def stored(scores: Scores) -> dict[str, tuple[Any, ...]]:
    """What a file keeps of a task's scores."""
    return {"right": scores.right, "soft": scores.soft, "said": scores.said}


def restored(task: Task, kept: Mapping[str, Any]) -> Scores:
    """Scores as `stored` gave them."""
    return Scores(task, tuple(kept["right"]), tuple(kept["soft"]), tuple(kept["said"]))


def work(base: Base) -> tuple[int, int]:
    """Tokens that all registered tasks together have a model read, and at most write."""
    parts = [asking.work(base, task) for task in TASKS.all().values()]
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


def kept_share(before: Sequence[Scores], after: Sequence[Scores], skills: Sequence[Skill]) -> Estimate:
    """Room above chance that is left, summed over the skills that count, over what the base had."""
    used = [(b, a) for b, a, skill in zip(before, after, skills, strict=True) if skill.counted]
    return stats.ratio_of_sums(
        [np.array(a.right) for _, a in used],
        [np.array(b.right) for b, _ in used],
        [b.task.chance for b, _ in used],
        [b.task.units() for b, _ in used],
    )


def worst_skill(skills: Sequence[Skill]) -> str | None:
    """The counted skill with the smallest kept share."""
    counted = [
        (skill.kept.value, skill.measure.name) for skill in skills if skill.counted and skill.kept.value is not None
    ]
    return min(counted)[1] if counted else None


def _skill(before: Scores, after: Scores) -> Skill:
    task, units = before.task, before.task.units()
    b, a = np.array(before.right), np.array(after.right)
    measure = _compared(task, before.right, after.right)
    counted = measure.base.low is not None and measure.base.low > task.chance + MARGIN
    kept = (
        stats.ratio_of_sums([a], [b], [task.chance], [units])
        if counted
        else Estimate(value=None, note="the base is not above chance here")
    )
    return Skill(
        measure=measure,
        kind=task.kind,
        chance=task.chance,
        lost=int((a < b).sum()),
        won=int((a > b).sum()),
        counted=counted,
        kept=kept,
        soft=_compared(task, before.soft, after.soft) if before.soft and after.soft else None,
    )


def _compared(task: Task, before: Sequence[float], after: Sequence[float]) -> Compared:
    b, a, units = np.array(before), np.array(after), task.units()
    return Compared(
        name=task.name,
        title=task.title,
        unit="share",
        higher_is_better=True,
        base=stats.mean(b, units),
        tuned=stats.mean(a, units),
        change=stats.mean(a - b, units),
    )
