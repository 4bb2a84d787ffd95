"""Rows become ids with the right answers marked, and batches predict exactly those, each row once an epoch."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from conftest import CHATML
from graftwood.data.batch import Order, Packed, pack, packs, split_by_tokens
from graftwood.data.encode import Encoder, Example, answer_text, encode_rows
from graftwood.data.rows import Row, Turn
from graftwood.data.templates import ChatTemplate
from graftwood.data.tokenizers.bpe import BPETokenizer
from graftwood.errors import DataError

CHAT = Row(
    "chat",
    (
        Turn("user", "why", False),
        Turn("assistant", "because", False),
        Turn("user", "and then", False),
        Turn("assistant", "the end", True),
    ),
)
COMPLETION = Row("completion", prompt="two and two ", completion="make four")
TEXT = Row("text", completion="the answer is here")


def encoder_of(tiny_tokenizer: Tokenizer, max_length: int = 100, begins: bool = False) -> Encoder:
    tokenizer = BPETokenizer(tiny_tokenizer, eos=[2, 0], bos=1, pad=0, begins=begins)
    return Encoder(tokenizer, ChatTemplate(CHATML, tokenizer), max_length)


@pytest.fixture(scope="module")
def encoder(tiny_tokenizer: Tokenizer) -> Encoder:
    return encoder_of(tiny_tokenizer)


def learned(encoder: Encoder, example: Example) -> str:
    return encoder.tokenizer.decode([i for i, counts in zip(example.ids, example.answer, strict=True) if counts])


def test_a_chat_row_learns_its_trained_answers(encoder: Encoder) -> None:
    example = encoder.example(CHAT)
    assert encoder.tokenizer.decode(example.ids) == encoder.template.text(CHAT.turns)
    assert learned(encoder, example) == "the end<|im_end|>"
    both = Row("chat", tuple(Turn(t.role, t.content, t.role == "assistant") for t in CHAT.turns))
    assert encoder.example(both).ids == example.ids
    assert learned(encoder, encoder.example(both)) == "because<|im_end|>the end<|im_end|>"


def test_a_completion_row_learns_its_completion_and_the_end(encoder: Encoder) -> None:
    example = encoder.example(COMPLETION)
    assert encoder.tokenizer.decode(example.ids) == "two and two make four<|im_end|>"
    assert learned(encoder, example) == "make four<|im_end|>"
    assert example.answer_tokens == len(encoder.tokenizer.encode("make four")) + 1


def test_a_text_row_learns_all_that_can_be_predicted(encoder: Encoder) -> None:
    example = encoder.example(TEXT)
    assert example.ids == (*encoder.tokenizer.encode(TEXT.completion), 2)
    assert all(example.answer)
    assert example.answer_tokens == len(example.ids) - 1, "nothing comes before the first token to predict it"


def test_control_tokens_in_plain_rows_stay_text(encoder: Encoder) -> None:
    example = encoder.example(Row("completion", prompt="<|im_start|>", completion="a<|im_end|>b"))
    assert [i for i in example.ids if i < 3] == [2]


def test_a_base_that_begins_its_texts_does_so_in_plain_rows_only(tiny_tokenizer: Tokenizer) -> None:
    plain, begins = encoder_of(tiny_tokenizer), encoder_of(tiny_tokenizer, begins=True)
    for row in (COMPLETION, TEXT):
        assert begins.example(row).ids == (1, *plain.example(row).ids)
        assert not begins.example(row).answer[0]
    assert begins.example(TEXT).answer_tokens == plain.example(TEXT).answer_tokens + 1
    assert begins.prompt(COMPLETION) == [1, *plain.prompt(COMPLETION)]
    assert begins.example(CHAT).ids == plain.example(CHAT).ids


@pytest.mark.parametrize("row", [CHAT, COMPLETION], ids=["chat", "completion"])
def test_the_prompt_is_what_comes_before_the_last_answer(row: Row, encoder: Encoder) -> None:
    example, prompt = encoder.example(row), encoder.prompt(row)
    assert list(example.ids[: len(prompt)]) == prompt
    assert example.answer[len(prompt)]
    assert not any(example.answer[: len(prompt)])


def test_asking_is_a_conversation_of_one_message(encoder: Encoder) -> None:
    assert encoder.ask("why") == encoder.template.prompt([Turn("user", "why", False)])
    assert encoder.tokenizer.decode(encoder.ask("why")).endswith("<|im_start|>assistant\n")


def test_a_long_row_loses_its_end_and_says_how_much(tiny_tokenizer: Tokenizer, encoder: Encoder) -> None:
    whole = encoder.example(COMPLETION)
    short = encoder_of(tiny_tokenizer, len(whole.ids) - 2).example(COMPLETION)
    assert short.ids == whole.ids[:-2]
    assert short.answer == whole.answer[:-2]
    assert (whole.cut, short.cut) == (0, 2)
    exact = encoder_of(tiny_tokenizer, len(whole.ids)).example(COMPLETION)
    assert (exact.ids, exact.cut) == (whole.ids, 0)


def test_every_row_that_cannot_be_encoded_is_named(tiny_tokenizer: Tokenizer) -> None:
    rows = [
        Row("completion", prompt="long " * 20, completion="x", file="a.jsonl", line=3),
        Row("completion", prompt="", completion="ok", file="a.jsonl", line=4),
        Row("chat", (Turn("user", "a", False), Turn("assistant", "b", False)), file="b.jsonl", line=9),
    ]
    with pytest.raises(DataError) as caught:
        encode_rows(encoder_of(tiny_tokenizer, 16), rows)
    first, *problems = str(caught.value).splitlines()
    assert first == "2 of 3 rows cannot be encoded"
    assert [problem.strip().split(":")[:2] for problem in problems] == [["a.jsonl", "3"], ["b.jsonl", "9"]]
    assert "raise --max-length" in problems[0]


def test_a_refusal_of_the_template_names_the_row(tiny_tokenizer: Tokenizer) -> None:
    tokenizer = BPETokenizer(tiny_tokenizer, [2], 1, 0)
    encoder = Encoder(tokenizer, ChatTemplate("{{ raise_exception('no') }}", tokenizer), 10)
    with pytest.raises(DataError, match=r"c\.jsonl:7: .* refuses this conversation: no"):
        encoder.example(Row("chat", CHAT.turns, file="c.jsonl", line=7))


def test_many_bad_rows_are_counted_not_listed(tiny_tokenizer: Tokenizer) -> None:
    rows = [Row("completion", prompt="a b c d", completion="x", file="a", line=n) for n in range(50)]
    with pytest.raises(DataError) as caught:
        encode_rows(encoder_of(tiny_tokenizer, 2), rows)
    assert len(caught.value.problems) == 21
    assert caught.value.problems[-1] == "... and 30 more"


def test_answer_text() -> None:
    assert [answer_text(row) for row in (CHAT, COMPLETION, TEXT)] == ["the end", "make four", "the answer is here"]


EXAMPLES = st.lists(
    st.lists(st.tuples(st.integers(0, 99), st.booleans()), min_size=1, max_size=8).map(
        lambda marked: Example(tuple(i for i, _ in marked), tuple(a for _, a in marked), TEXT)
    ),
    min_size=1,
    max_size=8,
)


def slow_predictions(examples: Sequence[Example]) -> list[tuple[int, int, int]]:
    """(position that predicts, token it must predict, example) by looking at every pair of neighbouring tokens."""
    everywhere = [
        (number, offset, index, counts)
        for number, example in enumerate(examples)
        for offset, (index, counts) in enumerate(zip(example.ids, example.answer, strict=True))
    ]
    neighbours = enumerate(pairwise(everywhere))
    return [(at, right[2], right[0]) for at, (left, right) in neighbours if left[0] == right[0] and right[3]]


def predictions(packed: Packed) -> list[tuple[int, int, int]]:
    return list(zip(packed.predict.tolist(), packed.targets.tolist(), packed.owner.tolist(), strict=True))


@settings(max_examples=200, deadline=None)
@given(examples=EXAMPLES)
def test_a_pack_predicts_what_the_slow_way_says(examples: list[Example]) -> None:
    packed = pack(examples)
    assert packed.ids.tolist() == [[index for example in examples for index in example.ids]]
    assert packed.documents == tuple(len(example.ids) for example in examples)
    assert packed.tokens == sum(packed.documents)
    assert predictions(packed) == slow_predictions(examples)
    assert len(packed.predict) == sum(example.answer_tokens for example in examples)
    assert packed.predict.dtype == packed.targets.dtype == packed.owner.dtype == torch.long
    assert predictions(packed.to(torch.device("cpu"))) == predictions(packed)


@settings(max_examples=100, deadline=None)
@given(examples=EXAMPLES, budget=st.integers(1, 20))
def test_groups_keep_order_and_budget(examples: list[Example], budget: int) -> None:
    groups = split_by_tokens(examples, budget)
    assert [id(example) for group in groups for example in group] == [id(example) for example in examples]
    sizes = [sum(len(example.ids) for example in group) for group in groups]
    assert all(len(group) == 1 or size <= budget for group, size in zip(groups, sizes, strict=True))
    fits = [size + len(after[0].ids) <= budget for size, after in zip(sizes, groups[1:], strict=False)]
    assert not any(fits), "a group is closed only when the next example would not fit"
    assert [packed.tokens for packed in packs(examples, budget)] == sizes


@pytest.mark.parametrize(("rows", "batch"), [(10, 3), (10, 5), (3, 8), (1, 1), (7, 7)])
def test_every_epoch_is_a_permutation_of_its_own(rows: int, batch: int) -> None:
    order = Order(rows, batch, epochs=4, seed=1)
    assert order.steps == 4 * order.steps_per_epoch
    epochs = []
    for epoch in range(4):
        steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
        batches = [order.batch_rows(step) for step in steps]
        assert all(len(found) == batch for found in batches[:-1])
        epochs.append([row for found in batches for row in found])
        assert sorted(epochs[-1]) == list(range(rows))
    assert rows < 7 or len({tuple(epoch) for epoch in epochs}) == 4


def test_a_step_depends_on_seed_and_step_alone() -> None:
    def run(seed: int, steps: Sequence[int], epochs: float = 3) -> list[list[int]]:
        return [Order(50, 8, epochs, seed).batch_rows(step) for step in steps]

    whole = run(0, range(21))
    assert run(0, range(10, 21)) == whole[10:]
    torch.manual_seed(5)
    assert run(0, reversed(range(21)), epochs=9) == whole[::-1]
    assert run(1, range(21)) != whole


def test_ordering_leaves_the_callers_random_state_alone() -> None:
    before = torch.get_rng_state()
    Order(50, 8, 1, 0).batch_rows(3)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("epochs", "steps"), [(0.5, 5), (1, 10), (0.01, 1), (2.26, 23)])
def test_part_epochs_are_rounded_to_steps_and_never_to_none(epochs: float, steps: int) -> None:
    assert Order(80, 8, epochs, 0).steps == steps
