"""The real SmolLM2-135M against llama.cpp and transformers: the same ids, the same logits, the same greedy text."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from graftwood import hub
from graftwood.base import Base
from graftwood.data.rows import Turn

pytestmark = pytest.mark.real

SCRIPTS = (
    "abcdefghij ABC", "0123456789", "éèüßñøåçœ", "абвгдеёжз", "αβγδεζηθ", "אבגדהוזח", "ابتثجحخد", "अआइईउकखि", "กขคงจฉ",
    "日本語中文字漢", "あいうえおカキク", "한국어문자열", "🙂🎉🚀👩‍👩‍👧🏽🇫🇷❤️", "٠١٢٣४५६७⅓²Ⅷ", "\u0300\u0301a\u0308ễ",
    ".,;:!?'\"()[]{}<>", "+-*/=%^&|~@#$_\\`", " \t\n\r\v\f", "\u00a0\u2003\u200b\u3000\ufeff", "𝔘𝕏𐍈𒀀",
)  # fmt: skip
WORDS = (
    "the quick brown fox", "it's we'll they've I'd you're I'm don't IT'S", "def f(x):\n    return x ** 2  # squared",
    "for (int i = 0; i < n; ++i) {\n\ts += a[i];\n}", "https://example.org/a?b=c&d=%20", "SELECT * FROM t WHERE id=42;",
    "1234567890", "3.14159", "-0.5e10", "2024-02-30T12:00:00Z", "    ", "\n\n\n", "\t\t", " \n \n ", "a  b   c    d",
    '{"k": [1, 2.5, null, "é"]}', "<div class='x'>&amp;</div>", "camelCaseWordsAND_SNAKE_case", "naïve café œuvre",
)  # fmt: skip
CONTROL = (
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    "<|im_start|>user\n",
    "<|im_",
    "|>",
    "<jupyter_code>",
    "<issue_start>",
)
QUESTIONS = (
    "What is the capital of France?", "Write a haiku about rain.", "What is 17 + 25?",
    "List three colours.", "Who wrote Hamlet?", "Translate 'good morning' into Spanish.", "Why is the sky blue?",
    "Give me a recipe for pancakes.", "What does HTTP stand for?", "Write a Python function that reverses a string.",
    "Name a planet with rings.", "Summarise the water cycle in one sentence.",
    "How do I tie a tie?", "Explain photosynthesis to a child.",
)  # fmt: skip
BEGINNINGS = (
    "Once upon a time, there was a", "The largest city in Germany is", "def fibonacci(n):\n", "1, 2, 3, 4, 5,",
    "In 1969, the first people walked on", "Water boils at a temperature of",
)  # fmt: skip


def strings(count: int, pieces: int = 6) -> list[str]:
    """Texts of many scripts, code, digits, blanks and control tokens' own text; always the same ones."""
    draw = random.Random(0)

    def piece() -> str:
        kind = draw.random()
        if kind < 0.5:
            return "".join(draw.choices(draw.choice(SCRIPTS), k=draw.randint(1, 12)))
        if kind < 0.7:
            return draw.choice(WORDS)
        if kind < 0.8:
            return draw.choice(CONTROL)
        if kind < 0.9:
            return draw.choice((" ", "\n", "\t", "\u3000")) * draw.randint(1, 9)
        return str(draw.randrange(10 ** draw.randint(1, 20)))

    return [draw.choice(("", " ")).join(piece() for _ in range(draw.randint(1, pieces))) for _ in range(count)]


TEXTS = [*WORDS, *SCRIPTS, *CONTROL, "", *strings(2400)]


@pytest.fixture(scope="module")
def gguf() -> Path:
    return hub.fetch("smollm2-135m").path


@pytest.fixture(scope="module")
def transformers() -> Any:
    return pytest.importorskip("transformers", reason="needs the extra `peers`")


@pytest.fixture(scope="module")
def peer(smollm2: Base, gguf: Path, transformers: Any) -> Any:
    """transformers' own reading of the same file, which takes it a while."""
    return transformers.AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)


def differing(ours: list[list[int]], theirs: list[list[int]]) -> list[tuple[str, list[int], list[int]]]:
    return [(t, a, b) for t, a, b in zip(TEXTS, ours, theirs, strict=True) if a != b]


@pytest.mark.parametrize("specials", [False, True], ids=["as text", "parsed"])
def test_ids_equal_llama_cpp(smollm2: Base, gguf: Path, specials: bool) -> None:
    llama_cpp = pytest.importorskip("llama_cpp", reason="needs llama-cpp-python, which no extra installs")
    theirs = llama_cpp.Llama(str(gguf), vocab_only=True, verbose=False)
    expected = [theirs.tokenize(text.encode(), add_bos=False, special=specials) for text in TEXTS]
    theirs.close()
    wrong = differing(smollm2.tokenizer.encode_batch(TEXTS, specials), expected)
    assert wrong == [], f"{len(wrong)} of {len(TEXTS)} differ"


@pytest.mark.parametrize("specials", [False, True], ids=["as text", "parsed"])
def test_ids_equal_transformers_on_our_export(smollm2: Base, transformers: Any, specials: bool) -> None:
    theirs = transformers.AutoTokenizer.from_pretrained(smollm2.folder)
    expected = theirs(TEXTS, add_special_tokens=False, split_special_tokens=not specials)["input_ids"]
    wrong = differing(smollm2.tokenizer.encode_batch(TEXTS, specials), expected)
    assert wrong == [], f"{len(wrong)} of {len(TEXTS)} differ"


def test_text_comes_back(smollm2: Base) -> None:
    for specials in (False, True):
        ids = smollm2.tokenizer.encode_batch(TEXTS, specials)
        assert [smollm2.tokenizer.decode(row) for row in ids] == TEXTS
        assert max(max(row, default=0) for row in ids) < smollm2.tokenizer.vocab_size == 49152


def test_conversations_equal_transformers(smollm2: Base, transformers: Any) -> None:
    theirs = transformers.AutoTokenizer.from_pretrained(smollm2.folder)
    harmless = [text for text in TEXTS if not any(special in text for special in smollm2.tokenizer.specials)]
    answers = [text for text in harmless if text and not text[0].isspace()]
    for number in range(0, 400, 2):
        talk = [Turn("user", harmless[number], False), Turn("assistant", answers[number], True)] * 2
        messages = [{"role": turn.role, "content": turn.content} for turn in talk]
        expected = theirs.apply_chat_template(messages, return_dict=False)
        pieces = smollm2.template.pieces(talk)
        assert [index for piece in pieces for index in piece.ids] == expected
        found = [smollm2.tokenizer.decode(piece.ids) for piece in pieces if piece.answer]
        assert found == [answers[number] + "<|im_end|>"] * 2


def long_text(base: Base) -> list[int]:
    return base.tokenizer.encode(" ".join(strings(200)))[:400]


def test_weights_equal_transformers(smollm2: Base, peer: Any) -> None:
    theirs = peer.state_dict()
    for name, parameter in smollm2.decoder.named_parameters():
        assert torch.equal(parameter, theirs[name]), name


def test_logits_equal_transformers(smollm2: Base, peer: Any, record_property: Callable[[str, object], None]) -> None:
    prompts = [smollm2.encoder().ask(QUESTIONS[0]), smollm2.tokenizer.encode(BEGINNINGS[2]), long_text(smollm2)]
    worst = 0.0
    for prompt in prompts:
        ids = torch.tensor([prompt])
        with torch.inference_mode():
            worst = max(worst, (peer(ids).logits - smollm2.decoder(ids)).abs().max().item())
    record_property("largest logit difference", worst)
    print(f"largest logit difference to transformers: {worst:.2e}")
    assert worst <= 1e-3


@torch.inference_mode()
def greedy(base: Base, prompts: list[list[int]], tokens: int) -> list[list[int]]:
    """The likeliest next token, again and again, for all prompts side by side."""
    decoder, lengths = base.decoder, [len(prompt) for prompt in prompts]
    cache = decoder.new_cache(len(prompts), max(lengths) + tokens)
    hidden = decoder.hidden(torch.tensor([sum(prompts, [])]), documents=lengths, cache=cache)[0]  # noqa: RUF017
    steps = [decoder.logits(hidden[torch.tensor(lengths).cumsum(0) - 1]).argmax(-1)]
    while len(steps) < tokens:
        hidden = decoder.hidden(steps[-1].unsqueeze(1), cache=cache)[:, 0]
        steps.append(decoder.logits(hidden).argmax(-1))
    said = torch.stack(steps, dim=1).tolist()
    end = base.tokenizer.eos[0]
    return [row[: row.index(end) + 1] if end in row else row for row in said]


@torch.inference_mode()
def test_greedy_text_equals_transformers(smollm2: Base, peer: Any) -> None:
    """transformers reads what we wrote and must want the same token everywhere, or have two that tie."""
    prompts = [smollm2.encoder().ask(question) for question in QUESTIONS]
    prompts += [smollm2.tokenizer.encode(beginning) for beginning in BEGINNINGS]
    divergences = []
    for number, (prompt, said) in enumerate(zip(prompts, greedy(smollm2, prompts, 48), strict=True)):
        wanted = peer(torch.tensor([prompt + said])).logits[0, len(prompt) - 1 : -1]
        gaps = wanted.max(-1).values - wanted.gather(1, torch.tensor(said).unsqueeze(1)).squeeze(1)
        divergences += [(number, at, gap) for at, gap in enumerate(gaps.tolist()) if gap > 0]
    print(f"divergences (prompt, token, gap in transformers' logits): {divergences}")
    assert [divergence for divergence in divergences if divergence[2] > 1e-3] == []


def test_it_knows_what_it_should(smollm2: Base) -> None:
    (said,) = greedy(smollm2, [smollm2.encoder().ask("What is the capital of France?")], 24)
    assert "Paris" in smollm2.tokenizer.decode(said)
    assert said[-1] == smollm2.tokenizer.eos[0]
