"""OFT: what a linear reads is turned, block by block, by orthogonal matrices that train.

Source: Qiu et al. 2023, arXiv 2306.07280; the turning of inputs and the Neumann series for the Cayley transform are
OFTv2, Qiu et al. 2025, arXiv 2506.19847. Letters: K blocks, S size of a block.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from graftwood.model.decoder import Decoder
from graftwood.model.layers import Linear
from graftwood.techniques._linear import LinearDelta, LinearTechnique
from graftwood.techniques._peft import options_from


class OFTDelta(LinearDelta):
    """`W R x`, R block-diagonal and orthogonal. Shapes: oft_R [K, S (S - 1) / 2], the upper halves of skew matrices."""

    rows: Tensor
    columns: Tensor

    def __init__(self, linear: Linear, size: int, terms: int | None) -> None:
        super().__init__()
        device = linear.weight.device
        self.size, self.terms = size, terms
        blocks = linear.weight.shape[1] // size
        self.oft_R = nn.Parameter(torch.zeros(blocks, size * (size - 1) // 2, device=device))
        rows, columns = torch.triu_indices(size, size, 1, device=device)
        self.register_buffer("rows", rows, persistent=False)
        self.register_buffer("columns", columns, persistent=False)

    def rotations(self) -> Tensor:
        """Cayley's transform of each block's skew Q, [K, S, S].

        As in PEFT: the first terms of the series of `(I + Q)(I - Q)^-1`, or exactly `(I - Q)(I + Q)^-1`.
        """
        blocks = len(self.oft_R)
        upper = self.oft_R.new_zeros(blocks, self.size, self.size)
        upper[:, self.rows, self.columns] = self.oft_R
        skew = upper - upper.mT
        one = torch.eye(self.size, device=skew.device)
        if self.terms is None:
            return torch.linalg.solve(one + skew, (one - skew).expand_as(skew), left=False)
        total = one + 2 * skew
        power = skew
        for _ in range(self.terms - 3):
            power = power @ skew
            total = total + 2 * power
        return total + power @ skew

    def merged(self, linear: Linear) -> Tensor:
        """The weight that computes the same without a delta, in float32."""
        parts = linear.weight.float().unflatten(1, (-1, self.size))
        return torch.einsum("okc,krc->okr", parts, self.rotations()).flatten(1)

    def forward(self, linear: Linear, x: Tensor) -> Tensor:
        turned = torch.bmm(x.reshape(-1, len(self.oft_R), self.size).transpose(0, 1), self.rotations().to(x.dtype))
        return linear.plain(turned.transpose(0, 1).reshape(x.shape))


def fitting(inputs: int, size: int) -> int:
    """The divisor of `inputs` nearest to a block size, the smaller of two. Source: PEFT's `adjust_oft_parameters`."""
    return min((d for d in range(1, inputs + 1) if inputs % d == 0), key=lambda d: (abs(d - size), d))


class OFT(LinearTechnique):
    """Orthogonal fine-tuning: angles between neurons stay as they were."""

    name: ClassVar[str] = "oft"
    title: ClassVar[str] = "OFT"
    source: ClassVar[str] = "Qiu et al. 2023, arXiv 2306.07280"
    learning_rate: ClassVar[float] = 4e-4
    learning_rate_reason: ClassVar[str] = "OFTv2's for language models with this parametrisation (arXiv 2506.19847)"
    formula: ClassVar[str] = "y = W R x, R orthogonal by blocks: R = (I + Q)(I - Q)^-1, Q skew"
    example: ClassVar[str] = "--set block=32"
    trains: ClassVar[str] = "an orthogonal matrix for each block of each linear's inputs"
    cost: ClassVar[str] = "one product of block size for each input, and its turning matrices anew in every pass"
    draws: ClassVar[bool] = False
    peft_type: ClassVar[str | None] = "OFT"
    tensors: ClassVar[Mapping[str, str]] = {"oft_R": "oft_R.weight"}
    peft: ClassVar[Mapping[str, str]] = {
        "oft_block_size": "block",
        "target_modules": "targets",
        "num_cayley_neumann_terms": "terms",
    }

    only_whole: ClassVar[str | None] = "it turns what all rows of a matrix read"

    block: Annotated[
        int, Field(ge=2, description="size of a block; where it divides no linear's inputs, the nearest divisor")
    ] = 32
    cayley: Annotated[
        Literal["series", "exact"], Field(description="the transform by the first terms of its series, or exact")
    ] = "series"
    terms: Annotated[int, Field(ge=4, description="terms of the series")] = 5

    def mistakes(self, decoder: Decoder) -> list[str]:
        idle = "terms" in self.model_fields_set and self.cayley == "exact"
        said = ["terms are of cayley=series, and this is cayley=exact; leave them out"] if idle else []
        return super().mistakes(decoder) + said

    def deltas(self, decoder: Decoder, generator: torch.Generator) -> dict[str, LinearDelta]:
        terms = self.terms if self.cayley == "series" else None
        return {
            path: OFTDelta(linear, fitting(linear.weight.shape[1], self.block), terms)
            for matrix in self.matches(decoder).values()
            for path, linear in matrix.linears.items()
        }

    def describe(self, decoder: Decoder) -> dict[str, Any]:
        fixed = {"r": 0, "use_cayley_neumann": self.cayley == "series", "bias": "none", "module_dropout": 0.0}
        return super().describe(decoder) | fixed | {"coft": False, "block_share": False}

    @classmethod
    def from_peft(cls, config: Mapping[str, Any]) -> Self:
        odd = [] if config.get("target_modules") else ["target_modules"]
        odd += ["module_dropout"] if config.get("module_dropout") else []
        odd += [] if config.get("oft_block_size") else ["oft_block_size"]
        odd += ["r"] if config.get("r") else []
        past = ("r", "init_weights", "eps", "use_cayley_neumann", "module_dropout", "fan_in_fan_out")
        options = options_from(cls.title, config, cls.peft, past, odd)
        return cls.parse(options | {"cayley": "series" if config.get("use_cayley_neumann") else "exact"})
