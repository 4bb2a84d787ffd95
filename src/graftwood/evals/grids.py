"""The tables below the card picture where a run had several tasks: what each gained, and models by tasks."""

from __future__ import annotations

import math

from graftwood.evals import words
from graftwood.evals.card import Card, Matrix, TaskGained
from graftwood.evals.panels import MOVED, Box, heading
from graftwood.evals.svgkit import SOFT, Canvas

_ROW, _TOP, _BETWEEN = 20, 58, 28
_BLOCK, _NEXT = 7, 32  # tasks beside each other in a matrix, and what the names of the next ones below take
_NAMES, _MEASURES, _VALUES = 200, 220, 220  # widths of the columns of tasks


def height(card: Card) -> float:
    """What both tables take; nothing for a run of one task. Units: pixels."""
    tasks = _TOP + _ROW * sum(len(words.task_measures(given)) for given in card.tasks) if card.tasks else 0
    matrix = 0
    if card.matrix:
        blocks = max(1, math.ceil(len(card.matrix.tasks) / _BLOCK))
        rows = blocks * len(card.matrix.learners) + len(card.matrix.figures)
        matrix = _TOP + _ROW * rows + _NEXT * (blocks - 1)
    return sum(part + _BETWEEN for part in (tasks, matrix) if part)


def draw(canvas: Canvas, box: Box, card: Card) -> None:
    """Both tables from the top of `box`, over its width."""
    y = box.y
    if card.tasks:
        y = _tasks(canvas, Box(box.x, y, box.width, 0), card.tasks) + _BETWEEN
    if card.matrix is not None:
        _matrix(canvas, Box(box.x, y, box.width, 0), card.matrix)


def _tasks(canvas: Canvas, box: Box, tasks: tuple[TaskGained, ...]) -> float:
    heading(canvas, box, "TASKS", "each on rows of its own, base → tuned", words.ACCENTS["GAINED"])
    y = box.y + _TOP
    for given in tasks:
        canvas.text(box.x, y, given.task, size=12, bold=True, room=_NAMES - 16)
        for measure in words.task_measures(given):
            x = box.x + _NAMES
            canvas.text(x, y, words.titled(measure), size=12, fill=SOFT, room=_MEASURES - 16)
            canvas.text(x + _MEASURES, y, words.before_after(measure), size=12, room=_VALUES - 16)
            if measure.change.value is not None:
                fill = MOVED[words.direction(measure)]
                x += _MEASURES + _VALUES
                canvas.text(x, y, words.change(measure), size=12, fill=fill, room=box.right - x)
            y += _ROW
    return y


def _matrix(canvas: Canvas, box: Box, matrix: Matrix) -> None:
    heading(canvas, box, "MODELS BY TASKS", words.matrix_line(matrix), words.ACCENTS["GAINED"])
    column = (box.width - _NAMES) / min(max(1, len(matrix.tasks)), _BLOCK)
    y = box.y + _TOP
    for start in range(0, len(matrix.tasks), _BLOCK):
        y += _NEXT if start else 0
        for place, task in enumerate(matrix.tasks[start : start + _BLOCK]):
            canvas.text(box.x + _NAMES + column * place, y - 8, task, size=11, fill=SOFT, room=column - 12)
        for learner in matrix.learners:
            y += _ROW
            canvas.text(box.x, y, learner.name, size=12, bold=True, room=_NAMES - 16)
            for place, cell in enumerate(learner.cells[start : start + _BLOCK]):
                canvas.text(box.x + _NAMES + column * place, y, words.cell(cell), size=12, room=column - 12)
    for figure in matrix.figures:
        y += _ROW
        canvas.text(box.x, y, words.figure_line(figure), size=12, fill=SOFT, room=box.width)
