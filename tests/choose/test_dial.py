"""The search along the way: never over the budget, near the best place that holds, few certificates."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graftwood.choose.dial import TRIES, Look, settle
from graftwood.evals.card import Decision, Estimate

BASE = 2.5
NOTHING = Estimate(value=None)


class Straight:
    """A way whose loss is least at `best`, whose drift grows with the square, and which holds up to `edge`."""

    def __init__(self, edge: float, best: float = 1.0, gain: float = 1.0, drift: float = 0.1) -> None:
        self.edge, self.best, self.gain, self.drift = edge, best, gain, drift
        self.asked: list[float] = []
        self.looked: list[float] = []

    def loss(self, alpha: float) -> float:
        return BASE - self.gain * (1 - (alpha / self.best - 1) ** 2)

    def look(self, alpha: float) -> Look:
        self.looked.append(alpha)
        return Look(alpha, self.loss(alpha), self.drift * alpha**2)

    def certify(self, alpha: float) -> Decision:
        self.asked.append(alpha)
        kept = Estimate(value=1.0, low=0.95 + 0.1 * (self.edge - alpha), high=1.0)
        return Decision(kept=kept, worst="x", worst_kept=NOTHING, passed=alpha <= self.edge)


def test_where_all_is_kept_one_certificate_is_enough() -> None:
    way = Straight(edge=1.0)
    settled = settle(way, BASE, 0.95, answer=10.0)
    assert (settled.shipped, way.asked) == (1.0, [1.0])
    assert [look.alpha for look in settled.looks] == [1.0, 0.75], "what is worse than far away is not followed"


def test_a_place_further_back_may_be_the_best() -> None:
    way = Straight(edge=1.0, best=0.6)
    assert settle(way, BASE, 0.95, answer=10.0).shipped == 0.5
    assert way.asked == [0.5]
    assert way.looked == [1.0, 0.75, 0.5, 0.25], "where the nearest place is the best, the next one nearer is looked at"


@settings(deadline=None)
@given(edge=st.floats(0.1, 1.0), best=st.floats(0.4, 2.0), limit=st.none() | st.floats(1e-3, 1.0))
def test_what_is_shipped_holds_and_has_most_of_what_can_be_had(edge: float, best: float, limit: float | None) -> None:
    way = Straight(edge, best)
    settled = settle(way, BASE, 0.95, limit, answer=10.0)
    assert settled.shipped is not None
    assert settled.decisions[settled.shipped].passed
    assert len(way.asked) == len(set(way.asked)) <= TRIES
    assert set(settled.decisions) <= {look.alpha for look in settled.looks}
    assert len(way.looked) == len(set(way.looked))
    reachable = min(edge, min((look.loss, look.alpha) for look in settled.looks)[1])
    assert BASE - way.loss(settled.shipped) >= 0.5 * (BASE - way.loss(reachable))


def test_what_is_known_of_the_base_saves_certificates() -> None:
    cold, warm = Straight(edge=0.3), Straight(edge=0.3)
    settle(cold, BASE, 0.95, answer=10.0)
    settled = settle(warm, BASE, 0.95, drift_limit=0.1 * 0.29**2, answer=10.0)
    assert warm.asked[0] == pytest.approx(0.29, abs=1e-4)
    assert settled.shipped is not None
    assert cold.asked[0] == 1.0


def test_where_nothing_holds_nothing_is_shipped() -> None:
    way = Straight(edge=-1.0)
    settled = settle(way, BASE, 0.95, answer=10.0)
    assert settled.shipped is None
    assert len(way.asked) == TRIES
    assert way.asked == sorted(way.asked, reverse=True)


def test_without_a_gain_nothing_is_asked() -> None:
    way = Straight(edge=1.0, gain=-1.0)
    assert settle(way, BASE, 0.95, answer=10.0).shipped is None
    assert way.asked == []


def test_it_stops_where_nearly_all_of_the_gain_is_had() -> None:
    way = Straight(edge=0.9, gain=1.0)
    settled = settle(way, BASE, 0.95, answer=10.0)
    assert settled.shipped is not None
    assert settled.shipped >= 0.75
    assert BASE - way.loss(settled.shipped) >= 0.9


class Certain(Straight):
    """The same, all of the base kept at the base itself."""

    def certify(self, alpha: float) -> Decision:
        low = 1 - 0.05 * alpha / self.edge
        self.asked.append(alpha)
        return Decision(kept=Estimate(low=low, value=1.0), worst="x", worst_kept=NOTHING, passed=low >= 0.95)


@pytest.mark.parametrize("edge", [0.3, 0.6, 0.9])
def test_the_second_certificate_is_tried_where_the_bounds_meet_the_budget(edge: float) -> None:
    way = Certain(edge)
    settled = settle(way, BASE, 0.95, answer=10.0)
    assert way.asked[:2] == [1.0, pytest.approx(0.9 * edge, abs=1e-4)]
    assert settled.shipped in way.asked[1:]
    assert len(way.asked) == 2, "the line cannot win much more"


@pytest.mark.parametrize(("edge", "second"), [(0.76, 0.75), (0.8, 0.75), (0.84, 0.756), (0.7, 0.63)])
def test_a_place_that_was_seen_is_tried_where_it_is_as_good(edge: float, second: float) -> None:
    way = Certain(edge)
    settle(way, BASE, 0.95, answer=10.0)
    assert way.asked == [1.0, pytest.approx(second, abs=1e-4)]
    assert way.looked == [1.0, 0.75, *([] if second == 0.75 else way.asked[1:])]


def test_what_fails_for_its_worst_ability_alone_is_halved() -> None:
    class Worst(Straight):
        def certify(self, alpha: float) -> Decision:
            self.asked.append(alpha)
            kept = Estimate(value=1.0, low=0.97)
            return Decision(kept=kept, worst="x", worst_kept=NOTHING, passed=alpha <= self.edge)

    way = Worst(edge=0.6)
    settle(way, BASE, 0.95, answer=10.0)
    assert way.asked[:3] == [1.0, 0.5, 0.75]


@pytest.mark.parametrize(
    ("best", "answer", "shipped"),
    [
        (0.9, 1.0, 0.75),  # short of it by 2% of the gain
        (0.9, 40.0, 1.0),  # and of a long answer's chance by two thirds
        (1.0, 1.0, 1.0),  # by 6% of the gain
    ],
)
def test_a_place_nearer_is_as_good_where_little_is_lost_of_the_gain_and_of_an_answer(
    best: float, answer: float, shipped: float
) -> None:
    assert settle(Straight(edge=1.0, best=best), BASE, 0.95, answer=answer).shipped == shipped


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.8, 0.9, 0.96, 0.99, 1.0])
def test_where_nothing_fails_what_earlier_runs_found_does_not_change_what_is_shipped(share: float) -> None:
    cold = settle(Straight(edge=1.0), BASE, 0.95, answer=40.0)
    way = Straight(edge=1.0)
    assert settle(way, BASE, 0.95, share * way.drift, answer=40.0).shipped == cold.shipped == 1.0
    assert way.asked[-1] == 1.0
