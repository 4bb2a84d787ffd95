"""The card as one picture and the training curve alone, as self-contained SVG."""

from __future__ import annotations

from collections.abc import Sequence

from graftwood.evals import grids, panels, words
from graftwood.evals.card import Card, CurvePoint, Skill
from graftwood.evals.panels import Box
from graftwood.evals.svgkit import HAIR, INK, SOFT, Anchor, Canvas, Scale, labels, ticks

TRAIN, HELDOUT, DRIFT = "#94a3b8", "#15803d", "#1d4ed8"
_MARGIN, _COLUMN, _GAP = 40, 536, 48
_UPPER, _LOWER = 462, 242


def card_svg(card: Card) -> str:
    """The report card as one picture, 1200 pixels wide."""
    height = round(906 + 19 * min(len(card.warnings), 2) + grids.height(card))
    canvas = Canvas(1200, height, f"Report card: {words.title_line(card)}")
    right = _MARGIN + _COLUMN + _GAP
    top = panels.header(canvas, card, _MARGIN, right + _COLUMN) + 4
    panels.gained(canvas, Box(_MARGIN, top, _COLUMN, 250), card.gained)
    panels.memory(canvas, Box(_MARGIN, top + 284, _COLUMN, _UPPER - 284), card.memory)
    panels.kept(canvas, Box(right, top, _COLUMN, _UPPER), card.kept, card.choice)
    lower = top + _UPPER + 32
    panels.chosen(canvas, Box(_MARGIN, lower, _COLUMN, _LOWER), card.chosen)
    curve = Box(right, lower, _COLUMN, _LOWER)
    panels.heading(canvas, curve, "TRAINING", f"{words.plural(len(card.curve), 'evaluation')}", INK)
    _curve(canvas, Box(curve.x, curve.y + 36, curve.width, curve.height - 36), card.curve, card.chosen.best_step)
    below = lower + _LOWER + 24
    grids.draw(canvas, Box(_MARGIN, below, right + _COLUMN - _MARGIN, 0), card)
    foot = below + grids.height(card)
    canvas.line(_MARGIN, foot, right + _COLUMN, foot)
    taken = canvas.text(_MARGIN, foot + 22, words.cost_line(card.cost), size=11, fill=SOFT, room=760)
    room = right + _COLUMN - _MARGIN - taken - 24
    canvas.text(right + _COLUMN, foot + 22, words.machine_line(card.cost), size=11, fill=SOFT, anchor="end", room=room)
    return canvas.svg()


def curve_svg(points: Sequence[CurvePoint], best_step: int) -> str:
    """The training curve alone: both losses, the step that was kept, and the drift below."""
    canvas = Canvas(720, 320, "Loss and drift over the steps of training")
    _curve(canvas, Box(16, 16, 688, 288), points, best_step)
    return canvas.svg()


def skills_svg(skills: tuple[Skill, ...]) -> str:
    """The skills before and after, alone."""
    height = 32 * max(min(len(skills), panels.SKILLS), 1) + 16
    canvas = Canvas(568, height + 32, "Each skill of the base before and after")
    panels.skills(canvas, Box(16, 20, 536, height), skills, words.ACCENTS["KEPT"])
    return canvas.svg()


def _curve(canvas: Canvas, box: Box, points: Sequence[CurvePoint], best_step: int) -> None:
    train = [(point.step, point.train_loss) for point in points if point.train_loss is not None]
    valid = [(point.step, point.valid_loss) for point in points if point.valid_loss is not None]
    drift = [(point.step, point.drift) for point in points if point.drift is not None]
    if not (train or valid or drift):
        canvas.text(box.x, box.y + 24, "nothing was measured during training", size=12, fill=SOFT)
        return
    _legend(canvas, box, [("train loss", TRAIN, train), ("held-out loss", HELDOUT, valid), ("drift", DRIFT, drift)])
    left, right, foot = box.x + 46, box.right - 8, box.bottom - 22
    steps = [point.step for point in points]
    first, last = min(*steps, best_step), max(*steps, best_step)
    across = Scale(first, last, left, right) if last > first else Scale(first - 1, last + 1, left, right)
    strip = 50.0 if drift and (train or valid) else 0.0
    frame = Box(left, box.y + 40, right - left, foot - strip - (16 if strip else 0) - box.y - 40)
    if train or valid:
        _lines(canvas, frame, across, [(train, TRAIN), (valid, HELDOUT)], 4)
    if drift:
        below = Box(left, foot - strip, right - left, strip) if strip else frame
        _lines(canvas, below, across, [(drift, DRIFT)], 2, zero=True)
    for tick in ticks(across.low, across.high, 6):
        if tick == round(tick):
            ends: Anchor = "end" if across(tick) > right - 14 else "middle"
            canvas.text(across(tick), foot + 16, f"{tick:,.0f}", size=10, fill=SOFT, anchor=ends)
    canvas.text(box.x, foot + 16, "step", size=10, fill=SOFT)
    x = across(best_step)
    canvas.line(x, box.y + 32, x, foot, INK, 1, "3 3")
    anchor: Anchor = "start" if x < left + 50 else "end" if x > right - 50 else "middle"
    canvas.text(x, box.y + 28, f"best step {best_step:,}", size=11, anchor=anchor, bold=True)
    for step, loss in valid:
        if step == best_step:
            canvas.dot(x, _scale([train, valid], frame)(loss), 5, "none", INK, 2)


def _legend(canvas: Canvas, box: Box, series: list[tuple[str, str, list[tuple[int, float]]]]) -> None:
    x = box.x + 46
    for name, colour, points in series:
        if points:
            canvas.line(x, box.y + 6, x + 18, box.y + 6, colour, 3)
            x += 24 + canvas.text(x + 24, box.y + 10, name, size=11, fill=SOFT) + 20


def _scale(series: list[list[tuple[int, float]]], frame: Box, *, zero: bool = False) -> Scale:
    return Scale.over([value for points in series for _, value in points], frame.bottom, frame.y, zero=zero)


def _lines(
    canvas: Canvas,
    frame: Box,
    across: Scale,
    series: list[tuple[list[tuple[int, float]], str]],
    about: int,
    *,
    zero: bool = False,
) -> None:
    scale = _scale([points for points, _ in series], frame, zero=zero)
    marks = ticks(scale.low, scale.high, about)
    for tick, label in zip(marks, labels(marks), strict=True):
        canvas.line(frame.x, scale(tick), frame.right, scale(tick), HAIR)
        canvas.text(frame.x - 8, scale(tick) + 3.5, label, size=10, fill=SOFT, anchor="end", room=44)
    for points, colour in series:
        route = [(across(step), scale(value)) for step, value in points]
        canvas.path(route, colour, 2.25)
        if len(route) <= 25:
            for x, y in route:
                canvas.dot(x, y, 2.5, colour)
