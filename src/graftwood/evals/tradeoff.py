"""What was gained against what was kept, as one picture: a curve an arm from the base to where training ended."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from graftwood.evals.card import Choice, Estimate
from graftwood.evals.svgkit import FAINT, HAIR, INK, PAPER, SOFT, Anchor, Canvas, Scale, extent, labels, ticks

COLOURS = ("#1d4ed8", "#b45309", "#7c3aed", "#0f766e", "#be123c", "#4d7c0f", "#a21caf", "#334155")
BUDGET, SHIPPED = "#b91c1c", "#15803d"
_WIDTH, _HEIGHT, _TOP, _LEFT = 720, 420, 60, 70.0
_LINE, _ROOM = 16, 200  # of the names above: from line to line, and as wide as one may be


@dataclass(frozen=True)
class Point:
    """One place on an arm's way: its kept share with its interval, and its gain."""

    kept: Estimate
    gain: float
    label: str = ""
    shipped: bool = False


@dataclass(frozen=True)
class Curve:
    """An arm by name, its places from the base outwards."""

    name: str
    points: tuple[Point, ...]


def choice_curves(choice: Choice) -> tuple[Curve, ...]:
    """The certified places of every arm, the gain as the fall of validation loss."""
    curves = []
    for arm in choice.arms:
        points = [
            Point(
                one.decision.kept,
                choice.base_loss - one.loss,
                f"dial {one.dial:g}",
                shipped=arm.name == choice.shipped and one.dial == choice.dial,
            )
            for one in sorted(arm.candidates, key=lambda candidate: candidate.dial)
            if one.decision is not None and one.decision.kept.value is not None
        ]
        curves.append(Curve(arm.name, tuple(points)))
    return tuple(curves)


def tradeoff_svg(curves: Sequence[Curve], gain: str, budget: float | None = None) -> str:
    """Kept share across, gain upwards in the unit `gain` names; the base is at 100% and 0, and the budget is shaded."""
    lines = _lines(curves)
    top, height = _TOP + _LINE * (len(lines) - 1), _HEIGHT + _LINE * (len(lines) - 1)
    canvas = Canvas(_WIDTH, height, "What was gained against what was kept of the base")
    every = [point for curve in curves for point in curve.points]
    if not every:
        canvas.text(24, 40, "nothing to draw: neither a gain nor a kept share was measured", size=13, fill=SOFT)
        return canvas.svg()
    kept = [edge for p in every for edge in (p.kept.value, p.kept.low, p.kept.high) if edge is not None]
    across = Scale.over([*kept, 1.0, *([budget] if budget else [])], _LEFT, _WIDTH - 30)
    up = Scale.over([p.gain for p in every], height - 60, top, zero=True)
    _frame(canvas, across, up, gain)
    if budget is not None:
        canvas.rect(across.start, top, across(budget) - across.start, up.start - top, BUDGET, opacity=0.06)
        canvas.line(across(budget), top, across(budget), up.start, BUDGET, 1.5)
        # At the top, where it stays clear of the base; on the side where no model may be, if that is wide enough.
        roomy = across(budget) - across.start > 100
        side: tuple[float, Anchor] = (-6, "end") if roomy else (6, "start")
        label = f"budget {100 * budget:.4g}%"
        canvas.text(across(budget) + side[0], top + 14, label, size=11, fill=BUDGET, anchor=side[1])
    words = _Words(canvas)
    for curve in curves:
        words.keep_clear((across(point.kept.value or 0.0), up(point.gain)) for point in curve.points)
    for number, curve in enumerate(curves):
        _curve(canvas, curve, across, up, COLOURS[number % len(COLOURS)])
    for number, curve in enumerate(curves):  # over all lines
        for point in curve.points:
            label = f"{point.label}, shipped" if point.shipped else point.label
            colour = SHIPPED if point.shipped else COLOURS[number % len(COLOURS)]
            words.put(across(point.kept.value or 0.0), up(point.gain), label, colour, below=point.shipped)
    canvas.dot(across(1.0), up(0.0), 5, PAPER, INK, 2)
    canvas.text(across(1.0) - 9, up(0.0) - 9, "base", size=11, fill=INK, anchor="end")
    _names(canvas, curves, lines)
    return canvas.svg()


class _Words:
    """Labels beside their points: each stands where it covers least of the points and labels before it."""

    def __init__(self, canvas: Canvas) -> None:
        self._canvas = canvas
        self._taken: list[tuple[float, float, float, float]] = []

    def keep_clear(self, points: Iterable[tuple[float, float]]) -> None:
        """Points that no label should cover."""
        self._taken += [(x - 5, y - 5, x + 5, y + 5) for x, y in points]

    def put(self, x: float, y: float, words: str, fill: str, below: bool) -> None:
        """A label of the point there, above it or `below` where both are free."""
        width = extent(words, 11)
        heights = (18, -9, 32, -23) if below else (-9, 18, -23, 32)
        places: list[tuple[float, float, Anchor]] = []
        for dy in heights:
            places += [(x - 9, y + dy, "end"), (x + 9, y + dy, "start")]
        boxes = [
            (px - width if side == "end" else px, py - 9, px if side == "end" else px + width, py + 3)
            for px, py, side in places
        ]
        covered = [sum(_cover(box, taken) for taken in self._taken) + _outside(box) for box in boxes]
        best = covered.index(min(covered))
        self._taken.append(boxes[best])
        self._canvas.text(places[best][0], places[best][1], words, size=11, fill=fill, anchor=places[best][2])


def _cover(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> float:
    """The area that two boxes share."""
    wide, high = min(one[2], other[2]) - max(one[0], other[0]), min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, wide) * max(0.0, high)


def _outside(box: tuple[float, float, float, float]) -> float:
    """The area of a box that lies beside the picture, where nobody sees it; worse than covering something."""
    return 10 * 12 * max(0.0, -box[0], box[2] - _WIDTH)


def _frame(canvas: Canvas, across: Scale, up: Scale, gain: str) -> None:
    marks = ticks(across.low, across.high, 6)
    for tick in marks:
        canvas.line(across(tick), up.end, across(tick), up.start, HAIR)
        canvas.text(across(tick), up.start + 18, f"{100 * tick:.4g}%", size=11, fill=SOFT, anchor="middle")
    marks = ticks(up.low, up.high, 5)
    for tick, label in zip(marks, labels(marks), strict=True):
        canvas.line(across.start, up(tick), across.end, up(tick), HAIR)
        canvas.text(across.start - 8, up(tick) + 4, label, size=11, fill=SOFT, anchor="end")
    canvas.text(across.end, up.start + 42, "kept of the base, 95% interval", size=12, fill=SOFT, anchor="end")
    canvas.text(16, 24, f"gained: {gain}", size=12, fill=SOFT)


def _curve(canvas: Canvas, curve: Curve, across: Scale, up: Scale, colour: str) -> None:
    places = [(across(point.kept.value or 0.0), up(point.gain)) for point in curve.points]
    canvas.path([(across(1.0), up(0.0)), *places], colour, 2)
    for point, (x, y) in zip(curve.points, places, strict=True):
        if point.kept.low is not None and point.kept.high is not None:
            canvas.whisker(across(point.kept.low), across(point.kept.high), y, colour)
        canvas.dot(x, y, 7 if point.shipped else 4.5, SHIPPED if point.shipped else colour, PAPER)


def _lines(curves: Sequence[Curve]) -> list[list[int]]:
    """The curves whose names stand in each line above the picture, by number; none where points bear their names."""
    lines: list[list[int]] = [[]]
    if all(point.label == curve.name for curve in curves for point in curve.points):
        return lines
    x = _LEFT
    for number, curve in enumerate(curves):
        wide = 24 + min(extent(curve.name, 11), _ROOM) + 18
        if lines[-1] and x + wide > _WIDTH:
            lines.append([])
            x = _LEFT
        lines[-1].append(number)
        x += wide
    return lines


def _names(canvas: Canvas, curves: Sequence[Curve], lines: Sequence[Sequence[int]]) -> None:
    for row, line in enumerate(lines):
        x, y = _LEFT, 44 + _LINE * row
        for number in line:
            colour = COLOURS[number % len(COLOURS)] if curves[number].points else FAINT
            canvas.line(x, y, x + 18, y, colour, 3)
            x += 24 + canvas.text(x + 24, y + 4, curves[number].name, size=11, fill=SOFT, room=_ROOM) + 18
