"""What is known of a base from earlier runs: how much was kept at which drift."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

from graftwood.files import atomic_write, cache_home, storage

SHELF = "kept-against-drift"
_MOST = 500  # points kept of a base, the newest


@dataclass(frozen=True)
class Relation:
    """Certified points of one base: drift in nats a token, lower bound of the kept share."""

    fingerprint: str
    points: tuple[tuple[float, float], ...] = ()

    def drift_limit(self, kept: float) -> float | None:
        """The drift up to which a budget is likely to hold; None while nothing is known.

        Between the largest drift that held with none that failed below it, and the smallest that failed.
        """
        failed = min((drift for drift, low in self.points if low < kept), default=None)
        held = max(
            (drift for drift, low in self.points if low >= kept and (failed is None or drift < failed)), default=0
        )
        if failed is None:
            return None
        return math.sqrt(held * failed) if held else failed / 4


def read_relation(fingerprint: str) -> Relation:
    """What earlier runs left about this base."""
    path = cache_home() / SHELF / f"{fingerprint[:16]}.json"
    if not path.exists():
        return Relation(fingerprint)
    return Relation(fingerprint, tuple((drift, low) for drift, low in json.loads(path.read_text(encoding="utf-8"))))


def learn(fingerprint: str, points: tuple[tuple[float, float], ...]) -> None:
    """Add certified points; those that are known stay once."""
    known = read_relation(fingerprint).points
    every = tuple(dict.fromkeys((*known, *points)))[-_MOST:]
    path = cache_home() / SHELF / f"{fingerprint[:16]}.json"
    with storage(f"write {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, json.dumps(every))
