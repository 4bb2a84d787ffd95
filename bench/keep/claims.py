"""What was claimed before any arm ran, and how intervals decide it (PROTOCOL.md)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from bench.keep.arms import ARMS
from bench.keep.effects import Arms, better, worst
from bench.keep.records import ArmRecord

from graftwood.evals.card import Decision, Estimate
from graftwood.evals.decision import decide

OURS, ENOUGH, SEEDS = "O95", 0.95, 2
HOLDS, FAILS, OPEN = "holds", "fails", "not shown"


@dataclass(frozen=True)
class Claim:
    """At `ENOUGH` of the gain of the better of `rivals`, at most `most` of what that one forgets, on every task."""

    level: str
    rivals: tuple[str, ...]
    most: float
    no_violation: bool = False

    @property
    def needs(self) -> tuple[str, ...]:
        """The arms that it takes."""
        return (OURS, *self.rivals)

    @property
    def text(self) -> str:
        """The claim in a sentence."""
        who = " and ".join(f"{name} ({ARMS[name].title})" for name in self.rivals)
        better_of = f"the better of {who}" if len(self.rivals) > 1 else who
        rest = ", and no budget is violated anywhere" if self.no_violation else ""
        return f"at {ENOUGH:.0%} of the gain of {better_of} or more, at most {self.most:.0%} of its forgetting{rest}"


CLAIMS = (
    Claim("must", ("P1", "P2"), 0.5),
    Claim("expected", ("A1",), 0.25, no_violation=True),
    Claim("aim", ("A1",), 0.10),
)


@dataclass(frozen=True)
class Verdict:
    """A claim on one task: the rival, the smaller share of its gain, the larger of its forgetting, each named."""

    task: str
    seeds: int
    rival: str
    gain: tuple[str, Estimate] | None
    forgotten: tuple[str, Estimate] | None
    word: str


def verdicts(claim: Claim, tasks: Mapping[str, Arms]) -> list[Verdict]:
    """The claim on every task whose arms are all there with enough seeds."""
    found = []
    for task, arms in tasks.items():
        seeds = ready(arms, claim.needs)
        if not seeds:
            continue
        rival = better(arms, claim.rivals, seeds)
        gains, losses = (
            {name: effect.over(theirs[name]) for name, effect in ours.items()}
            for ours, theirs in (
                (arms.gain(OURS, seeds), arms.gain(rival, seeds)),
                (arms.forgotten(OURS, seeds), arms.forgotten(rival, seeds)),
            )
        )
        gain, lost = worst(gains, min), worst(losses, max)
        found.append(Verdict(task, len(seeds), rival, gain, lost, _word(gain, lost, claim.most)))
    return found


def ready(arms: Arms, names: Sequence[str]) -> list[int]:
    """The seeds that all of these arms have; none where they are too few, or the base is missing."""
    if not {"A0", *names} <= set(arms.names):
        return []
    seeds = arms.seeds(*names)
    return seeds if len(seeds) >= SEEDS else []


def overall(found: Sequence[Verdict], violations: int | None) -> str:
    """Fails where it fails anywhere, holds where it holds everywhere."""
    words = [verdict.word for verdict in found] + ([] if violations is None else [FAILS if violations else HOLDS])
    if FAILS in words:
        return FAILS
    return HOLDS if words and set(words) == {HOLDS} else OPEN


@dataclass(frozen=True)
class Budgeted:
    """One model under a budget: what it keeps of the benchmark's own requests and skills, and whether that is less."""

    record: ArmRecord
    kept: Estimate
    violated: bool


def budgeted(tasks: Mapping[str, Arms]) -> Iterator[Budgeted]:
    """Every model that was made under a budget.

    A budget is violated where the whole interval of what is kept lies below it, or where a model was shipped whose own
    certificate was below it.
    """
    for arms in tasks.values():
        if "A0" not in arms.names:
            continue
        for record in (record for name in arms.names for record in arms.records(name)):
            budget = record.training.budget
            if budget is None:
                continue
            kept = decision(arms.records("A0")[0], record, budget).kept
            certified = record.training.certified
            uncertified = record.training.shipped and (certified is None or certified[1] < budget)
            yield Budgeted(record, kept, uncertified or (kept.high is not None and kept.high < budget))


def decision(base: ArmRecord, record: ArmRecord, budget: float) -> Decision:
    """What the judge's own rule says of an arm on the requests and skills of the benchmark."""
    names = [r.name for r in base.readings if r.kind in ("choice", "word", "program")]
    before, after = ([one.reading(name).scores() for name in names] for one in (base, record))
    return decide(before, after, budget)


def _word(gain: tuple[str, Estimate] | None, lost: tuple[str, Estimate] | None, most: float) -> str:
    if gain is None or lost is None:
        return OPEN
    (_, gained), (_, forgotten) = gain, lost
    assert gained.low is not None
    assert gained.high is not None
    assert forgotten.low is not None
    assert forgotten.high is not None
    if gained.high < ENOUGH or forgotten.low > most:
        return FAILS
    return HOLDS if gained.low >= ENOUGH and forgotten.high <= most else OPEN
