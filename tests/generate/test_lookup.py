"""Guessing ahead changes how many passes an answer takes, never the answer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tokenizers import Tokenizer

from graftwood.data.tokenizers.bpe import BPETokenizer
from graftwood.generate.engine import Engine
from graftwood.generate.lookup import FIRST, LEAST, MOST, Lookup
from graftwood.generate.sampling import Sampling
from graftwood.model.decoder import Decoder
from graftwood.technique import TECHNIQUES


def prompts(count: int) -> list[list[int]]:
    """Prompts of several lengths that repeat themselves."""
    generator = torch.Generator().manual_seed(1)
    words = [torch.randint(3, 320, (length,), generator=generator).tolist() for length in (4, 7, 5, 9, 6)]
    return [(words[row % 5] * 4)[: 11 + row] for row in range(count)]


SAMPLINGS = {
    "greedy": Sampling(max_tokens=30),
    "drawn": Sampling(max_tokens=30, temperature=0.3, top_p=0.9, seed=3),
    "penalised": Sampling(max_tokens=30, repetition_penalty=1.05),
    "stopped": Sampling(max_tokens=30, stop=("e",)),
}


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_the_answer_is_the_one_without(
    count: int, sampling: Sampling, tiny_decoder: Decoder, tiny_tokenizer: Tokenizer
) -> None:
    tokenizer = BPETokenizer(tiny_tokenizer, eos=[2], bos=1, pad=0)
    given = prompts(count)
    plain = Engine(tiny_decoder, (), tokenizer, fast=False, lookup=False).generate(given, sampling)
    engine = Engine(tiny_decoder, (), tokenizer, fast=False)
    assert engine.generate(given, sampling) == plain
    ends = (plain[0].ids[len(plain[0].ids) // 2],) if plain[0].ids else ()
    plain = Engine(tiny_decoder, ends, tokenizer, fast=False, lookup=False).generate(given, sampling)
    assert Engine(tiny_decoder, ends, tokenizer, fast=False).generate(given, sampling) == plain
    assert "".join(engine.stream(given[0], sampling)) == engine.generate(given[:1], sampling)[0].text


@pytest.mark.parametrize(("count", "passes"), [(1, 8), (2, 13), (4, 24), (5, 46)])
def test_a_row_that_goes_round_in_circles_takes_few_passes(
    count: int, passes: int, tiny_decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    circle, read = [11, 12, 13], []
    follows = torch.full((320, 320), -9.0)
    follows[circle, [12, 13, 11]] = 9.0
    hidden = Decoder.hidden

    def last(decoder: Decoder, ids: torch.Tensor, *rest: Any, **named: Any) -> torch.Tensor:
        hidden(decoder, ids, *rest, **named)
        read.append(ids.numel())
        only = named.get("only")
        return (ids if only is None else ids[:, only]).unsqueeze(-1)

    engine = Engine(tiny_decoder, eos=())
    monkeypatch.setattr(Decoder, "hidden", last)
    monkeypatch.setattr(Decoder, "logits", lambda decoder, states: follows[states.squeeze(-1)])
    found = engine.generate([circle * 3] * count, Sampling(max_tokens=45))
    assert [done.ids for done in found] == [tuple(circle * 15)] * count
    assert len(read) <= passes
    assert max(read[2:]) <= 8


@pytest.mark.parametrize("technique", ["lora", "prompt", "prefix", "ptuning", "adapter"])
def test_drafts_and_guesses_know_what_a_technique_puts_before_the_text(technique: str, tiny_decoder: Decoder) -> None:
    TECHNIQUES.get(technique)().apply(tiny_decoder, seed=0)
    with torch.no_grad():
        for parameter in tiny_decoder.trained().values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    tiny_decoder.eval()
    expected = []
    for prompt in prompts(2):
        ids: list[Any] = list(prompt)
        for _ in range(14):
            ids.append(int(tiny_decoder(torch.tensor([ids]))[0, -1].argmax()))
        expected.append(tuple(ids[len(prompt) :]))
    drafts = [[*said[:5], 7, 7, 7] for said in expected]
    for lookup in (False, True):
        engine = Engine(tiny_decoder, eos=(), fast=False, lookup=lookup)
        assert [done.ids for done in engine.generate(prompts(2), Sampling(max_tokens=14))] == expected
        assert [done.ids for done in engine.generate(prompts(2), Sampling(max_tokens=14), drafts=drafts)] == expected


def test_the_longest_run_that_stood_before_is_followed_and_its_newest_place() -> None:
    row = Lookup([1, 2, 3, 4, 9, 2, 3, 5, 1, 2, 3])
    assert row.guess(2) == [4, 9], "three tokens are surer than two"
    assert Lookup([7, 2, 3, 4, 2, 3, 5, 8, 2, 3]).guess(1) == [5]
    assert Lookup([1, 2, 3]).guess(4) == []
    assert Lookup([]).guess(4) == []
    assert Lookup([5, 5, 5, 5]).guess(MOST) == [5] * FIRST, "a circle is longer than what has been said of it"


def test_it_reaches_farther_after_success_and_less_far_after_failure() -> None:
    row = Lookup([5] * 9)
    row.heard(FIRST, FIRST)
    assert len(row.guess(99)) == MOST
    row.heard(MOST, 0)
    assert len(row.guess(99)) == LEAST
    row.heard(0, 0)
    assert len(row.guess(99)) == LEAST
    assert row.guess(1) == [5]
