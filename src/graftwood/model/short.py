"""Causal attention of short rows, written out: their products are small, and a general kernel's backward costs more.

Letters: B batch, T tokens, S keys, H heads, D head size.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from graftwood.runtime import products_are_wide

# Tokens up to which it is the faster on a processor, forward and backward; and where products are wide, without a
# backward or under a mask as well: see docs/log.md.
SHORT, SHORT_WIDE = 128, 512
_KEPT = 128  # keys up to which the shares are kept for the backward; of more they are larger than the rest of a block


def is_short(q_BTHD: Tensor, keys: int, masked: bool) -> bool:
    """Whether to write out what queries make of this many keys."""
    if q_BTHD.device.type != "cpu":
        return False
    if products_are_wide() and q_BTHD.dtype == torch.float32:
        return max(keys, q_BTHD.shape[1]) <= SHORT_WIDE
    return q_BTHD.requires_grad and not masked and keys <= SHORT


def short_attention(
    q_BTHD: Tensor, k_BSHD: Tensor, v_BSHD: Tensor, scale: float, mask_TS: Tensor | None = None
) -> Tensor:
    """Values weighted by softmax(q k^T * scale), [B, T, H, D], under the mask (True: visible), else the causal one."""
    hidden = _later(q_BTHD.shape[1], q_BTHD.dtype) if mask_TS is None else _added(mask_TS, q_BTHD.dtype)
    return _Short.apply(q_BTHD, k_BSHD, v_BSHD, scale, hidden)  # type: ignore[no-untyped-call]


class _Short(torch.autograd.Function):
    """The scores and their gradient each have one buffer. Rows of all heads are in the order that `rotate` leaves."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float, hidden: Tensor) -> Tensor:
        ctx.shapes, ctx.scale = (q.shape, k.shape), scale
        ctx.hidden = hidden  # no gradient, and one that is kept may be of inference
        q, k, v = (_by_head(y) for y in (q, k, v))
        shares = _shares(q, k, hidden, scale)
        ctx.save_for_backward(q, k, v, shares if k.shape[1] <= _KEPT else None)
        return _by_token(torch.bmm(shares, v), ctx.shapes[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, shares = ctx.saved_tensors
        if shares is None:
            shares = _shares(q, k, ctx.hidden, ctx.scale)
        grad = _by_head(grad)
        dv = torch.bmm(shares.mT, grad)
        slope = torch.bmm(grad, v.mT)
        torch.ops.aten._softmax_backward_data.out(slope, shares, -1, slope.dtype, grad_input=slope)
        dq = torch.baddbmm(q, slope, k, beta=0, alpha=ctx.scale)  # beta 0: a product with a factor and nothing added
        dk = torch.baddbmm(k, slope.mT, q, beta=0, alpha=ctx.scale)
        own, seen = ctx.shapes
        return _by_token(dq, own), _by_token(dk, seen), _by_token(dv, seen), None, None


def _shares(q: Tensor, k: Tensor, hidden: Tensor, scale: float) -> Tensor:
    scores = torch.baddbmm(hidden, q, k.mT, alpha=scale)
    return torch.softmax(scores, -1, out=scores)


def _by_head(y_BTHD: Tensor) -> Tensor:
    """[H * B, T, D]."""
    return y_BTHD.permute(2, 0, 1, 3).reshape(-1, y_BTHD.shape[1], y_BTHD.shape[3])


def _by_token(y: Tensor, shape: torch.Size) -> Tensor:
    batch, tokens, heads, size = shape
    return y.view(heads, batch, tokens, size).permute(1, 2, 0, 3)


@lru_cache(maxsize=SHORT_WIDE)
def _later(tokens: int, dtype: torch.dtype) -> Tensor:
    """What is added to scores, [T, T]: -inf for tokens that come later."""
    return torch.full((tokens, tokens), -torch.inf, dtype=dtype).triu_(1)


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """The mask as what is added to scores."""
    return torch.zeros(mask.shape, dtype=dtype).masked_fill_(~mask, -torch.inf)
