"""VeRA: one pair of random matrices for the whole model, and two vectors for each linear that scale them.

Source: Kopiczko et al. 2023, arXiv 2310.11454, eq. 2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from graftwood.model.decoder import Decoder
from graftwood.model.layers import Linear
from graftwood.technique import check_tensors
from graftwood.techniques._linear import LinearDelta, LinearTechnique

_SHARED = {"vera_A": "base_model.vera_A", "vera_B": "base_model.vera_B"}


class VeRADelta(LinearDelta):
    """`b * B (d * A x)`. Shapes: lambda_d [R], lambda_b [out]; the shared A [R, most inputs], B [most outputs, R].

    `rows` are those of B that are for this linear.
    """

    by_row: tuple[str, ...] = ("vera_lambda_b",)
    vera_A: Tensor
    vera_B: Tensor

    def __init__(
        self, linear: Linear, a: Tensor, b: Tensor, rows: slice | Tensor, start: float, dropout: float
    ) -> None:
        super().__init__()
        device = linear.weight.device
        outputs, self.inputs = linear.weight.shape
        self.rows = rows
        self.vera_lambda_d = nn.Parameter(torch.full((len(a),), start, device=device))
        self.vera_lambda_b = nn.Parameter(torch.zeros(outputs, device=device))
        self.register_buffer("vera_A", a, persistent=False)
        self.register_buffer("vera_B", b, persistent=False)
        self.dropout = dropout

    def merged(self, linear: Linear) -> Tensor:
        """The weight that computes the same without a delta, in float32."""
        left = self.vera_lambda_b.unsqueeze(1) * self.vera_B[self.rows]
        right = self.vera_lambda_d.unsqueeze(1) * self.vera_A[:, : self.inputs]
        return torch.addmm(linear.weight.float(), left, right)

    def forward(self, linear: Linear, x: Tensor) -> Tensor:
        dropped = F.dropout(x, self.dropout, self.training)
        low = F.linear(dropped, self.vera_A[:, : self.inputs].to(x.dtype)) * self.vera_lambda_d.to(x.dtype)
        high = F.linear(low, self.vera_B[self.rows].to(x.dtype))
        return torch.addcmul(linear.plain(x), high, self.vera_lambda_b.to(x.dtype))


class VeRA(LinearTechnique):
    """Vector-based random matrix adaptation."""

    name: ClassVar[str] = "vera"
    title: ClassVar[str] = "VeRA"
    source: ClassVar[str] = "Kopiczko et al. 2023, arXiv 2310.11454"
    learning_rate: ClassVar[float] = 4e-3
    learning_rate_reason: ClassVar[str] = "the paper's for instruction tuning, table 8"
    formula: ClassVar[str] = "y = W x + b * B (d * A x), A and B random and shared"
    example: ClassVar[str] = "--rank 64"
    trains: ClassVar[str] = "two vectors for each targeted linear"
    cost: ClassVar[str] = "two products of the rank for each linear; the shared matrices are in the file"
    draws: ClassVar[bool] = False
    peft_type: ClassVar[str | None] = "VERA"
    tensors: ClassVar[Mapping[str, str]] = {"vera_lambda_b": "vera_lambda_b", "vera_lambda_d": "vera_lambda_d"}
    peft: ClassVar[Mapping[str, str]] = {
        "r": "rank",
        "d_initial": "start",
        "vera_dropout": "dropout",
        "projection_prng_key": "projection_seed",
        "target_modules": "targets",
    }
    peft_past: ClassVar[tuple[str, ...]] = ("init_weights", "save_projection")
    only_whole: ClassVar[str | None] = "its files have one d for all rows of a matrix"

    rank: Annotated[int, Field(ge=1, description="rows of A, columns of B")] = 256
    start: Annotated[float, Field(gt=0, description="what d begins with")] = 0.1
    dropout: Annotated[float, Field(ge=0, lt=1, description="dropout on the input while training")] = 0.0
    projection_seed: Annotated[int, Field(ge=0, description="seed of A and B")] = 0

    def deltas(self, decoder: Decoder, generator: torch.Generator) -> dict[str, LinearDelta]:
        chosen = self.matches(decoder).values()
        outputs, inputs = (max(matrix.shape[side] for matrix in chosen) for side in (0, 1))
        generator = torch.Generator().manual_seed(self.projection_seed)
        a, b = (_uniform(shape, generator).to(decoder.device) for shape in ((self.rank, inputs), (outputs, self.rank)))
        made: dict[str, LinearDelta] = {}
        for matrix in chosen:
            alone: list[slice | Tensor] = [slice(matrix.shape[0])]
            numbers = alone if len(matrix.linears) == 1 else matrix.numbers()
            for (path, linear), rows in zip(matrix.linears.items(), numbers, strict=True):
                made[path] = VeRADelta(linear, a, b, rows, self.start, self.dropout)
        return made

    def files(self, decoder: Decoder) -> dict[str, Tensor]:
        some = next(linear.delta for linear in decoder.linears().values() if linear.delta is not None)
        return super().files(decoder) | {name: getattr(some, tensor) for tensor, name in _SHARED.items()}

    def load(self, decoder: Decoder, tensors: Mapping[str, Tensor]) -> None:
        wanted = self.files(decoder)
        shared = {name: wanted.pop(name) for name in _SHARED.values()}
        if not shared.keys().isdisjoint(tensors):  # PEFT may leave them to the seed
            wanted |= shared
        check_tensors(wanted, tensors, "the adapter")
        self.scatter(decoder, tensors)
        for name in shared.keys() & wanted.keys():
            shared[name].copy_(tensors[name])

    def describe(self, decoder: Decoder) -> dict[str, Any]:
        return super().describe(decoder) | {"save_projection": True, "bias": "none"}


def _uniform(shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Kaiming's uniform start, as PEFT draws it."""
    bound = math.sqrt(6 / shape[1])
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)
