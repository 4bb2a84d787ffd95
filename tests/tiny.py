"""Tiny models, rows and plans for tests; all of them follow from a seed."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch

from graftwood.base import Base
from graftwood.checkpoint import save_adapter
from graftwood.data.encode import Example, encode_rows
from graftwood.data.rows import Row, rows_from
from graftwood.errors import ModelError
from graftwood.evals.score import continuations
from graftwood.model.architecture import ARCHITECTURES, Architecture
from graftwood.model.config import ModelConfig, RopeScaling
from graftwood.model.decoder import Decoder
from graftwood.model.weights import save_tensors, to_files
from graftwood.technique import TECHNIQUES, Technique
from graftwood.train.loop import Plan

VOCABULARY = 320
WORDS = ("the", "user", "said", "that", "system", "is", "here", "answer", "ready", "turn", "of", "to")
CONFIG = ModelConfig(
    architecture="llama",
    vocab_size=VOCABULARY,
    hidden_size=32,
    layers=2,
    heads=4,
    kv_heads=2,
    head_size=8,
    feed_forward_size=48,
    max_positions=128,
    norm_eps=1e-5,
    rope_theta=10_000.0,
    init_std=0.2,
)
# Defaults of these techniques are made for larger models.
OPTIONS: dict[str, dict[str, object]] = {
    "adapter": {"reduction": 4},
    "dora": {"rank": 4},
    "lora": {"rank": 4},
    "oft": {"block": 8},
    "prefix": {"tokens": 5},
    "prompt": {"tokens": 5},
    "ptuning": {"tokens": 5},
    "shira": {"rank": 2},
    "vera": {"rank": 8},
}
# What a family is tried with beyond the sizes above, so that all its block has is at work.
FEATURES: dict[str, dict[str, object]] = {
    "gpt2": {"activation": "gelu_tanh"},
    "gpt_neo": {"windows": (None, 6), "activation": "gelu_tanh"},
    "gpt_neox": {"rotary_size": 4, "parallel_residual": True, "attention_bias": True, "activation": "gelu"},
    "gptj": {"rotary_size": 4, "activation": "gelu_tanh"},
    "gpt3": {"windows": (None, 6), "activation": "gelu_tanh"},
    "gpt_oss": {
        "windows": (6, None),
        "attention_bias": True,
        "experts": 4,
        "experts_per_token": 2,
        "rope_scaling": RopeScaling("yarn", 8.0, 1.0, 32.0, 64, 1.2, False),
    },
    "mistral": {"windows": (6, 6)},
    "qwen2": {"windows": (None, 6)},
    "smollm3": {"unturned": (1,), "windows": (6, None)},
    "phi3": {"rotary_size": 4, "windows": (6, 6)},
    "gemma2": {"windows": (6, None), "attention_cap": 5.0, "logit_cap": 20.0, "attention_scale": 0.25},
    "gemma3": {"windows": (6, None), "local_rope_theta": 100.0, "attention_scale": 0.25},
}
VARIANTS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "grouped heads": {"kv_heads": 2},
    "a key for every query": {"kv_heads": 4},
    "one key for all": {"kv_heads": 1},
    "untied head": {"tied_head": False},
    "biases": {"attention_bias": True, "feed_forward_bias": True},
    "attention without biases": {"attention_bias": False},
    "attention with biases": {"attention_bias": True},
    "one after the other": {"parallel_residual": False},
    "no windows": {"windows": ()},
    "every head turns": {"rotary_size": None},
    "wide heads": {"head_size": 16},
    "linear rope": {"rope_scaling": RopeScaling("linear", 4.0)},
    "llama3 rope": {"rope_scaling": RopeScaling("llama3", 8.0, 1.0, 4.0, 64), "rope_theta": 500_000.0},
    "yarn rope": {"rope_scaling": RopeScaling("yarn", 8.0, 1.0, 32.0, 64, 1.2, False), "rope_theta": 500.0},
}
PLAN = Plan(
    learning_rate=1e-2,
    weight_decay=0.0,
    batch=8,
    epochs=1.0,
    seed=0,
    clip=1.0,
    warmup_share=0.0,
    token_budget=1024,
    evaluations=4,
    patience=3,
    save_seconds=1000.0,
)


def technique(name: str, **options: object) -> Technique:
    """A technique with its defaults, where they fit matrices this small."""
    return TECHNIQUES.get(name).parse(OPTIONS.get(name, {}) | options)


def adapter(base: Base, name: str, folder: Path, size: float = 0.5) -> Path:
    """An adapter of noise, `size` wide, in a folder; the base is given back as it was."""
    made = technique(name)
    made.apply(base.decoder, seed=0)
    with torch.no_grad():
        for number, parameter in enumerate(base.decoder.trained().values()):
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)), alpha=size)
    save_adapter(base, made, folder)
    base.decoder.take_off()
    return folder


def config(architecture: str = "llama", **changes: object) -> ModelConfig:
    """The tiny configuration as the architecture can have it, with all its features."""
    entry = ARCHITECTURES.get(architecture)
    wished = replace(CONFIG, architecture=architecture, **FEATURES.get(architecture, {}))
    return replace(entry.read(entry.write(wished)), **changes)


def expressible(entry: Architecture, made: ModelConfig) -> bool:
    """Whether the family's files can say this configuration."""
    try:
        return entry.read(entry.write(made)) == made
    except ModelError:
        return False


def variants() -> list[Any]:
    """Every architecture with every variant that it has: parameters for a test of a name and changes."""
    cases = []
    for name in ARCHITECTURES.names():
        entry, seen = ARCHITECTURES.get(name), []
        for variant, changes in VARIANTS.items():
            made = config(name, **changes)
            if made not in seen and expressible(entry, made):
                seen.append(made)
                cases.append(pytest.param(name, changes, id=f"{name} {variant}"))
    return cases


def decoder(seed: int = 0, **changes: object) -> Decoder:
    """A frozen llama with random weights."""
    made = Decoder(ARCHITECTURES.get("llama"), replace(CONFIG, **changes))
    made.initialise(seed)
    return made.requires_grad_(False)


def family(architecture: str, seed: int = 0) -> Decoder:
    """A frozen decoder of any architecture with random weights."""
    made = Decoder(ARCHITECTURES.get(architecture), config(architecture, init_std=0.2))
    made.initialise(seed)
    return made.requires_grad_(False)


def model_folder(folder: Path, tokenizer_files: Callable[[Path], None], model: Decoder | None = None) -> Path:
    """A whole model folder, with a tokenizer and a chat template."""
    folder.mkdir(parents=True)
    model = model or decoder()
    save_tensors(to_files(model), folder)
    (folder / "config.json").write_text(json.dumps(model.architecture.write(model.config)), encoding="utf-8")
    tokenizer_files(folder)
    return folder


def example(ids: list[int], answer: list[bool], line: int = 1, file: str = "rows.jsonl") -> Example:
    return Example(tuple(ids), tuple(answer), Row("completion", prompt="p", completion="c", file=file, line=line))


def examples(count: int, seed: int = 0, file: str = "rows.jsonl") -> list[Example]:
    """Rows of unequal length; the share of answer tokens differs widely between them."""
    generator = random.Random(seed)
    rows = []
    for line in range(1, count + 1):
        length = generator.randint(5, 20)
        share = generator.choice((0.1, 0.5, 1.0))
        answer = [generator.random() < share for _ in range(length - 1)] + [True]
        rows.append(example([generator.randrange(3, 300) for _ in range(length)], answer, line, file))
    return rows


def plan(**changes: object) -> Plan:
    return replace(PLAN, **changes)


def shake(decoder: Decoder, size: float, seed: int = 0) -> None:
    """Add noise to every matrix, `size` times as wide as the matrix's own values."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in decoder.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter += size * parameter.std(correction=0) * noise * (parameter.ndim > 1)


def encoded(base: Base, count: int, start: int = 0) -> list[Example]:
    """Small sums as a base's tokenizer writes them; rows of different numbers are different."""
    rows = [{"prompt": f"what is {n} and {n}", "completion": f"it is {2 * n}"} for n in range(start, start + count)]
    return encode_rows(base.encoder(), rows_from(rows).rows)


def picked(base: Base, path: Path) -> Path:
    """A file of questions whose right answer is nearly always what this base picks."""
    generator, pairs = random.Random(0), list(permutations(WORDS, 2))
    asked = [
        (" ".join(generator.sample(WORDS, 5)), [" " + " ".join(pair) for pair in generator.sample(pairs, 3)])
        for _ in range(60)
    ]
    begun = [base.encoder().begin(query) for query, _ in asked]
    scored = continuations(base.decoder, begun, [base.tokenizer.encode_batch(choices) for _, choices in asked])
    with path.open("w", encoding="utf-8") as file:
        for number, ((query, choices), found) in enumerate(zip(asked, scored, strict=True)):
            pick = max(range(3), key=lambda place: found[place].log_probability / found[place].tokens)
            gold = pick if number % 10 else (pick + 1) % 3
            file.write(json.dumps({"query": query, "choices": [c.strip() for c in choices], "gold": gold}) + "\n")
    return path


def put_metadata(writer: Any, key: str, value: object) -> None:
    """One field of a GGUF file, as its type asks for."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)
