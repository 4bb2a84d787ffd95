"""Whether a tuned model keeps enough of its base: what decides, on the lower bound of the interval.

Every ability counts alike: the kept share is the mean of the abilities' own shares, so that an ability with little room
above chance weighs as much as one with much. An ability's share is that of its room above chance, by the probability of
the right answer where there is one, by right and wrong where answers are generated: probabilities move with the model
where right and wrong still stand, so a hundred items resolve what thousands of flips would.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from graftwood.evals import stats
from graftwood.evals.asking import Scores
from graftwood.evals.card import Decision, Estimate

ROOM = 0.02  # above chance on the lower bound: below it there is nothing that could be lost
_NOTHING = Estimate(value=None, n=0, note="the base has no ability above chance")


def decide(before: Sequence[Scores], after: Sequence[Scores], kept: float, worst: float | None = None) -> Decision:
    """Within the budget where the lower bound of the mean share is at least `kept`, and of the worst at least `worst`.

    The same draws of items for base and tuned model.
    """
    pairs = [(b, a) for b, a in zip(before, after, strict=True) if able(b)]
    if not pairs:
        return Decision(kept=_NOTHING, worst=None, worst_kept=_NOTHING, passed=False)
    shares = {b.task.name: _draws(b, a, stream) for stream, (b, a) in enumerate(pairs)}
    items = sum(len(b.right) for b, _ in pairs)
    values, draws = zip(*shares.values(), strict=True)
    mean = _estimate(float(np.mean(values)), np.mean(draws, axis=0), items)
    estimates = {name: _estimate(value, draws, items) for name, (value, draws) in shares.items()}
    name = min(estimates, key=lambda key: estimates[key].value or 0.0)
    low, worst_low = mean.low or 0.0, estimates[name].low or 0.0
    passed = low >= kept and (worst is None or worst_low >= worst)
    return Decision(kept=mean, worst=name, worst_kept=estimates[name], passed=passed)


def able(scores: Scores) -> bool:
    """Whether the base has room above chance in an ability."""
    estimate = stats.mean(_values(scores), scores.task.units())
    return estimate.low is not None and estimate.low > scores.task.chance + ROOM


def items_needed(decision: Decision, kept: float) -> int | None:
    """Items that the interval would need so that a model as good as this one passed; None where none would do."""
    estimate = decision.kept
    if estimate.value is None or estimate.low is None or estimate.n is None or estimate.value <= kept:
        return None
    return math.ceil(estimate.n * ((estimate.value - estimate.low) / (estimate.value - kept)) ** 2)


def _values(scores: Scores) -> Sequence[float]:
    return scores.soft or scores.right


def _draws(before: Scores, after: Scores, stream: int) -> tuple[float, stats.Array]:
    """An ability's kept share and that of each draw of its items."""
    units, chance = before.task.units(), before.task.chance
    b, a = (stats.Pooled.of(_values(scores), units) for scores in (before, after))
    room = np.maximum(b.resampled(stream) - chance, 1e-9)
    return (a.value - chance) / (b.value - chance), (a.resampled(stream) - chance) / room


def _estimate(value: float, draws: stats.Array, items: int) -> Estimate:
    low, high = np.quantile(draws, (0.025, 0.975))
    return Estimate(value=value, low=float(low), high=float(high), n=items)
