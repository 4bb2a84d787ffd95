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
from graftwood.techniques._linear import ALL_LINEAR, LinearTechnique, leaves, listed, matched, patterned, unmatched

DEFAULT = "default"


class IA3Delta(nn.Module):
    """One scale an output, or an input where that is what is scaled. Shapes: ia3_l [out, 1] or [1, in]."""

    def __init__(self, linear: Linear, scales_input: bool) -> None:
        super().__init__()
        outputs, inputs = linear.weight.shape
        shape = (1, inputs) if scales_input else (outputs, 1)
        self.ia3_l = nn.Parameter(torch.ones(shape, device=linear.weight.device))

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

    def matches(self, decoder: Decoder) -> dict[str, Linear]:
        linears = decoder.linears()
        if self.targets == (DEFAULT,):
            last = _outward(decoder)
            return {p: m for p, m in linears.items() if p in last or p.endswith(("k_proj", "v_proj"))}
        return matched(self.targets, linears, ALL_LINEAR)

    def scaled_inputs(self, decoder: Decoder) -> dict[str, Linear]:
        """Those of the targets whose inputs are scaled."""
        chosen = self.matches(decoder)
        if self.inputs == (DEFAULT,):
            last = _outward(decoder)
            return {path: linear for path, linear in chosen.items() if path in last}
        return matched(self.inputs, chosen, ALL_LINEAR)

    def problems(self, decoder: Decoder) -> list[str]:
        what = f"linear of {decoder.architecture.name}"
        found = [] if self.targets == (DEFAULT,) else unmatched(self.targets, decoder.linears(), ALL_LINEAR, what)
        inputs = () if self.inputs == (DEFAULT,) else self.inputs
        return found + unmatched(inputs, self.matches(decoder), ALL_LINEAR, "targeted linear")

    def deltas(self, decoder: Decoder, generator: torch.Generator) -> dict[str, nn.Module]:
        inner = self.scaled_inputs(decoder)
        return {path: IA3Delta(linear, path in inner) for path, linear in self.matches(decoder).items()}

    def describe(self, decoder: Decoder) -> dict[str, Any]:
        linears = decoder.linears()
        return {
            "target_modules": leaves(self.matches(decoder), linears),
            "feedforward_modules": leaves(self.scaled_inputs(decoder), linears),
            "fan_in_fan_out": False,
            "modules_to_save": None,
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
