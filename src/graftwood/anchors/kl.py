"""The tuned model is held to what the base expects, after each token of text that the base wrote or of the rows.

What the base expects is computed once and kept, so a step costs its own forward and backward alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from graftwood.anchor import Anchor, Ground
from graftwood.data.batch import Packed, Trickle
from graftwood.model.decoder import Decoder
from graftwood.model.expected import Expected, likeliest
from graftwood.technique import Technique
from graftwood.train.hold import Hold
from graftwood.train.loss import CHUNK, Divergence, Objective, predicting, summed

_NEVER = -80.0  # log-probability


class KL(Anchor):
    """Divergence from the base on its own samples, or on the answers of the rows.

    On the rows it pulls against what they teach; `masked` leaves the answer's own token out of both distributions, so
    that only what is said of all others is held (mask the target).
    """

    name: ClassVar[str] = "kl"
    title: ClassVar[str] = "divergence from the base"
    formula: ClassVar[str] = "loss + weight * KL(base || tuned), a mean over tokens the base wrote, or over the answers"
    cost: ClassVar[str] = (
        "`share` of the tokens more, with logits at each of them, and the base's samples once a base; on the rows one "
        "forward over them before, and logits of each answer token once more"
    )
    source: ClassVar[str] = "arXiv 2505.13811; arXiv 2605.26097; masked arXiv 2605.29498"

    on: Annotated[
        Literal["replay", "task", "masked"],
        Field(description="the base's own text, the rows' answers, or those without the answer's own token"),
    ] = "replay"
    weight: Annotated[float, Field(ge=0, description="what the divergence is multiplied with")] = 5.0
    share: Annotated[
        float, Field(gt=0, le=4, description="of `replay`: tokens of the base's text a token of the rows")
    ] = 0.125
    windows: Annotated[
        int | None,
        Field(ge=1, description="of `replay`: samples of 128 tokens; by default 48 to 192, by the steps"),
    ] = None

    def problems(self, technique: Technique, decoder: Decoder) -> list[str]:
        idle = sorted(self.model_fields_set & {"share", "windows"})
        if self.on == "replay" or not idle:
            return []
        return [f"kl: {' and '.join(idle)} are of on=replay, and this is on={self.on}; leave them out"]

    @property
    def beside(self) -> float:
        return self.share if self.on == "replay" else 0.0

    def hold(self, ground: Ground) -> Hold:
        if self.on == "task":
            return Taught(ground.untouched(whole), self.weight)
        if self.on == "masked":
            return TaughtMasked(ground.untouched(masked), self.weight)
        expected = ground.remembered(self.windows, self.share)
        trickle = ground.trickle(len(expected.ids), self.share, expected.ids.shape[1])
        return Drawn(expected, self.weight, trickle, ground.plan.token_budget)


class Drawn(Hold):
    """Some of the windows at each step, all of them in turn.

    A window weighs the same whether steps read several or one in a while: the mean over the steps is what is asked for.
    No more than `budget` tokens are computed at once, and at least a window.
    """

    def __init__(self, expected: Expected, weight: float, trickle: Trickle, budget: int) -> None:
        self._expected, self._weight, self._trickle = expected, weight, trickle
        self._together = max(1, budget // expected.ids.shape[1])

    def losses(self, decoder: Decoder, step: int) -> Iterator[tuple[Tensor, int]]:
        rows = self._trickle.at(step)
        held = (self._expected.ids, self._expected.words, self._expected.log_p)
        weight = self._weight * len(rows) / self._trickle.rate
        predictions = len(rows) * self._expected.words.shape[1]
        for start in range(0, len(rows), self._together):
            ids, words, log_p = (part[rows[start : start + self._together]].to(decoder.device) for part in held)
            hidden = decoder.hidden(ids.reshape(1, -1), (ids.shape[1],) * len(ids))[0]
            objective = Divergence(words.flatten(0, 1), log_p.flatten(0, 1))
            yield summed(decoder, hidden, objective) * (weight / predictions), ids.numel()


class Taught(Hold):
    """What the base expects at each prediction of the rows, by row: words [M, K] and log-probabilities [M, K + 1]."""

    def __init__(self, table: Sequence[tuple[Tensor, ...]], weight: float) -> None:
        self._table, self._weight = table, weight

    def beside(self, packed: Packed) -> tuple[Objective, float]:
        words, log_p = (torch.cat(parts) for parts in zip(*(self._table[row] for row in packed.rows), strict=True))
        device = packed.targets.device
        return self.objective(words.to(device), log_p.to(device), packed), self._weight

    def objective(self, words: Tensor, log_p: Tensor, packed: Packed) -> Objective:
        """What is asked of these predictions."""
        return Divergence(words, log_p)


class TaughtMasked(Taught):
    """The same where neither distribution has the rows' own tokens."""

    def objective(self, words: Tensor, log_p: Tensor, packed: Packed) -> Objective:
        return Divergence(words, log_p, packed.targets)


def whole(decoder: Decoder, packed: Packed) -> tuple[Tensor, Tensor]:
    """What a model expects at each prediction."""
    return _expected(logits for logits, _ in _chunks(decoder, packed))


def masked(decoder: Decoder, packed: Packed) -> tuple[Tensor, Tensor]:
    """What a model expects at each prediction if it is not the row's own token."""
    chunks = _chunks(decoder, packed)
    words, log_p = _expected(logits.scatter_(1, targets.unsqueeze(1), -torch.inf) for logits, targets in chunks)
    return words, log_p.clamp_min(_NEVER)  # a vocabulary may be no larger than what is kept, the row's token included


def _chunks(decoder: Decoder, packed: Packed) -> Iterator[tuple[Tensor, Tensor]]:
    for hidden, targets in zip(predicting(decoder, packed).split(CHUNK), packed.targets.split(CHUNK), strict=True):
        yield decoder.logits(hidden), targets


def _expected(chunks: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    parts = [likeliest(logits) for logits in chunks]
    return torch.cat([words.int() for words, _ in parts]), torch.cat([log_p for _, log_p in parts])
