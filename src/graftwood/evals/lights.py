"""The three lights of MEMORY: over-fitting, recognition, extraction, each with the bands that colour it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import NormalDist
from typing import Literal

from graftwood.evals import memory_words, words
from graftwood.evals.card import Estimate, Memory

Level = Literal["clean", "mild", "moderate", "severe"]
LEVELS: tuple[Level, ...] = ("clean", "mild", "moderate", "severe")
COLOURS = {"clean": "#16a34a", "mild": "#ca8a04", "moderate": "#ea580c", "severe": "#dc2626", "unknown": "#94a3b8"}
# Edges of the four bands of each gauge, best to worst; a value on an edge still belongs to the better band.
RATIO = (1.0, 1.2, 1.5, 2.0, 3.0)
MEMBERSHIP = (0.5, 0.65, 0.8, 0.95, 1.0)
EXTRACTABLE = (0.0, 0.05, 0.2, 0.5, 1.0)
_ONE_SIDED = NormalDist().inv_cdf(0.95)


@dataclass(frozen=True)
class Light:
    """One light: its name, the number, what the number is, its level and where it stands on the gauge (0..1)."""

    name: str
    shown: str
    meaning: str
    level: str
    position: float | None


def level(value: float, edges: tuple[float, ...]) -> Level:
    """The band of `edges` that `value` falls in."""
    return LEVELS[sum(value > edge for edge in edges[1:-1])]


def recognised(auc: Estimate) -> Level | None:
    """The band of a membership AUC; the best one where so few rows give as much by chance; None where there is none.

    Of n rows, half of them trained on, chance alone stays below 0.5 + 1.64 sqrt((n + 1) / 3) / n in 19 of 20 cases.
    Source: Mann and Whitney 1947, the normal approximation of U.
    """
    if auc.value is None:
        return None
    by_chance = 0.5 + _ONE_SIDED * math.sqrt((auc.n + 1) / 3) / auc.n if auc.n else 0.5
    return level(auc.value, MEMBERSHIP) if auc.value > by_chance else LEVELS[0]


def position(value: float, edges: tuple[float, ...]) -> float:
    """Where `value` stands on a gauge that gives every band the same length."""
    bands = len(edges) - 1
    for place, (low, high) in enumerate(pairwise(edges)):
        if value < high:
            return (place + max(0.0, value - low) / (high - low)) / bands
    return 1.0


def lights(memory: Memory) -> tuple[Light, Light, Light]:
    """The three lights of a card, in reading order."""
    controls = memory_words.known(memory)
    # What the base could say, or what the model says of rows it never saw, was not learned by heart.
    known = max(memory.extractable_heldout.value or 0.0, memory.extractable_base.value or 0.0)
    answers = f"answers ({controls})" if controls else "answers"
    recognition = _light("recognition", memory.membership_auc, "ratio", f"AUC, clean to {MEMBERSHIP[1]:g}", MEMBERSHIP)
    told = recognised(memory.membership_auc)
    if told is not None and told != recognition.level:
        recognition = replace(recognition, level=told, meaning="AUC, too few rows to tell it from chance", position=0.0)
    return (
        _light("over-fitting", memory.ratio, "ratio", f"loss ratio, clean to {RATIO[1]:g}", RATIO),
        recognition,
        _light("extraction", memory.extractable, "share", answers, EXTRACTABLE, known),
    )


def _light(
    name: str, given: Estimate, unit: words.Unit, meaning: str, edges: tuple[float, ...], known: float = 0.0
) -> Light:
    if given.value is None:
        return Light(name, "—", words.missing(given), "unknown", None)
    learned = given.value - known
    return Light(name, words.number(given.value, unit), meaning, level(learned, edges), position(learned, edges))
