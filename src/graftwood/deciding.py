"""What decides how much of a base is kept: rows, text and items that no report uses, and whether they are enough."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from graftwood.base import Base
from graftwood.choose.budget import Budget, percent
from graftwood.data.batch import Packed, packs
from graftwood.data.encode import Example
from graftwood.data.mixture import round_robin
from graftwood.evals import asking, skills
from graftwood.evals.asking import Scores
from graftwood.evals.decision import items_needed, together, too_few
from graftwood.evals.task import Task
from graftwood.files import sha256_text
from graftwood.generate.engine import Engine
from graftwood.model.expected import Expected
from graftwood.progress import Display
from graftwood.train.loop import mean_loss

ROWS, WINDOWS = 48, 12  # validation rows and windows of the base's text that a look reads; no report uses these windows


@dataclass(frozen=True)
class Deciding:
    """What decides: validation rows with the base's loss on them, scores of the base and some of its text.

    Items and text are in no report. The rows are, where there are no test rows: GAINED then reads validation rows, and
    the card says what they chose. An answer of these rows has `answer` tokens on average. `reserve` are more items of
    the abilities that count, for decisions that those leave open.
    """

    rows: tuple[Packed, ...]
    answer: float
    base_loss: float
    scores: Sequence[Scores]
    probe: Expected
    reserve: tuple[Task, ...] = ()

    @classmethod
    def by(
        cls,
        base: Base,
        valid: Sequence[Example],
        scores: Sequence[Scores],
        probe: Expected,
        reserve: Sequence[Task] = (),
    ) -> Deciding:
        """What a base that carries nothing decides by."""
        rows = tuple(packed.to(base.decoder.device) for packed in packs(round_robin(valid)[:ROWS], 1024))
        loss = mean_loss(base.decoder, rows)
        assert loss is not None, "a budget needs validation rows"
        answer = sum(len(packed.targets) for packed in rows) / sum(len(packed.documents) for packed in rows)
        counted = {own.task.name for own in scores if skills.counts(own)}
        more = tuple(task for task in reserve if task.name in counted)
        return cls(rows, max(1.0, answer), loss, scores, probe, more)

    def asked(self, base: Base) -> str:
        """Hex SHA-256 over the base in its number format and all that it is asked."""
        tasks = [*(scores.task for scores in self.scores), *self.reserve]
        return sha256_text(base.fingerprint, base.decoder.precision, *[asking.key(base, task) for task in tasks])

    def half(self, base: Base) -> Deciding:
        """What is enough to rank by: half of the validation rows and of the text."""
        rows = self.rows[: (len(self.rows) + 1) // 2]
        loss = mean_loss(base.decoder, rows)
        assert loss is not None, "half of some rows are some"
        return replace(self, rows=rows, base_loss=loss, probe=self.probe.split(max(1, len(self.probe.ids) // 2))[0])

    def key(self, base: Base) -> str:
        """Hex SHA-256 over the base and all that decides about what became of it."""
        rows = [(packed.ids.tolist(), packed.documents, packed.predict.tolist()) for packed in self.rows]
        return sha256_text(self.asked(base), repr(rows))


def short_of_items(base: Base, deciding: Deciding, budget: Budget, display: Display) -> str | None:
    """Why the items at hand, the reserve among them, cannot show the budget even of a model that lost nothing.

    Where they can it is said how many it takes.
    """
    scores, reserve = [own for own in deciding.scores if skills.counts(own)], deciding.reserve
    short = too_few(scores, budget.kept, budget.worst)
    if short is not None and reserve:
        engine = Engine(base.decoder, base.tokenizer.eos, base.tokenizer)
        more = skills.base_scores(base, engine, lambda what: display.say(f"base, in reserve: {what}"), reserve)
        short = too_few(together(scores, more), budget.kept, budget.worst)
    if short is not None:
        return short
    needed, items = items_needed(scores, budget.kept), sum(len(own.right) for own in scores)
    spare = sum(len(task.items()) for task in reserve)
    held = f", up to {spare} more where they leave it open" if spare else ""
    display.say(
        f"to keep {percent(budget.kept)} of the base takes {needed} items at least, were nothing lost: "
        f"{items} decide{held}"
    )
    return None
