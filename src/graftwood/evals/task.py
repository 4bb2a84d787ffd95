"""What a task is: a named, versioned set of items and the way they are asked and judged."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import astuple, dataclass, field, replace
from functools import cache
from importlib.resources import files
from typing import Any, Literal

from graftwood.data.rows import Turn
from graftwood.errors import ConfigError
from graftwood.files import sha256_text
from graftwood.registry import Registry

Kind = Literal["choice", "word", "text", "program", "code"]


@dataclass(frozen=True)
class Item:
    """One question.

    `prompt` is the text before the answer: plain text, one user message for `program`; `turns` stand in its place where
    a conversation is asked. `choices` and `gold` belong to `choice`; `answer` is what `word` and `text` want, and
    `references` are other right answers; `checks` say what an answer to a `program` item must satisfy (see
    `checks.py`); `test` is the program that tries what `code` defines under the name `entry_point`. `cluster` groups
    items that are not independent of each other.
    """

    id: str
    prompt: str
    choices: tuple[str, ...] = ()
    gold: int = 0
    answer: str = ""
    checks: tuple[Mapping[str, Any], ...] = ()
    cluster: str = ""
    turns: tuple[Turn, ...] = ()
    references: tuple[str, ...] = ()
    test: str = ""
    entry_point: str = ""

    @property
    def unit(self) -> str:
        """The name of what is independent: its cluster, or the item itself."""
        return self.cluster or self.id


@dataclass(frozen=True)
class Task:
    """An entry of `evals/tasks/`: what is asked, how it is judged, what guessing would score.

    `title` is the name a reader of the report sees. `kind` is how an item is scored: `choice` by the length-normalised
    log-probability of each choice, `word` by whether the greedy continuation is the answer, `text` by `metric` between
    the generated answer and the wanted one, `program` by generating an answer and checking it, `code` by running what
    was generated against a test, `samples` times, drawn at `temperature` by `seed`. An answer to `text` ends before any
    of `stop`. `version` changes whenever a score could. `more` are items beyond those that are usually asked, which do
    not depend on them.
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
    metric: str = ""
    samples: int = 1
    temperature: float = 0.0
    stop: tuple[str, ...] = ()
    seed: int = 0
    more: Callable[[], tuple[Item, ...]] = field(default=tuple, repr=False)

    def items(self) -> tuple[Item, ...]:
        """Every item, in a fixed order."""
        return self.read()

    def units(self) -> list[str]:
        """By item, the name of what is independent."""
        return [item.unit for item in self.items()]

    @property
    def key(self) -> str:
        """Hex SHA-256 over what is asked and how it is judged; no model has a say in it."""
        how = (self.kind, self.version, self.max_tokens, self.metric, self.samples, self.temperature, *self.stop)
        drawn = (f"seed {self.seed}",) if self.seed else ()  # without one, what was cached before there were seeds
        return sha256_text(repr(how), *drawn, *(repr(astuple(item)) for item in self.items()))

    def limited(self, most: int | None) -> Task:
        """The same with `most` of its items, None for all: the first of every cluster, then the second of each."""
        items = self.items()
        if most is None or len(items) <= most:
            return self
        seen: Counter[str] = Counter()
        ranked = []
        for place, unit in enumerate(self.units()):
            ranked.append((seen[unit], place))
            seen[unit] += 1
        return self.of(tuple(items[place] for place in sorted(place for _, place in sorted(ranked)[:most])))

    def sampled(self, samples: int, temperature: float, seed: int = 0) -> Task:
        """The same with several samples of every answer, where answers are programs; another seed draws others.

        Raises: ConfigError where there can be no samples, or all of them would be one.
        """
        if not 0 <= temperature < math.inf:
            raise ConfigError(f"temperature {temperature:g} is not 0 (greedy) or more")
        if samples < 1 or (samples > 1 and temperature <= 0):
            raise ConfigError(f"{samples} samples at temperature {temperature:g}: take 1, or more above 0")
        if self.kind != "code":
            return self
        return replace(self, samples=samples, temperature=temperature, seed=seed if temperature > 0 else 0)

    def of(self, items: tuple[Item, ...]) -> Task:
        """The same task of other items, and what guessing scores there."""
        chance = sum(1 / len(item.choices) for item in items) / len(items) if self.kind == "choice" else self.chance
        return replace(self, read=lambda: items, chance=chance)


USUAL = 100  # rows of a bundled set that are asked by default


@cache
def pocket(name: str) -> tuple[Mapping[str, Any], ...]:
    """The rows of a JSONL file that ships inside the package, `evals/pocket/<name>.jsonl`."""
    text = files("graftwood.evals").joinpath("pocket", f"{name}.jsonl").read_text(encoding="utf-8")
    return tuple(json.loads(line) for line in text.splitlines())


def numbered(name: str, more: bool = False) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Id and row of a bundled set's usual items, or of those beyond them.

    A set is ordered by hash, so that item 7 stays item 7 when the set grows.
    """
    rows = [(f"{name}-{number:03d}", row) for number, row in enumerate(pocket(name), start=1)]
    return iter(rows[USUAL:] if more else rows[:USUAL])


def pocket_choices(name: str, ending: str = "", more: bool = False) -> tuple[Item, ...]:
    """The items of a bundled set of choices: each row's `query` and `ending`, then one of its `choices`."""
    return tuple(
        Item(
            id=name,
            prompt=row["query"].rstrip() + ending,
            choices=tuple(f" {choice}" for choice in row["choices"]),
            gold=row["gold"],
        )
        for name, row in numbered(name, more)
    )


TASKS: Registry[Task] = Registry(
    "graftwood.evals.tasks", "task", lambda value: value if isinstance(value, Task) else None
)
