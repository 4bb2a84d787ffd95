"""An adapter a task, and tasks one after another: what is trained, what the matrix says, and resuming in the middle."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import graftwood as gw
import tiny
from graftwood.checkpoint import load_tensors
from graftwood.config import RunConfig
from graftwood.draft import draft
from graftwood.errors import GraftError
from graftwood.evals.card import Matrix
from graftwood.evals.report import read_report
from graftwood.evals.stats import Pooled
from graftwood.evals.transfer import beside, by_task, one_after_another

WORDS = ("the", "user", "said", "that", "system", "is", "here", "turn", "answer", "ready")
QUICK: dict[str, Any] = {
    "technique": "lora",
    "skills": "siqa",
    "epochs": 2,
    "batch": 4,
    "evaluations": 2,
    "held_out": 0.3,
    "max_length": 64,
    "lr": 3e-3,
}


@pytest.fixture
def base(tmp_path: Path, tokenizer_files: Callable[[Path], None]) -> str:
    return str(tiny.model_folder(tmp_path / "tiny", tokenizer_files, tiny.decoder(max_positions=512)))


@pytest.fixture
def sources(tmp_path: Path) -> list[str]:
    files = []
    for name, template in (("double", "{0} {0}"), ("end", "{0} end")):
        files.append(tmp_path / f"{name}.jsonl")
        rows = [{"prompt": f"{name} {word}:", "completion": " " + template.format(word)} for word in WORDS]
        files[-1].write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return list(map(str, files))


def losses(matrix: Matrix) -> dict[str, dict[str, float | None]]:
    return {
        learner.name: {task: cell.loss.value for task, cell in zip(matrix.tasks, learner.cells, strict=True)}
        for learner in matrix.learners
    }


def gains(matrix: Matrix) -> dict[str, list[float | None]]:
    return {learner.name: [cell.gain.value for cell in learner.cells] for learner in matrix.learners}


def pooled(**losses: float) -> dict[str, Pooled]:
    """Two rows of two tokens a task, a nat apart."""
    return {task: Pooled.sums([(2 * loss - 1, 2), (2 * loss + 1, 2)]) for task, loss in losses.items()}


# the figures


def test_gains_are_against_the_adapter_of_the_task_alone() -> None:
    rows = {"base": pooled(a=2.0, b=3.0), "mix": pooled(a=0.75, b=2.5)}
    rows |= {"a alone": pooled(a=1.0, b=3.5), "b alone": pooled(a=2.25, b=2.0)}
    matrix = beside(rows, {"a": "a alone", "b": "b alone"})
    assert losses(matrix)["a alone"] == {"a": 1.0, "b": 3.5}
    assert gains(matrix) == {
        "base": [-1.0, -1.0],
        "mix": [0.25, -0.5],
        "a alone": [None, -1.5],
        "b alone": [-1.25, None],
    }


def test_a_task_whose_adapter_is_not_there_yet_has_no_gains() -> None:
    rows = {"base": pooled(a=2.0, b=3.0), "mix": pooled(a=0.75, b=2.5), "a alone": pooled(a=1.0, b=3.5)}
    matrix = beside(rows, {"a": "a alone"})
    assert gains(matrix) == {"base": [-1.0, None], "mix": [0.25, None], "a alone": [None, None]}


def test_op_bwt_and_fwt_are_traces_formulas() -> None:
    start = {"a": 3.0, "b": 4.0, "c": 5.0}
    learned = ({"a": 1.0, "b": 3.5, "c": 5.25}, {"a": 1.5, "b": 2.0, "c": 4.0}, {"a": 1.25, "b": 2.5, "c": 3.0})
    matrix = one_after_another(pooled(**start), {t: pooled(**row) for t, row in zip("abc", learned, strict=True)})
    r = [[-row[task] for task in "abc"] for row in learned]
    b = [-start[task] for task in "abc"]
    wanted = {
        "OP": sum(r[2]) / 3,
        "BWT": sum(r[2][i] - r[i][i] for i in range(2)) / 2,
        "FWT": sum(r[i - 1][i] - b[i] for i in range(1, 3)) / 2,
    }
    assert {figure.name: figure.value.value for figure in matrix.figures} == pytest.approx(wanted)
    assert wanted["BWT"] == -0.375
    assert [learner.name for learner in matrix.learners] == ["base", "after a", "after b", "after c"]
    assert gains(matrix)["after b"] == [1.5, 2.0, 1.0]
    half = one_after_another(pooled(**start), {"a": pooled(**learned[0])})
    assert half.figures == ()


# the runs


def test_an_adapter_a_task_beside_the_mixture(base: str, sources: list[str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    run = gw.tune(base, sources, out=str(out), each=True, quiet=True, **QUICK)
    matrix = run.report.matrix
    assert matrix is not None
    assert [learner.name for learner in matrix.learners] == ["base", "mix", "double alone", "end alone"]
    assert read_report(out) == run.report
    assert run.model.generate("end user:", max_tokens=8) == gw.load(out).generate("end user:", max_tokens=8)
    # The single run is the run a person would have made of that source.
    alone = gw.tune(base, sources[1], out=str(tmp_path / "alone"), quiet=True, **QUICK)
    weights = "adapter/adapter_model.safetensors"
    assert (out / "each" / "end" / weights).read_bytes() == (tmp_path / "alone" / weights).read_bytes()
    loss = alone.report.gained.measures[-1]
    assert losses(matrix)["end alone"]["end"] == pytest.approx(loss.tuned.value, rel=1e-5)
    assert losses(matrix)["base"]["end"] == pytest.approx(loss.base.value, rel=1e-5)
    # A run that was killed while it trained the last adapter.
    shutil.rmtree(out / "each" / "end")
    again = gw.tune(base, sources, out=str(out), each=True, quiet=True, resume=True, **QUICK)
    assert again.report.matrix == matrix
    assert (out / "each" / "end" / weights).read_bytes() == (tmp_path / "alone" / weights).read_bytes()


def test_what_anchors_know_of_a_row_stays_with_it(base: str, sources: list[str], tmp_path: Path) -> None:
    held = {"kl": {"on": "task"}, "freeze_below": {}}
    out = tmp_path / "run"
    gw.tune(base, sources, out=str(out), each=True, quiet=True, anchors=held, **QUICK)
    gw.tune(base, sources[1], out=str(tmp_path / "alone"), quiet=True, anchors=held, **QUICK)
    weights = "adapter/adapter_model.safetensors"
    one, two = (load_tensors(folder / weights) for folder in (out / "each" / "end", tmp_path / "alone"))
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, two[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("technique", ["lora", "full"])
def test_tasks_one_after_another(technique: str, base: str, sources: list[str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    given = QUICK | {"technique": technique, "sequence": True, "quiet": True}
    run = gw.tune(base, sources, out=str(out), **given)
    matrix = run.report.matrix
    assert matrix is not None
    assert [learner.name for learner in matrix.learners] == ["base", "after double", "after end"]
    tuned = {part.task: part.gained.measures[-1] for part in run.report.tasks}
    for task in ("double", "end"):
        assert losses(matrix)["base"][task] == pytest.approx(tuned[task].base.value, rel=1e-5)
        assert losses(matrix)["after end"][task] == pytest.approx(tuned[task].tuned.value, rel=1e-5)
    first, second = (out / "sequence" / name / "checkpoints" for name in ("1-double", "2-end"))
    # The second task begins where the first ended, not where the run did.
    ends = load_tensors(sorted(first.glob("step-*"))[-1] / "trained.safetensors")
    starts = load_tensors(second / "step-000000" / "trained.safetensors")
    assert all(torch.equal(ends[name], starts[name]) for name in ends)
    assert run.report.chosen.steps == 2 * 2 * 2
    assert [point.step for point in run.report.curve] == sorted(point.step for point in run.report.curve)
    if technique == "full":
        return
    shutil.rmtree(second.parent)
    again = gw.tune(base, sources, out=str(out), resume=True, **given)
    assert again.report.matrix == matrix
    assert again.report.curve == run.report.curve


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"each": True, "sequence": True}, "choose one of them"),
        ({"sequence": True, "mix_cap": 5}, "leave out --mix-temperature and --mix-cap"),
        ({"each": True, "technique": "full"}, "full moves the base itself"),
        ({"each": True, "held_out": 0}, "hold some out with --held-out"),
        ({"sequence": True, "sources": 1}, "this run has one"),
        ({"sequence": True, "weight": ":2"}, "leave out the weights"),
        ({"sequence": True, "anchors": {"interpolate": {}}}, "interpolate goes back to where it began"),
    ],
)
def test_what_does_not_go_together(options: dict[str, Any], said: str, sources: list[str]) -> None:
    given = sources[: options.pop("sources", 2)]
    given[0] += options.pop("weight", "")
    with pytest.raises(GraftError, match=said):
        draft(RunConfig.model_validate({"data": given, **options}))


def test_losses_are_pooled_by_task() -> None:
    rows = [tiny.example([1, 2, 3], [False, True, True], line) for line in range(3)]
    rows = [
        type(row)(row.ids, row.answer, type(row.row)("completion", task=t)) for row, t in zip(rows, "aba", strict=True)
    ]
    found = by_task(rows, [(2.0, 2), (9.0, 3), (4.0, 1)])
    assert {task: part.value for task, part in found.items()} == {"a": 2.0, "b": 3.0}
