"""Intervals: percentile bootstrap over the units that were really independent, the same draws for both sides.

Source: Efron and Tibshirani 1993, ch. 13; clusters as in Miller 2024, arXiv 2411.00640.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from graftwood.evals.card import Estimate

Array = NDArray[np.float64]
DRAWS = 2000
_SEED = 20240914  # fixed: an interval is a property of the data, not of the moment it was computed


def draws(units: Sequence[object]) -> list[NDArray[np.int64]]:
    """`DRAWS` resamples of item indices: whole clusters of equal `units` are drawn together."""
    generator = np.random.default_rng(_SEED)
    members: dict[object, list[int]] = {}
    for index, unit in enumerate(units):
        members.setdefault(unit, []).append(index)
    clusters = [np.array(indices) for indices in members.values()]
    picks = generator.integers(0, len(clusters), size=(DRAWS, len(clusters)))
    if len(clusters) == len(units):
        flat = np.concatenate(clusters)
        return list(flat[picks])
    return [np.concatenate([clusters[pick] for pick in row]) for row in picks]


def interval(statistic: Callable[[NDArray[np.int64]], float], units: Sequence[object]) -> tuple[float, float]:
    """2.5% and 97.5% quantiles of a statistic of item indices."""
    values = np.array([statistic(indices) for indices in draws(units)])
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)


def mean(values: Sequence[float] | Array, units: Sequence[object] | None = None) -> Estimate:
    """The mean with its interval; fewer than two independent units give no interval."""
    data = np.asarray(values, dtype=np.float64)
    if data.size == 0:
        return Estimate(value=None, n=0, note="there are no items")
    units = range(data.size) if units is None else units
    value = float(data.mean())
    if len(set(units)) < 2:
        return Estimate(value=value, n=int(data.size), note="one item gives no interval")
    low, high = interval(lambda index: float(data[index].mean()), units)
    return Estimate(value=value, low=low, high=high, n=int(data.size))


def ratio_of_sums(
    tuned: Sequence[Array], base: Sequence[Array], floors: Sequence[float], units: Sequence[Sequence[object]]
) -> Estimate:
    """Sum over groups of (mean tuned - floor) over the sum of (mean base - floor), items resampled within groups."""
    groups = list(zip(tuned, base, floors, strict=True))
    total = sum(float(b.mean()) - floor for _, b, floor in groups)
    if not groups or total <= 0:
        return Estimate(value=None, n=0, note="the base has no skill above chance")
    value = sum(float(t.mean()) - floor for t, _, floor in groups) / total
    above, below = np.zeros(DRAWS), np.zeros(DRAWS)
    for (t, b, floor), unit in zip(groups, units, strict=True):
        for number, index in enumerate(draws(unit)):
            above[number] += t[index].mean() - floor
            below[number] += b[index].mean() - floor
    ratios = above[below > 0] / below[below > 0]
    low, high = np.quantile(ratios, (0.025, 0.975))
    return Estimate(value=value, low=float(low), high=float(high), n=sum(t.size for t, _, _ in groups))


@dataclass(frozen=True)
class Pooled:
    """Sums and counts by row, for a mean over all tokens in which rows, not tokens, are independent."""

    totals: Array
    counts: Array

    def minus(self, other: Pooled) -> Pooled:
        """The difference on the same rows."""
        return Pooled(self.totals - other.totals, self.counts)

    def mean(self) -> Estimate:
        """Total over count, rows resampled."""
        if self.totals.size == 0:
            return Estimate(value=None, n=0, note="there are no rows")
        value = float(self.totals.sum() / self.counts.sum())
        if self.totals.size < 2:
            return Estimate(value=value, n=1, note="one row gives no interval")
        low, high = interval(
            lambda index: float(self.totals[index].sum() / self.counts[index].sum()), range(self.totals.size)
        )
        return Estimate(value=value, low=low, high=high, n=int(self.totals.size))


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
    one, two = draws(range(first.size)), draws(range(second.size))
    values = [statistic(first[i], second[j]) for i, j in zip(one, np.roll(np.array(two), 1, axis=0), strict=True)]
    low, high = np.quantile(values, (0.025, 0.975))
    value = statistic(first, second)
    return Estimate(value=value, low=float(low), high=float(high), n=int(first.size + second.size))
