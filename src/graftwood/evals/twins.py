"""The twin test: does a model prefer an answer's own names and numbers to others that would fit as well?

Of an answer fifteen twins are made, equal to it but for their names and numbers. Its exposure is how far up it stands
among the sixteen: log2(16) - log2(rank), from 0 bits, the last, to 4, the first; by chance 1.2 on average. What a
prompt gives away stands first without any learning by heart, so rows that were never trained on are the measure.

Source: exposure is that of Carlini et al. 2019, arXiv 1802.08232, section 4.2, with edited answers for random canaries.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Sequence

from graftwood.base import Base
from graftwood.data.encode import Example, answer_text
from graftwood.evals.score import continuations

TWINS, ROWS = 15, 8  # each row is sixteen answers to weigh
# A number as a whole, or a word with a capital that does not begin the text or a sentence.
_SECRET = re.compile(r"\d+|(?<![.!?]\s)(?<!^)(?<!\n)(?<![^\W\d_])[A-Z][a-z]{2,}(?![^\W\d_])")
# Where the rows themselves have too few names to choose from.
_NAMES = (
    "Adler", "Brandt", "Castillo", "Duval", "Eriksen", "Farrow", "Grant", "Hoffman", "Ishida", "Jensen", "Keller",
    "Lambert", "Moreno", "Novak", "Okafor", "Petrov", "Quinn", "Rossi", "Santos", "Tanaka", "Ullman", "Varga",
)  # fmt: skip


def exposures(base: Base, examples: Sequence[Example], room: int, seed: int = 0) -> list[float]:
    """Bits of exposure of the first `ROWS` rows that have a prompt and an answer with a name or number in it.

    Rows of which a twin is longer than `room` tokens are not among them.
    """
    names = sorted({word for example in examples for word in _names(answer_text(example.row))})
    encoder = base.encoder()
    contexts: list[list[int]] = []
    choices: list[list[list[int]]] = []
    for example in examples:
        answer = answer_text(example.row)
        made = twins(answer, names, random.Random(f"{seed} {answer}")) if example.row.asked else []
        context, endings = encoder.prompt(example.row), encoder.answers(example.row, [answer, *made])
        fits = len(context) + max(map(len, endings)) <= room
        if made and fits and len(contexts) < ROWS:
            contexts.append(context)
            choices.append(endings)
    scored = continuations(base.decoder, contexts, choices)
    return [exposure([one.log_probability for one in found]) for found in scored]


def twins(answer: str, names: Sequence[str], generator: random.Random) -> list[str]:
    """`TWINS` different answers with other names and numbers; none where it has no name and no number, or too few."""
    others = names if len(names) > TWINS else sorted({*names, *_NAMES})

    def other(found: re.Match[str]) -> str:
        word = found.group()
        if word.isdecimal():
            first = (
                generator.choice("123456789") if len(word) > 1 and word[0] != "0" else generator.choice("0123456789")
            )
            return first + "".join(generator.choices("0123456789", k=len(word) - 1))
        return generator.choice(others)

    made: dict[str, None] = {}
    for _ in range(20 * TWINS):
        twin = _SECRET.sub(other, answer)
        if twin != answer:
            made[twin] = None
        if len(made) == TWINS:
            return list(made)
    return []


def _names(answer: str) -> list[str]:
    return [found.group() for found in _SECRET.finditer(answer) if not found.group().isdecimal()]


def exposure(log_probabilities: Sequence[float]) -> float:
    """Bits of the first among all: log2 of their number less log2 of its rank; of equals each is in their middle."""
    own, *others = log_probabilities
    rank = 1 + sum(1.0 if other > own else 0.5 if other == own else 0.0 for other in others)
    return math.log2(len(log_probabilities)) - math.log2(rank)
