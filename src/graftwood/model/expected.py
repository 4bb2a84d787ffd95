"""What a model expects after each token of a text: the likeliest next tokens and the mass of all others.

Dropping detail can only lower a divergence (data-processing inequality), and what is kept of the base is compared with
a tuned model whether or not the base still exists in memory.

Letters: W windows, T tokens, K tokens kept, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from graftwood.model.decoder import Decoder

KEPT = 64
_TOGETHER = 8


@dataclass(frozen=True)
class Expected:
    """Windows of text and what a model expected after each token.

    Shapes: ids [W, T]; words [W, T, K] ids of its likeliest next tokens, likeliest first; log_p [W, T, K + 1] their
    log-probabilities and, last, that of all other tokens together.
    """

    ids: Tensor
    words: Tensor
    log_p: Tensor

    def split(self, windows: int) -> tuple[Expected, Expected]:
        """The first windows, and the others."""
        parts = [(part[:windows], part[windows:]) for part in (self.ids, self.words, self.log_p)]
        first, others = (Expected(*side) for side in zip(*parts, strict=True))
        return first, others


@torch.inference_mode()
def expect(decoder: Decoder, ids: Tensor) -> Expected:
    """What a model expects after each token of the windows."""
    told = [likeliest(logits) for logits in window_logits(decoder, ids)]
    words, log_p = (torch.stack([one[part].cpu() for one in told]) for part in (0, 1))
    return Expected(ids, words, log_p)


def likeliest(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The likeliest tokens, [..., K], and their log-probabilities with that of the rest, [..., K + 1]."""
    top = logits.log_softmax(-1).topk(min(KEPT, logits.shape[-1]), dim=-1)
    return top.indices, with_rest(top.values)


def window_logits(decoder: Decoder, ids: Tensor) -> Iterator[Tensor]:
    """Logits after every token of a window, [T, V], window by window; the blocks are passed by several at once."""
    length = ids.shape[1]
    for group in ids.to(decoder.device).split(_TOGETHER):
        hidden = decoder.hidden(group.reshape(1, -1), (length,) * len(group))
        yield from map(decoder.logits, hidden.view(len(group), length, -1))


def with_rest(log_probabilities: Tensor) -> Tensor:
    """Append the log-probability of everything that is not among the tokens kept."""
    rest = (1.0 - log_probabilities.exp().sum(-1, keepdim=True)).clamp_min(1e-7).log()
    return torch.cat([log_probabilities, rest], dim=-1)
