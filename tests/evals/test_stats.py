"""Intervals hold the truth as often as they say, and the numbers inside them are the plain ones."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graftwood.evals.card import Estimate
from graftwood.evals.stats import Pooled, area_under_curve, change, holm, mcnemar, mean, student, two_sample

scores = st.lists(st.floats(-5, 5).map(lambda value: round(value, 1)), min_size=1, max_size=12)


def inside(value: float | None, estimate: Estimate) -> bool:
    assert value is not None
    assert estimate.low is not None
    assert estimate.high is not None
    return estimate.low <= value <= estimate.high


def test_intervals_of_clustered_items_hold_the_truth() -> None:
    """60 items in 30 passages of unequal size; what a passage is like moves all of its items."""
    generator = np.random.default_rng(0)
    units = [passage for passage in range(30) for _ in range(1 + passage % 3)]
    held = naive = 0
    for _ in range(400):
        luck = generator.normal(0, 1.0, size=30)
        right = (generator.normal(0, 1.0, size=len(units)) + luck[units] > 0).astype(float)
        whole, apart = mean(right, units), mean(right)
        held += inside(0.5, whole)
        naive += inside(0.5, apart)
    assert 0.90 <= held / 400 <= 0.98
    assert naive < held, "items of one passage are not independent"


def test_nothing_and_one_thing_have_no_interval() -> None:
    nothing, one, one_cluster = mean([]), mean([0.25]), mean([1.0, 0.0, 0.0, 1.0], ["a"] * 4)
    assert (nothing.value, nothing.low, nothing.n) == (None, None, 0)
    assert (one.value, one.low, one.high, one.n) == (0.25, None, None, 1)
    assert (one_cluster.value, one_cluster.low, one_cluster.n) == (0.5, None, 4)
    assert all(estimate.note for estimate in (nothing, one, one_cluster))


@pytest.mark.parametrize("value", [0.0, 1.0, 0.3])
def test_equal_items_have_an_interval_of_no_width(value: float) -> None:
    found = mean([value] * 7)
    assert [found.value, found.low, found.high] == pytest.approx([value] * 3, abs=1e-12)


@given(scores, st.data())
def test_a_mean_is_the_mean_and_lies_in_its_interval(values: list[float], data: st.DataObject) -> None:
    units = data.draw(st.lists(st.integers(0, 4), min_size=len(values), max_size=len(values)))
    found = mean(values, units)
    assert found.value == pytest.approx(np.mean(values), abs=1e-9)
    assert found.n == len(values)
    if found.low is not None and found.high is not None:
        assert found.low - 1e-9 <= found.value <= found.high + 1e-9 or len(set(units)) < 4
        assert min(values) - 1e-9 <= found.low <= found.high <= max(values) + 1e-9


def test_an_interval_is_a_property_of_the_data() -> None:
    values = list(np.random.default_rng(2).normal(size=40))
    assert mean(values) == mean(values)


@given(scores, scores)
def test_the_area_is_the_share_of_pairs_won(positive: list[float], negative: list[float]) -> None:
    wins = [1.0 if p > n else 0.5 if p == n else 0.0 for p in positive for n in negative]
    assert area_under_curve(np.array(positive), np.array(negative)) == pytest.approx(sum(wins) / len(wins))


def test_students_quantiles_are_the_tables() -> None:
    table = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 10: 2.228, 17: 2.110, 30: 2.042, 120: 1.980, 1e9: 1.960}
    for freedom, wanted in table.items():
        assert student(0.975, freedom) == pytest.approx(wanted, rel=0.012)
        assert student(0.025, freedom) == pytest.approx(-student(0.975, freedom))


def test_no_flip_among_n_items_leaves_a_change_of_about_four_in_n_possible() -> None:
    """The rule of three, two-sided: what was not seen among 100 items may still happen to 3.8 of 100."""
    right = [1.0, 0.0] * 50
    found = change(right, right, range(100))
    assert found.value == 0.0
    assert found.high == pytest.approx(student(0.975, 99) ** 2 / 100, rel=1e-6)
    assert found.low == -found.high
    assert found.high == pytest.approx(0.039, abs=1e-3)


def test_scores_that_are_no_flips_imply_none() -> None:
    soft = np.array([0.3, 0.7, 0.5, 0.6])
    found = change(soft + 0.1, soft, range(4))
    assert [found.value, found.low, found.high] == pytest.approx([0.1] * 3, abs=1e-9)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=40))
def test_the_interval_of_a_change_is_that_of_its_opposite_turned(pairs: list[tuple[bool, bool]]) -> None:
    before, after = ([float(pair[side]) for pair in pairs] for side in (0, 1))
    there, back = change(after, before, range(len(pairs))), change(before, after, range(len(pairs)))
    assert there.value == pytest.approx(np.mean(after) - np.mean(before))
    assert inside(there.value, there)
    assert back.high is not None
    assert there.low == pytest.approx(-back.high, abs=1e-9)
    assert -1.0 <= (there.low or 0.0) <= (there.high or 0.0) <= 1.0


def test_clusters_widen_the_interval_of_a_change() -> None:
    before = np.ones(100)
    after = np.repeat(np.arange(20) % 5 != 0, 5).astype(float)
    whole, apart = change(after, before, [n // 5 for n in range(100)]), change(after, before, range(100))
    assert whole.value == apart.value == pytest.approx(-0.2)
    assert whole.high - whole.low > 1.8 * (apart.high - apart.low)


@pytest.mark.parametrize(
    ("lost", "won", "p"), [(0, 0, 1.0), (1, 0, 1.0), (5, 5, 1.0), (6, 0, 2 / 64), (0, 6, 2 / 64), (9, 1, 22 / 1024)]
)
def test_mcnemar_counts_the_ways_flips_can_fall(lost: int, won: int, p: float) -> None:
    assert mcnemar(lost, won) == pytest.approx(p)


def test_holm_corrects_for_the_size_of_the_family_and_keeps_the_order() -> None:
    assert holm([]) == []
    assert holm([0.03]) == [0.03]
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.5, 0.9, 0.001]) == pytest.approx([1.0, 1.0, 0.003])


def test_pooled_weighs_rows_by_their_tokens() -> None:
    base, tuned = Pooled(np.array([10.0, 2.0]), np.array([5, 20])), Pooled(np.array([5.0, 4.0]), np.array([5, 20]))
    assert base.mean().value == 12 / 25
    assert tuned.minus(base).mean().value == pytest.approx((9 - 12) / 25)
    assert base.mean().n == 2
    assert Pooled(np.array([3.0]), np.array([2])).mean().value == 1.5
    assert Pooled(np.array([]), np.array([])).mean().value is None


def test_pooled_resamples_rows() -> None:
    """Twenty tokens of one row are one draw: the interval is as wide as two rows make it."""
    found = Pooled(np.array([0.0, 20.0]), np.array([20, 20])).mean()
    assert (found.low, found.value, found.high) == (0.0, 0.5, 1.0)


@pytest.mark.parametrize("statistic", [area_under_curve, lambda a, b: float(a.mean() / b.mean())])
def test_two_samples_need_two_rows_each(statistic: Callable[[np.ndarray, np.ndarray], float]) -> None:
    few, many = np.array([1.0]), np.linspace(1, 2, 30)
    for first, second in ((few, many), (many, few), (np.array([]), np.array([]))):
        found = two_sample(statistic, first, second, "too few")
        assert (found.value, found.low, found.note) == (None, None, "too few")
    found = two_sample(statistic, many, many, "too few")
    assert inside(found.value, found)
    assert found.n == 60
