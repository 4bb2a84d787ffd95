"""Rows of the benchmark's tasks: a prompt, the answer that is wanted, and what is not independent of what."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Asked:
    """One row. Rows with the same `cluster` were made from the same thing and are drawn together."""

    id: str
    cluster: str
    prompt: str
    answer: str
    references: tuple[str, ...] = ()


@dataclass(frozen=True)
class Splits:
    """What trains, what picks rates and checkpoints, and what no arm sees before it is scored."""

    train: tuple[Asked, ...]
    valid: tuple[Asked, ...]
    test: tuple[Asked, ...]
