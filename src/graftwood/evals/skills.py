"""The base's abilities before and after: every bundled task scored item by item, and what is left of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from graftwood.base import Base
from graftwood.evals import stats
from graftwood.evals.card import Compared, Estimate, Skill
from graftwood.evals.checks import followed
from graftwood.evals.score import answers, continuations
from graftwood.evals.task import TASKS, Task
from graftwood.files import cache_home, storage, write_json
from graftwood.generate.engine import Engine

MARGIN = 0.02  # a skill counts where the base's lower bound is this far above chance: what was never there is not lost


@dataclass(frozen=True)
class Scores:
    """One task's items in order: 1 for right, 0 for wrong."""

    task: Task
    right: tuple[float, ...]


def score_task(base: Base, engine: Engine, task: Task) -> Scores:
    """Ask every item of a task and judge the answers."""
    items = task.items()
    contexts, choices = _questions(base, task)
    if task.kind == "program":
        said = answers(engine, contexts, task.max_tokens)
        return Scores(task, tuple(float(followed(i.checks, text)) for i, text in zip(items, said, strict=True)))
    scored = continuations(base.decoder, contexts, choices)
    if task.kind == "word":
        return Scores(task, tuple(float(choices[0].greedy) for choices in scored))
    best = [int(np.argmax([c.log_probability / c.tokens for c in choices])) for choices in scored]
    return Scores(task, tuple(float(pick == item.gold) for pick, item in zip(best, items, strict=True)))


def work(base: Base) -> tuple[int, int]:
    """Tokens that all tasks together have a model read, and at most write."""
    read = written = 0
    for task in TASKS.all().values():
        contexts, choices = _questions(base, task)
        read += sum(map(len, contexts)) + sum(len(choice) for one in choices for choice in one)
        written += len(contexts) * task.max_tokens
    return read, written


def _questions(base: Base, task: Task) -> tuple[list[list[int]], list[list[list[int]]]]:
    """The ids of every item: what comes before the answer, and the choices there are."""
    items, encoder = task.items(), base.encoder()
    if task.kind == "program":
        return [encoder.ask(item.prompt) for item in items], []
    choices = [base.tokenizer.encode_batch(item.choices or (item.answer,)) for item in items]
    return [encoder.begin(item.prompt) for item in items], choices


def score_all(base: Base, engine: Engine, note: Callable[[str], None]) -> list[Scores]:
    """Every registered task; `note` is told which one is being asked."""
    results = []
    for task in TASKS.all().values():
        note(task.title)
        results.append(score_task(base, engine, task))
    return results


def base_scores(base: Base, engine: Engine, note: Callable[[str], None]) -> list[Scores]:
    """The untouched base's scores, from the cache where this base was scored before."""
    shelf = cache_home() / "base-scores" / f"{base.fingerprint[:16]}-{base.decoder.precision}"
    results = []
    for task in TASKS.all().values():
        path = shelf / f"{task.name}-v{task.version}.json"
        if path.exists():
            right = tuple(json.loads(path.read_text(encoding="utf-8"))["right"])
        else:
            note(task.title)
            right = score_task(base, engine, task).right
            with storage(f"write {path}"):
                write_json(path, {"base": base.fingerprint, "task": task.name, "version": task.version, "right": right})
        results.append(Scores(task, right))
    return results


def compare_skills(before: Sequence[Scores], after: Sequence[Scores]) -> tuple[Skill, ...]:
    """Each task before and after, with items lost and won."""
    return tuple(_skill(b, a) for b, a in zip(before, after, strict=True))


def kept_share(before: Sequence[Scores], after: Sequence[Scores], skills: Sequence[Skill]) -> Estimate:
    """Room above chance that is left, summed over the skills that count, over what the base had."""
    used = [(b, a) for b, a, skill in zip(before, after, skills, strict=True) if skill.counted]
    return stats.ratio_of_sums(
        [np.array(a.right) for _, a in used],
        [np.array(b.right) for b, _ in used],
        [b.task.chance for b, _ in used],
        [_units(b.task) for b, _ in used],
    )


def worst_skill(skills: Sequence[Skill]) -> str | None:
    """The counted skill with the smallest kept share."""
    counted = [
        (skill.kept.value, skill.measure.name) for skill in skills if skill.counted and skill.kept.value is not None
    ]
    return min(counted)[1] if counted else None


def _units(task: Task) -> list[object]:
    return [item.cluster or item.id for item in task.items()]


def _skill(before: Scores, after: Scores) -> Skill:
    task, units = before.task, _units(before.task)
    b, a = np.array(before.right), np.array(after.right)
    base = stats.mean(b, units)
    counted = base.low is not None and base.low > task.chance + MARGIN
    measure = Compared(
        name=task.name,
        title=task.title,
        unit="share",
        higher_is_better=True,
        base=base,
        tuned=stats.mean(a, units),
        change=stats.mean(a - b, units),
    )
    lost, won = int(((b == 1) & (a == 0)).sum()), int(((b == 0) & (a == 1)).sum())
    kept = (
        stats.ratio_of_sums([a], [b], [task.chance], [units])
        if counted
        else Estimate(value=None, note="the base is not above chance here")
    )
    return Skill(measure=measure, kind=task.kind, chance=task.chance, lost=lost, won=won, counted=counted, kept=kept)
