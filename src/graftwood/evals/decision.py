"""Whether a tuned model keeps enough of its base: what decides is the lower bound of the interval, not the value."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from graftwood.evals import shares, words
from graftwood.evals.asking import Scores
from graftwood.evals.card import Decision, Estimate
from graftwood.evals.skills import counts, kept_of, share


def decide(
    before: Sequence[Scores],
    after: Sequence[Scores],
    kept: float,
    worst: float | None = None,
    counted: Collection[str] | None = None,
) -> Decision:
    """Within the budget where the lower bound of the mean share is at least `kept`, and of every ability's `worst`.

    `counted` names the abilities that count, by default those that `before` says the base has. The worst ability is the
    one with the lowest lower bound. A model that keeps just less than the budget passes in at
    most 5 of 100 data sets, also where one that `is_open` is decided once more with more items (`python -m
    bench.coverage`). No correction for the number of abilities is due: all of them
    must pass, which no number of tries makes likelier (intersection-union test, Berger 1982).
    """
    pairs = zip(before, after, strict=True)
    used = [(b, a) for b, a in pairs if (counts(b) if counted is None else b.task.name in counted)]
    if not used:
        nothing = Estimate(value=None, n=0, note=shares.NOTHING)
        return Decision(kept=nothing, worst=None, worst_kept=nothing, passed=False, why=(shares.NOTHING,), items=0)
    mean = kept_of(used)
    apart = {b.task.name: kept_of([(b, a)]) for b, a in used}
    name = min(apart, key=lambda key: _low(apart[key]))
    needed, items = _needed([b for b, _ in used], kept), sum(len(b.right) for b, _ in used)
    why = []
    if _low(mean) < kept:
        why.append(f"kept {words.estimate(mean, 'share')}, the budget is {words.percent(kept)}{_hint(items, needed)}")
    if worst is not None and _low(apart[name]) < worst:
        own = [b for b, _ in used if b.task.name == name]
        hint = _hint(len(own[0].right), _needed(own, worst))
        why.append(f"{name} kept {words.estimate(apart[name], 'share')}, each must keep {words.percent(worst)}{hint}")
    return Decision(
        kept=mean,
        worst=name,
        worst_kept=apart[name],
        passed=not why,
        why=tuple(why),
        items=items,
        needed=needed,
    )


def is_open(decision: Decision, kept: float, worst: float | None = None) -> bool:
    """Whether a model failed for want of items: the values pass, their intervals do not."""
    values = [(decision.kept.value, kept), *([] if worst is None else [(decision.worst_kept.value, worst)])]
    return not decision.passed and all(value is not None and value >= least for value, least in values)


def together(scores: Sequence[Scores], more: Sequence[Scores]) -> list[Scores]:
    """The scores with those of more items of their tasks, each beside its own."""
    found = {own.task.name: own for own in scores}
    for other in more:
        if (own := found.get(other.task.name)) is not None:
            task = own.task.of((*own.task.items(), *other.task.items()))
            found[own.task.name] = Scores(task, own.right + other.right, own.soft + other.soft, own.said + other.said)
    return list(found.values())


def too_few(before: Sequence[Scores], kept: float, worst: float | None = None) -> str | None:
    """What these items cannot show even of a model that lost nothing, with what they can; None where they can show all.

    Left aside are one that gained, and one whose answers are its base's to the letter, which takes no items to show.
    """
    used = [scores for scores in before if counts(scores)]
    parts = [("the base", used, kept)]
    parts += [] if worst is None else [(own.task.name, [own], worst) for own in used]
    for whose, some, least in parts:
        items, needed = sum(len(own.right) for own in some), _needed(some, least)
        most = shares.most_shown([share(own, own) for own in some]) or 0.0
        if most < least and (needed is None or needed > items):
            at_most = f"; {math.floor(100 * most)}% is the most they can show" if most >= 0.01 else ""
            return f"{100 * least:.4g}% of {whose} must be kept{_hint(items, needed)}{at_most}"
    return None


def items_needed(before: Sequence[Scores], kept: float) -> int | None:
    """Items of the abilities that count from which on this budget could be passed, were nothing lost; None: never."""
    return _needed([scores for scores in before if counts(scores)], kept)


def _needed(used: Sequence[Scores], kept: float) -> int | None:
    return shares.items_needed([share(scores, scores) for scores in used], kept)


def _low(kept: Estimate) -> float:
    return float("-inf") if kept.low is None else kept.low


def _hint(items: int, needed: int | None) -> str:
    if needed is None:
        return "; no number of items can show that"
    return f"; {items} items cannot show that, it takes {needed} at least, were nothing lost" if needed > items else ""
