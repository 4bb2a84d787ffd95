"""Few-shot questions: shown are other items with their answers, the same ones as far as that goes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import tiny
from conftest import CPU
from graftwood.base import open_base
from graftwood.data.rows import Turn
from graftwood.errors import ConfigError
from graftwood.evals.asking import score_task
from graftwood.evals.shots import with_shots
from graftwood.evals.task import TASKS, Item, Task
from graftwood.evals.tiers import sized
from graftwood.generate.engine import Engine


def task(kind: str, items: list[Item]) -> Task:
    return Task("mine", "mine", kind, 1, 0.0, "", "", lambda: tuple(items))  # type: ignore[arg-type]


CHOICES = [Item(f"{n}", f"Question: {n}?\nAnswer:", (f" right {n}", f" wrong {n}")) for n in range(12)]


@pytest.mark.parametrize("shots", [1, 3, 11])
def test_an_item_is_shown_others_and_never_itself(shots: int) -> None:
    for plain, item in zip(CHOICES, with_shots(task("choice", CHOICES), shots).items(), strict=True):
        *shown, asked = item.prompt.split("\n\n")
        assert asked == plain.prompt
        assert len(set(shown)) == shots
        assert f"Question: {plain.id}?\nAnswer: right {plain.id}" not in shown
        assert all(part in {f"Question: {n}?\nAnswer: right {n}" for n in range(12)} for part in shown)
        assert (item.choices, item.gold, item.id) == (plain.choices, plain.gold, plain.id)


def test_all_but_the_shown_are_shown_the_same_and_the_seed_draws_them() -> None:
    found = with_shots(task("choice", CHOICES), 3)
    beginnings = Counter(item.prompt.rpartition("\n\n")[0] for item in found.items())
    assert beginnings.most_common(1)[0][1] == 9
    assert found.key == with_shots(task("choice", CHOICES), 3).key
    assert found.key != with_shots(task("choice", CHOICES), 3, seed=1).key


def test_what_belongs_together_is_not_shown_to_each_other() -> None:
    pairs = [Item(f"{n}", f"q{n}", answer=f" a{n}", cluster=f"{n // 2}") for n in range(10)]
    for item in with_shots(task("word", pairs), 8).items():
        *shown, asked = item.prompt.split("\n\n")
        sibling = f"q{int(item.id) ^ 1} "
        assert asked == f"q{item.id}"
        assert not any(part.startswith((sibling, f"{asked} ")) for part in shown)


def test_a_conversation_goes_on_after_answered_ones() -> None:
    talks = [Item(f"{n}", f"q{n}", answer=f"a{n}", turns=(Turn("user", f"q{n}", False),)) for n in range(3)]
    for item in with_shots(task("text", talks), 2).items():
        assert [turn.role for turn in item.turns] == ["user", "assistant", "user", "assistant", "user"]
        assert item.turns[-1].content == f"q{item.id}"
        assert [turn.content[1:] for turn in item.turns[:4:2]] == [turn.content[1:] for turn in item.turns[1:4:2]]


def test_a_system_message_is_the_items_own_and_comes_first() -> None:
    def turns(name: str) -> tuple[Turn, ...]:
        return Turn("system", f"be {name}", False), Turn("user", f"say {name}", False)

    items = [Item(name, "", answer=name, turns=turns(name)) for name in "abc"]
    for item in with_shots(task("text", items), 2).items():
        assert [turn.role for turn in item.turns] == ["system", *("user", "assistant") * 2, "user"]
        assert (item.turns[0].content, item.turns[-1].content) == (f"be {item.id}", f"say {item.id}")


def test_an_answer_to_plain_text_ends_where_the_next_item_would_begin() -> None:
    texts = [Item(f"{n}", f"q{n}", answer=f" a{n}\n\n") for n in range(4)]
    plain = task("text", texts)
    found = with_shots(plain, 2)
    assert (plain.stop, found.stop) == ((), ("\n\n",))
    assert found.key != plain.of(found.items()).key
    assert with_shots(plain, 0).stop == ()
    assert with_shots(task("choice", CHOICES), 2).stop == ()
    assert with_shots(task("text", [*texts, Item("4", "q4", answer=" a\n\nb")]), 2).stop == ()
    talks = [Item(f"{n}", f"q{n}", answer="a", turns=(Turn("user", f"q{n}", False),)) for n in range(3)]
    assert with_shots(task("text", talks), 2).stop == ()


def test_what_follows_the_end_of_an_answer_is_not_judged(
    tmp_path: Path, tokenizer_files: Callable[[Path], None]
) -> None:
    base = open_base(str(tiny.model_folder(tmp_path / "tiny", tokenizer_files)), CPU)
    engine = Engine(base.decoder, base.tokenizer.eos, base.tokenizer)
    items = [Item(f"{n}", f"the {word}", answer="x") for n, word in enumerate(tiny.WORDS)]
    free = replace(task("text", items), max_tokens=12, metric="exact_match")
    before = score_task(base, engine, free)
    end = max((text[2:4] for text in before.said), key=lambda end: (len(end), end))
    first = [text.partition(end)[0] for text in before.said]
    right = replace(free, read=lambda: tuple(map(lambda i, a: replace(i, answer=a), items, first)), stop=(end,))
    for drafts in (None, before):
        after = score_task(base, engine, right, drafts)
        assert (list(after.said), set(after.right)) == (first, {1.0})
    assert first != list(before.said)


def test_requests_and_programs_stay_as_they_are() -> None:
    requests = TASKS.get("requests")
    assert with_shots(requests, 2) is requests


def test_too_many_are_refused() -> None:
    for shots in (12, -1):
        with pytest.raises(ConfigError, match=f"--shots {shots}"):
            with_shots(task("choice", CHOICES), shots)


def test_items_beyond_the_usual_ones_are_shown_as_many_of_those() -> None:
    usual = TASKS.get("piqa").items()
    (asked,) = sized([with_shots(TASKS.get("piqa"), 3)], "certificate")
    assert len(asked.items()) == 400
    assert {item.prompt.count("\nAnswer:") for item in asked.items()} == {4}
    beyond = asked.items()[-1].prompt.split("\n\n")
    assert {part.partition("\nAnswer:")[0] for part in beyond[:-1]} <= {
        item.prompt[: -len("\nAnswer:")] for item in usual
    }
