"""What is known of a base from earlier runs that asked it the same: how much was kept at which drift."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from graftwood.files import atomic_write, cache_home, storage

SHELF = "kept-against-drift"
_MOST = 500  # points kept of a base, the newest

Point = tuple[float, float, float]


@dataclass(frozen=True)
class Relation:
    """Certified points of one base: drift in nats a token, the kept share's lower bound and its value."""

    points: tuple[Point, ...] = ()

    def drift_limit(self, kept: float) -> float | None:
        """The drift up to which a budget is likely to hold; None while nothing is known.

        Between the largest drift that held with none that failed below it, and the smallest that failed. A place where
        the bound alone is below the budget failed for want of items, and says nothing of the drift.
        """
        failed = min((drift for drift, _, value in self.points if value < kept), default=None)
        held = max(
            (drift for drift, low, _ in self.points if low >= kept and (failed is None or drift < failed)), default=0
        )
        if failed is None:
            return None
        return math.sqrt(held * failed) if held else failed / 4


def read_relation(fingerprint: str, asked: str) -> Relation:
    """What earlier runs left about this base; `asked` is the digest of what decided."""
    path = _path(fingerprint, asked)
    if not path.exists():
        return Relation()
    return Relation(tuple((drift, low, value) for drift, low, value in json.loads(path.read_text(encoding="utf-8"))))


def learn(fingerprint: str, asked: str, points: tuple[Point, ...]) -> None:
    """Add certified points; those that are known stay once."""
    known = read_relation(fingerprint, asked).points
    every = tuple(dict.fromkeys((*known, *points)))[-_MOST:]
    path = _path(fingerprint, asked)
    with storage(f"write {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, json.dumps(every))


def _path(fingerprint: str, asked: str) -> Path:
    return cache_home() / SHELF / f"{fingerprint[:16]}-{asked[:16]}.json"
