"""Intervals: percentile bootstrap over the units that were really independent, the same draws for both sides.

Source: Efron and Tibshirani 1993, ch. 13; clusters as in Miller 2024, arXiv 2411.00640.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from graftwood.evals.card import Estimate

Array = NDArray[np.float64]
DRAWS = 2000
_SEED = 20240914  # fixed: an interval is a property of the data, not of the moment it was computed


def draws(units: int, stream: int = 0) -> NDArray[np.int64]:
    """`DRAWS` resamples of the numbers below `units`, [DRAWS, units]; those of different streams are independent."""
    return np.random.default_rng((_SEED, stream)).integers(0, units, size=(DRAWS, units))


@dataclass(frozen=True)
class Pooled:
    """Sums and counts by unit, for a mean over all items where units (rows, passages), not items, are independent."""

    totals: Array
    counts: Array

    @classmethod
    def of(cls, values: Sequence[float] | Array, units: Sequence[object] | None = None) -> Pooled:
        """Items pooled by equal `units`; without them each item is a unit of its own."""
        data = np.asarray(values, dtype=np.float64)
        if units is None:
            return cls(data, np.ones(data.shape, dtype=np.float64))
        places = {unit: place for place, unit in enumerate(dict.fromkeys(units))}
        owner = np.array([places[unit] for unit in units], dtype=np.int64)
        totals, counts = (np.bincount(owner, weights).astype(np.float64) for weights in (data, None))
        return cls(totals, counts)

    @classmethod
    def sums(cls, pairs: Sequence[tuple[float, int]]) -> Pooled:
        """Units that come as (sum, count)."""
        totals, counts = np.array(pairs, dtype=np.float64).reshape(-1, 2).T
        return cls(totals, counts)

    @property
    def value(self) -> float:
        """The mean over all items."""
        return float(self.totals.sum() / self.counts.sum())

    def minus(self, other: Pooled) -> Pooled:
        """The difference on the same units."""
        return Pooled(self.totals - other.totals, self.counts)

    def resampled(self, stream: int = 0) -> Array:
        """The mean of each draw of units."""
        index = draws(self.totals.size, stream)
        means: Array = self.totals[index].sum(axis=1) / self.counts[index].sum(axis=1)
        return means

    def mean(self) -> Estimate:
        """The mean with its interval; fewer than two units give no interval. `n` counts units."""
        units = int(self.totals.size)
        if units == 0:
            return Estimate(value=None, n=0, note="there are no items")
        if units == 1:
            return Estimate(value=self.value, n=1, note="one independent item gives no interval")
        return _estimate(self.value, self.resampled(), units)


def mean(values: Sequence[float] | Array, units: Sequence[object] | None = None) -> Estimate:
    """The mean of items with its interval, whole groups of equal `units` drawn together. `n` counts items."""
    return Pooled.of(values, units).mean().model_copy(update={"n": len(values)})


def mean_of_means(groups: Sequence[Pooled]) -> Estimate:
    """The mean of the means of independent groups, every group counting the same. `n` counts units."""
    units = sum(int(group.totals.size) for group in groups)
    if not groups or any(group.totals.size < 2 for group in groups):
        return Estimate(value=None, n=units, note="fewer than two rows in a group")
    drawn = np.mean([group.resampled(stream) for stream, group in enumerate(groups)], axis=0)
    return _estimate(float(np.mean([group.value for group in groups])), drawn, units)


def ratio_of_sums(
    tuned: Sequence[Array], base: Sequence[Array], floors: Sequence[float], units: Sequence[Sequence[object]]
) -> Estimate:
    """Sum over groups of (mean tuned - floor) over the sum of (mean base - floor), units resampled within groups."""
    groups = [
        (Pooled.of(t, unit), Pooled.of(b, unit), floor)
        for t, b, floor, unit in zip(tuned, base, floors, units, strict=True)
    ]
    total = sum(b.value - floor for _, b, floor in groups)
    if not groups or total <= 0:
        return Estimate(value=None, n=0, note="the base has no skill above chance")
    value = sum(t.value - floor for t, _, floor in groups) / total
    above, below = np.zeros(DRAWS), np.zeros(DRAWS)
    for stream, (t, b, floor) in enumerate(groups):
        above += t.resampled(stream) - floor
        below += b.resampled(stream) - floor
    return _estimate(value, above[below > 0] / below[below > 0], sum(len(t) for t in tuned))


def mcnemar(lost: int, won: int) -> float:
    """Two-sided chance of flips as uneven as these where both ways are equally likely. Source: McNemar 1947, exact."""
    flips, fewer = lost + won, min(lost, won)
    return min(1.0, 2 * sum(math.comb(flips, k) for k in range(fewer + 1)) / 2**flips)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values of a family, corrected so that one below 0.05 is a false alarm in 5% of families. Source: Holm 1979."""
    corrected, highest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = highest
    return corrected


def area_under_curve(positive: Array, negative: Array) -> float:
    """Chance that a random positive scores above a random negative, ties counting half (Mann-Whitney)."""
    both = np.concatenate([positive, negative])
    _, inverse, counts = np.unique(both, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    positives, negatives = positive.size, negative.size
    return float((ranks[:positives].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def two_sample(statistic: Callable[[Array, Array], float], first: Array, second: Array, too_few: str) -> Estimate:
    """A statistic of two independent samples, each resampled on its own."""
    if min(first.size, second.size) < 2:
        return Estimate(value=None, n=int(first.size + second.size), note=too_few)
    pairs = zip(draws(first.size), draws(second.size, stream=1), strict=True)
    values = np.array([statistic(first[i], second[j]) for i, j in pairs])
    return _estimate(statistic(first, second), values, int(first.size + second.size))


def _estimate(value: float, values: Array, n: int) -> Estimate:
    low, high = np.quantile(values, (0.025, 0.975))
    return Estimate(value=value, low=float(low), high=float(high), n=n)
