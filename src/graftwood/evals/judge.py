"""What is measured before training and again after it, and how the two become a report card."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from graftwood.base import Base
from graftwood.data.encode import Encoder, Example, answer_text
from graftwood.data.rows import Row
from graftwood.evals import skills, stats
from graftwood.evals.asking import Scores
from graftwood.evals.card import Compared, Gained, Kept, Memory, Sample
from graftwood.evals.memorisation import memory
from graftwood.evals.metrics import METRICS, best_over_references, headline
from graftwood.evals.retention import WINDOWS, Moved, compare
from graftwood.evals.score import answer_losses, answers
from graftwood.files import sha256_text
from graftwood.generate.engine import Engine
from graftwood.model.expected import Expected
from graftwood.samples import LENGTH

ANSWERED_ROWS, MEMORY_ROWS, SAMPLES = 100, 64, 4


@dataclass(frozen=True)
class Paper:
    """The exam of one run: the same rows are put to the base and to the tuned model.

    `heldout` are examples for GAINED from the split called `split`; `asked` are those of their rows that have a prompt,
    which plain text has not. `train` and `valid` are equally many examples for MEMORY; `limit` bounds an answer in
    tokens.
    """

    split: str
    heldout: tuple[Example, ...]
    asked: tuple[Row, ...]
    train: tuple[Example, ...]
    valid: tuple[Example, ...]
    limit: int

    @property
    def fingerprint(self) -> str:
        """Hex SHA-256 over everything that is put to a model."""
        parts = [[(e.ids, e.answer) for e in part] for part in (self.heldout, self.train, self.valid)]
        return sha256_text(repr(parts), repr([row.parts for row in self.asked]), str(self.limit))


@dataclass(frozen=True)
class Sheet:
    """One model's results on a paper."""

    said: tuple[str, ...]
    losses: list[tuple[float, int]]
    train: list[tuple[float, int]]
    valid: list[tuple[float, int]]
    scores: list[Scores]


def set_paper(
    encoder: Encoder, train: Sequence[Example], valid: Sequence[Example], test: Sequence[Example], seed: int
) -> Paper:
    """Choose what is measured: test rows where there are any, else validation rows; a seeded sample where many."""
    generator = random.Random(seed)
    source, split = (test, "test") if test else (valid, "valid")
    heldout = tuple(_some(source, ANSWERED_ROWS, generator))
    count = min(len(train), len(valid), MEMORY_ROWS)
    longest = max((len(encoder.tokenizer.encode(answer_text(example.row))) for example in train), default=64)
    return Paper(
        split,
        heldout,
        tuple(example.row for example in heldout if example.row.asked),
        tuple(_some(train, count, generator)),
        tuple(_some(valid, count, generator)),
        limit=min(longest + longest // 4 + 8, 256),
    )


def sit(
    base: Base,
    engine: Engine,
    paper: Paper,
    ask_skills: Callable[[Base, Engine, Callable[[str], None]], list[Scores]],
    note: Callable[[str], None],
) -> Sheet:
    """Put the paper to the model as it stands now."""
    encoder = base.encoder()
    note("held-out rows")
    said = answers(engine, [encoder.prompt(row) for row in paper.asked], paper.limit)
    losses = answer_losses(base.decoder, paper.heldout)
    note("rows of the training set")
    train, valid = answer_losses(base.decoder, paper.train), answer_losses(base.decoder, paper.valid)
    return Sheet(tuple(said), losses, train, valid, ask_skills(base, engine, note))


def work(base: Base, paper: Paper) -> tuple[int, int]:
    """Tokens that one sitting, drift included, has a model read, and at most write."""
    read, written = skills.work(base)
    encoder = base.encoder()
    read += sum(len(encoder.prompt(row)) for row in paper.asked)
    read += sum(len(e.ids) for part in (paper.heldout, paper.train, paper.valid) for e in part)
    return read + WINDOWS * LENGTH, written + len(paper.asked) * paper.limit


def gained(paper: Paper, before: Sheet, after: Sheet) -> Gained:
    """The GAINED part: every metric on the same rows, the headline first; of plain text, the loss alone."""
    if not paper.heldout:
        return Gained(rows=0, split=paper.split, measures=())
    lead = headline([answer_text(row) for row in paper.asked]) if paper.asked else None
    measures = []
    for name in sorted(METRICS, key=lambda key: key != lead) if paper.asked else ():
        title, metric = METRICS[name]
        b, a = (
            np.array([best_over_references(metric, s, _right(row)) for s, row in zip(said, paper.asked, strict=True)])
            for said in (before.said, after.said)
        )
        measures.append(
            Compared(
                name=name,
                title=title,
                unit="share",
                higher_is_better=True,
                base=stats.mean(b),
                tuned=stats.mean(a),
                change=stats.mean(a - b),
            )
        )
    measures.append(_loss_measure(before.losses, after.losses))
    return Gained(rows=len(paper.heldout), split=paper.split, measures=tuple(measures))


def kept(before: Sheet, after: Sheet, moved: Moved, probe: Expected) -> Kept:
    """The KEPT part of the card."""
    return skills.kept(before.scores, after.scores, moved, probe)


def remembered(before: Sheet, after: Sheet) -> Memory:
    """The MEMORY part."""
    return memory(before.train, after.train, before.valid, after.valid)


def samples(paper: Paper, encoder: Encoder, before: Sheet, after: Sheet) -> tuple[Sample, ...]:
    """Some held-out rows as both models answer them, right ones and wrong ones of each."""
    metric = METRICS[headline([answer_text(row) for row in paper.asked])][1] if paper.asked else None
    rows = []
    for row, base_said, tuned_said in zip(paper.asked, before.said, after.said, strict=True):
        assert metric is not None
        base_right, tuned_right = (
            best_over_references(metric, s, _right(row)) >= 0.999 for s in (base_said, tuned_said)
        )
        prompt = row.turns[-2].content if row.kind == "chat" and len(row.turns) > 1 else row.prompt
        rows.append(
            Sample(
                prompt=prompt,
                wanted=answer_text(row).strip(),
                base=base_said.strip(),
                tuned=tuned_said.strip(),
                base_right=base_right,
                tuned_right=tuned_right,
            )
        )
    right = [sample for sample in rows if sample.tuned_right]
    wrong = [sample for sample in rows if not sample.tuned_right]
    share = round(SAMPLES * len(right) / len(rows)) if rows else 0
    return tuple((right[:share] + wrong[: SAMPLES - share]) or rows[:SAMPLES])


def drift_gauge(base: Base, probe: Expected, windows: int = 4) -> Callable[[], float]:
    """A quick drift reading for the live line."""
    small = probe.split(windows)[0]
    return lambda: float(compare(base.decoder, small).drift.mean())


def _loss_measure(before: Sequence[tuple[float, int]], after: Sequence[tuple[float, int]]) -> Compared:
    """Answer loss pooled over tokens: rows are resampled, their tokens move together."""

    def pooled(losses: Sequence[tuple[float, int]]) -> stats.Pooled:
        return stats.Pooled(np.array([total for total, _ in losses]), np.array([count for _, count in losses]))

    b, a = pooled(before), pooled(after)
    return Compared(
        name="answer_loss",
        title="answer loss",
        unit="nats",
        higher_is_better=False,
        base=b.mean(),
        tuned=a.mean(),
        change=a.minus(b).mean(),
    )


def _right(row: Row) -> tuple[str, ...]:
    return (answer_text(row), *row.references)


def _some(examples: Sequence[Example], count: int, generator: random.Random) -> list[Example]:
    if len(examples) <= count:
        return list(examples)
    return [examples[index] for index in sorted(generator.sample(range(len(examples)), count))]
