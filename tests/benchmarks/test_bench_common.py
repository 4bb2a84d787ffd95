"""Benchmarks: the rows are what they claim, operations are counted right, and only a quiet, full run gives a figure."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

from graftwood.model.architectures.llama import LLAMA
from graftwood.model.config import ModelConfig
from graftwood.model.decoder import Decoder

sys.path.insert(0, str(Path(__file__).parents[2]))
common = importlib.import_module("bench.common")
flops = importlib.import_module("bench.flops")
workload = importlib.import_module("bench.workload")
tune_speed = importlib.import_module("bench.tune_speed")
decode_speed = importlib.import_module("bench.decode_speed")
search_cost = importlib.import_module("bench.search_cost")

FIGURE = common.Figure("speed", 2.34567, "times as fast", "training", "20 tokens/s", "9 tokens/s with a peer")


class FakeSide:
    """What `finish` reads of a side."""

    module, ready = "fake", {}

    def __init__(self, **turn: object) -> None:
        self.turns = [turn]


@pytest.fixture
def folders(tmp_path, monkeypatch):
    monkeypatch.setattr(common, "ROOT", tmp_path)
    monkeypatch.setattr(common, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(common, "ASIDE", tmp_path / "aside")
    return tmp_path


def finish(others: float | None, smoke: bool = False, **more: object) -> int:
    given = argparse.Namespace(smoke=smoke, threads=common.os.cpu_count() or 1, rounds=1)
    return common.finish("command", given, [FIGURE], {"ours": [FakeSide(others_share=others)]}, **more)


def test_a_figure_reaches_the_summary_beside_those_that_are_there(folders) -> None:
    (folders / "results").mkdir()
    (folders / "results" / "summary.json").write_text('{"zebra": {"value": 1}}', encoding="utf-8")
    assert finish(others=0.01, rows={"rows": 3}) == 0
    summary = json.loads((folders / "results" / "summary.json").read_text(encoding="utf-8"))
    assert list(summary) == ["speed", "zebra"]
    assert summary["speed"] == {
        "value": 2.346,
        "unit": "times as fast",
        "what": "training",
        "ours": "20 tokens/s",
        "peer": "9 tokens/s with a peer",
        "source": "results/command.json",
    }
    record = json.loads((folders / "results" / "command.json").read_text(encoding="utf-8"))
    assert record["figures"]["speed"]["value"] == 2.34567
    assert record["sides"]["ours"][0]["turns"] == [{"others_share": 0.01}]
    assert record["rows"] == {"rows": 3}


@pytest.mark.parametrize(("others", "smoke", "code"), [(0.4, False, 1), (0.0, True, 0)], ids=["busy", "smoke"])
def test_no_figure_from_a_busy_machine_or_a_smoke_run(folders, others: float, smoke: bool, code: int) -> None:
    assert finish(others, smoke) == code
    assert not (folders / "results").exists()
    assert (folders / "aside" / "command.json").exists()


def test_a_figure_that_time_does_not_change_may_come_from_a_busy_machine(folders) -> None:
    assert finish(0.4, needs_quiet=False) == 0
    assert (folders / "results" / "summary.json").exists()


def test_a_machine_that_is_busy_is_refused_unless_a_core_is_left(monkeypatch) -> None:
    monkeypatch.setattr(common.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(common.time, "sleep", lambda seconds: None)

    def asked(threads: int) -> float | None:
        marks = iter([100.0, 101.0])  # one of two cores is busy
        monkeypatch.setattr(common, "_busy_seconds", lambda: next(marks))
        return common.require_quiet_machine(threads, 1.0)

    with pytest.raises(common.BenchError, match="take 50% of this machine"):
        asked(2)
    assert asked(1) == 0.5


def test_a_side_that_dies_says_why(monkeypatch) -> None:
    with pytest.raises(common.BenchError, match=r"No module named bench\.sides\.absent"):
        common.Side("absent", sys.executable, {"threads": 1})


def test_rows_are_the_same_every_time_and_of_the_promised_kind() -> None:
    made = workload.rows(200)
    assert made == workload.rows(200)
    words = [(len(row.prompt.split()), len(row.completion.split())) for row in made]
    lengths = sorted(prompt + answer for prompt, answer in words)
    least, most = (tokens / workload.TOKENS_PER_WORD for tokens in (workload.SHORTEST, workload.LONGEST))
    assert least - 1 < lengths[0] < least + 2
    assert most - 4 < lengths[-1] < most + 1
    assert lengths[100] < (least + most) / 2 - 20, "short rows are more common than long ones"
    assert 0.27 < sum(answer for _, answer in words) / sum(lengths) < 0.33
    assert len({row.prompt for row in made}) == 200


def tiny() -> Decoder:
    config = ModelConfig("llama", 50, 8, 2, 4, 2, 4, 12, 64, 1e-5, 10000.0)
    with torch.device("meta"):
        return Decoder(LLAMA, config)


def test_operations_counted_by_hand() -> None:
    # A block: q 16x8, k and v 8x8, o 8x16, gate and up 12x8, down 8x12.
    weights = 128 + 2 * 64 + 128 + 3 * 96
    sides = 24 + 2 * 16 + 24 + 3 * 20
    per_token = 2 * (4 * weights + 6 * 3 * sides)
    per_token -= 2 * (128 + 2 * 64) + 2 * 3 * 3 * 8  # the first block's q, k, v read the frozen embedding
    unread = 4 * (128 + 3 * 96) + 6 * 3 * (24 + 3 * 20)  # of the last block, for each token that is no answer
    attention = 2 * 12 * 4 * 4 * (5 * 6 // 2 + 2 * 3 // 2)
    counted = 7 * per_token - 4 * unread + attention + 4 * 50 * 8 * 3
    assert flops.lora_training(tiny(), (5, 2), answer_tokens=3, rank=3) == counted


def test_a_peers_turn_is_an_epoch_whatever_its_batch() -> None:
    work = {"rows": list(range(24)), "batch": 8, "steps_a_turn": 3}
    steps = [tune_speed.peer_work(work, choice)["steps_a_turn"] for choice in tune_speed.BEST.values()]
    assert steps == [6, 3, 2, 3, 6]


def test_figures_of_tuning_are_medians_of_rounds() -> None:
    ours, peer = FakeSide(), FakeSide()
    ours.turns = [{"tokens": 100, "seconds": s, "peak_bytes": 10} for s in (1.0, 2.0, 4.0)]
    peer.turns = [{"tokens": 100, "seconds": s, "peak_bytes": p} for s, p in ((2.0, 30), (6.0, 40), (20.0, 40))]
    peer.ready = {"versions": {"transformers": "5", "peft": "0"}}
    speed, memory = tune_speed.figures("default", "its defaults", ours, peer)
    assert (speed.name, speed.value) == ("tune_speed_vs_peft_default", 3.0)
    assert (memory.name, memory.value) == ("tune_memory_vs_peft_default", 0.25)
    assert [figure.name for figure in tune_speed.figures("best", "x", ours, peer)] == ["tune_speed_vs_peft_best"]


def test_common_beginning_of_answers() -> None:
    one, other = FakeSide(ids=[[1, 2, 3, 4], [5]]), FakeSide(ids=[[1, 2, 9, 4], [6]])
    assert decode_speed.same_start(one, other) == [2, 0]
    assert decode_speed.same_start(one, one) == [4, 1]


def test_a_run_goes_on_where_it_had_begun_to_train(tiny_hf_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(search_cost, "WORK", tmp_path)
    (tmp_path / "data").mkdir()
    for name in ("train", "valid"):
        rows = "".join(json.dumps({"prompt": f"say {n}", "completion": f" {n}"}) + "\n" for n in range(8))
        (tmp_path / "data" / f"{name}.jsonl").write_text(rows, encoding="utf-8")
    (tmp_path / "words.jsonl").write_text('{"context": "the user", "word": "said"}\n', encoding="utf-8")
    flags = ("--technique", "bitfit", "--keep", "none", "--skills", str(tmp_path / "words.jsonl"))
    out = tmp_path / "full"
    out.mkdir()
    (out / "run.toml").touch()  # as a run leaves it that was stopped while its base was measured
    done = search_cost.tuned("full", tiny_hf_folder, 1, *flags)
    (out / "report.json").unlink()
    again = search_cost.tuned("full", tiny_hf_folder, 1, *flags)
    assert again.cost.train_seconds == done.cost.train_seconds, "it went on where nothing was left to train"
