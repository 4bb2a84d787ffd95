"""What an anchor may do while a model trains: the hooks the loop calls, each of which does nothing by itself.

Everything a hold decides is a function of the step and of the seed it was made with, so a resumed run needs no more
than its step number.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor, nn

from graftwood.data.batch import Packed
from graftwood.model.decoder import Decoder
from graftwood.train.loss import Gate, Objective


class Hold:
    """An anchor at work."""

    def open(self, decoder: Decoder, packed: Sequence[Packed]) -> None:
        """Look at all rows of a step before anything is made of them."""

    def losses(self, decoder: Decoder, step: int) -> Iterator[tuple[Tensor, int]]:
        """What is added to a step's loss, part by part, and the tokens each part read."""
        return iter(())

    def gate(self, packed: Packed) -> Gate | None:
        """How the predictions of these rows are weighed; None for all alike."""
        return None

    def beside(self, packed: Packed) -> tuple[Objective, float] | None:
        """What else is asked of the same predictions, and what its sum is multiplied with beside the loss's."""
        return None

    def stepped(self, trained: Mapping[str, nn.Parameter], rate: float) -> None:
        """Change parameters after an optimiser step at this learning rate."""
