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
    q_BTHD: Tensor, k_BSGD: Tensor, v_BSGD: Tensor, scale: float, mask_TS: Tensor | None = None
) -> Tensor:
    """Values weighted by softmax(q k^T * scale), [B, T, H, D], under the mask (True: visible), else the causal one.

    Where several heads share keys, G < H, their queries stand below each other in one product.
    """
    shared = q_BTHD.shape[2] // k_BSGD.shape[2]
    if mask_TS is None:
        hidden = _later(q_BTHD.shape[1], shared, q_BTHD.dtype)
    else:
        hidden = torch.zeros(mask_TS.shape, dtype=q_BTHD.dtype).masked_fill_(~mask_TS, -torch.inf).repeat(shared, 1)
    return _Short.apply(q_BTHD, k_BSGD, v_BSGD, scale, hidden)  # type: ignore[no-untyped-call]


class _Short(torch.autograd.Function):
    """The scores and their gradient each have one buffer. Rows of all heads are in the order that `rotate` leaves."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float, hidden: Tensor) -> Tensor:
        ctx.shapes, ctx.scale = (q.shape, k.shape), scale
        ctx.hidden = hidden  # no gradient, and one that is kept may be of inference
        groups = k.shape[2]
        q, k, v = (_by_group(y, groups) for y in (q, k, v))
        shares = _shares(q, k, hidden, scale)
        ctx.save_for_backward(q, k, v, shares if k.shape[1] <= _KEPT else None)
        return _by_token(torch.bmm(shares, v), ctx.shapes[0], groups)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, shares = ctx.saved_tensors
        if shares is None:
            shares = _shares(q, k, ctx.hidden, ctx.scale)
        own, seen = ctx.shapes
        groups = seen[2]
        grad = _by_group(grad, groups)
        dv = torch.bmm(shares.mT, grad)
        slope = torch.bmm(grad, v.mT)
        torch.ops.aten._softmax_backward_data.out(slope, shares, -1, slope.dtype, grad_input=slope)
        dq = torch.baddbmm(q, slope, k, beta=0, alpha=ctx.scale)  # beta 0: a product with a factor and nothing added
        dk = torch.baddbmm(k, slope.mT, q, beta=0, alpha=ctx.scale)
        return _by_token(dq, own, groups), _by_token(dk, seen, groups), _by_token(dv, seen, groups), None, None


def _shares(q: Tensor, k: Tensor, hidden: Tensor, scale: float) -> Tensor:
    scores = torch.baddbmm(hidden, q, k.mT, alpha=scale)
    return torch.softmax(scores, -1, out=scores)


def _by_group(y_BTHD: Tensor, groups: int) -> Tensor:
    """[G * B, H / G * T, D]."""
    batch, tokens, heads, size = y_BTHD.shape
    apart = y_BTHD.view(batch, tokens, groups, heads // groups, size).permute(2, 0, 3, 1, 4)
    return apart.reshape(groups * batch, -1, size)


def _by_token(y: Tensor, shape: torch.Size, groups: int) -> Tensor:
    batch, tokens, heads, size = shape
    return y.view(groups, batch, heads // groups, tokens, size).permute(1, 3, 0, 2, 4).reshape(shape)


@lru_cache(maxsize=32)  # the lengths of a pack or two, which every layer asks for; of all lengths it would be gigabytes
def _later(tokens: int, times: int, dtype: torch.dtype) -> Tensor:
    """What is added to scores, [times * T, T]: -inf for tokens that come later."""
    return torch.full((tokens, tokens), -torch.inf, dtype=dtype).triu_(1).repeat(times, 1)
