"""Norm tuning: only the norms train.

Source: Zhao et al. 2023, arXiv 2312.11420.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from graftwood.model.decoder import Decoder
from graftwood.techniques._linear import Targets, leaves, matched, unmatched
from graftwood.techniques._peft import PREFIX, options_from
from graftwood.techniques._swapped import SwappedTechnique

EVERY = "all"


class Norm(SwappedTechnique):
    """All norms, or those the targets name."""

    name: ClassVar[str] = "norm"
    title: ClassVar[str] = "norm tuning"
    source: ClassVar[str] = "Zhao et al. 2023, arXiv 2312.11420"
    learning_rate: ClassVar[float] = 1e-3
    learning_rate_reason: ClassVar[str] = "ten times what learned nothing in PEFT's comparison (1e-4)"
    formula: ClassVar[str] = "norm(x) * g + b, g and b trained"
    trains: ClassVar[str] = "the weights (and biases) of the norms"
    cost: ClassVar[str] = "next to nothing beside the base's own pass and back"
    draws: ClassVar[bool] = False
    peft_type: ClassVar[str | None] = "LN_TUNING"

    targets: Targets = (EVERY,)

    def problems(self, decoder: Decoder) -> list[str]:
        return unmatched(self.targets, _norms(decoder), EVERY, f"norm of {decoder.architecture.name}")

    def starts(self, decoder: Decoder) -> dict[str, Tensor]:
        return {
            f"{path}.{leaf}": parameter.detach().float().clone()
            for path, norm in matched(self.targets, _norms(decoder), EVERY).items()
            for leaf, parameter in norm.named_parameters(recurse=False)
        }

    def file_name(self, path: str) -> str:
        owner, _, leaf = path.rpartition(".")
        return f"{PREFIX}{owner}.ln_tuning_layers.{leaf}"

    def describe(self, decoder: Decoder) -> dict[str, Any]:
        norms = _norms(decoder)
        return {"target_modules": leaves(matched(self.targets, norms, EVERY), norms), "modules_to_save": None}

    @classmethod
    def from_peft(cls, config: Mapping[str, Any]) -> Self:
        odd = [] if config.get("target_modules") else ["target_modules"]
        return cls.parse(options_from(cls.title, config, {"target_modules": "targets"}, odd=odd))


def _norms(decoder: Decoder) -> dict[str, nn.Module]:
    """Every module with a vector for a weight."""
    weights = ((path, module, module._parameters.get("weight")) for path, module in decoder.named_modules())
    return {path: module for path, module, weight in weights if weight is not None and weight.ndim == 1}
