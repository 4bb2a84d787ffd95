"""Elastic weight consolidation: what the base's own text depends on is dear to move.

The diagonal of the Fisher information is taken on text that the base wrote itself, where the squared slopes of windows
are Fisher's and not an approximation of it. An adapter's own Fisher at the start says little: of LoRA, A has a slope
of zero as long as B is zero. So where what trains is an update of a matrix, the penalty is on how far the whole matrix
has moved, weighed by the Fisher of its entries.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from graftwood.anchor import Anchor, Ground
from graftwood.model.decoder import Decoder
from graftwood.model.layers import Linear
from graftwood.technique import Technique
from graftwood.train.hold import Hold
from graftwood.train.loss import CrossEntropy, summed


class EWC(Anchor):
    """A penalty in the unit of `kl`'s: half of Fisher times the squared way is the divergence to second order."""

    name: ClassVar[str] = "ewc"
    title: ClassVar[str] = "elastic weights"
    formula: ClassVar[str] = "loss + weight / 2 * sum of F * (theta - start)^2, F the diagonal Fisher a token"
    cost: ClassVar[str] = "a copy of each matrix that moves and one pass over it a step; before, a step for each window"
    source: ClassVar[str] = "Kirkpatrick et al. 2016, arXiv 1612.00796; of whole matrices arXiv 2602.17559"
    needs_slopes: ClassVar[bool] = True

    weight: Annotated[float, Field(ge=0, description="what the penalty is multiplied with")] = 5.0
    windows: Annotated[
        int, Field(ge=1, description="how many of the base's samples of 128 tokens Fisher is taken on")
    ] = 96

    def problems(self, technique: Technique, decoder: Decoder) -> list[str]:
        if technique.starts_at_base:
            return []
        return [f"ewc needs a technique that begins at the base, which {technique.name} does not"]

    def hold(self, ground: Ground) -> Hold:
        decoder, ids = ground.base.decoder, ground.remembered(self.windows).ids
        matrices = moving(decoder)
        with ground.stage("what the base's text depends on"):
            if matrices:
                with decoder.without_deltas():
                    weighed = fisher(decoder, {path: linear.weight for path, linear in matrices.items()}, ids)
                return ConsolidatedMatrices(self.weight, weighed, matrices)
            return Consolidated(self.weight, fisher(decoder, decoder.trained(), ids), decoder.trained())


def moving(decoder: Decoder) -> dict[str, Linear]:
    """The linears whose matrix an update that trains is added to, by path."""
    found = {}
    for path, linear in decoder.linears().items():
        delta: Any = linear.delta
        if hasattr(delta, "merged") and any(parameter.requires_grad for parameter in delta.parameters()):
            found[path] = linear
    return found


def fisher(decoder: Decoder, places: Mapping[str, nn.Parameter], ids: Tensor) -> dict[str, Tensor]:
    """Diagonal Fisher information a token on windows that the model wrote, [W, T].

    Slopes of tokens in a window are uncorrelated where the model draws each of them, so the mean square of a window's
    slope is the sum of its tokens' Fisher.
    """
    found = {name: torch.zeros_like(place, dtype=torch.float32) for name, place in places.items()}
    trains = [place.requires_grad for place in places.values()]
    for place in places.values():
        place.requires_grad_(True)
    for window in ids.to(decoder.device):
        hidden = decoder.hidden(window.unsqueeze(0), (len(window),))[0, :-1]
        loss = summed(decoder, hidden, CrossEntropy(window[1:]))
        slopes = torch.autograd.grad(loss, list(places.values()), allow_unused=True)
        for total, slope in zip(found.values(), slopes, strict=True):
            if slope is not None:
                total.addcmul_(slope.float(), slope.float(), value=1 / (len(ids) * (len(window) - 1)))
    for place, before in zip(places.values(), trains, strict=True):
        place.requires_grad_(before)
    return found


class Consolidated(Hold):
    """Parameters that are dear to move from where they began."""

    def __init__(self, weight: float, weighed: Mapping[str, Tensor], trained: Mapping[str, nn.Parameter]) -> None:
        self._weight, self._weighed, self._trained = weight, weighed, trained
        self._start = {name: parameter.detach().clone() for name, parameter in trained.items()}

    def losses(self, decoder: Decoder, step: int) -> Iterator[tuple[Tensor, int]]:
        for name, parameter in self._trained.items():
            if parameter.requires_grad:
                way = parameter - self._start[name]
                yield self._weight / 2 * (self._weighed[name] * way.square()).sum(), 0


class ConsolidatedMatrices(Hold):
    """Matrices that are dear to move by the updates that train."""

    def __init__(self, weight: float, weighed: Mapping[str, Tensor], matrices: Mapping[str, Linear]) -> None:
        self._weight, self._weighed, self._matrices = weight, weighed, matrices

    def losses(self, decoder: Decoder, step: int) -> Iterator[tuple[Tensor, int]]:
        for path, linear in self._matrices.items():
            delta: Any = linear.delta
            way = delta.merged(linear) - linear.weight.float()
            yield self._weight / 2 * (self._weighed[path] * way.square()).sum(), 0
