"""`graft eval`: a base and adapters asked the same, the base left as it was, every item on record."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

import graftwood as gw
import tiny
from conftest import CPU
from graftwood.base import Base, open_base
from graftwood.cli import app, guarded
from graftwood.errors import ConfigError, StorageError
from graftwood.evals.given import find_tasks
from graftwood.evaluation import _names, _on, _put
from graftwood.files import cache_home
from graftwood.flags import normal
from graftwood.progress import Display

WORDS = ("the", "user", "said", "that", "system", "is", "here", "answer")


@pytest.fixture
def folder(tmp_path: Path, tokenizer_files: Callable[[Path], None]) -> Path:
    return tiny.model_folder(tmp_path / "tiny", tokenizer_files, tiny.decoder(init_std=0.45))


@pytest.fixture
def base(folder: Path) -> Base:
    return open_base(str(folder), CPU)


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """A folder of small tasks of every kind that needs no program to be run."""
    home = tmp_path / "tasks"
    home.mkdir()
    rows = {
        "choice": [
            {"query": f"the {a} of {b}", "choices": [a, b, "end"], "gold": n % 2}
            for n, (a, b) in enumerate(pairwise(WORDS))
        ],
        "word": [{"context": f"the {word} said", "word": word} for word in WORDS],
        "text": [{"prompt": f"say {word}:", "completion": f" {word}"} for word in WORDS],
        "program": [{"prompt": f"say {w}", "checks": [{"kind": "says", "text": w}]} for w in WORDS],
    }
    for name, given in rows.items():
        (home / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given), encoding="utf-8")
    return home


def test_adapters_take_turns_on_one_base(base: Base, tasks: Path, tmp_path: Path) -> None:
    """However many come before it, an adapter scores as it does alone, and the base is asked once."""
    one = tiny.adapter(base, "lora", tmp_path / "one")
    two = tiny.adapter(base, "prefix", tmp_path / "two")
    same = tiny.adapter(base, "lora", tmp_path / "same", size=0.0)
    own = dict(base.decoder.named_parameters())
    asked = find_tasks(str(tasks))
    found, records = _put(base, [one, two, same], asked, {}, Display(quiet=True))
    assert all(parameter is own[path] for path, parameter in base.decoder.named_parameters())
    assert list(records) == ["base", "one", "two", "same"]
    alone, _ = _put(base, [two], asked, {}, Display(quiet=True))
    assert alone.adapters[0] == found.adapters[1]
    assert alone.base == found.base
    kept = {judged.name: judged.kept for judged in found.adapters}
    assert kept["same"] is not None
    assert kept["same"].drift.value == 0.0
    assert [(skill.lost, skill.won) for skill in kept["same"].skills] == [(0, 0)] * 4
    assert all(skill.p_value == 1.0 for skill in kept["same"].skills)
    assert kept["one"] is not None
    assert kept["one"].drift.value is not None
    assert kept["one"].drift.value > 0.01
    assert [task.kind for task in found.base.tasks] == ["choice", "program", "text", "word"]


def test_an_adapter_that_does_not_fit_leaves_the_base_alone(base: Base, tmp_path: Path) -> None:
    broken = tiny.adapter(base, "lora", tmp_path / "broken")
    config = json.loads((broken / "adapter_config.json").read_text(encoding="utf-8"))
    (broken / "adapter_config.json").write_text(json.dumps(config | {"r": 7}), encoding="utf-8")
    with torch.no_grad():
        before = base.decoder(torch.tensor([[5, 6, 7]]))
    with pytest.raises(ConfigError, match="does not fit this base"), _on(base, broken):
        pass
    with torch.no_grad():
        assert torch.equal(base.decoder(torch.tensor([[5, 6, 7]])), before)


def test_every_item_is_on_record(folder: Path, base: Base, tasks: Path, tmp_path: Path) -> None:
    given = tiny.adapter(base, "lora", tmp_path / "runs" / "noise" / "adapter")
    found = gw.evaluate(folder, [given], tasks=str(tasks), limit=5, out=tmp_path / "out", quiet=True)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "evaluation.json", "items-base.jsonl", "items-noise.jsonl",
    }  # fmt: skip
    for name, judged in (("base", found.base), ("noise", found.adapters[0])):
        lines = (tmp_path / "out" / f"items-{name}.jsonl").read_text(encoding="utf-8").splitlines()
        records = [json.loads(line) for line in lines]
        assert len(records) == 20
        for task in judged.tasks:
            own = [record for record in records if record["task"] == task.name]
            assert len({record["id"] for record in own}) == task.items == 5
            assert task.score.value == pytest.approx(sum(record["right"] for record in own) / 5)
            assert all(isinstance(record["said"], str) for record in own)
            assert (task.soft is None) == (task.kind in ("text", "program"))
            if task.soft is not None:
                assert task.soft.value == pytest.approx(sum(record["soft"] for record in own) / 5)
    written = json.loads((tmp_path / "out" / "evaluation.json").read_text(encoding="utf-8"))
    assert written == json.loads(json.dumps(found.model_dump()))


def test_the_base_is_asked_once_and_again_when_a_question_changes(folder: Path, tasks: Path) -> None:
    def shelf() -> set[str]:
        return {path.name for path in (cache_home() / "base-scores").rglob("*.json")}

    first = gw.evaluate(folder, tasks=str(tasks), quiet=True)
    kept = shelf()
    assert len(kept) == 4
    again = gw.evaluate(folder, tasks=str(tasks), quiet=True)
    assert shelf() == kept
    assert again.base == first.base
    with (tasks / "word.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"context": "one more", "word": "said"}\n')
    gw.evaluate(folder, tasks=str(tasks), quiet=True)
    assert len(shelf()) == 5


def test_the_base_is_asked_again_when_its_template_or_its_end_is_another(folder: Path, tasks: Path) -> None:
    """The same weights read and write other ids then."""

    def asked() -> set[str]:
        gw.evaluate(folder, tasks=str(tasks), quiet=True)
        names = {path.name for path in (cache_home() / "base-scores").rglob("*.json")}
        new, known[:] = names - set(known), sorted(names)
        return {name.split("-")[0] for name in new}

    known: list[str] = []
    assert asked() == {"choice", "word", "text", "program"}
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    settings["chat_template"] = "{% for m in messages %}# {{ m.content }}\n{% endfor %}{{ 'Assistant:' }}"
    path.write_text(json.dumps(settings))
    assert asked() == {"program"}, "what is plain text is asked in the same ids"
    path.write_text(json.dumps(settings | {"eos_token": "<|endoftext|>"}))
    assert asked() == {"choice", "word", "text", "program"}
    assert asked() == set()


def test_every_adapter_has_a_name_wherever_one_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for run in (tmp_path / "run", tmp_path / "runs" / "other", tmp_path / "other"):
        (run / "adapter").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "run")
    assert _names([Path("adapter")]) == _names([Path(".")]) == ["run"]
    apart = _names([Path("../runs/other"), Path("../other/adapter"), Path("adapter")])
    assert len(set(apart)) == 3, "each has records of its own"


def test_a_run_stands_for_its_base_and_its_adapter(folder: Path, base: Base, tasks: Path, tmp_path: Path) -> None:
    run, whole = tmp_path / "lora-run", tmp_path / "full-run"
    tiny.adapter(base, "lora", run / "adapter")
    (run / "run.toml").write_text(f'model = "{folder}"\n', encoding="utf-8")
    found = gw.evaluate(run, tasks=str(tasks), tier="pulse", quiet=True)
    assert [judged.name for judged in found.adapters] == ["lora-run"]
    (whole / "model").mkdir(parents=True)
    with pytest.raises(ConfigError, match="left a whole model, not an adapter; ask it alone: graft eval"):
        gw.evaluate(folder, [whole], tasks=str(tasks), quiet=True)


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A code task. A tiny model writes no Python, so that only what needs none can pass: here its words are a text."""
    easy, hard, quotes = "def one():\n    return 1\n\n\nanswer = r", "def one():\n", 3 * "'"
    rows = [
        {"prompt": easy + quotes, "test": f"{quotes}\ndef check(f): pass", "entry_point": "one", "task_id": "easy"},
        {"prompt": hard, "test": "def check(f):\n    assert f() == 1", "entry_point": "one", "task_id": "hard"},
    ]
    path = tmp_path / "code.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_programs_are_written_run_and_counted(
    folder: Path, programs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("eval", folder, "--tasks", programs, "--samples", 10, "-t", 0.8, "--out", tmp_path / "out")
    code, out, said = graft(capsys, *words)
    assert code == 0, said
    assert "pass@10" in out
    assert any("kept from the network by" in line for line in said)
    records = [json.loads(line) for line in (tmp_path / "out" / "items-base.jsonl").read_text().splitlines()]
    shares = {record["id"]: record["right"] for record in records}
    assert shares["hard"] == 0.0
    assert shares["easy"] > 0.5
    assert all(record["said"].count("another sample") == 9 for record in records)


def test_another_seed_draws_other_samples(folder: Path, programs: Path, tmp_path: Path) -> None:
    said = {}
    for name, seed, temperature in (
        ("0", 0, 0.8),
        ("3", 3, 0.8),
        ("3 again", 3, 0.8),
        ("cold", 0, 0.0),
        ("cold 3", 3, 0.0),
    ):
        out = tmp_path / name
        gw.evaluate(folder, tasks=str(programs), seed=seed, temperature=temperature, out=out, quiet=True)
        said[name] = [json.loads(line)["said"] for line in (out / "items-base.jsonl").read_text().splitlines()]
    assert said["0"] != said["3"] == said["3 again"]
    assert said["cold"] == said["cold 3"]
    (code,) = find_tasks(str(programs))
    assert code.sampled(1, 0.0, 3).key == code.key, "nothing is drawn, so nothing is another"
    assert code.sampled(1, 0.5).key == code.sampled(1, 0.5, 0).key != code.sampled(1, 0.5, 3).key


def test_a_run_that_runs_programs_says_what_keeps_them_in(
    folder: Path, programs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"say {n}:", "completion": f" {n}"}) + "\n" for n in range(8)))
    words = ("tune", "--data", rows, "--model", folder, "--technique", "lora", "--epochs", 1, "--max-length", 64)
    code, out, said = graft(capsys, *words, "--skills", programs, "--out", tmp_path / "run", "--json")
    assert code == 0, said
    settings = json.loads(out)["chosen"]["settings"]
    line = f"model-written programs run here, kept from the network by {settings['programs kept in by']}"
    before = next(place for place, told in enumerate(said) if "measuring:" in told)
    assert any(line in told for told in said[:before])


def graft(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, list[str]]:
    """Exit code, data, and what was said."""
    capsys.readouterr()
    code = guarded(lambda: app([normal(str(word)) for word in words], standalone_mode=False))
    captured = capsys.readouterr()
    return code, captured.out, captured.err.splitlines()


def test_the_verb_shows_a_table_or_json(
    folder: Path, base: Base, tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    one, two = tiny.adapter(base, "lora", tmp_path / "one"), tiny.adapter(base, "ia3", tmp_path / "two")
    words = ("eval", folder, "-a", one, "-a", two, "--tasks", tasks)
    code, out, _ = graft(capsys, *words)
    assert code == 0
    for heading in ("change [95%]", "lost/won", "kept", "drift", "choice: 7 items, chance 33.3%"):
        assert heading in out
    assert [line.split()[0] for line in out.splitlines()[2:6]] == ["base", "one", "two", "program:"]
    assert max(map(len, out.splitlines())) <= 80, "it fits a terminal of the usual width"
    monkeypatch.setenv("COLUMNS", "50")
    code, out, _ = graft(capsys, *words)
    assert code == 0
    assert max(map(len, out.splitlines())) <= 50
    assert "…" not in out, "what is too wide for the terminal is folded, not cut"
    code, out, _ = graft(capsys, *words, "--json")
    assert code == 0
    assert [judged["name"] for judged in json.loads(out)["adapters"]] == ["one", "two"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--tier", "standart"), "unknown tier 'standart'. Did you mean 'standard'"),
        (("--shots", "500"), "--shots 500: arc_easy has only 99 other items"),
        (("--limit", "1"), "--limit 1 leaves nothing to compare"),
        (("--tasks", "nothing"), "unknown task 'nothing'"),
        (("--adapter", "no/such"), "no/such is no adapter folder"),
    ],
)
def test_what_cannot_be_asked_is_one_line(
    words: tuple[str, ...], said: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = graft(capsys, "eval", folder, *words)
    assert (code, out) == (2, "")
    assert said in err[-1]


def test_where_records_go_is_tried_before_anything_is_asked(folder: Path, tasks: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.write_text("a file", encoding="utf-8")
    with pytest.raises(StorageError, match=f"cannot write into {out}"):
        gw.evaluate(tmp_path / "nothing" / "here", tasks=str(tasks), out=out, quiet=True)
    assert not (cache_home() / "base-scores").exists()


def test_a_model_and_a_single_adapter_are_taken(base: Base, folder: Path, tasks: Path, tmp_path: Path) -> None:
    made, task = tiny.adapter(base, "lora", tmp_path / "noise"), str(tasks / "word.jsonl")
    found = gw.evaluate(gw.load(folder), str(made), tasks=task, quiet=True)
    assert [one.name for one in found.adapters] == ["noise"]
    model = gw.load(folder, made)
    for _ in range(2):
        with pytest.raises(ConfigError, match="the model carries an adapter; give the base"):
            gw.evaluate(model, tasks=task, quiet=True)
        model.merge()
