"""The verbs that make a model from text, as their users meet them."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from graftwood.cli import app, guarded
from graftwood.flags import normal

LINES = "".join(f"line {n} of a text that says little, again and again\n" for n in range(200))


def graft(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, list[str]]:
    """Exit code, data, and what was said."""
    capsys.readouterr()
    code = guarded(lambda: app([normal(str(word)) for word in words], standalone_mode=False))
    captured = capsys.readouterr()
    return code, captured.out, captured.err.splitlines()


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(LINES, encoding="utf-8")
    return path


def test_a_tokenizer_and_its_report(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = graft(capsys, "tokenizer", "train", text, "--out", tmp_path / "tok", "--vocab", "0.3k", "--json")
    told = json.loads(out)
    assert code == 0
    assert 259 < told["vocab_size"] <= 300
    assert 1 < told["held_out_bytes_a_token"] < 10
    assert told["held_out_bytes"] + told["training_bytes"] == len(LINES)
    code, _, said = graft(capsys, "tokenizer", "train", text, "--out", tmp_path / "more", "--vocab", "many")
    assert (code, said) == (2, ["graft: 'many' is not a count; write 4096, 64M or the like"])


def test_a_corpus_from_stdin(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"one\n\ntwo\n\none")))
    words = ("--out", tmp_path / "corpus", "--tokenizer", "bytes", "--separator", "\\n\\n", "--held-out", 0, "--json")
    code, out, said = graft(capsys, "prepare", "-", *words)
    told = json.loads(out)
    assert code == 0, said
    assert told["documents"] == {"train": 2, "valid": 0}
    assert told["bytes"]["train"] == 6
    assert any(line.startswith("removed: 1 documents that repeat others") for line in said)


def test_what_a_run_would_do(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.toml").write_text(f'data = "{text}"\ntokenizer = "chars"\nlayers = 1\n', encoding="utf-8")
    words = (
        "--params",
        "20k",
        "--width",
        32,
        "--context",
        16,
        "--tokens",
        "2k",
        "--out",
        tmp_path / "run",
        "--device",
        "cpu",
    )
    code, out, said = graft(capsys, "pretrain", tmp_path / "run.toml", *words, "--dry-run", "--json")
    assert code == 0, said
    assert json.loads(out)["trained_parameters"] > 10_000
    assert "  width 32: as given" in said
    assert any(line.strip().startswith("tokens 2,000: as given") for line in said)
    assert any(line.strip().startswith("learning rate") and "2401.02954" in line for line in said)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ((), "data is missing: give --data or the key data in a run file"),
        (
            ("--data", "nowhere.txt"),
            "nowhere.txt: there is no such file or folder, and no file matches it as a pattern",
        ),
        (("--data", "{text}", "--tokenizer", "words"), None),
        (("--data", "{text}", "--depth", 2, "--params", "1M"), "--depth and --params are one dial; give one of them"),
        (("--data", "{text}", "--optimiser", "sgd"), None),
        (("--data", "{text}", "--resume"), None),
    ],
)
def test_what_cannot_work_is_one_line(
    words: tuple[object, ...], line: str | None, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(word).replace("{text}", str(text)) for word in words]
    code, _, said = graft(capsys, "pretrain", *given, "--out", tmp_path / "run")
    assert code == 2
    assert said[-1].startswith("graft: ")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    if line is not None:
        assert said[-1] == f"graft: {line}"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("prepare", "{empty}"), "there is no text in {empty}: every file is empty"),
        (("tokenizer", "train", "{empty}"), "there is no text in {empty}: every file is empty"),
        (("prepare", "{text}", "--held-out", "nan"), "the held-out share is nan; it must be at least 0 and below 1"),
        (("tokenizer", "train", "{text}", "--held-out", "2"), "the held-out share is 2; it must be at least 0 and"),
        (("prepare", "{corpus}"), "{corpus} is a prepared corpus, not text: give it to graft pretrain --data"),
        (("tune", "--data", "{corpus}"), "{corpus} is a prepared corpus, which graft pretrain reads"),
        (("tune", "--data", "{utf16}"), "{utf16} is UTF-16; save it as UTF-8"),
    ],
)
def test_what_is_no_text_or_no_rows(
    words: tuple[str, ...], said: str, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {"text": text, "empty": tmp_path / "empty.txt", "corpus": tmp_path / "there", "utf16": tmp_path / "u.jsonl"}
    names["empty"].touch()
    names["utf16"].write_text('{"prompt": "a", "completion": "b"}\n', encoding="utf-16")
    if "{corpus}" in words:
        assert graft(capsys, "prepare", text, "--out", names["corpus"], "--tokenizer", "bytes")[0] == 0
    code, _, lines = graft(capsys, *(word.format(**names) for word in words), "--out", tmp_path / "out")
    assert code == 2
    assert said.format(**names) in lines[-1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--gpus", "²xA100-80GB"), "--gpus ²xA100-80GB is not a number and a GPU"),
        (("--gpus", "8xA100-80GB", "--tokens", "²"), "'²' is not a count"),
        (("--gpus", "8xA100-80GB", "--tokens", "0"), "'0' is not a count"),
    ],
)
def test_what_is_no_number(words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, lines = graft(capsys, "plan", "gpt3-175b", *words)
    assert code == 2
    assert said in lines[-1]
