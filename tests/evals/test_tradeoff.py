"""The picture of gain against kept: every name is inside it, and names of near places do not cover each other."""

from __future__ import annotations

import re

import pytest

from graftwood.evals.card import Estimate
from graftwood.evals.svgkit import extent
from graftwood.evals.tradeoff import Curve, Point, tradeoff_svg

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
