"""Items that decide, items that report, and training rows that give an item away."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from graftwood.choose.items import SHORTEST, leaked, question
from graftwood.data.audit import folded
from graftwood.data.rows import Row, rows_from
from graftwood.evals.given import find_tasks
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


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    path.write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
    return str(path)


SHORT = [("Capital of France?", "Paris"), ("Question: is ice hot?", "no"), ("yes?", "no"), ("3 + 4 =", "7")]
AS_ROWS = [{"prompt": prompt, "completion": answer} for prompt, answer in SHORT]
AS_CHOICES = [{"query": prompt, "choices": [answer, "dog"], "gold": 0} for prompt, answer in SHORT]
AS_WORDS = [{"context": prompt, "word": answer} for prompt, answer in SHORT]


@pytest.mark.parametrize("skill", [AS_ROWS, AS_CHOICES, AS_WORDS])
def test_a_short_question_is_held_by_a_row_that_asks_nothing_else(skill: list[dict[str, Any]], tmp_path: Path) -> None:
    tasks = find_tasks(write(tmp_path / "skill.jsonl", skill))
    every = [f"skill-{line}" for line in range(1, len(SHORT) + 1)]

    def held(rows: Sequence[Mapping[str, Any]]) -> list[str]:
        return sorted(line.split()[-1] for line in leaked(tasks, rows_from(rows).rows))

    assert held(AS_ROWS) == every
    assert held([{"prompt": prompt.upper(), "completion": "so"} for prompt, _ in SHORT]) == every
    assert held([{"text": f"{prompt}\n{answer}"} for prompt, answer in SHORT]) == every
    talk = [turn for prompt, answer in SHORT for turn in said(prompt, answer)]
    first = held([{"messages": talk}])
    assert every[0] in first
    assert not {*every[2:]} & {*first}, "a later question is about what was said before it"
    assert held([{"messages": said(f" {prompt} ", "so")} for prompt, _ in SHORT]) == every
    around = [f"Is it so, {prompt} Tell me" for prompt, _ in SHORT]
    assert held([{"prompt": prompt, "completion": "yes? no"} for prompt in around]) == []


def said(prompt: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


def test_a_short_question_of_a_conversation_is_held_with_what_was_asked_before_it(tmp_path: Path) -> None:
    talk = [*said("Tell me of Rome, the city of old.", "It is a city."), *said("Why?", "Because.")]
    tasks = find_tasks(write(tmp_path / "talk.jsonl", [{"messages": talk}]))
    other = [*said("Tell me of Oslo, the city of now.", "It is a city."), *said("Why?", "Because.")]
    rows = rows_from([{"messages": part} for part in (other, said("Why?", "So."), talk, [*talk, *said("And?", "So.")])])
    assert leaked(tasks, rows.rows) == ["data:3 holds talk-1", "data:4 holds talk-1"]


def test_a_word_alone_is_not_taken_for_a_bundled_question() -> None:
    """A dictionary has a row for many a word that some set asks about."""
    assert question("Question: pen\nAnswer:") in {question(item.prompt) for item in TASKS.get("piqa").items()}
    assert leaked([TASKS.get("piqa")], [row("pen"), row("Radio")]) == []
    assert len(leaked([TASKS.get("piqa")], [row("Question: pen\nAnswer:")])) == 1
