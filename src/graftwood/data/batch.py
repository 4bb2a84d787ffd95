"""Batches: whole documents laid end to end, no padding, in an order that is a function of seed and step.

Letters: N tokens of all documents together, M predictions that count.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from typing import Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from graftwood.data.encode import Example

_TOGETHER = 64  # rows


@dataclass(frozen=True)
class Packed:
    """Documents end to end.

    Shapes: ids [1, N]; `documents` their lengths; `predict` [M] positions whose next token counts; `targets` [M] those
    tokens; `owner` [M] the index of the example each prediction belongs to, within this pack; `rows` those examples'
    numbers where they come from; `entering` a block and the hidden states [1, N, C] on their way into it, where those
    are known.
    """

    ids: Tensor
    documents: tuple[int, ...]
    predict: Tensor
    targets: Tensor
    owner: Tensor
    rows: tuple[int, ...]
    entering: tuple[int, Tensor] | None = None

    @property
    def tokens(self) -> int:
        """N."""
        return self.ids.shape[1]

    def to(self, device: torch.device) -> Packed:
        """The same pack on another device."""
        ids, predict, targets, owner = (x.to(device) for x in (self.ids, self.predict, self.targets, self.owner))
        entering = None if self.entering is None else (self.entering[0], self.entering[1].to(device))
        return replace(self, ids=ids, predict=predict, targets=targets, owner=owner, entering=entering)

    def by_row(self, values: Tensor) -> list[Tensor]:
        """What there is of each prediction, [M, ...], taken apart by example."""
        return list(values.split(torch.bincount(self.owner, minlength=len(self.rows)).tolist()))


def pack(examples: Sequence[Example], rows: Sequence[int] | None = None) -> Packed:
    """Lay examples end to end. A document's last position predicts nothing, so no prediction crosses into the next.

    `rows` are the examples' numbers, by default as they come.
    """
    ids: list[int] = []
    predict: list[int] = []
    targets: list[int] = []
    owner: list[int] = []
    for number, example in enumerate(examples):
        start = len(ids)
        ids += example.ids
        for offset in range(1, len(example.ids)):
            if example.answer[offset]:
                predict.append(start + offset - 1)
                targets.append(example.ids[offset])
                owner.append(number)
    lengths = tuple(len(example.ids) for example in examples)
    numbers = tuple(range(len(examples)) if rows is None else rows)
    places = [torch.tensor(x, dtype=torch.long) for x in (predict, targets, owner)]
    return Packed(torch.tensor([ids]), lengths, places[0], places[1], places[2], numbers)


def split_by_tokens(examples: Sequence[Example], budget: int) -> list[list[Example]]:
    """Consecutive groups of at most `budget` tokens each; an example longer than that stands alone."""
    groups: list[list[Example]] = []
    size = 0
    for example in examples:
        length = len(example.ids)
        if not groups or size + length > budget:
            groups.append([])
            size = 0
        groups[-1].append(example)
        size += length
    return groups


@dataclass(frozen=True)
class Order:
    """Which rows make up each optimiser step.

    Every epoch is its own seeded permutation; the last step of an epoch takes what is left. Step `s` is computed from
    `seed` and `s` alone, so a resumed run needs no more than its step number.
    """

    rows: int
    batch: int
    epochs: float
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps that see every row once."""
        return -(-self.rows // self.batch)

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole run, at least one."""
        return max(1, round(self.epochs * self.steps_per_epoch))

    def batch_rows(self, step: int) -> list[int]:
        """Row numbers of one step."""
        epoch, index = divmod(step, self.steps_per_epoch)
        order = _permutation(self.rows, self.seed * 1_000_003 + epoch)
        rows: list[int] = order[index * self.batch : (index + 1) * self.batch].tolist()
        return rows

    def tokens(self, sizes: NDArray[np.int64]) -> int:
        """Tokens of the whole run, from those of every row."""
        return round(int(sizes.sum()) * self.steps / self.steps_per_epoch)

    def drawn(self, step: int) -> dict[str, int]:
        """Rows of each task that the steps before `step` have drawn; nothing where all rows are alike."""
        return {}


@dataclass(frozen=True)
class Trickle:
    """Which of some texts a step reads beside its rows: all in turn, `rate` of them on average, at some steps none."""

    texts: int
    rate: float
    seed: int

    def at(self, step: int) -> list[int]:
        """Numbers of the texts of one step."""
        order = Order(self.texts, 1, 1.0, self.seed)
        return [order.batch_rows(number)[0] for number in range(int(step * self.rate), int((step + 1) * self.rate))]


@lru_cache(maxsize=2)  # one epoch's, of the rows and of what is read beside them; a corpus has millions of rows
def _permutation(rows: int, seed: int) -> Tensor:
    return torch.randperm(rows, generator=torch.Generator().manual_seed(seed))


def packs(examples: Sequence[Example], budget: int, rows: Sequence[int] | None = None) -> Iterator[Packed]:
    """All examples in packs of about `budget` tokens; `rows` are their numbers, by default as they come."""
    numbers = iter(range(len(examples)) if rows is None else rows)
    for group in split_by_tokens(examples, budget):
        yield pack(group, list(islice(numbers, len(group))))


class Rows(Protocol):
    """What a trainer reads: numbered rows, wherever they are kept."""

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Tokens of every row."""

    @property
    def tasks(self) -> Mapping[str, Sequence[int]]:
        """Row numbers by task; of one task without a name where rows know none."""

    @property
    def fingerprint(self) -> str:
        """A digest of what is read of them: ids, answers, order."""

    def __len__(self) -> int: ...

    def packs(self, rows: Sequence[int], budget: int) -> list[Packed]:
        """These rows in packs of about `budget` tokens."""

    def place(self, row: int) -> str:
        """Where a person finds the row: `file:line`."""


def in_turn(rows: Rows, budget: int) -> Iterator[Packed]:
    """All rows by their numbers in packs of about `budget` tokens, a few of them made at a time."""
    for start in range(0, len(rows), _TOGETHER):
        yield from rows.packs(range(start, min(start + _TOGETHER, len(rows))), budget)


class Examples:
    """Encoded rows in memory."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self._hold(examples, range(len(examples)))

    def __len__(self) -> int:
        return len(self._examples)

    def packs(self, rows: Sequence[int], budget: int) -> list[Packed]:
        """These rows in packs of about `budget` tokens."""
        return list(packs([self._examples[row] for row in rows], budget, [self._numbers[row] for row in rows]))

    def place(self, row: int) -> str:
        """`file:line`."""
        return f"{self._examples[row].row.file}:{self._examples[row].row.line}"

    @property
    def fingerprint(self) -> str:
        """Of all rows, in their order."""
        digest = hashlib.sha256()
        for example in self._examples:
            digest.update(np.array([len(example.ids), *example.ids], dtype=np.int64).tobytes())
            digest.update(np.array(example.answer, dtype=np.bool_).tobytes())
        return digest.hexdigest()

    def only(self, rows: Sequence[int]) -> Self:
        """Some of the rows; in packs they have the numbers that they have here, and whatever goes by those."""
        some = copy(self)
        some._hold([self._examples[row] for row in rows], [self._numbers[row] for row in rows])
        return some

    def _hold(self, examples: Sequence[Example], numbers: Sequence[int]) -> None:
        self._examples, self._numbers = examples, numbers
        self.sizes = np.array([len(example.ids) for example in examples], dtype=np.int64)
        self.tasks: dict[str, list[int]] = {}
        for row, example in enumerate(examples):
            self.tasks.setdefault(example.row.task, []).append(row)
