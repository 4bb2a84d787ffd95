"""Generation: prompts are read packed, answers grow together a token a step, a row that ends makes room for the next.

What a model will probably say can be handed in as a draft: it is read with the prompt in one pass and stands as far as
the model would have said the same (arXiv 2211.17192, where a smaller model writes the draft). Where few rows grow, each
has its next tokens guessed from its own text (see `lookup.py`), and says the same.

Letters: B rows that are growing, N tokens of all new prompts together, V vocabulary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, takewhile
from typing import Literal

import torch
from torch import Tensor

from graftwood.data.tokenizers.bpe import BPETokenizer
from graftwood.errors import ConfigError, GraftError
from graftwood.generate.lookup import Lookup
from graftwood.generate.packed import decode_plan, shadow
from graftwood.generate.sampling import Sampling, choose, row_generator
from graftwood.generate.stopping import TextStream
from graftwood.model.decoder import Decoder

Finish = Literal["stop", "length"]

# Prompts read in one pass: enough for full matrices, few enough that activations stay small.
_PREFILL_TOKENS = 4096
# From here on it is quicker to read what prompts have in common apart: a system message, the words around a question.
_SHARED_TOKENS = 8
# Draft positions whose logits are held at a time.
_CHUNK = 512
# Tokens, said and guessed, up to which a pass takes little longer than over one.
_GUESSED_TOKENS = 8


@dataclass(frozen=True)
class Completion:
    """What followed a prompt. `ids` are without the end token; `text` ends before the stop string that ended it."""

    ids: tuple[int, ...]
    text: str
    finish: Finish


class Engine:
    """Generates with a decoder as it is now; make another after its weights change.

    `fast` decodes with packed weights where the machine has them (see `packed.py`); without it every product is the
    decoder's own, and a row's logits are the same to float32 rounding whatever rows are beside it. `lookup` guesses
    ahead where few rows grow. `decode` turns ids into text; without a tokenizer texts stay empty.
    """

    def __init__(
        self,
        decoder: Decoder,
        eos: Sequence[int],
        decode: BPETokenizer | None = None,
        fast: bool = True,
        lookup: bool = True,
    ) -> None:
        self.decoder = decoder
        self._plan = decode_plan(decoder) if fast else shadow(decoder)
        self._eos = frozenset(eos)
        self._tokenizer, self._lookup = decode, lookup

    def stream(self, prompt: Sequence[int], sampling: Sampling) -> Iterator[str]:
        """Pieces of text as they become certain: no broken character, nothing of a stop string.

        Raises: GraftError for a prompt that leaves no room for an answer.
        """
        assert self._tokenizer is not None, "a stream of text needs a tokenizer"
        (row,) = self._rows([prompt], sampling)
        batch = self._batch(sampling, 1, row.total)
        given = 0
        batch.step([row])
        while True:
            if row.text[given:]:
                yield row.text[given:]
            given = len(row.text)
            if row.finish is not None:
                return
            batch.step([])

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        batch: int = 16,
        drafts: Sequence[Sequence[int]] = (),
    ) -> list[Completion]:
        """A completion of each prompt, in their order, up to `batch` of them growing together.

        `drafts` are what probably follows each prompt; they change how long it takes, not what is said, and are for
        plain greedy answers. Raises: GraftError for a prompt that leaves no room for an answer.
        """
        if batch < 1:
            raise ConfigError(f"batch={batch} is not 1 or more")
        if drafts and (sampling.temperature or sampling.repetition_penalty != 1 or sampling.stop):
            raise ConfigError("drafts are for greedy answers, without a repetition penalty and without stop strings")
        rows = self._rows(prompts, sampling)
        for row, draft in zip(rows, drafts, strict=bool(drafts)):
            row.expect(draft, self._eos)
        if not rows:
            return []
        # Neighbours of like length read fewer positions for each other; the longest come first, to fail or fit at once.
        waiting = deque(sorted(rows, key=lambda row: -len(row.prompt)))
        growing = self._batch(sampling, min(batch, len(rows)), max(row.total for row in rows))
        growing.begin(_beginning(prompts))
        while waiting or growing.rows:
            growing.step(_next(waiting, growing.room))
        return [row.completion() for row in rows]

    def _batch(self, sampling: Sampling, rows: int, capacity: int) -> _Batch:
        return _Batch(self._plan, self._eos, sampling, rows, capacity, _GUESSED_TOKENS if self._lookup else 0)

    def _rows(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[_Row]:
        if sampling.stop and self._tokenizer is None:
            raise ConfigError(f"stop={sampling.stop!r} needs a tokenizer to find texts in ids; give the engine one")
        limit = self._plan.context
        for number, prompt in enumerate(prompts):
            if not 0 < len(prompt) < limit:
                raise GraftError(
                    f"prompt {number} has {len(prompt)} tokens; this model has {limit} positions for prompt and answer "
                    f"together, so a prompt may have 1 to {limit - 1}"
                )
        return [
            _Row(
                tuple(prompt),
                min(len(prompt) + sampling.max_tokens, limit),
                row_generator(sampling.seed, number),
                None if self._tokenizer is None else TextStream(self._tokenizer, sampling.stop),
            )
            for number, prompt in enumerate(prompts)
        ]


class _Row:
    """One prompt and what has grown from it."""

    def __init__(
        self, prompt: tuple[int, ...], total: int, generator: torch.Generator, stream: TextStream | None
    ) -> None:
        self.prompt, self.total, self.generator = prompt, total, generator
        self.ids: list[int] = []
        self.draft: Sequence[int] = ()
        self.text = ""
        self.finish: Finish | None = None
        self._stream = stream
        self._lookup: Lookup | None = None

    @property
    def seen(self) -> int:
        """Tokens so far."""
        return len(self.prompt) + len(self.ids)

    def expect(self, draft: Sequence[int], eos: frozenset[int]) -> None:
        """What probably follows, without the token that the model ends with itself."""
        self.draft = list(takewhile(lambda index: index not in eos, draft[: self.total - len(self.prompt) - 1]))

    def take(self, index: int, eos: frozenset[int]) -> None:
        """Grow by one token, or end with it."""
        if index in eos:
            self.finish = "stop"
        else:
            self.ids.append(index)
            if self._lookup is not None:
                self._lookup.add(index)
            self.text += "" if self._stream is None else self._stream.push(index)
            if self.seen == self.total:
                self.finish = "length"
        if self._stream is not None:
            self.text += "" if self.finish is None else self._stream.end()
            if self._stream.stopped:
                self.finish = "stop"

    @property
    def lookup(self) -> Lookup:
        """What guesses this row's next tokens; the row's text is searched from the first time on."""
        self._lookup = self._lookup or Lookup([*self.prompt, *self.ids])
        return self._lookup

    def completion(self) -> Completion:
        assert self.finish is not None
        return Completion(tuple(self.ids), self.text, self.finish)


class _Batch:
    """Rows that grow together, in the order the cache has them."""

    def __init__(
        self, plan: Decoder, eos: frozenset[int], sampling: Sampling, rows: int, capacity: int, guessed: int
    ) -> None:
        self.rows: list[_Row] = []
        self._plan, self._sampling, self._guessed = plan, sampling, guessed
        self._eos = frozenset() if sampling.ignore_eos else eos
        with torch.inference_mode():
            self._cache = plan.new_cache(rows, capacity)
        self._begun = 0

    @property
    def room(self) -> int:
        """How many more rows may join."""
        return self._cache.rows - len(self.rows)

    @torch.inference_mode()
    def begin(self, ids: Sequence[int]) -> None:
        """Read once what all prompts begin with."""
        if ids:
            cache = self._plan.new_cache(1, len(ids))
            self._plan.hidden(self._tensor([ids]), documents=(len(ids),), cache=cache)
            self._cache.common, self._begun = cache.row(0), len(ids)

    @torch.inference_mode()
    def step(self, joining: Sequence[_Row]) -> None:
        """One more token for every row, the first for those that join; rows that end leave."""
        if self.rows:
            self._grow()
        if joining:
            logits = self._plan.logits(self._read(joining))
            for row, index in zip(joining, self._chosen(logits, joining), strict=True):
                row.take(index, self._eos)
            self.rows += joining
        self._keep_growing()

    def _grow(self) -> None:
        guesses = self._guesses()
        ids = self._tensor([[row.ids[-1], *guess] for row, guess in zip(self.rows, guesses, strict=True)])
        logits = self._plan.logits(self._plan.hidden(ids, cache=self._cache))
        if ids.shape[1] == 1:
            for row, index in zip(self.rows, self._chosen(logits[:, 0], self.rows), strict=True):
                row.take(index, self._eos)
            return
        wrong = []
        for row, guess, follows in zip(self.rows, guesses, logits, strict=True):
            right = 0
            # Each place is chosen for as if the one before had just been said, so that a draw is the same draw.
            for place, own in enumerate([*guess, None]):
                (index,) = self._chosen(follows[place : place + 1], [row])
                row.take(index, self._eos)
                if row.finish is not None or index != own:
                    break
                right += 1
            row.lookup.heard(len(guess), right)
            wrong.append(len(guess) - right)
        self._cache.forget(0, wrong)

    def _guesses(self) -> list[list[int]]:
        """What may follow each row's last token, as much for every row."""
        most = min(self._guessed // len(self.rows), self._cache.capacity - max(self._cache.lengths)) - 1
        guesses = [row.lookup.guess(most) if most > 0 else [] for row in self.rows]
        longest = max(map(len, guesses))
        # A row without a guess of its own guesses anything: it is read beside the others all the same.
        return [guess + [0] * (longest - len(guess)) for guess in guesses]

    def _chosen(self, logits: Tensor, rows: Sequence[_Row]) -> list[int]:
        found: list[int] = choose(logits, self._sampling, [row.generator for row in rows], self._seen(rows)).tolist()
        return found

    def _read(self, joining: Sequence[_Row]) -> Tensor:
        """Hidden states at the last tokens that stand, the prompts' or those of their drafts, [rows, C]."""
        place = len(self._cache.lengths)
        texts = [[*row.prompt[self._begun :], *row.draft] for row in joining]
        lengths = [len(text) for text in texts]
        ids = self._tensor([[index for text in texts for index in text]])
        counts = [1 + len(row.draft) for row in joining]  # from where a draft is told: the prompt's end and itself
        ends = zip(accumulate(lengths), counts, strict=True)
        only = self._tensor([index for end, count in ends for index in range(end - count, end)])
        hidden = self._plan.hidden(ids, documents=lengths, cache=self._cache, only=only)[0].split(counts)
        said = iter(self._said(torch.cat([part[:-1] for part in hidden])))
        wrong = []
        for row in joining:
            would = [next(said) for _ in row.draft]
            for index, own in zip(row.draft, would, strict=True):
                if index != own:
                    break
                row.take(index, self._eos)
            wrong.append(len(row.draft) - len(row.ids))
        self._cache.forget(place, wrong)
        return torch.stack([part[len(row.ids)] for row, part in zip(joining, hidden, strict=True)])

    def _said(self, hidden: Tensor) -> list[int]:
        """The likeliest token after each of these states."""
        parts = hidden.split(_CHUNK) if len(hidden) else ()
        return [index for part in parts for index in self._plan.logits(part).argmax(-1).tolist()]

    def _seen(self, rows: Sequence[_Row]) -> Tensor | None:
        """Which tokens the repetition penalty is for, [B, V]."""
        if self._sampling.repetition_penalty == 1:
            return None
        seen = torch.zeros(len(rows), self._plan.config.vocab_size, dtype=torch.bool, device=self._plan.device)
        for place, row in enumerate(rows):
            seen[place, [*row.prompt, *row.ids]] = True
        return seen

    def _keep_growing(self) -> None:
        count = sum(row.finish is None for row in self.rows)
        if count == len(self.rows):
            return
        # The last rows move into the gaps, so that as few as possible are copied.
        late = [place for place in range(count, len(self.rows)) if self.rows[place].finish is None]
        order = [place if self.rows[place].finish is None else late.pop() for place in range(count)]
        self._cache.keep(order)
        self.rows = [self.rows[place] for place in order]

    def _tensor(self, values: Sequence[object]) -> Tensor:
        return torch.tensor(values, device=self._plan.device)


def _beginning(prompts: Sequence[Sequence[int]]) -> Sequence[int]:
    """What all prompts begin with, where reading it once is worth it; every prompt keeps a token of its own."""
    columns = zip(*(prompt[:-1] for prompt in prompts), strict=False)
    shared = [column[0] for column in takewhile(lambda column: len(set(column)) == 1, columns)]
    return shared if len(prompts) > 1 and len(shared) >= _SHARED_TOKENS else []


def _next(waiting: deque[_Row], room: int) -> list[_Row]:
    """Prompts to read next: as many as there is room for and as one pass should have, but one at least."""
    chosen: list[_Row] = []
    tokens = 0
    while waiting and len(chosen) < room:
        tokens += len(waiting[0].prompt) + len(waiting[0].draft)
        if chosen and tokens > _PREFILL_TOKENS:
            break
        chosen.append(waiting.popleft())
    return chosen
