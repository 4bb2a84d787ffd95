"""Documents that end in alternatives, which see what comes before all of them and not each other.

Letters: T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

# How long an alternative is; or how long its own beginning is, and the alternatives that it in turn ends in.
Fork: TypeAlias = "int | tuple[int, Sequence[Fork]]"


def fork_length(fork: Fork) -> int:
    """Tokens of an alternative and of all that it ends in."""
    return fork if isinstance(fork, int) else fork[0] + sum(map(fork_length, fork[1]))


def fork_parts(length: int, forks: Sequence[Fork]) -> list[tuple[int, int]]:
    """A document that ends in alternatives, in parts: how long each is, and the number of the part it goes on from."""
    parts = [(length - sum(map(fork_length, forks)), -1)]

    def add(alternatives: Sequence[Fork], parent: int) -> None:
        for fork in alternatives:
            own, more = (fork, ()) if isinstance(fork, int) else fork
            parts.append((own, parent))
            add(more, len(parts) - 1)

    add(forks, 0)
    return parts


def forked_positions(parts: Sequence[tuple[int, int]], device: torch.device) -> Tensor:
    """Positions of such a document: each part goes on where the one it continues ended."""
    starts: list[int] = []
    for _, parent in parts:
        starts.append(0 if parent < 0 else starts[parent] + parts[parent][0])
    pieces = [torch.arange(start, start + own, device=device) for start, (own, _) in zip(starts, parts, strict=True)]
    return torch.cat(pieces)


def forked_mask(parts: Sequence[tuple[int, int]], device: torch.device) -> Tensor:
    """What the tokens of such a document see, [T, T]: their own part and those it goes on from, up to themselves."""
    sees = torch.eye(len(parts), dtype=torch.bool)
    for number, (_, parent) in enumerate(parts):
        if parent >= 0:
            sees[number] |= sees[parent]
    owner = torch.repeat_interleave(torch.arange(len(parts)), torch.tensor([own for own, _ in parts]))
    return sees[owner][:, owner].tril_().to(device)
