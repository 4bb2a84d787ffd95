"""What was claimed before any arm ran, and how intervals decide it (PROTOCOL.md)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from bench.keep.arms import ARMS
from bench.keep.effects import Arms, better
from bench.keep.records import ArmRecord

from graftwood.evals.card import Decision, Estimate
from graftwood.evals.decision import decide

OURS, ENOUGH, SEEDS = "O95", 0.95, 2
FINE_GAIN, FINE_LOSS = "loss", "drift"  # measured in nats; the task's metric and requests are counted, and coarse
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
    """A claim on one task: the rival, and the shares of its gain and of its forgetting by each measure."""

    task: str
    seeds: int
    rival: str
    gains: Mapping[str, Estimate]
    losses: Mapping[str, Estimate]
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
        found.append(Verdict(task, len(seeds), rival, gains, losses, _word(gains, losses, claim.most)))
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


def _word(gains: Mapping[str, Estimate], losses: Mapping[str, Estimate], most: float) -> str:
    """The fine measures decide by their whole interval; the coarse ones must agree in value, and any may refute."""
    floors, ceilings = _known(gains), _known(losses)
    if any(high < ENOUGH for _, _, high in floors.values()) or any(low > most for _, low, _ in ceilings.values()):
        return FAILS
    if FINE_GAIN not in floors or FINE_LOSS not in ceilings:
        return OPEN
    agree = all(value >= ENOUGH for value, _, _ in floors.values())
    agree = agree and all(value <= most for value, _, _ in ceilings.values())
    return HOLDS if agree and floors[FINE_GAIN][1] >= ENOUGH and ceilings[FINE_LOSS][2] <= most else OPEN


def _known(shares: Mapping[str, Estimate]) -> dict[str, tuple[float, float, float]]:
    """Value, lower and upper bound of the shares that there are."""
    return {
        name: (share.value, share.low, share.high)
        for name, share in shares.items()
        if share.value is not None and share.low is not None and share.high is not None
    }
