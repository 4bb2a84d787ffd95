"""Whole runs of a tiny model: every file they leave, what Python gets back, resuming and handing over."""

from __future__ import annotations

import io
import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

import graftwood as gw
from command import Graft
from graftwood.config import PretrainConfig, RunConfig, resolve
from graftwood.errors import ConfigError, DataError, ModelError
from graftwood.evals.report import read_report
from graftwood.files import claimed
from graftwood.handover import export
from graftwood.model.quantised import quantise
from graftwood.progress import Display
from graftwood.run import dry_pretrain, dry_run, run
from graftwood.train.loop import Evaluated, Stepped, Trainer
from graftwood.training import run_folder
from tiny import adapter, decoder, model_folder

WORDS = ("the", "user", "said", "that", "system", "is", "here")
ROWS = [{"prompt": f"say {word}:", "completion": f" {word} {word}"} for word in WORDS]
QUICK = {
    "technique": "lora",
    "epochs": 2,
    "batch": 2,
    "evaluations": 2,
    "quiet": True,
    "held_out": 0.3,
    "max_length": 64,
    "lr": 1e-3,
}


@pytest.fixture
def model(tmp_path: Path, tokenizer_files: Callable[[Path], None]) -> gw.Model:
    folder = model_folder(tmp_path / "base", tokenizer_files, decoder(max_positions=512))
    return gw.load(folder)


def test_the_live_line_shows_names_of_tasks_with_their_brackets() -> None:
    display = Display()
    display.console = Console(file=io.StringIO(), force_terminal=True, width=200)
    with display.training(2, 0) as line:
        line.show(Evaluated(0, 1.0, None, True, {"notes[/v2]": 1.0, "other": 1.0}))
        line.show(Stepped(1, 1.0, 1.0, 1e-3, 10, 10, 1.0))
        assert line.progress is not None
        line.progress.refresh()
    assert display.console.file.getvalue().count("notes[/v2] 1.000") >= 2, "in the line that stays and in the live one"


@pytest.mark.parametrize("technique", ["lora", "full", "prefix"])
def test_a_run_leaves_everything_it_promises(technique: str, model: gw.Model, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run = gw.tune(model, ROWS, out=out.as_posix(), **QUICK | {"technique": technique})
    left = {path.name for path in out.iterdir()}
    result = "model" if technique == "full" else "adapter"
    assert {"run.toml", "metrics.jsonl", "curve.svg", "report.json", "report.html", "checkpoints", result} <= left
    assert read_report(out) == run.report
    assert run.report.gained.rows == run.report.data_rows["valid"]
    assert run.report.kept.drift.value is not None
    assert run.report.kept.drift.value > 0
    assert run.report.memory.loss_train.value is not None
    logged = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in logged if "loss" in record] == list(range(1, run.report.chosen.steps + 1))
    again = gw.load(out)
    assert again.generate(["say the:"], max_tokens=8) == run.model.generate(["say the:"], max_tokens=8)
    if technique == "prefix":
        with pytest.raises(ConfigError, match="prefix cannot be merged: what it trained stands before the text"):
            again.merge()
        assert again.generate(["say the:"], max_tokens=8) == run.model.generate(["say the:"], max_tokens=8)


def test_what_both_said_is_left_item_by_item(model: gw.Model, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run = gw.tune(model, ROWS, out=str(out), **QUICK | {"lr": 1.0, "skills": "arc_easy,requests", "tier": "pulse"})
    base, tuned = (json.loads((out / name).read_text()) for name in ("base.json", "tuned.json"))
    assert [len(side["said"]) for side in (base, tuned)] == [run.report.gained.rows] * 2
    total, tokens = (sum(column) for column in zip(*tuned["losses"], strict=True))
    assert total / tokens == pytest.approx(run.report.gained.measures[-1].tuned.value)
    assert {*tuned["scores"]} == {skill.measure.name for skill in run.report.kept.skills} == {"arc_easy", "requests"}
    for skill in run.report.kept.skills:
        before, after = (side["scores"][skill.measure.name] for side in (base, tuned))
        assert before["id"] == after["id"]
        assert len({*after["id"]}) == len(after["right"]) == len(after["said"]) == 10
        pairs = list(zip(before["right"], after["right"], strict=True))
        assert (sum(a < b for b, a in pairs), sum(a > b for b, a in pairs)) == (skill.lost, skill.won)
    again = gw.tune(gw.load(tmp_path / "base"), ROWS, out=str(out), resume=True,
                    **QUICK | {"lr": 1.0, "skills": "arc_easy,requests", "tier": "pulse"})  # fmt: skip
    assert again.report.kept == run.report.kept, "what was read back is what was asked"


def test_its_run_file_repeats_it(model: gw.Model, tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    first = gw.tune(model, data, out=str(tmp_path / "one"), rank=2, **QUICK)
    config = resolve(tmp_path / "one" / "run.toml", {"out": str(tmp_path / "two")})
    assert config.options == {"rank": 2}
    options = config.model_dump(exclude={"model", "data"}) | {"quiet": True}
    second = gw.tune(gw.load(tmp_path / "base"), data, **options)
    assert second.report.gained == first.report.gained
    weights = [(tmp_path / name / "adapter" / "adapter_model.safetensors").read_bytes() for name in ("one", "two")]
    assert weights[0] == weights[1]


def test_a_used_folder_is_refused_and_an_empty_one_cannot_be_resumed(model: gw.Model, tmp_path: Path) -> None:
    gw.tune(model, ROWS, out=str(tmp_path / "run"), **QUICK)
    fresh = gw.load(tmp_path / "base")
    with pytest.raises(ConfigError, match="already holds a run"):
        gw.tune(fresh, ROWS, out=str(tmp_path / "run"), **QUICK)
    with pytest.raises(ConfigError, match="nothing to resume"):
        gw.tune(fresh, ROWS, out=str(tmp_path / "other"), resume=True, **QUICK)
    with pytest.raises(ConfigError, match="already carries an adapter"):
        gw.tune(model, ROWS, out=str(tmp_path / "third"), **QUICK)


def test_float16_is_for_generating_alone(model: gw.Model, tmp_path: Path) -> None:
    half = gw.load(tmp_path / "base", dtype="float16")
    assert half.generate("one", max_tokens=2)
    config = RunConfig(data="rows.jsonl", model=str(tmp_path / "base"), dtype="float16")
    text = {"data": str(tmp_path / "text.txt"), "out": str(tmp_path / "new"), "dtype": "float16"}
    for begin in (
        lambda: gw.tune(half, ROWS, out=str(tmp_path / "run"), **QUICK),
        lambda: gw.tune(model, ROWS, out=str(tmp_path / "run"), dtype="float16", **QUICK),
        lambda: dry_run(config, Display(quiet=True)),
        lambda: gw.pretrain(**text),
        lambda: dry_pretrain(PretrainConfig(**text), Display(quiet=True)),
    ):
        with pytest.raises(ConfigError, match=r"float16 is for generating: .* give --dtype bfloat16"):
            begin()
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "new").exists()


def test_its_run_file_works_from_any_folder(model: gw.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "".join(json.dumps(row) + "\n" for row in ROWS)
    for name in ("rows", "valid", "test", "old"):
        (tmp_path / f"{name}.jsonl").write_text(text)
    monkeypatch.chdir(tmp_path)
    given = {"valid": "valid.jsonl", "test": "test.jsonl", "anchors": {"replay": {"file": "old.jsonl"}}}
    gw.tune(model, "rows.jsonl", out="run", **QUICK | given)
    monkeypatch.chdir("/")
    config = resolve(tmp_path / "run" / "run.toml", {"out": str(tmp_path / "again")})
    assert config.anchors == {"replay": {"file": str(tmp_path / "old.jsonl")}}
    assert run(config, Display(quiet=True)).report.chosen.stopped == "all steps done"


@pytest.mark.parametrize("name", ["model", "adapter", "checkpoints", "arms", "each"])
def test_a_folder_that_no_run_wrote_is_not_replaced(name: str, model: gw.Model, tmp_path: Path) -> None:
    (tmp_path / "project" / name).mkdir(parents=True)
    (tmp_path / "project" / name / "mine.txt").write_text("mine")
    for resume in (False, True):
        with pytest.raises(ConfigError, match=f"{name} would be replaced, and no run here wrote that"):
            gw.tune(model, ROWS, out=str(tmp_path / "project"), resume=resume, **QUICK)
    assert [path.name for path in (tmp_path / "project").rglob("*")] == [name, "mine.txt"]


def test_an_interrupted_run_reports_and_goes_on(model: gw.Model, tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = QUICK | {"epochs": 400, "evaluations": 2}

    def interrupt() -> None:
        log = out / "metrics.jsonl"
        while not (log.exists() and log.read_text().count("\n") > 3):
            time.sleep(0.01)
        signal.raise_signal(signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    run = gw.tune(model, ROWS, out=str(out), **options)
    assert run.report.chosen.stopped == "stopped by you"
    assert 0 < run.report.chosen.steps < 800
    done = gw.tune(gw.load(tmp_path / "base"), ROWS, out=str(out), resume=True, **options)
    assert done.report.chosen.stopped != "stopped by you"
    assert done.report.chosen.steps > run.report.chosen.steps


def test_a_run_that_fails_leaves_the_model_as_it_was(
    model: gw.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder, ids, trained = model.base.decoder, torch.tensor([[5, 9, 33, 70]]), []
    before, said = decoder(ids), model.generate("say the:", max_tokens=8)

    def twice(trainer: Trainer) -> Any:
        if trainer.progress.step == 2:
            trained.append(not torch.equal(decoder(ids), before))
            raise KeyboardInterrupt
        return step(trainer)

    step = Trainer.step
    monkeypatch.setattr(Trainer, "step", twice)
    options = QUICK | {"technique": "full", "lr": 0.1}
    with pytest.raises(KeyboardInterrupt):
        gw.tune(model, ROWS, out=str(tmp_path / "run"), **options)
    assert trained == [True]
    assert torch.equal(decoder(ids), before)
    assert decoder.trained() == {}
    assert model.generate("say the:", max_tokens=8) == said


def test_a_quantised_model_is_not_tuned_as_another(model: gw.Model, tmp_path: Path) -> None:
    quantise(model.base.decoder, "int8")
    for asked in ("full", "q4"):
        with pytest.raises(ConfigError, match=f"held in int8, not {asked}; give base_precision=int8 or load it anew"):
            gw.tune(model, ROWS, out=str(tmp_path / "run"), **QUICK | {"base_precision": asked})


def test_an_export_gives_the_same_logits(model: gw.Model, tmp_path: Path) -> None:
    run = gw.tune(model, ROWS, out=str(tmp_path / "run"), **QUICK)
    ids = torch.tensor([run.model.base.tokenizer.encode("say here:")])
    wanted = run.model.base.decoder(ids)
    assert export(run.model, tmp_path / "exported") < 1e-4
    assert torch.allclose(gw.load(tmp_path / "exported").base.decoder(ids), wanted, atol=1e-4)


@pytest.fixture
def adapted(model: gw.Model, tmp_path: Path) -> gw.Model:
    """The model with an adapter of noise on it."""
    return gw.load(tmp_path / "base", adapter(model.base, "lora", tmp_path / "adapter"))


def test_an_export_leaves_what_is_there(adapted: gw.Model, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in (tmp_path / "adapter").iterdir()}
    with pytest.raises(ConfigError, match="is not empty; give a new folder"):
        adapted.export(tmp_path / "adapter")
    assert {path.name: path.read_bytes() for path in (tmp_path / "adapter").iterdir()} == before
    assert adapted.technique is not None, "a refused export merges nothing"


def test_a_merged_model_is_tuned_from_its_export(adapted: gw.Model, tmp_path: Path) -> None:
    for why in ("already carries an adapter", "has an adapter merged in, which no folder holds yet"):
        with pytest.raises(ConfigError, match=f"{why}; export it and tune that folder"):
            gw.tune(adapted, ROWS, out=str(tmp_path / "run"), **QUICK)
        assert not (tmp_path / "run").exists()
        adapted.merge()
    exported = gw.load(adapted.export(tmp_path / "exported"))
    assert exported.generate("say the:", max_tokens=8) == adapted.generate("say the:", max_tokens=8)
    assert exported.base.source == str(tmp_path / "exported"), "what a run of it names is what it began with"


def test_bad_rows_stop_a_run_before_it_starts(model: gw.Model, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="data:2"):
        gw.tune(model, [ROWS[0], {"prompt": "x"}], out=str(tmp_path / "run"), **QUICK)
    assert not (tmp_path / "run").exists()


def test_a_run_with_anchors_says_what_held_it(model: gw.Model, tmp_path: Path) -> None:
    held = {"freeze_below": {}, "kl": {"on": "masked"}, "token_gates": {"kind": "flow"}, "average": {"half_life": 2}}
    run = gw.tune(model, ROWS, out=str(tmp_path / "run"), anchors=held, **QUICK)
    settings = run.report.chosen.settings
    assert settings["training begins at"] == "block 1 of 2"
    assert settings["anchor token_gates"] == "kind flow, alpha 1.0, threshold 2.5"
    assert all(f"anchor {name}" in settings for name in held)
    logged = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert any(record.get("anchor_loss", 0) > 0 for record in logged)
    again = gw.load(tmp_path / "run")
    assert again.generate(["say the:"], max_tokens=8) == run.model.generate(["say the:"], max_tokens=8)


def test_a_folder_takes_one_run_at_a_time(model: gw.Model, tmp_path: Path) -> None:
    out = tmp_path / "runs" / "one"
    with claimed(out, print):
        with pytest.raises(
            ConfigError, match=rf"another run works in {out} \(process {os.getpid()} on .*\); wait for it"
        ):
            gw.tune(model, ROWS, out=out, **QUICK)
        with pytest.raises(ConfigError, match="another run works in"):
            gw.pretrain(tmp_path / "base", out=out, quiet=True)
    assert not (tmp_path / "runs").exists(), "what was made for nothing is gone"
    gw.tune(model, ROWS, out=out, **QUICK)
    assert not (out / ".lock").exists()


def test_a_run_does_not_go_on_upon_another_base(
    model: gw.Model, tmp_path: Path, tokenizer_files: Callable[[Path], None]
) -> None:
    out, folder = tmp_path / "run", tmp_path / "base"
    gw.tune(str(folder), ROWS, out=out, **QUICK)
    folder.rename(tmp_path / "old")
    model_folder(folder, tokenizer_files, decoder(seed=1, max_positions=512))
    with pytest.raises(ConfigError, match=r"run was begun on base \(\w{12}\), and base is another base by now"):
        gw.tune(str(folder), ROWS, out=out, resume=True, **QUICK)


def test_a_run_that_was_moved_goes_on_where_it_is(
    model: gw.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, graft: Graft
) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    monkeypatch.chdir(tmp_path)
    gw.tune(model, data, out="one", **QUICK)
    assert resolve(tmp_path / "one" / "run.toml", {}).out == str(tmp_path / "one")
    (tmp_path / "one").rename(tmp_path / "two")
    (tmp_path / "two" / "report.json").unlink()
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    assert graft("tune", "../two/run.toml", "--resume").code == 0
    assert (tmp_path / "two" / "report.json").exists()
    assert not (tmp_path / "one").exists()


def test_a_run_is_called_by_the_name_of_its_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "orders" / "sub").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "orders")
    assert run_folder(None, ["."], False) == Path("runs/orders")
    assert run_folder(None, [".."], False) == Path("runs") / tmp_path.name
    assert run_folder(None, ["sub", "sub/a.jsonl:2"], False) == Path("runs/sub+a")
    for source in ("sub/*.txt", "/"):
        with pytest.raises(ConfigError, match="does not name the run's folder; give one with --out"):
            run_folder(None, [source], False)


def test_what_a_given_model_has_is_what_a_run_uses(tmp_path: Path, model: gw.Model) -> None:
    with pytest.raises(ConfigError, match="the model has dtype float32, not bfloat16"):
        gw.tune(model, ROWS, out=tmp_path / "run", **QUICK | {"dtype": "bfloat16"})
    narrow = gw.load(tmp_path / "base", dtype="bfloat16")
    gw.tune(narrow, ROWS, out=tmp_path / "run", **QUICK)
    assert resolve(tmp_path / "run" / "run.toml", {}).dtype == "bfloat16"


def test_data_is_paths_or_rows(model: gw.Model, tmp_path: Path) -> None:
    for data, what in ((ROWS[0], "is one row"), (["rows.jsonl", *ROWS], "holds paths and rows"), ([1], "holds int")):
        with pytest.raises(ConfigError, match=f"data {what}"):
            gw.tune(model, data, out=tmp_path / "run", **QUICK)
    given = gw.tune(tmp_path / "base", (row for row in ROWS), out=tmp_path / "run", **QUICK).report.data_rows
    assert given["train"] + given["valid"] == len(ROWS)


@pytest.mark.parametrize(
    ("settings", "config", "why"),
    [
        ({}, {}, "names no token that begins or ends a text"),
        ({"eos_token": "<|im_end|>"}, {"bos_token_id": 50256}, "bos_token_id is 50256, the model has 320 tokens"),
        ({}, {"eos_token_id": [3, -1]}, "eos_token_id is -1, the model has 320 tokens"),
    ],
)
def test_a_base_must_know_where_a_text_ends(
    settings: dict[str, Any], config: dict[str, Any], why: str, model: gw.Model, tmp_path: Path
) -> None:
    folder = tmp_path / "base"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    written = json.loads((folder / "config.json").read_text(encoding="utf-8")) | config
    (folder / "config.json").write_text(json.dumps(written), encoding="utf-8")
    for use in (lambda: gw.tune(folder, ROWS, out=tmp_path / "run", **QUICK), lambda: gw.evaluate(folder, quiet=True)):
        with pytest.raises(ModelError, match=why):
            use()
