"""After training the model goes back part of its way to the base: the dial."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from graftwood.anchor import Anchor
from graftwood.model.decoder import Decoder
from graftwood.technique import Technique


class Interpolate(Anchor):
    """The result is `alpha` of the way from the base to where training ended."""

    name: ClassVar[str] = "interpolate"
    title: ClassVar[str] = "part of the way back to the base"
    formula: ClassVar[str] = "base + alpha * (tuned - base), along the technique's own parameters"
    cost: ClassVar[str] = "none while training; nothing afterwards"
    source: ClassVar[str] = "Wortsman et al. 2021, arXiv 2109.01903"

    alpha: Annotated[float, Field(ge=0, le=1, description="0 is the base, 1 the tuned model")] = 0.7

    def problems(self, technique: Technique, decoder: Decoder) -> list[str]:
        if technique.starts_at_base:
            return []
        return [f"interpolate needs a technique that begins at the base, which {technique.name} does not"]

    @property
    def dial(self) -> float:
        return self.alpha
