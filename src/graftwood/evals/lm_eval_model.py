"""A base, or an adapter on one, as the model class of lm-eval, which is an extra and imported when it is called for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any

from graftwood.base import Base
from graftwood.errors import ConfigError, DataError
from graftwood.evals.score import ROWS, continuations
from graftwood.generate.engine import Engine
from graftwood.generate.sampling import Sampling

LONGEST = 256  # tokens of an answer where a task does not say, as in lm-eval
_SAMPLING = ("top_k", "top_p", "min_p", "repetition_penalty")
_UNDERSTOOD = {"until", "do_sample", "temperature", "max_gen_toks", *_SAMPLING}


class Verbs:
    """lm-eval's three verbs over texts, which become ids as its own class for transformers makes them."""

    def __init__(self, base: Base) -> None:
        self._base = base
        self._start = base.document_start()

    def loglikelihood(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        """Of each context and continuation the log-probability (nats), and whether greedy decoding would say it.

        Raises: DataError for a continuation without a token of its own, or longer than the model's context.
        """
        return self._weigh([self._pair(*pair) for pair in pairs])

    def rolling(self, texts: Sequence[str]) -> list[float]:
        """The log-probability of each whole text, in windows of the model's context that do not overlap."""
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

        windows = [
            [*map(make_disjoint_window, get_rolling_token_windows(ids, self._start, self._base.decoder.context, 1))]
            for ids in map(self._ids, texts)
        ]
        found = iter(self._weigh([window for one in windows for window in one]))
        return [sum(next(found)[0] for _ in one) for one in windows]

    def generate(self, asked: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
        """An answer to each prompt by its own options; a prompt that leaves too little room loses its beginning.

        Raises: ConfigError for options that we do not have.
        """
        base = self._base
        # Answers that are held against other people's: every product is the decoder's own.
        engine = Engine(base.decoder, base.tokenizer.eos, base.tokenizer, fast=False)
        places: dict[Sampling, list[int]] = defaultdict(list)
        for place, (_, options) in enumerate(asked):
            places[_sampling(options)].append(place)
        said = [""] * len(asked)
        for sampling, own in places.items():
            room = base.decoder.context - sampling.max_tokens
            if room < 1:
                raise ConfigError(
                    f"a task wants answers of {sampling.max_tokens} tokens; this model has {base.decoder.context} "
                    "positions for prompt and answer together"
                )
            prompts = [self._ids(asked[place][0])[-room:] or [self._start] for place in own]
            for place, done in zip(own, engine.generate(prompts, sampling, batch=ROWS), strict=True):
                said[place] = done.text
        return said

    def _ids(self, text: str) -> list[int]:
        """A text with the tokens its control words stand for, and the begin token where the base has one."""
        tokenizer = self._base.tokenizer
        ids = tokenizer.encode(text, specials=True)
        return ids if not tokenizer.begins or ids[:1] == [self._start] else [self._start, *ids]

    def _pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Where the whole is cut: blanks at the context's end belong to the next word."""
        kept = context.rstrip()
        whole = self._ids(context + continuation)
        if not context:
            ids = self._base.tokenizer.encode(continuation, specials=True)
            return (ids[:1], ids[1:]) if ids[:1] == [self._start] else ([self._start], ids)
        begun = self._ids(kept)
        return begun or [self._start], whole[len(begun) :]

    def _weigh(self, asked: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[tuple[float, bool]]:
        limit = self._base.decoder.context
        clipped = []
        for context, ending in asked:
            if not 0 < len(ending) <= limit:
                raise DataError(f"an answer to weigh has {len(ending)} tokens; this model takes 1 to {limit}")
            clipped.append((list(context[-(limit + 1 - len(ending)) :]), ending))
        # Choices of one question stand together and share its reading.
        groups = [(context, [ending for _, ending in own]) for context, own in groupby(clipped, itemgetter(0))]
        contexts, endings = [context for context, _ in groups], [own for _, own in groups]
        scored = continuations(self._base.decoder, contexts, endings)
        return [(one.log_probability, one.greedy) for found in scored for one in found]


def lm_eval_model(base: Base) -> Any:
    """An `lm_eval.api.model.LM` of the base as it stands, whatever adapter it carries."""
    from lm_eval.api.model import LM

    verbs = Verbs(base)

    class GraftLM(LM):
        """Requests in, answers out."""

        def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
            return verbs.loglikelihood([request.args for request in requests])

        def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
            return verbs.rolling([request.args[0] for request in requests])

        def generate_until(self, requests: list[Any]) -> list[str]:
            return verbs.generate([request.args for request in requests])

    return GraftLM()


def _sampling(options: Mapping[str, Any]) -> Sampling:
    """A task's `generation_kwargs` as ours."""
    from lm_eval.models.utils import normalize_gen_kwargs

    asked = dict(normalize_gen_kwargs(dict(options), LONGEST))
    if odd := sorted(asked.keys() - _UNDERSTOOD):
        raise ConfigError(
            f"a task generates with {', '.join(odd)}, which we do not have; understood are {', '.join(_UNDERSTOOD)}"
        )
    temperature = float(asked.get("temperature", 1.0)) if asked["do_sample"] else 0.0
    return Sampling(
        temperature=temperature,
        max_tokens=asked["max_gen_toks"],
        stop=tuple(text for text in asked["until"] if text),
        **{name: asked[name] for name in _SAMPLING if name in asked},
    )
