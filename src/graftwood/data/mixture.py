"""Many tasks in one run: which sources there are, what share of the rows each has, which rows make up each step.

Letters: e rows of a task, K the cap, T the temperature.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import combinations, count
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from graftwood.data.audit import folded
from graftwood.data.batch import Order
from graftwood.data.encode import Example
from graftwood.data.rows import Row
from graftwood.data.sources import Splits, load_splits
from graftwood.errors import ConfigError, DataError, GraftError
from graftwood.files import sha256_text

_WEIGHTED = re.compile(r"(.+):(\d+(?:\.\d+)?)")


def weighted(given: str) -> tuple[str, float | None]:
    """`rows.jsonl:2` as path and weight; a path that is there is a path, whatever it ends with.

    Raises: ConfigError for a weight of zero.
    """
    found = _WEIGHTED.fullmatch(given)
    if found is None or Path(given).exists():
        return given, None
    if float(found[2]) == 0:
        raise ConfigError(f"{given}: a weight is above 0; leave the source out instead")
    return found[1], float(found[2])


def load_mixture(given: Sequence[str], held_out: float = 0.1, seed: int = 0) -> tuple[Splits, dict[str, float | None]]:
    """The rows of several sources, each row with the name of its task, and the weight that each task was given.

    Raises: the one problem there is, or a DataError that lists them all: what `load_splits` raises of each source, a
    file or a set of rows that is there twice, a task without validation rows beside one that has them.
    """
    problems: list[GraftError] = []
    loaded: dict[str, Splits] = {}
    weights: dict[str, float | None] = {}
    first: dict[Path, str] = {}
    doubled: set[str] = set()
    for path in given:
        try:
            where, weight = weighted(path)
            if (before := first.setdefault(Path(where).resolve(), where)) in weights:
                doubled.add(before)
                continue
            weights[where] = weight
            loaded[where] = load_splits(where, held_out=held_out, seed=seed)
        except GraftError as error:
            problems.append(error)
    if doubled:
        told = ", ".join(sorted(doubled))
        problems.append(ConfigError(f"{told} is given twice; give it once with a weight, as in FILE:2"))
    problems += [*_same_rows(loaded), *_unmeasured(loaded)]
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise DataError(f"{len(problems)} problems with the mixture:", list(map(str, problems)))
    names = task_names(list(loaded))
    parts = [of_task(splits, name) for name, splits in zip(names, loaded.values(), strict=True)]
    return _together(parts, names), dict(zip(names, weights.values(), strict=True))


def task_names(paths: Sequence[str]) -> list[str]:
    """What each source is called: the end of its path, no longer than tells it from the others."""
    parts = [Path(path).resolve().parts for path in paths]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-depth:]).removesuffix(".jsonl").removesuffix(".train") for part in parts]
        if len(set(names)) == len(names):
            return names
    return list(paths)


def of_task(splits: Splits, task: str) -> Splits:
    """The rows with the name of their task."""

    def named(rows: tuple[Row, ...]) -> tuple[Row, ...]:
        return tuple(replace(row, task=task) for row in rows)

    return replace(splits, train=named(splits.train), valid=named(splits.valid), test=named(splits.test))


def _together(parts: Sequence[Splits], names: Sequence[str]) -> Splits:
    return Splits(
        train=tuple(row for part in parts for row in part.train),
        valid=tuple(row for part in parts for row in part.valid),
        test=tuple(row for part in parts for row in part.test),
        rule="; ".join(f"{name}: {part.rule}" for name, part in zip(names, parts, strict=True)),
        shape=", ".join(sorted({part.shape for part in parts})),
        extras=tuple(sorted({extra for part in parts for extra in part.extras})),
        files=tuple(file for part in parts for file in part.files),
    )


def _same_rows(loaded: Mapping[str, Splits]) -> list[GraftError]:
    """Sources that are one under two names: they would be learned twice, and each would be tested on the other."""
    rows = {path: {folded(row.parts) for row in (*splits.train, *splits.valid)} for path, splits in loaded.items()}
    return [
        DataError(f"{one} and {two} hold the same rows; give one of them, with a weight if it is to count for more")
        for one, two in combinations(loaded, 2)
        if rows[one] == rows[two]
    ]


def _unmeasured(loaded: Mapping[str, Splits]) -> list[GraftError]:
    bare = [path for path, splits in loaded.items() if not splits.valid]
    if not bare or len(bare) == len(loaded):  # without any, the last step is kept, as in a run of one task
        return []
    fix = "put them beside its training rows as valid.jsonl, or hold some out with --held-out"
    return [DataError(f"no validation rows for {', '.join(bare)}, which the other tasks have; {fix}")]


def round_robin(examples: Sequence[Example]) -> list[Example]:
    """The first of every task, then the second of every task, and so on: a beginning that is of all tasks."""
    seen: Counter[str] = Counter()
    places = []
    for example in examples:
        places.append(seen[example.row.task])
        seen[example.row.task] += 1
    return [example for _, example in sorted(zip(places, examples, strict=True), key=lambda pair: pair[0])]


def shares(
    rows: Mapping[str, int], weights: Mapping[str, float | None], cap: int | None, temperature: float
) -> dict[str, float]:
    """What part of all drawn rows each task has.

    min(e, K)^(1/T), made to sum to one: T 1 is in proportion to the rows, a high T the same for all. Where weights were
    given they are the proportions, 1 for a task without.

    Source: Raffel et al. 2020, arXiv 1910.10683, section 3.5.2.
    """
    if any(weight is not None for weight in weights.values()):
        rates = {task: weights[task] or 1.0 for task in rows}
    else:
        rates = {task: min(e, cap or e) ** (1 / temperature) for task, e in rows.items()}
    return {task: rate / sum(rates.values()) for task, rate in rates.items()}


def quotas(given: Mapping[str, float], rows: int) -> dict[str, int]:
    """How many of `rows` each share comes to, the largest remainders rounded up, so that they sum to `rows`."""
    whole = {task: int(share * rows) for task, share in given.items()}
    by_remainder = sorted(given, key=lambda task: whole[task] - given[task] * rows)
    for task in by_remainder[: rows - sum(whole.values())]:
        whole[task] += 1
    return whole


@dataclass(frozen=True)
class MixedOrder(Order):
    """Steps that hold rows of all tasks.

    An epoch draws as many rows as there are, of each task its quota, in a seeded order. A task's rows are read in an
    order of their own; when it has no more, it starts anew with another. How far each task has come follows from the
    seed and the step alone. `tasks` are the row numbers of each task, `quotas` its rows an epoch.
    """

    tasks: Mapping[str, Sequence[int]]
    quotas: Mapping[str, int]

    def drawn(self, step: int) -> dict[str, int]:
        """Rows of each task that the steps before `step` have drawn."""
        epoch, index = divmod(step, self.steps_per_epoch)
        counts = torch.bincount(self._turns(epoch)[: index * self.batch], minlength=len(self.quotas)).tolist()
        return {task: epoch * quota + n for (task, quota), n in zip(self.quotas.items(), counts, strict=True)}

    def batch_rows(self, step: int) -> list[int]:
        """Row numbers of one step."""
        epoch, index = divmod(step, self.steps_per_epoch)
        at = {task: count(place) for task, place in self.drawn(step).items()}
        names = list(self.quotas)
        turns = self._turns(epoch)[index * self.batch : (index + 1) * self.batch].tolist()
        return [self._row(names[turn], next(at[names[turn]])) for turn in turns]

    def tokens(self, sizes: NDArray[np.int64]) -> int:
        """Tokens of the whole run, from those of every row."""
        means = {task: float(sizes[list(rows)].mean()) for task, rows in self.tasks.items()}
        epoch = sum(quota * means[task] for task, quota in self.quotas.items())
        return round(epoch * self.steps / self.steps_per_epoch)

    def lines(self) -> list[str]:
        """What the run draws of each task, in words."""
        total, drawn = sum(self.quotas.values()), self.drawn(self.steps)
        return [
            f"task {task}: {self.quotas[task] / total:.1%} of the drawn rows; {drawn[task]} drawn of {len(rows)}, "
            f"{drawn[task] / len(rows):.1f} passes"
            for task, rows in self.tasks.items()
        ]

    def dry(self) -> list[str]:
        """A sentence for each task that is read more often than the run has epochs: its rows run out before."""
        drawn, passes = self.drawn(self.steps), max(1, round(self.steps / self.steps_per_epoch))
        return [
            f"{task} runs dry: its {len(rows)} rows are drawn {drawn[task]} times, in a new order after each pass"
            for task, rows in self.tasks.items()
            if drawn[task] > passes * len(rows)
        ]

    def _turns(self, epoch: int) -> Tensor:
        return _turns(tuple(self.quotas.values()), _seed(self.seed, "turns", epoch))

    def _row(self, task: str, place: int) -> int:
        passes, index = divmod(place, len(self.tasks[task]))
        order = _permutation(len(self.tasks[task]), _seed(self.seed, task, passes))
        return self.tasks[task][int(order[index])]


def order_for(
    tasks: Mapping[str, Sequence[int]], given: Mapping[str, float], batch: int, epochs: float, seed: int
) -> Order:
    """The order of a run: over all rows alike, or by the shares that the tasks were given.

    Raises: ConfigError for a task whose share comes to no row an epoch.
    """
    rows = sum(map(len, tasks.values()))
    if not given:
        return Order(rows, batch, epochs, seed)
    each = quotas(given, rows)
    if never := [task for task, quota in each.items() if quota == 0]:
        raise ConfigError(
            f"of {rows} rows an epoch the share of {', '.join(never)} comes to none; give more weight, or leave it out"
        )
    return MixedOrder(rows, batch, epochs, seed, tasks, each)


def _seed(seed: int, task: str, number: int) -> int:
    return int(sha256_text(str(seed), task, str(number))[:15], 16)


@lru_cache(maxsize=2)
def _turns(each: tuple[int, ...], seed: int) -> Tensor:
    turns = torch.repeat_interleave(torch.arange(len(each)), torch.tensor(each))
    return turns[torch.randperm(len(turns), generator=torch.Generator().manual_seed(seed))]


@lru_cache(maxsize=64)  # one pass of each task
def _permutation(rows: int, seed: int) -> Tensor:
    return torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
