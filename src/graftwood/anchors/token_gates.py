"""Each prediction's gradient is weighed: less where the row asks for what the model holds to be wrong.

The loss that is reported stays the plain one. No weight takes a gradient.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from graftwood.anchor import Anchor, Ground
from graftwood.data.batch import Packed
from graftwood.errors import ConfigError
from graftwood.model.decoder import Decoder
from graftwood.technique import Technique
from graftwood.train.hold import Hold
from graftwood.train.loss import Gate, token_losses

_TOP = 20


class TokenGates(Anchor):
    """A weight for each prediction, or for each row; the docs have the formula of every kind."""

    name: ClassVar[str] = "token_gates"
    title: ClassVar[str] = "weights on what is learned"
    formula: ClassVar[str] = "w^alpha * slope of (-log q of the answer), w by `kind`"
    cost: ClassVar[str] = "next to nothing; `talr` one forward more a step, `flow` and `stm` one over the rows before"
    source: ClassVar[str] = (
        "eaft arXiv 2601.02151; dft arXiv 2508.05629; talr arXiv 2509.20758; flow arXiv 2502.02797; "
        "stm arXiv 2501.14315"
    )

    kind: Annotated[
        Literal["eaft", "dft", "talr", "flow", "stm"],
        Field(
            description="by entropy, probability, probability against the batch, the base's loss on the row or token"
        ),
    ] = "eaft"
    alpha: Annotated[float, Field(ge=0, description="power the weights are raised to; 0 weighs all alike")] = 1.0
    threshold: Annotated[
        float, Field(gt=1, description="of `stm`: the base's perplexity above which a token is not learned")
    ] = 2.5

    def problems(self, technique: Technique, decoder: Decoder) -> list[str]:
        if self.kind == "stm" or "threshold" not in self.model_fields_set:
            return []
        return [f"token_gates: threshold is of kind=stm, and this is kind={self.kind}; leave it out"]

    def hold(self, ground: Ground) -> Hold:
        if self.kind == "talr":
            return Tempered(self.alpha)
        if self.kind in ("eaft", "dft"):
            return Gated(_raised(entropy if self.kind == "eaft" else probability, self.alpha))
        losses = [loss for (loss,) in ground.untouched(lambda decoder, packed: (token_losses(decoder, packed),))]
        weights = easy_rows(losses) if self.kind == "flow" else easy_tokens(losses, self.threshold)
        return Known([weight.unsqueeze(1) ** self.alpha for weight in weights])


def entropy(log_shares: Tensor, right: Tensor, rows: slice) -> Tensor:
    """Entropy among the 20 likeliest tokens as a share of the largest it can have.

    Source: EAFT, arXiv 2601.02151, as LLaMA-Factory computes it, which divides by 3 in the place of ln 20.
    """
    top = log_shares.topk(min(_TOP, log_shares.shape[1])).values.log_softmax(1)
    return -(top.exp() * top).sum(1, keepdim=True) / math.log(top.shape[1])


def probability(log_shares: Tensor, right: Tensor, rows: slice) -> Tensor:
    """The probability of the answer's token. Source: DFT, arXiv 2508.05629."""
    return right.exp()


def easy_rows(losses: Sequence[Tensor]) -> list[Tensor]:
    """`exp(-loss / tau)` for every prediction of a row: its mean loss at the base, tau the median of those.

    Source: FLOW, arXiv 2502.02797.
    """
    means = torch.stack([loss.mean() for loss in losses])
    weights = (-means / means.median()).exp()
    return [weight.expand(len(loss)) for weight, loss in zip(weights, losses, strict=True)]


def easy_tokens(losses: Sequence[Tensor], threshold: float) -> list[Tensor]:
    """1 where the base's perplexity of the token is at most the threshold, else 0, over the mean of that.

    Source: STM, arXiv 2501.14315, whose loss is a mean over the tokens that are left.

    Raises: ConfigError where no token is.
    """
    known = [(loss <= math.log(threshold)).float() for loss in losses]
    left = torch.cat(known).mean()
    if left == 0:
        least = torch.cat(list(losses)).min().exp()
        raise ConfigError(
            f"token_gates: threshold {threshold:g} leaves no answer token to learn; the base's perplexities begin at "
            f"{least:.3g}, so give a higher one"
        )
    return [weight / left for weight in known]


class Gated(Hold):
    """The same gate for all rows."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    def gate(self, packed: Packed) -> Gate:
        return self._gate


class Known(Hold):
    """Weights that were known before the first step, by row, [M, 1] each."""

    def __init__(self, weights: Sequence[Tensor]) -> None:
        self._weights = weights

    def gate(self, packed: Packed) -> Gate:
        weights = torch.cat([self._weights[row] for row in packed.rows]).to(packed.targets.device)
        return lambda log_shares, right, rows: weights[rows]


class Tempered(Hold):
    """`p^(1 / tau)` over its mean, tau the median loss of all predictions of the step.

    Source: TALR, arXiv 2509.20758: the weights that share out a batch with the least loss, their entropy priced at tau.
    """

    def __init__(self, alpha: float) -> None:
        self._alpha = alpha
        self._tau = self._mean = 1.0

    def open(self, decoder: Decoder, packed: Sequence[Packed]) -> None:
        losses = torch.cat([token_losses(decoder, part) for part in packed])
        self._tau = max(float(losses.median()), 1e-6)
        self._mean = float((-losses / self._tau).exp().mean())

    def gate(self, packed: Packed) -> Gate:
        tau, mean = self._tau, self._mean
        return _raised(lambda log_shares, right, rows: (right / tau).exp() / mean, self._alpha)


def _raised(gate: Gate, alpha: float) -> Gate:
    return lambda log_shares, right, rows: gate(log_shares, right, rows) ** alpha
