"""BitFit: only biases train. Source: Ben Zaken et al. 2021, arXiv 2106.10199."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from graftwood.errors import ConfigError
from graftwood.model.decoder import Decoder
from graftwood.techniques._linear import ALL_LINEAR, Targets, listed, matched, unmatched
from graftwood.techniques._peft import PREFIX, options_from
from graftwood.techniques._swapped import SwappedTechnique


class BitFit(SwappedTechnique):
    """Biases of the targeted linears, and of the norms that have one; a linear without a bias gains one of zeros."""

    name: ClassVar[str] = "bitfit"
    title: ClassVar[str] = "BitFit"
    source: ClassVar[str] = "Ben Zaken et al. 2021, arXiv 2106.10199"
    learning_rate: ClassVar[float] = 1e-3
    learning_rate_reason: ClassVar[str] = (
        "the largest of the paper's range, 1e-4 to 1e-3: few parameters want large steps"
    )
    formula: ClassVar[str] = "y = W x + b, b trained"
    trains: ClassVar[str] = "one bias for each output of each targeted linear, and the norms' biases"
    cost: ClassVar[str] = "one sum over tokens for each linear"
    draws: ClassVar[bool] = False
    peft_type: ClassVar[str | None] = "BITFIT"  # not one of PEFT's
    opened_by: ClassVar[str | None] = None

    targets: Targets = (ALL_LINEAR,)

    def problems(self, decoder: Decoder) -> list[str]:
        return unmatched(self.targets, decoder.linears(), ALL_LINEAR, f"linear of {decoder.architecture.name}")

    def starts(self, decoder: Decoder) -> dict[str, Tensor]:
        linears = decoder.linears()
        starts = {}
        for path, linear in matched(self.targets, linears, ALL_LINEAR).items():
            zeros = torch.zeros(len(linear.weight), device=linear.weight.device)
            starts[f"{path}.bias"] = zeros if linear.bias is None else linear.bias.detach().float().clone()
        if self.targets == (ALL_LINEAR,):
            known = {*linears, decoder.architecture.names.head}
            for path, parameter in decoder.named_parameters():
                owner, _, leaf = path.rpartition(".")
                if leaf == "bias" and owner not in known:
                    starts[path] = parameter.detach().float().clone()
        return starts

    def file_name(self, path: str) -> str:
        return PREFIX + path

    def fold(self, decoder: Decoder) -> None:
        if decoder.without_place():
            family = decoder.architecture.name
            raise ConfigError(
                f"bitfit cannot be merged: {family} has no biases that these could become; keep the adapter"
            )
        super().fold(decoder)

    def describe(self, decoder: Decoder) -> dict[str, Any]:
        return {"target_modules": ALL_LINEAR if self.targets == (ALL_LINEAR,) else list(self.targets)}

    @classmethod
    def from_peft(cls, config: Mapping[str, Any]) -> Self:
        options = options_from(cls.title, config, {"target_modules": "targets"})
        return cls.parse(options | {"targets": listed(options.get("targets", ALL_LINEAR))})
