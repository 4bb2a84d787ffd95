"""A task put to a model: every item asked and judged, with what was said."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from graftwood.base import Base
from graftwood.evals.checks import followed
from graftwood.evals.metrics import METRICS, best_over_references
from graftwood.evals.programs import solve
from graftwood.evals.score import ROWS, Continuation, answers, continuations
from graftwood.evals.task import Item, Task
from graftwood.files import sha256_text
from graftwood.generate.engine import Engine


@dataclass(frozen=True)
class Scores:
    """One task's items in order.

    `right` is 1 for right and 0 for wrong, or the share of what was wanted (`text`) or of the samples that passed
    (`code`). `soft` is the probability of the right answer: among the choices by length-normalised log-probability, or
    of the word; empty where answers are generated. `said` is the answer: the choice taken, the text generated; of a
    `word` item only the right word is known.
    """

    task: Task
    right: tuple[float, ...]
    soft: tuple[float, ...] = ()
    said: tuple[str, ...] = ()

    def columns(self) -> dict[str, tuple[Any, ...]]:
        """All of it but the task, by name."""
        return {"right": self.right, "soft": self.soft, "said": self.said}

    def records(self) -> Iterator[dict[str, Any]]:
        """What there is to say of each item, by name."""
        for place, item in enumerate(self.task.items()):
            own = {name: column[place] if column else None for name, column in self.columns().items()}
            yield {"task": self.task.name, "id": item.id} | own


def score_task(base: Base, engine: Engine, task: Task, before: Scores | None = None) -> Scores:
    """Ask every item of a task and judge the answers.

    What a model near to this one said `before` is read as a draft of what this one will say: no answer differs for it.
    """
    return _generated(base, engine, task, before) if task.max_tokens else _weighed(base, task)


def key(base: Base, task: Task) -> str:
    """Hex SHA-256 over all that a score depends on, the weights apart: the task, and the ids by which it is asked."""
    asked = [_ids(base, task, item) for item in task.items()]
    return sha256_text(task.key, repr((asked, _choices(base, task), base.tokenizer.eos)))


def work(base: Base, task: Task) -> tuple[int, int]:
    """Tokens that a task has a model read, and at most write."""
    asked = [_ids(base, task, item) for item in task.items()]
    read = sum(map(len, asked)) + sum(len(choice) for one in _choices(base, task) for choice in one)
    return read, len(asked) * task.max_tokens * task.samples


def needed(base: Base, task: Task) -> list[int]:
    """By item the positions it takes to ask it whole and to have room for its answer.

    A request's answer may be as long as the task allows; a program, which may be far longer than most are, must only
    have room to begin.
    """
    asked = [len(_ids(base, task, item)) for item in task.items()]
    if not task.max_tokens:
        # The last token of a choice predicts nothing, so it is not read.
        longest = [max(map(len, endings)) - 1 for endings in _choices(base, task)]
    elif task.kind == "text":
        answers = base.tokenizer.encode_after_batch([item.answer for item in task.items()])
        longest = [min(task.max_tokens, len(answer) + 1) for answer in answers]
    else:
        longest = [1 if task.kind == "code" else task.max_tokens] * len(asked)
    return [sum(both) for both in zip(asked, longest, strict=True)]


def _weighed(base: Base, task: Task) -> Scores:
    """Answers that are there already and are weighed by their probability."""
    items = task.items()
    choices = _choices(base, task)
    # What is longer than the model's context loses its beginning.
    contexts = [
        _ids(base, task, item)[-(base.decoder.context - max(map(len, endings)) + 1) :]
        for item, endings in zip(items, choices, strict=True)
    ]
    scored = continuations(base.decoder, contexts, choices)
    if task.kind == "word":
        (words,) = zip(*scored, strict=True) if scored else ((),)
        soft = tuple(float(np.exp(word.log_probability)) for word in words)
        said = tuple(item.answer if word.greedy else "" for item, word in zip(items, words, strict=True))
        return Scores(task, tuple(float(word.greedy) for word in words), soft, said)
    shares = [_shares(found) for found in scored]
    picks = [int(share.argmax()) for share in shares]
    return Scores(
        task,
        tuple(float(pick == item.gold) for pick, item in zip(picks, items, strict=True)),
        tuple(float(share[item.gold]) for share, item in zip(shares, items, strict=True)),
        tuple(item.choices[pick] for pick, item in zip(picks, items, strict=True)),
    )


def _shares(choices: list[Continuation]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Probability of each choice among the choices, by log-probability a token."""
    means = np.array([choice.log_probability / choice.tokens for choice in choices])
    weights = np.exp(means - means.max())
    return weights / weights.sum()


def _generated(base: Base, engine: Engine, task: Task, before: Scores | None) -> Scores:
    """Answers that the model writes."""
    items = task.items()
    prompts = [_ids(base, task, item) for item in items]
    if task.kind == "code":
        passed, programs = solve(engine, task, prompts, ROWS)
        return Scores(task, tuple(passed), said=tuple(programs))
    drafts = base.tokenizer.encode_batch(before.said) if before else []
    said = tuple(answers(engine, prompts, task.max_tokens, drafts, task.stop))
    if task.kind == "program":
        right = (float(followed(item.checks, text)) for item, text in zip(items, said, strict=True))
    else:
        metric = METRICS[task.metric][1]
        wanted = [(item.answer, *item.references) for item in items]
        right = (best_over_references(metric, text, want) for text, want in zip(said, wanted, strict=True))
    return Scores(task, tuple(right), said=said)


def _ids(base: Base, task: Task, item: Item) -> list[int]:
    encoder = base.encoder()
    if item.turns:
        return encoder.template.prompt(item.turns)
    return encoder.ask(item.prompt) if task.kind == "program" else encoder.begin(item.prompt)


def _choices(base: Base, task: Task) -> list[list[list[int]]]:
    if task.max_tokens:
        return []
    return [base.tokenizer.encode_after_batch(item.choices or (item.answer,)) for item in task.items()]
