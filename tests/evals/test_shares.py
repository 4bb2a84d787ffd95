"""The kept share: a ratio of sums, an interval that does not collapse where nothing was seen, items a budget needs."""

from __future__ import annotations

import numpy as np
import pytest

from graftwood.evals.shares import NOTHING, Share, items_needed, kept

Columns = list[list[float]]


def shares(tuned: Columns, base: Columns, floors: list[float]) -> list[Share]:
    parts = zip(tuned, base, floors, strict=True)
    return [Share.of(np.array(t), np.array(b), floor, range(len(t))) for t, b, floor in parts]


def test_abilities_count_alike_however_much_room_they_have() -> None:
    base = [[1.0, 1.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0]]
    tuned = [[1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 1.0]]
    found = kept(shares(tuned, base, [0.25, 0.0]))
    assert found.value == pytest.approx(((0.5 - 0.25) / (0.75 - 0.25) + 0.5 / 0.25) / 2)
    assert found.n == 8


def test_probabilities_that_hardly_move_say_more_than_answers() -> None:
    """The same means: what moves a little everywhere has a narrow interval, what flips here and there a wide one."""
    base, tuned = [1.0] * 60 + [0.0] * 40, [0.0] * 3 + [1.0] * 57 + [0.0] * 40
    flipped = kept(shares([tuned], [base], [0.0]))
    weighed = kept(
        shares([[value * 0.95 * 0.9 + 0.01 for value in base]], [[value * 0.9 + 0.01 for value in base]], [0.0])
    )
    widths = [(found.high or 0.0) - (found.low or 0.0) for found in (flipped, weighed)]
    assert widths[1] < widths[0] / 5


@pytest.mark.parametrize(
    ("tuned", "base", "floors"),
    [([], [], []), ([[1.0] * 4], [[0.0] * 4], [0.0]), ([[1.0] * 4], [[1.0] * 4], [1.0])],
)
def test_nothing_above_chance_has_no_share(tuned: Columns, base: Columns, floors: list[float]) -> None:
    found = kept(shares(tuned, base, floors))
    assert (found.value, found.low, found.high, found.note) == (None, None, None, NOTHING)


def test_where_nothing_flipped_all_is_kept_as_far_as_so_many_items_tell() -> None:
    base = [1.0] * 70 + [0.0] * 30
    few, many = (kept(shares([base * times], [base * times], [0.0])) for times in (1, 10))
    assert few.value == many.value == 1.0
    assert few.low is not None
    assert many.low is not None
    assert 0.94 < few.low < 0.95
    assert 0.994 < many.low < 0.995


def test_a_wide_base_widens_and_a_second_ability_narrows() -> None:
    base, tuned = [1.0] * 60 + [0.0] * 40, [1.0] * 50 + [0.0] * 40 + [1.0] * 10
    one, two = kept(shares([tuned], [base], [0.25])), kept(shares([tuned] * 2, [base] * 2, [0.25] * 2))
    wide, narrow = ((e.high or 0.0) - (e.low or 0.0) for e in (one, two))
    assert narrow == pytest.approx(wide / np.sqrt(2), rel=0.05)


def test_with_that_many_items_an_untouched_model_just_passes() -> None:
    base = [1.0] * 12 + [0.0] * 8
    needed = items_needed(shares([base], [base], [0.25]), 0.95)
    assert needed is not None
    for count, passes in ((0.9 * needed, False), (1.1 * needed, True)):
        many = base * round(count / len(base))
        low = kept(shares([many], [many], [0.25])).low
        assert low is not None
        assert (low >= 0.95) == passes


def test_a_higher_budget_needs_more_items_and_all_of_it_more_than_there_are() -> None:
    base = [1.0] * 40 + [0.0] * 60
    needs = [items_needed(shares([base], [base], [0.0]), budget) for budget in (0.8, 0.9, 0.95, 0.99)]
    assert None not in needs
    assert needs == sorted(needs)  # type: ignore[type-var]
    assert items_needed(shares([base], [base], [0.0]), 1.0) is None
    assert items_needed([], 0.9) is None


def test_an_ability_that_gained_widens_no_lower_bound() -> None:
    generator = np.random.default_rng(0)
    base = generator.beta(2, 3, 50)
    gained = base + generator.uniform(0.0, 0.6, 50) * (1 - base)
    both = shares([gained, base], [base, base], [0.25, 0.0])
    alone = kept(both[:1])
    assert alone.value is not None
    assert alone.low is not None
    assert alone.high is not None
    assert alone.value > 1.2
    assert alone.high - alone.low > 0.2
    low = kept(both).low
    assert low is not None
    assert low > 0.99
