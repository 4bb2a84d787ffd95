"""Losses at the positions that count, without ever holding all their logits.

Letters: M predictions that count, C channels, V vocabulary, K tokens kept of what a teacher expected.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from graftwood.data.batch import Packed
from graftwood.model.decoder import Decoder

CHUNK = 128  # rows of logits alive at once, or more where the vocabulary is small: 25 MB stay in a desktop's cache
_LOGITS = CHUNK * 49_152

# From log-probabilities [m, V], the target's [m, 1] and which of the M predictions these are, to a weight for each,
# [m, 1]; it takes no gradient.
Gate = Callable[[Tensor, Tensor, slice], Tensor]


class Objective(Protocol):
    """What is summed over predictions: its value, and its slope along the logits."""

    def __len__(self) -> int:
        """M."""

    def slope(self, logits: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        """Summed value of these rows and its slope, [m, V]; `logits` may be overwritten."""


@dataclass(frozen=True)
class CrossEntropy:
    """`-log q(target)` in nats.

    What `z_loss` and `gate` do is in the gradient, though not in the value, so that losses stay comparable. `z_loss`
    times the square of each log-normaliser keeps logits near zero (Chowdhery et al. 2022, arXiv 2204.02311, section 5);
    `gate` weighs each prediction.
    """

    targets: Tensor
    z_loss: float = 0.0
    gate: Gate | None = None

    def __len__(self) -> int:
        return len(self.targets)

    def slope(self, logits: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        """Softmax minus one-hot."""
        target = self.targets[rows].unsqueeze(1)
        # Softmax makes fewer passes than its parts; the largest share, which is never tiny, tells the normaliser.
        top, wanted = logits.amax(1, keepdim=True), logits.gather(1, target)
        slope = torch.softmax(logits, 1, out=logits if self.gate is None else None)
        normaliser = top - slope.amax(1, keepdim=True).log()
        right = wanted - normaliser
        weight = None if self.gate is None else self.gate(logits.sub_(normaliser), right, rows)
        if self.z_loss:
            slope.mul_(1 + 2 * self.z_loss * normaliser)
        slope.scatter_add_(1, target, slope.new_full(target.shape, -1.0))
        return -right.sum(), slope if weight is None else slope.mul_(weight)


@dataclass(frozen=True)
class Divergence:
    """KL(p || q) in nats to a teacher of whom the likeliest tokens and the mass of all others are kept.

    The others are one event, so the value is at most the divergence of the whole distributions, and within them only
    the mass is pulled. `without` are tokens that neither has: q is made as if there were none, as p was.

    Shapes: words [M, K]; log_p [M, K + 1]; without [M].
    """

    words: Tensor
    log_p: Tensor
    without: Tensor | None = None

    def __len__(self) -> int:
        return len(self.words)

    def slope(self, logits: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        """Along a kept token's logit `q - p`; along another's `q (1 - rest_p / rest_q)`: they all stand for one."""
        words, log_p = self.words[rows].long(), self.log_p[rows]
        if self.without is not None:
            logits.scatter_(1, self.without[rows].unsqueeze(1), -torch.inf)
        q = torch.softmax(logits, 1, out=logits)
        kept_q, kept_p = q.gather(1, words), log_p[:, :-1].exp()
        rest_p, rest_q = log_p[:, -1:].exp(), (1 - kept_q.sum(1, keepdim=True)).clamp_min(1e-7)
        value = (kept_p * (log_p[:, :-1] - kept_q.clamp_min(1e-30).log())).sum()
        value = value + (rest_p * (log_p[:, -1:] - rest_q.log())).sum()
        slope = q.mul_(1 - rest_p / rest_q)
        return value, slope.scatter_(1, words, kept_q - kept_p)


def summed_loss(decoder: Decoder, packed: Packed, z_loss: float = 0.0, gate: Gate | None = None) -> Tensor:
    """Sum of `-log q(target)` over the predictions that count, in nats; a scalar that can be differentiated."""
    return summed(decoder, predicting(decoder, packed), CrossEntropy(packed.targets, z_loss, gate))


def predicting(decoder: Decoder, packed: Packed) -> Tensor:
    """Final hidden states of the tokens whose next one counts, [M, C]."""
    only = None if len(packed.predict) == packed.tokens else packed.predict
    return decoder.hidden(packed.ids, packed.documents, entering=packed.entering, only=only)[0]


def summed(decoder: Decoder, hidden: Tensor, objective: Objective) -> Tensor:
    """An objective over final hidden states [M, C]; a scalar that can be differentiated."""
    if decoder.config.head_bias or decoder.config.logit_cap is not None:
        return _through_logits(decoder, hidden, objective)
    return _Chunked.apply(hidden, decoder.head_weight(), objective)  # type: ignore[no-untyped-call]


@torch.no_grad()
def token_losses(decoder: Decoder, packed: Packed) -> Tensor:
    """`-log q(target)` of every prediction that counts, [M], nats."""
    hidden = predicting(decoder, packed)
    losses = [
        F.cross_entropy(decoder.logits(part), target, reduction="none")
        for part, target in zip(hidden.split(CHUNK), packed.targets.split(CHUNK), strict=True)
    ]
    return torch.cat(losses) if losses else hidden.new_zeros(0)


def _through_logits(decoder: Decoder, hidden: Tensor, objective: Objective) -> Tensor:
    """The loss of heads that are no plain product, each chunk's logits made once more for its gradient."""

    def chunk_loss(part: Tensor, start: int) -> Tensor:
        rows = slice(start, start + len(part))
        return _AtLogits.apply(decoder.logits(part), objective, rows)  # type: ignore[no-untyped-call]

    total = hidden.new_zeros((), dtype=torch.float32)
    for start in range(0, len(objective), CHUNK):
        total = total + checkpoint(chunk_loss, hidden[start : start + CHUNK], start, use_reentrant=False)
    return total


class _AtLogits(torch.autograd.Function):
    """An objective as a function of logits."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, objective: Objective, rows: slice) -> Tensor:
        value, slope = objective.slope(logits.detach().clone(), rows)
        ctx.save_for_backward(slope)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return ctx.saved_tensors[0] * grad, None, None


class _Chunked(torch.autograd.Function):
    """The gradient is made in the forward pass, chunk by chunk, while each chunk's logits are at hand."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, objective: Objective) -> Tensor:
        wants_hidden, wants_head = ctx.needs_input_grad[0], ctx.needs_input_grad[1]
        weight = head.detach().to(hidden.dtype)
        d_hidden = torch.empty_like(hidden) if wants_hidden else None
        d_head = torch.zeros_like(head) if wants_head else None
        total = hidden.new_zeros((), dtype=torch.float32)
        size = max(CHUNK, _LOGITS // len(head))
        for start in range(0, len(objective), size):
            rows = slice(start, start + size)
            value, slope = objective.slope((hidden[rows] @ weight.T).float(), rows)
            total += value
            if d_hidden is None and d_head is None:
                continue
            slope = slope.to(hidden.dtype)
            if d_hidden is not None:
                torch.mm(slope, weight, out=d_hidden[rows])
            if d_head is not None:
                d_head.addmm_(slope.T.to(head.dtype), hidden[rows].to(head.dtype))
        ctx.save_for_backward(d_hidden, d_head)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        d_hidden, d_head = ctx.saved_tensors
        return (
            None if d_hidden is None else d_hidden * grad.to(d_hidden.dtype),
            None if d_head is None else d_head.mul_(grad),
            None,
        )
