"""How the next token is chosen from logits: greedily, or drawn after the usual filters."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from graftwood.errors import ConfigError

# Sorting a whole vocabulary takes as long as a decode step; the mass is nearly always within the first of it.
_CANDIDATES = 1024
# A colder temperature leaves only the likeliest of what float32 tells apart, or divides into infinity.
_COLD = 1e-8


@dataclass(frozen=True)
class Sampling:
    """How to generate. A temperature of 0 is greedy; the filters after it then do nothing.

    Of the tokens, `top_k` keeps the most probable so many (0: all), `top_p` the fewest that reach that mass, `min_p`
    those at least that share of the most probable one. `repetition_penalty` divides positive logits of tokens seen and
    multiplies negative ones. `ignore_eos` goes on after an end token as after any other. Units: `max_tokens` in tokens,
    `stop` are texts. Raises: ConfigError listing all that is out of range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    max_tokens: int = 256
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        allowed = {
            "temperature": (0 <= self.temperature < math.inf, "0 (greedy) or more"),
            "top_k": (self.top_k >= 0, "0 (all tokens) or more"),
            "top_p": (0 < self.top_p <= 1, "above 0, up to 1 (all tokens)"),
            "min_p": (0 <= self.min_p <= 1, "from 0 (all tokens) to 1"),
            "repetition_penalty": (0 < self.repetition_penalty < math.inf, "above 0; 1 changes nothing"),
            "max_tokens": (self.max_tokens >= 1, "1 or more"),
            "stop": (all(self.stop) and not isinstance(self.stop, str), "a tuple of texts, none of them empty"),
        }
        wrong = [
            f"{name}={getattr(self, name)!r} is not {words}" for name, (fine, words) in allowed.items() if not fine
        ]
        if wrong:
            raise ConfigError("sampling: " + "; ".join(wrong))


def row_generator(seed: int, row: int) -> torch.Generator:
    """The random stream of one row, the same whatever rows are beside it."""
    digest = hashlib.sha256(f"{seed} {row}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))


def choose(
    logits_BV: Tensor, sampling: Sampling, generators: Sequence[torch.Generator], seen_BV: Tensor | None = None
) -> Tensor:
    """The next token of every row, [B]. `seen_BV` marks the tokens that the repetition penalty is for.

    Filters come in the order of Hugging Face's `generate`: penalty, temperature, top-k, top-p, min-p.
    """
    logits = logits_BV
    if seen_BV is not None and sampling.repetition_penalty != 1:
        logits = _penalised(logits, seen_BV, sampling.repetition_penalty)
    if sampling.temperature < _COLD:
        return logits.argmax(-1)
    logits = logits / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1]:
        least = logits.topk(sampling.top_k).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if sampling.top_p < 1:
        logits = _nucleus(logits, sampling.top_p)
    if sampling.min_p > 0:
        least = logits.amax(-1, keepdim=True) + math.log(sampling.min_p)
        logits = logits.masked_fill(logits < least, -torch.inf)
    return _draw(logits, generators)


def _penalised(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def _nucleus(logits: Tensor, mass: float) -> Tensor:
    """Drop what comes after the tokens that reach `mass`. Source: Holtzman et al. 2019, arXiv 1904.09751, eq. 2."""
    total = logits.logsumexp(-1, keepdim=True)
    candidates = _CANDIDATES
    while True:
        ordered, order = logits.topk(min(candidates, logits.shape[-1]))
        probabilities = (ordered - total).exp()
        late = probabilities.cumsum(-1) - probabilities >= mass
        if candidates >= logits.shape[-1] or late[:, -1].all():
            dropped = torch.ones_like(logits, dtype=torch.bool).scatter(-1, order, late)
            return logits.masked_fill(dropped, -torch.inf)
        candidates = logits.shape[-1]


def _draw(logits: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    # One number a row picks from its cumulative distribution; in float64 it is below the total and steps stay distinct.
    cumulative = logits.softmax(-1).cumsum(-1, dtype=torch.float64)
    numbers = [torch.rand(1, dtype=torch.float64, generator=generator) for generator in generators]
    points = torch.stack(numbers).to(logits.device) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, points, right=True).squeeze(-1)
