"""Plans against what published runs took, and against sums done by hand."""

from __future__ import annotations

from dataclasses import replace
from statistics import median

import pytest
from bench import planner as published

from graftwood.errors import ConfigError
from graftwood.planner import (
    ALIKE,
    EFFICIENCY,
    GPUS,
    USABLE,
    Layout,
    activations,
    assess,
    layouts,
    plan,
    published_shape,
    states,
)

GPT3, CONTEXT = published_shape("gpt3-175b")


def test_operations_are_the_published_formula() -> None:
    hidden, layers, vocab, s = 12288, 96, 50257, 2048
    formula = 72 * layers * hidden**2 * (1 + s / (6 * hidden) + vocab / (12 * layers * hidden))
    assert GPT3.operations(s) == pytest.approx(formula, rel=2e-3)


def test_runs_that_set_no_constant_are_near() -> None:
    rows = [row for row in published.rows() if not published.calibrates(row)]
    assert len(rows) == 12
    assert median(abs(row.off()) for row in rows) <= 0.15
    assert published.fitted() == pytest.approx({kind: EFFICIENCY[kind] for kind in ("A100", "H100")}, rel=5e-3)


def test_memory_by_hand() -> None:
    layout = Layout(tensor=8, pipeline=16, data=4, recompute=False)
    own = (96 // 16 * GPT3.layer + GPT3.edges) / 8
    assert states(GPT3, layout) == pytest.approx(own * (6 + 12 / 4))
    # 34 bytes a channel and token, six layers, sixteen micro-batches alive, and what dealing out in turns adds.
    kept = 2048 * 12288 / 8 * 34 * 6 * 16 * (1 + 15 / 64)
    assert activations(GPT3, layout, 2048, 1536) == pytest.approx(kept)
    again = activations(GPT3, replace(layout, recompute=True), 2048, 1536)
    assert again == pytest.approx(2048 * 12288 * (2 * 6 * 16 + 34 / 8))


def test_the_run_of_megatron_lm_takes_what_it_took() -> None:
    found = assess(GPT3, Layout(8, 16, 8, recompute=True), "A100-80GB", 2048, 1536 * 2048, 300e9)
    assert found.batch_tokens == 1536 * 2048
    assert found.batch_tokens / found.tokens_per_second == pytest.approx(32, rel=0.15)  # seconds an iteration


@pytest.mark.parametrize(("name", "gpus"), [("gpt3-175b", 1024), ("llama3-8b", 8), ("gpt-oss-120b", 256), ("gpt2", 1)])
def test_what_is_planned_fits_and_is_the_fastest(name: str, gpus: int) -> None:
    shape, positions = published_shape(name)
    found = plan(shape, gpus, "H100-80GB", positions, 4e6, 1e11)
    room = GPUS["H100-80GB"].memory * USABLE
    assert found.memory <= room
    assert found.layout.gpus == gpus
    others = [assess(shape, one, "H100-80GB", positions, 4e6, 1e11) for one in layouts(shape, gpus, 4e6 / positions)]
    assert found.seconds <= min(one.seconds for one in others if one.memory <= room) * (1 + ALIKE)


def test_a_run_of_minutes_gets_the_fastest_layout_too() -> None:
    shape, positions = published_shape("llama3-8b")
    found = plan(shape, 64, "H100-80GB", positions, 1e6, 1e9)
    again = assess(shape, Layout(1, 1, 64, recompute=True), "H100-80GB", positions, 1e6, 1e9)
    assert found.seconds < 0.8 * again.seconds < 3600


def test_a_mixture_keeps_what_all_of_a_tokens_experts_make() -> None:
    shape, _ = published_shape("gpt-oss-120b")
    kept = activations(shape, Layout(1, 1, 1, recompute=False), 1000, 1)
    assert kept == pytest.approx(1000 * 36 * (18 * 2880 + 4 * 4 * 2880))


def test_a_token_passes_few_of_the_experts() -> None:
    shape, _ = published_shape("gpt-oss-120b")
    assert shape.layers * shape.active < 0.06 * shape.parameters


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"gpu": "A100"}, "Did you mean 'A100-80GB'"),
        ({"gpus": 8}, "does not fit"),
        ({"gpus": 2039}, "more divisors"),
        ({"batch_tokens": 2048}, "give more --batch-tokens"),
    ],
)
def test_what_cannot_be_planned_is_one_line(changes: dict[str, object], words: str) -> None:
    given = {"gpus": 1024, "gpu": "A100-80GB", "sequence": CONTEXT, "batch_tokens": 4e6, "tokens": 3e11} | changes
    with pytest.raises(ConfigError, match=words) as raised:
        plan(GPT3, **given)  # type: ignore[arg-type]
    assert "\n" not in str(raised.value)


def test_an_unknown_model_names_its_neighbours() -> None:
    with pytest.raises(ConfigError, match="gpt3-175b"):
        published_shape("gpt3-175")
