"""The race: who gains most within the budget goes on, and who diverges is out."""

from __future__ import annotations

import pytest

from graftwood.choose.dial import Look
from graftwood.choose.race import RUNGS, WON, Standing, race, standing
from graftwood.errors import ConfigError


class Runner:
    """An entrant with these gains, rung by rung; None is where it diverges."""

    def __init__(self, name: str, *gains: float | None) -> None:
        self.name = name
        self.gains = dict(zip((rung.share for rung in RUNGS), gains, strict=False))

    def stand(self, share: float, drift_limit: float) -> Standing | None:
        gain = self.gains[share]
        return None if gain is None else Standing(Look(1.0, 2 - gain, 0.1), Look(0.5, 2 - gain, drift_limit), gain)


def test_the_most_gain_goes_on_and_wins() -> None:
    field = [Runner("a", 0.1), Runner("b", 0.2, 0.3), Runner("c", 0.3, 0.2), Runner("d", 0.15, 0.1)]
    winner, ways = race(field, None)
    assert winner == "b"
    assert [way.fate for way in ways] == [
        "dropped at 6% of its steps, 0.2000 nats behind",
        WON,
        "dropped at 33% of its steps, 0.1000 nats behind",
        "dropped at 6% of its steps, 0.1500 nats behind",
    ]


def test_who_diverges_is_out_and_the_race_goes_on() -> None:
    winner, ways = race([Runner("a", 0.1, 0.1), Runner("b", None), Runner("c", 0.3, None)], 0.02)
    assert winner == "a"
    assert [way.fate for way in ways] == [WON, "diverged before 6% of its steps", "diverged before 33% of its steps"]
    assert [len(way.standings) for way in ways] == [2, 0, 1]


def test_a_race_that_nobody_survives_says_so() -> None:
    with pytest.raises(ConfigError, match=r"every recipe diverged.*give a lower --lr"):
        race([Runner("a", None), Runner("b", None)], None)


def test_it_goes_back_as_far_as_the_drift_asks() -> None:
    found = standing(lambda alpha: Look(alpha, 2 - alpha, 0.08 * alpha**2), base_loss=2.0, drift_limit=0.02)
    assert found.within.alpha == 0.5
    assert found.gain == pytest.approx(0.5)
