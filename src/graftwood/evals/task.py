"""What a task is: a named, versioned set of items and the way they are asked and judged."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any, Literal

from graftwood.registry import Registry

Kind = Literal["choice", "word", "program"]


@dataclass(frozen=True)
class Item:
    """One question.

    `prompt` is the text before the answer: plain text for `choice` and `word`, one user message for `program`.
    `choices` and `gold` belong to `choice`; `answer` is the word that `word` wants; `checks` say what an answer to a
    `program` item must satisfy (see `checks.py`). `cluster` groups items that are not independent of each other.
    """

    id: str
    prompt: str
    choices: tuple[str, ...] = ()
    gold: int = 0
    answer: str = ""
    checks: tuple[Mapping[str, Any], ...] = ()
    cluster: str = ""


@dataclass(frozen=True)
class Task:
    """An entry of `evals/tasks/`: what is asked, how it is judged, what guessing would score.

    `title` is the name a reader of the report sees. `kind` is how an item is scored: `choice` by the length-normalised
    log-probability of each choice, `word` by whether the greedy continuation is the answer, `program` by generating an
    answer and checking it. `version` changes whenever a score could.
    """

    name: str
    title: str
    kind: Kind
    version: int
    chance: float
    source: str
    licence: str
    read: Callable[[], tuple[Item, ...]] = field(repr=False)
    max_tokens: int = 0

    def items(self) -> tuple[Item, ...]:
        """Every item, in a fixed order."""
        return self.read()


@cache
def pocket(name: str) -> tuple[Mapping[str, Any], ...]:
    """The rows of a JSONL file that ships inside the package, `evals/pocket/<name>.jsonl`."""
    text = files("graftwood.evals").joinpath("pocket", f"{name}.jsonl").read_text(encoding="utf-8")
    return tuple(json.loads(line) for line in text.splitlines())


def pocket_choices(name: str, ending: str = "") -> tuple[Item, ...]:
    """The items of a bundled set of choices: each row's `query` and `ending`, then one of its `choices`.

    A set is ordered by hash, so that item 7 stays item 7 when the set grows.
    """
    return tuple(
        Item(
            id=f"{name}-{number:03d}",
            prompt=row["query"].rstrip() + ending,
            choices=tuple(f" {choice}" for choice in row["choices"]),
            gold=row["gold"],
        )
        for number, row in enumerate(pocket(name), start=1)
    )


TASKS: Registry[Task] = Registry(
    "graftwood.evals.tasks", "task", lambda value: value if isinstance(value, Task) else None
)
