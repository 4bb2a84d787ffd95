"""The forecast: what it counts is what the run then does, and nothing is different afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import tiny
from graftwood.data.batch import Examples, Order
from graftwood.model.decoder import count_parameters
from graftwood.runtime import peak_memory_bytes
from graftwood.technique import TECHNIQUES
from graftwood.train.forecast import forecast
from graftwood.train.loop import Stepped, Trainer

techniques = pytest.mark.parametrize("name", TECHNIQUES.names())


@techniques
def test_it_leaves_the_model_as_it_was(name: str) -> None:
    decoder = tiny.decoder()
    tiny.technique(name).apply(decoder, seed=0)
    before = {path: parameter.detach().clone() for path, parameter in decoder.named_parameters()}
    trained = set(decoder.trained())
    forecast(decoder, Examples(tiny.examples(20)), Examples(tiny.examples(5)), tiny.plan())
    assert all(torch.equal(parameter, before[path]) for path, parameter in decoder.named_parameters())
    assert all(parameter.grad is None for parameter in decoder.parameters())
    assert set(decoder.trained()) == trained


@techniques
@pytest.mark.parametrize("epochs", [1.0, 2.0])
def test_its_counts_are_those_of_the_run(name: str, epochs: float, tmp_path: Path) -> None:
    decoder, rows = tiny.decoder(), Examples(tiny.examples(20))
    tiny.technique(name).apply(decoder, seed=0)
    plan = tiny.plan(epochs=epochs, batch=6)
    expected = forecast(decoder, rows, Examples([]), plan)
    made = Trainer(decoder, rows, Examples([]), plan, tmp_path)
    steps = [event for event in made.run() if isinstance(event, Stepped)]
    assert expected.steps == len(steps)
    assert expected.tokens == sum(step.tokens for step in steps)
    assert expected.trained_parameters == count_parameters(made.trained.values())


def test_part_of_an_epoch_reads_part_of_the_tokens() -> None:
    rows, plan = tiny.examples(40), tiny.plan(epochs=0.5)
    decoder = tiny.decoder().requires_grad_(True)
    expected = forecast(decoder, Examples(rows), Examples(rows[:4]), plan)
    assert expected.steps == Order(40, 8, 0.5, 0).steps == 2
    assert expected.tokens == round(sum(len(row.ids) for row in rows) * 2 / 5)


def test_times_add_up_and_memory_holds_the_moments() -> None:
    decoder = tiny.decoder().requires_grad_(True)
    expected = forecast(decoder, Examples(tiny.examples(20)), Examples(tiny.examples(5)), tiny.plan())
    assert expected.train_seconds == pytest.approx(expected.tokens / expected.tokens_per_second)
    assert expected.valid_seconds > 0
    assert expected.below_seconds == 0
    assert expected.seconds == expected.train_seconds + expected.valid_seconds
    assert expected.memory_bytes > 8 * expected.trained_parameters
    assert forecast(decoder, Examples(tiny.examples(20)), Examples([]), tiny.plan()).valid_seconds == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="where there is no such device nothing is on it")
def test_memory_is_that_of_the_device() -> None:
    assert peak_memory_bytes(torch.device("cpu")) > 0
    assert peak_memory_bytes(torch.device("cuda")) == 0


def test_a_row_that_is_no_number_leaves_the_parameters_numbers() -> None:
    decoder = tiny.decoder(tied_head=False)
    decoder.embedding.weight[300:].fill_(torch.inf)
    decoder.requires_grad_(True)
    before = {name: parameter.detach().clone() for name, parameter in decoder.named_parameters()}
    rows = [tiny.example([310, 4, 5, 6], [False, True, True, True])] * 4
    for kind in ("adamw", "muon"):
        forecast(decoder, Examples(rows), Examples([]), tiny.plan(optimiser=kind, weight_decay=0.1))
        assert all(torch.equal(parameter, before[name]) for name, parameter in decoder.named_parameters())
