"""IA3: keys, values and what the feed-forward's last linear reads are scaled element by element.

Source: Liu et al. 2022, arXiv 2205.05638, section 3.3.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import torch
from pydantic import AfterValidator, BeforeValidator, Field
from torch import Tensor, nn

from graftwood.model.decoder import Decoder
from graftwood.model.layers import Linear
from graftwood.model.matrices import Matrix, matrices
from graftwood.techniques._linear import (
    ALL_LINEAR,
    LinearDelta,
    LinearTechnique,
    leaves,
    listed,
    matched,
    named,
    patterned,
    targeted,
    unmatched,
)

DEFAULT = "default"


class IA3Delta(LinearDelta):
    """One scale an output, or an input where that is what is scaled. Shapes: ia3_l [out, 1] or [1, in]."""

    def __init__(self, linear: Linear, scales_input: bool) -> None:
        super().__init__()
        outputs, inputs = linear.weight.shape
        shape = (1, inputs) if scales_input else (outputs, 1)
        self.ia3_l = nn.Parameter(torch.ones(shape, device=linear.weight.device))
        self.by_row = () if scales_input else ("ia3_l",)

    @property
    def scales_input(self) -> bool:
        """Whether the scale is on what the linear reads."""
        return self.ia3_l.shape[0] == 1

    def merged(self, linear: Linear) -> Tensor:
        """The weight that computes the same without a delta, in float32."""
        return linear.weight.float() * self.ia3_l

    def merged_bias(self, bias: Tensor) -> Tensor:
        """The bias that goes with it."""
        return bias if self.scales_input else bias.float() * self.ia3_l.flatten()

    def forward(self, linear: Linear, x: Tensor) -> Tensor:
        scale = self.ia3_l.flatten().to(x.dtype)
        return linear.plain(x * scale) if self.scales_input else linear.plain(x) * scale


class IA3(LinearTechnique):
    """Element-wise scales; by default on keys, values and what brings each feed-forward back."""

    name: ClassVar[str] = "ia3"
    title: ClassVar[str] = "IA3"
    source: ClassVar[str] = "Liu et al. 2022, arXiv 2205.05638"
    learning_rate: ClassVar[float] = 3e-3
    learning_rate_reason: ClassVar[str] = "the paper's; 5e-3 forgot six times as much as LoRA in PEFT's comparison"
    formula: ClassVar[str] = "y = l * (W x), or W (l * x) for what the feed-forward's last linear reads"
    trains: ClassVar[str] = "one scale for each key, value and inner element of the feed-forward"
    cost: ClassVar[str] = "one product of two vectors more for each linear"
    draws: ClassVar[bool] = False
    peft_type: ClassVar[str | None] = "IA3"
    tensors: ClassVar[Mapping[str, str]] = {"ia3_l": "ia3_l"}
    peft: ClassVar[Mapping[str, str]] = {"target_modules": "targets", "feedforward_modules": "inputs"}
    peft_past: ClassVar[tuple[str, ...]] = ("init_ia3_weights",)

    targets: Annotated[
        tuple[str, ...],
        Field(description="linears by name or one regular expression; by default as in the paper"),
        BeforeValidator(listed),
        AfterValidator(patterned),
    ] = (DEFAULT,)
    inputs: Annotated[
        tuple[str, ...],
        Field(description="those of the targets whose inputs are scaled in the place of their outputs"),
        BeforeValidator(listed),
        AfterValidator(patterned),
    ] = (DEFAULT,)

    def matches(self, decoder: Decoder) -> dict[str, Matrix]:
        if self.targets == (DEFAULT,):
            last = _outward(decoder)
            return {p: m for p, m in named(decoder).items() if p in last or p.endswith(("k_proj", "v_proj"))}
        return targeted(self.targets, decoder)

    def scaled_inputs(self, decoder: Decoder) -> dict[str, Matrix]:
        """Those of the targets whose inputs are scaled."""
        chosen = self.matches(decoder)
        if self.inputs == (DEFAULT,):
            last = _outward(decoder)
            return {path: matrix for path, matrix in chosen.items() if path in last}
        return matched(self.inputs, chosen, ALL_LINEAR)

    def problems(self, decoder: Decoder) -> list[str]:
        found = [] if self.targets == (DEFAULT,) else super().problems(decoder)
        inputs = () if self.inputs == (DEFAULT,) else self.inputs
        found += unmatched(inputs, self.matches(decoder), ALL_LINEAR, "targeted linear")
        whole = matrices(decoder)
        if apart := [path for path in self.scaled_inputs(decoder) if path not in whole]:
            found.append(
                f"the files hold {apart[0]} together with others of the same input: name all of them as `inputs`"
            )
        return found

    def still(self, linear: Linear, tensor: str) -> Tensor:
        return torch.ones(len(linear.weight), 1, device=linear.weight.device)

    def deltas(self, decoder: Decoder, generator: torch.Generator) -> dict[str, LinearDelta]:
        inner = self.scaled_inputs(decoder)
        return {
            path: IA3Delta(linear, target in inner)
            for target, matrix in self.matches(decoder).items()
            for path, linear in matrix.linears.items()
        }

    def describe(self, decoder: Decoder) -> dict[str, Any]:
        among, stored = matrices(decoder), [matrix.path for matrix, _ in self.stored(decoder)]
        return super().describe(decoder) | {
            "target_modules": leaves(stored, among),
            "feedforward_modules": leaves(self.scaled_inputs(decoder), among),
        }


def _outward(decoder: Decoder) -> set[str]:
    """The linears that bring each feed-forward back: those called as its last one is, one for each expert."""
    paths = {id(linear): path for path, linear in decoder.linears().items()}
    found = set()
    for _, _, feed_forward in decoder.sublayers():
        own = [paths[id(part)] for part in feed_forward.modules() if id(part) in paths]
        leaf = own[-1].rpartition(".")[2]
        found |= {path for path in own if path.rpartition(".")[2] == leaf}
    return found
