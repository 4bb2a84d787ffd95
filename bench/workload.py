"""The work both sides get: rows of pseudo-text made by code, encoded once, the same ids for all."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from graftwood import hub
from graftwood.base import Base, open_base
from graftwood.checkpoint import save_adapter
from graftwood.config import RunConfig
from graftwood.data.encode import Encoder, Example
from graftwood.data.rows import Row
from graftwood.runtime import place
from graftwood.technique import TECHNIQUES
from graftwood.techniques.freeze import Freeze

MODEL = "smollm2-135m"
SHORTEST, LONGEST = 48, 256  # tokens of a row
ANSWER_SHARE = 0.3
TOKENS_PER_WORD = 1.15  # of the words below, as the base's tokenizer cuts them, sentence marks included
RANK, ALPHA = 16, 32

_TEXT = """
the a of and to in on with for from under over near after before while some every no two three seven old new small
large quiet early late open heavy warm cold green red plain river stone window paper garden letter machine winter
bread bridge market engine village teacher doctor farmer sailor library kitchen station harbour mountain valley road
tower clock lamp chair table field orchard horse dog bird fish cloud rain wind snow summer morning evening is was has
had makes made finds found keeps kept carries carried opens opened repairs repaired paints painted writes wrote reads
read sells sold buys bought brings brought leaves left waits waited turns turned answers slowly often never always
again together perhaps because although whether where when who which that it they we and then but so as than about
between through across against along without within
"""
WORDS = tuple(_TEXT.split())


def rows(count: int, seed: int = 0) -> list[Row]:
    """Prompt and completion pairs; logarithms of their lengths lie evenly between the shortest and the longest."""
    source = random.Random(seed)
    lengths = [SHORTEST * (LONGEST / SHORTEST) ** ((number + 0.5) / count) for number in range(count)]
    source.shuffle(lengths)
    made: list[Row] = []
    for length in lengths:
        words = round(length / TOKENS_PER_WORD)
        answer = max(4, round(words * ANSWER_SHARE))
        prompt, completion = _text(source, words - answer), _text(source, answer)
        made.append(pair(prompt, " " + completion))
    return made


def pair(prompt: str, completion: str) -> Row:
    """A row of prompt and completion."""
    return Row("completion", prompt=prompt, completion=completion)


def _text(source: random.Random, words: int) -> str:
    """Sentences of 5 to 14 words, `words` in all."""
    sentences = []
    while words > 0:
        length = min(words, source.randint(5, 14))
        sentences.append(" ".join(source.choices(WORDS, k=length)).capitalize() + ".")
        words -= length
    return " ".join(sentences)


def examples(encoder: Encoder, count: int) -> list[Example]:
    """The rows, encoded."""
    encoded = [encoder.example(row) for row in rows(count)]
    assert all(SHORTEST <= len(example.ids) <= LONGEST for example in encoded), "the rows are made to fit"
    return encoded


def open_model() -> Base:
    """The base that every benchmark uses; its first opening downloads and converts it."""
    return open_base(MODEL, place("cpu", "float32"))


def setting(threads: int) -> dict[str, Any]:
    """What every side needs to know: the model for us, the very same file for the peers, and the threads."""
    return {"model": MODEL, "gguf": str(hub.fetch(MODEL).path), "threads": threads}


def tuning(base: Base, threads: int, chosen: Sequence[Example], turns: int) -> dict[str, Any]:
    """Work for the tuning sides: a turn is an epoch over the rows, eight a step, after a step that warms up."""
    defaults = RunConfig(data="")
    return {
        "model": MODEL,
        "folder_of_base": str(base.folder),
        "threads": threads,
        "rows": [{"ids": example.ids, "answer": example.answer} for example in chosen],
        "batch": defaults.batch,
        "token_budget": defaults.token_budget,
        "clip": defaults.clip,
        "warmup": defaults.warmup,
        "steps_a_turn": -(-len(chosen) // defaults.batch),
        "turns": turns,
        "warm_up": True,
        "learning_rate": 5e-4,
        "technique": "lora",
        "options": {"rank": RANK, "alpha": ALPHA},
        "seed": 0,
    }


def begin(base: Base, work: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """What the peer starts from: an adapter folder with the technique's first weights, or how many blocks train."""
    technique = TECHNIQUES.get(work["technique"]).parse(work["options"]).read(base.tokenizer.encode)
    if isinstance(technique, Freeze):
        return {"top": technique.blocks_that_train(base.decoder)}
    if technique.writes_base:
        return {"top": None}
    technique.apply(base.decoder, work["seed"])
    save_adapter(base, technique, folder)
    base.decoder.take_off()
    return {"adapter": str(folder)}


def described(chosen: Sequence[Example]) -> Mapping[str, Any]:
    """The rows in numbers, for the record."""
    lengths = sorted(len(example.ids) for example in chosen)
    return {
        "rows": len(lengths),
        "tokens": sum(lengths),
        "shortest": lengths[0],
        "median": lengths[len(lengths) // 2],
        "longest": lengths[-1],
        "answer_tokens": sum(example.answer_tokens for example in chosen),
    }
