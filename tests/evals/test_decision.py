"""Within budget or not: by lower bounds, with the reason and what it would take."""

from __future__ import annotations

import pytest

from graftwood.evals.asking import Scores
from graftwood.evals.decision import decide, is_open, items_needed, together, too_few
from graftwood.evals.shares import NOTHING
from graftwood.evals.skills import counts
from graftwood.evals.task import Item, Task


def scores(name: str, right: int, items: int, lost: int = 0, chance: float = 0.0) -> Scores:
    """The first `right` items are right but for the first `lost` of them."""
    task = Task(name, name, "program", 1, chance, "", "", lambda: tuple(Item(f"{n}", "") for n in range(items)))
    return Scores(task, (0.0,) * lost + (1.0,) * (right - lost) + (0.0,) * (items - right))


def pair(*rows: tuple[str, int, int, int]) -> tuple[list[Scores], list[Scores]]:
    before = [scores(name, right, items) for name, right, items, _ in rows]
    return before, [scores(name, right, items, lost) for name, right, items, lost in rows]


def said_otherwise(given: Scores) -> Scores:
    """The same marks for other words."""
    return Scores(given.task, given.right, said=("else",) * len(given.right))


def test_a_model_that_keeps_enough_passes_and_names_its_worst_ability() -> None:
    found = decide(*pair(("a", 600, 800, 2), ("b", 600, 800, 12)), 0.95)
    assert found.passed
    assert found.why == ()
    assert found.kept.value == pytest.approx((598 / 600 + 588 / 600) / 2)
    assert found.worst == "b"
    assert found.worst_kept.value == pytest.approx(588 / 600)
    assert found.items == 1600


def test_the_lower_bound_decides_and_not_the_value() -> None:
    found = decide(*pair(("a", 300, 400, 12)), 0.95)
    assert found.kept.value == 0.96
    assert not found.passed
    (why,) = found.why
    assert "kept 96.0% (95% CI" in why
    assert "the budget is 95.0%" in why
    assert "items" not in why, "there are enough of them"


def test_the_worst_ability_may_break_a_budget_of_its_own() -> None:
    before, after = pair(("held", 390, 400, 0), ("fallen", 300, 400, 30))
    assert decide(before, after, 0.90).passed
    found = decide(before, after, 0.90, worst=0.90)
    assert not found.passed
    assert found.why[0].startswith("fallen kept 90.0%")
    assert "each must keep 90.0%" in found.why[0]


def test_abilities_that_gained_do_not_make_up_for_the_worst() -> None:
    before, after = pair(("fallen", 300, 400, 120))
    low, high = scores("risen", 200, 400), scores("risen", 380, 400)
    assert decide([*before, low], [*after, high], 0.95).passed
    assert not decide([*before, low], [*after, high], 0.95, worst=0.8).passed


def test_too_few_items_are_said_to_be_too_few() -> None:
    before, same = pair(("a", 30, 40, 0))
    found = decide(before, same, 0.95)
    assert found.kept.value == found.kept.low == 1.0, "where nothing at all differs there is nothing to lose"
    moved = [said_otherwise(same[0])]
    found = decide(before, moved, 0.95)
    assert not found.passed
    assert found.needed is not None
    assert found.needed > 40
    assert found.why[0].endswith(f"; 40 items cannot show that, it takes {found.needed} at least, were nothing lost")
    assert found.needed == items_needed(before, 0.95)
    assert decide(before, moved, 1.0).why[0].endswith("; no number of items can show that")


def test_probabilities_decide_where_there_are_any() -> None:
    """Answers flipped both ways alike, but every right answer lost a tenth of its probability."""
    before, after = pair(("a", 300, 400, 0))
    soft = tuple(0.5 + 0.001 * (n % 100) for n in range(400))
    weighed = [Scores(before[0].task, before[0].right, soft)]
    fallen = [Scores(after[0].task, after[0].right, tuple(0.9 * value for value in soft))]
    found = decide(weighed, fallen, 0.95)
    assert found.kept.value == pytest.approx(0.9)
    assert not found.passed
    assert decide(weighed, fallen, 0.89).passed


def test_a_base_at_chance_has_nothing_to_keep() -> None:
    chance = scores("a", 26, 100, chance=0.25)
    found = decide([chance], [chance], 0.9)
    assert not found.passed
    assert found.why == (NOTHING,)
    assert (found.worst, found.worst_kept.value, found.items, found.needed) == (None, None, 0, None)


def test_open_is_what_fails_for_want_of_items_alone() -> None:
    few = pair(("a", 75, 100, 2), ("b", 75, 100, 2))
    assert is_open(decide(*few, 0.95), 0.95)
    assert not is_open(decide(*few, 0.5), 0.5), "it passes"
    assert not is_open(decide(*few, 0.99), 0.99), "the value itself is below the budget"
    fallen = pair(("a", 300, 400, 0), ("b", 300, 400, 60))
    found = decide(*fallen, 0.89, worst=0.9)
    assert found.kept.value == pytest.approx(0.9)
    assert not is_open(found, 0.89, worst=0.9), "the worst ability is below its own"


def test_more_items_stand_beside_those_of_their_task_alone() -> None:
    before, after = pair(("a", 75, 100, 2), ("b", 75, 100, 2))
    more = scores("b", 300, 400), scores("b", 300, 400, 3)
    first = decide(before, after, 0.95)
    found = decide(together(before, more[:1]), together(after, more[1:]), 0.95)
    assert (first.items, found.items) == (200, 600)
    assert found.worst_kept.value == pytest.approx(min(73 / 75, 370 / 375))
    assert [len(own.task.items()) for own in together(before, more[:1])] == [100, 500]
    assert len(before[1].task.items()) == 100


def test_an_ability_that_counted_does_not_drop_out_by_what_it_is_asked_besides() -> None:
    before, after = pair(("weak", 21, 50, 2), ("strong", 80, 100, 0))
    before[0] = scores("weak", 21, 50, chance=0.25)
    more = scores("weak", 16, 60, chance=0.25), scores("weak", 16, 60, 14, chance=0.25)
    both = together(before, more[:1]), together(after, more[1:])
    assert not counts(both[0][0])
    assert decide(*both, 0.8).items == 100
    found = decide(*both, 0.8, counted=["weak", "strong"])
    assert (found.items, found.worst, found.passed) == (210, "weak", False)


def test_a_task_of_nothing_does_not_count() -> None:
    assert not counts(scores("a", 0, 0))
    assert not counts(scores("a", 1, 1)), "one item has no bounds"
    assert counts(scores("a", 5, 5))


def test_what_cannot_be_shown_of_a_model_that_lost_nothing_is_known_before() -> None:
    before, same = pair(("a", 30, 40, 0))
    needed = items_needed(before, 0.95)
    said = too_few(before, 0.95)
    assert said is not None
    start, _, rest = said.partition("; ")
    assert start == "95% of the base must be kept"
    assert rest.startswith(f"40 items cannot show that, it takes {needed} at least, were nothing lost; ")
    most = int(rest.split("; ")[1].partition("%")[0])
    moved = [said_otherwise(same[0])]
    assert decide(before, moved, most / 100).passed
    assert not decide(before, moved, most / 100 + 0.01).passed
    assert too_few(before, most / 100) is None
    assert (
        too_few(before, 1.0)
        == f"100% of the base must be kept; no number of items can show that; {rest.split('; ')[1]}"
    )
    assert too_few(together(before, [scores("a", 300, 400)]), 0.95) is None


def test_the_worst_ability_needs_items_of_its_own() -> None:
    before, _ = pair(("many", 300, 400, 0), ("few", 30, 40, 0))
    assert too_few(before, 0.8) is None
    said = too_few(before, 0.8, worst=0.95)
    assert said is not None
    assert said.startswith("95% of few must be kept; 40 items cannot show that, it takes ")
    assert too_few([scores("a", 26, 100, chance=0.25), before[0]], 0.9, worst=0.9) is None, "what is at chance is aside"
