"""What was gained against what it did to the base, as pictures: a curve an arm from the base to where training ended.

`looks_svg` draws every place that was looked at by its drift, `tradeoff_svg` what was certified, or measured, by its
kept share.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from graftwood.evals.card import Arm, Candidate, Choice, Estimate
from graftwood.evals.svgkit import FAINT, HAIR, INK, PAPER, SOFT, Anchor, Canvas, Scale, extent, labels, ticks

COLOURS = ("#1d4ed8", "#b45309", "#7c3aed", "#0f766e", "#be123c", "#4d7c0f", "#a21caf", "#334155")
BUDGET, SHIPPED = "#b91c1c", "#15803d"
_WIDTH, _HEIGHT, _TOP, _LEFT = 720, 420, 60, 70.0
_LINE, _ROOM = 16, 200  # of the names above: from line to line, and as wide as one may be
_BELOW = 12  # pixels from a place to its worst ability
_LOWEST = 0.5  # of the best gain: what lost more stands at the lower edge
_APART = 44  # pixels between numbers of a scale


@dataclass(frozen=True)
class Point:
    """One place on an arm's way: its kept share with its interval, and its gain; `worst` is its worst ability's."""

    kept: Estimate
    gain: float
    label: str = ""
    shipped: bool = False
    worst: Estimate | None = None


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
                shipped=_is_shipped(arm, one, choice),
                worst=None if choice.worst_budget is None else one.decision.worst_kept,
            )
            for one in sorted(arm.candidates, key=lambda candidate: candidate.dial)
            if one.decision is not None and one.decision.kept.value is not None
        ]
        curves.append(Curve(arm.name, tuple(points)))
    return tuple(curves)


def _is_shipped(arm: Arm, place: Candidate, choice: Choice) -> bool:
    return arm.name == choice.shipped and place.dial == choice.dial


def tradeoff_svg(
    curves: Sequence[Curve], gain: str, budget: float | None = None, worst_budget: float | None = None
) -> str:
    """Kept share across, gain upwards in the unit `gain` names; the base is at 100% and 0, and the budget is shaded.

    What the worst ability must keep is a line of its own, dashed.
    """
    bear_names = all(point.label == curve.name for curve in curves for point in curve.points)
    lines = [[]] if bear_names else _lines([curve.name for curve in curves])
    asked = [(budget, "budget", ""), (worst_budget, "worst ability", "5 4")]
    leasts = [(share, f"{what} {100 * share:.4g}%", dash) for share, what, dash in asked if share is not None]
    more = _LINE * (len(lines) - 1 + len(leasts))
    top, height = _TOP + more, _HEIGHT + more
    canvas = Canvas(_WIDTH, height, "What was gained against what was kept of the base")
    every = [point for curve in curves for point in curve.points]
    if not every:
        canvas.text(24, 40, "nothing to draw: neither a gain nor a kept share was measured", size=13, fill=SOFT)
        return canvas.svg()
    told = [part for point in every for part in (point.kept, point.worst) if part is not None]
    kept = [edge for part in told for edge in (part.value, part.low, part.high) if edge is not None]
    across = Scale.over([*kept, 1.0, *(share for share, *_ in leasts)], _LEFT, _WIDTH - 30)
    up = Scale.over([p.gain for p in every], height - 60, top, zero=True)
    _frame(canvas, across, up, gain)
    if budget is not None:
        canvas.rect(across.start, top, across(budget) - across.start, up.start - top, BUDGET, opacity=0.06)
    for row, (share, label, dash) in enumerate(leasts):
        _least(canvas, across(share), top - _LINE * row, up.start, label, dash)
    words = _Words(canvas)
    for curve in curves:
        for point in curve.points:
            words.keep_clear([(across(point.kept.value or 0.0), up(point.gain))])
            if point.worst is not None and point.worst.value is not None:
                words.keep_clear([(across(point.worst.value), up(point.gain) + _BELOW)])
    for number, curve in enumerate(curves):
        _curve(canvas, curve, across, up, COLOURS[number % len(COLOURS)])
    for number, curve in enumerate(curves):  # over all lines
        for point in curve.points:
            label = f"{point.label}, shipped" if point.shipped else point.label
            colour = SHIPPED if point.shipped else COLOURS[number % len(COLOURS)]
            below = point.shipped and point.worst is None
            words.put(across(point.kept.value or 0.0), up(point.gain), label, colour, below)
    canvas.dot(across(1.0), up(0.0), 5, PAPER, INK, 2)
    canvas.text(across(1.0) - 9, up(0.0) - 9, "base", size=11, fill=INK, anchor="end")
    _names(canvas, [curve.name for curve in curves], [bool(curve.points) for curve in curves], lines)
    return canvas.svg()


def _least(canvas: Canvas, x: float, top: float, foot: float, label: str, dash: str) -> None:
    """The line that a share must stay right of, named above it, where no place is."""
    canvas.line(x, top, x, foot, BUDGET, 1.5, dash)
    half = extent(label, 11) / 2
    canvas.text(min(max(x, half + 4), _WIDTH - half - 4), top - 5, label, size=11, fill=BUDGET, anchor="middle")


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
    for tick in ticks(across.low, across.high, 6):
        canvas.line(across(tick), up.end, across(tick), up.start, HAIR)
        canvas.text(across(tick), up.start + 18, f"{100 * tick:.4g}%", size=11, fill=SOFT, anchor="middle")
    canvas.text(across.end, up.start + 42, "kept of the base, 95% interval", size=12, fill=SOFT, anchor="end")
    _gains(canvas, across, up, gain)


def _gains(canvas: Canvas, across: Scale, up: Scale, gain: str) -> None:
    marks = ticks(up.low, up.high, 5)
    for tick, label in zip(marks, labels(marks), strict=True):
        canvas.line(across.start, up(tick), across.end, up(tick), HAIR)
        canvas.text(across.start - 8, up(tick) + 4, label, size=11, fill=SOFT, anchor="end")
    canvas.text(16, 24, f"gained: {gain}", size=12, fill=SOFT)


def _curve(canvas: Canvas, curve: Curve, across: Scale, up: Scale, colour: str) -> None:
    places = [(across(point.kept.value or 0.0), up(point.gain)) for point in curve.points]
    canvas.path([(across(1.0), up(0.0)), *places], colour, 2)
    for point, (x, y) in zip(curve.points, places, strict=True):
        if point.kept.low is not None and point.kept.high is not None:
            canvas.whisker(across(point.kept.low), across(point.kept.high), y, colour)
        if point.worst is not None and point.worst.value is not None:
            if point.worst.low is not None and point.worst.high is not None:
                canvas.whisker(across(point.worst.low), across(point.worst.high), y + _BELOW, colour, 2.5)
            canvas.dot(across(point.worst.value), y + _BELOW, 3.5, PAPER, SHIPPED if point.shipped else colour)
        canvas.dot(x, y, 7 if point.shipped else 4.5, SHIPPED if point.shipped else colour, PAPER)


def _lines(names: Sequence[str]) -> list[list[int]]:
    """The names that stand in each line above the picture, by number."""
    lines: list[list[int]] = [[]]
    x = _LEFT
    for number, name in enumerate(names):
        wide = 24 + min(extent(name, 11), _ROOM) + 18
        if lines[-1] and x + wide > _WIDTH:
            lines.append([])
            x = _LEFT
        lines[-1].append(number)
        x += wide
    return lines


def _names(canvas: Canvas, names: Sequence[str], drawn: Sequence[bool], lines: Sequence[Sequence[int]]) -> None:
    for row, line in enumerate(lines):
        x, y = _LEFT, 44 + _LINE * row
        for number in line:
            colour = COLOURS[number % len(COLOURS)] if drawn[number] else FAINT
            canvas.line(x, y, x + 18, y, colour, 3)
            x += 24 + canvas.text(x + 24, y + 4, names[number], size=11, fill=SOFT, room=_ROOM) + 18


def looks_svg(choice: Choice, gain: str) -> str:
    """Drift across, gain upwards in the unit `gain` names: a curve an arm through every place that was looked at.

    The scale of drift is one of roots: drift grows with the square of the way. A recipe that left a race is drawn as it
    was then. Where much was lost, and drift is beyond that of all that gained, a place stands at the edge.
    """
    ways = [_as_it_left(arm) for arm in choice.arms]
    names = [arm.name + _left_at(way) for arm, way in zip(choice.arms, ways, strict=True)]
    lines = _lines(names)
    top, height = _TOP + _LINE * (len(lines) - 1), _HEIGHT + _LINE * (len(lines) - 1)
    canvas = Canvas(_WIDTH, height, "What was gained against how far the model moved from its base")
    every = [one for way in ways for one in way]
    if not every:
        canvas.text(24, 40, "nothing to draw: no place was looked at", size=13, fill=SOFT)
        return canvas.svg()
    gains = [choice.base_loss - one.loss for one in every]
    gained = [one for one in every if one.loss <= choice.base_loss] or every
    across = Scale.over([math.sqrt(max(0.0, one.drift)) for one in gained], _LEFT, _WIDTH - 30, zero=True)
    most = max(0.0, *gains)
    up = Scale.over([max(one, -_LOWEST * most) if most else one for one in gains], height - 60, top, zero=True)
    _drifts(canvas, across, up)
    _gains(canvas, across, up, gain)
    words = _Words(canvas)
    at = [[(across(math.sqrt(max(0.0, one.drift))), up(choice.base_loss - one.loss)) for one in way] for way in ways]
    for places in at:
        words.keep_clear(places)
    for number, (arm, way, places) in enumerate(zip(choice.arms, ways, at, strict=True)):
        colour = COLOURS[number % len(COLOURS)]
        canvas.path([(across(0.0), up(0.0)), *places], colour, 2)
        for one, (x, y) in zip(way, places, strict=True):
            _place(canvas, x, y, colour, one, _is_shipped(arm, one, choice))
    for number, (arm, way, places) in enumerate(zip(choice.arms, ways, at, strict=True)):  # over all lines
        for one, (x, y) in zip(way, places, strict=True):
            if one.trained is None:
                shipped = _is_shipped(arm, one, choice)
                fill = SHIPPED if shipped else COLOURS[number % len(COLOURS)]
                words.put(x, y, _label(one, shipped), fill, below=False)
    canvas.dot(across(0.0), up(0.0), 5, PAPER, INK, 2)
    below = up.start - up(0.0) > 24  # clear of the curves
    canvas.text(across(0.0) + (9 if below else 14), up(0.0) + (16 if below else -5), "base", size=11, fill=INK)
    _names(canvas, names, [bool(way) for way in ways], lines)
    return canvas.svg()


def _as_it_left(arm: Arm) -> list[Candidate]:
    """An arm's places from the base outwards: of one that left a race, those of its last standing."""
    last = max((one.trained or 0.0 for one in arm.candidates), default=0.0)
    return sorted((one for one in arm.candidates if (one.trained or 0.0) == last), key=lambda one: one.dial)


def _left_at(way: Sequence[Candidate]) -> str:
    return f" ({way[0].trained:.0%})" if way and way[0].trained is not None else ""


def _label(place: Candidate, shipped: bool) -> str:
    told = place.decision
    fate = ", shipped" if shipped else "" if told is None else ", within" if told.passed else ", over budget"
    return f"dial {place.dial:g}{fate}"


def _place(canvas: Canvas, x: float, y: float, colour: str, place: Candidate, shipped: bool) -> None:
    """Hollow where it was looked at, full where it was certified."""
    if place.decision is None:
        canvas.dot(x, y, 4, PAPER, colour, 2)
    else:
        canvas.dot(x, y, 7 if shipped else 4.5, SHIPPED if shipped else colour, PAPER)


def _drifts(canvas: Canvas, across: Scale, up: Scale) -> None:
    """The scale of drift: round numbers as far apart as they can be read."""
    last = math.inf
    largest = math.floor(math.log10(across.high**2))
    for drift in (digit * 10.0**power for power in range(largest, largest - 6, -1) for digit in (5, 2, 1)):
        x = across(math.sqrt(drift))
        if drift <= across.high**2 and last - x > _APART and x - across.start > _APART:
            last = x
            canvas.line(x, up.end, x, up.start, HAIR)
            canvas.text(x, up.start + 18, f"{drift:g}", size=11, fill=SOFT, anchor="middle")
    canvas.line(across.start, up.end, across.start, up.start, HAIR)
    canvas.text(across.start, up.start + 18, "0", size=11, fill=SOFT, anchor="middle")
    canvas.text(across.end, up.start + 42, "drift, nats a token (scale of roots)", size=12, fill=SOFT, anchor="end")
