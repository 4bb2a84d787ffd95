"""Guesses at what follows, from what followed the same tokens before: answers repeat their prompts, and themselves.

A pass over a few more tokens takes little longer than over one, and what the model would have said itself is as good as
said. Source: prompt lookup decoding (Saxena 2023, github.com/apoorvumang/prompt-lookup-decoding; LLMA, arXiv
2304.04487).
"""

from __future__ import annotations

from collections.abc import Sequence

SIZES = (3, 2)  # tokens that must have stood together before, the longer the surer
FIRST, LEAST, MOST = 4, 2, 7  # tokens guessed at once: in the beginning, after failures, after successes


class Lookup:
    """The tokens of one row, and where each short run of them was last followed by something."""

    def __init__(self, ids: Sequence[int]) -> None:
        self._ids: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}
        self._reach = FIRST
        for index in ids:
            self.add(index)

    def add(self, index: int) -> None:
        """The row has grown by one token."""
        place = len(self._ids)
        for size in SIZES:
            if place >= size:
                self._after[tuple(self._ids[place - size :])] = place
        self._ids.append(index)

    def guess(self, most: int) -> list[int]:
        """Up to so many tokens that may follow; none where the row's last tokens are new to it."""
        for size in SIZES:
            place = self._after.get(tuple(self._ids[-size:]))
            if place is not None:
                grown = list(self._ids)
                for source in range(place, place + min(self._reach, most)):
                    grown.append(grown[source])  # may be a guess itself, where a row goes round in circles
                return grown[len(self._ids) :]
        return []

    def heard(self, guessed: int, right: int) -> None:
        """How many of the guessed tokens were right: the next guess reaches as far as that promises."""
        if guessed:
            self._reach = min(2 * self._reach, MOST) if right == guessed else max(LEAST, right + 1)
