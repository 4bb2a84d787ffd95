"""Every architecture says what transformers says of padded and of growing batches, tunes, merges and generates."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import tiny
from conftest import CPU
from graftwood.data.batch import pack
from graftwood.generate.engine import Engine
from graftwood.generate.sampling import Sampling
from graftwood.model.architecture import ARCHITECTURES
from graftwood.model.config import ModelConfig
from graftwood.model.decoder import Decoder
from graftwood.model.weights import load_decoder
from graftwood.technique import TECHNIQUES
from graftwood.train.loss import summed_loss, token_losses

architectures = pytest.mark.parametrize("name", ARCHITECTURES.names())
Save = Callable[[ModelConfig, Path], None]
BATCH = pack(tiny.examples(6))
IDS = torch.randint(0, 320, (3, 40), generator=torch.Generator().manual_seed(5))
LENGTHS = (9, 40, 23)  # all past the tiny windows


def decoder_of(name: str) -> Decoder:
    decoder = Decoder(ARCHITECTURES.get(name), replace(tiny.config(name), init_std=0.2))
    decoder.initialise(seed=0)
    return decoder.requires_grad_(False)


def logits(decoder: Decoder) -> Tensor:
    with torch.no_grad():
        return decoder(IDS)


@architectures
def test_padded_and_growing_batches_equal_transformers(name: str, tmp_path: Path, save_with_transformers: Save) -> None:
    transformers = pytest.importorskip("transformers", reason="needs the extra `peers`")
    save_with_transformers(replace(tiny.config(name), init_std=0.02), tmp_path)
    ours = load_decoder(tmp_path, CPU)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    padding = torch.arange(40) >= torch.tensor(LENGTHS).unsqueeze(1)
    packed = torch.cat([row[:length] for row, length in zip(IDS, LENGTHS, strict=True)]).unsqueeze(0)
    with torch.no_grad():
        expected = theirs(IDS.masked_fill(padding, 0), attention_mask=(~padding).long()).logits
        found = ours(packed, documents=LENGTHS)[0]
        torch.testing.assert_close(found, expected[~padding], rtol=0.0, atol=1e-4)

        # transformers 5.24 calls `cache` what was `past_key_values`.
        called = "cache" if "cache" in inspect.signature(theirs.forward).parameters else "past_key_values"
        cache, state = ours.new_cache(1, 40), getattr(theirs(IDS[:1, :12], use_cache=True), called)
        ours(IDS[:1, :12], documents=(12,), cache=cache)
        for step in range(12, 30):
            told = theirs(IDS[:1, step : step + 1], use_cache=True, **{called: state})
            again = ours(IDS[:1, step : step + 1], cache=cache)
            torch.testing.assert_close(again, told.logits, rtol=0.0, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("gemma2", {}),
        ("gemma3", {}),
        ("gpt_oss", {}),
        ("qwen2", {"use_sliding_window": True, "max_window_layers": 20}),
        ("qwen3", {"use_sliding_window": True, "max_window_layers": 20}),
        ("smollm3", {"use_sliding_window": True}),
        ("smollm3", {"use_sliding_window": True, "no_rope_layer_interval": 3}),
        ("smollm3", {"use_sliding_window": True, "sliding_window": None}),
    ],
)
def test_windows_lie_in_the_layers_where_transformers_has_them(name: str, given: dict[str, Any]) -> None:
    transformers = pytest.importorskip("transformers", reason="needs the extra `peers`")
    entry = ARCHITECTURES.get(name)
    told = {"num_hidden_layers": 36, "sliding_window": 8, **given}
    theirs = transformers.CONFIG_MAPPING[entry.model_types[0]](**told)
    sizes = {"vocab_size": 320, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48}
    ours = entry.read(told | sizes)
    expected = tuple(8 if kind == "sliding_attention" else None for kind in theirs.layer_types)
    assert ours.windows == (expected if any(expected) else ())


@architectures
@pytest.mark.parametrize("technique", ["full", "lora"])
def test_tuning_keeps_its_promises(name: str, technique: str, tmp_path: Path) -> None:
    decoder, again = decoder_of(name), decoder_of(name)
    before = logits(decoder)
    entry = TECHNIQUES.get(technique).parse({} if technique == "full" else {"rank": 2})
    entry.apply(decoder, seed=0)
    assert torch.equal(logits(decoder), before)

    optimiser = torch.optim.AdamW(decoder.trained().values(), lr=1e-2)
    for _ in range(2):
        optimiser.zero_grad()
        summed_loss(decoder.train(), BATCH).backward()
        optimiser.step()
    still = [path for path, p in decoder.trained().items() if p.grad is None or not p.grad.abs().max() > 0]
    assert still == []
    after = logits(decoder.eval())
    assert not torch.allclose(before, after, atol=1e-3)

    save_file(entry.files(decoder), tmp_path / "trained.safetensors")
    entry.apply(again, seed=1)
    entry.load(again, load_file(tmp_path / "trained.safetensors"))
    assert torch.equal(logits(again.eval()), after)
    with decoder.without_deltas():
        assert torch.equal(logits(decoder), before) == (technique == "lora")
    entry.merge(decoder)
    assert decoder.trained() == {}
    assert (logits(decoder) - after).norm() / after.norm() < 1e-5


@architectures
@pytest.mark.parametrize("kind", ["seq_bn", "double_seq_bn", "par_bn"])
def test_every_kind_of_adapter_learns_all_it_has(name: str, kind: str) -> None:
    decoder = decoder_of(name)
    tiny.technique("adapter", kind=kind).apply(decoder, seed=0)
    with torch.no_grad():
        for parameter in decoder.trained().values():
            parameter += 0.1  # what ends in zeros gives nothing before it a slope
    summed_loss(decoder.train(), BATCH).backward()
    still = [path for path, p in decoder.trained().items() if p.grad is None or not p.grad.abs().max() > 0]
    assert still == []


@architectures
def test_the_summed_loss_is_the_sum_of_the_tokens(name: str) -> None:
    decoder = decoder_of(name).requires_grad_(True)
    loss = summed_loss(decoder, BATCH)
    torch.testing.assert_close(loss, token_losses(decoder, BATCH).sum(), rtol=1e-5, atol=1e-4)
    hidden = decoder.hidden(BATCH.ids, BATCH.documents)[0, BATCH.predict]
    plain = torch.nn.functional.cross_entropy(decoder.logits(hidden), BATCH.targets, reduction="sum")
    head = decoder.head_weight()
    (found,), (expected,) = torch.autograd.grad(loss, head), torch.autograd.grad(plain, head)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@architectures
def test_a_batch_generates_what_reading_everything_again_does(name: str) -> None:
    decoder = decoder_of(name)
    prompts = [row[:length].tolist() for row, length in zip(IDS, LENGTHS, strict=True)]
    found = Engine(decoder, eos=(), fast=False).generate(prompts, Sampling(max_tokens=10), batch=2)
    for prompt, completion in zip(prompts, found, strict=True):
        ids: list[Any] = list(prompt)
        for _ in range(10):
            ids.append(int(decoder(torch.tensor([ids]))[0, -1].argmax()))
        assert completion.ids == tuple(ids[len(prompt) :])
