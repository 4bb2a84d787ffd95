"""Which of an ability's items decide what is shipped, and which report on it afterwards."""

from __future__ import annotations

from collections.abc import Sequence

from graftwood.data.audit import folded
from graftwood.data.rows import Row
from graftwood.evals.task import Item, Task

SHORTEST = 24  # letters of a question that is told from a chance meeting


def halves(task: Task) -> tuple[Task, Task]:
    """The items that decide and those that report; what is not independent of each other stays on one side."""
    places = {unit: place for place, unit in enumerate(dict.fromkeys(task.units()))}
    decide: list[Item] = []
    report: list[Item] = []
    for item, unit in zip(task.items(), task.units(), strict=True):
        (report if places[unit] % 2 else decide).append(item)
    return task.of(tuple(decide)), task.of(tuple(report))


def leaked(tasks: Sequence[Task], rows: Sequence[Row]) -> list[str]:
    """Every training row that holds a question which would measure what is kept: `rows.jsonl:7 holds piqa-003`."""
    texts = [(f"{row.file}:{row.line}", " ".join(folded(row.parts))) for row in rows]
    found = []
    for task in tasks:
        for item in task.items():
            (question,) = folded((item.prompt,))
            if len(question) >= SHORTEST:
                found += [f"{place} holds {item.id}" for place, text in texts if question in text]
    return found
