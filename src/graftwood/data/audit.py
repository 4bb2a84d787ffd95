"""What repeats in the data: rows twice in training, held-out rows that training has already shown."""

from __future__ import annotations

import re
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
from numpy.typing import NDArray

from graftwood.data.rows import Row
from graftwood.data.sources import Splits

Pair = tuple[Row, Row]
Ints = NDArray[np.int64]

# Scripts that put no space between words: every character is a word (Thai to Khmer, kana, Han).
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff"
WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+|[^\w\s]")
BETWEEN_BLANKS = re.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+")  # words with the marks beside them
_WORD_BITS = 21  # three words fill one int64; a vocabulary above two million wraps
_COMMON = 50


@dataclass(frozen=True)
class Audit:
    """What repeats, counted in rows; in every pair the first row is the one that repeats the second.

    `leaks` are (held-out row, training row); `examples` are pairs within training, exact ones first.
    """

    train: int
    held_out: int
    exact_duplicates: int
    near_duplicates: int
    leaks: tuple[Pair, ...]
    shared_prompts: int
    examples: tuple[Pair, ...]

    def findings(self) -> list[str]:
        """Sentences for the user about rows that should not be as they are, one a finding."""
        said = []
        exact, near = self.exact_duplicates, self.near_duplicates
        if exact or near:
            too = f", {near} nearly" if near else ""
            how = f"repeat an earlier one exactly{too}" if exact else "nearly repeat an earlier one"
            said.append(f"{exact or near} of {self.train} training rows {how}{_such_as(self.examples)}")
        if self.leaks:
            said.append(
                f"training holds {len(self.leaks)} of {self.held_out} held-out rows, exactly or nearly"
                f"{_such_as(self.leaks)}; scores on them measure memory, not skill"
            )
        return said

    def lines(self) -> list[str]:
        """Sentences about what was looked for and is not there, or does no harm."""
        said = []
        if not self.exact_duplicates and not self.near_duplicates:
            said.append(f"no duplicates among {self.train} training rows")
        if self.held_out and not self.leaks:
            said.append(f"training holds none of {self.held_out} held-out rows")
        if self.shared_prompts:
            said.append(f"training holds the prompt of {self.shared_prompts} more, with another answer")
        return said


def audit(splits: Splits) -> Audit:
    """Count duplicates within training and held-out rows (validation and test) that training holds.

    Two rows are exact duplicates when they are equal but for case and white space, prompt and answer together. They are
    near duplicates when at least 4/5 of the three-word runs of either are in both (Jaccard index), and again so among
    the runs that are not common to many rows: a shared instruction makes no duplicates. One changed word
    among 27 of a row's own is near; among fewer it makes another row. No pair is missed.
    """
    first: dict[tuple[str, ...], Row] = {}
    exact = [(row, first[key]) for row in splits.train if first.setdefault(key := folded(row.parts), row) is not row]
    distinct, held_out = list(first.values()), [*splits.valid, *splits.test]
    leaks = {index: first[key] for index, row in enumerate(held_out) if (key := folded(row.parts)) in first}
    near: dict[int, Row] = {}
    for one, two in _near_pairs([*distinct, *held_out], len(distinct)):
        found, index = (near, two) if two < len(distinct) else (leaks, two - len(distinct))
        found.setdefault(index, distinct[one])
    prompts = {folded(row.asked) for row in distinct if row.asked}
    shared = sum(index not in leaks and folded(row.asked) in prompts for index, row in enumerate(held_out))
    return Audit(
        train=len(splits.train),
        held_out=len(held_out),
        exact_duplicates=len(exact),
        near_duplicates=len(near),
        leaks=tuple((held_out[index], leaks[index]) for index in sorted(leaks)),
        shared_prompts=shared,
        examples=(*exact[:3], *((distinct[index], near[index]) for index in sorted(near)[:3])),
    )


def folded(parts: Sequence[str]) -> tuple[str, ...]:
    """Texts without what does not tell them apart: case and white space."""
    return tuple(" ".join(part.casefold().split()) for part in parts)


def _such_as(pairs: Sequence[Pair]) -> str:
    told = [f"{row.file}:{row.line} repeats {earlier.file}:{earlier.line}" for row, earlier in pairs[:3]]
    return f" (such as {', '.join(told)})"


def _near_pairs(rows: Sequence[Row], train: int) -> list[tuple[int, int]]:
    """Indices (earlier, later) of near duplicates whose earlier row is among the first `train`, in order.

    Exact: two rows that share 4/5 of their runs share one of the rarest fifth of each, so only rows that meet there are
    compared. Source: Chaudhuri, Ganti and Kaushik 2006, "A Primitive Operator for Similarity Joins", prefix filter.
    """
    owner, run = _runs(rows)
    if not run.size:
        return []
    _, run, counts = np.unique(run, return_inverse=True, return_counts=True)
    # Common to a tenth of a small set or to 50 rows of a large one: part of a template. The bound also keeps the
    # number of comparisons proportional to the number of rows.
    common = counts > min(_COMMON, max(5, len(rows) // 10))
    pairs = _meetings(owner[~common[run]], run[~common[run]], counts, len(rows))
    starts = np.searchsorted(owner, np.arange(len(rows) + 1))
    found = []
    for earlier, later in pairs[pairs[:, 0] < train].tolist():
        one, two = run[starts[earlier] : starts[earlier + 1]], run[starts[later] : starts[later + 1]]
        if _alike(one, two) and _alike(one[~common[one]], two[~common[two]]):
            found.append((earlier, later))
    return found


def _runs(rows: Sequence[Row]) -> tuple[Ints, Ints]:
    """The distinct three-word runs of every row, the row's edges counting as words: (row, run), sorted."""
    words: dict[str, int] = {}
    flat, lengths = array("q"), []
    for row in rows:
        found = WORD.findall("\n".join(row.parts).casefold())
        flat.extend((0, *(words.setdefault(word, len(words) + 1) for word in found), 0))
        lengths.append(len(found) + 2)
    ids = np.frombuffer(flat, dtype=np.int64) % (1 << _WORD_BITS)
    owner = np.repeat(np.arange(len(rows)), lengths)
    run = ids[:-2] << 2 * _WORD_BITS | ids[1:-1] << _WORD_BITS | ids[2:]
    inside = owner[:-2] == owner[2:]
    owner, run = owner[:-2][inside], run[inside]
    order = np.lexsort((run, owner))
    owner, run = owner[order], run[order]
    fresh = np.ones(len(run), dtype=bool)
    fresh[1:] = (owner[1:] != owner[:-1]) | (run[1:] != run[:-1])
    return owner[fresh], run[fresh]


def _meetings(owner: Ints, run: Ints, counts: Ints, rows: int) -> Ints:
    """Pairs of rows, sorted, that share one of the rarest fifth of their runs and differ little enough in size."""
    order = np.lexsort((run, counts[run], owner))
    owner, run = owner[order], run[order]
    sizes = np.bincount(owner, minlength=rows)
    rank = np.arange(len(owner)) - (np.cumsum(sizes) - sizes)[owner]
    rarest = rank <= sizes[owner] // 5
    owner, run = owner[rarest], run[rarest]
    order = np.lexsort((owner, run))
    owner, run = owner[order], run[order]
    met = [np.empty(0, dtype=np.int64)]
    for step in count(1):
        same = run[:-step] == run[step:]
        if not same.any():
            break
        met.append(np.unique(owner[:-step][same] * rows + owner[step:][same]))
    pairs = np.stack(np.divmod(np.unique(np.concatenate(met)), rows), axis=1)
    few, many = np.sort(sizes[pairs], axis=1).T
    return pairs[5 * few >= 4 * many]


def _alike(one: Ints, two: Ints) -> bool:
    """Whether the Jaccard index of two sets is at least 4/5."""
    shared = np.intersect1d(one, two, assume_unique=True).size
    return bool(5 * shared >= 4 * (one.size + two.size - shared))
