"""Cross-entropy at the positions that count, without ever holding all their logits.

Letters: M predictions that count, C channels, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from graftwood.data.batch import Packed
from graftwood.model.decoder import Decoder

CHUNK = 128  # rows of logits alive at once, or more where the vocabulary is small: 25 MB stay in a desktop's cache
_LOGITS = CHUNK * 49_152


def summed_loss(decoder: Decoder, packed: Packed, z_loss: float = 0.0) -> Tensor:
    """Sum of `-log q(target)` over the predictions that count, in nats; a scalar that can be differentiated.

    `z_loss` times the square of each log-normaliser is in the gradient, though not in the value: it keeps logits near
    zero and is no part of what is measured. Source: Chowdhery et al. 2022, arXiv 2204.02311, section 5.
    """
    hidden = decoder.hidden(packed.ids, packed.documents)[0, packed.predict]
    if decoder.config.head_bias or decoder.config.logit_cap is not None:
        return _through_logits(decoder, hidden, packed.targets, z_loss)
    return _ChunkedCrossEntropy.apply(hidden, decoder.head_weight(), packed.targets, z_loss)  # type: ignore[no-untyped-call]


def _through_logits(decoder: Decoder, hidden: Tensor, targets: Tensor, z_loss: float) -> Tensor:
    """The loss of heads that are no plain product, each chunk's logits made once more for its gradient."""

    def chunk_loss(rows: Tensor, target: Tensor) -> Tensor:
        logits = decoder.logits(rows)
        loss = F.cross_entropy(logits, target, reduction="sum")
        if z_loss:
            spread = logits.logsumexp(1).square().sum() * z_loss
            loss = loss + (spread - spread.detach())
        return loss

    total = hidden.new_zeros((), dtype=torch.float32)
    for rows, target in zip(hidden.split(CHUNK), targets.split(CHUNK), strict=True):
        total = total + checkpoint(chunk_loss, rows, target, use_reentrant=False)
    return total


@torch.no_grad()
def token_losses(decoder: Decoder, packed: Packed) -> Tensor:
    """`-log q(target)` of every prediction that counts, [M], nats."""
    hidden = decoder.hidden(packed.ids, packed.documents)[0, packed.predict]
    losses = [
        F.cross_entropy(decoder.logits(part), target, reduction="none")
        for part, target in zip(hidden.split(CHUNK), packed.targets.split(CHUNK), strict=True)
    ]
    return torch.cat(losses) if losses else hidden.new_zeros(0)


class _ChunkedCrossEntropy(torch.autograd.Function):
    """The gradient is made in the forward pass, chunk by chunk, while each chunk's logits are at hand."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor, z_loss: float) -> Tensor:
        wants_hidden, wants_head = ctx.needs_input_grad[0], ctx.needs_input_grad[1]
        weight = head.detach().to(hidden.dtype)
        d_hidden = torch.empty_like(hidden) if wants_hidden else None
        d_head = torch.zeros_like(head) if wants_head else None
        total = hidden.new_zeros((), dtype=torch.float32)
        size = max(CHUNK, _LOGITS // len(head))
        for start in range(0, len(targets), size):
            rows = slice(start, start + size)
            target = targets[rows].unsqueeze(1)
            logits = (hidden[rows] @ weight.T).float()
            normaliser = logits.logsumexp(1, keepdim=True)
            log_shares = logits.sub_(normaliser)
            total -= log_shares.gather(1, target).sum()
            if d_hidden is None and d_head is None:
                continue
            # softmax minus one-hot, in the same buffer
            slope = log_shares.exp_()
            if z_loss:
                slope.mul_(1 + 2 * z_loss * normaliser)
            slope.scatter_add_(1, target, slope.new_full(target.shape, -1.0))
            slope = slope.to(hidden.dtype)
            if d_hidden is not None:
                torch.mm(slope, weight, out=d_hidden[rows])
            if d_head is not None:
                d_head.addmm_(slope.T.to(head.dtype), hidden[rows].to(head.dtype))
        ctx.save_for_backward(d_hidden, d_head)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        d_hidden, d_head = ctx.saved_tensors
        return (
            None if d_hidden is None else d_hidden * grad.to(d_hidden.dtype),
            None if d_head is None else d_head.mul_(grad),
            None,
            None,
        )
