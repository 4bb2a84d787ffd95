"""Every architecture is causal, keeps packed documents apart, reads and writes its family's files, and learns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

import tiny
from conftest import CPU
from graftwood.model.architecture import ARCHITECTURES
from graftwood.model.config import ModelConfig
from graftwood.model.decoder import Decoder
from graftwood.model.tensor_files import file_tensors
from graftwood.model.weights import load_decoder, save_tensors, to_files

architectures = pytest.mark.parametrize("name", ARCHITECTURES.names())
variants = pytest.mark.parametrize(("name", "changes"), tiny.variants())
TinyConfig = Callable[..., ModelConfig]
Save = Callable[[ModelConfig, Path], None]


def decoder_of(config: ModelConfig) -> Decoder:
    decoder = Decoder(ARCHITECTURES.get(config.architecture), replace(config, init_std=0.2))
    decoder.initialise(seed=0)
    return decoder.requires_grad_(False)


def tokens(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 320, shape, generator=torch.Generator().manual_seed(seed))


@architectures
def test_a_token_does_not_reach_back(name: str, tiny_config: TinyConfig) -> None:
    decoder, ids = decoder_of(tiny_config(name)), tokens(2, 24)
    before = decoder(ids)
    for changed in (1, 9, 23):
        other = ids.clone()
        other[:, changed] = (other[:, changed] + 1) % 320
        after = decoder(other)
        if decoder.config.experts:  # the changed token leaves an expert others to multiply with, in another order
            torch.testing.assert_close(after[:, :changed], before[:, :changed], rtol=1e-5, atol=1e-5)
        else:
            assert torch.equal(after[:, :changed], before[:, :changed])
        assert not torch.allclose(after[:, changed], before[:, changed])


@architectures
def test_order_matters(name: str, tiny_config: TinyConfig) -> None:
    decoder, ids = decoder_of(tiny_config(name)), tokens(1, 12)
    swapped = ids[:, [1, 0, *range(2, 12)]]
    assert not torch.allclose(decoder(ids)[:, -1], decoder(swapped)[:, -1])


@architectures
@pytest.mark.parametrize("lengths", [(24,), (1, 7, 1, 15), (8, 8, 8)])
def test_packed_documents_do_not_see_each_other(name: str, lengths: tuple[int, ...], tiny_config: TinyConfig) -> None:
    decoder, ids = decoder_of(tiny_config(name)), tokens(1, sum(lengths))
    packed = decoder(ids, documents=lengths).split(lengths, dim=1)
    for document, logits in zip(ids.split(lengths, dim=1), packed, strict=True):
        torch.testing.assert_close(logits, decoder(document), rtol=1e-5, atol=1e-5)


@architectures
@pytest.mark.parametrize("lengths", [(24,), (5, 12, 7), (8, 8, 8)])
def test_some_places_alone_are_what_they_are_among_all(
    name: str, lengths: tuple[int, ...], tiny_config: TinyConfig
) -> None:
    decoder, ids, only = decoder_of(tiny_config(name)), tokens(1, 24), torch.tensor([0, 6, 7, 23])
    decoder.requires_grad_()
    slope = torch.randn(1, 4, decoder.config.hidden_size, generator=torch.Generator().manual_seed(2))
    found = decoder.hidden(ids, lengths, only=only)
    wanted = decoder.hidden(ids, lengths)[:, only]
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    trained = list(decoder.blocks.parameters())
    slopes = [torch.autograd.grad((hidden * slope).sum(), trained, allow_unused=True) for hidden in (found, wanted)]
    for parameter, *both in zip(trained, *slopes, strict=True):  # an expert that no token takes has none
        own, other = (torch.zeros_like(parameter) if one is None else one for one in both)
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-5)
    for block in (0, 1, decoder.config.layers):
        entering = block, decoder.into(block, ids, lengths)
        again = decoder.hidden(ids, lengths, entering=entering, only=only)
        torch.testing.assert_close(again, wanted, rtol=1e-5, atol=1e-5)


@architectures
def test_alternatives_of_a_document_do_not_see_each_other(name: str, tiny_config: TinyConfig) -> None:
    decoder = decoder_of(tiny_config(name))
    stems, forks = (5, 1, 7), ((3, 1, 4), (2, 0), ())
    lengths = [stem + sum(ends) for stem, ends in zip(stems, forks, strict=True)]
    ids = tokens(1, sum(lengths))
    found = decoder.logits(decoder.hidden(ids, lengths, forks=forks))
    for document, logits, stem, ends in zip(ids.split(lengths, 1), found.split(lengths, 1), stems, forks, strict=True):
        common, *alternatives = document.split([stem, *ends], dim=1)
        torch.testing.assert_close(logits[:, :stem], decoder(common), rtol=1e-5, atol=1e-5)
        for alternative, told in zip(alternatives, logits[:, stem:].split(ends, dim=1) if ends else (), strict=True):
            alone = decoder(torch.cat([common, alternative], dim=1))[:, stem:]
            torch.testing.assert_close(told, alone, rtol=1e-5, atol=1e-5)


@architectures
def test_alternatives_that_end_in_alternatives_are_read_as_if_alone(name: str, tiny_config: TinyConfig) -> None:
    """A beginning, two questions that go on from it, each with its answers; and a document that has none."""
    decoder, ids = decoder_of(tiny_config(name)), tokens(1, 24 + 5)
    forks = [(4, (2, 0, 3)), (2, (1, 4)), 3]
    found = decoder.logits(decoder.hidden(ids, (24, 5), forks=[forks, ()]))[0, :24]
    paths = {(9, 11): (5, 9), (11, 14): (5, 9), (16, 17): (14, 16), (17, 21): (14, 16), (21, 24): (5, 5)}
    for (start, end), (first, last) in paths.items():
        alone = torch.cat([ids[:, :5], ids[:, first:last], ids[:, start:end]], dim=1)
        wanted = decoder(alone)[0]
        torch.testing.assert_close(found[:5], wanted[:5], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found[first:last], wanted[5 : 5 + last - first], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found[start:end], wanted[5 + last - first :], rtol=1e-5, atol=1e-5)


@variants
def test_write_then_read_is_the_identity(name: str, changes: dict[str, Any], tiny_config: TinyConfig) -> None:
    architecture, config = ARCHITECTURES.get(name), tiny_config(name, **changes)
    fields = architecture.write(config)
    assert architecture.write(architecture.read(fields)) == fields
    assert fields["model_type"] in architecture.model_types


@variants
def test_logits_equal_transformers(
    name: str, changes: dict[str, Any], tmp_path: Path, tiny_config: TinyConfig, save_with_transformers: Save
) -> None:
    transformers = pytest.importorskip("transformers", reason="needs the extra `peers`")
    config = tiny_config(name, **changes)
    save_with_transformers(config, tmp_path)
    ours = load_decoder(tmp_path, CPU)
    assert ours.config == config
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    ids = tokens(2, config.max_positions)
    with torch.no_grad():
        expected, found = theirs(ids).logits, ours(ids)
    assert expected.std() > 0.5, "logits this flat would hide a difference"
    torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-4)


@variants
def test_load_then_save_gives_back_every_byte(
    name: str,
    changes: dict[str, Any],
    tmp_path: Path,
    tiny_config: TinyConfig,
    save_with_transformers: Save,
) -> None:
    config = tiny_config(name, **changes)
    source = tmp_path / "theirs"
    save_with_transformers(config, source)
    expected = load_file(source / "model.safetensors")
    for target, shard_bytes in ((tmp_path / "whole", 5_000_000_000), (tmp_path / "shards", 20_000)):
        target.mkdir()
        save_tensors(to_files(load_decoder(source, CPU)), target, shard_bytes)
        assert len(list(target.glob("*.safetensors"))) > 1 or shard_bytes > 1_000_000
        found = dict(file_tensors(target))
        assert found.keys() == expected.keys()
        for tensor in expected:
            assert found[tensor].dtype == expected[tensor].dtype
            assert torch.equal(found[tensor], expected[tensor]), tensor


@architectures
def test_transformers_reads_what_we_write(name: str, tmp_path: Path, tiny_config: TinyConfig) -> None:
    transformers = pytest.importorskip("transformers", reason="needs the extra `peers`")
    ours = decoder_of(tiny_config(name))
    if ours.architecture.model_types[0] not in transformers.CONFIG_MAPPING:
        pytest.skip(f"transformers has no {name}")
    save_tensors(to_files(ours), tmp_path, shard_bytes=20_000)
    config = transformers.AutoConfig.for_model(**ours.architecture.write(ours.config), pad_token_id=None)
    config.save_pretrained(tmp_path)
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    ids = tokens(1, 20)
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, ours(ids), rtol=0.0, atol=1e-4)


@architectures
def test_it_overfits_one_batch(name: str, tiny_config: TinyConfig) -> None:
    decoder = decoder_of(tiny_config(name)).requires_grad_(True)
    ids, lengths = tokens(1, 32), (12, 20)
    inside = torch.ones(31, dtype=torch.bool)
    inside[11] = False  # the first document's end does not predict the second's start
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=3e-2)
    losses = []
    while len(losses) < 50 and (not losses or losses[-1] >= 0.05):
        loss = F.cross_entropy(decoder(ids, documents=lengths)[0, :-1][inside], ids[0, 1:][inside])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 3.0
    assert losses[-1] < 0.05


@architectures
def test_every_parameter_learns(name: str, tiny_config: TinyConfig) -> None:
    entry, config = ARCHITECTURES.get(name), tiny_config(name)
    decoder, ids = (
        decoder_of(entry.read(entry.write(replace(config, tied_head=False)))).requires_grad_(True),
        tokens(2, 16),
    )
    decoder(ids).logsumexp(-1).sum().backward()
    still = [path for path, p in decoder.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert still == []
