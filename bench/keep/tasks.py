"""What the benchmark's arms learn: three generated tasks and two public ones, as files that every side reads."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench.common import ROOT, BenchError
from bench.keep import facts, messages, sums
from bench.keep.rows import Asked, Splits

from graftwood.evals.task import Item, Task
from graftwood.files import atomic_write

DATA_SEED = 0  # of what is generated; the seeds of the arms are those of order and initial values
PUBLIC = ROOT.parent / "shared" / "tasks"


@dataclass(frozen=True)
class Target:
    """A task to be learned: how an answer is judged and how long it may be; `read` takes the folder of public rows."""

    name: str
    title: str
    metric: str
    max_tokens: int
    read: Callable[[Path], Splits]

    def asked(self, rows: Sequence[Asked]) -> Task:
        """The rows as a task of the judge."""
        items = tuple(
            Item(row.id, row.prompt, answer=row.answer, references=row.references, cluster=row.cluster) for row in rows
        )
        return Task(
            name="gain",
            title=self.title,
            kind="text",
            version=1,
            chance=0.0,
            source="bench/keep",
            licence="Apache-2.0",
            read=lambda: items,
            max_tokens=self.max_tokens,
            metric=self.metric,
        )


def public(name: str, train: int, valid: int, test: int, folder: Path) -> Splits:
    """The first rows of each public file, in the order of their SHA-256."""
    parts = []
    for part, count in (("train", train), ("valid", valid), ("test", test)):
        path = folder / f"{name}.{part}.jsonl"
        if not path.exists():
            raise BenchError(f"there is no {path}; give the folder it is in with --tasks")
        lines = {json.dumps(json.loads(line), sort_keys=True) for line in path.read_text(encoding="utf-8").splitlines()}
        chosen = sorted(lines, key=lambda line: hashlib.sha256(line.encode()).hexdigest())[:count]
        parts.append(tuple(_public_row(f"{part}-{n:03d}", line) for n, line in enumerate(chosen, 1)))
    return Splits(*parts)


def _public_row(name: str, line: str) -> Asked:
    row = json.loads(line)
    return Asked(name, name, row["prompt"], row["completion"], tuple(row.get("references", ())))


TARGETS = {
    target.name: target
    for target in (
        Target("messages", "message to JSON", "exact_match", 48, lambda folder: messages.splits(DATA_SEED)),
        Target("sums", "arithmetic in words", "exact_match", 8, lambda folder: sums.splits(DATA_SEED)),
        Target("code", "one line of Python", "rouge_l", 40, partial(public, "code", 240, 48, 478)),
        Target("facts", "invented facts", "exact_match", 8, lambda folder: facts.splits(DATA_SEED)),
        Target("summary", "package to one line", "rouge_l", 32, partial(public, "summary", 120, 40, 80)),
    )
}


def write(rows: Splits, folder: Path) -> None:
    """`train.jsonl` and `valid.jsonl` as every side reads them; the test rows stay with the scorer."""
    for part, some in (("train", rows.train), ("valid", rows.valid)):
        lines = (json.dumps({"prompt": row.prompt, "completion": row.answer}, ensure_ascii=False) for row in some)
        atomic_write(folder / f"{part}.jsonl", "".join(f"{line}\n" for line in lines))
