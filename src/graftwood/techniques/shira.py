"""SHiRA: a few entries of each weight train, chosen once at random; the others stay.

Source: Bhardwaj et al. 2024, arXiv 2406.13175, with the random mask that PEFT has.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from graftwood.model.decoder import Decoder
from graftwood.model.layers import Linear
from graftwood.techniques._linear import LinearTechnique


class SHiRADelta(nn.Module):
    """What is added to the chosen entries of one weight. Shapes: shira_weight [n], shira_indices [2, n]."""

    shira_indices: Tensor

    def __init__(self, linear: Linear, count: int, generator: torch.Generator) -> None:
        super().__init__()
        outputs, inputs = linear.weight.shape
        device = linear.weight.device
        chosen = torch.randperm(outputs * inputs, generator=generator)[:count].sort().values
        places = torch.stack([chosen // inputs, chosen % inputs])
        self.shira_weight = nn.Parameter(torch.zeros(count, device=device))
        self.register_buffer("shira_indices", places.to(device, torch.int32), persistent=False)

    def merged(self, linear: Linear) -> Tensor:
        """The weight with what was added, in float32."""
        rows, columns = self.shira_indices.long()
        return linear.weight.float().index_put((rows, columns), self.shira_weight.float(), accumulate=True)

    def forward(self, linear: Linear, x: Tensor) -> Tensor:
        bias = None if linear.bias is None else linear.bias.to(x.dtype)
        return F.linear(x, self.merged(linear).to(x.dtype), bias)


class SHiRA(LinearTechnique):
    """Sparse high-rank adaptation: as many entries of each weight as a LoRA of this rank would have."""

    name: ClassVar[str] = "shira"
    title: ClassVar[str] = "SHiRA"
    source: ClassVar[str] = "Bhardwaj et al. 2024, arXiv 2406.13175"
    learning_rate: ClassVar[float] = 3e-4
    learning_rate_reason: ClassVar[str] = (
        "the best of PEFT's comparison, where it is on the front of gain and forgetting"
    )
    formula: ClassVar[str] = "y = (W + S) x, S zero but for entries drawn once"
    example: ClassVar[str] = "--rank 8"
    trains: ClassVar[str] = "`rank * (inputs + outputs)` entries of each targeted weight, drawn once"
    cost: ClassVar[str] = "the gradient of each whole weight, of which the chosen entries are kept"
    peft_type: ClassVar[str | None] = "SHIRA"
    tensors: ClassVar[Mapping[str, str]] = {"shira_weight": "shira_weight", "shira_indices": "shira_indices"}
    peft: ClassVar[Mapping[str, str]] = {"r": "rank", "target_modules": "targets"}
    peft_past: ClassVar[tuple[str, ...]] = ("mask_type", "random_seed", "init_weights")

    rank: Annotated[int, Field(ge=1, description="`rank * (inputs + outputs)` entries of each weight train")] = 16

    def problems(self, decoder: Decoder) -> list[str]:
        found = super().problems(decoder)
        shapes = {path: linear.weight.shape for path, linear in self.matches(decoder).items()}
        over = [f"{path} {list(s)}" for path, s in shapes.items() if self.rank * sum(s) > s[0] * s[1]]
        if over:
            more = f" and {len(over) - 1} more" if len(over) > 1 else ""
            found.append(f"rank {self.rank} asks for more entries than {over[0]}{more} have; lower --rank")
        return found

    def deltas(self, decoder: Decoder, generator: torch.Generator) -> dict[str, nn.Module]:
        return {
            path: SHiRADelta(linear, self.rank * sum(linear.weight.shape), generator)
            for path, linear in self.matches(decoder).items()
        }

    def describe(self, decoder: Decoder) -> dict[str, Any]:
        return super().describe(decoder) | {"mask_type": "random", "random_seed": None, "fan_in_fan_out": False}
