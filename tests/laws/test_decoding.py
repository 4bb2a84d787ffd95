"""Every registered architecture continues from a cache as if it had read everything at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from graftwood.generate.packed import decode_plan
from graftwood.model.architecture import ARCHITECTURES
from graftwood.model.attention import KVCache
from graftwood.model.config import ModelConfig
from graftwood.model.decoder import Decoder
from graftwood.technique import TECHNIQUES

LENGTHS = (5, 1, 11)
architectures = pytest.mark.parametrize("name", ARCHITECTURES.names())
variants = pytest.mark.parametrize(("name", "changes"), tiny.variants())
TinyConfig = Callable[..., ModelConfig]


def decoder_of(config: ModelConfig) -> Decoder:
    decoder = Decoder(ARCHITECTURES.get(config.architecture), replace(config, init_std=0.2))
    decoder.initialise(seed=0)
    with torch.no_grad():
        for parameter in decoder.parameters():
            if parameter.ndim == 1:  # gains and biases that are not one and zero
                parameter.add_(torch.linspace(-0.3, 0.3, len(parameter)))
    return decoder.requires_grad_(False)


def texts(count: int, tokens: int = 24) -> Tensor:
    return torch.randint(0, 320, (count, tokens), generator=torch.Generator().manual_seed(0))


def started(decoder: Decoder, ids: Tensor, rows: int = 3) -> tuple[KVCache, Tensor]:
    """A cache with the first `LENGTHS` tokens of each row, and the logits they gave, end to end."""
    cache = decoder.new_cache(rows, capacity=ids.shape[1])
    prompts = torch.cat([row[:length] for row, length in zip(ids, LENGTHS, strict=True)])
    return cache, decoder(prompts.unsqueeze(0), documents=LENGTHS, cache=cache)[0]


@variants
def test_rows_of_unequal_length_continue_as_if_read_at_once(
    name: str, changes: dict[str, Any], tiny_config: TinyConfig
) -> None:
    decoder, ids = decoder_of(tiny_config(name, **changes)), texts(3)
    expected = decoder(ids)
    cache, prompted = started(decoder, ids)
    read = [expected[row, :length] for row, length in enumerate(LENGTHS)]
    torch.testing.assert_close(prompted, torch.cat(read), rtol=1e-4, atol=1e-4)
    for step in range(ids.shape[1] - max(LENGTHS)):
        places = [length + step for length in LENGTHS]
        found = decoder(ids[range(3), places].unsqueeze(1), cache=cache)[:, 0]
        torch.testing.assert_close(found, expected[range(3), places], rtol=1e-4, atol=1e-4)
    assert cache.lengths == [length + ids.shape[1] - max(LENGTHS) for length in LENGTHS]


@architectures
@pytest.mark.parametrize("tokens", [2, 7])
def test_several_tokens_at_once_continue_too(name: str, tokens: int, tiny_config: TinyConfig) -> None:
    decoder, ids = decoder_of(tiny_config(name)), texts(3)
    cache, _ = started(decoder, ids)
    part = torch.stack([row[length : length + tokens] for row, length in zip(ids, LENGTHS, strict=True)])
    found, expected = decoder(part, cache=cache), decoder(ids)
    for row, length in enumerate(LENGTHS):
        torch.testing.assert_close(found[row], expected[row, length : length + tokens], rtol=1e-4, atol=1e-4)


def read_on(decoder: Decoder, ids: Tensor, shared: int) -> None:
    """Rows whose first `shared` tokens are read once for all of them say what they say alone."""
    ids = torch.cat([ids[:1, :shared].expand(len(ids), -1), ids[:, shared:]], dim=1)
    expected, lengths = decoder(ids), [shared + own for own in (4, 1, 6)]
    first = decoder.new_cache(rows=1, capacity=shared)
    decoder(ids[:1, :shared], documents=(shared,), cache=first)
    cache = decoder.new_cache(rows=3, capacity=ids.shape[1])
    cache.common = first.row(0)
    rests = [row[shared:length] for row, length in zip(ids, lengths, strict=True)]
    found = decoder(torch.cat(rests).unsqueeze(0), documents=[len(rest) for rest in rests], cache=cache)[0]
    wanted = [expected[row, shared:length] for row, length in enumerate(lengths)]
    torch.testing.assert_close(found, torch.cat(wanted), rtol=1e-4, atol=1e-4)
    after = decoder(ids[range(3), lengths].unsqueeze(1), cache=cache)[:, 0]
    torch.testing.assert_close(after, expected[range(3), lengths], rtol=1e-4, atol=1e-4)


@architectures
def test_a_common_beginning_is_read_once(name: str, tiny_config: TinyConfig) -> None:
    read_on(decoder_of(tiny_config(name)), texts(3), shared=9)


@pytest.mark.parametrize("technique", ["lora", "prompt", "prefix", "ptuning", "adapter"])
def test_a_common_beginning_is_read_once_with_a_technique(technique: str, tiny_config: TinyConfig) -> None:
    decoder = decoder_of(tiny_config("llama"))
    TECHNIQUES.get(technique)().apply(decoder, seed=0)
    with torch.no_grad():
        for parameter in decoder.trained().values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        read_on(decoder.eval(), texts(3), shared=9)


@architectures
def test_rows_leave_and_others_take_their_place(name: str, tiny_config: TinyConfig) -> None:
    decoder, ids = decoder_of(tiny_config(name)), texts(4)
    expected = decoder(ids)
    cache, _ = started(decoder, ids[:3])
    cache.keep([2, 1])
    decoder(ids[3:, :4], documents=(4,), cache=cache)
    owners, places = [2, 1, 3], [11, 1, 4]
    assert cache.lengths == places
    found = decoder(ids[owners, places].unsqueeze(1), cache=cache)[:, 0]
    torch.testing.assert_close(found, expected[owners, places], rtol=1e-4, atol=1e-4)


@variants
def test_a_decode_plan_says_what_its_decoder_says(name: str, changes: dict[str, Any], tiny_config: TinyConfig) -> None:
    decoder, ids = decoder_of(tiny_config(name, **changes)), texts(3)
    plan = decode_plan(decoder)
    with torch.inference_mode():
        cache, _ = started(decoder, ids)
        last = ids[range(3), list(LENGTHS)].unsqueeze(1)
        found = plan(last, cache=cache)[:, 0]
        expected = decoder(ids)[range(3), list(LENGTHS)]
    assert (found - expected).norm() / expected.norm() < 2e-3
    assert not torch.equal(found, expected), "nothing was packed"
