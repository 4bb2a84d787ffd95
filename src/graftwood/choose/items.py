"""Which of an ability's items decide what is shipped, and which report on it afterwards."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence

from graftwood.data.audit import folded
from graftwood.data.rows import Row
from graftwood.evals.task import Item, Task

FEWEST = 4  # independent items that can be halved: of one on a side nothing is known
SHORTEST = 24  # letters of a question that is told from a chance meeting
_STEP = SHORTEST // 2
# How sets head their parts; nobody else writes a question down with them.
_HEAD = re.compile(r"^[ \t]*(context|passage|question|choices|options|answer):", re.IGNORECASE | re.MULTILINE)
_BESIDE = ("choices", "options", "answer")  # parts that are not the question


def halves(task: Task) -> tuple[Task, Task]:
    """The items that decide and those that report; what is not independent of each other stays on one side."""
    places = {unit: place for place, unit in enumerate(dict.fromkeys(task.units()))}
    decide: list[Item] = []
    report: list[Item] = []
    for item, unit in zip(task.items(), task.units(), strict=True):
        (report if places[unit] % 2 else decide).append(item)
    return task.of(tuple(decide)), task.of(tuple(report))


def unhalved(tasks: Sequence[Task]) -> list[str]:
    """Every task with too few independent items to be halved."""
    found = []
    for task in tasks:
        items, units = len(task.items()), len(set(task.units()))
        if units < FEWEST:
            alike = f" in {units} {'family' if units == 1 else 'families'}" if units < items else ""
            has = f"{items} {'question' if items == 1 else 'questions'}{alike}"
            found.append(f"{task.name} has {has}, and a budget needs {FEWEST} that are independent: 2 decide, 2 report")
    return found


def question(prompt: str) -> tuple[str, ...]:
    """What a prompt asks, without the words that sets put around it: the question, the passage it is about.

    Where that is too short to be told from a chance meeting, it is the prompt with these words.
    """
    told = _told(prompt)
    return told if any(len(part) >= SHORTEST for part in told) else folded((prompt,))


def leaked(tasks: Sequence[Task], rows: Sequence[Row]) -> list[str]:
    """Every training row that holds a question which would measure what is kept: `rows.jsonl:7 holds piqa-003`.

    Held is every part of the question, wherever in the row. Each text is read once, in steps: whatever holds a part of
    `SHORTEST` letters or more holds, where one of the steps begins, one of the runs of `_STEP` letters that part begins
    with. A shorter question, which may stand in other text by chance, is held where it is all that a row asks, or where
    it is the whole row, its answer with it or not.
    """
    begins: defaultdict[str, set[int]] = defaultdict(set)
    wholes: defaultdict[str, set[int]] = defaultdict(set)
    items = [item for task in tasks for item in task.items()]
    questions = [question(item.prompt) for item in items]
    for number, (item, parts) in enumerate(zip(items, questions, strict=True)):
        longest = max(parts, key=len)
        if len(longest) >= SHORTEST:
            for start in range(_STEP):
                begins[longest[start : start + _STEP]].add(number)
        if all(len(part) < SHORTEST for part in _told(item.prompt)):
            for whole in _wholes(item):
                wholes[whole].add(number)
    found, longest_whole = [], max(map(len, wholes), default=0)
    for row in rows:
        text = " ".join(folded(row.parts))
        met = {number for at in range(0, len(text), _STEP) for number in begins.get(text[at : at + _STEP], ())}
        held = {number for number in met if all(part in text for part in questions[number])}
        held |= {number for whole in (_asked(row, longest_whole) if wholes else ()) for number in wholes.get(whole, ())}
        found += [f"{row.file}:{row.line} holds {items[number].id}" for number in sorted(held)]
    return found


def _told(prompt: str) -> tuple[str, ...]:
    """The parts of a prompt that are its own, folded."""
    first, *rest = _HEAD.split(prompt)
    parts = [first, *(part for head, part in zip(rest[::2], rest[1::2], strict=True) if head.lower() not in _BESIDE)]
    return tuple(part for part in folded(parts) if part)


def _whole(texts: Sequence[str]) -> str:
    """What is asked in all, without the words around it; a word alone is no question, so that keeps them."""
    told = " ".join(part for text in texts for part in _told(text))
    return told if " " in told else " ".join(folded(texts))


def _wholes(item: Item) -> tuple[str, str]:
    """An item's whole question, of a conversation all that was asked before too, and the same with its answer."""
    users = [turn.content for turn in item.turns if turn.role == "user"]
    asked = _whole(users or [item.prompt])
    return asked, " ".join((asked, *folded((item.choices[item.gold] if item.choices else item.answer,))))


def _asked(row: Row, longest: int) -> set[str]:
    """All that a row asks, of a conversation up to each of its questions within so many letters; and the whole row."""
    users = [turn.content for turn in row.turns if turn.role == "user"] or [*row.asked]
    asked: set[str] = set()
    for count in range(1, len(users) + 1):
        asked.add(whole := _whole(users[:count]))
        if len(whole) > longest:  # what follows only makes it longer
            break
    return asked | {_whole(["\n".join(row.parts)]), " ".join(folded(row.parts)).strip()}
