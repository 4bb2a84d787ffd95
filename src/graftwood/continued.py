"""The report card of a base that went on learning from a corpus: the same questions before and after."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from graftwood.base import Base
from graftwood.data.corpus import Windows
from graftwood.data.encode import Example
from graftwood.data.rows import Row
from graftwood.evals import judge, skills
from graftwood.evals.card import Card, Chosen, CurvePoint
from graftwood.evals.fitting import fitting
from graftwood.evals.report import write_report
from graftwood.evals.retention import compare, probe_for
from graftwood.evals.task import TASKS
from graftwood.files import storage
from graftwood.generate.engine import Engine
from graftwood.progress import Display
from graftwood.train.loop import Trainer
from graftwood.training import cost

ROWS, LONGEST = 48, 256  # windows of each kind that are asked about, and their tokens
_NOTHING = "nothing is held out: nothing can be said about what was gained"


class Examination:
    """What the base does before it learns; `report` asks the same afterwards."""

    def __init__(self, base: Base, train: Windows, valid: Windows | None, seed: int, display: Display) -> None:
        self._base, self._display = base, display
        self._engine = Engine(base.decoder, base.tokenizer.eos, base.tokenizer)
        started = time.monotonic()
        with display.stage("text of the base itself, to measure drift"):
            self._probe = probe_for(base, self._engine)
        held_out = [] if valid is None else _examples(base, valid)
        self._counts = {"train": len(train), "valid": 0 if valid is None else len(valid), "test": 0}
        self._paper = judge.set_paper(base.encoder(), _examples(base, train), held_out, [], seed)
        fits = fitting(base, list(TASKS.all().values()), base.decoder.context)
        self._left_out = fits.left_out
        ask = partial(skills.base_scores, tasks=fits.tasks)
        self._before = judge.sit(base, self._engine, self._paper, ask, lambda what: display.say(f"base: {what}"))
        self._seconds = time.monotonic() - started

    @property
    def gauge(self) -> Callable[[], float]:
        """A quick reading of drift."""
        return judge.drift_gauge(self._base, self._probe)

    def report(self, trainer: Trainer, chosen: Chosen, data: str, curve: tuple[CurvePoint, ...], out: Path) -> Card:
        """Ask again and write the card into `out`."""
        started, base = time.monotonic(), self._base
        with self._display.stage("drift"):
            moved = compare(base.decoder, self._probe)
        engine = Engine(base.decoder, base.tokenizer.eos, base.tokenizer)
        after = judge.sit(
            base,
            engine,
            self._paper,
            partial(skills.score_again, before=self._before.scores),
            lambda what: self._display.say(f"after training: {what}"),
        )
        card = Card(
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            model=base.name,
            model_fingerprint=base.fingerprint,
            data=data,
            data_rows=self._counts,
            warnings=(*self._left_out, *(() if self._paper.heldout else (_NOTHING,))),
            gained=judge.gained(self._paper, self._before, after),
            kept=judge.kept(self._before, after, moved, self._probe),
            memory=judge.remembered(self._before, after),
            chosen=chosen,
            cost=cost(trainer.progress, self._seconds + time.monotonic() - started, base.decoder.device),
            curve=curve,
            samples=judge.samples(self._paper, base.encoder(), self._before, after),
        )
        with storage(f"write the report into {out}"):
            write_report(card, out)
        return card


def _examples(base: Base, windows: Windows) -> list[Example]:
    """Windows spread over the whole, cut to what can be asked about, as rows of text."""
    made = []
    for row in range(0, len(windows), max(1, len(windows) // ROWS)):
        (packed,) = windows.packs([row], LONGEST)
        ids = tuple(packed.ids[0, :LONGEST].tolist())
        counted = {int(place) + 1 for place in packed.predict}
        text = Row("text", completion=base.tokenizer.decode(ids, skip_specials=True), file=windows.place(row), line=1)
        made.append(Example(ids, tuple(place in counted for place in range(len(ids))), text))
    return [example for example in made if example.answer_tokens][:ROWS]
