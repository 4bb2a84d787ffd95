"""What an arm gained and forgot, with draws: seeds and items are resampled, the same draws for all arms.

A paired bootstrap over two levels, seeds and clusters of items, which cross: every seed answers every item. Shares are
ratios of two effects on the same draws.

Letters: D draws, S seeds, U units.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from bench.keep.records import ArmRecord, Reading
from numpy.typing import NDArray

from graftwood.evals.card import Estimate

Array = NDArray[np.float64]
DRAWS, _SEED = 2000, 20260101


@dataclass(frozen=True)
class Effect:
    """A number, higher for more of it, and what it is in every draw, [D]."""

    value: float
    draws: Array

    def __sub__(self, other: Effect) -> Effect:
        return Effect(self.value - other.value, self.draws - other.draws)

    def estimate(self) -> Estimate:
        """The number with its 95% interval."""
        low, high = np.quantile(self.draws, (0.025, 0.975))
        return Estimate(value=self.value, low=float(low), high=float(high))

    def over(self, other: Effect) -> Estimate:
        """Its share of another effect; none where that may be nothing."""
        if float(np.quantile(other.draws, 0.025)) <= 0:
            return Estimate(value=None, note="what it is a share of may be nothing")
        return Effect(self.value / other.value, self.draws / np.maximum(other.draws, 1e-12)).estimate()


class Arms:
    """The records of one task, and each arm's effects on it."""

    def __init__(self, records: Sequence[ArmRecord]) -> None:
        self._records: dict[str, dict[int, ArmRecord]] = {}
        for record in records:
            self._records.setdefault(record.arm, {})[record.seed] = record

    @property
    def names(self) -> list[str]:
        """The arms that are there."""
        return list(self._records)

    def seeds(self, *arms: str) -> list[int]:
        """The seeds that all of these arms have; the base has every one."""
        given = [set(self._records.get(arm, {})) for arm in arms if arm != "A0"]
        return sorted(set.intersection(*given)) if given else [0]

    def records(self, arm: str) -> list[ArmRecord]:
        """An arm's records, by seed."""
        return [record for _, record in sorted(self._records.get(arm, {}).items())]

    def gain(self, arm: str, seeds: Sequence[int]) -> dict[str, Effect]:
        """What the task's metric and the answer loss became better by."""
        metric = self._mean(arm, "gain", seeds) - self._mean("A0", "gain", seeds)
        return {
            "metric": metric,
            "loss": self._mean("A0", "answer_loss", seeds) - self._mean(arm, "answer_loss", seeds),
        }

    def forgotten(self, arm: str, seeds: Sequence[int]) -> dict[str, Effect]:
        """The share of requests that is no longer followed, and the drift, both kinds of text counting the same."""
        requests = self._mean("A0", "requests", seeds) - self._mean(arm, "requests", seeds)
        drifts = [self._mean(arm, name, seeds) for name in ("drift_self", "drift_chat")]
        value, draws = (sum(parts) / 2 for parts in zip(*((d.value, d.draws) for d in drifts), strict=True))
        return {"requests": requests, "drift": Effect(value, draws)}

    def skills(self, arm: str, seeds: Sequence[int]) -> dict[str, Effect]:
        """What each skill became worse by, in the share of right answers."""
        names = [r.name for r in self.records("A0")[0].readings if r.kind in ("choice", "word")]
        return {name: self._mean("A0", name, seeds) - self._mean(arm, name, seeds) for name in names}

    def mean(self, arm: str, name: str, seeds: Sequence[int]) -> Estimate:
        """An instrument's mean."""
        return self._mean(arm, name, seeds).estimate()

    def _mean(self, arm: str, name: str, seeds: Sequence[int]) -> Effect:
        """Over seeds and items, pooled by the items' weights. The base, which has no seeds, stands for each."""
        found = self._records[arm]
        readings = [found[0 if arm == "A0" else seed].reading(name) for seed in seeds]
        totals_SU, counts_U = _sums(readings)
        seeds_DS, units_DU = _drawn(len(seeds), "seeds"), _drawn(len(counts_U), name)
        draws = ((seeds_DS @ totals_SU) * units_DU).sum(1) / len(seeds) / (units_DU @ counts_U)
        return Effect(float(totals_SU.mean(0).sum() / counts_U.sum()), draws)


def better(arms: Arms, names: Sequence[str], seeds: Sequence[int]) -> str:
    """The arm with the larger gain in the metric, and where that is the same in the loss."""

    def rank(name: str) -> tuple[float, float]:
        gained = arms.gain(name, seeds)
        return gained["metric"].value, gained["loss"].value

    return max(names, key=rank)


def _sums(readings: Sequence[Reading]) -> tuple[Array, Array]:
    """By seed and unit the summed values, [S, U], and by unit the summed weights, [U]."""
    first = readings[0]
    assert all((r.ids, r.units) == (first.ids, first.units) for r in readings), "arms were asked different items"
    places = {unit: place for place, unit in enumerate(dict.fromkeys(first.units))}
    owner = np.array([places[unit] for unit in first.units])
    totals = np.stack([np.bincount(owner, r.values) for r in readings]).astype(np.float64)
    return totals, np.bincount(owner, first.weights).astype(np.float64)


@cache
def _drawn(count: int, stream: str) -> Array:
    """How often each of so many things is in each draw, [D, count]; the same for every arm."""
    generator = np.random.default_rng((_SEED, zlib.crc32(stream.encode()), count))
    return generator.multinomial(count, np.full(count, 1 / count), size=DRAWS).astype(np.float64)
