"""Three verbs that make a model scorable: how likely is a continuation, how likely is a text, what does it answer.

Letters: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice

import torch

from graftwood.data.batch import packs
from graftwood.data.encode import Example
from graftwood.generate.engine import Engine
from graftwood.generate.sampling import Sampling
from graftwood.model.decoder import Decoder
from graftwood.model.forks import Fork, fork_length
from graftwood.train.loss import CHUNK, token_losses

TOKENS = 1024
SHARED = 32  # tokens that must be saved: to read alternatives takes a mask, which costs a little
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
    """Every choice of every context scored.

    A context is read once, whatever the number of its choices, and so is what neighbours begin with in common.
    """
    results: list[list[Continuation]] = []
    group: list[_Document] = []
    for document in _documents(contexts, choices):
        if group and sum(one.tokens for one in group) + document.tokens > TOKENS:
            results += _score(decoder, group)
            group = []
        group.append(document)
    return results + (_score(decoder, group) if group else [])


@dataclass(frozen=True)
class _Document:
    """Contexts that begin alike and their choices; the last token of a choice predicts nothing, so it is not read."""

    common: Sequence[int]
    asked: Sequence[tuple[Sequence[int], Sequence[Sequence[int]]]]  # what each context goes on with, and its choices

    @property
    def forks(self) -> list[Fork]:
        return [(len(rest), [len(choice) - 1 for choice in choices]) for rest, choices in self.asked]

    @property
    def tokens(self) -> int:
        return len(self.common) + sum(map(fork_length, self.forks))

    @property
    def own(self) -> int:
        """Tokens that are not common."""
        return self.tokens - len(self.common)

    @property
    def ids(self) -> list[int]:
        own = (index for rest, choices in self.asked for part in (rest, *(c[:-1] for c in choices)) for index in part)
        return [*self.common, *own]

    @property
    def choices(self) -> Iterator[Sequence[int]]:
        return (choice for _, choices in self.asked for choice in choices)

    def predictions(self, start: int) -> list[int]:
        """Where the tokens of all choices are predicted, in a pack where this document begins at `start`."""
        found, place = [], start + len(self.common)
        common_last = place - 1
        for rest, choices in self.asked:
            place += len(rest)
            last = place - 1 if rest else common_last
            for choice in choices:
                found += [last, *range(place, place + len(choice) - 1)]
                place += len(choice) - 1
        return found


def _documents(contexts: Sequence[Sequence[int]], choices: Sequence[Sequence[Sequence[int]]]) -> Iterator[_Document]:
    """Neighbours as one document where reading what they have in common once saves enough."""
    common: Sequence[int] = ()
    held: list[tuple[Sequence[int], Sequence[Sequence[int]]]] = []

    def document() -> _Document:
        return _Document(common, [(context[len(common) :], endings) for context, endings in held])

    for context, endings in zip(contexts, choices, strict=True):
        shared = _shared(common, context)
        if held and shared * len(held) > len(common) * (len(held) - 1) + SHARED and document().own < TOKENS:
            common = common[:shared]
        else:
            if held:
                yield document()
            common, held = context, []
        held.append((context, endings))
    if held:
        yield document()


def _shared(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens both begin with."""
    return next(
        (n for n, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )


def _score(decoder: Decoder, group: Sequence[_Document]) -> list[list[Continuation]]:
    lengths = [document.tokens for document in group]
    starts = accumulate(lengths, initial=0)
    predict = [place for document, start in zip(group, starts, strict=False) for place in document.predictions(start)]
    targets = torch.tensor([index for document in group for choice in document.choices for index in choice])
    # Where choices begin they are predicted from one place.
    only, place = torch.tensor(predict, device=decoder.device).unique(return_inverse=True)
    hidden = decoder.hidden(
        torch.tensor([[index for document in group for index in document.ids]], device=decoder.device),
        lengths,
        forks=[document.forks for document in group],
        only=only,
    )[0, place]
    told = []
    for part, target in zip(hidden.split(CHUNK), targets.to(decoder.device).split(CHUNK), strict=True):
        logits = decoder.logits(part)
        chosen = logits.gather(1, target.unsqueeze(1)).squeeze(1)
        told.append(torch.stack([chosen - logits.logsumexp(1), (chosen >= logits.amax(1)).float()], dim=1).cpu())
    counts = [len(choice) for document in group for choice in document.choices]
    scored = (
        Continuation(float(one[:, 0].sum()), len(one), bool(one[:, 1].all())) for one in torch.cat(told).split(counts)
    )
    return [list(islice(scored, len(choices))) for document in group for _, choices in document.asked]


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


def answers(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    drafts: Sequence[Sequence[int]] = (),
    stop: tuple[str, ...] = (),
) -> list[str]:
    """Greedy answers, each up to the first of `stop`; without one `drafts` of them save time (`Engine.generate`)."""
    sampling = Sampling(max_tokens=max_tokens, stop=stop)
    return [done.text for done in engine.generate(prompts, sampling, batch=ROWS, drafts=() if stop else drafts)]
