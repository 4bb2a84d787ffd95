"""Decode plans: a decoder's modules over again, with weights stored for products of a few rows.

On a CPU a decode step takes as long as reading every weight once. FBGEMM keeps them in float16 and multiplies in
float32: half the bytes, at a relative error of some 2e-4. Its operators are old and may leave torch, and float16 ends
at 65504, so each matrix must pass a check before it is used; where one does not, the plan multiplies as the decoder.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from graftwood.model.decoder import Decoder
from graftwood.model.layers import Linear, Packed, RMSNorm, project

TOLERANCE = 2e-3
_FLOAT16_MAX = torch.finfo(torch.float16).max

M = TypeVar("M", bound=nn.Module)
Product = Callable[[Tensor], tuple[Tensor, ...]]


def shadow(decoder: Decoder) -> Decoder:
    """The decoder's modules over again, in evaluation mode, on the very same parameters.

    What is replaced or switched in the copy leaves the decoder as it is.
    """
    return _copied(decoder)


@torch.inference_mode()
def decode_plan(decoder: Decoder) -> Decoder:
    """A copy of the decoder for steps of few tokens: its linears packed, deltas merged, as the weights are now."""
    plan = shadow(decoder)
    if plan.config.tied_head:
        head = Linear(0, 0)
        head.weight = plan.embedding.weight
        plan.config = replace(plan.config, tied_head=False)
        parent, _, leaf = plan.architecture.names.head.rpartition(".")
        plan.get_submodule(parent).add_module(leaf, head)
    for module in list(plan.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, Linear):
                setattr(module, name, _Leader(child))
            elif type(child) is RMSNorm and plan.compute_dtype == torch.float32:
                setattr(module, name, _Norm(child))
    # Which linears share an input is known only to the blocks, so one token is sent through to find out.
    cache = plan.new_cache(rows=1, capacity=1)
    plan(torch.zeros(1, 1, dtype=torch.long, device=plan.device), documents=(1,), cache=cache)
    return plan


def _copied(module: M) -> M:
    twin = copy.copy(module)
    twin.__dict__["training"] = False
    twin.__dict__["_parameters"] = dict(module._parameters)
    twin.__dict__["_modules"] = {
        name: None if child is None else _copied(child) for name, child in module._modules.items()
    }
    return twin


class _Leader(Packed):
    """Stands for a linear and packs it, with the others it is projected with, when it is first asked."""

    def __init__(self, linear: Linear) -> None:
        nn.Module.__init__(self)
        self.linear = linear
        self._product: Product | None = None

    def outputs(self, x: Tensor, group: tuple[Linear, ...]) -> tuple[Tensor, ...]:
        if self._product is None:
            linears = [member.linear for member in group if isinstance(member, _Leader)]
            self._product = _packed(linears, x) or (lambda x: project(x, *linears))
        return self._product(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.outputs(x, (self,))[0]


class _Norm(nn.Module):
    """RMSNorm with half of the operators that torch makes of it: `x / hypot(|x|, sqrt(C eps)) * sqrt(C) weight`."""

    def __init__(self, norm: RMSNorm) -> None:
        super().__init__()
        size = norm.weight.shape[0]
        self.weight = nn.Parameter(norm.weight.float() * math.sqrt(size), requires_grad=False)
        self.floor = nn.Parameter(norm.weight.new_tensor(math.sqrt(size * norm.eps)), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return (x / torch.hypot(length, self.floor)).mul_(self.weight)


def _packed(linears: Sequence[Linear], x: Tensor) -> Product | None:
    """The linears as one float16 matrix, or None where that is impossible or not faithful."""
    weights = [weight for linear in linears if (weight := _whole(linear)) is not None]
    if len(weights) < len(linears) or x.device.type != "cpu" or x.dtype != torch.float32:
        return None
    weight = weights[0] if len(weights) == 1 else torch.cat(weights)
    bias = _biases(linears)
    least, most = weight.aminmax()
    if not -_FLOAT16_MAX <= least <= most <= _FLOAT16_MAX:
        return None
    try:
        prepared = torch.ops.quantized.linear_prepack_fp16(weight, bias)
        multiply = torch.ops.quantized.linear_dynamic_fp16.default
        if not _faithful(multiply, prepared, weight, bias):
            return None
    except (AttributeError, RuntimeError):  # a torch, or a processor, without these operators
        return None
    if len(linears) == 1:
        return lambda x: (multiply(x, prepared),)
    sizes = [linear.weight.shape[0] for linear in linears]
    return lambda x: torch.split_with_sizes(multiply(x, prepared), sizes, dim=-1)


def _faithful(multiply: Callable[..., Tensor], prepared: object, weight: Tensor, bias: Tensor | None) -> bool:
    probe = torch.randn(2, weight.shape[1], generator=torch.Generator().manual_seed(0))
    expected = F.linear(probe, weight, bias)
    error = (multiply(probe, prepared) - expected).norm() / expected.norm()
    return bool(error < TOLERANCE)


def _whole(linear: Linear) -> Tensor | None:
    """The float32 weight that computes all the linear does, or None where its delta is no change of the weight."""
    if linear.delta is None:
        return linear.weight.float()
    merged = getattr(linear.delta, "merged", None)
    return None if merged is None else merged(linear).float()


def _biases(linears: Sequence[Linear]) -> Tensor | None:
    if all(linear.bias is None for linear in linears):
        return None
    return torch.cat([_bias(linear) for linear in linears]).float()


def _bias(linear: Linear) -> Tensor:
    if linear.bias is None:
        return linear.weight.new_zeros(len(linear.weight))
    merged = getattr(linear.delta, "merged_bias", None)
    return linear.bias if merged is None else merged(linear.bias)
