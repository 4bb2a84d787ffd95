"""Training from a block on: the states below are the pass's own, nothing there moves, and they are computed once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from conftest import CPU
from graftwood.anchor import ANCHORS, Ground, narrow
from graftwood.base import Base, base_outline, open_base
from graftwood.cache import entries
from graftwood.data.batch import Examples, pack
from graftwood.data.encode import Example
from graftwood.errors import ConfigError
from graftwood.model.architecture import ARCHITECTURES
from graftwood.model.decoder import Decoder
from graftwood.model.quantised import quantise
from graftwood.technique import TECHNIQUES
from graftwood.train import below
from graftwood.train.below import freeze_below, rows_kept, rows_tried
from graftwood.train.forecast import forecast
from graftwood.train.loop import Trainer

ROWS = tiny.examples(12, seed=1)
LAYERS = 3
inside = pytest.mark.parametrize("technique", [n for n, kind in TECHNIQUES.all().items() if kind.starts_at_base])


@pytest.fixture
def folder(tmp_path: Path, tokenizer_files: Callable[[Path], None]) -> Path:
    return tiny.model_folder(tmp_path / "tiny", tokenizer_files, tiny.decoder(layers=LAYERS))


def tuned(folder: Path, out: Path, technique: str, kept: bool) -> tuple[Decoder, dict[str, Tensor], list[object]]:
    """Train above the second block, from states in the cache or from the tokens."""
    base = open_base(str(folder), CPU)
    tiny.technique(technique).apply(base.decoder, seed=0)
    freeze_below(base.decoder, 2)
    train, valid = (rows_kept(base, rows, 2) if kept else Examples(rows) for rows in (ROWS, ROWS[:5]))
    trainer = Trainer(base.decoder, train, valid, tiny.plan(epochs=2.0), out)
    events: list[object] = [event.loss if hasattr(event, "loss") else event.valid_loss for event in trainer.run()]
    return base.decoder, {name: p.detach().clone() for name, p in trainer.trained.items()}, events


@pytest.mark.parametrize("name", ARCHITECTURES.names())
def test_a_pass_from_a_block_is_the_whole_pass(name: str) -> None:
    config = tiny.config(name)
    decoder = Decoder(ARCHITECTURES.get(name), config)
    decoder.initialise(seed=0)
    packed = pack(ROWS[:4])
    with torch.no_grad():
        whole = decoder.hidden(packed.ids, packed.documents)
        for block in range(1, config.layers + 1):
            states = decoder.into(block, packed.ids, packed.documents)
            kept = states.clone()
            assert torch.equal(decoder.hidden(packed.ids, packed.documents, entering=(block, states)), whole)
            assert torch.equal(states, kept)  # they are read again from where they lie


@inside
def test_nothing_below_moves_and_all_above_does(technique: str, folder: Path, tmp_path: Path) -> None:
    decoder, trained, _ = tuned(folder, tmp_path / "run", technique, kept=True)
    untouched = open_base(str(folder), CPU).decoder
    packed = pack(ROWS)
    assert not trained.keys() & decoder.below(2).keys()
    assert torch.allclose(
        decoder.into(2, packed.ids, packed.documents), untouched.into(2, packed.ids, packed.documents), atol=1e-5
    )
    for name, parameter in untouched.below(2).items():
        if name in dict(decoder.named_parameters()):
            assert torch.equal(decoder.get_parameter(name), parameter)
    with torch.no_grad():
        assert not torch.allclose(decoder(packed.ids, packed.documents), untouched(packed.ids, packed.documents))


@inside
def test_the_cached_path_is_the_uncached_one(technique: str, folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    _, wanted, losses = tuned(folder, tmp_path / "plain", technique, kept=False)
    _, found, same = tuned(folder, tmp_path / "kept", technique, kept=True)
    assert same == pytest.approx(losses, rel=1e-4)
    for name, parameter in wanted.items():
        torch.testing.assert_close(found[name], parameter, rtol=1e-3, atol=1e-4)


def test_packed_as_the_run_packs_them_states_are_equal_to_the_bit(folder: Path, monkeypatch: Any) -> None:
    base = open_base(str(folder), CPU)
    monkeypatch.setattr(below, "_BUDGET", 1)
    rows = rows_kept(base, ROWS, 2)
    for number, example in enumerate(ROWS):
        (packed,) = rows.packs([number], 1)
        assert packed.entering is not None
        assert torch.equal(packed.entering[1], base.decoder.into(2, torch.tensor([example.ids]), [len(example.ids)]))


def test_whatever_is_packed_brings_its_own_states(folder: Path) -> None:
    base = open_base(str(folder), CPU)
    rows = rows_kept(base, ROWS, 1)
    for chosen in ([3, 4, 5], [5, 3], [11, 0, 7], list(range(12))):
        for packed in rows.packs(chosen, 40):
            block, states = packed.entering or (0, torch.empty(0))
            assert block == 1
            torch.testing.assert_close(states, base.decoder.into(1, packed.ids, packed.documents))


def test_some_of_the_rows_keep_their_numbers_and_states(folder: Path) -> None:
    rows = rows_kept(open_base(str(folder), CPU), ROWS, 1)
    some = rows.only([9, 2, 4]).only([2, 0])
    (packed,), (wanted,) = some.packs([0, 1], 1024), rows.packs([4, 9], 1024)
    assert packed.rows == wanted.rows == (4, 9)
    assert len(some) == 2
    assert some.place(0) == rows.place(4)
    assert packed.entering is not None
    assert wanted.entering is not None
    assert torch.equal(packed.entering[1], wanted.entering[1])


def test_states_are_computed_once_for_base_block_and_rows(folder: Path, monkeypatch: Any) -> None:
    base, passes = open_base(str(folder), CPU), []
    into = Decoder.into

    def counted(decoder: Decoder, *given: Any) -> Tensor:
        passes.append(given)
        return into(decoder, *given)

    monkeypatch.setattr(Decoder, "into", counted)

    def made(rows: list[Example], block: int) -> int:
        before = len(passes)
        rows_kept(base, rows, block)
        return len(passes) - before

    assert made(ROWS, 1) > 0
    assert made(ROWS, 1) == 0
    assert made(ROWS, 2) > 0
    assert made(ROWS[:-1], 1) > 0
    assert made(ROWS, 0) == made([], 1) == 0
    quantise(base.decoder, "int8")
    assert made(ROWS, 1) > 0
    assert sum(str(entry["name"]).startswith("activations/") for entry in entries()) == 4


def test_the_forecast_counts_what_trains_and_leaves_no_cache(folder: Path) -> None:
    base = open_base(str(folder), CPU)
    tiny.technique("full").apply(base.decoder, seed=0)
    freeze_below(base.decoder, 2)
    expected = forecast(base.decoder, rows_tried(base.decoder, ROWS, 2), Examples(ROWS), tiny.plan())
    assert expected.seconds == expected.train_seconds + expected.valid_seconds + expected.below_seconds
    assert expected.trained_parameters == sum(p.numel() for p in base.decoder.trained().values())
    assert not [entry for entry in entries() if str(entry["name"]).startswith("activations/")]


def test_other_anchors_work_beside_it(folder: Path, tmp_path: Path) -> None:
    base, given = open_base(str(folder), CPU), {"freeze_below": {"layers": 2}, "kl": {"windows": 8, "share": 4.0}}
    tiny.technique("lora").apply(base.decoder, seed=0)
    held = [ANCHORS.get(name).parse(options) for name, options in given.items()]
    rows = rows_kept(base, ROWS, narrow(held, base.decoder))
    holds = [anchor.hold(Ground(base, tiny.technique("lora"), rows, tiny.plan())) for anchor in held]
    trainer = Trainer(base.decoder, rows, Examples([]), tiny.plan(), tmp_path / "run", holds=holds)
    start = {name: parameter.detach().clone() for name, parameter in base.decoder.named_parameters()}
    stepped = trainer.step()
    assert stepped.held == pytest.approx(0.0, abs=1e-4)  # the untuned model is the base
    assert trainer.step().held > 1e-6
    moved = {name for name, parameter in base.decoder.named_parameters() if not torch.equal(parameter, start[name])}
    assert moved == trainer.trained.keys()


@pytest.mark.parametrize(
    ("technique", "layers", "wanted"),
    [
        ("lora", LAYERS, "leaves none of this model's 3 blocks to train; give at most 2"),
        ("prompt", 2, "prompt trains what stands before the text"),
        ("prefix", 2, "prefix trains what stands before the text"),
    ],
)
def test_what_it_cannot_keep_is_said_before(technique: str, layers: int, wanted: str, folder: Path) -> None:
    anchor = ANCHORS.get("freeze_below").parse({"layers": layers})
    (problem,) = anchor.problems(tiny.technique(technique), open_base(str(folder), CPU).decoder)
    assert wanted in problem


@pytest.mark.parametrize(
    ("technique", "options"),
    [
        ("lora", {"targets": r".*layers\.0\..*"}),
        ("freeze", {"targets": r".*layers\.0\..*"}),
        ("norm", {"targets": "layers.0.input_layernorm"}),
        ("bitfit", {"targets": r".*layers\.0\..*"}),
    ],
)
def test_a_technique_that_is_all_below_is_said_before(technique: str, options: dict[str, Any], folder: Path) -> None:
    outline = base_outline(str(folder))
    (problem,) = (
        ANCHORS.get("freeze_below").parse({"layers": 1}).problems(tiny.technique(technique, **options), outline)
    )
    assert problem.startswith(f"freeze_below: nothing that {technique} trains is in block 1 or above it")
    for fits, layers in ((options, 0), ({}, 1)):
        anchor = ANCHORS.get("freeze_below").parse({"layers": layers})
        assert anchor.problems(tiny.technique(technique, **fits), outline) == []


def test_nothing_left_to_train_is_an_error(folder: Path) -> None:
    decoder: Base = open_base(str(folder), CPU)
    tiny.technique("lora", targets=r".*layers\.0\..*").apply(decoder.decoder, seed=0)
    with pytest.raises(ConfigError, match="nothing that this technique trains is in block 1 or above"):
        freeze_below(decoder.decoder, 1)
    assert ANCHORS.get("freeze_below").parse({}).begins(tiny.decoder(layers=30)) == 18
