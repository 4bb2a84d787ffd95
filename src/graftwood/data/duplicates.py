"""Documents that repeat others: exactly, by a digest; nearly, by MinHash, which needs 512 bytes a document.

Near means what it means for rows (`data/audit.py`): at least 4/5 of the three-word runs of either are in both. There
every pair is found; here the share is estimated from 128 smallest hashes (standard error 0.035 at 4/5), and a pair at
4/5 is met with probability 0.95, at 9/10 with 0.9999. Source: Broder 1997; banding as in Leskovec, Rajaraman and
Ullman, "Mining of Massive Datasets", section 3.4.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from graftwood.data.audit import WORD, folded

HASHES, BANDS = 128, 16
NEAR = 0.8
_CHUNK = 4096  # runs hashed at once: 4,096 x 128 numbers are 4 MB
_MIX = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9], dtype=np.uint64)
_GENERATOR = np.random.default_rng(0)
_FACTORS = _GENERATOR.integers(1, 1 << 63, HASHES, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
_TERMS = _GENERATOR.integers(0, 1 << 63, HASHES, dtype=np.uint64)

Digests = NDArray[np.uint64]  # [documents, 2]
Signatures = NDArray[np.uint32]  # [documents, HASHES]


@dataclass(frozen=True)
class Repeat:
    """Document `later` repeats `earlier`; `share` of their runs is common, 1 where they are equal."""

    later: int
    earlier: int
    share: float
    exact: bool


def digest(text: str) -> tuple[int, int]:
    """128 bits that documents have in common when they are equal but for case and white space."""
    value = hashlib.blake2b(folded((text,))[0].encode(), digest_size=16).digest()
    return int.from_bytes(value[:8], "little"), int.from_bytes(value[8:], "little")


def signature(text: str) -> NDArray[np.uint32]:
    """The smallest hashes of the text's three-word runs, its edges counting as words, [HASHES]."""
    words = [0, *(zlib.crc32(word.encode()) for word in WORD.findall(text.casefold())), 0]
    ids = np.array(words, dtype=np.uint64)
    ids = np.pad(ids, (0, max(0, 3 - len(ids))))
    runs = np.unique(ids[:-2] * _MIX[0] + ids[1:-1] * _MIX[1] + ids[2:] * _MIX[2])
    runs ^= runs >> np.uint64(29)
    smallest = np.full(HASHES, np.iinfo(np.uint32).max, dtype=np.uint32)
    for start in range(0, len(runs), _CHUNK):
        hashed = (runs[start : start + _CHUNK, None] * _FACTORS + _TERMS) >> np.uint64(32)
        np.minimum(smallest, hashed.min(axis=0).astype(np.uint32), out=smallest)
    return smallest


def find_repeats(digests: Digests, signatures: Signatures | None) -> list[Repeat]:
    """What to remove, in order: what is like an earlier document that stays. Without signatures exact repeats alone."""
    exact = _exact(digests)
    kept = np.setdiff1d(np.arange(len(digests)), [repeat.later for repeat in exact])
    near = [] if signatures is None else _near(kept, signatures)
    return sorted([*exact, *near], key=lambda repeat: repeat.later)


def _exact(digests: Digests) -> list[Repeat]:
    _, first, inverse = np.unique(digests, axis=0, return_index=True, return_inverse=True)
    earlier = first[inverse.reshape(-1)]
    later = np.flatnonzero(earlier != np.arange(len(digests)))
    return [Repeat(index, int(earlier[index]), 1.0, True) for index in later.tolist()]


def _near(kept: NDArray[np.int64], signatures: Signatures) -> list[Repeat]:
    """Of every band the neighbours with equal hashes are compared; the nearest earlier document that stays is told.

    A neighbour that goes stands for what it repeats: of a chain whose links are near and whose ends are not, both stay.
    """
    neighbours: dict[int, set[int]] = {}
    for hashes in np.split(np.arange(HASHES), BANDS):
        keys = _keys(signatures[kept][:, hashes])
        order = np.argsort(keys, kind="stable")
        same = np.flatnonzero(keys[order][1:] == keys[order][:-1])
        for earlier, later in zip(kept[order[same]].tolist(), kept[order[same + 1]].tolist(), strict=True):
            neighbours.setdefault(later, set()).add(earlier)
    found: dict[int, Repeat] = {}
    for later in sorted(neighbours):
        stays = {found[earlier].earlier if earlier in found else earlier for earlier in neighbours[later]}
        share, place = max((float(np.mean(signatures[one] == signatures[later])), -one) for one in stays)
        if share >= NEAR:
            found[later] = Repeat(later, -place, share, False)
    return list(found.values())


def _keys(part: Signatures) -> NDArray[np.uint64]:
    """One number for each row of a band."""
    key = np.zeros(len(part), dtype=np.uint64)
    for column in part.T:
        key = (key ^ column) * _MIX[0]
    return key


def removed_lines(repeats: Sequence[Repeat], places: Sequence[str]) -> list[dict[str, str | float | bool]]:
    """Each removal as a person reads it."""
    return [
        {"removed": places[r.later], "repeats": places[r.earlier], "exact": r.exact, "share": round(r.share, 3)}
        for r in repeats
    ]
