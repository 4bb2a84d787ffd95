"""The headline as one picture: of every arm on every task what it gained and what it forgot, with intervals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bench.keep.arms import ARMS
from bench.keep.claims import OURS
from bench.keep.effects import Arms
from bench.keep.tasks import TARGETS

from graftwood.evals.card import Estimate
from graftwood.evals.svgkit import HAIR, INK, SOFT, Canvas, Scale, labels, ticks

GAIN, LOSS = "#15803d", "#b91c1c"
OURS_COLOUR, OTHERS = "#1d4ed8", "#64748b"
_NAMES, _COLUMN, _ROW, _TOP, _HEAD = 250, 225, 24, 92, 40  # pixels
# title, unit, what it is multiplied with, how it is written, and whether more of it is better
_COLUMNS = {
    "metric": ("gained: right answers", "points", 100, "+.0f", True),
    "loss": ("gained: answer loss", "nats", 1, "+.2f", True),
    "requests": ("forgotten: requests", "points", 100, "+.1f", False),
    "drift": ("forgotten: drift", "nats a token", 1, ".3f", False),
}


@dataclass(frozen=True)
class Row:
    """One arm: its four measures."""

    name: str
    measures: Mapping[str, Estimate]


def rows_of(arms: Arms) -> list[Row]:
    """The arms of a task in the order of the plan, the base aside."""
    found = []
    for name in (name for name in ARMS if name in arms.names and name != "A0"):
        seeds = arms.seeds(name)
        effects = arms.gain(name, seeds) | arms.forgotten(name, seeds)
        found.append(Row(name, {key: effect.estimate() for key, effect in effects.items()}))
    return found


def headline(tasks: Mapping[str, Arms]) -> str:
    """A dot and its interval for each arm and measure, task under task; ours is drawn heavier than the others."""
    groups = {task: rows_of(arms) for task, arms in tasks.items() if "A0" in arms.names}
    groups = {task: rows for task, rows in groups.items() if rows}
    height = _TOP + sum(_HEAD + _ROW * len(rows) for rows in groups.values()) + 24
    width = _NAMES + _COLUMN * len(_COLUMNS) + 24
    canvas = Canvas(width, height, "What every way of tuning gained and what it forgot")
    canvas.text(24, 34, "What each way of tuning gained, and what it forgot", size=17, bold=True)
    for place, (key, (title, unit, times, _, good)) in enumerate(_COLUMNS.items()):
        x = _NAMES + _COLUMN * place
        edges = [edge for rows in groups.values() for row in rows for edge in _edges(row.measures[key], times)]
        scale = Scale.over(edges, x, x + _COLUMN - 90, zero=True)
        taken = canvas.text(x, 62, title, size=12, bold=True, fill=GAIN if good else LOSS)
        canvas.text(x + taken + 6, 62, unit, size=10, fill=SOFT, room=_COLUMN - taken - 12)
        marks = ticks(scale.low, scale.high, 3)
        for mark, label in zip(marks, labels(marks), strict=True):
            canvas.line(scale(mark), _TOP - 6, scale(mark), height - 16, HAIR)
            canvas.text(scale(mark), _TOP - 12, label, size=10, fill=SOFT, anchor="middle")
        canvas.line(scale(0), _TOP - 6, scale(0), height - 16, SOFT)
        _column(canvas, groups, key, scale)
    y = _TOP
    for task, rows in groups.items():
        canvas.text(24, y + 22, TARGETS[task].title, size=13, bold=True, room=_NAMES - 40)
        for place, row in enumerate(rows):
            ours = ARMS[row.name].side == "graft" and ARMS[row.name].budget is not None
            fill = INK if ours else SOFT
            canvas.text(
                36, y + _HEAD + _ROW * place + 8, ARMS[row.name].title, size=12, fill=fill, bold=ours, room=_NAMES - 52
            )
        y += _HEAD + _ROW * len(rows)
    return canvas.svg()


def _column(canvas: Canvas, groups: Mapping[str, list[Row]], key: str, scale: Scale) -> None:
    _, _, times, shown, _ = _COLUMNS[key]
    y = _TOP
    for rows in groups.values():
        for place, row in enumerate(rows):
            measure, middle = row.measures[key], y + _HEAD + _ROW * place + 4
            fill = OURS_COLOUR if row.name == OURS else OTHERS
            if measure.value is None or measure.low is None or measure.high is None:
                continue
            canvas.whisker(scale(times * measure.low), scale(times * measure.high), middle, fill)
            canvas.dot(scale(times * measure.value), middle, 5 if row.name == OURS else 4, fill)
            text = format(times * measure.value, shown)
            canvas.text(scale.end + 12, middle + 4, text, size=12, bold=row.name == OURS, room=66)
        y += _HEAD + _ROW * len(rows)


def _edges(measure: Estimate, times: float) -> list[float]:
    return [times * edge for edge in (measure.value, measure.low, measure.high) if edge is not None]
