"""Requests made from templates: a sentence with a gap, what fills it, and the words of which an answer must say one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from graftwood.evals.checks import Check
from graftwood.evals.task import Item


@dataclass(frozen=True)
class Template:
    """A request with a gap `{x}`, what fills it, and the words of which one must then be said.

    `fillers` reads `filler: word|word; filler: word; filler without words`; `more` are checks for all of them.
    """

    name: str
    text: str
    fillers: str
    more: Sequence[Check] = ()

    def items(self) -> tuple[Item, ...]:
        """Every filler's request; together they are a cluster."""
        found = []
        for number, entry in enumerate(self.fillers.split(";"), 1):
            filler, _, words = entry.partition(":")
            said = [word.strip() for word in words.split("|") if word.strip()]
            checks = (*({"kind": "contains_any", "values": said} for _ in said[:1]), *self.more)
            prompt = self.text.format(x=filler.strip())
            found.append(Item(f"{self.name}-{number:02d}", prompt, checks=checks, cluster=self.name))
        return tuple(found)


def prose(words: int) -> Check:
    """Running text of at least so many different words."""
    return {"kind": "prose", "n": words}
