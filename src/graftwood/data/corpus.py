"""A prepared corpus: checksummed shards of token ids on disk, and the windows that training reads from them.

A corpus folder holds `corpus.json`, the tokenizer that made the ids, and `shards/<number>/` with `shard.json` and a
folder for each split it has:

    tokens.npy  ids end to end, uint16 or uint32
    ends.npy    [documents] where each document ends, in tokens
    places.npy  [documents, 2] the number of its file in `corpus.json`, and its line there

Letters: N tokens of a split, T tokens of a window.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from graftwood.data.batch import Packed
from graftwood.errors import DataError
from graftwood.files import sha256_file, sha256_text

CORPUS, SHARD, TOKENIZER, SHARDS = "corpus.json", "shard.json", "tokenizer", "shards"
ARRAYS = ("tokens.npy", "ends.npy", "places.npy")
TRAIN, VALID = "train", "valid"

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Corpus:
    """What `corpus.json` says. Counts are by split; `files` are named by the shards' places.

    `removed` counts documents that repeat others, `skipped` what was no text, `unknown` tokens the tokenizer lacks.
    """

    folder: Path
    fingerprint: str
    vocab_size: int
    tokens: dict[str, int]
    documents: dict[str, int]
    bytes: dict[str, int]
    removed: dict[str, int]
    skipped: int
    unknown: int
    rule: str
    files: tuple[str, ...]
    pieces: tuple[str, ...]

    def stream(self, split: str) -> Stream:
        """All tokens of a split."""
        paths = (self.folder / SHARDS / piece / split for piece in self.pieces)
        return Stream([path for path in paths if path.is_dir()], self.files)


def is_corpus(folder: Path) -> bool:
    """Whether a folder holds what `graft prepare` writes."""
    return (folder / CORPUS).is_file() and (folder / SHARDS).is_dir()


def open_corpus(folder: Path) -> Corpus:
    """Raises: DataError when the folder holds no finished corpus."""
    try:
        told: dict[str, Any] = json.loads((folder / CORPUS).read_text(encoding="utf-8"))
        told |= {key: tuple(told[key]) for key in ("files", "pieces")}
        return Corpus(folder=folder, **told)
    except FileNotFoundError:
        begun = (folder / SHARDS).is_dir()
        why = "its preparation has not finished; give the same `graft prepare` again" if begun else "there is no corpus"
        raise DataError(f"{folder}: {why}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder / CORPUS} is damaged ({error}); prepare the corpus again") from None


def verify(corpus: Corpus, advance: Callable[[int], None] = lambda done: None) -> None:
    """Compare every shard with its checksums. `advance` is told the bytes read.

    Raises: DataError naming every file that is missing, cut short or damaged.
    """
    problems = []
    for piece in corpus.pieces:
        shard = corpus.folder / SHARDS / piece
        sums = _checksums(shard)
        if sums is None:
            problems.append(f"{shard} is missing or damaged")
            continue
        for path, wanted in sums.items():
            if not path.exists():
                problems.append(f"{path} is missing")
                continue
            if sha256_file(path) != wanted:
                problems.append(f"{path} is damaged or cut short")
            advance(path.stat().st_size)
    if problems:
        more = [f"... and {len(problems) - 20} more"] if len(problems) > 20 else []
        raise DataError(
            f"{corpus.folder} is not what was prepared; delete the shards named here and give the same `graft prepare` "
            "again",
            [*problems[:20], *more],
        )


def _checksums(shard: Path) -> dict[Path, str] | None:
    """What `shard.json` says of its files, of which it may have none; None where it cannot be read."""
    try:
        told = json.loads((shard / SHARD).read_text(encoding="utf-8"))
        return {
            shard / split / n: told[split]["sha256"][n] for split in (TRAIN, VALID) if split in told for n in ARRAYS
        }
    except (OSError, ValueError, KeyError, TypeError):
        return None


class Stream:
    """All tokens of a split as one sequence, memory-mapped, with the documents' ends."""

    def __init__(self, shards: Sequence[Path], files: Sequence[str]) -> None:
        self._files, self._shards = files, shards
        self._tokens = [_mapped(shard / ARRAYS[0]) for shard in shards]
        self._starts = np.cumsum([0, *(len(tokens) for tokens in self._tokens)])
        ends = [np.load(shard / ARRAYS[1]) + start for shard, start in zip(shards, self._starts, strict=False)]
        self.ends: Ints = np.concatenate(ends) if ends else np.empty(0, dtype=np.int64)
        self._counts = [len(part) for part in ends]

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, span: slice) -> Ints:
        """Ids of a span, across shards where it must be."""
        first = int(np.searchsorted(self._starts, span.start, side="right")) - 1
        parts = []
        for number in range(first, len(self._tokens)):
            begin, end = span.start - self._starts[number], span.stop - self._starts[number]
            if end <= 0:
                break
            parts.append(self._tokens[number][max(0, begin) : end].astype(np.int64))
        return np.concatenate(parts)

    @property
    def fingerprint(self) -> str:
        """Of its tokens and the documents' ends, by the checksums that the shards keep of them."""
        sums: list[str] = []
        for shard in self._shards:
            told = _checksums(shard.parent) or {}
            sums += [told.get(shard / name) or sha256_file(shard / name) for name in ARRAYS[:2]]
        return sha256_text(*sums)

    def beginning_with(self, token: int) -> int:
        """How many documents begin with this token."""
        begins, found = np.concatenate(([0], self.ends[:-1])), 0
        for tokens, start in zip(self._tokens, self._starts, strict=False):
            own = begins[(begins >= start) & (begins < start + len(tokens))] - start
            found += int((tokens[own] == token).sum())
        return found

    def place(self, token: int) -> str:
        """`file:line` of the document a token belongs to."""
        number = int(np.searchsorted(self.ends, token, side="right"))
        for shard, count in zip(self._shards, self._counts, strict=True):
            if number < count:
                file, line = np.load(shard / ARRAYS[2], mmap_mode="r")[number].tolist()
                return f"{self._files[file]}:{line}"
            number -= count
        raise AssertionError("the token lies in the stream")


def _mapped(path: Path) -> NDArray[Any]:
    """An array of a file, memory-mapped. numpy's own map keeps its file open, of which a process may have few."""
    array = np.load(path, mmap_mode="r")
    mapped = torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8).numpy()
    return mapped[array.offset :].view(array.dtype).reshape(array.shape)


class Windows:
    """Rows of T tokens and the token after each, beginning every `stride` tokens; documents do not see each other.

    With `stride` T every token is predicted once; a smaller one gives the same text at other offsets. Only the last row
    may be shorter. `limit` is for the first tokens alone.
    """

    def __init__(self, stream: Stream, size: int, stride: int, limit: int | None = None) -> None:
        self._stream, self._size, self._stride = stream, size, stride
        length = min(limit or len(stream), len(stream))
        self._count = 1 + max(0, -(-(length - 1 - size) // stride))
        self.sizes: Ints = np.full(self._count, size, dtype=np.int64)
        self.sizes[-1] = min(size, length - 1 - (self._count - 1) * stride)
        self.tasks = {"": range(self._count)}

    def __len__(self) -> int:
        return self._count

    @property
    def fingerprint(self) -> str:
        """Of the tokens and of where the rows lie in them."""
        return sha256_text(self._stream.fingerprint, str(self._size), str(self._stride), str(self._count))

    def packs(self, rows: Sequence[int], budget: int) -> list[Packed]:
        """These rows in packs of at most `budget` tokens, at least one row each."""
        each = max(1, budget // self._size)
        return [self._pack(rows[start : start + each]) for start in range(0, len(rows), each)]

    def place(self, row: int) -> str:
        """`file:line` of the document the row begins in, and the tokens it has."""
        start = row * self._stride
        return f"{self._stream.place(start)} (tokens {start} to {start + int(self.sizes[row])})"

    def _pack(self, rows: Sequence[int]) -> Packed:
        ids, targets, lengths, counts = [], [], [], []
        starts, sizes = np.asarray(rows) * self._stride, self.sizes[rows]
        spans = np.searchsorted(self._stream.ends, (starts, starts + sizes), side="right")
        for start, size, first, last in zip(*(each.tolist() for each in (starts, sizes, *spans)), strict=True):
            window = self._stream[start : start + size + 1]
            breaks = self._stream.ends[first:last] - start  # where documents begin within the row, and one past it
            ids.append(window[:-1])
            targets.append(window[1:])
            bounds = (0, *breaks[breaks < size].tolist(), size)
            lengths += [end - begin for begin, end in pairwise(bounds)]
            counts.append(_counting(breaks, size))
        counted = np.concatenate(counts)
        predict = np.flatnonzero(counted)
        owner = np.repeat(np.arange(len(rows)), [len(part) for part in ids])
        return Packed(
            torch.from_numpy(np.concatenate(ids)).unsqueeze(0),
            tuple(lengths),
            torch.from_numpy(predict),
            torch.from_numpy(np.concatenate(targets)[predict]),
            torch.from_numpy(owner[predict]),
            tuple(rows),
        )


def _counting(breaks: Ints, size: int) -> NDArray[np.bool_]:
    """Which of a row's tokens predict the next: all but the last of each document."""
    counts = np.ones(size, dtype=bool)
    counts[breaks - 1] = False
    return counts
