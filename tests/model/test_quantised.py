"""A quantised base is near the base, smaller, and trains what stands on it as a whole base would."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from conftest import CPU
from graftwood.base import open_base
from graftwood.checkpoint import save_model
from graftwood.config import RunConfig
from graftwood.data.batch import Examples
from graftwood.draft import unsuited
from graftwood.errors import ConfigError
from graftwood.generate.packed import decode_plan
from graftwood.model.decoder import Decoder
from graftwood.model.layers import Linear, project
from graftwood.model.quantised import Quantised, held_bytes, quantise
from graftwood.technique import TECHNIQUES
from graftwood.train.loop import Trainer

IDS = torch.randint(0, 320, (2, 20), generator=torch.Generator().manual_seed(5))
precisions = pytest.mark.parametrize(("precision", "error", "bits"), [("int8", 0.006, 8.5), ("q4", 0.08, 5.0)])


def whole(decoder: Decoder) -> Decoder:
    """The decoder with its quantised weights made whole."""
    for path, linear in decoder.linears().items():
        plain = Linear(1, 1)
        plain.weight = torch.nn.Parameter(linear.weight.clone(), requires_grad=False)
        owner, _, leaf = path.rpartition(".")
        setattr(decoder.get_submodule(owner), leaf, plain)
    return decoder


@precisions
def test_a_weight_comes_back_near_what_it_was(precision: str, error: float, bits: float) -> None:
    linear = Linear(64, 40)
    torch.nn.init.normal_(linear.weight, 0.0, 0.2, generator=torch.Generator().manual_seed(0))
    quantised = Quantised(linear, precision)
    assert (quantised.weight - linear.weight).norm() / linear.weight.norm() < error
    held = sum(buffer.nbytes for buffer in quantised.buffers())
    assert held == 40 * 64 * bits / 8
    again = Linear(64, 40)
    again.weight = torch.nn.Parameter(quantised.weight)
    torch.testing.assert_close(Quantised(again, precision).weight, quantised.weight, rtol=0, atol=2e-3)


@precisions
def test_a_block_of_equal_values_is_exact(precision: str, error: float, bits: float) -> None:
    linear = Linear(32, 2)
    torch.nn.init.constant_(linear.weight, 0.0)
    assert torch.equal(Quantised(linear, precision).weight, linear.weight)


@pytest.mark.parametrize("precision", ["int8", "q4"])
@pytest.mark.parametrize("name", [n for n in TECHNIQUES.names() if not TECHNIQUES.get(n).writes_base])
def test_what_trains_on_it_trains_as_on_the_whole_weights(name: str, precision: str, tmp_path: Path) -> None:
    stepped: list[Any] = []
    for make in (lambda decoder: decoder, whole):
        decoder = tiny.decoder()
        quantise(decoder, precision)
        decoder = make(decoder)
        tiny.technique(name).apply(decoder, seed=0)
        made = Trainer(decoder, Examples(tiny.examples(8)), Examples([]), tiny.plan(), tmp_path / make.__name__)
        made.step()
        stepped.append((decoder.trained(), decoder))
    (mine, quantised), (expected, plain) = stepped
    assert mine.keys() == expected.keys()
    for path in mine:
        torch.testing.assert_close(mine[path], expected[path], rtol=1e-3, atol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(quantised(IDS), plain(IDS), rtol=1e-2, atol=1e-2)
        with quantised.without_deltas():
            expected_base = quantised(IDS)
        fresh = tiny.decoder()
        quantise(fresh, precision)
        assert torch.equal(expected_base, fresh(IDS))


@pytest.mark.parametrize("precision", ["int8", "q4"])
def test_a_low_rank_update_on_it_keeps_no_whole_weight_and_one_input(precision: str) -> None:
    decoder = tiny.decoder()
    quantise(decoder, precision)
    tiny.technique("lora").apply(decoder, seed=0)
    linears = [linear for path, linear in decoder.linears().items() if path.endswith(("q_proj", "k_proj", "v_proj"))]
    x = torch.randn(6, linears[0].weight.shape[1], requires_grad=True)
    q, k, v = project(x, *linears[:3])
    assert q.grad_fn is k.grad_fn is v.grad_fn
    assert type(q.grad_fn).__name__ == "_FrozenProjectionBackward"
    kept = sum(tensor.nbytes for tensor in q.grad_fn.saved_tensors if tensor is not None)
    assert kept < x.nbytes + linears[0].weight.nbytes


@pytest.mark.parametrize("precision", ["int8", "q4"])
def test_no_whole_model_is_written_from_it(
    precision: str, tmp_path: Path, tokenizer_files: Callable[[Path], None]
) -> None:
    base = open_base(str(tiny.model_folder(tmp_path / "base", tokenizer_files)), CPU)
    quantise(base.decoder, precision)
    with pytest.raises(ConfigError, match=f"held in {precision}, which no whole model is written from"):
        save_model(base, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (problem,) = unsuited(RunConfig(data="rows"), tiny.technique("full"), (), base.decoder)
    assert problem.startswith(f"full moves the base's own weights, which {precision} cannot hold; load the base anew")


def test_it_is_smaller_and_decodes() -> None:
    decoder = tiny.decoder()
    before = held_bytes(decoder)
    quantise(decoder, "int8")
    assert held_bytes(decoder) < 0.75 * before, "a tiny model is mostly embeddings"
    plan = decode_plan(decoder)
    with torch.inference_mode():
        cache = plan.new_cache(rows=1, capacity=8)
        found = plan(IDS[:1, :8], documents=(8,), cache=cache)
        expected = decoder(IDS[:1, :8])
    assert (found - expected).norm() / expected.norm() < 2e-3
