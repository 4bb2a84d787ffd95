"""What was gained against what was kept, as one picture: a curve an arm from the base to where training ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from graftwood.evals.card import Choice, Estimate
from graftwood.evals.svgkit import FAINT, HAIR, INK, PAPER, SOFT, Anchor, Canvas, Scale, labels, ticks

COLOURS = ("#1d4ed8", "#b45309", "#7c3aed", "#0f766e", "#be123c", "#4d7c0f", "#a21caf", "#334155")
BUDGET, SHIPPED = "#b91c1c", "#15803d"
_WIDTH, _HEIGHT = 720, 420


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
    canvas = Canvas(_WIDTH, _HEIGHT, "What was gained against what was kept of the base")
    every = [point for curve in curves for point in curve.points]
    if not every:
        canvas.text(24, 40, "nothing to draw: neither a gain nor a kept share was measured", size=13, fill=SOFT)
        return canvas.svg()
    kept = [edge for p in every for edge in (p.kept.value, p.kept.low, p.kept.high) if edge is not None]
    across = Scale.over([*kept, 1.0, *([budget] if budget else [])], 70, _WIDTH - 30)
    up = Scale.over([p.gain for p in every], _HEIGHT - 60, 60, zero=True)
    _frame(canvas, across, up, gain)
    if budget is not None:
        canvas.rect(across.start, 60, across(budget) - across.start, _HEIGHT - 120, BUDGET, opacity=0.06)
        canvas.line(across(budget), 60, across(budget), _HEIGHT - 60, BUDGET, 1.5)
        # At the top, where it stays clear of the base; on the side where no model may be, if that is wide enough.
        roomy = across(budget) - across.start > 100
        side: tuple[float, Anchor] = (-6, "end") if roomy else (6, "start")
        label = f"budget {100 * budget:.4g}%"
        canvas.text(across(budget) + side[0], 74, label, size=11, fill=BUDGET, anchor=side[1])
    for number, curve in enumerate(curves):
        _curve(canvas, curve, across, up, COLOURS[number % len(COLOURS)])
    canvas.dot(across(1.0), up(0.0), 5, PAPER, INK, 2)
    canvas.text(across(1.0) - 9, up(0.0) - 9, "base", size=11, fill=INK, anchor="end")
    _names(canvas, curves)
    return canvas.svg()


def _frame(canvas: Canvas, across: Scale, up: Scale, gain: str) -> None:
    marks = ticks(across.low, across.high, 6)
    for tick in marks:
        canvas.line(across(tick), 60, across(tick), _HEIGHT - 60, HAIR)
        canvas.text(across(tick), _HEIGHT - 42, f"{100 * tick:.4g}%", size=11, fill=SOFT, anchor="middle")
    marks = ticks(up.low, up.high, 5)
    for tick, label in zip(marks, labels(marks), strict=True):
        canvas.line(across.start, up(tick), across.end, up(tick), HAIR)
        canvas.text(across.start - 8, up(tick) + 4, label, size=11, fill=SOFT, anchor="end")
    canvas.text(across.end, _HEIGHT - 18, "kept of the base, 95% interval", size=12, fill=SOFT, anchor="end")
    canvas.text(16, 24, f"gained: {gain}", size=12, fill=SOFT)


def _curve(canvas: Canvas, curve: Curve, across: Scale, up: Scale, colour: str) -> None:
    places = [(across(point.kept.value or 0.0), up(point.gain)) for point in curve.points]
    canvas.path([(across(1.0), up(0.0)), *places], colour, 2)
    for point, (x, y) in zip(curve.points, places, strict=True):
        if point.kept.low is not None and point.kept.high is not None:
            canvas.whisker(across(point.kept.low), across(point.kept.high), y, colour)
        canvas.dot(x, y, 7 if point.shipped else 4.5, SHIPPED if point.shipped else colour, PAPER)
        label = f"{point.label}, shipped" if point.shipped else point.label
        below = 18 if point.shipped else -9
        canvas.text(x - 9, y + below, label, size=11, fill=SHIPPED if point.shipped else SOFT, anchor="end")


def _names(canvas: Canvas, curves: Sequence[Curve]) -> None:
    x = 70.0
    for number, curve in enumerate(curves):
        colour = COLOURS[number % len(COLOURS)] if curve.points else FAINT
        canvas.line(x, 44, x + 18, 44, colour, 3)
        x += 24 + canvas.text(x + 24, 48, curve.name, size=11, fill=SOFT, room=200) + 18
