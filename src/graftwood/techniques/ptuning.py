"""P-tuning: prompt vectors that a small network makes, which trains with them and is left out of the result.

Source: Liu et al. 2021, arXiv 2103.10385, section 3, with the multi-layer perceptron as encoder.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import nn

from graftwood.model.decoder import Decoder
from graftwood.runtime import seeded
from graftwood.techniques._preface import PrefaceTechnique, Table


class PTuning(PrefaceTechnique):
    """`hidden` is the encoder's inner size; 0 for the model's own."""

    name: ClassVar[str] = "ptuning"
    title: ClassVar[str] = "P-tuning"
    source: ClassVar[str] = "Liu et al. 2021, arXiv 2103.10385"
    learning_rate: ClassVar[float] = 1e-3
    learning_rate_reason: ClassVar[str] = "of PEFT's P-tuning guide"
    formula: ClassVar[str] = "[p1 ... pP x1 ... xT], p = MLP(e)"
    example: ClassVar[str] = "--set tokens=20"
    trains: ClassVar[str] = "vectors and a three-layer encoder that makes the prompt of them"
    cost: ClassVar[str] = "prompt tuning's; the encoder runs once a pass and is not kept"
    peft_type: ClassVar[str | None] = "P_TUNING"
    peft_past: ClassVar[tuple[str, ...]] = (
        "encoder_reparameterization_type", "encoder_hidden_size", "encoder_num_layers", "encoder_dropout",
    )  # fmt: skip

    hidden: Annotated[int, Field(ge=0, description="the encoder's inner size; 0 for the model's own")] = 0

    def begin(self, decoder: Decoder, seed: int) -> Table:
        channels = decoder.config.hidden_size
        inner = self.hidden or channels
        with seeded(seed):
            encoder = nn.Sequential(
                nn.Linear(channels, inner),
                nn.ReLU(),
                nn.Linear(inner, inner),
                nn.ReLU(),
                nn.Linear(inner, channels),
            )
            return Table(torch.randn(self.tokens, channels), encoder)

    def describe(self, decoder: Decoder) -> dict[str, Any]:
        inner = self.hidden or decoder.config.hidden_size
        return super().describe(decoder) | {
            "encoder_reparameterization_type": "MLP",
            "encoder_hidden_size": inner,
            "encoder_num_layers": 2,
            "encoder_dropout": 0.0,
        }
