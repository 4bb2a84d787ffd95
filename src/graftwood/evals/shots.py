"""Few-shot questions: before every item stand others of the same task with their right answers."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import dropwhile, islice, takewhile

from graftwood.data.rows import Turn
from graftwood.errors import ConfigError
from graftwood.evals.task import Item, Task

SEPARATOR = "\n\n"


def with_shots(task: Task, shots: int, seed: int = 0) -> Task:
    """The task with `shots` answered items before each; of programs to write or requests to follow, as it is.

    A model goes on with questions of its own making after its answer to plain text, so that ends at the separator.

    One seeded order is drawn of all items that are usually asked, and an item is shown the first of them that are
    neither itself nor of its own cluster: nearly all items are shown the same ones, so that what they have in common is
    read once.

    Raises: ConfigError where the task has too few other items.
    """
    if shots < 0:
        raise ConfigError(f"--shots {shots} is not 0 or more")
    if shots == 0 or task.kind in ("program", "code"):
        return task
    items = task.items()
    order = random.Random(f"{seed} {task.name}").sample(items, len(items))

    def with_them(items: Sequence[Item]) -> tuple[Item, ...]:
        return tuple(_shown(item, order, shots, task) for item in items)

    shown = replace(task.of(with_them(items)), more=lambda: with_them(task.more()))
    ends = task.kind == "text" and not any(item.turns or SEPARATOR in item.answer.rstrip() for item in items)
    return replace(shown, stop=(SEPARATOR,)) if ends else shown


def _shown(item: Item, order: Sequence[Item], shots: int, task: Task) -> Item:
    others = list(islice((other for other in order if other.unit != item.unit), shots))
    if len(others) < shots:
        raise ConfigError(f"--shots {shots}: {task.name} has only {len(others)} other items for {item.id}; take fewer")
    if item.turns:
        # Templates take a system message at the beginning alone, and the item's own is the one that counts.
        lead = tuple(takewhile(_is_system, item.turns))
        before = [
            turn
            for other in others
            for turn in (*dropwhile(_is_system, other.turns), Turn("assistant", other.answer, False))
        ]
        return replace(item, turns=(*lead, *before, *item.turns[len(lead) :]))
    parts = [other.prompt + (other.choices[other.gold] if other.choices else other.answer) for other in others]
    return replace(item, prompt=SEPARATOR.join([*(part.rstrip() for part in parts), item.prompt]))


def _is_system(turn: Turn) -> bool:
    return turn.role == "system"
