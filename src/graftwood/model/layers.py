"""The parts every family is composed from: linear, norm, gated activation, rotary positions.

Letters: B batch, T tokens, C channels, H heads, D head size, N tokens of all documents together, R rank.

Three of the parts have a hand-written backward. Autograd's own is right but wasteful on a CPU, where each pass over a
`[N, C]` tensor costs as much as many matmul rows: it materialises one gradient per consumer and adds them up, and
keeps intermediates that are cheap to compute again. A norm and a gated activation keep their inputs for their own
backward, so the projection that reads their output keeps nothing: it has them make it `again`. The laws in
`tests/laws` hold each to autograd's result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from graftwood.model.config import Activation


class Delta(Protocol):
    """What a technique may put on a linear: it sees the linear and its input and returns the output."""

    def __call__(self, linear: Linear, x: Tensor) -> Tensor: ...


@runtime_checkable
class LowRank(Protocol):
    """A delta of the form `scale * B @ A`, which the fused projection knows how to train."""

    def factors(self) -> tuple[Tensor, Tensor, float] | None:
        """`(A [R, in], B [out, R], scale)`, or None when the update is not that plain now (dropout, say)."""


class Linear(nn.Module):
    """`y = x W^T + b`. `delta` is the seam for techniques: None, or what replaces the plain product.

    Shapes: weight [out, in], bias [out].
    """

    delta: nn.Module | None

    def __init__(self, inputs: int, outputs: int, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.bias = nn.Parameter(torch.empty(outputs)) if bias else None
        self.delta = None

    def plain(self, x: Tensor) -> Tensor:
        """The product without any delta, in the input's dtype."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.weight.to(x.dtype), bias)

    def frozen(self, dtype: torch.dtype) -> Tensor | Linear | None:
        """What has the weight for a product that does not train it, or None where it trains or is of another dtype."""
        return None if self.weight.requires_grad or self.weight.dtype != dtype else self.weight

    def forward(self, x: Tensor) -> Tensor:
        return project(x, self)[0]


def project(x: Tensor, *linears: Linear) -> tuple[Tensor, ...]:
    """Several linears applied to one input, sharing one input gradient.

    Shapes: x [..., in] -> one [..., out_i] for each linear.
    """
    if torch.is_grad_enabled():
        plan = _low_rank_plan(x, linears)
        if plan is not None:
            return _FrozenProjection.apply(x, *plan)  # type: ignore[no-untyped-call]
    if isinstance(linears[0], Packed):
        return linears[0].outputs(x, linears)
    return tuple(linear.plain(x) if linear.delta is None else linear.delta(linear, x) for linear in linears)


class Packed(Linear):
    """A linear of a decode plan. The first of a group answers for all of it, in whatever form the plan stores it."""

    def outputs(self, x: Tensor, group: tuple[Linear, ...]) -> tuple[Tensor, ...]:
        """One output for each linear of the group that this one leads."""
        raise AssertionError("implemented by the decoding engine")


def _low_rank_plan(x: Tensor, linears: tuple[Linear, ...]) -> list[Any] | None:
    plan: list[Any] = []
    for linear in linears:
        weight = linear.frozen(x.dtype)
        if linear.bias is not None or weight is None:
            return None
        if linear.delta is None:
            plan += (weight, None, None, 0.0)
            continue
        factors = linear.delta.factors() if isinstance(linear.delta, LowRank) else None
        if factors is None:
            return None
        plan += (weight, factors[0].to(x.dtype), factors[1].to(x.dtype), factors[2])
    return plan


class _FrozenProjection(torch.autograd.Function):
    """Frozen matrices plus low-rank updates on one input: one input gradient, accumulated in place.

    A matrix that is quantised stands for itself as its linear, and is made whole here and once more on the way back.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, *plan: Any) -> tuple[Tensor, ...]:
        rows = x.reshape(-1, x.shape[-1])
        ctx.maker = x.grad_fn if hasattr(x.grad_fn, "again") else None
        outputs: list[Tensor] = []
        saved: list[Tensor | None] = [rows if ctx.maker is None else None]
        scales: list[float] = []
        for frozen, a, b, scale in zip(*(plan[i::4] for i in range(4)), strict=True):
            y = rows @ _whole(frozen).T
            low = None
            if a is not None:
                low = rows @ a.T
                y.addmm_(low, b.T, alpha=scale)
            outputs.append(y.view(*x.shape[:-1], -1))
            saved += (a, b, low)
            scales.append(scale)
        ctx.save_for_backward(*saved)
        ctx.frozen, ctx.scales = plan[::4], scales
        ctx.shape = x.shape
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | float | None, ...]:
        rows, *rest = ctx.saved_tensors
        if rows is None:
            # The maker's own backward comes after this one, so what it keeps is still there.
            rows = ctx.maker.again(ctx.maker).view(-1, ctx.shape[-1])
        wants_x = ctx.needs_input_grad[0]
        dx: Tensor | None = None
        result: list[Tensor | None] = []
        for index, (grad, frozen, scale) in enumerate(zip(grads, ctx.frozen, ctx.scales, strict=True)):
            a, b, low = rest[3 * index : 3 * index + 3]
            dy = grad.reshape(-1, grad.shape[-1])
            if wants_x:
                weight = _whole(frozen)
                dx = dy @ weight if dx is None else dx.addmm_(dy, weight)
            da = db = None
            if a is not None:
                dlow = (dy @ b).mul_(scale)
                da = dlow.T @ rows
                db = (low.T @ dy).mul_(scale).T  # half again as fast as the transposed product
                if dx is not None:
                    dx.addmm_(dlow, a)
            result += (None, da, db, None)
        return (None if dx is None else dx.view(ctx.shape), *result)


def _whole(frozen: Tensor | Linear) -> Tensor:
    return frozen if isinstance(frozen, Tensor) else frozen.weight


class RMSNorm(nn.Module):
    """`x / rms(x) * weight`, computed in float32. Source: Zhang and Sennrich 2019, arXiv 1910.07467, eq. 4."""

    start = 1.0  # what the weight is before it learns

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and x.requires_grad and x.dtype == self.weight.dtype == torch.float32:
            norm = _TrainedNorm if self.weight.requires_grad else _FrozenNorm
            return norm.apply(x, self.weight, self.eps)  # type: ignore[no-untyped-call]
        return F.rms_norm(x.float(), x.shape[-1:], self.weight.float(), self.eps).to(x.dtype)


class OffsetRMSNorm(RMSNorm):
    """RMSNorm whose weight is what its gain differs from one by, as the Gemma family stores it."""

    start = 0.0

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), x.shape[-1:], self.weight.float() + 1.0, self.eps).to(x.dtype)


class LayerNorm(nn.Module):
    """`(x - mean(x)) / std(x) * weight + bias`, in float32. Source: Ba et al. 2016, arXiv 1607.06450, eq. 4."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.bias = nn.Parameter(torch.empty(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.float(), x.shape[-1:], self.weight.float(), self.bias.float(), self.eps).to(x.dtype)


class _FrozenNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        inverse = torch.linalg.vecdot(x, x).div_(x.shape[-1]).add_(eps).rsqrt_().unsqueeze(-1)
        ctx.save_for_backward(x, weight, inverse)
        ctx.again = _FrozenNorm.again
        return (x * inverse).mul_(weight)

    @staticmethod
    def again(ctx: Any) -> Tensor:
        x, weight, inverse = ctx.saved_tensors
        return (x * inverse).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        x, weight, inverse = ctx.saved_tensors
        dx = grad * weight
        share = torch.linalg.vecdot(dx, x).unsqueeze(-1).mul_(inverse**3).div_(-x.shape[-1])
        return dx.mul_(inverse).addcmul_(x, share), None, None


class _TrainedNorm(torch.autograd.Function):
    """Half the passes over memory that torch's own makes on a processor, forward and backward together."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        inverse = x.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
        normed = x * inverse
        ctx.save_for_backward(normed, weight, inverse)
        return normed * weight

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        normed, weight, inverse = ctx.saved_tensors
        product = grad * normed
        share = (product @ weight).unsqueeze(-1).div_(-normed.shape[-1])
        d_weight = product.flatten(0, -2).sum(0)
        return (grad * weight).addcmul_(normed, share).mul_(inverse), d_weight, None


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """`silu(gate) * up`, keeping only its inputs for the backward. Source: Shazeer 2020, arXiv 2002.05202, eq. 6."""
    if torch.is_grad_enabled() and gate.requires_grad:
        return _SwiGLU.apply(gate, up)  # type: ignore[no-untyped-call]
    return F.silu(gate).mul_(up)


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.parts = None
        ctx.again = _SwiGLU.again
        return F.silu(gate).mul_(up)

    @staticmethod
    def again(ctx: Any) -> Tensor:
        gate, up = ctx.saved_tensors
        ctx.parts = _SwiGLU._parts(gate)  # for the backward, which comes next
        return ctx.parts[1] * up

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        sigmoid, silu = _SwiGLU._parts(gate) if ctx.parts is None else ctx.parts
        ctx.parts = None
        slope = torch.lerp(silu, silu.new_ones(()), sigmoid, out=sigmoid)  # silu + sigmoid (1 - silu)
        return slope.mul_(up).mul_(grad), silu.mul_(grad)

    @staticmethod
    def _parts(gate: Tensor) -> tuple[Tensor, Tensor]:
        sigmoid = torch.sigmoid(gate)
        return sigmoid, gate * sigmoid


ACTIVATIONS: Mapping[Activation, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
}


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each head's halves by their position's angle; dimensions past those of the tables stay.

    Shapes: x [B, T, H, D]; cos and sin broadcast to [B, T, 1, D/2].
    """
    if torch.is_grad_enabled() and x.requires_grad:
        return _Rotate.apply(x, cos, sin)  # type: ignore[no-untyped-call]
    return _turned(x, cos, sin, 1.0, _by_head(x))


def _turned(x: Tensor, cos: Tensor, sin: Tensor, sign: float, out: Tensor) -> Tensor:
    half = cos.shape[-1]
    # Both halves in one product: shorter runs of memory take three times as long.
    torch.mul(x[..., : 2 * half], torch.cat((cos, cos), -1), out=out[..., : 2 * half])
    out[..., :half].addcmul_(x[..., half : 2 * half], sin, value=-sign)
    out[..., half : 2 * half].addcmul_(x[..., :half], sin, value=sign)
    if 2 * half < x.shape[-1]:
        out[..., 2 * half :] = x[..., 2 * half :]
    return out


def _by_head(x_BTHD: Tensor) -> Tensor:
    """Room for as much, in memory as attention's products read it: heads apart, then tokens."""
    return torch.empty_like(x_BTHD.transpose(-3, -2), memory_format=torch.contiguous_format).transpose(-3, -2)


def rotate_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`rotate` for heads whose pairs are neighbours: dimensions 0 and 1, 2 and 3, and so on."""
    size = 2 * cos.shape[-1]
    even, odd = x[..., 0:size:2], x[..., 1:size:2]
    turned = torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1).flatten(-2)
    return torch.cat((turned, x[..., size:]), dim=-1)


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turned(x, cos, sin, 1.0, _by_head(x))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        out = torch.empty_like(grad, memory_format=torch.contiguous_format)  # as projections read it
        return _turned(grad, cos, sin, -1.0, out), None, None
