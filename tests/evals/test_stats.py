"""Intervals hold the truth as often as they say, and the numbers inside them are the plain ones."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graftwood.evals.card import Estimate
from graftwood.evals.stats import Pooled, area_under_curve, mean, ratio_of_sums, two_sample

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


def test_intervals_of_a_kept_share_hold_the_truth() -> None:
    """Two skills, base right at 70% and 60% of the items, a tenth of what was right is lost: 90% of the sum is left."""
    generator = np.random.default_rng(1)
    held = 0
    for _ in range(200):
        base = [(generator.random(60) < share).astype(float) for share in (0.7, 0.6)]
        tuned = [b * (generator.random(60) < 0.9) for b in base]
        found = ratio_of_sums(tuned, base, [0.0, 0.0], [range(60)] * 2)
        held += inside(0.9, found)
    assert 0.90 <= held / 200 <= 0.98


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


def test_ratio_of_sums_is_not_the_mean_of_ratios() -> None:
    base = [np.array([1.0, 1.0, 1.0, 0.0]), np.array([1.0, 0.0, 0.0, 0.0])]
    tuned = [np.array([1.0, 1.0, 0.0, 0.0]), np.array([1.0, 0.0, 0.0, 1.0])]
    found = ratio_of_sums(tuned, base, [0.25, 0.0], [range(4)] * 2)
    assert found.value == pytest.approx(((0.5 - 0.25) + 0.5) / ((0.75 - 0.25) + 0.25))
    assert found.n == 8


def test_what_has_not_changed_is_kept_exactly() -> None:
    generator = np.random.default_rng(3)
    base = [(generator.random(50) < 0.7).astype(float) for _ in range(3)]
    found = ratio_of_sums(base, base, [0.25] * 3, [[n // 2 for n in range(50)]] * 3)
    assert (found.value, found.low, found.high) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("tuned", "base", "floors"),
    [([], [], []), ([np.ones(4)], [np.zeros(4)], [0.0]), ([np.ones(4)], [np.ones(4)], [1.0])],
)
def test_nothing_above_chance_has_no_share(
    tuned: list[np.ndarray], base: list[np.ndarray], floors: list[float]
) -> None:
    found = ratio_of_sums(tuned, base, floors, [range(4)] * len(base))
    assert (found.value, found.low, found.high) == (None, None, None)
    assert found.note


def test_groups_are_resampled_independently() -> None:
    """Two skills whose items rise and fall together by their place would be paired if they shared their draws."""
    base = np.ones(100)
    tuned = np.array([0.0, 1.0] * 50)
    pair = ratio_of_sums([tuned, tuned], [base, base], [0.0, 0.0], [range(100)] * 2)
    one = ratio_of_sums([tuned], [base], [0.0], [range(100)])
    width, alone = (e.high - e.low for e in (pair, one) if e.high is not None and e.low is not None)
    assert width == pytest.approx(alone / np.sqrt(2), rel=0.12)


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
