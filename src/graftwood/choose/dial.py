"""How far along its way a trained model may go: nearly the most gain, as near to its base, kept share certified.

Looking is cheap (loss on validation rows, drift on the base's own text) and steers; certifying asks the base's
abilities again and decides. Going back along the way gives what was kept back before what was gained (arXiv
2605.28819). The lower bound of what is kept, certain at the base, falls along the way; where a straight line through
what was certified meets the budget, the next certificate is tried.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from graftwood.evals.card import Decision

GRID = (1.0, 0.75, 0.5)
TRIES = 5
LEAST = 0.1  # nearer to the base nothing is looked for
CLOSE, NEARLY = 0.2, 0.03  # nats an answer, share of the gain: short of the best by neither, a place nearer is as good
LITTLE = 0.05  # of the best gain: beside a place that failed, another certificate is not worth its seconds for less
CAREFUL = 0.9  # of the way to where the line meets the budget: a bound is a draw, and a failure costs a certificate


@dataclass(frozen=True)
class Look:
    """One place on the way: validation loss in nats an answer token, drift in nats a token."""

    alpha: float
    loss: float
    drift: float


class Way(Protocol):
    """A trained model that can go back towards its base."""

    def look(self, alpha: float) -> Look:
        """Loss and drift there."""

    def certify(self, alpha: float) -> Decision:
        """What is kept there, on items that no report uses."""


@dataclass(frozen=True)
class Settled:
    """Where the way was looked at and certified, and the place that is shipped, if any is."""

    looks: tuple[Look, ...]
    decisions: dict[float, Decision]
    shipped: float | None


def settle(
    way: Way,
    base_loss: float,
    kept: float,
    drift_limit: float | None = None,
    *,
    answer: float,
    grid: Sequence[float] = GRID,
) -> Settled:
    """The place nearest to the base that has nearly the most gain and passes, after at most `TRIES` certificates.

    `kept` is the budget, a share; `drift_limit` is what earlier runs on this base say it allows: the first certificate
    is tried there when the best place lies beyond it. An answer has so many tokens: what is little a token is much an
    answer, which is right only if all of its tokens are.
    """
    looks = _seen(way, base_loss, answer, grid)
    best = min(looks.values(), key=lambda look: look.loss)
    decisions: dict[float, Decision] = {}
    if best.loss >= base_loss:
        return Settled(tuple(looks.values()), decisions, None)
    most = base_loss - best.loss
    passed, failed = 0.0, math.inf
    close = best.loss + _close(most, answer)
    target = min((look for look in looks.values() if look.loss <= close), key=lambda at: at.alpha)
    alpha = _within(target, drift_limit)
    lows: dict[float, float | None] = {0.0: 1.0}
    for _ in range(TRIES):
        little = passed and looks[passed].loss - _loss(alpha, looks, base_loss) <= LITTLE * most
        if little and not math.isinf(failed):  # what nothing speaks against is asked, for little a token may be much
            break
        if alpha not in looks:
            looks[alpha] = way.look(alpha)
        decisions[alpha] = way.certify(alpha)
        found = decisions[alpha]
        lows[alpha] = found.kept.low if found.likely_low is None else found.likely_low
        if decisions[alpha].passed:
            passed = alpha
            if alpha >= target.alpha:
                break
        else:
            failed = alpha
        alpha = target.alpha if math.isinf(failed) else _between(passed, failed, lows, kept, looks)
    gains = looks[passed].loss < base_loss if passed else False
    return Settled(tuple(sorted(looks.values(), key=lambda look: -look.alpha)), decisions, passed if gains else None)


def _close(most: float, answer: float) -> float:
    """By how much a place may fall short of the best, nats a token, where that one gains the most."""
    return max(0.0, min(CLOSE / answer, NEARLY * most))


def _seen(way: Way, base_loss: float, answer: float, grid: Sequence[float]) -> dict[float, Look]:
    """Looks from the far end towards the base, for as long as the loss stays close to the least."""
    looks: dict[float, Look] = {}
    places, best = list(grid), math.inf
    for alpha in places:  # it grows
        looks[alpha] = way.look(alpha)
        loss = looks[alpha].loss
        if loss > best + _close(base_loss - best, answer):
            break
        best = min(best, loss)
        if alpha == places[-1] > LEAST and loss == best:  # it falls still, the nearer the base
            places.append(alpha / 2)
    return looks


def _loss(alpha: float, looks: Mapping[float, Look], base_loss: float) -> float:
    """The loss at a place that may not have been looked at, on a straight line between those beside it."""
    known = {0.0: base_loss} | {at: look.loss for at, look in looks.items()}
    below, above = max(at for at in known if at <= alpha), min(at for at in known if at >= alpha)
    share = (alpha - below) / (above - below) if above > below else 0.0
    return known[below] + share * (known[above] - known[below])


def _within(target: Look, limit: float | None) -> float:
    """The place up to this one where drift reaches the limit; drift grows with the square of the way."""
    if limit is None or target.drift <= limit:
        return target.alpha
    return round(max(0.05, target.alpha * math.sqrt(limit / target.drift)), 4)


def _between(
    passed: float, failed: float, lows: Mapping[float, float | None], kept: float, seen: Collection[float]
) -> float:
    """The next place to try: short of where the bounds say that the budget is met; half-way where they say nothing.

    A place that was seen and is not beyond where it is met is as good. A line that was wrong once is not trusted beyond
    half-way. Far apart, ratios matter for half-way, since most of the gain is had early.
    """
    above, below = lows[passed], lows[failed]
    if above is None or below is None or not below < kept < above:
        middle = math.sqrt(passed * failed) if 0 < passed < failed / 2 else (passed + failed) / 2
        return round(middle, 4)
    meets = (above - kept) / (above - below)
    most = 0.9 if len(lows) < 3 else 0.5
    careful, last = (passed + min(share, most) * (failed - passed) for share in (CAREFUL * meets, meets))
    return max((place for place in seen if careful <= place <= last), default=round(careful, 4))
