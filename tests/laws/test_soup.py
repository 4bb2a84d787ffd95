"""Models averaged: the mean is the mean, what is measured decides what is kept, and what cannot be is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import graftwood as gw
import tiny
from conftest import CPU
from graftwood import unseen
from graftwood.base import Base, open_base
from graftwood.config import RUN_FILE, PretrainConfig, RunConfig, save_toml
from graftwood.data.encode import encode_rows
from graftwood.data.sources import load_splits
from graftwood.errors import ConfigError, DataError
from graftwood.evals.score import answer_losses
from graftwood.evals.stats import Pooled
from graftwood.flags import spelled
from graftwood.model.weights import load_decoder
from graftwood.soup import check, cook

Tokenizer = Callable[[Path], None]


@pytest.fixture
def base(tmp_path: Path, tokenizer_files: Tokenizer) -> Base:
    return open_base(str(tiny.model_folder(tmp_path / "tiny", tokenizer_files)), CPU)


def run_of(base: Base, out: Path, noise: float, seed: int, tokenizer_files: Tokenizer, held_out: float = 0.1) -> Path:
    """A run folder with a whole model that is some noise away from the base."""
    model = tiny.decoder()
    tiny.shake(model, noise, seed)
    tiny.model_folder(out / "model", tokenizer_files, model)
    save_toml(RunConfig(data="rows.jsonl", model=base.source, held_out=held_out, seed=seed), out / "run.toml")
    return out


@pytest.fixture
def source(tmp_path: Path) -> str:
    rows = [{"prompt": f"one {n}:", "completion": f" the {n}"} for n in range(40)]
    (tmp_path / "one.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(tmp_path / "one.jsonl")


def test_the_mean_is_the_mean_of_the_weights(base: Base, tmp_path: Path, tokenizer_files: Tokenizer) -> None:
    runs = [run_of(base, tmp_path / f"run{seed}", 0.3, seed, tokenizer_files) for seed in range(3)]
    done = cook(base, runs, ("mean",), (), tmp_path / "soup")
    assert (done.how, len(done.models), done.matrix) == ("mean", 3, None)
    found = dict(load_decoder(tmp_path / "soup", CPU).named_parameters())
    parts = [dict(load_decoder(run / "model", CPU).named_parameters()) for run in runs]
    for name, parameter in found.items():
        torch.testing.assert_close(parameter, torch.stack([part[name] for part in parts]).mean(0))
    assert gw.load(tmp_path / "soup").generate("the", max_tokens=2)


def test_equal_models_stay_as_they_are_to_the_bit(base: Base, tmp_path: Path, tokenizer_files: Tokenizer) -> None:
    runs = [run_of(base, tmp_path / f"run{number}", 0.3, 5, tokenizer_files) for number in range(3)]
    cook(base, runs, ("mean",), (), tmp_path / "soup")
    one = dict(load_decoder(runs[0] / "model", CPU).named_parameters())
    found = load_decoder(tmp_path / "soup", CPU).named_parameters()
    assert all(torch.equal(parameter, one[name]) for name, parameter in found)


def test_the_way_with_the_lowest_loss_on_unseen_rows_is_kept(
    base: Base, tmp_path: Path, tokenizer_files: Tokenizer, source: str
) -> None:
    runs = [
        run_of(base, tmp_path / f"run{seed}", noise, seed, tokenizer_files, held_out=0.5)
        for seed, noise in ((0, 0.01), (1, 0.02), (2, 3.0))
    ]
    done = cook(base, runs, ("mean", "greedy"), (source,), tmp_path / "soup")
    assert done.matrix is not None
    assert (done.how, str(runs[2]) in done.models) == ("greedy", False), "noise is not taken in"
    held = [load_splits(source, held_out=0.5, seed=seed).valid for seed in range(3)]
    rows = [row for row in held[0] if row in held[1] and row in held[2]]
    assert 0 < len(rows) < len(held[0])
    kept = open_base(str(tmp_path / "soup"), CPU)
    own = Pooled.sums(answer_losses(kept.decoder, encode_rows(kept.encoder(), rows)))
    losses = {learner.name: learner.cells[0].loss for learner in done.matrix.learners}
    assert losses["base"].n == len(rows)
    assert min(loss.value for name, loss in losses.items() if "+" in name or name in ("run0", "run1")) == pytest.approx(
        own.value, rel=1e-5
    )
    assert {"base", "run0", "run1", "run2", "mean"} <= losses.keys()


def test_a_model_of_a_run_is_measured_as_its_run(
    base: Base, tmp_path: Path, tokenizer_files: Tokenizer, source: str
) -> None:
    runs = [run_of(base, tmp_path / f"run{seed}", 0.1, seed, tokenizer_files, held_out=0.5) for seed in (0, 1)]
    models = [run / "model" for run in runs]
    by_run, by_model = (cook(base, given, ("mean",), (source,), tmp_path / "soup").matrix for given in (runs, models))
    assert by_run is not None
    assert by_model is not None
    assert by_model.learners[0].cells[0].loss.n == by_run.learners[0].cells[0].loss.n < 40


def test_a_model_of_which_no_run_is_known_is_said(
    base: Base, tmp_path: Path, tokenizer_files: Tokenizer, source: str
) -> None:
    known, strange = (run_of(base, tmp_path / name, 0.1, 0, tokenizer_files) for name in ("known", "strange"))
    (strange / "run.toml").unlink()
    done = cook(base, [known, strange], ("mean",), (source,), tmp_path / "soup")
    assert done.matrix is not None
    assert done.matrix.learners[0].cells[0].loss.n == len(load_splits(source, held_out=0.1).valid)
    assert done.notes[0].startswith(f"no run.toml is beside or above {strange}, so nobody knows which rows")


def test_rows_that_some_run_has_seen_are_not_measured(
    base: Base, tmp_path: Path, tokenizer_files: Tokenizer, source: str
) -> None:
    runs = [run_of(base, tmp_path / f"run{seed}", 0.1, seed, tokenizer_files, held_out=0.03) for seed in (0, 1)]
    with pytest.raises(DataError, match="has no rows that all of these runs held out; give a file of rows none has"):
        cook(base, runs, ("mean",), (source,), tmp_path / "soup")


def test_what_cannot_be_averaged_is_said_at_once(base: Base, tmp_path: Path, tokenizer_files: Tokenizer) -> None:
    one = run_of(base, tmp_path / "one", 0.1, 0, tokenizer_files)
    (tmp_path / "lora" / "adapter").mkdir(parents=True)
    with pytest.raises(ConfigError) as caught:
        check([one, tmp_path / "lora"], {one: "a", tmp_path / "lora": "b"}, ("ties", "greedy"), 0)
    for part in ("--how ties is not one of mean, greedy", "not of one base: ", "needs rows", "is an adapter"):
        assert part in str(caught.value)
    with pytest.raises(ConfigError, match=r"1 model to average; give several after --models"):
        check([one], {}, ("mean",), 0)
    wide = tiny.model_folder(tmp_path / "wide", tokenizer_files, tiny.decoder(feed_forward_size=64))
    with pytest.raises(ConfigError, match="wide has other sizes than tiny"):
        cook(base, [one, wide], ("mean",), (), tmp_path / "soup")


def test_the_verb_averages_models(base: Base, tmp_path: Path, tokenizer_files: Tokenizer, source: str) -> None:
    from typer.testing import CliRunner

    from graftwood.cli import app

    runs = [run_of(base, tmp_path / f"run{seed}", 0.1, seed, tokenizer_files, held_out=0.5) for seed in (0, 1)]
    words = [
        "merge",
        "--models",
        *(str(run / "model") for run in runs),
        "--how",
        "mean",
        "greedy",
        "--data",
        source,
        "--json",
    ]
    done = CliRunner().invoke(app, spelled([*words, "--out", str(tmp_path / "soup")]))
    assert (done.exit_code, done.exception) == (0, None)
    assert json.loads(done.stdout)["kept"] in ("mean", "greedy")
    assert gw.load(tmp_path / "soup").technique is None


def test_only_a_run_that_tuned_says_what_a_model_was_trained_on(tmp_path: Path) -> None:
    """A model inside a pre-training run has a run file above it that names no rows."""
    model = tmp_path / "run" / "model"
    model.mkdir(parents=True)
    assert unseen.run_of(model) is None
    save_toml(PretrainConfig(data="text", head="own"), tmp_path / "run" / RUN_FILE)
    assert unseen.run_of(model) is None
    save_toml(RunConfig(data="rows.jsonl", options={"rank": 4}), tmp_path / "run" / RUN_FILE)
    assert unseen.run_of(model) == tmp_path / "run"
