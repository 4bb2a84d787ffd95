"""Intervals over the units that were really independent: clusters are drawn, or counted, as one.

Means and what has no formula: the bootstrap's percentiles, set further apart as Student's t is wider than the normal
distribution, for of few units plain percentiles hold the truth too rarely (simulated: 91 of 100 with 18 clusters).
Changes and kept shares (`shares.py`): Student's t, with a spread that is at least what the bound itself implies. All
hold the truth in 93 to 97 of 100 simulated data sets with clusters (`python -m bench.coverage`).

Source: Efron and Tibshirani 1993, ch. 13; expanded percentiles as in Hesterberg 2015, arXiv 1411.5279, section 5.3;
clusters as in Miller 2024, arXiv 2411.00640.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from graftwood.evals.card import Estimate

Array = NDArray[np.float64]
DRAWS = 2000
_SEED = 20240914  # fixed: an interval is a property of the data, not of the moment it was computed


def draws(units: int, stream: int = 0) -> NDArray[np.int64]:
    """`DRAWS` resamples of the numbers below `units`, [DRAWS, units]; those of different streams are independent."""
    return np.random.default_rng((_SEED, stream)).integers(0, units, size=(DRAWS, units))


@lru_cache(maxsize=8)
def weights(units: int, stream: int = 0) -> Array:
    """How often each unit is in each resample, [DRAWS, units]."""
    found = np.zeros((DRAWS, units))
    np.add.at(found, (np.arange(DRAWS)[:, None], draws(units, stream)), 1.0)
    return found


def student(probability: float, freedom: float) -> float:
    """Quantile of Student's t. Source: Abramowitz and Stegun 1964, 26.7.5; exact for one and two degrees of freedom."""
    if freedom < 2:
        return math.tan(math.pi * (probability - 0.5))
    if freedom < 3:
        return (2 * probability - 1) * math.sqrt(2 / (1 - (2 * probability - 1) ** 2))
    z = NormalDist().inv_cdf(probability)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + sum(term / freedom**power for power, term in enumerate(terms, 1))


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

    def residuals(self) -> Array:
        """What each unit adds to the mean beyond its share; the sum of their squares is the mean's variance."""
        units = self.totals.size
        return (self.totals - self.value * self.counts) / self.counts.sum() * math.sqrt(units / max(1, units - 1))

    def resampled(self, stream: int = 0) -> Array:
        """The mean of each draw of units."""
        drawn = weights(self.totals.size, stream)
        means: Array = (drawn @ self.totals) / (drawn @ self.counts)
        return means

    def mean(self) -> Estimate:
        """The mean with its interval; fewer than two units give no interval. `n` counts units."""
        units = int(self.totals.size)
        if units == 0:
            return Estimate(value=None, n=0, note="there are no items")
        if units == 1:
            return Estimate(value=self.value, n=1, note="one independent item gives no interval")
        return _estimate(self.value, self.resampled(), units, units)


def mean(values: Sequence[float] | Array, units: Sequence[object] | None = None) -> Estimate:
    """The mean of items with its interval, whole groups of equal `units` drawn together. `n` counts items."""
    return Pooled.of(values, units).mean().model_copy(update={"n": len(values)})


def mean_of_means(groups: Sequence[Pooled]) -> Estimate:
    """The mean of the means of independent groups, every group counting the same. `n` counts units."""
    units = sum(int(group.totals.size) for group in groups)
    if not groups or any(group.totals.size < 2 for group in groups):
        return Estimate(value=None, n=units, note="fewer than two rows in a group")
    drawn = np.mean([group.resampled(stream) for stream, group in enumerate(groups)], axis=0)
    fewest = min(group.totals.size for group in groups)
    return _estimate(float(np.mean([group.value for group in groups])), drawn, fewest, units)


def change(after: Sequence[float] | Array, before: Sequence[float] | Array, units: Sequence[object]) -> Estimate:
    """The mean of after - before on the same items, with Student's interval over units. `n` counts items.

    Of items that are right or wrong a mean change of d takes at least a share |d| of flips: a bound is judged by a
    spread no smaller than its own flips would have. So it says something even where nothing flipped: with N items,
    that the change is likely within 3.84 / N.
    """
    difference = np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64)
    pooled, n = Pooled.of(difference, units), len(difference)
    if pooled.totals.size < 2:
        return pooled.mean().model_copy(update={"n": n})
    variance, value = float((pooled.residuals() ** 2).sum()), pooled.value
    reach = student(0.975, pooled.totals.size - 1) ** 2
    least = 1 / n if np.isin(difference, (-1.0, 0.0, 1.0)).all() else 0.0

    def misses(bound: float) -> float:
        return (value - bound) ** 2 - reach * max(variance, least * abs(bound))

    # No mean of scores between 0 and 1 changes by more than 1.
    low, high = (edge(misses, value, way) for way in (-1.0, 1.0))
    return Estimate(value=value, low=max(-1.0, low or -1.0), high=min(1.0, high or 1.0), n=n)


def edge(misses: Callable[[float], float], inside: float, direction: float) -> float | None:
    """Where `misses` turns positive on the way from `inside`; None where it does not within 100."""
    step = 1e-3
    while misses(inside + direction * step) <= 0:
        step *= 2
        if step > 100:
            return None
    near, far = 0.0, step
    for _ in range(30):
        middle = (near + far) / 2
        near, far = (middle, far) if misses(inside + direction * middle) <= 0 else (near, middle)
    return inside + direction * near


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
    fewer = min(first.size, second.size)
    return _estimate(statistic(first, second), values, fewer, int(first.size + second.size))


def _estimate(value: float, values: Array, units: int, n: int) -> Estimate:
    tail = NormalDist().cdf(student(0.025, units - 1) * math.sqrt(units / (units - 1)))
    low, high = np.quantile(values, (tail, 1 - tail))
    return Estimate(value=value, low=float(low), high=float(high), n=n)
