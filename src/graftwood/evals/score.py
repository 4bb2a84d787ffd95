"""Three verbs that make a model scorable: how likely is a continuation, how likely is a text, what does it answer.

Letters: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, islice

import torch

from graftwood.data.batch import packs
from graftwood.data.encode import Example
from graftwood.generate.engine import Engine
from graftwood.generate.sampling import Sampling
from graftwood.model.decoder import Decoder
from graftwood.train.loss import CHUNK, token_losses

TOKENS = 1024
ROWS = 48  # answers that grow together: decoding is bound by reading weights until there are about as many


@dataclass(frozen=True)
class Continuation:
    """Log-probability of a continuation (nats), its length, and whether greedy decoding would have said it."""

    log_probability: float
    tokens: int
    greedy: bool


@torch.inference_mode()
def continuations(
    decoder: Decoder, contexts: Sequence[Sequence[int]], choices: Sequence[Sequence[Sequence[int]]]
) -> list[list[Continuation]]:
    """Every choice of every context scored; a context is read once, whatever the number of its choices."""
    results: list[list[Continuation]] = []
    group: list[_Asked] = []
    for context, endings in zip(contexts, choices, strict=True):
        asked = _Asked(context, endings)
        if group and sum(one.tokens for one in group) + asked.tokens > TOKENS:
            results += _score(decoder, group)
            group = []
        group.append(asked)
    return results + (_score(decoder, group) if group else [])


@dataclass(frozen=True)
class _Asked:
    """A context and its choices as one document; the last token of a choice predicts nothing, so it is not read."""

    context: Sequence[int]
    choices: Sequence[Sequence[int]]

    @property
    def forks(self) -> list[int]:
        return [len(choice) - 1 for choice in self.choices]

    @property
    def tokens(self) -> int:
        return len(self.context) + sum(self.forks)

    def predictions(self, start: int) -> list[int]:
        """Where the tokens of all choices are predicted, in a pack where this document begins at `start`."""
        last = start + len(self.context) - 1
        place, found = last + 1, []
        for length in self.forks:
            found += [last, *range(place, place + length)]
            place += length
        return found


def _score(decoder: Decoder, group: Sequence[_Asked]) -> list[list[Continuation]]:
    ids = [index for asked in group for part in (asked.context, *(c[:-1] for c in asked.choices)) for index in part]
    starts = accumulate((asked.tokens for asked in group), initial=0)
    predict = [place for asked, start in zip(group, starts, strict=False) for place in asked.predictions(start)]
    targets = torch.tensor([index for asked in group for choice in asked.choices for index in choice])
    hidden = decoder.hidden(
        torch.tensor([ids], device=decoder.device),
        [asked.tokens for asked in group],
        forks=[asked.forks for asked in group],
    )[0, predict]
    told = []
    for part, target in zip(hidden.split(CHUNK), targets.to(decoder.device).split(CHUNK), strict=True):
        logits = decoder.logits(part)
        chosen = logits.gather(1, target.unsqueeze(1)).squeeze(1)
        told.append(torch.stack([chosen - logits.logsumexp(1), (chosen >= logits.amax(1)).float()], dim=1).cpu())
    lengths = [len(choice) for asked in group for choice in asked.choices]
    scored = (
        Continuation(float(one[:, 0].sum()), len(one), bool(one[:, 1].all())) for one in torch.cat(told).split(lengths)
    )
    return [list(islice(scored, len(asked.choices))) for asked in group]


@torch.inference_mode()
def answer_losses(decoder: Decoder, examples: Sequence[Example]) -> list[tuple[float, int]]:
    """For each example the summed `-log q` of its answer tokens (nats) and how many they are."""
    results: list[tuple[float, int]] = []
    for packed in packs(examples, TOKENS):
        losses = token_losses(decoder, packed.to(decoder.device)).double()
        count = len(packed.documents)
        owner = packed.owner.to(losses.device)
        sums = torch.zeros(count, dtype=torch.float64, device=losses.device).index_add_(0, owner, losses)
        counts = torch.bincount(owner, minlength=count)
        results += zip(sums.tolist(), counts.tolist(), strict=True)
    return results


def answers(engine: Engine, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[str]:
    """Greedy answers."""
    return [done.text for done in engine.generate(prompts, Sampling(max_tokens=max_tokens), batch=ROWS)]
