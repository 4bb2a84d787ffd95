"""Three verbs that make a model scorable: how likely is a continuation, how likely is a text, what does it answer.

Letters: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from graftwood.data.batch import packs
from graftwood.data.encode import Example
from graftwood.generate.engine import Engine
from graftwood.generate.sampling import Sampling
from graftwood.model.decoder import Decoder
from graftwood.train.loss import token_losses

ROWS = 16
TOKENS = 1024


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
    results: list[list[Continuation]] = [[] for _ in contexts]
    order = sorted(range(len(contexts)), key=lambda index: len(contexts[index]))
    for start in range(0, len(order), ROWS):
        rows = order[start : start + ROWS]
        for index, scored in zip(rows, _score_group(decoder, contexts, choices, rows), strict=True):
            results[index] = scored
    return results


def _score_group(
    decoder: Decoder, contexts: Sequence[Sequence[int]], choices: Sequence[Sequence[Sequence[int]]], rows: list[int]
) -> list[list[Continuation]]:
    lengths = [len(contexts[row]) for row in rows]
    longest = max((len(choice) for row in rows for choice in choices[row]), default=0)
    cache = decoder.new_cache(len(rows), max(lengths) + longest)
    packed = torch.tensor([[index for row in rows for index in contexts[row]]], device=decoder.device)
    ends = torch.tensor(lengths).cumsum(0) - 1
    first = decoder.logits(decoder.hidden(packed, lengths, cache)[0, ends]).log_softmax(-1)
    scored: list[list[Continuation]] = [[] for _ in rows]
    for number in range(max(len(choices[row]) for row in rows)):
        live = [choices[row][number] if number < len(choices[row]) else () for row in rows]
        log_probabilities = _follow(decoder, cache, lengths, first, live)
        for place, (choice, values) in enumerate(zip(live, log_probabilities, strict=True)):
            if choice:
                total = float(values[:, 0].sum())
                scored[place].append(Continuation(total, len(choice), bool(values[:, 1].all())))
    return scored


def _follow(
    decoder: Decoder, cache: object, lengths: list[int], first: Tensor, live: Sequence[Sequence[int]]
) -> list[Tensor]:
    """For each row, `[tokens, 2]`: log-probability of each token of its choice, and whether it is the likeliest."""
    from graftwood.model.attention import KVCache

    assert isinstance(cache, KVCache)
    longest = max(len(choice) for choice in live)
    rest = None
    if longest > 1:
        padded = [[*choice[:-1], *[0] * (longest - 1 - max(0, len(choice) - 1))] for choice in live]
        cache.lengths = list(lengths)
        rest = decoder.hidden(torch.tensor(padded, device=decoder.device), cache=cache)
    results = []
    for row, choice in enumerate(live):
        table = first[row : row + 1]
        if rest is not None and len(choice) > 1:
            table = torch.cat([table, decoder.logits(rest[row, : len(choice) - 1]).log_softmax(-1)])
        ids = torch.tensor(choice, dtype=torch.long, device=table.device)
        table = table[: len(choice)]
        results.append(torch.stack([table.gather(1, ids[:, None])[:, 0], (table.argmax(-1) == ids).float()], dim=1))
    return results


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
    return [done.text for done in engine.generate(prompts, Sampling(max_tokens=max_tokens))]
