"""Adapters added up: what PEFT makes of the same adapters, what cat promises, what is kept and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import graftwood as gw
import tiny
from conftest import CPU
from graftwood.base import Base, open_base
from graftwood.checkpoint import load_adapter, save_adapter
from graftwood.compose import Sum, compose
from graftwood.config import RunConfig, save_toml
from graftwood.data.encode import encode_rows
from graftwood.data.sources import load_splits
from graftwood.errors import ConfigError
from graftwood.evals.score import answer_losses
from graftwood.evals.stats import Pooled
from graftwood.flags import spelled
from graftwood.techniques._sums import HOWS, Factors, combine
from graftwood.unseen import run_file_of, unknown, unseen

IDS = torch.randint(0, 320, (2, 20), generator=torch.Generator().manual_seed(5))
# Adapters that do not touch the same linears, with scales of their own.
MADE: tuple[dict[str, Any], ...] = (
    {"targets": ("q_proj", "v_proj", "down_proj"), "alpha": 8.0},
    {"targets": ("q_proj", "o_proj"), "alpha": 2.0},
    {"targets": ("q_proj", "down_proj"), "alpha": 4.0},
)


@pytest.fixture
def folder(tmp_path: Path, tokenizer_files: Callable[[Path], None]) -> Path:
    return tiny.model_folder(tmp_path / "tiny", tokenizer_files)


@pytest.fixture
def base(folder: Path) -> Base:
    return open_base(str(folder), CPU)


@pytest.fixture
def adapters(folder: Path, tmp_path: Path) -> list[Path]:
    return [adapter(folder, tmp_path / f"adapter{number}", number, **made) for number, made in enumerate(MADE)]


def adapter(folder: Path, out: Path, seed: int, name: str = "lora", **options: Any) -> Path:
    """An adapter whose values are all random."""
    base, technique = open_base(str(folder), CPU), tiny.technique(name, **options)
    technique.apply(base.decoder, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in base.decoder.trained().values():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    save_adapter(base, technique, out)
    return out


def logits(base: Base, *folders: Path) -> Tensor:
    for one in folders:
        load_adapter(base, one)
    with torch.no_grad():
        return base.decoder(IDS)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (0.7, -0.4, 1.5)], ids=["equal", "signed"])
@pytest.mark.parametrize(
    ("how", "theirs", "density"),
    [("linear", "linear", 1.0), ("ties", "ties", 0.4), ("dare", "dare_linear", 0.4), ("cat", "cat", 1.0)],
)
def test_sums_are_pefts(
    how: str,
    theirs: str,
    density: float,
    weights: tuple[float, ...],
    folder: Path,
    base: Base,
    adapters: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    peft = pytest.importorskip("peft", reason="needs the extra `peers`")
    transformers = pytest.importorskip("transformers")
    done = compose(base, adapters, Sum(weights, (how,), density, seed=3), (), tmp_path / "sum")
    assert (done.how, done.matrix) == (how, None)

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(model, adapters[0], adapter_name="0")
    for number, one in enumerate(adapters[1:], 1):
        model.load_adapter(one, str(number))
    generator, draw = torch.Generator().manual_seed(3), torch.bernoulli
    monkeypatch.setattr(torch, "bernoulli", lambda input: draw(input, generator=generator))
    model.base_model.add_weighted_adapter(["0", "1", "2"], list(weights), "sum", theirs, density=density)
    monkeypatch.undo()
    model.set_adapter("sum")
    model.eval()
    with torch.no_grad():
        wanted = model(IDS).logits
    ours = logits(open_base(str(folder), CPU), tmp_path / "sum")
    torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-4)
    assert not torch.allclose(ours, logits(open_base(str(folder), CPU)), atol=1e-2)

    plain = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    opened = peft.PeftModel.from_pretrained(plain, tmp_path / "sum").eval()
    with torch.no_grad():
        torch.testing.assert_close(opened(IDS).logits, ours, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("how", HOWS)
def test_they_are_added_where_they_lie(how: str) -> None:
    factors: Factors = {"p": (torch.zeros(2, 3, device="meta"), torch.zeros(3, 2, device="meta"), 1.0)}
    a, b, _ = combine(["p"], [factors, factors], [1.0, -2.0], how, 0.5, 0)["p"]
    assert a.device.type == b.device.type == "meta"


def test_cat_is_the_weighted_sum_of_the_updates(folder: Path, base: Base, tmp_path: Path) -> None:
    """Of any ranks, principal starts and rsLoRA among them."""
    made: tuple[dict[str, Any], ...] = (
        {"rank": 2, "rslora": True},
        {"rank": 4, "start": "pissa", "targets": ("q_proj", "up_proj")},
        {"rank": 3, "rank_pattern": {"q_proj": 1}},
    )
    folders = [adapter(folder, tmp_path / f"a{n}", n, **options) for n, options in enumerate(made)]
    weights = (0.5, -1.0, 2.0)
    plain = {path: linear.weight.clone() for path, linear in base.decoder.linears().items()}
    wanted = {path: weight.clone() for path, weight in plain.items()}
    for one, weight in zip(folders, weights, strict=True):
        alone = open_base(str(folder), CPU)
        load_adapter(alone, one).merge(alone.decoder)
        for path, linear in alone.decoder.linears().items():
            wanted[path] += weight * (linear.weight - plain[path])
    compose(base, folders, Sum(weights, ("cat",)), (), tmp_path / "sum")
    fresh = open_base(str(folder), CPU)
    load_adapter(fresh, tmp_path / "sum").merge(fresh.decoder)
    for path, linear in fresh.decoder.linears().items():
        torch.testing.assert_close(linear.weight, wanted[path], rtol=1e-4, atol=1e-5)


def test_cat_may_have_more_ranks_than_a_matrix_has_rows(folder: Path, base: Base, tmp_path: Path) -> None:
    folders = [adapter(folder, tmp_path / f"a{n}", n, rank=10) for n in range(2)]
    compose(base, folders, Sum((1.0, 0.5), ("cat",)), (), tmp_path / "sum")
    opened: Any = load_adapter(open_base(str(folder), CPU), tmp_path / "sum")
    assert opened.rank == 20  # keys have 16


def test_one_adapter_counted_alone_is_itself(folder: Path, base: Base, adapters: list[Path], tmp_path: Path) -> None:
    compose(base, adapters[:2], Sum((1.0, 0.0), ("linear",)), (), tmp_path / "sum")
    alone, summed = (logits(open_base(str(folder), CPU), one) for one in (adapters[0], tmp_path / "sum"))
    torch.testing.assert_close(summed, alone, rtol=1e-5, atol=1e-4)


def test_the_best_candidate_on_each_adapters_rows_is_kept(base: Base, adapters: list[Path], tmp_path: Path) -> None:
    sources = []
    for name in ("one", "two"):
        sources.append(str(tmp_path / f"{name}.jsonl"))
        rows = [{"prompt": f"{name} {n}:", "completion": f" the {n}"} for n in range(12)]
        Path(sources[-1]).write_text("".join(json.dumps(row) + "\n" for row in rows))
    how = Sum((0.5, 0.5), ("linear", "ties", "dare", "cat"))
    # The run that made an adapter says which rows it did not train on.
    save_toml(RunConfig(data=sources[0], held_out=0.5, seed=7), adapters[0] / "run.toml")
    done = compose(base, adapters[:2], how, sources, tmp_path / "sum")
    assert done.matrix is not None
    held = [load_splits(sources[0], held_out=0.5, seed=7).valid, load_splits(sources[1], held_out=0).train]
    assert [cell.loss.n for cell in done.matrix.learners[0].cells] == [len(rows) for rows in held] == [6, 12]
    (note,) = done.notes
    assert note.startswith(f"no run.toml is beside or above {adapters[1]}, so nobody knows which rows")
    fresh = open_base(base.source, CPU)
    load_adapter(fresh, adapters[0])
    own = Pooled.sums(answer_losses(fresh.decoder, encode_rows(fresh.encoder(), held[0]))).value
    assert done.matrix.learners[1].cells[0].loss.value == pytest.approx(own, rel=1e-5)
    names = [learner.name for learner in done.matrix.learners]
    assert names == ["base", "adapter0 alone", "adapter1 alone", "linear", "ties", "dare", "cat"]
    means = {learner.name: sum(cell.loss.value or 0.0 for cell in learner.cells) for learner in done.matrix.learners}
    assert done.how == min(names[3:], key=lambda name: means[name])
    assert [learner.cells[0].gain.value is None for learner in done.matrix.learners][:3] == [False, True, False]
    assert (tmp_path / "sum" / "adapter_config.json").exists()


@pytest.mark.parametrize("which", ["valid", "test"])
def test_rows_held_out_in_a_file_of_their_own_are_what_is_measured(which: str, base: Base, tmp_path: Path) -> None:
    def written(name: str, count: int) -> str:
        rows = [{"prompt": f"{name} {n}:", "completion": f" the {n}"} for n in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(tmp_path / f"{name}.jsonl")

    main, held, fresh = written("main", 12), written("held", 5), written("fresh", 7)
    (tmp_path / "run" / "adapter").mkdir(parents=True)
    run = RunConfig.model_validate({"data": main, which: held, "held_out": 0 if which == "test" else 0.1})
    save_toml(run, tmp_path / "run" / "run.toml")
    assert unknown([tmp_path / "run", tmp_path / "run" / "adapter"]) is None
    copy = shutil.copy(main, tmp_path / "copy.jsonl")
    for source, wanted in ((main, held), (copy, held), (held, held), (fresh, fresh)):
        rows = unseen(run_file_of(tmp_path / "run" / "adapter"), str(source))
        assert {row.file for row in rows} == {wanted}
        assert len(rows) == (5 if wanted == held else 7)
    Path(main).unlink()  # a copy is as its run had it, if nobody can look
    assert {row.file for row in unseen(run, str(copy))} == {held}


def test_adapters_of_one_source_are_two_tasks(base: Base, adapters: list[Path], tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    rows = [{"prompt": f"say {n}:", "completion": f" the {n}"} for n in range(12)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = compose(base, adapters[:2], Sum((0.5, 0.5)), [str(source)] * 2, tmp_path / "sum")
    assert done.matrix is not None
    assert done.matrix.tasks == ("rows (1)", "rows (2)")
    with pytest.raises(ConfigError, match="an adapter is given twice"):
        Sum((0.5, 0.5)).check([tmp_path / "run", tmp_path / "run" / "adapter"], 0)


@pytest.mark.parametrize(
    ("weights", "hows", "sources", "density", "said"),
    [
        ((1.0,), ("linear",), 0, 0.5, "1 weights for 2 adapters; give one each"),
        ((1.0, 1.0), ("slerp",), 0, 0.5, "--how slerp is not one of linear, ties, dare, cat"),
        ((1.0, 1.0), ("linear",), 1, 0.5, "1 sources for 2 adapters"),
        ((1.0, 1.0), ("linear", "ties"), 0, 0.5, "several ways to add need rows to choose by"),
        ((1.0,), ("linear",), 0, 1.5, "give one each; density 1.5 is a share"),
    ],
)
def test_a_sum_that_cannot_be(
    weights: tuple[float, ...], hows: tuple[str, ...], sources: int, density: float, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        Sum(weights, hows, density).check([Path("a"), Path("b")], sources)


def test_adapters_that_cannot_be_added(folder: Path, base: Base, tmp_path: Path) -> None:
    small, large = (adapter(folder, tmp_path / f"rank{rank}", rank, rank=rank) for rank in (2, 4))
    with pytest.raises(ConfigError, match=r"ranks 2, 4 cannot be added; --how cat takes any ranks"):
        compose(base, [small, large], Sum((1.0, 1.0)), (), tmp_path / "sum")
    with pytest.raises(ConfigError, match="an adapter is given twice"):
        compose(base, [small, small], Sum((1.0, 1.0)), (), tmp_path / "sum")
    scaled = adapter(folder, tmp_path / "ia3", 0, "ia3")
    with pytest.raises(ConfigError, match=r"ia3 is IA3; only LoRA adapters can be added"):
        compose(base, [small, scaled], Sum((1.0, 1.0)), (), tmp_path / "sum")
    assert not (tmp_path / "sum").exists()


def test_the_verb_adds_adapters(folder: Path, adapters: list[Path], tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from graftwood.cli import app

    words = ["merge", "--adapters", *map(str, adapters[:2]), "--weights", "1", "-0.5", "--out", str(tmp_path / "sum")]
    done = CliRunner().invoke(app, spelled(words))
    assert (done.exit_code, done.exception) == (0, None)
    assert gw.load(folder, tmp_path / "sum").technique is not None
