"""lm-eval, with our model in it: its numbers are those of its own class for transformers on the same weights."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

import tiny
from conftest import CPU
from graftwood.base import open_base
from graftwood.cli import app, guarded
from graftwood.errors import ConfigError
from graftwood.evals.lm_eval_model import lm_eval_model
from graftwood.evals.lm_eval_tasks import NO_MEAN, NO_NUMBER, measured, records
from graftwood.evaluation import evaluate_with_lm_eval
from graftwood.flags import normal

INSTALLED = importlib.util.find_spec("lm_eval") is not None
pytestmark = pytest.mark.filterwarnings("ignore")
installed = pytest.mark.skipif(not INSTALLED, reason="needs the extra `lm-eval`")

CHOICES = {
    "output_type": "multiple_choice",
    "doc_to_text": "the {{a}} of {{b}}",
    "doc_to_choice": "{{[a, b + ' and ' + a, 'the end']}}",
    "doc_to_target": "gold",
    "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
}
ROLLING = {
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "text",
    "metric_list": [{"metric": "byte_perplexity"}],
}
WRITING = {
    "output_type": "generate_until",
    "doc_to_text": "{{a}} said that",
    "doc_to_target": "{{b}}",
    "generation_kwargs": {"until": ["the", "\n"], "max_gen_toks": 12, "do_sample": False},
    "metric_list": [{"metric": "exact_match"}],
}


@pytest.fixture
def yamls(tmp_path: Path) -> Path:
    """A folder of tasks whose data lie beside them."""
    folder = tmp_path / "yamls"
    folder.mkdir()
    pairs = [(a, b) for a in tiny.WORDS[:5] for b in tiny.WORDS[5:8]]
    rows = [
        {"a": a, "b": b, "gold": number % 3, "text": " ".join((a, b) * (4 + 40 * (number % 4)))}
        for number, (a, b) in enumerate(pairs)
    ]
    (folder / "rows.json").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(folder / "rows.json")}}}
    for name, how in (("tiny_choices", CHOICES), ("tiny_rolling", ROLLING), ("tiny_writing", WRITING)):
        config = {"task": name, **data, "test_split": "test", **how}
        (folder / f"{name}.yaml").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.fixture(autouse=True)
def _apart(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `datasets` keeps stays out of the user's cache, and nothing is looked for in a network."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path_factory.getbasetemp() / "datasets"))


@installed
def test_it_is_as_transformers_is(tiny_hf_folder: Path, yamls: Path) -> None:
    """Whole runs of lm-eval with its own model class and with ours: metrics, and every item's log-probabilities."""
    pytest.importorskip("transformers", reason="needs the extra `peers`")
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    def run(model: Any, shots: int) -> Any:
        manager = TaskManager(include_path=str(yamls), include_defaults=False)
        names = ["tiny_choices", "tiny_rolling", "tiny_writing"]
        return simple_evaluate(model, tasks=names, task_manager=manager, bootstrap_iters=0, num_fewshot=shots)

    theirs = HFLM(pretrained=str(tiny_hf_folder), dtype="float32", device="cpu", batch_size=4, max_length=128)
    ours = lm_eval_model(open_base(str(tiny_hf_folder), CPU))
    for shots in (0, 3):
        one, other = run(ours, shots), run(theirs, shots)
        for task, samples in other["samples"].items():
            for mine, peer in zip(one["samples"][task], samples, strict=True):
                assert mine["arguments"] == peer["arguments"]
                said, wanted = mine["filtered_resps"], peer["filtered_resps"]
                if task == "tiny_choices":
                    assert [greedy for _, greedy in said] == [greedy for _, greedy in wanted]
                    said, wanted = ([total for total, _ in both] for both in (said, wanted))
                assert said == (wanted if task == "tiny_writing" else pytest.approx(wanted, abs=2e-3)), task
            for key, value in other["results"][task].items():
                if isinstance(value, float):
                    assert one["results"][task][key] == pytest.approx(value, abs=1e-4), key
        assert any(sample["filtered_resps"] != [""] for sample in one["samples"]["tiny_writing"])
    longest = max(len(sample["doc"]["text"].split()) for sample in one["samples"]["tiny_rolling"])
    assert longest > 128, "some text needs more windows than one"


@installed
def test_adapters_take_turns(
    tiny_hf_folder: Path, yamls: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = open_base(str(tiny_hf_folder), CPU)
    one, same = tiny.adapter(base, "lora", tmp_path / "one"), tiny.adapter(base, "lora", tmp_path / "same", 0.0)
    found = evaluate_with_lm_eval(
        "tiny_choices,tiny_rolling", tiny_hf_folder, [one, same], folder=yamls, out=tmp_path / "out", quiet=True
    )
    accuracy, normed, perplexity = found.base.measures
    assert [m.metric for m in found.base.measures] == ["acc", "acc_norm", "byte_perplexity"]
    assert (accuracy.higher_is_better, perplexity.higher_is_better) == (True, False)
    assert accuracy.score.n == normed.score.n == 15
    assert perplexity.score.low is None
    moved, still = found.adapters
    assert moved.measures[2].score.value != perplexity.score.value
    assert [m.score for m in still.measures] == [m.score for m in found.base.measures]
    assert still.measures[0].change is not None
    assert still.measures[0].change.value == 0.0
    lines = [json.loads(line) for line in (tmp_path / "out" / "items-one.jsonl").read_text().splitlines()]
    assert len(lines) == 30
    right = [line["acc"] for line in lines if line["task"] == "tiny_choices"]
    assert moved.measures[0].score.value == pytest.approx(sum(right) / 15)

    words = ("eval", tiny_hf_folder, "-a", one, "--lm-eval", "tiny_*", "--lm-eval-tasks", yamls, "--limit", 4)
    code, out, _ = _graft(capsys, *words)
    assert code == 0
    assert "tiny_rolling: byte_perplexity, lower is better" in out
    assert max(map(len, out.splitlines())) <= 80
    code, out, _ = _graft(capsys, *words, "--json")
    assert code == 0
    assert json.loads(out)["adapters"][0]["measures"][0]["score"]["n"] == 4


def test_what_is_no_number_is_missing_and_readable() -> None:
    sample = {
        "doc_id": 0,
        "filter": "none",
        "metrics": ["f1"],
        "f1": float("nan"),
        "target": "a",
        "filtered_resps": [""],
    }
    found = {
        "results": {"mine": {"alias": "mine", "ppl,none": float("inf"), "f1,none": float("nan"), "acc,none": 0.5}},
        "versions": {},
        "n-shot": {},
        "higher_is_better": {},
        "samples": {"mine": [sample]},
    }
    told = [(one.metric, one.score.value, one.score.note) for one in measured(found, found)]
    assert told == [("ppl", None, NO_NUMBER), ("f1", None, NO_NUMBER), ("acc", 0.5, NO_MEAN)]
    (record,) = records(found)
    assert json.loads(json.dumps(record, allow_nan=False))["f1"] is None


@installed
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("arc_eazy",), "lm-eval has no task 'arc_eazy'. Did you mean 'arc_easy'"),
        (("arc_easy",), "lm-eval cannot load arc_easy:"),
        ((" , ",), "--lm-eval names no task"),
        (("arc_easy", "--lm-eval-tasks", "no/such"), "--lm-eval-tasks no/such is no folder"),
        (("arc_easy", "--limit", "1"), "--limit 1 leaves nothing to compare"),
        (("arc_easy", "--shots", "-1"), "--shots -1 is not 0 or more"),
        (("arc_easy", "--tasks", "piqa"), "--lm-eval asks as its tasks say; leave out --tasks"),
    ],
)
def test_what_cannot_be_asked_is_one_line(
    words: tuple[str, ...], said: str, tiny_hf_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = _graft(capsys, "eval", tiny_hf_folder, "--lm-eval", *words)
    assert (code, out) == (2, "")
    assert said in err[-1]


@installed
def test_a_task_with_options_of_another_kind_is_refused(tiny_hf_folder: Path, yamls: Path) -> None:
    file = yamls / "tiny_writing.yaml"
    config = json.loads(file.read_text(encoding="utf-8"))
    config["generation_kwargs"] |= {"num_beams": 4}
    file.write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ConfigError, match="generates with num_beams, which we do not have"):
        evaluate_with_lm_eval("tiny_writing", tiny_hf_folder, folder=yamls, quiet=True)


@pytest.mark.skipif(INSTALLED, reason="lm-eval is installed")
def test_without_the_package_it_says_what_to_install(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = _graft(capsys, "eval", "no-such-model", "--lm-eval", "arc_easy")
    assert (code, out) == (2, "")
    assert err[-1].endswith("install it with pip install 'graftwood[lm-eval]'")


def test_a_folder_of_tasks_alone_asks_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = _graft(capsys, "eval", "no-such-model", "--lm-eval-tasks", "here")
    assert code == 2
    assert "name them with --lm-eval" in err[-1]


def _graft(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, list[str]]:
    """Exit code, data, and what was said."""
    capsys.readouterr()
    code = guarded(lambda: app([normal(str(word)) for word in words], standalone_mode=False))
    captured = capsys.readouterr()
    return code, captured.out, captured.err.splitlines()
