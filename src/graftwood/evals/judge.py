"""What is measured before training and again after it, and how the two become a report card."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from graftwood.base import Base
from graftwood.data.encode import Encoder, Example, answer_text
from graftwood.data.rows import Row
from graftwood.evals import skills, stats
from graftwood.evals.asking import Scores
from graftwood.evals.card import Compared, Estimate, Gained, Kept, Memory, Sample, TaskGained
from graftwood.evals.fitting import too_long
from graftwood.evals.memorisation import memory
from graftwood.evals.metrics import METRICS, Metric, best_over_references, headline
from graftwood.evals.retention import WINDOWS, Moved, compare
from graftwood.evals.score import answer_losses, answers
from graftwood.evals.task import Task
from graftwood.evals.twins import ROWS, TWINS, exposures
from graftwood.files import sha256_text
from graftwood.generate.engine import Engine
from graftwood.model.expected import Expected
from graftwood.samples import LENGTH

ANSWERED_ROWS, MEMORY_ROWS, SAMPLES = 100, 64, 4
FEWEST = 48  # rows of each task, where several share what is measured


@dataclass(frozen=True)
class Paper:
    """The exam of one run: the same rows are put to the base and to the tuned model.

    `heldout` are examples for GAINED, from the split that `splits` names for their task; `asked` are those of their
    rows that have a prompt, which plain text has not. `train` and `valid` are equally many examples of each task for
    MEMORY; `limits` bound an answer of each task in tokens. Rows of a task stand together. `room` is how many tokens a
    sequence may have: rows whose prompt takes all of it are not asked.
    """

    splits: dict[str, str]
    heldout: tuple[Example, ...]
    asked: tuple[Row, ...]
    train: tuple[Example, ...]
    valid: tuple[Example, ...]
    limits: dict[str, int]
    room: int

    @property
    def left_out(self) -> tuple[str, ...]:
        """A line that says how many rows are not asked, where there are any."""
        able = sum(bool(example.row.asked) for example in self.heldout)
        what = "questions of held-out rows"
        return (too_long(able - len(self.asked), able, self.room, what),) if able > len(self.asked) else ()

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that have rows for GAINED."""
        return tuple(dict.fromkeys(example.row.task for example in self.heldout))

    @property
    def split(self) -> str:
        """Where the rows for GAINED come from."""
        return " and ".join(sorted(set(self.splits.values())))

    @property
    def fingerprint(self) -> str:
        """Hex SHA-256 over everything that is put to a model."""
        parts = [[(e.ids, e.answer) for e in part] for part in (self.heldout, self.train, self.valid)]
        return sha256_text(repr(parts), repr([row.parts for row in self.asked]), repr(self.limits))

    def alone(self, task: str) -> Paper:
        """What of GAINED is about one task."""
        heldout = tuple(example for example in self.heldout if example.row.task == task)
        asked = tuple(row for row in self.asked if row.task == task)
        return replace(self, splits={task: self.splits[task]}, heldout=heldout, asked=asked)


@dataclass(frozen=True)
class Sheet:
    """One model's results on a paper; `exposed` are bits of exposure of training rows and of held-out ones."""

    said: tuple[str, ...]
    losses: list[tuple[float, int]]
    train: list[tuple[float, int]]
    valid: list[tuple[float, int]]
    scores: list[Scores]
    exposed: tuple[Sequence[float], Sequence[float]] = ((), ())


def set_paper(
    encoder: Encoder, train: Sequence[Example], valid: Sequence[Example], test: Sequence[Example], seed: int
) -> Paper:
    """Choose what is measured of each task: test rows where there are any, else validation rows; a sample where many.

    What is measured in all is shared among the tasks, down to `FEWEST` rows for GAINED. The encoder's longest row
    is the room that both models have.
    """
    generator = random.Random(seed)
    tasks = list(dict.fromkeys(example.row.task for example in train)) or [""]
    answered = ANSWERED_ROWS if len(tasks) == 1 else max(FEWEST, ANSWERED_ROWS // len(tasks))
    splits, limits = {}, {}
    heldout: list[Example] = []
    seen: list[Example] = []
    unseen: list[Example] = []
    for task in tasks:
        trained, validated, tested = ([e for e in part if e.row.task == task] for part in (train, valid, test))
        source, splits[task] = (tested, "test") if tested else (validated, "valid")
        heldout += _some(source, answered, generator)
        count = min(len(trained), len(validated), max(1, MEMORY_ROWS // len(tasks)))
        seen += _some(trained, count, generator)
        unseen += _some(validated, count, generator)
        right = (ids for e in trained for ids in encoder.answers(e.row, [answer_text(e.row)]))
        longest = max(map(len, right), default=64)
        limits[task] = min(longest + longest // 4 + 8, 256)
    room = encoder.max_length
    able = (example.row for example in heldout if example.row.asked)
    asked = tuple(row for row in able if 0 < len(encoder.prompt(row)) < room)
    return Paper(splits, tuple(heldout), asked, tuple(seen), tuple(unseen), limits, room)


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
    said = []
    for task, limit in paper.limits.items():
        said += answers(engine, [encoder.prompt(row) for row in paper.asked if row.task == task], limit)
    losses = answer_losses(base.decoder, paper.heldout)
    note("rows of the training set")
    train, valid = answer_losses(base.decoder, paper.train), answer_losses(base.decoder, paper.valid)
    exposed = exposures(base, paper.train, paper.room), exposures(base, paper.valid, paper.room)
    return Sheet(tuple(said), losses, train, valid, ask_skills(base, engine, note), exposed)


def work(base: Base, paper: Paper, tasks: Sequence[Task]) -> tuple[int, int]:
    """Tokens that one sitting, skills and drift included, has a model read, and at most write."""
    read, written = skills.work(base, tasks)
    encoder = base.encoder()
    read += sum(len(encoder.prompt(row)) for row in paper.asked)
    read += sum(len(e.ids) for part in (paper.heldout, paper.train, paper.valid) for e in part)
    twins = sum(len(e.ids) + TWINS * e.answer_tokens for part in (paper.train, paper.valid) for e in part[:ROWS])
    return read + twins + WINDOWS * min(LENGTH, paper.room), written + sum(
        paper.limits[row.task] for row in paper.asked
    )


def gained(paper: Paper, before: Sheet, after: Sheet) -> Gained:
    """The GAINED part: every metric on the same rows, the headline first; of plain text, the loss alone."""
    if not paper.heldout:
        return Gained(rows=0, split=paper.split, measures=())
    lead = headline([answer_text(row) for row in paper.asked]) if paper.asked else None
    measures = []
    for name in sorted(METRICS, key=lambda key: key != lead) if paper.asked else ():
        title, metric = METRICS[name]
        b, a = (np.array(_judged(metric, paper, sheet)) for sheet in (before, after))
        measures.append(
            Compared(
                name=name,
                title=title,
                unit="share",
                higher_is_better=True,
                base=stats.mean(b),
                tuned=stats.mean(a),
                change=stats.change(a, b, range(len(a))),
            )
        )
    measures.append(_loss_measure(before.losses, after.losses))
    return Gained(rows=len(paper.heldout), split=paper.split, measures=tuple(measures))


def unmoved(paper: Paper, before: Sheet, after: Sheet) -> tuple[str, ...]:
    """A line that says so where the headline is the same before and after on every row: it tells nothing then."""
    if not paper.asked:
        return ()
    title, metric = METRICS[headline([answer_text(row) for row in paper.asked])]
    scores, tuned = (_judged(metric, paper, sheet) for sheet in (before, after))
    if scores != tuned:
        return ()
    rows = f"each of {len(scores)} held-out rows" if len(scores) > 1 else "the one held-out row"
    share = sum(scores) / len(scores)
    return (
        f"{title} ({share:.1%}) did not move on {rows}, so it tells nothing; go by the answer loss and the samples",
    )


def _judged(metric: Metric, paper: Paper, sheet: Sheet) -> list[float]:
    """By asked row what a metric gives its answer."""
    return [best_over_references(metric, s, _right(row)) for s, row in zip(sheet.said, paper.asked, strict=True)]


def gained_by_task(paper: Paper, before: Sheet, after: Sheet) -> tuple[TaskGained, ...]:
    """GAINED of each task alone, where there are several."""
    if len(paper.limits) == 1:
        return ()
    return tuple(
        TaskGained(task=task, gained=gained(paper.alone(task), *(_alone(paper, task, s) for s in (before, after))))
        for task in paper.tasks
    )


def _alone(paper: Paper, task: str, sheet: Sheet) -> Sheet:
    """What a sheet says of GAINED of one task."""
    said = tuple(text for text, row in zip(sheet.said, paper.asked, strict=True) if row.task == task)
    losses = [loss for loss, example in zip(sheet.losses, paper.heldout, strict=True) if example.row.task == task]
    return replace(sheet, said=said, losses=losses)


def kept(before: Sheet, after: Sheet, moved: Moved, probe: Expected) -> Kept:
    """The KEPT part of the card."""
    return skills.kept(before.scores, after.scores, moved, probe)


def remembered(before: Sheet, after: Sheet) -> Memory:
    """The MEMORY part."""
    found = memory(before.train, after.train, before.valid, after.valid)
    return found.model_copy(
        update={
            "exposure": _exposure(after.exposed[0]),
            "exposure_heldout": _exposure(after.exposed[1]),
            "exposure_base": _exposure(before.exposed[0]),
        }
    )


def _exposure(bits: Sequence[float]) -> Estimate:
    return stats.mean(bits) if bits else Estimate(value=None, n=0, note="no answer has a name or a number")


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
    b, a = stats.Pooled.sums(before), stats.Pooled.sums(after)
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
