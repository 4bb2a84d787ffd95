"""T2: arithmetic in words. Numbers of the test rows are no operands of a training row, and their sentences are others.

The ranges of both parts take turns, so that the test asks for the skill and not for larger numbers.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence

from bench.keep.rows import Asked, Splits

OPERANDS = {
    "train": (*range(3, 8), *range(12, 17), *range(21, 26), *range(31, 36)),
    "test": (*range(8, 12), *range(17, 21), *range(26, 31)),
}
_SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
_ONES = _SMALL.split()
_TENS = ("twenty", "thirty")
# {a} is never the smaller one.
_SENTENCES: Mapping[str, Mapping[str, Sequence[str]]] = {
    "train": {
        "+": (
            "What is {a} plus {b}?",
            "Nora has {a} pears and buys {b} more. How many pears does she have?",
            "A bus carries {a} people and {b} get on. How many people are on the bus?",
            "There are {a} red cups and {b} blue cups. How many cups are there?",
            "Leo walked {a} miles on Monday and {b} on Tuesday. How many miles is that?",
        ),
        "-": (
            "What is {a} minus {b}?",
            "Ivan had {a} coins and lost {b}. How many coins are left?",
            "Of {a} eggs {b} are broken. How many are whole?",
            "A rope of {a} feet is cut by {b} feet. How long is it now?",
            "There were {a} birds on a roof and {b} flew off. How many stayed?",
        ),
    },
    "test": {
        "+": (
            "Take {a} and {b} together: how much is it?",
            "A shelf holds {a} novels. Mia puts {b} others beside them. How many novels stand there?",
            "Omar scored {a} points, then {b}. What is his total?",
            "A farm keeps {a} sheep and {b} geese. How many animals is that?",
            "Add {b} to {a}. What do you get?",
            "Zoe read {a} pages before lunch and {b} after it. How many pages did she read?",
        ),
        "-": (
            "From {a} take away {b}. What remains?",
            "Tess baked {a} rolls and her guests ate {b}. How many rolls remain?",
            "A ticket was {a} dollars and is {b} dollars cheaper today. What does it cost?",
            "By how much is {a} larger than {b}?",
            "A class has {a} pupils, {b} of them ill. How many came?",
            "Max owes {a} dollars and pays back {b}. How many dollars does he still owe?",
        ),
    },
}
_COUNTS = {"train": 480, "valid": 64, "test": 150}


def splits(seed: int) -> Splits:
    """Rows made from a seed, sums and differences in turn."""
    source = random.Random(f"sums {seed}")
    taught = list(_rows(source, "train", _COUNTS["train"] + _COUNTS["valid"]))
    cut = _COUNTS["train"]
    return Splits(tuple(taught[:cut]), tuple(taught[cut:]), tuple(_rows(source, "test", _COUNTS["test"])))


def sentences(part: str) -> set[str]:
    """What the rows of a part are made from."""
    return {sentence for group in _SENTENCES[part].values() for sentence in group}


def in_words(number: int) -> str:
    """A number below forty."""
    if number < len(_ONES):
        return _ONES[number]
    tens, ones = divmod(number, 10)
    return _TENS[tens - 2] + (f"-{_ONES[ones]}" if ones else "")


def _rows(source: random.Random, part: str, count: int) -> Iterator[Asked]:
    seen: set[str] = set()
    while len(seen) < count:
        operator = "+-"[len(seen) % 2]
        sentence = source.choice(_SENTENCES[part][operator])
        small, large = sorted(source.sample(OPERANDS[part], 2))
        question = sentence.format(a=in_words(large), b=in_words(small))
        if question in seen:
            continue
        seen.add(question)
        answer = large + small if operator == "+" else large - small
        yield Asked(f"{part}-{len(seen):03d}", sentence, f"Question: {question}\nAnswer:", f" {answer}")
