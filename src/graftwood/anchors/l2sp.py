"""After each step the parameters go part of their way back to where they began: weight decay, but not towards zero.

Apart from the gradient, as AdamW decays, so that the optimiser's second moments do not scale the pull.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from graftwood.anchor import Anchor, Ground
from graftwood.train.hold import Hold


class L2SP(Anchor):
    """A pull along the technique's own parameters: of an adapter, towards the adapter as it began."""

    name: ClassVar[str] = "l2sp"
    title: ClassVar[str] = "decay towards the start"
    formula: ClassVar[str] = "after each step: theta + min(1, rate * strength) * (start - theta)"
    cost: ClassVar[str] = "a second copy of what trains, and one pass over it a step"
    source: ClassVar[str] = "Li et al. 2018, arXiv 1802.01483; decoupled as in arXiv 1711.05101"

    strength: Annotated[float, Field(ge=0, description="the pull a step is the learning rate times this")] = 10.0

    def hold(self, ground: Ground) -> Hold:
        return Pulled(ground.base.decoder.trained(), self.strength)


class Pulled(Hold):
    """Parameters and where they began."""

    def __init__(self, trained: Mapping[str, nn.Parameter], strength: float) -> None:
        self._start: dict[str, Tensor] = {name: parameter.detach().clone() for name, parameter in trained.items()}
        self._strength = strength

    @torch.no_grad()
    def stepped(self, trained: Mapping[str, nn.Parameter], rate: float) -> None:
        share = min(1.0, rate * self._strength)
        torch._foreach_lerp_(list(trained.values()), [self._start[name] for name in trained], share)
