"""A base with few learned positions gets its report card: what does not fit is left out, for base and tuned alike."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import graftwood as gw
import tiny
from conftest import CPU
from graftwood.base import Base, open_base
from graftwood.cli import app, guarded
from graftwood.errors import ConfigError
from graftwood.evals.fitting import FEWEST, fitting
from graftwood.evals.task import TASKS, Item
from graftwood.flags import normal
from graftwood.model.architecture import ARCHITECTURES
from graftwood.model.decoder import Decoder

POSITIONS = 64
LONG = " the user said that the system is here" * 12
QUICK: dict[str, Any] = {"technique": "lora", "epochs": 2, "batch": 4, "evaluations": 1, "quiet": True, "held_out": 0.4}


@pytest.fixture
def folder(tmp_path: Path, tokenizer_files: Callable[[Path], None]) -> Path:
    made = Decoder(ARCHITECTURES.get("gpt2"), tiny.config("gpt2", max_positions=POSITIONS, init_std=0.45))
    made.initialise(0)
    return tiny.model_folder(tmp_path / "tiny", tokenizer_files, made.requires_grad_(False))


@pytest.fixture
def base(folder: Path) -> Base:
    return open_base(str(folder), CPU)


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    """Rows of every length: some lose their end, of some messages the last question does not fit."""
    short = [{"prompt": f"say {n} twice:", "completion": f" {n} {n}"} for n in range(10)]
    long = [{"prompt": f"say {n}:", "completion": f" {n}{LONG}"} for n in range(10, 16)]
    said = ("here is the answer" if n % 2 else "ready" for n in range(16, 24))
    chats = [
        [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": text},
         {"role": "user", "content": f"{n}{LONG}"}, {"role": "assistant", "content": "ready"}]
        for n, text in enumerate(said, 16)
    ]  # fmt: skip
    return [*short, *long, *({"messages": chat} for chat in chats)]


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """A folder of tasks: of `mixed` a part fits, of `rare` too little, of `text` and `program` all."""
    home = tmp_path / "tasks"
    home.mkdir()
    words = [f"{a} {b}" for a in tiny.WORDS[:6] for b in tiny.WORDS[6:9]]
    choices = [{"query": f"the {word}", "choices": ["is", "said"], "gold": 0} for word in words]
    long = [{"query": word + LONG, "choices": ["is", "said"], "gold": 1} for word in words[:7]]
    written(home / "mixed.jsonl", [*choices, *long])
    written(home / "rare.jsonl", [{"context": f"{word}{LONG}", "word": "is"} for word in words] + [
        {"context": word, "word": "is"} for word in words[: FEWEST - 1]
    ])  # fmt: skip
    written(home / "text.jsonl", [{"prompt": f"say {word}:", "completion": f" {word}"} for word in words])
    return home


def test_tune_ends_with_a_card(folder: Path, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    """The bundled questions, rows that are too long, the probe: prefixes take positions from base and tuned alike."""
    kinds = {"completion": [row for row in rows if "prompt" in row], "chat": [row for row in rows if "messages" in row]}
    for kind, given in kinds.items():
        for technique in ("lora", "prefix"):
            own = QUICK | {"technique": technique, "options": {"tokens": 4} if technique == "prefix" else {}}
            run = gw.tune(str(folder), given, out=str(tmp_path / f"{kind}-{technique}"), **own)
            card, room = run.report, POSITIONS - (4 if technique == "prefix" else 0)
            total = sum(len(task.items()) for task in TASKS.all().values())
            (line,) = [line for line in card.warnings if f" of {total} items do not fit in {room} positions" in line]
            asked = [
                (skill.measure.base.n, skill.measure.tuned.n, skill.measure.change.n) for skill in card.kept.skills
            ]
            assert all(len(set(counts)) == 1 for counts in asked)
            unasked = [line for line in card.warnings if "not measured" in line]
            assert any(line.startswith("requests followed: not measured, ") for line in unasked)
            assert len(unasked) + len(asked) == len(TASKS.names())
            assert sum(counts[0] or 0 for counts in asked) <= total - int(line.split()[0])
            assert card.kept.drift.value is not None
            assert card.kept.probe == f"48 texts of {room} tokens that the base wrote itself"
            assert card.memory.loss_train.value is not None
            assert card.gained.measures
            many = any("questions of held-out rows do not fit" in line for line in card.warnings)
            assert many == (kind == "chat")


def test_eval_counts_the_same_items(
    folder: Path, base: Base, tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where an adapter takes positions that the base has: nobody is asked what one has no room for."""
    whole = fitting(base, [TASKS.get("requests")], 10_000)
    assert whole.tasks == (TASKS.get("requests"),)
    assert not whole.left_out
    prefix, lora = tiny.adapter(base, "prefix", tmp_path / "prefix"), tiny.adapter(base, "lora", tmp_path / "lora")
    found = gw.evaluate(folder, [lora, prefix], tasks=str(tasks), out=tmp_path / "out", quiet=True)
    room = POSITIONS - 5
    assert found.left_out == (
        f"25 of 70 items do not fit in {room} positions",
        f"rare: not measured, 18 of 27 items do not fit in {room} positions",
    )
    for judged in (found.base, *found.adapters):
        assert {task.name: task.items for task in judged.tasks} == {"mixed": 18, "text": 18}
        records = (tmp_path / "out" / f"items-{'base' if judged is found.base else judged.name}.jsonl").read_text()
        assert len(records.splitlines()) == 36
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text())["left_out"] == list(found.left_out)
    code = guarded(lambda: app([normal(word) for word in ("eval", str(folder))], standalone_mode=False))
    assert code == 0
    said = " ".join(capsys.readouterr().out.split())
    count = len(TASKS.get("requests").items())
    assert f"requests followed: not measured, {count} of {count} items do not fit in 64 positions" in said


def test_a_fitting_item_is_read_whole(base: Base, tasks: Path) -> None:
    """The longest context that fits is asked as it is, one token more is not."""
    item = TASKS.get("lambada").items()[0]
    ids = base.encoder().begin(item.prompt)
    words = base.tokenizer.encode(item.answer)
    many = TASKS.get("lambada").of((item,) * FEWEST)
    need = len(ids) + len(words) - 1
    assert fitting(base, [many], need).tasks == (many,)
    assert fitting(base, [many], need - 1).tasks == ()


@pytest.mark.parametrize("families", [FEWEST - 1, FEWEST])
def test_what_is_left_of_a_task_must_be_independent(families: int, base: Base) -> None:
    """Many members of few families say no more than few items."""
    short = [Item(f"{n}", f"the user {n}", answer=" is", cluster=f"{n % families}") for n in range(3 * FEWEST)]
    task = TASKS.get("lambada").of((*short, Item("long", f"the{LONG}", answer=" is")))
    found = fitting(base, [task], POSITIONS)
    assert [len(left.items()) for left in found.tasks] == ([3 * FEWEST] if families == FEWEST else [])


def test_an_answer_ends_at_the_last_position(base: Base) -> None:
    engine = gw.generate.engine.Engine(base.decoder, (), base.tokenizer)
    ids = torch.randint(3, 300, (60,)).tolist()
    (done,) = engine.generate([ids], gw.generate.engine.Sampling(max_tokens=48))
    assert (len(done.ids), done.finish) == (4, "length")


def test_a_budget_without_abilities_and_canaries_without_room_are_refused(
    folder: Path, rows: list[dict[str, Any]], tasks: Path, tmp_path: Path
) -> None:
    only = {"skills": str(tasks / "rare.jsonl"), "keep": "95%", "out": str(tmp_path / "run")}
    with pytest.raises(ConfigError, match="no ability of tiny can be measured in 64 positions"):
        gw.tune(str(folder), rows[:10], **QUICK, **only)
    with pytest.raises(ConfigError, match="canaries do not fit in 40 tokens; leave out --canaries"):
        gw.tune(
            str(folder), [{"prompt": f"{n}", "completion": "2"} for n in range(9)], canaries=4, max_length=40, **QUICK
        )
