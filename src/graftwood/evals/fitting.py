"""Questions that a model's positions have no room for: they are left out, for the base and what became of it alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from graftwood.base import Base
from graftwood.evals.asking import needed
from graftwood.evals.task import Task

FEWEST = 10  # what is left of a task says something from this many independent items on


@dataclass(frozen=True)
class Fitting:
    """Tasks with the items that fit; `left_out` says in a line how many do not, and in one each what is not asked."""

    tasks: tuple[Task, ...]
    left_out: tuple[str, ...] = ()


def fitting(base: Base, tasks: Sequence[Task], positions: int) -> Fitting:
    """The tasks as a model with so many positions can be asked: every item whole, with room for its answer.

    A task that loses items and is left with fewer than `FEWEST` independent ones is not asked at all.
    """
    kept: list[Task] = []
    unasked: list[str] = []
    without, total = 0, 0
    for task in tasks:
        items = task.items()
        fits = tuple(item for item, tokens in zip(items, needed(base, task), strict=True) if tokens <= positions)
        without, total = without + len(items) - len(fits), total + len(items)
        if len(fits) == len(items):
            kept.append(task)
        elif len({item.unit for item in fits}) >= FEWEST:
            kept.append(task.of(fits))
        else:
            unasked.append(f"{task.title}: not measured, {too_long(len(items) - len(fits), len(items), positions)}")
    said = [too_long(without, total, positions)] if without else []
    return Fitting(tuple(kept), (*said, *unasked))


def too_long(count: int, of: int, positions: int, what: str = "items") -> str:
    """How many of them were left out, and why."""
    return f"{count} of {of} {what} do not fit in {positions} positions"
