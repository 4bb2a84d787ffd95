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
from graftwood.model.matrices import Matrix
from graftwood.techniques._linear import LinearDelta, LinearTechnique


class SHiRADelta(LinearDelta):
    """What is added to the chosen entries of one weight. Shapes: shira_weight [n], shira_indices [2, n]."""

    by_row: tuple[str, ...] = ("shira_weight", "shira_indices")

    shira_indices: Tensor

    def __init__(self, values: Tensor, places: Tensor) -> None:
        super().__init__()
        self.shira_weight = nn.Parameter(values)
        self.register_buffer("shira_indices", places.to(torch.int32), persistent=False)

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

    only_whole: ClassVar[str | None] = "the size of the whole says how many entries train"

    def problems(self, decoder: Decoder) -> list[str]:
        found = super().problems(decoder)
        shapes = {path: matrix.shape for path, matrix in self.matches(decoder).items()}
        over = [f"{path} {list(s)}" for path, s in shapes.items() if self.rank * sum(s) > s[0] * s[1]]
        if over:
            more = f" and {len(over) - 1} more" if len(over) > 1 else ""
            found.append(f"rank {self.rank} asks for more entries than {over[0]}{more} have; lower --rank")
        return found

    def deltas(self, decoder: Decoder, generator: torch.Generator) -> dict[str, LinearDelta]:
        made: dict[str, LinearDelta] = {}
        for matrix in self.matches(decoder).values():
            (outputs, inputs), device = matrix.shape, decoder.device
            chosen = (
                torch.randperm(outputs * inputs, generator=generator)[: self.rank * (outputs + inputs)].sort().values
            )
            places = torch.stack([chosen // inputs, chosen % inputs]).to(device)
            made |= _divided(matrix, torch.zeros(len(chosen), device=device), places)
        return made

    def gathered(self, matrix: Matrix, whole: bool) -> dict[str, Tensor]:
        deltas = [linear.delta for linear in matrix.linears.values()]
        parts = [delta for delta in deltas if isinstance(delta, SHiRADelta)]
        if len(parts) == 1:
            return {name: getattr(parts[0], name) for name in self.tensors}
        places = torch.cat(
            [
                torch.stack([rows[own.shira_indices[0].long()], own.shira_indices[1]])
                for rows, own in zip(matrix.numbers(), parts, strict=True)
            ],
            dim=1,
        )
        order = (places[0] * matrix.shape[1] + places[1]).argsort()
        values = torch.cat([own.shira_weight for own in parts])
        return {"shira_weight": values[order], "shira_indices": places[:, order].to(torch.int32)}

    def spread(self, matrix: Matrix, whole: bool, values: Mapping[str, Tensor]) -> None:
        for path, given in _divided(matrix, values["shira_weight"], values["shira_indices"]).items():
            own = matrix.linears[path].delta
            assert isinstance(own, SHiRADelta), "apply comes first"
            own.shira_weight.data, own.shira_indices = given.shira_weight.data, given.shira_indices

    def describe(self, decoder: Decoder) -> dict[str, Any]:
        return super().describe(decoder) | {"mask_type": "random", "random_seed": None}


def _divided(matrix: Matrix, values: Tensor, places: Tensor) -> dict[str, SHiRADelta]:
    """Values at places of a matrix, [2, n], as deltas of its linears."""
    found = {}
    for path, rows in zip(matrix.linears, matrix.numbers(), strict=True):
        within = torch.full((matrix.shape[0],), -1, device=rows.device)
        within[rows] = torch.arange(len(rows), device=rows.device)
        row, column = within[places[0].to(rows)], places[1].to(rows)
        kept = row >= 0
        found[path] = SHiRADelta(values.to(rows.device)[kept], torch.stack([row[kept], column[kept]]))
    return found
