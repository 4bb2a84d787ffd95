"""The picture of gain against kept: every name is inside it, and names of near places do not cover each other."""

from __future__ import annotations

import re

import pytest
from card_samples import raced

from graftwood.evals.card import Estimate
from graftwood.evals.svgkit import PAPER, extent
from graftwood.evals.tradeoff import COLOURS, SHIPPED, Curve, Point, choice_curves, looks_svg, tradeoff_svg

Box = tuple[float, float, float, float]


def boxes(svg: str, names: list[str]) -> list[Box]:
    """Where each of the names stands, by the widths that the picture itself reckons with."""
    found = []
    for x, y, rest, words in re.findall(r'<text x="([\d.-]+)" y="([\d.-]+)" ([^>]*)>([^<]*)</text>', svg):
        if words in names:
            left = float(x) - (extent(words, 11) if "end" in rest else 0)
            found.append((left, float(y) - 8, left + extent(words, 11), float(y)))
    return found


def near(count: int, named: bool) -> list[Curve]:
    return [
        Curve(
            f"run {number:02d}",
            (Point(Estimate(value=1.0 + 0.002 * number, n=9), 1.0, f"run {number:02d}" if named else ""),),
        )
        for number in range(count)
    ]


@pytest.mark.parametrize("count", [1, 5, 12, 24])
def test_names_above_stay_within_the_picture(count: int) -> None:
    svg = tradeoff_svg(near(count, named=False), "nats")
    width, height = map(float, re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)[0])
    found = boxes(svg, [curve.name for curve in near(count, named=False)])
    assert len(found) == count
    assert all(left >= 0 and right <= width and top >= 0 and bottom <= height for left, top, right, bottom in found)


@pytest.mark.parametrize("count", [2, 4, 6])
def test_points_that_bear_their_names_have_them_once_and_apart(count: int) -> None:
    curves = near(count, named=True)
    found = boxes(tradeoff_svg(curves, "nats"), [curve.name for curve in curves])
    assert len(found) == count, "no second list of the names above"
    for number, one in enumerate(found):
        for other in found[:number]:
            assert one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]


def test_every_recipe_of_a_race_has_a_curve_as_it_left() -> None:
    choice = raced()
    svg = looks_svg(choice, "nats")
    routes = {
        colour: [tuple(map(float, place.split())) for place in route.split("L")]
        for route, colour in re.findall(r'<path d="M([^"]*)" fill="none" stroke="([^"]*)"', svg)
    }
    assert list(routes) == list(COLOURS[: len(choice.arms)])
    assert [len(route) for route in routes.values()] == [3, 2, 4, 3], "the base, and the places of the last standing"
    assert len({route[0] for route in routes.values()}) == 1
    for route in routes.values():
        assert [x for x, _ in route] == sorted(x for x, _ in route), "drift grows outwards"
    width, height = map(float, re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)[0])
    assert all(0 <= x <= width and 0 <= y <= height for route in routes.values() for x, y in route)
    names = [f"{arm.name}{left}" for arm, left in zip(choice.arms, (" (33%)", " (6%)", "", " (6%)"), strict=True)]
    assert len(boxes(svg, names)) == len(names)
    assert "dial 1, over budget" in svg
    assert "dial 0.75, shipped" in svg
    (x, y), *_ = re.findall(rf'<circle cx="([\d.]+)" cy="([\d.]+)" r="7" fill="{SHIPPED}"', svg)
    assert (float(x), float(y)) == routes[COLOURS[2]][2]
    looked = len(re.findall(rf'r="4" fill="{PAPER}"', svg))
    assert looked == 2 + 1 + 1 + 2, "what was not certified is hollow"


def test_the_worst_ability_has_a_line_and_points_of_its_own() -> None:
    choice = raced()
    both = tradeoff_svg(choice_curves(choice), "nats", choice.budget, choice.worst_budget)
    assert len(boxes(both, ["worst ability 90%", "budget 95%"])) == 2
    hollow = rf'<circle [^>]*r="3.5" fill="{PAPER}"'
    assert len(re.findall(hollow, both)) == 2
    alone = choice.model_copy(update={"worst_budget": None})
    svg = tradeoff_svg(choice_curves(alone), "nats", alone.budget, alone.worst_budget)
    assert "worst ability" not in svg
    assert not re.findall(hollow, svg)


def test_a_choice_without_a_place_or_a_gain_is_drawn() -> None:
    choice = raced()
    none = choice.model_copy(update={"arms": ()})
    assert "no place was looked at" in looks_svg(none, "nats")
    worse = choice.model_copy(update={"base_loss": 0.5, "shipped": None, "dial": None})
    assert looks_svg(worse, "nats").count("<path") == 4
    moved = choice.arms[1].candidates[0].model_copy(update={"drift": 0.0})
    still = choice.model_copy(update={"arms": (choice.arms[1].model_copy(update={"candidates": (moved,)}),)})
    assert "nan" not in looks_svg(still, "nats")
