"""Losses of the same rows before and after become the three views of memory and one verdict."""

from __future__ import annotations

import numpy as np
import pytest

from graftwood.evals.lights import lights
from graftwood.evals.memorisation import TRIES, memory


def losses(*means: float, tokens: int = 8) -> list[tuple[float, int]]:
    return [(value * tokens, tokens) for value in means]


def spread(middle: float) -> list[tuple[float, int]]:
    return losses(*(middle * (0.9 + 0.2 * n / 19) for n in range(20)))


def test_memory_is_made_of_the_right_sides() -> None:
    found = memory(spread(3.0), spread(1.0), spread(4.0), spread(2.5))
    assert [found.loss_train.value, found.loss_heldout.value] == pytest.approx([1.0, 2.5])
    assert found.ratio.value == pytest.approx(2.5)
    gains = [
        [before - after for before, after in zip(b, a, strict=True)]
        for b, a in (
            ([t for t, _ in spread(3.0)], [t for t, _ in spread(1.0)]),
            ([t for t, _ in spread(4.0)], [t for t, _ in spread(2.5)]),
        )
    ]
    won = [1.0 if one > other else 0.5 if one == other else 0.0 for one in gains[0] for other in gains[1]]
    assert found.membership_auc.value == pytest.approx(sum(won) / len(won))


@pytest.mark.parametrize(
    ("ratio", "verdict"),
    [
        (0.75, "clean"),
        (1.1875, "clean"),
        (1.25, "mild"),
        (1.4375, "mild"),
        (1.5625, "moderate"),
        (1.9375, "moderate"),
        (2.0625, "severe"),
    ],
)
def test_the_verdict_follows_the_ratio(ratio: float, verdict: str) -> None:
    """Every row's loss fell by one half, so nothing tells members apart: the ratio alone decides."""
    train, heldout = losses(*[1.0] * 20), losses(*[ratio] * 20)
    found = memory(losses(*[1.5] * 20), train, losses(*[ratio + 0.5] * 20), heldout)
    assert found.ratio.value == ratio
    assert found.membership_auc.value == 0.5
    assert found.verdict == verdict


@pytest.mark.parametrize(("told", "verdict"), [(60, "clean"), (70, "mild"), (85, "moderate"), (98, "severe")])
def test_the_verdict_follows_who_can_be_told_apart(told: int, verdict: str) -> None:
    """Of 100 rows `told` fell further than any held-out one, the others less: the area is that share."""
    train = losses(*[0.99] * told, *[1.01] * (100 - told))
    found = memory(losses(*[2.0] * 100), train, losses(*[2.0] * 100), losses(*[1.0] * 100))
    assert found.membership_auc.value == pytest.approx(told / 100)
    assert found.verdict == verdict


@pytest.mark.parametrize(("rows", "verdict"), [(2, "clean"), (3, "severe"), (20, "severe")])
def test_too_few_rows_to_be_told_apart_raise_no_verdict(rows: int, verdict: str) -> None:
    """All trained rows fell further than the others, which two of two do in one case of six by chance alone."""
    same = losses(*[2.0] * rows)
    found = memory(same, losses(*[0.99] * rows), same, losses(*[1.0] * rows))
    assert found.membership_auc.value == 1.0
    assert found.verdict == lights(found)[1].level == verdict
    assert lights(found)[1].shown == "1.00"


def test_extractable_is_what_a_hundred_samples_would_show() -> None:
    """An answer of probability p shows up in 100 samples with probability 1 - (1 - p)^100: one half at p = 0.0069."""
    edge = 1 - 0.5 ** (1 / TRIES)
    tuned = [(-float(np.log(edge * 1.01)), 30), (-float(np.log(edge * 0.99)), 1), (0.0, 5), (50.0, 40)]
    assert 1 - (1 - edge) ** TRIES == pytest.approx(0.5)
    found = memory([(90.0, 10)] * 4, tuned, [(90.0, 10)] * 4, [(90.0, 10)] * 4)
    assert found.extractable.value == 0.5
    assert found.extractable_base.value == found.extractable_heldout.value == 0.0


def test_losses_of_nothing_at_all_do_not_divide_by_zero() -> None:
    found = memory(spread(2.0), losses(*[0.0] * 20), spread(2.0), spread(1.0))
    assert found.verdict == "severe"
    assert found.ratio.value is not None
    assert np.isfinite([found.ratio.value, found.ratio.high]).all()
    assert memory(spread(2.0), losses(*[0.0] * 20), spread(2.0), losses(*[0.0] * 20)).ratio.value == 1.0


@pytest.mark.parametrize("rows", [0, 1])
def test_too_few_rows_have_no_verdict(rows: int) -> None:
    few = losses(*[1.0] * rows)
    found = memory(few, few, spread(1.0), spread(1.0))
    assert (found.verdict, found.ratio.value, found.membership_auc.value) == ("unknown", None, None)
