"""What is measured, kept and saved is a running mean of what trains, which lags behind on its way from the base."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, ClassVar

from pydantic import Field

from graftwood.anchor import Anchor
from graftwood.train.loop import Plan


class Average(Anchor):
    """An exponential mean over steps; it begins where training does."""

    name: ClassVar[str] = "average"
    title: ClassVar[str] = "a running mean of what trains"
    formula: ClassVar[str] = "mean + (1 - 2^(-1 / half_life)) * (theta - mean), after each step"
    cost: ClassVar[str] = "a second copy of what trains, and one pass over it a step"
    source: ClassVar[str] = "Tarvainen and Valpola 2017, arXiv 1703.01780"

    half_life: Annotated[float, Field(ge=0, description="steps after which a value's weight is half; 0 for none")] = (
        20.0
    )

    def plan(self, plan: Plan) -> Plan:
        return replace(plan, average_half_life=self.half_life)
