"""Items that decide, items that report, and training rows that give an item away."""

from __future__ import annotations

import pytest

from graftwood.choose.items import SHORTEST, leaked, question
from graftwood.data.audit import folded
from graftwood.data.rows import Row
from graftwood.evals.task import TASKS, Item


def row(prompt: str, line: int = 1) -> Row:
    return Row("completion", prompt=prompt, completion="the answer", file="rows.jsonl", line=line)


def written(item: Item) -> str:
    """A question as people write it into their rows: passage first, no heads, its letters otherwise cased."""
    return " ".join(question(item.prompt)).upper()


@pytest.mark.parametrize("name", TASKS.names())
def test_every_bundled_question_is_found_however_it_is_headed(name: str) -> None:
    task = TASKS.get(name)
    long = [item for item in task.items() if any(len(part) >= SHORTEST for part in question(item.prompt))]
    assert len(long) > 0.75 * len(task.items())
    for asked in (written, lambda item: f"Q: {written(item)} A or B?", lambda item: item.prompt):
        rows = [row(asked(item), line) for line, item in enumerate(long, 1)]
        found = leaked([task], rows)
        assert {f"rows.jsonl:{line} holds {item.id}" for line, item in enumerate(long, 1)} <= set(found)


def test_what_is_asked_is_told_from_the_words_around_it() -> None:
    assert question("Question: Is ice cold in the far north?\nAnswer:") == ("is ice cold in the far north?",)
    passage = "Context: Jan met Taylor at the station.\nQuestion: What now?\nChoices:\nA. spend time\nB. leave\nAnswer:"
    assert question(passage) == ("jan met taylor at the station.", "what now?")
    assert question("Question: pitcher\nAnswer:") == ("question: pitcher answer:",), "a word alone is no question"
    assert question("She had no question: it was time to leave.") == ("she had no question: it was time to leave.",)


def test_a_part_of_a_question_is_not_the_question() -> None:
    task = TASKS.get("siqa")
    passage, asked = question(task.items()[0].prompt)
    assert leaked([task], [row(passage), row(asked), row(passage[1:] + asked)]) == []
    assert leaked([task], [row(f"{asked} {passage}", 7)]) == [f"rows.jsonl:7 holds {task.items()[0].id}"]


def test_a_question_is_found_wherever_it_stands() -> None:
    """Whatever stands before it, and as often as looking for every question in every row finds it."""
    task = TASKS.get("openbook_qa")
    items = [item for item in task.items() if len(folded((item.prompt,))[0]) >= SHORTEST]
    rows = [row("x" * before + items[before].prompt, before) for before in range(2 * SHORTEST)]
    every = [f"rows.jsonl:{one.line} holds {item.id}" for one in rows for item in items
             if folded((item.prompt,))[0] in folded((one.prompt,))[0]]  # fmt: skip
    assert sorted(leaked([task], rows)) == sorted(every)
    assert len(every) >= 2 * SHORTEST
