"""The kept share: what is left of the room above chance that the base had, with an interval that holds.

An ability's share is (tuned - chance) / (base - chance), by the probability of the right answer where there is one,
since it moves where right and wrong still stand, else by right and wrong. Several abilities keep the mean of their
shares: choice skills and followed requests count alike, however much room each has above chance.

The interval are the shares that are not told from the one observed (Fieller 1954), by Student's t with the variances of
clustered means and Satterthwaite's degrees of freedom. Where few items flipped, their variance says too little: at a
share L at least |1 - L| of the room must have flipped, so the variance is taken to be no smaller than such flips alone
would have. Without this the interval of a change that was not seen has no width, and a budget would pass for want of
items; the bootstrap's percentiles have the same fault (the truth lay below them in 5 to 12 of 100 simulated data sets
with 50 to 100 items).

An ability that gained much has an interval as wide as one that lost much, though no one asks how much it gained. What
the abilities keep of what they *had*, each at most all of it, is no more than what they keep; its lower bound, put
together from theirs (Zou and Donner 2008), is a bound of the mean share as well, and the higher of the two is given.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from graftwood.evals.card import Estimate
from graftwood.evals.stats import Array, Pooled, edge, student

ALIKE = 0.05  # correlation of flips within a cluster that is reckoned with where too few flipped to show one
NOTHING = "the base has no skill above chance"


@dataclass(frozen=True)
class Share:
    """One ability: room above chance after and before, their variances and covariance, items and independent units.

    `flips` says whether items are right or wrong, so that a change takes flips.
    """

    left: float
    had: float
    variance_left: float
    variance_had: float
    covariance: float
    items: int
    units: int
    flips: bool

    @classmethod
    def of(cls, tuned: Array, base: Array, chance: float, units: Sequence[object]) -> Share:
        """From the items of one ability under both models, at least two units of them."""
        t, b = Pooled.of(tuned, units), Pooled.of(base, units)
        left, had = t.residuals(), b.residuals()
        covariances = (float(left @ left), float(had @ had), float(left @ had))
        flips = bool(np.isin(base, (0.0, 1.0)).all() and np.isin(tuned, (0.0, 1.0)).all())
        return cls(t.value - chance, b.value - chance, *covariances, len(tuned), t.totals.size, flips)

    @property
    def value(self) -> float:
        """What is kept."""
        return self.left / self.had

    def grown(self, items: int, units: int) -> Share:
        """The same with so many more items, were they answered as these are."""
        factor = self.items / (self.items + items)
        return replace(
            self,
            variance_left=self.variance_left * factor,
            variance_had=self.variance_had * factor,
            covariance=self.covariance * factor,
            items=self.items + items,
            units=self.units + units,
        )

    def variance(self, share: float) -> float:
        """Of the kept share, were `share` the true one."""
        observed = self.variance_left - 2 * share * self.covariance + share**2 * self.variance_had
        together = 1 + ALIKE * (self.items / self.units - 1)  # Kish 1965: what clusters cost
        implied = abs(1 - share) * self.had * together / self.items if self.flips else 0.0
        return max(observed, implied, 0.0) / self.had**2


def kept(shares: Sequence[Share]) -> Estimate:
    """The mean share that is kept of several abilities, or that of one."""
    if not shares or any(share.had <= 0 for share in shares):
        return Estimate(value=None, n=0, note=NOTHING)
    value, low, high = _mean(shares), lowest(shares), _edge(shares, 1.0)
    note = None if low is not None and high is not None else "too little room above chance for an interval"
    return Estimate(value=value, low=low, high=high, n=sum(share.items for share in shares), note=note)


def lowest(shares: Sequence[Share]) -> float | None:
    """The lower bound of the mean share alone."""
    low = _edge(shares, -1.0)
    return low if low is None or len(shares) == 1 else max(low, _low_of_had(shares))


def _mean(shares: Sequence[Share]) -> float:
    return sum(share.value for share in shares) / len(shares)


def _edge(shares: Sequence[Share], direction: float) -> float | None:
    """The interval's end on one side; None where there is too little room above chance."""
    value = _mean(shares)

    def misses(bound: float) -> float:
        # Each ability's share is moved as the mean is.
        return (value - bound) ** 2 - _reach(shares, [share.value + bound - value for share in shares])

    return edge(misses, value, direction)


def _low_of_had(shares: Sequence[Share]) -> float:
    """The lower bound of the mean share where none counts for more than all."""
    short = 0.0
    for share in shares:
        low = lowest([share])
        if low is None:
            return -math.inf
        short += (min(share.value, 1.0) - min(low, 1.0)) ** 2
    return (sum(min(share.value, 1.0) for share in shares) - math.sqrt(short)) / len(shares)


def most_shown(shares: Sequence[Share]) -> float | None:
    """The largest budget that these items could show: the lower bound where nothing at all is lost. None: not any."""
    return kept(_untouched(shares)).low


def items_needed(shares: Sequence[Share], budget: float) -> int | None:
    """Items, spread over these abilities as now, from which on a budget could hold: where nothing at all is lost.

    None where no number of items is enough: a budget of all there was, or nothing that could be kept.
    """
    if budget >= 1 or not shares or any(share.had <= 0 for share in shares):
        return None
    # Variances fall as items grow.
    growth = _reach(_untouched(shares), [budget] * len(shares)) / (1 - budget) ** 2
    return math.ceil(growth * sum(share.items for share in shares))


def _untouched(shares: Sequence[Share]) -> list[Share]:
    return [
        replace(share, left=share.had, variance_left=share.variance_had, covariance=share.variance_had)
        for share in shares
    ]


def _reach(shares: Sequence[Share], values: Sequence[float]) -> float:
    """The square of how far the mean may be off by chance, were `values` the true shares."""
    variances = [share.variance(value) for share, value in zip(shares, values, strict=True)]
    total = sum(variances)
    if total == 0.0:
        return 0.0
    spread = sum(variance**2 / (share.units - 1) for variance, share in zip(variances, shares, strict=True))
    return student(0.975, total**2 / spread) ** 2 * total / len(shares) ** 2
