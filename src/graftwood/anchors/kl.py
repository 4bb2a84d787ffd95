"""The tuned model is held to what the base expects after each token of text that the base wrote itself.

What the base expects is computed once per base and cached, so a step costs its own forward and backward alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from graftwood.anchor import Anchor, Ground
from graftwood.data.batch import Order
from graftwood.model.decoder import Decoder
from graftwood.model.expected import Expected
from graftwood.train.hold import Hold
from graftwood.train.loss import Divergence, summed


class KL(Anchor):
    """Divergence from the base on its own samples."""

    name: ClassVar[str] = "kl"
    title: ClassVar[str] = "divergence from the base on its own text"
    formula: ClassVar[str] = "loss + weight * KL(base || tuned), a mean over tokens the base wrote"
    cost: ClassVar[str] = "`share` of the tokens more, with logits at each of them; the base's samples once a base"
    source: ClassVar[str] = "arXiv 2505.13811; arXiv 2605.26097"

    weight: Annotated[float, Field(ge=0, description="what the divergence is multiplied with")] = 5.0
    share: Annotated[float, Field(gt=0, le=4, description="tokens of the base's text a token of the rows")] = 0.25
    windows: Annotated[int, Field(ge=1, description="how many samples of 128 tokens there are")] = 96

    def hold(self, ground: Ground) -> Hold:
        expected = ground.remembered(self.windows)
        together = max(1, round(self.share * ground.step_tokens / expected.ids.shape[1]))
        return Drawn(expected, self.weight, Order(len(expected.ids), together, 1.0, ground.plan.seed))


class Drawn(Hold):
    """Some of the windows at each step, all of them in turn."""

    def __init__(self, expected: Expected, weight: float, order: Order) -> None:
        self._expected, self._weight, self._order = expected, weight, order

    def losses(self, decoder: Decoder, step: int) -> Iterator[tuple[Tensor, int]]:
        rows = self._order.batch_rows(step)
        ids, words, log_p = (
            part[rows].to(decoder.device) for part in (self._expected.ids, self._expected.words, self._expected.log_p)
        )
        hidden = decoder.hidden(ids.reshape(1, -1), (ids.shape[1],) * len(ids))[0]
        objective = Divergence(words.flatten(0, 1), log_p.flatten(0, 1))
        yield summed(decoder, hidden, objective) * (self._weight / len(objective)), ids.numel()
