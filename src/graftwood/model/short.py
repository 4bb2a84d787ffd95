"""Causal attention of short rows, written out: their products are small, and a general kernel's backward costs more.

Letters: B batch, T tokens, H heads, D head size.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

SHORT = 128  # tokens up to which it is the faster, forward and backward, on a processor: see docs/log.md


def short_attention(q_BTHD: Tensor, k_BTHD: Tensor, v_BTHD: Tensor, scale: float) -> Tensor:
    """Values weighted by softmax(q k^T * scale) under the causal mask, [B, T, H, D]."""
    return _Short.apply(q_BTHD, k_BTHD, v_BTHD, scale)  # type: ignore[no-untyped-call]


class _Short(torch.autograd.Function):
    """The scores and their gradient each have one buffer. Rows of all heads are in the order that `rotate` leaves."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        ctx.shape, ctx.scale = q.shape, scale
        q, k, v = (_by_head(y) for y in (q, k, v))
        scores = torch.baddbmm(_later(q.shape[1], q.dtype), q, k.mT, alpha=scale)
        shares = torch.softmax(scores, -1, out=scores)
        ctx.save_for_backward(q, k, v, shares)
        return _by_token(torch.bmm(shares, v), ctx.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, shares = ctx.saved_tensors
        grad = _by_head(grad)
        dv = torch.bmm(shares.mT, grad)
        slope = torch.bmm(grad, v.mT)
        torch.ops.aten._softmax_backward_data.out(slope, shares, -1, slope.dtype, grad_input=slope)
        dq = torch.baddbmm(dv, slope, k, beta=0, alpha=ctx.scale)  # beta 0: a product with a factor and nothing added
        dk = torch.baddbmm(dv, slope.mT, q, beta=0, alpha=ctx.scale)
        return _by_token(dq, ctx.shape), _by_token(dk, ctx.shape), _by_token(dv, ctx.shape), None


def _by_head(y_BTHD: Tensor) -> Tensor:
    """[H * B, T, D]."""
    return y_BTHD.permute(2, 0, 1, 3).reshape(-1, y_BTHD.shape[1], y_BTHD.shape[3])


def _by_token(y: Tensor, shape: torch.Size) -> Tensor:
    batch, tokens, heads, size = shape
    return y.view(heads, batch, tokens, size).permute(1, 2, 0, 3)


@lru_cache(maxsize=SHORT)
def _later(tokens: int, dtype: torch.dtype) -> Tensor:
    """What is added to scores, [T, T]: -inf for tokens that come later."""
    return torch.full((tokens, tokens), -torch.inf, dtype=dtype).triu_(1)
