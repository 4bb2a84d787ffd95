"""Tasks apart: an adapter a task beside the mixture, or one task after another, and what each does to the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from pathlib import Path

import torch
from torch import Tensor

from graftwood.checkpoint import load_step, save_adapter
from graftwood.evals import judge
from graftwood.evals.card import Card, Matrix
from graftwood.evals.report import write_report
from graftwood.evals.retention import probe_for
from graftwood.evals.score import answer_losses
from graftwood.evals.transfer import ByTask, beside, by_task, one_after_another
from graftwood.files import storage
from graftwood.generate.engine import Engine
from graftwood.job import Job, holds_of, paper_of, rows_of
from graftwood.model.decoder import Decoder
from graftwood.progress import Display
from graftwood.train.hold import Hold
from graftwood.train.loop import START
from graftwood.training import EACH, SEQUENCE, STOPPED, Trained
from graftwood.tuning import Lesson, execute, teach_lesson


def execute_each(job: Job, out: Path, display: Display, resume: bool) -> Card:
    """The mixture, then an adapter a task from the same start, in `each/<task>`; the mixture's stays on the base."""
    card = execute(job, out, display, resume)
    if card.chosen.stopped == STOPPED:
        return card
    base, decoder = job.base, job.base.decoder
    heldout = paper_of(job).heldout
    start = load_step(out / "checkpoints" / START).trained
    mixed = {name: decoder.get_parameter(name).detach().clone() for name in start}
    mix = by_task(heldout, answer_losses(decoder, heldout))
    with decoder.without_deltas():
        losses = {"base": by_task(heldout, answer_losses(decoder, heldout)), "mix": mix}
        engine = Engine(decoder, base.tokenizer.eos, base.tokenizer)
        gauge = judge.drift_gauge(base, probe_for(base, engine, job.technique.room(decoder)))
    alone: dict[str, str] = {}
    for task in losses["base"]:
        display.say(f"{task} alone")
        _put(decoder, start)
        folder = out / EACH / _named(task)
        trained = _teach(job, task, holds_of(job, display), gauge, folder, display, resume)
        decoder.requires_grad_(False)
        if trained.progress.ended is None:
            card = card.model_copy(update={"chosen": card.chosen.model_copy(update={"stopped": STOPPED})})
            break
        save_adapter(base, job.technique, folder / "adapter")
        alone[task] = f"{task} alone"
        losses[alone[task]] = by_task(heldout, answer_losses(decoder, heldout))
    _put(decoder, mixed)
    decoder.requires_grad_(False)
    return _with(card, beside(losses, alone), out)


def execute_sequence(job: Job, out: Path, display: Display, resume: bool) -> Card:
    """All tasks one after another, in the order they were given, each from where the one before it ended."""
    decoder, heldout = job.base.decoder, paper_of(job).heldout
    names = list(decoder.trained())
    with decoder.without_deltas():
        base = by_task(heldout, answer_losses(decoder, heldout))
    after: dict[str, ByTask] = {}

    def teach(job: Job, gauge: Callable[[], float], out: Path, display: Display, resume: bool) -> Trained:
        holds = holds_of(job, display)  # the anchors hold to the base, not to what the task before left
        parts: list[Trained] = []
        for place, task in enumerate(base, 1):
            display.say(f"task {place} of {len(base)}: {task}")
            for name in names:
                decoder.get_parameter(name).requires_grad_(True)
            folder = out / SEQUENCE / f"{place}-{_named(task)}"
            parts.append(_teach(job, task, holds, gauge, folder, display, resume))
            if parts[-1].progress.ended is None:
                break
            after[task] = by_task(heldout, answer_losses(decoder, heldout))
        return reduce(Trained.then, parts)

    card = execute(job, out, display, resume, teach)
    return _with(card, one_after_another(base, after), out)


def _teach(
    job: Job, task: str, holds: Sequence[Hold], gauge: Callable[[], float], out: Path, display: Display, resume: bool
) -> Trained:
    """Train on the rows of one task."""
    train, valid = (rows.only(rows.tasks.get(task, [])) for rows in rows_of(job, display))
    return teach_lesson(job, Lesson(train, valid, replace(job.plan, shares={}), holds), gauge, out, display, resume)


def _with(card: Card, matrix: Matrix, out: Path) -> Card:
    card = card.model_copy(update={"matrix": matrix})
    with storage(f"write the report into {out}"):
        write_report(card, out)
    return card


@torch.no_grad()
def _put(decoder: Decoder, tensors: Mapping[str, Tensor]) -> None:
    """Give parameters these values, and let them train."""
    for name, tensor in tensors.items():
        decoder.get_parameter(name).requires_grad_(True).copy_(tensor)


def _named(task: str) -> str:
    return task.replace("/", "-")
