"""One run from rows to report: measure the base, train, keep the budget, measure again, write."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from graftwood.checkpoint import save_adapter, save_model
from graftwood.choose.items import halves
from graftwood.choose.reserve import parts
from graftwood.config import RUN_FILE, save_toml
from graftwood.data.batch import Rows
from graftwood.deciding import WINDOWS, Deciding, short_of_items
from graftwood.errors import ConfigError
from graftwood.evals import asking, canaries, judge, skills
from graftwood.evals.card import Card, Choice, Chosen, Memory
from graftwood.evals.fitting import fitting
from graftwood.evals.report import write_report
from graftwood.evals.retention import compare, probe_for
from graftwood.evals.task import Task
from graftwood.files import sha256_text, storage, write_json
from graftwood.generate.engine import Engine
from graftwood.job import Job, holds_of, paper_of, rows_of, settings_of, without_budget
from graftwood.keeping import keep
from graftwood.model.decoder import count_parameters
from graftwood.model.expected import Expected
from graftwood.progress import Display
from graftwood.train.hold import Hold
from graftwood.train.loop import Plan, Trainer, way_back
from graftwood.training import STOPPED, Trained, check_base, check_same, cost, drive

BASE, TUNED = "base.json", "tuned.json"  # what each of the two said and scored, row by row


@dataclass(frozen=True)
class Lesson:
    """What one trainer is given: rows, plan, and what holds the model to its base."""

    train: Rows
    valid: Rows
    plan: Plan
    holds: Sequence[Hold]


Teach = Callable[[Job, Callable[[], float], Path, Display, bool], Trained]


def execute(job: Job, out: Path, display: Display, resume: bool, teach: Teach | None = None) -> Card:
    """Measure the base, train, measure again, and leave everything in `out`; `teach` trains, by default on all rows."""
    begin(job, out, resume)
    started = time.monotonic()
    known = measure_base(job, out, display)
    if job.budget is not None and known.deciding is None:
        if resume:
            raise ConfigError(f"{known.plain}, and {out} was begun with a budget; give the questions it was begun with")
        job = without_budget(job, f"{known.plain}: a plain run, as with --keep none")
        display.say(f"warning: {job.warnings[-1]}")
        begin(job, out, resume=False)  # its run file repeats what runs
    measured = time.monotonic() - started
    trained = (teach or teach_all)(job, judge.drift_gauge(job.base, known.probe), out, display, resume)
    choice = None if known.deciding is None else keep(job, trained, known.deciding, out, display)
    return report(job, known, trained, choice, out, display, measured)


def begin(job: Job, out: Path, resume: bool) -> None:
    """Put the run file that repeats the run into its folder.

    Raises: ConfigError where another run, or one on another base, is resumed.
    """
    if resume:
        check_same(job.config, out / RUN_FILE)
    check_base(job.base, out, resume)
    with storage(f"write {out}"):
        save_toml(job.config.model_copy(update={"out": str(out.resolve())}), out / RUN_FILE)


def report(
    job: Job, known: Known, trained: Trained, choice: Choice | None, out: Path, display: Display, measured: float
) -> Card:
    """Save what was trained, measure it as the base was measured, and write the card.

    `measured` are the seconds that went into the base. Where nothing is shipped nothing is saved, what the run saved
    when it was stopped before is deleted, and the decoder is its base again.
    """
    started = time.monotonic()
    base, paper = job.base, paper_of(job)
    base.decoder.requires_grad_(False)
    engine = Engine(base.decoder, base.tokenizer.eos, base.tokenizer)
    with display.stage("drift"):
        moved = compare(base.decoder, known.probe)
    after, unmoved = known.before, tuple[str, ...]()
    (out / TUNED).unlink(missing_ok=True)  # an earlier part of the run may have shipped what this one does not
    if choice is None or choice.dial is not None:
        _save(job, out)
        ask = partial(skills.score_again, before=known.before.scores)
        after = judge.sit(base, engine, paper, ask, lambda what: display.say(f"tuned model: {what}"))
        unmoved = judge.unmoved(paper, known.before, after)
        _write(after, out / TUNED, {})
    else:
        _unsave(out)
    card = Card(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        model=base.name,
        model_fingerprint=base.fingerprint,
        data=", ".join(min(source, os.path.relpath(source), key=len) for source in job.config.sources),
        data_rows={"train": len(job.train), "valid": len(job.valid), "test": len(job.test)},
        warnings=(*job.warnings, *paper.left_out, *unmoved),
        gained=judge.gained(paper, known.before, after).model_copy(update={"note": _flattered(job, paper)}),
        tasks=judge.gained_by_task(paper, known.before, after),
        kept=judge.kept(known.before, after, moved, known.probe),
        memory=_memory(job, known.before, after, engine),
        chosen=_chosen(job, trained, choice),
        cost=cost(trained.progress, measured + time.monotonic() - started, base.decoder.device),
        curve=trained.curve,
        samples=judge.samples(paper, base.encoder(), known.before, after),
        choice=choice,
    )
    with storage(f"write the report into {out}"):
        write_report(card, out)
    return card


@dataclass(frozen=True)
class Known:
    """What was measured of the base for the report, and under a budget what decides, or why nothing can."""

    before: judge.Sheet
    probe: Expected
    deciding: Deciding | None = None
    plain: str = ""


def measure_base(job: Job, out: Path, display: Display) -> Known:
    """Put the paper to the base; under a budget half of the items report and the others decide.

    Where no budget was given and the base has no ability of which a share could be kept, or too few items to show it,
    nothing decides: a plain run can go on (see `without_budget`). Raises: ConfigError where one was given.
    """
    base = job.base
    with base.decoder.without_deltas():
        engine = Engine(base.decoder, base.tokenizer.eos, base.tokenizer)
        with display.stage("text of the base itself, to measure drift"):
            probe = probe_for(base, engine, job.technique.room(base.decoder))
        if job.budget is None:
            return Known(_base_sheet(job, engine, job.tasks, out, display), probe)
        decide, asked = (list(side) for side in zip(*map(halves, job.tasks), strict=True)) if job.tasks else ([], [])
        scores = skills.base_scores(base, engine, lambda what: display.say(f"base, to decide: {what}"), decide)
        if any(map(skills.counts, scores)):
            decides, reports = probe.split(WINDOWS)
            reserve = parts(fitting(base, job.reserve, job.technique.room(base.decoder)).tasks)
            deciding = Deciding.by(base, job.valid, scores, decides, reserve)
            why = short_of_items(base, deciding, job.budget, display)
            if why is None:
                return Known(_base_sheet(job, engine, asked, out, display), reports, deciding)
            tier = " or --tier standard" if job.config.tier == "pulse" else ""
            _refuse_budget(job, why, f"give a smaller share, more questions with --skills{tier}, or --keep none")
        else:
            why = _nothing_to_keep(job)
            more = "" if job.config.tier == "certificate" else ", or ask more items with --tier certificate"
            _refuse_budget(job, why, f"give --keep none{more}")
        return Known(_base_sheet(job, engine, job.tasks, out, display), probe, plain=why)


def _refuse_budget(job: Job, why: str, way: str) -> None:
    """Raises: ConfigError where a budget that nothing can show was asked for, by itself or by a race."""
    if job.asked.keep is not None or job.asked.keep_worst is not None:
        raise ConfigError(f"{why}; {way}")
    if job.asked.search:
        raise ConfigError(f"{why}, and a race is for a budget; leave out --search")


def _nothing_to_keep(job: Job) -> str:
    if job.tasks:
        return f"{job.base.name} is at chance in every ability, so no share can be kept"
    room = job.technique.room(job.base.decoder)
    return f"no ability of {job.base.name} can be measured in {room} positions, so no share can be kept"


def _base_sheet(job: Job, engine: Engine, tasks: Sequence[Task], out: Path, display: Display) -> judge.Sheet:
    """The base's own results, kept in the run folder so that a resumed run need not put the same paper again."""
    paper, named = paper_of(job), {task.name: task for task in tasks}
    asked = [asking.key(job.base, task) for task in tasks]
    key = sha256_text(job.base.fingerprint, job.base.decoder.precision, paper.fingerprint, *asked)
    kept = out / BASE
    stored = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    if stored.get("key") == key and "exposed" in stored:
        pairs = {key: [(total, count) for total, count in stored[key]] for key in ("losses", "train", "valid")}
        scores = [skills.restored(named[name], columns) for name, columns in stored["scores"].items()]
        return judge.Sheet(tuple(stored["said"]), scores=scores, exposed=tuple(stored["exposed"]), **pairs)
    ask = partial(skills.base_scores, tasks=tasks)
    sheet = judge.sit(job.base, engine, paper, ask, lambda what: display.say(f"base: {what}"))
    _write(sheet, kept, {"key": key})
    return sheet


def _write(sheet: judge.Sheet, file: Path, head: Mapping[str, str]) -> None:
    """All of a sheet, row by row and item by item."""
    scored = {
        scores.task.name: {"id": [item.id for item in scores.task.items()], **scores.columns()}
        for scores in sheet.scores
    }
    with storage(f"write {file}"):
        write_json(file, {**head, **asdict(replace(sheet, scores=[])), "scores": scored})


def teach_all(job: Job, gauge: Callable[[], float], out: Path, display: Display, resume: bool) -> Trained:
    """Train on all rows."""
    lesson = Lesson(*rows_of(job, display), job.plan, holds_of(job, display))
    return teach_lesson(job, lesson, gauge, out, display, resume)


def teach_lesson(
    job: Job, lesson: Lesson, gauge: Callable[[], float], out: Path, display: Display, resume: bool
) -> Trained:
    """Train from where the decoder stands, checkpoints and log in `out`, and dial back where an anchor says so."""
    trainer = trainer_of(job, lesson, gauge, out, display)
    curve = drive(trainer, out, display, resume)
    dial = math.prod(anchor.dial for anchor in job.anchors)
    if dial != 1:
        way_back(job.base.decoder, job.technique, out / "checkpoints")(dial)
    return Trained.by(trainer, curve)


def trainer_of(job: Job, lesson: Lesson, gauge: Callable[[], float], out: Path, display: Display) -> Trainer:
    """What trains a lesson, its checkpoints in `out`."""
    decoder, technique = job.base.decoder, job.technique
    rates, stage = technique.rates(decoder), partial(technique.stage, decoder)
    return Trainer(
        decoder, lesson.train, lesson.valid, lesson.plan, out / "checkpoints", gauge, rates, stage, lesson.holds
    )


def _flattered(job: Job, paper: judge.Paper) -> str | None:
    """What the rows of GAINED have chosen as well, where they are validation rows; test rows choose nothing."""
    if not paper.heldout or "valid" not in paper.splits.values():
        return None
    chose = ["the step", *(["the dial"] if job.budget else []), *(["the winner"] if job.config.search else [])]
    listed = " and ".join(filter(None, (", ".join(chose[:-1]), chose[-1])))
    how = "test.jsonl in each folder of --data"
    if len(job.config.sources) == 1:
        how = "--test FILE, or test.jsonl in the folder of --data"
    return f"validation rows also chose {listed}: for figures that chose nothing give test rows ({how})"


def _memory(job: Job, before: judge.Sheet, after: judge.Sheet, engine: Engine) -> Memory:
    """The MEMORY part, canaries with it where some were planted and something is shipped."""
    found = judge.remembered(before, after)
    if not job.canaries or after is before:
        return found
    told = canaries.look(job.base, engine, job.canaries, job.train[0].row.kind, job.config.seed)
    return found.model_copy(update={"canaries": told})


def _save(job: Job, out: Path) -> None:
    if job.technique.writes_base:
        save_model(job.base, out / "model")
    else:
        save_adapter(job.base, job.technique, out / "adapter")


def _unsave(out: Path) -> None:
    """Delete what this run saved when it was stopped before: it must not pass for the result."""
    for name in ("model", "adapter"):
        if (out / name).exists():
            with storage(f"delete {out / name}"):
                shutil.rmtree(out / name)


def _chosen(job: Job, trained: Trained, choice: Choice | None) -> Chosen:
    settings, reasons, title = settings_of(job), job.reasons, job.technique.title
    if choice is not None:
        settings |= {"dial": "nothing is shipped" if choice.dial is None else f"{choice.dial:g}"}
        reasons = reasons | {"dial": choice.why}
    return Chosen(
        technique=" + ".join((title, *(anchor.title for anchor in job.anchors))),
        settings=settings,
        reasons={key: why for key, why in reasons.items() if key in settings},
        trained_parameters=trained.parameters,
        total_parameters=count_parameters(job.base.decoder.parameters()),
        stopped=trained.progress.ended or STOPPED,
        best_step=trained.progress.best_step,
        steps=trained.progress.step,
        epochs=trained.epochs,
    )
