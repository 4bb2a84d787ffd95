"""Canaries: nothing but training makes one likely, what was repeated often is found, and nothing else counts them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import graftwood as gw
import tiny
from conftest import CPU
from graftwood.base import open_base
from graftwood.cli import app, guarded
from graftwood.data.rows import Row, Turn
from graftwood.errors import ConfigError
from graftwood.evals.canaries import OTHERS, REPEATS, look, made, planted
from graftwood.evals.report import read_report
from graftwood.generate.engine import Engine

ROWS = [{"prompt": f"say {word} now:", "completion": " it is here"} for word in tiny.WORDS]  # valid rows profit
QUICK = {"technique": "full", "batch": 4, "evaluations": 1, "held_out": 0.3, "max_length": 64}
LIKE = {
    "completion": Row("completion", prompt="p", completion="c"),
    "chat": Row("chat", turns=(Turn("user", "u", False), Turn("assistant", "a", True))),
    "text": Row("text", completion="t"),
}


@pytest.fixture
def quick(tmp_path: Path) -> dict[str, Any]:
    """Options of a run that asks next to nothing of its base."""
    skills = tmp_path / "skills.jsonl"
    rows = [{"context": f"the {word} said", "word": word} for word in tiny.WORDS]
    skills.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return QUICK | {"skills": str(skills)}


@pytest.fixture
def folder(tmp_path: Path, tokenizer_files: Callable[[Path], None]) -> Path:
    return tiny.model_folder(tmp_path / "base", tokenizer_files, tiny.decoder(max_positions=512))


def test_they_follow_from_the_seed_and_are_repeated_as_they_say() -> None:
    canaries = made(64, seed=3)
    assert canaries == made(64, seed=3)
    assert canaries != made(64, seed=4)
    assert len({canary.asked for canary in canaries}) == 64
    rows = planted(canaries, LIKE["completion"])
    assert len(rows) == 16 * sum(REPEATS)
    for canary in canaries:
        assert sum(row.prompt == canary.asked for row in rows) == canary.repeats
        assert all(row.completion == f" {canary.secret}" for row in rows if row.prompt == canary.asked)


@pytest.mark.parametrize("kind", list(LIKE))
def test_a_base_that_never_saw_them_is_at_chance(kind: str, folder: Path) -> None:
    base = open_base(str(folder), CPU)
    engine = Engine(base.decoder, base.tokenizer.eos, base.tokenizer)
    found = look(base, engine, made(16, seed=1), kind, seed=1)
    assert found.compared == OTHERS + 1 == 256
    assert found.exposure.low is not None
    assert found.exposure.high is not None
    assert found.exposure.low < 1.43 < found.exposure.high
    assert not any(one.verbatim for one in found.found)
    (row,) = planted(made(1, seed=1), LIKE[kind])
    assert row.kind == kind
    assert made(1, seed=1)[0].secret in row.parts[-1]


def test_what_is_learned_by_heart_is_found(
    folder: Path, quick: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = quick | {"epochs": 40, "lr": 0.01, "patience": 99}
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    out = tmp_path / "run"
    flags = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    words = ["tune", "--model", str(folder), "--data", str(data), "--out", str(out), "--canaries", "4", *flags]
    assert guarded(lambda: app(words, standalone_mode=False)) == 0
    captured = capsys.readouterr()
    assert "canaries: 4 planted as 15 training rows, repeated 1, 2, 4, 8 times" in captured.err
    card = read_report(out)
    found = card.memory.canaries
    assert found is not None
    assert [one.repeats for one in found.found] == [1, 2, 4, 8]
    often = found.found[-1]
    assert (often.exposure, often.verbatim) == (8.0, True)
    assert card.data_rows["train"] + card.data_rows["valid"] == len(ROWS)
    assert card.gained.rows == card.data_rows["valid"]
    assert card.chosen.settings["canaries"] == "4 planted as 15 rows"
    line = "said word for word; exposure"
    assert line in " ".join(captured.out.split())
    page = (out / "report.html").read_text(encoding="utf-8")
    assert line in page
    assert "seen 8 times a pass" in page


def test_without_the_option_nothing_is_planted(folder: Path, quick: dict[str, Any], tmp_path: Path) -> None:
    plain = gw.tune(str(folder), ROWS, out=str(tmp_path / "plain"), epochs=1, quiet=True, **quick)
    assert plain.report.memory.canaries is None
    assert "canaries" not in plain.report.chosen.settings
    run = gw.tune(str(folder), ROWS, out=str(tmp_path / "run"), epochs=1, quiet=True, canaries=2, **quick)
    assert run.report.data_rows == plain.report.data_rows
    assert run.report.memory.loss_train.n == plain.report.memory.loss_train.n
    assert run.report.gained.measures[0].base == plain.report.gained.measures[0].base
    assert run.report.cost.train_tokens > plain.report.cost.train_tokens


def test_several_sources_are_refused(folder: Path, tmp_path: Path) -> None:
    files = []
    for name in ("one", "two"):
        files.append(tmp_path / f"{name}.jsonl")
        files[-1].write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    with pytest.raises(ConfigError, match="--canaries are planted among the rows of one source"):
        gw.tune(str(folder), files, out=str(tmp_path / "run"), quiet=True, canaries=2)
