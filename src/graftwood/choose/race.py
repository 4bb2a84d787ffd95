"""Recipes raced under a budget: all begin, few go on, one arrives. Each goes on from where it stopped.

Source: successive halving, Jamieson and Talwalkar 2016, arXiv 1502.07943. What ranks is the gain within the budget, not
the loss: a high rate gains fast and has to go back far.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from graftwood.choose.dial import Look
from graftwood.errors import ConfigError

UNKNOWN_LIMIT = 0.02  # nats a token, until certificates on this base say more: what the pocket skills bear at 135M


WON = "won the race"


@dataclass(frozen=True)
class Rung:
    """The share of the steps an entrant has trained when it is ranked, and how many go on."""

    share: float
    stay: int


RUNGS = (Rung(0.06, 2), Rung(0.33, 1))


@dataclass(frozen=True)
class Standing:
    """An entrant at a rung: its loss and drift as it is, and its gain once it has gone back to the budget."""

    end: Look
    within: Look
    gain: float


class Entrant(Protocol):
    """A recipe in the race."""

    @property
    def name(self) -> str:
        """What the record calls it."""

    def stand(self, share: float, drift_limit: float) -> Standing | None:
        """Train on until this share of the steps and say where it stands; None where its loss is no number any more."""


@dataclass(frozen=True)
class Raced:
    """One entrant's way through the race: its standings, rung by rung, and what became of it."""

    name: str
    standings: tuple[Standing, ...]
    fate: str


def race(
    entrants: Sequence[Entrant],
    drift_limit: float | None,
    rungs: Sequence[Rung] = RUNGS,
    say: Callable[[str], None] = lambda text: None,
) -> tuple[str, tuple[Raced, ...]]:
    """The name of the winner, and every entrant's way.

    Raises: ConfigError where all of them diverge.
    """
    limit = UNKNOWN_LIMIT if drift_limit is None else drift_limit
    field = list(entrants)
    standings: dict[str, list[Standing]] = {entrant.name: [] for entrant in field}
    fates: dict[str, str] = {}
    for rung in rungs:
        for entrant in list(field):
            standing = entrant.stand(rung.share, limit)
            if standing is None:
                fates[entrant.name] = f"diverged before {rung.share:.0%} of its steps"
                say(f"{entrant.name} {fates[entrant.name]}")
                field.remove(entrant)
                continue
            standings[entrant.name].append(standing)
            say(
                f"{entrant.name} at {rung.share:.0%} of its steps: gains {standing.gain:+.4f} nats within the budget, "
                f"at dial {standing.within.alpha:g}"
            )
        if not field:
            raise ConfigError("every recipe diverged: no loss is a number any more; give a lower --lr")
        field.sort(key=lambda entrant: -standings[entrant.name][-1].gain)
        best = standings[field[0].name][-1].gain
        for place, entrant in enumerate(field):
            behind = best - standings[entrant.name][-1].gain
            if place >= rung.stay:
                fates[entrant.name] = f"dropped at {rung.share:.0%} of its steps, {behind:.4f} nats behind"
        field = field[: rung.stay]
    fates[field[0].name] = WON
    ways = tuple(Raced(entrant.name, tuple(standings[entrant.name]), fates[entrant.name]) for entrant in entrants)
    return field[0].name, ways


def standing(look: Callable[[float], Look], base_loss: float, drift_limit: float) -> Standing:
    """Where a model stands: as it is, and gone back until its drift, which grows with the square of the way, fits."""
    end = look(1.0)
    within = end if end.drift <= drift_limit else look(round(math.sqrt(drift_limit / end.drift), 4))
    return Standing(end, within, base_loss - within.loss)
