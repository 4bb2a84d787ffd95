"""A run over several tasks: steps, evaluations, what picks the best, and that resuming changes nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import graftwood as gw
import tiny
from conftest import CPU
from graftwood.base import Base, open_base
from graftwood.checkpoint import load_step, step_folders
from graftwood.data.batch import Examples, pack
from graftwood.data.encode import Example
from graftwood.errors import ConfigError
from graftwood.evals import judge
from graftwood.evals.report import read_report
from graftwood.evals.score import answer_losses
from graftwood.generate.engine import Engine
from graftwood.train.loop import Evaluated, Plan, Stepped, Trainer
from graftwood.train.loss import token_losses

SHARES = {"a": 0.5, "b": 0.5}


def of_task(task: str, examples: list[Example]) -> list[Example]:
    return [replace(example, row=replace(example.row, task=task)) for example in examples]


def rows(counts: tuple[int, int] = (20, 6), seed: int = 0) -> list[Example]:
    return of_task("a", tiny.examples(counts[0], seed)) + of_task("b", tiny.examples(counts[1], seed + 1))


def trainer(folder: Path, plan: Plan) -> Trainer:
    decoder = tiny.decoder()
    tiny.technique("lora").apply(decoder, seed=0)
    return Trainer(decoder, Examples(rows()), Examples(rows((5, 9), 7)), plan, folder)


def test_a_step_weighs_every_answer_token_of_every_task_the_same(tmp_path: Path) -> None:
    made = trainer(tmp_path, tiny.plan(shares=SHARES, token_budget=1))
    drawn = [rows()[row] for row in made.order.batch_rows(0)]
    assert {example.row.task for example in drawn} == {"a", "b"}
    losses = torch.cat([token_losses(made.decoder, pack([example])) for example in drawn])
    assert made.step().loss == pytest.approx(losses.mean().item(), rel=1e-5)


def test_an_evaluation_is_the_mean_of_the_tasks(tmp_path: Path) -> None:
    made = trainer(tmp_path, tiny.plan(shares=SHARES))
    event = made.evaluate()
    assert list(event.tasks) == ["a", "b"]
    for task, loss in event.tasks.items():
        alone = [e for e in rows((5, 9), 7) if e.row.task == task]
        assert loss == pytest.approx(token_losses(made.decoder, pack(alone)).mean().item(), rel=1e-5)
    assert event.valid_loss == pytest.approx(sum(event.tasks.values()) / 2)
    assert made.progress.first == event.tasks


@pytest.mark.parametrize("stop_on", ["mean", "worst"])
def test_the_best_step_is_the_one_the_criterion_picks(stop_on: str, tmp_path: Path) -> None:
    plan = tiny.plan(shares=SHARES, stop_on=stop_on, evaluations=12, epochs=6, patience=99, learning_rate=5e-2)
    made = trainer(tmp_path, plan)
    seen = [event for event in made.run() if isinstance(event, Evaluated)]
    first = seen[0].tasks

    def judged(event: Evaluated) -> float:
        if stop_on == "worst":
            return max(event.tasks[task] - first[task] for task in first)
        assert event.valid_loss is not None
        return event.valid_loss

    assert made.progress.best_step == min(seen, key=judged).step
    assert [e.step for e in seen if e.best][-1] == made.progress.best_step


def test_a_resumed_mixture_is_the_run_it_would_have_been(tmp_path: Path) -> None:
    plan = tiny.plan(shares=SHARES, epochs=3, evaluations=3, patience=99)
    whole = trainer(tmp_path / "whole", plan)
    losses = [event.loss for event in whole.run() if isinstance(event, Stepped)]
    part = trainer(tmp_path / "part", plan)
    for event in part.run():
        part.stop = isinstance(event, Stepped) and event.step == 5
    saved = load_step(step_folders(tmp_path / "part")[-1])
    assert saved.state["drawn"] == part.order.drawn(5) == {"a": 16, "b": 18}  # all 6 rows of b three times
    again = trainer(tmp_path / "part", plan)
    assert again.resume()
    assert [event.loss for event in again.run() if isinstance(event, Stepped)] == losses[5:]
    assert all(torch.equal(whole.trained[name], again.trained[name]) for name in whole.trained)
    other = trainer(tmp_path / "part", replace(plan, shares={"a": 0.9, "b": 0.1}))
    with pytest.raises(ConfigError, match=r"rows drawn of each task .* there, .* here"):
        other.resume()


@pytest.fixture
def base(tmp_path: Path, tokenizer_files: Callable[[Path], None]) -> Base:
    return open_base(str(tiny.model_folder(tmp_path / "tiny", tokenizer_files, tiny.decoder(max_positions=512))), CPU)


def test_each_task_is_measured_on_its_own_rows(base: Base) -> None:
    train = of_task("a", tiny.encoded(base, 60)) + of_task("b", tiny.encoded(base, 8, 200))
    valid = of_task("a", tiny.encoded(base, 6, 100)) + of_task("b", tiny.encoded(base, 40, 300))
    test = of_task("b", tiny.encoded(base, 60, 400))
    paper = judge.set_paper(base.encoder(), train, valid, test, seed=0)
    assert paper.splits == {"a": "valid", "b": "test"}
    assert [sum(e.row.task == task for e in paper.heldout) for task in "ab"] == [6, 50]
    for part in (paper.train, paper.valid):  # as many of each task on both sides, or MEMORY would compare tasks
        assert [sum(e.row.task == task for e in part) for task in "ab"] == [6, 8]
    engine = Engine(base.decoder, base.tokenizer.eos, base.tokenizer)
    before = judge.sit(base, engine, paper, lambda *_: [], lambda _: None)
    tiny.shake(base.decoder, 0.3)
    after = judge.sit(base, engine, paper, lambda *_: [], lambda _: None)
    tasks = judge.gained_by_task(paper, before, after)
    assert [(part.task, part.gained.rows, part.gained.split) for part in tasks] == [
        ("a", 6, "valid"),
        ("b", 50, "test"),
    ]
    for part in tasks:
        alone = [e for e in paper.heldout if e.row.task == part.task]
        losses = answer_losses(base.decoder, alone)
        loss = part.gained.measures[-1]
        assert loss.tuned.value == pytest.approx(sum(t for t, _ in losses) / sum(n for _, n in losses), rel=1e-5)
    whole = judge.gained(paper, before, after)
    assert whole.rows == 56
    exact = [part.gained.measures[0].tuned.value for part in tasks]
    assert whole.measures[0].tuned.value == pytest.approx((6 * exact[0] + 50 * exact[1]) / 56)


def test_a_whole_run_of_two_tasks(base: Base, tmp_path: Path) -> None:
    files = []
    for name, count in (("sums", 20), ("words", 10)):
        files.append(tmp_path / f"{name}.jsonl")
        lines = [{"prompt": f"{name} {n}:", "completion": f" {n}"} for n in range(count)]
        files[-1].write_text("".join(json.dumps(row) + "\n" for row in lines))
    given = [str(files[0]), f"{files[1]}:2"]
    out = tmp_path / "run"
    options = {
        "technique": "lora",
        "skills": "siqa",
        "epochs": 2,
        "batch": 4,
        "evaluations": 2,
        "held_out": 0.2,
        "max_length": 64,
        "stop_on": "worst",
    }
    run = gw.tune(base.source, given, out=str(out), quiet=True, **options)
    assert [part.task for part in run.report.tasks] == ["sums", "words"]
    assert any("words runs dry" in warning for warning in run.report.warnings)
    assert read_report(out) == run.report
    logged = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    for record in logged:
        if "eval_loss" in record:
            assert record["eval_loss"] == pytest.approx((record["eval_sums_loss"] + record["eval_words_loss"]) / 2)
    page = (out / "report.html").read_text()
    assert "<h2>Tasks</h2>" in page
    with pytest.raises(ConfigError, match=r"data .* there, .* here"):
        gw.tune(base.source, [given[0], str(files[1])], out=str(out), quiet=True, resume=True, **options)
    again = gw.tune(base.source, given, out=str(out), quiet=True, resume=True, **options)
    assert again.report.tasks == run.report.tasks
