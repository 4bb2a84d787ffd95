"""What a finished arm leaves behind: how its model was made, and every item of every instrument, compressed."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import Field

from graftwood.evals.asking import Scores
from graftwood.evals.card import Record
from graftwood.evals.task import Item, Task
from graftwood.files import atomic_write


class Reading(Record):
    """One instrument's items in order: answers that were judged, or numbers that were measured.

    `values` are 1 and 0 or shares for answers, summed nats for losses, nats a token for drift; `weights` are the answer
    tokens of a loss and 1 elsewhere; `soft` is the probability of the right answer where there is one. `units` says
    what is drawn together.
    """

    name: str
    kind: Literal["choice", "word", "text", "program", "number"]
    chance: float
    ids: tuple[str, ...]
    units: tuple[str, ...]
    values: tuple[float, ...]
    weights: tuple[int, ...]
    soft: tuple[float, ...] = ()
    said: tuple[str, ...] = ()

    @classmethod
    def of(cls, scores: Scores) -> Reading:
        """What a model answered to a task."""
        task = scores.task
        assert task.kind != "code", "no instrument runs programs"
        return cls(
            name=task.name,
            kind=task.kind,
            chance=task.chance,
            ids=tuple(item.id for item in task.items()),
            units=tuple(task.units()),
            values=scores.right,
            weights=(1,) * len(scores.right),
            soft=scores.soft,
            said=scores.said,
        )

    @classmethod
    def numbers(cls, name: str, ids: Iterable[str], values: Iterable[float]) -> Reading:
        """Measured numbers, independent of each other."""
        named, measured = tuple(ids), tuple(values)
        assert len(named) == len(measured)
        return cls(
            name=name, kind="number", chance=0.0, ids=named, units=named, values=measured, weights=(1,) * len(named)
        )

    def scores(self) -> Scores:
        """The answers as the judge's own statistics take them."""
        assert self.kind != "number", "numbers are no answers"
        items = tuple(Item(name, "", cluster=unit) for name, unit in zip(self.ids, self.units, strict=True))
        task = Task(self.name, self.name, self.kind, 1, self.chance, "", "", lambda: items)
        return Scores(task, self.values, self.soft, self.said)


class Training(Record):
    """How an arm's model was made: commands, tokens and seconds of all that was tried, and of the rates the one taken.

    What follows `valid_losses` belongs to arms with a budget: whether anything was shipped, where on its way, what was
    certified there (value and lower bound), and the seconds of the choice beside those of a plain run.
    """

    commands: tuple[str, ...] = ()
    tokens: int = 0
    seconds: float = 0.0
    rate: float | None = None
    valid_losses: dict[str, float] = Field(default_factory=dict)
    budget: float | None = None
    shipped: bool = True
    dial: float | None = None
    certified: tuple[float, float] | None = None
    choice_seconds: float | None = None
    plain_seconds: float | None = None
    versions: dict[str, str] = Field(default_factory=dict)


class ArmRecord(Record):
    """One arm on one task with one seed."""

    version: Literal[1] = 1
    task: str
    arm: str
    seed: int
    base: str
    created: str
    machine: dict[str, str | int]
    training: Training
    score_seconds: float
    readings: tuple[Reading, ...]

    def reading(self, name: str) -> Reading:
        """The items of one instrument."""
        return next(reading for reading in self.readings if reading.name == name)

    @property
    def file(self) -> str:
        """What its file is called."""
        return file_name(self.task, self.arm, self.seed)


def file_name(task: str, arm: str, seed: int) -> str:
    """What the file of an arm is called."""
    return f"{task}-{arm}-{seed}.json.gz"


def save(record: ArmRecord, folder: Path) -> None:
    """Write a record; equal records are equal files."""
    text = json.dumps(record.model_dump(), ensure_ascii=False, allow_nan=False)
    atomic_write(folder / record.file, gzip.compress(text.encode(), mtime=0))


def read(path: Path) -> ArmRecord:
    """A record as `save` wrote it."""
    return ArmRecord.model_validate_json(gzip.decompress(path.read_bytes()))


def read_all(folder: Path) -> list[ArmRecord]:
    """Every record of a folder, by name."""
    return [read(path) for path in sorted(folder.glob("*.json.gz"))]
