"""What each filter leaves, who draws what, and which settings are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from graftwood.errors import ConfigError
from graftwood.generate.sampling import Sampling, choose, row_generator

PROBABILITIES = torch.tensor([0.05, 0.4, 0.02, 0.25, 0.03, 0.15, 0.1])


def drawn(logits: Tensor, rows: int = 2000, **options: Any) -> Tensor:
    sampling = Sampling(**{"temperature": 1.0} | options)
    return choose(logits.expand(rows, -1), sampling, [row_generator(0, row) for row in range(rows)])


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, {0, 1, 2, 3, 4, 5, 6}),
        ({"top_k": 1}, {1}),
        ({"top_k": 3}, {1, 3, 5}),
        ({"top_k": 99}, {0, 1, 2, 3, 4, 5, 6}),
        ({"top_p": 0.39}, {1}),
        ({"top_p": 0.41}, {1, 3}),
        ({"top_p": 0.81}, {1, 3, 5, 6}),
        ({"top_p": 0.0001}, {1}),
        ({"min_p": 0.24}, {1, 3, 5, 6}),
        ({"min_p": 0.26}, {1, 3, 5}),
        ({"min_p": 1.0}, {1}),
        # Of the three that top-k leaves, the first two have a mass of 0.65 / 0.8.
        ({"top_k": 3, "top_p": 0.82}, {1, 3, 5}),
        ({"top_k": 3, "top_p": 0.8}, {1, 3}),
        # A temperature of 2 flattens before the nucleus is found: the square roots of 0.4 and 0.25 are 0.44 of all.
        ({"temperature": 2.0, "top_p": 0.41}, {1, 3}),
        ({"temperature": 0.5, "top_p": 0.55}, {1}),
        ({"temperature": 2.0, "min_p": 0.49}, {1, 3, 5, 6}),
        ({"temperature": 1e-8}, {1}),
        ({"temperature": 1e-40}, {1}),  # by which float32 divides into infinity
        ({"temperature": 1e-50}, {1}),  # which float32 has not
    ],
)
def test_exactly_the_kept_tokens_are_drawn(options: dict[str, Any], kept: set[int]) -> None:
    assert set(drawn(PROBABILITIES.log() + 7.0, **options).tolist()) == kept


def test_draws_follow_the_probabilities() -> None:
    rows = 20_000
    shares = drawn(PROBABILITIES.log(), rows).bincount(minlength=7) / rows
    spread = (PROBABILITIES * (1 - PROBABILITIES) / rows).sqrt()
    assert ((shares - PROBABILITIES).abs() < 4 * spread).all()


def test_a_nucleus_may_be_wide() -> None:
    logits = torch.linspace(1.0, 0.0, 5000)
    mass = logits.softmax(-1).double().cumsum(-1)
    width = int((mass < 0.9).sum()) + 1
    ids = drawn(logits, 500, top_p=0.9)
    assert 1024 < ids.max() < width
    permuted = torch.randperm(5000, generator=torch.Generator().manual_seed(0))
    assert permuted[drawn(logits[permuted], 500, top_p=0.9)].max() < width


def test_greedy_takes_the_most_probable_whatever_the_filters() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0], [3.0, 2.0, 1.0]])
    assert choose(logits, Sampling(top_k=1, top_p=0.1, min_p=1.0), []).tolist() == [1, 0]


def test_the_penalty_divides_positive_and_multiplies_negative_logits() -> None:
    seen = torch.tensor([[True, True, False, False]])

    def penalised(logits: list[float], penalty: float) -> int:
        return int(choose(torch.tensor([logits]), Sampling(repetition_penalty=penalty), [], seen))

    assert penalised([3.0, -9.0, 1.6, -9.0], 2.0) == 2  # 3 / 2 < 1.6
    assert penalised([3.0, -9.0, 1.4, -9.0], 2.0) == 0  # 3 / 2 > 1.4
    assert penalised([-1.0, -9.0, -1.9, -9.0], 2.0) == 2  # -1 * 2 < -1.9
    assert penalised([-1.0, -9.0, -2.1, -9.0], 2.0) == 0  # -1 * 2 > -2.1
    assert penalised([1.0, -9.0, 1.5, -9.0], 0.5) == 0  # below one it rewards


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.7, "top_k": 20, "top_p": 0.8, "min_p": 0.05},
        {"temperature": 1.3, "top_p": 0.9},
        {"temperature": 1.0, "min_p": 0.1},
        {"temperature": 0.9, "top_k": 5, "repetition_penalty": 1.4},
    ],
)
def test_supports_equal_transformers(options: dict[str, Any]) -> None:
    process = pytest.importorskip("transformers.generation.logits_process", reason="needs the extra `peers`")
    logits = torch.randn(1, 40, generator=torch.Generator().manual_seed(1)) * 2
    context = torch.tensor([[3, 17, 3, 25]])
    steps = [
        process.RepetitionPenaltyLogitsProcessor(options.get("repetition_penalty", 1.0)),
        process.TemperatureLogitsWarper(options["temperature"]),
        process.TopKLogitsWarper(options.get("top_k", 40)),
        process.TopPLogitsWarper(options.get("top_p", 1.0)),
        process.MinPLogitsWarper(options.get("min_p", 0.0)),
    ]
    theirs = logits
    for step in steps:
        theirs = step(context, theirs)
    rows = 6000
    seen = torch.zeros(1, 40, dtype=torch.bool)
    seen[0, context[0]] = True
    generators = [row_generator(0, row) for row in range(rows)]
    ours = choose(logits.expand(rows, -1), Sampling(**options), generators, seen.expand(rows, -1))
    expected = theirs.softmax(-1)[0]
    shares = ours.bincount(minlength=40) / rows
    assert set(ours.tolist()) <= set(expected.nonzero().flatten().tolist())
    assert ((shares - expected).abs() <= 5 * (expected * (1 - expected) / rows).sqrt()).all()


def test_a_row_draws_the_same_beside_any_neighbours() -> None:
    logits = torch.randn(5, 100, generator=torch.Generator().manual_seed(2))
    sampling = Sampling(temperature=1.0)
    together = choose(logits, sampling, [row_generator(3, row) for row in range(5)])
    alone = [choose(logits[row : row + 1], sampling, [row_generator(3, row)]) for row in range(5)]
    assert torch.equal(together, torch.cat(alone))


def test_rows_and_seeds_have_streams_of_their_own() -> None:
    streams = [(seed, row) for seed in range(4) for row in range(4)]
    numbers = [torch.rand(1, generator=row_generator(seed, row)).item() for seed, row in streams]
    assert len(set(numbers)) == len(streams)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("min_p", -0.1),
        ("min_p", 1.5),
        ("repetition_penalty", 0.0),
        ("max_tokens", 0),
        ("stop", ("a", "")),
        ("stop", "word"),
    ],
)
def test_a_setting_out_of_range_is_named_with_what_is_allowed(field: str, value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        Sampling(**{field: value})  # type: ignore[arg-type]
    assert f"{field}={value!r} is not" in str(caught.value)


def test_every_wrong_setting_is_named_at_once() -> None:
    with pytest.raises(ConfigError, match=r"temperature=-1.*top_p=2.*max_tokens=0"):
        Sampling(temperature=-1, top_p=2, max_tokens=0)
