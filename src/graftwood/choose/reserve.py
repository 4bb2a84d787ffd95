"""Which of the items in reserve are asked where a certificate fails for want of items, and nowhere else.

What decides at first is little, since it is asked of every place. Where a model fails and its kept share does not,
abilities are asked more, where it says most for what it costs: as many items in reserve as would do, were they answered
as those before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from graftwood.evals import shares
from graftwood.evals.asking import Scores
from graftwood.evals.shares import Share
from graftwood.evals.skills import counts, share
from graftwood.evals.task import Task

PART = 60  # items by which what is asked grows


def parts(tasks: Sequence[Task]) -> tuple[Task, ...]:
    """The tasks in parts: each has the first of every cluster that is left, then the second of each."""
    found = []
    for task in tasks:
        left = task.items()
        while left:
            part = task.of(left).limited(PART)
            taken = {item.id for item in part.items()}
            found.append(part)
            left = tuple(item for item in left if item.id not in taken)
    return tuple(found)


def wanted(
    before: Sequence[Scores],
    after: Sequence[Scores],
    reserve: Sequence[Task],
    kept: float,
    worst: float | None = None,
    *,
    cost: Callable[[Task], float] = lambda part: len(part.items()),
    most: float = math.inf,
) -> tuple[list[Task], float | None]:
    """The parts in reserve that would do, few of them, and the lower bound of the kept share then, if there is one.

    Where as many as cost no more than `most` together would not do it is none of them; the first costs what it may.
    """
    used = [(b, a) for b, a in zip(before, after, strict=True) if counts(b)]
    known = {b.task.name: share(b, a) for b, a in used}
    moved = {b.task.name for b, a in used if b.columns() != a.columns()}  # what did not move is kept, with certainty

    def short_of(known: Mapping[str, Share]) -> float:
        """By how much the bound that is farthest below its budget is below it."""
        own = [] if worst is None else [worst - _low([known[name]]) for name in moved]
        return max(kept - _low(known.values()), *own, -1.0)

    left = [part for part in reserve if part.name in known]
    costs = {part: cost(part) for part in left}
    taken: list[Task] = []
    while (short := short_of(known)) > 0:
        left = [part for part in left if not taken or costs[part] <= most]
        if not left:
            return [], shares.lowest(list(known.values()))
        following = {part.name: part for part in reversed(left)}.values()
        grown = {part: known | {part.name: _grown(known[part.name], part, taken)} for part in following}
        best = max(following, key=lambda part: (short - short_of(grown[part])) / costs[part])
        known, most = grown[best], most - costs[best]
        left.remove(best)
        taken.append(best)
    return taken, shares.lowest(list(known.values()))


def _grown(own: Share, part: Task, taken: Sequence[Task]) -> Share:
    """The share with one more part of a reserve."""
    units = set(part.units()) - {unit for other in taken if other.name == part.name for unit in other.units()}
    return own.grown(len(part.items()), len(units))


def _low(some: Iterable[Share]) -> float:
    low = shares.lowest(list(some))
    return float("-inf") if low is None else low
