"""Every technique begins as the base, changes only what it says, survives the disk, and comes off or merges in."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import tiny
from conftest import CPU
from graftwood.data.batch import pack
from graftwood.errors import ConfigError
from graftwood.generate.packed import decode_plan
from graftwood.model.architecture import ARCHITECTURES
from graftwood.model.config import ModelConfig
from graftwood.model.decoder import Decoder
from graftwood.model.tensor_files import SINGLE
from graftwood.model.weights import load_decoder
from graftwood.technique import TECHNIQUES, Technique
from graftwood.train.loss import summed_loss, token_losses

TinyConfig = Callable[..., ModelConfig]
techniques = pytest.mark.parametrize("name", TECHNIQUES.names())
adapters = pytest.mark.parametrize("name", [n for n in TECHNIQUES.names() if not TECHNIQUES.get(n).writes_base])
BATCH = pack(tiny.examples(8))
IDS = torch.randint(0, 320, (2, 20), generator=torch.Generator().manual_seed(5))


@pytest.fixture
def folder(tmp_path: Path, tokenizer_files: Callable[[Path], None]) -> Path:
    return tiny.model_folder(tmp_path / "tiny", tokenizer_files)


@pytest.fixture
def base(folder: Path) -> Decoder:
    return load_decoder(folder, CPU)


def put(name: str, decoder: Decoder, seed: int = 0) -> Technique:
    technique = tiny.technique(name)
    technique.apply(decoder, seed)
    return technique


def refusal(name: str, decoder: Decoder) -> str | None:
    """Why this technique cannot be merged into this decoder."""
    made = TECHNIQUES.get(name)
    if name == "bitfit" and decoder.without_place():
        return "no biases that these could become"
    return made.cannot_merge


def logits(decoder: Decoder) -> Tensor:
    with torch.no_grad():
        return decoder(IDS)


def train(decoder: Decoder, steps: int = 3) -> None:
    """Plain AdamW steps with an evaluation pass before each."""
    optimiser = torch.optim.AdamW(decoder.trained().values(), lr=1e-2)
    for _ in range(steps):
        decoder.eval()
        token_losses(decoder, BATCH)
        decoder.train()
        optimiser.zero_grad()
        summed_loss(decoder, BATCH).backward()
        optimiser.step()
    decoder.eval()


def trained_pair(name: str, base: Decoder) -> tuple[Technique, Tensor, Tensor]:
    """The technique after some steps, the logits before it and with it."""
    before = logits(base)
    technique = put(name, base)
    train(base)
    after = logits(base)
    assert not torch.allclose(before, after, atol=1e-3), "a law about a change needs a change"
    return technique, before, after


@techniques
def test_at_first_the_output_is_the_bases_or_the_entry_says_otherwise(name: str, base: Decoder) -> None:
    before = logits(base)
    put(name, base)
    same = TECHNIQUES.get(name).starts_at_base
    assert torch.equal(logits(base.train()), before) == same
    assert torch.equal(logits(base.eval()), before) == same


@techniques
def test_a_keepsake_from_before_it_brings_the_base_back(name: str, base: Decoder) -> None:
    before, back = logits(base), base.keepsake()
    _, _, first = trained_pair(name, base)
    back()
    assert torch.equal(logits(base), before)
    assert base.trained() == {}
    assert torch.equal(trained_pair(name, base)[2], first), "nothing of the first time is left"


@techniques
def test_what_trains_shows_in_the_files(name: str, base: Decoder) -> None:
    own = {path for path, _ in base.named_parameters()}
    technique = put(name, base)
    trained = base.trained()
    assert trained
    assert all(p.dtype == torch.float32 for p in trained.values())
    assert not technique.writes_base or set(trained) <= own
    train(base, steps=1)  # so that a second factor which starts at zero does not hide the first
    before = {path: tensor.clone() for path, tensor in technique.files(base).items()}
    for path, parameter in trained.items():
        kept = parameter.detach().clone()
        with torch.no_grad():
            parameter += 0.1
            after = technique.files(base)
            changed = [name for name in before if not torch.equal(before[name], after[name])]
            parameter.copy_(kept)
        assert changed, path


@techniques
def test_every_trained_tensor_has_a_gradient_by_the_second_step(name: str, base: Decoder) -> None:
    put(name, base)
    train(base, steps=2)
    still = [path for path, p in base.trained().items() if p.grad is None or not p.grad.abs().max() > 0]
    assert still == []


@techniques
def test_training_changes_what_it_may_and_nothing_else(name: str, base: Decoder, folder: Path) -> None:
    digest = hashlib.sha256((folder / SINGLE).read_bytes()).hexdigest()
    own = {path: p.detach().clone() for path, p in base.named_parameters()}
    technique = put(name, base)
    may = set(base.trained()) if technique.writes_base else set()
    train(base)
    with base.without_deltas():
        now = dict(base.named_parameters())
        assert now.keys() == own.keys()
        assert {path for path in own if not torch.equal(now[path], own[path])} == may
    assert hashlib.sha256((folder / SINGLE).read_bytes()).hexdigest() == digest


@techniques
def test_what_is_saved_and_loaded_gives_the_same_logits(name: str, base: Decoder, folder: Path, tmp_path: Path) -> None:
    technique, _, after = trained_pair(name, base)
    save_file(technique.files(base), tmp_path / "trained.safetensors")
    again = load_decoder(folder, CPU)
    put(name, again, seed=1).load(again, load_file(tmp_path / "trained.safetensors"))
    # A network that made what was saved is not in the file, and its last bits need not come out again.
    torch.testing.assert_close(logits(again), after, rtol=1e-5, atol=1e-5)
    assert torch.equal(logits(again), after) or name == "ptuning"


@techniques
def test_the_seed_decides_the_start(name: str, folder: Path) -> None:
    def start(seed: int) -> list[Tensor]:
        decoder = load_decoder(folder, CPU)
        return list(put(name, decoder, seed).files(decoder).values())

    kind = TECHNIQUES.get(name)
    assert all(torch.equal(a, b) for a, b in zip(start(3), start(3), strict=True))
    drawn = kind.draws and not kind.writes_base
    assert all(torch.equal(a, b) for a, b in zip(start(3), start(4), strict=True)) != drawn


@techniques
def test_merged_equals_unmerged_or_the_entry_says_why_not(name: str, base: Decoder) -> None:
    paths = {path for path, _ in base.named_parameters()}
    technique, _, after = trained_pair(name, base)
    if why := refusal(name, base):
        with pytest.raises(ConfigError, match=f"{name} cannot be merged: .*{re.escape(why)}"):
            technique.merge(base)
        assert torch.equal(logits(base), after), "a refusal changes nothing"
        return
    technique.merge(base)
    assert {path for path, _ in base.named_parameters()} == paths
    assert base.trained() == {}
    assert (logits(base) - after).norm() / after.norm() < 1e-5


@adapters
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_what_is_merged_is_taken_out_to_the_bit(name: str, architecture: str) -> None:
    decoder = tiny.family(architecture)
    own = {path: p.detach().clone() for path, p in decoder.named_parameters()}
    technique, before, after = trained_pair(name, decoder)
    if why := refusal(name, decoder):
        with pytest.raises(ConfigError, match=f"{name} cannot be merged: .*{re.escape(why)}"):
            technique.merge(decoder)
        return
    trained = set(decoder.trained())
    back = technique.merge(decoder)
    merged = logits(decoder)
    back()
    assert torch.equal(logits(decoder), after)
    assert set(decoder.trained()) == trained
    with decoder.without_deltas():
        assert torch.equal(logits(decoder), before)
        assert all(torch.equal(p, own[path]) for path, p in decoder.named_parameters())
    technique.merge(decoder)
    assert torch.equal(logits(decoder), merged), "merged anew it is the same"


@adapters
def test_without_deltas_it_is_the_base(name: str, base: Decoder) -> None:
    _, before, after = trained_pair(name, base)
    with base.without_deltas():
        assert torch.equal(logits(base), before)
    assert torch.equal(logits(base), after)
    with pytest.raises(KeyError), base.without_deltas():
        raise KeyError
    assert torch.equal(logits(base), after)


@adapters
def test_taken_off_it_is_the_base(name: str, base: Decoder) -> None:
    own = dict(base.named_parameters())
    _, before, _ = trained_pair(name, base)
    base.take_off()
    left = dict(base.named_parameters())
    assert left.keys() == own.keys()
    assert all(left[path] is own[path] for path in own), "the very tensors the base had"
    assert torch.equal(logits(base), before)
    put(name, base, seed=1)
    train(base)
    assert not torch.equal(logits(base), before), "the place is free for the next"


@techniques
def test_every_tensor_that_does_not_fit_is_named_at_once(name: str, base: Decoder) -> None:
    technique, _, after = trained_pair(name, base)
    tensors = {path: tensor.clone() for path, tensor in technique.files(base).items()}
    misshapen, *others = tensors
    tensors[misshapen] = torch.zeros(1, 1)  # would broadcast
    tensors["model.strange.weight"] = torch.zeros(3)
    expected = [f"{misshapen} is [1, 1], not", "model.strange.weight has no place"]
    if others:
        del tensors[others[0]]
        expected.append(f"{others[0]} is missing")
    with pytest.raises(ConfigError) as caught:
        technique.load(base, tensors)
    for part in expected:
        assert part in str(caught.value)
    assert torch.equal(logits(base), after), "a refused file changes nothing"


@techniques
def test_an_unknown_option_is_an_error(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"{name}: no option 'learnign'.*Options: "):
        TECHNIQUES.get(name).parse({"learnign": 1})


@techniques
@pytest.mark.parametrize("training", [True, False])
def test_the_decoders_mode_stays(name: str, training: bool, base: Decoder) -> None:
    base.train(training)
    put(name, base)
    assert {module.training for module in base.modules()} == {training}


IDS_PACKED = torch.randint(0, 320, (1, 24), generator=torch.Generator().manual_seed(6))


@adapters
def test_every_packed_document_has_its_own_and_sees_no_other(name: str, base: Decoder) -> None:
    trained_pair(name, base)
    lengths = (5, 1, 11, 7)
    with torch.no_grad():
        packed = base(IDS_PACKED, documents=lengths).split(lengths, dim=1)
        for document, found in zip(IDS_PACKED.split(lengths, dim=1), packed, strict=True):
            torch.testing.assert_close(found, base(document), rtol=1e-4, atol=1e-4)


@adapters
def test_what_is_continued_from_a_cache_equals_what_is_read_at_once(name: str, base: Decoder) -> None:
    trained_pair(name, base)
    ids = torch.randint(0, 320, (3, 16), generator=torch.Generator().manual_seed(7))
    lengths = (5, 1, 9)
    with torch.inference_mode():
        expected = base(ids)
        plan = decode_plan(base)
        for decoder, bound in ((base, 1e-4), (plan, 1e-2)):
            cache = decoder.new_cache(rows=3, capacity=16)
            prompts = torch.cat([row[:length] for row, length in zip(ids, lengths, strict=True)])
            found = [decoder(prompts.unsqueeze(0), documents=lengths, cache=cache)[0]]
            wanted = [expected[row, :length] for row, length in enumerate(lengths)]
            for step in range(5):
                places = [length + step for length in lengths]
                found.append(decoder(ids[range(3), places].unsqueeze(1), cache=cache)[:, 0])
                wanted.append(expected[range(3), places])
            assert (torch.cat(found) - torch.cat(wanted)).norm() / torch.cat(wanted).norm() < bound


@adapters
def test_alternatives_at_the_end_of_a_document_are_read_as_if_alone(name: str, base: Decoder) -> None:
    trained_pair(name, base)
    stem, one, two = IDS_PACKED[:, :9], IDS_PACKED[:, 9:12], IDS_PACKED[:, 12:16]
    with torch.no_grad():
        forked = base.logits(base.hidden(torch.cat([stem, one, two], 1), (16,), forks=[(3, 4)]))
        for ending, places in ((one, slice(9, 12)), (two, slice(12, 16))):
            alone = base(torch.cat([stem, ending], 1))[:, 9:]
            torch.testing.assert_close(forked[:, places], alone, rtol=1e-4, atol=1e-4)


@techniques
@pytest.mark.parametrize("architecture", ARCHITECTURES.names())
def test_the_laws_hold_on_every_architecture(name: str, architecture: str, tiny_config: TinyConfig) -> None:
    def made(seed: int) -> Decoder:
        entry = ARCHITECTURES.get(architecture)
        decoder = Decoder(entry, replace(tiny_config(architecture), init_std=0.2))
        decoder.initialise(seed)
        return decoder.requires_grad_(False)

    decoder = made(0)
    before, own = logits(decoder), {path: p.detach().clone() for path, p in decoder.named_parameters()}
    technique = put(name, decoder)
    assert torch.equal(logits(decoder), before) == technique.starts_at_base
    train(decoder, steps=2)
    still = [path for path, p in decoder.trained().items() if p.grad is None or not p.grad.abs().max() > 0]
    assert still == []
    after = logits(decoder)
    assert not torch.allclose(before, after, atol=1e-3)
    files = {path: tensor.clone() for path, tensor in technique.files(decoder).items()}
    again = made(0)
    put(name, again, seed=1).load(again, files)
    torch.testing.assert_close(logits(again), after, rtol=1e-5, atol=1e-5)
    if not technique.writes_base:
        with decoder.without_deltas():
            assert torch.equal(logits(decoder), before)
            assert all(torch.equal(p, own[path]) for path, p in decoder.named_parameters())
    if refusal(name, decoder) is None:
        technique.merge(decoder)
        assert (logits(decoder) - after).norm() / after.norm() < 1e-5
        assert {path for path, _ in decoder.named_parameters()} == own.keys()


@pytest.mark.parametrize("name", ["prompt", "prefix"])
@pytest.mark.parametrize("architecture", ARCHITECTURES.names())
def test_what_stands_before_the_text_is_packed_and_cached_on_every_architecture(
    name: str, architecture: str, tiny_config: TinyConfig
) -> None:
    """Windows, learned positions, capped scores and sinks included."""
    decoder = Decoder(ARCHITECTURES.get(architecture), replace(tiny_config(architecture), init_std=0.2))
    decoder.initialise(seed=0)
    put(name, decoder.requires_grad_(False))
    ids = torch.randint(0, 320, (3, 16), generator=torch.Generator().manual_seed(7))
    lengths = (5, 1, 9)
    prompts = torch.cat([row[:length] for row, length in zip(ids, lengths, strict=True)]).unsqueeze(0)
    with torch.inference_mode():
        expected = decoder(ids)
        packed = decoder(prompts, documents=lengths)[0].split(lengths)
        cache = decoder.new_cache(rows=3, capacity=16)
        cached = decoder(prompts, documents=lengths, cache=cache)[0].split(lengths)
        for row, length in enumerate(lengths):
            torch.testing.assert_close(packed[row], expected[row, :length], rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(cached[row], expected[row, :length], rtol=1e-4, atol=1e-4)
        for step in range(5):
            places = [length + step for length in lengths]
            found = decoder(ids[range(3), places].unsqueeze(1), cache=cache)[:, 0]
            torch.testing.assert_close(found, expected[range(3), places], rtol=1e-4, atol=1e-4)
        forked = decoder.logits(decoder.hidden(ids[:1], (16,), forks=[(3, 4)]))
        alone = decoder(torch.cat([ids[:1, :9], ids[:1, 12:]], dim=1))
        torch.testing.assert_close(forked[:, 12:], alone[:, 9:], rtol=1e-4, atol=1e-4)
