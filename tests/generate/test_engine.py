"""Batches against single rows, streams against batches, text against ids, plans against decoders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from torch import Tensor, nn

from graftwood.data.tokenizers.bpe import BPETokenizer
from graftwood.data.tokenizers.spm import from_pieces
from graftwood.errors import ConfigError, GraftError
from graftwood.generate import engine as engine_module
from graftwood.generate import packed
from graftwood.generate.engine import Completion, Engine
from graftwood.generate.packed import decode_plan
from graftwood.generate.sampling import Sampling
from graftwood.generate.stopping import TextStream
from graftwood.model.architecture import ARCHITECTURES
from graftwood.model.config import ModelConfig
from graftwood.model.decoder import Decoder
from graftwood.model.layers import Linear, Packed
from graftwood.techniques.lora import LoRA

TinyConfig = Callable[..., ModelConfig]
LENGTHS = (3, 17, 1, 8, 8, 30, 2)


@pytest.fixture
def tokenizer(tiny_tokenizer: Tokenizer) -> BPETokenizer:
    return BPETokenizer(tiny_tokenizer, eos=[2], bos=1, pad=0)


def prompts(lengths: Sequence[int] = LENGTHS) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(3, 320, (length,), generator=generator).tolist() for length in lengths]


def greedily(decoder: Decoder, prompt: Sequence[int], count: int) -> tuple[int, ...]:
    """The slow and obvious way: read everything again for every token."""
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(decoder(torch.tensor([ids]))[0, -1].argmax()))
    return tuple(ids[len(prompt) :])


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("batch", [1, 3, 16])
def test_a_batch_says_what_each_row_says_alone(fast: bool, batch: int, tiny_decoder: Decoder) -> None:
    engine = Engine(tiny_decoder, eos=(), fast=fast)
    found = engine.generate(prompts(), Sampling(max_tokens=12), batch)
    assert found == [Completion(greedily(tiny_decoder, prompt, 12), "", "length") for prompt in prompts()]


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("batch", [2, 16])
def test_what_all_prompts_begin_with_is_read_once(
    fast: bool, batch: int, tiny_decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    beginning = prompts((12,))[0]
    given = [*([*beginning, *rest] for rest in prompts()), beginning]
    read = []
    hidden = Decoder.hidden

    def counted(decoder: Decoder, ids: Tensor, *rest: Any, **named: Any) -> Tensor:
        read.append(ids.numel())
        return hidden(decoder, ids, *rest, **named)

    engine = Engine(tiny_decoder, eos=(), fast=fast, lookup=False)
    monkeypatch.setattr(Decoder, "hidden", counted)
    found = engine.generate(given, Sampling(max_tokens=6), batch)
    # The shortest prompt keeps its last token for itself, so that there is a row to read.
    assert sum(read) == 11 + sum(len(prompt) - 11 for prompt in given) + 5 * len(given)
    monkeypatch.undo()
    assert [done.ids for done in found] == [greedily(tiny_decoder, prompt, 6) for prompt in given]


@pytest.mark.parametrize("batch", [2, 5])
def test_rows_that_end_make_room(batch: int, tiny_decoder: Decoder) -> None:
    texts = [greedily(tiny_decoder, prompt, 20) for prompt in prompts()]
    eos = [texts[0][2], texts[1][9], texts[3][5], texts[5][0]]
    expected = []
    for text in texts:
        end = next((place for place, index in enumerate(text) if index in eos), None)
        expected.append(Completion(text[:end], "", "length" if end is None else "stop"))
    assert len({len(done.ids) for done in expected}) > 3
    assert Engine(tiny_decoder, eos).generate(prompts(), Sampling(max_tokens=20), batch) == expected


def test_long_prompts_are_read_in_several_passes(tiny_decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "_PREFILL_TOKENS", 20)
    found = Engine(tiny_decoder, eos=()).generate(prompts(), Sampling(max_tokens=6), batch=16)
    assert [done.ids for done in found] == [greedily(tiny_decoder, prompt, 6) for prompt in prompts()]


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("batch", [1, 3, 16])
@pytest.mark.parametrize("agreed", [0, 1, 5, 12])
def test_a_draft_changes_nothing_but_the_passes(
    agreed: int, batch: int, fast: bool, tiny_decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, sampling = Engine(tiny_decoder, eos=(), fast=fast, lookup=False), Sampling(max_tokens=12)
    alone = engine.generate(prompts(), sampling, batch)
    other = [[*done.ids[:agreed], *((index + 1) % 320 for index in done.ids[agreed:])] for done in alone]
    drafts = [[], other[1][:3], other[2] * 2, *other[3:]]  # none, a short one, one that is longer than allowed
    monkeypatch.setattr(engine_module, "_CHUNK", 7)
    passes = 0
    hidden = Decoder.hidden

    def counted(decoder: Decoder, *given: Any, **named: Any) -> Tensor:
        nonlocal passes
        passes += 1
        return hidden(decoder, *given, **named)

    monkeypatch.setattr(Decoder, "hidden", counted)
    assert engine.generate(prompts(), sampling, batch, drafts) == alone
    if batch == 1:
        right = [0, min(3, agreed), *[min(11, agreed)] * 5]
        assert passes == sum(12 - count for count in right)


def test_a_draft_goes_on_after_a_common_beginning_and_stops_where_the_model_stops(tiny_decoder: Decoder) -> None:
    given = [[*prompts((12,))[0], *rest] for rest in prompts()]
    free = Engine(tiny_decoder, eos=()).generate(given, Sampling(max_tokens=12))
    engine = Engine(tiny_decoder, eos=(free[0].ids[6],))
    alone = engine.generate(given, Sampling(max_tokens=12), 4)
    assert alone[0] == Completion(free[0].ids[: free[0].ids.index(free[0].ids[6])], "", "stop")
    assert engine.generate(given, Sampling(max_tokens=12), 4, [done.ids for done in free]) == alone
    with pytest.raises(ConfigError, match="drafts are for greedy answers"):
        engine.generate(given, Sampling(temperature=1.0), drafts=given)


def test_a_sample_depends_on_seed_and_row_alone(tiny_decoder: Decoder) -> None:
    engine = Engine(tiny_decoder, eos=(), fast=False)

    def sample(rows: list[list[int]], seed: int = 5, batch: int = 16) -> list[tuple[int, ...]]:
        sampling = Sampling(temperature=1.0, top_p=0.95, seed=seed, max_tokens=10)
        return [done.ids for done in engine.generate(rows, sampling, batch)]

    rows = prompts()
    assert sample(rows) == sample(rows) == sample(rows, batch=2)
    assert sample(rows) != sample(rows, seed=6)
    others = prompts((9, 2, 25, 8, 1, 4, 6))
    others[3] = rows[3]
    assert sample(others)[3] == sample(rows)[3]
    same = sample([rows[0]] * 6)
    assert len(set(same)) == 6


def test_the_penalty_sees_prompt_and_answer(tiny_decoder: Decoder) -> None:
    def penalised(prompt: list[int]) -> tuple[int, ...]:
        ids = list(prompt)
        for _ in range(15):
            logits = tiny_decoder(torch.tensor([ids]))[0, -1]
            seen = torch.tensor(sorted(set(ids)))
            logits[seen] = torch.where(logits[seen] < 0, logits[seen] * 3.0, logits[seen] / 3.0)
            ids.append(int(logits.argmax()))
        return tuple(ids[len(prompt) :])

    texts = [penalised(prompt) for prompt in prompts()]
    assert texts != [greedily(tiny_decoder, prompt, 15) for prompt in prompts()]
    end = texts[0][4]
    expected = [text[: text.index(end)] if end in text else text for text in texts]
    for batch in (2, 16):
        sampling = Sampling(repetition_penalty=3.0, max_tokens=15)
        found = Engine(tiny_decoder, eos=[end]).generate(prompts(), sampling, batch)
        assert [done.ids for done in found] == expected


def test_a_stop_string_ends_the_text_wherever_tokens_begin(tiny_decoder: Decoder, tokenizer: BPETokenizer) -> None:
    engine = Engine(tiny_decoder, (), tokenizer)
    for prompt in prompts():
        sampling = Sampling(temperature=1.0, max_tokens=40, seed=len(prompt))
        free = engine.generate([prompt], sampling)[0]
        middle = len(free.text) // 2
        stop = free.text[middle : middle + 5]
        sampling = replace(sampling, stop=("never to be seen", stop))
        stopped = engine.generate([prompt], sampling)[0]
        assert stopped.text == free.text[: free.text.find(stop)]
        assert stopped.finish == "stop"
        assert len(stopped.ids) < len(free.ids)
        assert "".join(engine.stream(prompt, sampling)) == stopped.text


def test_a_stream_adds_up_to_the_text(tiny_decoder: Decoder, tokenizer: BPETokenizer) -> None:
    engine = Engine(tiny_decoder, tokenizer.eos, tokenizer)
    for prompt in prompts():
        sampling = Sampling(temperature=1.0, max_tokens=30, seed=len(prompt))
        pieces = list(engine.stream(prompt, sampling))
        done = engine.generate([prompt], sampling)[0]
        assert "".join(pieces) == done.text == tokenizer.decode(done.ids, skip_specials=True)
        assert all(pieces)
        assert len(pieces) > 3


def streamed(tokenizer: BPETokenizer, ids: Sequence[int], stop: Sequence[str] = ()) -> tuple[list[str], TextStream]:
    stream = TextStream(tokenizer, stop)
    pieces = []
    for index in ids:
        pieces.append(stream.push(index))
        if stream.stopped:
            break
    return [*pieces, stream.end()], stream


def test_characters_of_several_tokens_come_whole(tokenizer: BPETokenizer) -> None:
    text = "naïve – 日本語 🌳🏽 the end ﷽ é" * 20
    ids = tokenizer.encode(text)
    assert len(ids) > len(text)
    pieces, _ = streamed(tokenizer, ids)
    assert "".join(pieces) == text
    assert all("\ufffd" not in piece for piece in pieces)
    assert "日" in pieces


@pytest.mark.parametrize(
    "text", ["မြန်မာဘာသာစကားသည်" * 8, "తెలుగు భాష చాలా అందమైనది " * 6, "ӝӥӟ ӧӵӷ " * 30, "😀é한" * 40, "a😀b" * 40]
)
def test_characters_of_single_bytes_come_whole_however_long_the_text(text: str) -> None:
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "▁a"]
    types = [2, 3, 3, *[6] * 256, *[1] * 4]
    told = {"tokens": pieces, "scores": [0.0] * len(pieces), "token_type": types}
    made = from_pieces({f"tokenizer.ggml.{key}": value for key, value in told.items()})
    tokenizer = BPETokenizer(made, eos=[2], bos=1, pad=None)
    ids = tokenizer.encode(text)
    assert len(ids) > 150
    found, stream = streamed(tokenizer, ids)
    assert "".join(found) == text == tokenizer.decode(ids)
    assert len(stream._ids) < 80, "what was given is not decoded again and again"


def test_bytes_that_never_become_a_character_are_shown_in_the_end(tokenizer: BPETokenizer) -> None:
    ids = tokenizer.encode("a日")
    pieces, _ = streamed(tokenizer, ids[:-1])
    assert pieces == ["a", "", "", "\ufffd"]
    pieces, _ = streamed(tokenizer, [*ids[:-1], *tokenizer.encode("b")])
    assert "".join(pieces) == "a\ufffdb"


def test_special_tokens_are_no_text(tokenizer: BPETokenizer) -> None:
    pieces, _ = streamed(tokenizer, [*tokenizer.encode("on"), 1, *tokenizer.encode("ward")])
    assert "".join(pieces) == "onward"


@given(text=st.text("ab🌳", max_size=150), stop=st.text("ab🌳", min_size=1, max_size=4))
def test_text_ends_before_the_first_stop_string(text: str, stop: str, tiny_tokenizer: Tokenizer) -> None:
    tokenizer = BPETokenizer(tiny_tokenizer, eos=[2], bos=1, pad=0)
    pieces, stream = streamed(tokenizer, tokenizer.encode(text), [stop, "c"])
    assert "".join(pieces) == text.partition(stop)[0]
    assert stream.stopped == (stop in text)


def test_an_answer_ends_with_the_model_s_positions(tiny_decoder: Decoder) -> None:
    engine = Engine(tiny_decoder, eos=())
    limit = tiny_decoder.config.max_positions
    found = engine.generate(prompts((limit - 3, limit - 1)), Sampling(max_tokens=50))
    assert [(len(done.ids), done.finish) for done in found] == [(3, "length"), (1, "length")]
    for length in (limit, limit + 9, 0):
        with pytest.raises(GraftError, match=f"prompt 1 has {length} tokens.*{limit} positions.*1 to {limit - 1}"):
            engine.generate([[5], *prompts((length,))], Sampling())


def test_what_an_engine_cannot_do_is_said(tiny_decoder: Decoder) -> None:
    engine = Engine(tiny_decoder, eos=())
    assert engine.generate([], Sampling()) == []
    with pytest.raises(ConfigError, match=r"stop=\('x',\) needs a tokenizer"):
        engine.generate([[5]], Sampling(stop=("x",)))
    with pytest.raises(ConfigError, match="batch=0"):
        engine.generate([[5]], Sampling(), batch=0)


def step(model: Decoder, decoder: Decoder) -> Tensor:
    """Logits of a second step by `model`, after a first by `decoder`."""
    cache = decoder.new_cache(rows=2, capacity=8)
    with torch.inference_mode():
        decoder(torch.tensor([[4, 9, 7, 5, 6]]), documents=(2, 3), cache=cache)
        return model(torch.tensor([[8], [11]]), cache=cache)


def difference(decoder: Decoder) -> float:
    found, expected = step(decode_plan(decoder), decoder), step(decoder, decoder)
    return float((found - expected).norm() / expected.norm())


def test_a_plan_is_close_and_its_decoder_untouched(tiny_decoder: Decoder) -> None:
    tiny_decoder.train()
    before = {path: (id(module), module.training) for path, module in tiny_decoder.named_modules()}
    parameters = {path: (id(p), p.clone()) for path, p in tiny_decoder.named_parameters()}
    config, logits = tiny_decoder.config, step(tiny_decoder, tiny_decoder)
    assert 1e-7 < difference(tiny_decoder) < packed.TOLERANCE
    assert {path: (id(module), module.training) for path, module in tiny_decoder.named_modules()} == before
    assert [(path, id(p)) for path, p in tiny_decoder.named_parameters()] == [
        (path, number) for path, (number, _) in parameters.items()
    ]
    assert all(torch.equal(p, parameters[path][1]) for path, p in tiny_decoder.named_parameters())
    assert tiny_decoder.config is config
    assert torch.equal(step(tiny_decoder, tiny_decoder), logits)
    assert not any(isinstance(module, Packed) for module in tiny_decoder.modules())


def spoil(decoder: Decoder, factor: float, value: float | None = None) -> None:
    down = next(linear for path, linear in decoder.linears().items() if path.endswith("down_proj"))
    with torch.no_grad():
        down.weight.mul_(factor)
        if value is not None:
            down.weight[0, 0] = value


@pytest.mark.parametrize(
    ("factor", "value"),
    [(1e6, None), (1.0, 70_000.0), (1e-7, None), (0.0, None)],
    ids=["too large", "one too large", "too small", "nothing"],
)
def test_a_matrix_that_float16_cannot_hold_stays_as_it_is(
    factor: float, value: float | None, tiny_decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(tiny_decoder, factor, value)
    refused: list[Sequence[Linear]] = []
    original = packed._packed

    def watched(linears: Sequence[Linear], x: Tensor) -> packed.Product | None:
        product = original(linears, x)
        if product is None:
            refused.append(linears)
        return product

    monkeypatch.setattr(packed, "_packed", watched)
    assert difference(tiny_decoder) < packed.TOLERANCE
    assert [[tuple(linear.weight.shape) for linear in group] for group in refused] == [[(32, 48)]]


def test_weights_that_are_not_numbers_are_not_packed(tiny_decoder: Decoder) -> None:
    spoil(tiny_decoder, 1.0, torch.inf)
    assert torch.equal(step(decode_plan(tiny_decoder), tiny_decoder).isnan(), step(tiny_decoder, tiny_decoder).isnan())


@pytest.mark.parametrize("fault", ["inaccurate", "missing", "failing"])
def test_operators_that_fail_are_done_without(
    fault: str, tiny_decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Operators:
        def linear_prepack_fp16(self, weight: Tensor, bias: Tensor | None) -> object:
            raise RuntimeError("didn't find engine for operation quantized::linear_prepack_fp16 NoQEngine")

    if fault == "inaccurate":
        monkeypatch.setattr(packed, "TOLERANCE", 1e-9)
    else:
        monkeypatch.setattr(torch.ops, "quantized", object() if fault == "missing" else Operators())
    assert difference(tiny_decoder) < 1e-5
    found = Engine(tiny_decoder, eos=()).generate(prompts(), Sampling(max_tokens=4))
    assert [done.ids for done in found] == [greedily(tiny_decoder, prompt, 4) for prompt in prompts()]


def adapted(decoder: Decoder, **options: Any) -> Decoder:
    LoRA(rank=4, **options).apply(decoder, seed=1)
    for index, linear in enumerate(decoder.linears().values()):
        if linear.delta is not None:
            linear.delta.lora_B.data.normal_(0.0, 0.3, generator=torch.Generator().manual_seed(index))
    return decoder.requires_grad_(False)


@pytest.mark.parametrize("targets", [("all-linear",), ("q_proj", "down_proj")])
def test_a_mergeable_delta_is_part_of_the_plan(targets: tuple[str, ...], tiny_decoder: Decoder) -> None:
    plain = step(tiny_decoder, tiny_decoder)
    adapted(tiny_decoder, targets=targets)
    assert not torch.allclose(step(tiny_decoder, tiny_decoder), plain, atol=0.1)
    assert 1e-7 < difference(tiny_decoder) < packed.TOLERANCE


def test_dropout_is_for_training_only(tiny_decoder: Decoder) -> None:
    decoder = adapted(tiny_decoder, dropout=0.5)
    expected = [greedily(decoder.eval(), prompt, 8) for prompt in prompts()]
    decoder.train()
    for fast in (True, False):
        found = Engine(decoder, eos=(), fast=fast).generate(prompts(), Sampling(max_tokens=8))
        assert [done.ids for done in found] == expected
    assert all(module.training for module in decoder.modules())


class Doubled(nn.Module):
    def forward(self, linear: Linear, x: Tensor) -> Tensor:
        return 2 * linear.plain(x)


def test_a_delta_that_cannot_be_merged_is_asked(tiny_decoder: Decoder) -> None:
    plain = step(tiny_decoder, tiny_decoder)
    for path, linear in tiny_decoder.linears().items():
        if path.endswith(("k_proj", "o_proj")):
            linear.delta = Doubled()
    assert not torch.allclose(step(tiny_decoder, tiny_decoder), plain, atol=0.1)
    assert difference(tiny_decoder) < packed.TOLERANCE


def test_weights_in_bfloat16_decode_too(tiny_config: TinyConfig) -> None:
    decoder = Decoder(ARCHITECTURES.get("llama"), tiny_config(init_std=0.2))
    decoder.initialise(seed=0)
    decoder.to(torch.bfloat16).requires_grad_(False)
    decoder.compute_dtype = torch.bfloat16
    assert torch.equal(step(decode_plan(decoder), decoder), step(decoder, decoder))
    assert len(Engine(decoder, eos=()).generate(prompts(), Sampling(max_tokens=4))[2].ids) == 4
