"""DoRA: the rows of `W + scale * B A` keep their direction, and their lengths train by themselves.

Source: Liu et al. 2024, arXiv 2402.09353, eq. 5; the length that is divided by takes no gradient (its section 4.3).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from graftwood.model.decoder import Decoder
from graftwood.model.layers import Linear
from graftwood.model.matrices import Matrix
from graftwood.techniques.lora import LoRA, LoRADelta


class DoRADelta(LoRADelta):
    """The update of one linear. Shapes: magnitude [out]."""

    by_row: tuple[str, ...] = ("lora_B", "magnitude")
    squares: Tensor

    def __init__(self, linear: Linear, rank: int, scale: float, dropout: float, generator: torch.Generator) -> None:
        super().__init__(linear, rank, scale, dropout, generator)
        self.register_buffer("squares", linear.weight.float().square().sum(1), persistent=False)
        self.magnitude = nn.Parameter(self.squares.sqrt())

    @torch.no_grad()
    def lengths(self, linear: Linear) -> Tensor:
        """Lengths of the rows of `W + scale * B A`, [out], from `|w|^2 + 2 w d + |d|^2` without making the matrix."""
        a, b, scale = self.lora_A, self.lora_B, self.scale
        crossed = (F.linear(linear.weight.float(), a) * b).sum(1)
        own = ((b @ (a @ a.T)) * b).sum(1)
        return (self.squares + 2 * scale * crossed + scale**2 * own).clamp_min(0).sqrt()

    def factors(self) -> None:
        """Not of the form `scale * B A`."""

    def merged(self, linear: Linear) -> Tensor:
        return (self.magnitude / self.lengths(linear)).unsqueeze(1) * super().merged(linear)

    def forward(self, linear: Linear, x: Tensor) -> Tensor:
        weight = linear.weight.to(x.dtype)
        gain = (self.magnitude / self.lengths(linear)).to(x.dtype)
        dropped = F.dropout(x, self.dropout, self.training)
        low = F.linear(F.linear(dropped, self.lora_A.to(x.dtype)), self.lora_B.to(x.dtype))
        if dropped is not x and self.dropout and self.training:  # PEFT drops from the change of length, too
            y = F.linear(x, weight) + (gain - 1) * F.linear(dropped, weight) + gain * self.scale * low
        else:
            y = gain * (F.linear(x, weight) + self.scale * low)
        return y if linear.bias is None else y + linear.bias.to(x.dtype)


class DoRA(LoRA):
    """LoRA with the lengths of the weight's rows trained apart from their directions."""

    name: ClassVar[str] = "dora"
    title: ClassVar[str] = "DoRA"
    source: ClassVar[str] = "Liu et al. 2024, arXiv 2402.09353"
    learning_rate: ClassVar[float] = 2e-4
    learning_rate_reason: ClassVar[str] = "LoRA's: with the rate tuned the two land within 2% (arXiv 2602.04998)"
    formula: ClassVar[str] = "y = m * (W x + s B A x) / |W + s B A|, row by row"
    example: ClassVar[str] = "--rank 8"
    trains: ClassVar[str] = "LoRA's two matrices and one length for each row of the weight"
    cost: ClassVar[str] = "LoRA's, and the lengths of all rows of each weight anew in every pass"
    kind: ClassVar[type[LoRADelta]] = DoRADelta
    on_parameters: ClassVar[bool] = False
    peft_starts: ClassVar[Mapping[Any, str]] = {
        said: start for said, start in LoRA.peft_starts.items() if start == "zero"
    }
    tensors: ClassVar[Mapping[str, str]] = {**LoRA.tensors, "magnitude": "lora_magnitude_vector"}

    def problems(self, decoder: Decoder) -> list[str]:
        refused = ["start=pissa is LoRA's alone; leave it out or take --technique lora"] if self.start != "zero" else []
        return super().problems(decoder) + refused

    def still(self, linear: Linear, tensor: str) -> Tensor:
        return linear.weight.float().norm(dim=1)

    def gathered(self, matrix: Matrix, whole: bool) -> dict[str, Tensor]:
        return super().gathered(matrix, whole) | {"magnitude": self.joined(matrix, "magnitude")}

    def spread(self, matrix: Matrix, whole: bool, values: Mapping[str, Tensor]) -> None:
        super().spread(matrix, whole, values)
        for linear, lengths in zip(matrix.linears.values(), matrix.split(values["magnitude"]), strict=True):
            if linear.delta is not None:
                cast(DoRADelta, linear.delta).magnitude.copy_(lengths)

    def describe(self, decoder: Decoder) -> dict[str, Any]:
        return super().describe(decoder) | {"use_dora": True}

    @classmethod
    def opens(cls, config: Mapping[str, Any]) -> bool:
        return config.get("peft_type") == cls.peft_type and bool(config.get("use_dora"))
