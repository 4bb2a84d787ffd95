"""How often intervals hold the truth, and how often a model over budget passes, on simulated data sets.

python -m bench.coverage
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from bench.common import Figure, finish, options, run, say
from numpy.typing import NDArray

from graftwood.choose.reserve import parts, wanted
from graftwood.evals import stats
from graftwood.evals.asking import Scores
from graftwood.evals.card import Estimate
from graftwood.evals.decision import decide, is_open, together
from graftwood.evals.more_requests import TEMPLATES
from graftwood.evals.skills import counts, kept_of
from graftwood.evals.task import Item, Task

SETS = 2000
RESERVE = tuple(len(template.items()) for template in TEMPLATES)  # requests by family
MORE = 300  # items in reserve of each other bundled set
FAMILIES = (8, 12, 10, 9, 7, 14, 11, 13, 10, 9, 12, 8, 11, 10, 13, 9, 10, 9)  # as the bundled requests, about

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Ability:
    """A simulated task: items by cluster, chance, and how likely an item is right, then lost, then won.

    `alike` is how much a cluster's items have in common, as the correlation of beta-distributed chances. With `noise`
    items are weighed instead: the right answer has a probability with this mean, of which a share is lost, and whose
    logit moves by so much besides.
    """

    clusters: tuple[int, ...]
    chance: float
    right: float
    lost: float
    won: float
    alike: float = 0.0
    noise: float = 0.0

    @property
    def truth(self) -> tuple[float, float]:
        """Room above chance that is left, and that there was."""
        left = self.right * (1 - self.lost) + (1 - self.right) * self.won
        return left - self.chance, self.right - self.chance

    def task(self, name: str) -> Task:
        """A task with these clusters."""
        owners = np.repeat(np.arange(len(self.clusters)), self.clusters)
        items = tuple(Item(f"{n}", "", cluster=f"{owner}") for n, owner in enumerate(owners.tolist()))
        return Task(name, name, "program", 1, self.chance, "", "", lambda: items)

    def draw(self, generator: np.random.Generator) -> tuple[Array, Array]:
        """Items before and after."""
        if self.noise:
            before = generator.beta(4 * self.right, 4 * (1 - self.right), len(self.clusters))
            moved = generator.normal(0.0, self.noise, len(self.clusters)) * before * (1 - before)
            return before, before * (1 - self.lost) + (1 - before) * self.won + moved
        right, lost, won = (self._chances(generator, mean) for mean in (self.right, self.lost, self.won))
        before = generator.random(right.shape) < right
        after = np.where(before, generator.random(right.shape) >= lost, generator.random(right.shape) < won)
        return before.astype(float), after.astype(float)

    def _chances(self, generator: np.random.Generator, mean: float) -> Array:
        spread = (1 - self.alike) / self.alike if self.alike and 0 < mean < 1 else 0.0
        drawn = (
            generator.beta(mean * spread, (1 - mean) * spread, len(self.clusters))
            if spread
            else np.full(len(self.clusters), mean)
        )
        return np.repeat(drawn, self.clusters)


def singles(items: int) -> tuple[int, ...]:
    """Items that are independent."""
    return (1,) * items


def bundle(lost: float, won: float, alike: float) -> tuple[Ability, ...]:
    """Four abilities as the bundled ones of a small base: three weighed ones, and requests in families of like ones."""
    return (
        Ability(singles(100), 0.25, 0.40, lost, won, noise=0.4),
        Ability(singles(100), 0.0, 0.20, lost, won, noise=0.4),
        Ability(singles(100), 0.5, 0.62, lost, won, noise=0.4),
        Ability(FAMILIES, 0.0, 0.78, lost, won, alike),
    )


def answered(lost: float, won: float) -> tuple[Ability, ...]:
    """Three abilities whose answers are right or wrong."""
    return (
        Ability(singles(100), 0.25, 0.56, lost, won),
        Ability(singles(100), 0.0, 0.285, lost, won),
        Ability(FAMILIES, 0.0, 0.78, lost, won, 0.1),
    )


def some_gained() -> tuple[Ability, ...]:
    """The bundle, of which one ability gained much, one nothing, and the two others lost."""
    gains = ((0.0, 0.1), (0.0, 0.0), (0.05, 0.0), (0.1, 0.1))
    return tuple(replace(ability, lost=a, won=b) for ability, (a, b) in zip(bundle(0, 0, 0.1), gains, strict=True))


PASSAGES = tuple(1 + n % 3 for n in range(60))
CASES: Mapping[str, tuple[Ability, ...]] = {
    "bundle, 2% lost": bundle(0.02, 0.01, 0.1),
    "bundle, 5% lost": bundle(0.05, 0.03, 0.1),
    "bundle, 10% lost": bundle(0.10, 0.05, 0.1),
    "bundle, 20% lost": bundle(0.20, 0.08, 0.1),
    "bundle, some gained": some_gained(),
    "right or wrong, 5% lost": answered(0.05, 0.03),
    "right or wrong, 15% lost": answered(0.15, 0.05),
    "one weighed ability": (Ability(singles(100), 0.25, 0.40, 0.05, 0.02, noise=0.4),),
    "requests alone": (Ability(FAMILIES, 0.0, 0.78, 0.08, 0.2, 0.1),),
    "passages of 1 to 3 items": (Ability(PASSAGES, 0.25, 0.6, 0.1, 0.05, 0.2),),
    "one ability of 100 items": (Ability(singles(100), 0.25, 0.6, 0.08, 0.04),),
    "one ability of 400 items": (Ability(singles(400), 0.0, 0.285, 0.15, 0.05),),
}


def drawn(case: tuple[Ability, ...], sets: int, seed: int) -> Iterator[tuple[list[Scores], list[Scores]]]:
    """Data sets of a case: scores before and after."""
    generator = np.random.default_rng(seed)
    tasks = [ability.task(f"{number}") for number, ability in enumerate(case)]
    for _ in range(sets):
        pairs = [ability.draw(generator) for ability in case]
        yield tuple(  # type: ignore[misc]
            [_scores(a, task, pair[side].tolist()) for a, task, pair in zip(case, tasks, pairs, strict=True)]
            for side in (0, 1)
        )


def _scores(ability: Ability, task: Task, values: list[float]) -> Scores:
    """What is weighed is right as well, so that the ability counts by its probabilities alone."""
    if ability.noise:
        return Scores(task, (1.0,) * len(values), tuple(values))
    return Scores(task, tuple(values))


def held(estimate: Estimate, truth: float) -> bool:
    """Whether an interval holds the truth; one without a bound is open there."""
    low = -np.inf if estimate.low is None else estimate.low
    high = np.inf if estimate.high is None else estimate.high
    return low <= truth <= high


def kept_coverage(case: tuple[Ability, ...], sets: int = SETS, seed: int = 0) -> float:
    """How often the interval of the kept share holds the truth, of the abilities that count in each data set."""
    hits = []
    for before, after in drawn(case, sets, seed):
        used = [number for number, scores in enumerate(before) if counts(scores)]
        if used:
            truth = float(np.mean([case[number].truth[0] / case[number].truth[1] for number in used]))
            hits.append(held(kept_of([(before[number], after[number]) for number in used]), truth))
    return float(np.mean(hits))


def change_coverage(case: tuple[Ability, ...], sets: int = SETS, seed: int = 0) -> float:
    """The same of the change of the case's last ability."""
    left, had = case[-1].truth
    pairs = ((b[-1], a[-1]) for b, a in drawn(case[-1:], sets, seed))
    changes = (stats.change(a.soft or a.right, b.soft or b.right, b.task.units()) for b, a in pairs)
    return float(np.mean([held(change, left - had) for change in changes]))


def mean_coverage(case: tuple[Ability, ...], sets: int = SETS, seed: int = 0) -> float:
    """The same of the base's mean in the case's last ability."""
    bases = (b[-1] for b, _ in drawn(case[-1:], sets, seed))
    return float(np.mean([held(stats.mean(b.soft or b.right, b.task.units()), case[-1].right) for b in bases]))


def at_budget(budget: float, alike: float, won: float = 0.02) -> tuple[Ability, ...]:
    """The bundle where exactly the budget is kept in every ability: more must not pass than chance lets."""

    def edge(ability: Ability) -> Ability:
        spent = (1 - budget) * (ability.right - ability.chance) + (1 - ability.right) * won
        return replace(ability, lost=spent / ability.right, won=won)

    return tuple(edge(ability) for ability in bundle(0.0, 0.0, alike))


def passes(case: tuple[Ability, ...], budget: float, sets: int = SETS, seed: int = 0) -> float:
    """How often a model of the case is said to be within the budget."""
    return float(np.mean([decide(b, a, budget).passed for b, a in drawn(case, sets, seed)]))


def passes_with_reserve(case: tuple[Ability, ...], budget: float, sets: int = SETS, seed: int = 0) -> float:
    """The same where more items, lost and won alike, are asked of those that the first items leave open."""
    first = tuple(replace(ability, clusters=_half(ability.clusters)) for ability in case)
    reserve = tuple(replace(ability, clusters=singles(MORE) if ability.noise else RESERVE) for ability in case)
    passed = []
    for scores in drawn((*first, *reserve), sets, seed):
        before, after = (one[: len(case)] for one in scores)
        decision = decide(before, after, budget)
        if is_open(decision, budget):
            held = [
                [_as(more, b.task.name) for more, b in zip(one[len(case) :], before, strict=True)] for one in scores
            ]
            asked, _ = wanted(before, after, parts([more.task for more in held[0]]), budget)
            b, a = (
                together(own[: len(case)], [_part(more, task) for task in asked])
                for own, more in zip(scores, held, strict=True)
            )
            decision = decide(b, a, budget, counted=[own.task.name for own in before if counts(own)])
        passed.append(decision.passed)
    return float(np.mean(passed))


def _half(clusters: tuple[int, ...]) -> tuple[int, ...]:
    """The clusters that decide; the others report."""
    return clusters[::2]


def _as(scores: Scores, name: str) -> Scores:
    """The scores as of a task of this name, whose clusters are no one else's."""
    items = tuple(replace(item, id=f"more {item.id}", cluster=f"more {item.cluster}") for item in scores.task.items())
    return replace(scores, task=replace(scores.task.of(items), name=name))


def _part(reserve: Sequence[Scores], part: Task) -> Scores:
    """The scores of a part of what is in reserve."""
    (own,) = (scores for scores in reserve if scores.task.name == part.name)
    place = {item.id: number for number, item in enumerate(own.task.items())}
    right, soft = (
        [column[place[item.id]] for item in part.items()] if column else [] for column in (own.right, own.soft)
    )
    return Scores(part, tuple(right), tuple(soft))


MEASURES: Mapping[str, Callable[..., float]] = {
    "kept share": kept_coverage, "mean change": change_coverage, "mean": mean_coverage,
}  # fmt: skip
BUDGETS = {
    f"budget {budget:.0%}, {'clustered' if alike else 'independent'}, {won:.0%} won": (budget, alike, won)
    for budget in (0.9, 0.95, 0.98)
    for alike, won in ((0.0, 0.0), (0.1, 0.02))
}


def _range(shares: Mapping[str, float]) -> str:
    return f"{min(shares.values()):.1%} to {max(shares.values()):.1%}"


def main() -> int:
    """Simulate everything, and write `results/coverage.json`."""
    given = options(__doc__.splitlines()[0] if __doc__ else "", rounds=1).parse_args()
    sets = 50 if given.smoke else SETS
    coverage = {
        f"{measure}: {name}": simulate(case, sets)
        for measure, simulate in MEASURES.items()
        for name, case in CASES.items()
    }
    false = {name: passes(at_budget(b, alike, won), b, sets) for name, (b, alike, won) in BUDGETS.items()}
    false |= {
        f"{name}, with a reserve": passes_with_reserve(at_budget(b, alike, won), b, sets // 2)
        for name, (b, alike, won) in BUDGETS.items()
    }
    for name, share in (coverage | false).items():
        say(f"{name}: {share:.1%}")
    worst = max(coverage, key=lambda name: abs(coverage[name] - 0.95))
    figures = [
        Figure(
            "interval_coverage", coverage[worst], "of data sets",
            "how often a 95% interval holds the truth, the worst case",
            f"{_range(coverage)} over {len(coverage)} cases of {sets} data sets", "93% to 97% is allowed",
        ),
        Figure(
            "budget_false_pass_rate", max(false.values()), "of data sets",
            "how often a model at the edge of its budget passes, the worst case",
            f"{_range(false)} over {len(false)} cases of {sets} data sets, half of that with a reserve",
            "5% is the most allowed",
        ),
    ]  # fmt: skip
    return finish("coverage", given, figures, {}, needs_quiet=False, coverage=coverage, false_passes=false)


if __name__ == "__main__":
    run(main)
