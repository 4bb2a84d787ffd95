"""Tasks by name, by file and by folder: what a row becomes, and what is said of one that cannot be used."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from graftwood.choose.items import halves
from graftwood.errors import ConfigError, DataError
from graftwood.evals.given import find_tasks, task_from_file
from graftwood.evals.task import TASKS, Item

SKILLS = Path(__file__).parents[3] / "shared" / "skills"
CHOICE = {"query": "Question: Is ice cold?", "choices": ["yes", "no"], "gold": 0}
WORD = {"context": "One, two,", "continuation": "three"}
TEXT = {"prompt": "2 + 2 =", "completion": " 4", "references": [" four"]}
PROGRAM = {"prompt": "Say yes.", "checks": [{"kind": "says", "text": "yes"}]}
CODE = {"prompt": "def one():\n", "test": "def check(f):\n    assert f() == 1\n", "entry_point": "one"}
CHAT = {"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]}


def write(path: Path, *rows: Mapping[str, Any] | str) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("row", "kind", "item"),
    [
        (CHOICE, "choice", Item("mine-1", "Question: Is ice cold?\nAnswer:", (" yes", " no"))),
        (CHOICE | {"query": "Ice is ", "gold": 1}, "choice", Item("mine-1", "Ice is", (" yes", " no"), 1)),
        (WORD, "word", Item("mine-1", "One, two,", answer=" three")),
        ({"context": "a b ", "word": "c", "id": "x", "cluster": 7}, "word", Item("x", "a b", answer=" c", cluster="7")),
        (TEXT, "text", Item("mine-1", "2 + 2 =", answer=" 4", references=(" four",))),
        (PROGRAM, "program", Item("mine-1", "Say yes.", checks=({"kind": "says", "text": "yes"},))),
        (
            CODE | {"task_id": "one/1"},
            "code",
            Item("one/1", CODE["prompt"], test=CODE["test"], entry_point="one"),
        ),
    ],
)
def test_a_row_becomes_an_item_of_its_kind(row: Mapping[str, Any], kind: str, item: Item, tmp_path: Path) -> None:
    task = task_from_file(write(tmp_path / "mine.jsonl", row, "", row))
    assert (task.name, task.kind, task.items()) == ("mine", kind, (item,)), "and a row that is there twice counts once"
    assert (task.max_tokens > 0) == (kind in ("text", "program", "code"))
    assert task.chance == (0.5 if kind == "choice" else 0.0)


def test_an_answer_has_room_in_any_script(tmp_path: Path) -> None:
    for text, tokens in (("1" * 100, 100), ("天" * 50, 150)):
        assert task_from_file(write(tmp_path / "long.jsonl", TEXT | {"completion": text})).max_tokens == tokens


def test_a_conversation_is_asked_as_one(tmp_path: Path) -> None:
    (item,) = task_from_file(write(tmp_path / "talk.jsonl", CHAT)).items()
    assert [turn.content for turn in item.turns] == ["hello"]
    assert (item.prompt, item.answer) == ("hello", "hi")


@pytest.mark.parametrize("row", [CHOICE, WORD, TEXT, PROGRAM, CODE, CHAT], ids=lambda row: "+".join(row))
def test_every_kind_takes_ids_and_families(row: Mapping[str, Any], tmp_path: Path) -> None:
    def numbered(n: int) -> Mapping[str, Any]:
        changed = {key: f"{value} {n}" for key, value in row.items() if key in ("query", "context", "prompt")}
        if "messages" in row:
            changed = {"messages": [{"role": "user", "content": f"hello {n}"}, row["messages"][-1]]}
        return {**row, **changed, "id": n, "family": n // 3}

    task = task_from_file(write(tmp_path / "mine.jsonl", *map(numbered, range(6))))
    assert {item.id: item.cluster for item in task.items()} == {f"{n}": f"{n // 3}" for n in range(6)}
    decide, report = halves(task)
    assert len({item.cluster for item in decide.items()}) == len({item.cluster for item in report.items()}) == 1
    with pytest.raises(DataError, match="has the id '1' of line 1; ids tell items apart"):
        task_from_file(write(tmp_path / "mine.jsonl", numbered(1), {**numbered(2), "id": 1}))


@pytest.mark.parametrize(
    ("good", "bad", "said"),
    [
        (CHOICE, CHOICE | {"gold": 2}, "gold is 2; it must be the number of a choice, 0 to 1"),
        (CHOICE, CHOICE | {"choices": ["yes"]}, "choices must be a list of two texts or more"),
        (CHOICE, CHOICE | {"choices": ["yes", "yes"]}, "choices has the right one, 'yes', twice; keep one of them"),
        (CHOICE, WORD, "lacks query, choices, gold; the first row of this file has query + choices + gold"),
        (WORD, {"context": "a", "word": " "}, "word is ' '; it must be text"),
        (PROGRAM, PROGRAM | {"checks": [{"kind": "sayz", "text": "a"}]}, "unknown check 'sayz'. Did you mean 'says'"),
        (CODE, CODE | {"entry_point": "f()"}, "entry_point is 'f()'; it must be the name of the function"),
        (CODE | {"id": "a"}, CODE | {"id": "a", "prompt": "x"}, "has the id 'a' of line 1"),
        (TEXT, {"prompt": "a"}, "a row has one of"),
        (CHOICE, CHOICE | {"query": "Is it \ud83d?"}, "query has a lone surrogate (U+D83D) at character 7; remove it"),
        (CHOICE, CHOICE | {"choices": ["a", "b\0"]}, "choices[1] has a NUL (U+0000) at character 2; remove it"),
        (
            PROGRAM,
            {"prompt": "a", "checks": [{"kind": "contains_any", "values": ["\udc00"]}]},
            "checks[0].values[0] has a lone surrogate (U+DC00) at character 1; remove it",
        ),
        (CHOICE, "{", "invalid JSON at column 2"),
        (CHOICE, "[1]", "the row is a list; it must be an object, a task's row has one of query"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(good: Any, bad: Any, said: str, tmp_path: Path) -> None:
    path = write(tmp_path / "mine.jsonl", good, bad, bad)
    with pytest.raises(DataError) as error:
        task_from_file(path)
    assert f"{path}:2: " in str(error.value)
    assert f"{path}:3: " in str(error.value)
    assert said in str(error.value)


@pytest.mark.parametrize(
    "row",
    [
        {"question": "Is ice cold?", "choices": ["yes", "no"], "answer": 0},
        {"prompt": "Is ice cold?", "choices": ["yes", "no"], "gold": 0},
        {"chosen": "a", "rejected": "b"},
        {},
    ],
)
def test_a_row_of_no_task_is_told_what_a_task_has(row: Mapping[str, Any], tmp_path: Path) -> None:
    path = write(tmp_path / "mine.jsonl", "", row, CHOICE)
    with pytest.raises(DataError) as error:
        task_from_file(path)
    assert str(error.value).startswith(f"{path}:2: has ")
    assert all(repr(key) in str(error.value) for key in row)
    assert "a task's row has one of query + choices + gold | " in str(error.value)
    assert "conversations" not in str(error.value), "which are for rows to learn"


def test_names_files_and_folders_are_found(tmp_path: Path) -> None:
    write(tmp_path / "one.jsonl", CHOICE)
    write(tmp_path / "two.jsonl", WORD)
    assert [task.name for task in find_tasks(None)] == TASKS.names()
    assert [task.name for task in find_tasks(f"piqa, {tmp_path}")] == ["piqa", "one", "two"]
    assert [task.name for task in find_tasks(f"{tmp_path}/two.jsonl,siqa")] == ["two", "siqa"]
    for given, said in {
        "piqaa": "unknown task 'piqaa'. Did you mean 'piqa'",
        f"{tmp_path}/one.jsonl,{tmp_path}": "two tasks are called one",
        ",": "',' names no task",
    }.items():
        with pytest.raises(ConfigError, match=said):
            find_tasks(given)
    with pytest.raises(DataError, match=r"cannot read .*none\.jsonl: No such file"):
        find_tasks(f"{tmp_path}/none.jsonl")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"holds no \.jsonl file"):
        find_tasks(f"{tmp_path}/empty")


def test_the_order_of_a_file_does_not_matter_and_a_limit_takes_the_first(tmp_path: Path) -> None:
    rows = [CHOICE | {"query": f"Question {n}", "id": str(n)} for n in range(9)]
    task = task_from_file(write(tmp_path / "a.jsonl", *rows))
    turned = task_from_file(write(tmp_path / "b.jsonl", *rows[::-1]))
    assert task.items() == turned.items()
    assert task.limited(4).items() == task.items()[:4]
    assert task.limited(None) is task.limited(9) is task
    assert len({task.key, task.limited(4).key, task.limited(5).key}) == 3
    assert task.key == turned.key


def test_chance_follows_the_items_that_are_asked(tmp_path: Path) -> None:
    two, four = CHOICE, CHOICE | {"query": "Which?", "choices": ["a", "b", "c", "d"]}
    task = task_from_file(write(tmp_path / "a.jsonl", two, four))
    assert task.chance == (0.5 + 0.25) / 2
    assert {task.limited(1).chance} <= {0.5, 0.25}


@pytest.mark.skipif(not SKILLS.is_dir(), reason="the full evaluation sets are not beside this checkout")
@pytest.mark.parametrize("name", ["arc_easy", "piqa", "siqa", "openbook_qa", "lambada"])
def test_a_full_set_begins_as_its_bundled_one(name: str) -> None:
    """The same questions asked in the same words: a certificate goes on where the bundle ends."""
    bundled = TASKS.get(name)
    full = task_from_file(SKILLS / f"{name.replace('lambada', 'lambada_openai')}.jsonl")
    assert full.kind == bundled.kind
    assert len(full.items()) > len(bundled.items())

    def asked(items: tuple[Item, ...]) -> list[object]:
        return [(item.prompt, item.choices, item.gold, item.answer) for item in items]

    assert asked(full.items()[: len(bundled.items())]) == asked(bundled.items())


def test_a_folder_takes_no_bundled_tasks_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lambada").mkdir()
    monkeypatch.chdir(tmp_path)
    (task,) = find_tasks("lambada")
    assert task is TASKS.get("lambada")
