"""The judge beside lm-eval: tasks are handed over whole, items held against each other, a disagreement shows."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import tiny
from conftest import CPU
from graftwood.base import open_base
from graftwood.evals.asking import Scores, score_task
from graftwood.evals.given import task_from_file
from graftwood.generate.engine import Engine

sys.path.insert(0, str(Path(__file__).parents[2]))
common = importlib.import_module("bench.common")
agreement = importlib.import_module("bench.lm_eval_agreement")

NEEDED = ("lm_eval", "transformers")
missing = [package for package in NEEDED if not common.peer_has(sys.executable, package)]


@pytest.mark.skipif(bool(missing), reason="needs the extras `lm-eval` and `peers`")
def test_both_judge_tiny_items_alike(
    tmp_path: Path, tokenizer_files: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model = tiny.model_folder(tmp_path / "tiny", tokenizer_files, tiny.decoder(init_std=0.45))
    base = open_base(str(model), CPU)
    task = task_from_file(tiny.picked(base, tmp_path / "picked.jsonl")).limited(20)
    (tmp_path / "tasks").mkdir()
    agreement.write_task(task, tmp_path / "tasks")
    scores = score_task(base, Engine(base.decoder, base.tokenizer.eos, base.tokenizer), task)
    work = {
        "threads": 1, "model": str(model), "tasks": str(tmp_path / "tasks"), "names": [task.name], "batch": 4,
    }  # fmt: skip
    with common.Side("lm_eval_items", sys.executable, work) as side:
        (samples,) = side.turn()["samples"].values()
    items = agreement.compared(scores, samples)
    assert len(items) == 20
    assert all(item.same for item in items)
    assert max(abs(item.shift) for item in items) < 1e-4
    assert agreement.figure(items, "lm-eval").value == 1.0


def scored(tmp_path: Path, *picks: int) -> Scores:
    """Items of two choices, of which a judge took these."""
    rows = [{"query": f"query {number}", "choices": ["a", "b"], "gold": 0} for number in range(len(picks))]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    task = task_from_file(path)
    said = tuple(item.choices[pick] for pick, item in zip(picks, task.items(), strict=True))
    return Scores(task, tuple(float(pick == 0) for pick in picks), (0.5,) * len(picks), said)


def peer(scores: Scores, *totals: tuple[float, float]) -> list[dict[str, object]]:
    return [
        {"query": item.prompt, "log_probabilities": list(total), "tokens": [2, 1], "acc": 1.0}
        for item, total in zip(scores.task.items(), totals, strict=True)
    ]


def test_a_disagreement_counts_and_is_an_error_where_no_tie_is_near(tmp_path: Path) -> None:
    scores = scored(tmp_path, 0, 1)
    near = agreement.compared(scores, peer(scores, (-2.0, -1.5), (-2.0, -1.0005)))
    assert [item.same for item in near] == [True, False]
    assert near[1].apart == pytest.approx(0.0005, abs=1e-5)
    assert near[0].shift == pytest.approx(float(torch.tensor([-1.0, -1.5]).softmax(0)[0]) - 0.5)
    assert agreement.figure(near, "lm-eval").value == 0.5
    far = agreement.compared(scores, peer(scores, (-2.0, -1.5), (-2.0, -1.2)))
    with pytest.raises(common.BenchError, match=r"no tie is near: rows-2 by 0\.2 nats"):
        agreement.figure(far, "lm-eval")


def test_another_question_is_no_comparison(tmp_path: Path) -> None:
    scores = scored(tmp_path, 0)
    (asked,) = peer(scores, (-1.0, -2.0))
    with pytest.raises(common.BenchError, match="lm-eval was asked something else"):
        agreement.compared(scores, [asked | {"query": "another"}])
