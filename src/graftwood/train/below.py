"""Training that begins at a block: what is below stays, so what enters the block is computed once for every row.

Letters: N tokens of all rows together, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from graftwood.base import Base
from graftwood.data.batch import Examples, Packed, in_turn
from graftwood.data.encode import Example
from graftwood.errors import ConfigError
from graftwood.files import atomic_folder, cache_home, sha256_text, storage
from graftwood.model.decoder import Decoder

_BUDGET = 1024  # tokens computed at once; another number would round otherwise, so it is nobody's option
_FILE = "states.bin"


def freeze_below(decoder: Decoder, block: int) -> None:
    """Take from what trains all that is below a block. Raises: ConfigError where nothing is left."""
    if block == 0:
        return
    for parameter in decoder.below(block).values():
        parameter.requires_grad_(False)
    if not decoder.trained():
        raise ConfigError(f"nothing that this technique trains is in block {block} or above it; keep fewer blocks")


class Entering(Examples):
    """Rows that begin at a block; `states` says what of a pack enters it, [1, tokens, C]."""

    def __init__(self, examples: Sequence[Example], block: int, states: Callable[[Packed], Tensor]) -> None:
        super().__init__(examples)
        self._block, self._states = block, states

    def packs(self, rows: Sequence[int], budget: int) -> list[Packed]:
        made = super().packs(rows, budget)
        return [replace(packed, entering=(self._block, self._states(packed))) for packed in made]


def rows_tried(decoder: Decoder, examples: Sequence[Example], block: int) -> Examples:
    """Rows that begin at a block, for a trial of a few: what enters it is computed whenever they are packed."""
    if block == 0:
        return Examples(examples)
    return Entering(
        examples, block, lambda packed: decoder.into(block, packed.ids.to(decoder.device), packed.documents)
    )


def rows_kept(
    base: Base,
    examples: Sequence[Example],
    block: int,
    stage: Callable[[str], AbstractContextManager[Any]] = nullcontext,
) -> Examples:
    """Rows that begin at a block: what enters it is in the cache, computed the first time and mapped into memory."""
    rows = Examples(examples)
    if block == 0 or not examples:
        return rows
    decoder = base.decoder
    key = sha256_text(base.fingerprint, decoder.precision, str(block), *(str(example.ids) for example in examples))
    folder = cache_home() / "activations" / f"{base.fingerprint[:16]}-{decoder.precision}-{block}-{key[:16]}"
    if not folder.exists():
        with stage(f"what enters block {block}, once for every row"):
            _compute(decoder, rows, block, folder)
    width, ends = decoder.config.hidden_size, [0, *np.cumsum(rows.sizes).tolist()]
    states_NC = torch.from_file(str(folder / _FILE), size=ends[-1] * width, dtype=decoder.compute_dtype).view(-1, width)

    def of(packed: Packed) -> Tensor:
        first, last = packed.rows[0], packed.rows[-1]
        if packed.rows == tuple(range(first, last + 1)):  # as they lie in the file, where they may stay
            return states_NC[ends[first] : ends[last + 1]].unsqueeze(0)
        return torch.cat([states_NC[ends[row] : ends[row + 1]] for row in packed.rows]).unsqueeze(0)

    return Entering(examples, block, of)


def _compute(decoder: Decoder, rows: Examples, block: int, folder: Path) -> None:
    """Write the states of all rows, one after another."""
    with storage(f"write {folder}"), atomic_folder(folder) as work, decoder.without_deltas():
        with (work / _FILE).open("wb") as file:  # and not through a mapping, where a full disk would be a signal
            for packed in in_turn(rows, _BUDGET):
                states = decoder.into(block, packed.ids.to(decoder.device), packed.documents)
                file.write(states.cpu().contiguous().view(torch.uint8).numpy().data)
