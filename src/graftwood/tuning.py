"""One run from rows to report, in stages: prepare, forecast, measure the base, train, measure again, write."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from graftwood.anchor import Anchor, Ground
from graftwood.base import Base
from graftwood.checkpoint import save_adapter, save_model
from graftwood.config import RunConfig, save_toml
from graftwood.data.audit import audit
from graftwood.data.batch import Examples
from graftwood.data.encode import Example, encode_rows
from graftwood.data.mixture import MixedOrder, order_for
from graftwood.data.sources import Splits
from graftwood.draft import IN_MEMORY, Draft
from graftwood.evals import judge, skills
from graftwood.evals.card import Card, Chosen
from graftwood.evals.report import write_report
from graftwood.evals.retention import compare, probe_for
from graftwood.evals.task import TASKS
from graftwood.files import sha256_text, storage, write_json
from graftwood.generate.engine import Engine
from graftwood.model.decoder import count_parameters
from graftwood.progress import Display, duration, size
from graftwood.technique import Technique
from graftwood.train.forecast import Forecast, forecast
from graftwood.train.hold import Hold
from graftwood.train.loop import Plan, Trainer
from graftwood.training import Trained, check_same, cost, drive

WRITING = 2  # a token written takes about as long as so many read, where dozens of rows grow together


@dataclass(frozen=True)
class Job:
    """A run that is ready to start: the technique is on the base, nothing has been trained."""

    config: RunConfig
    base: Base
    technique: Technique
    plan: Plan
    reasons: dict[str, str]
    anchors: tuple[Anchor, ...]
    splits: Splits
    train: list[Example]
    valid: list[Example]
    test: list[Example]
    warnings: tuple[str, ...]


def prepare(drafted: Draft, base: Base, display: Display) -> Job:
    """Encode the rows, say what they are, and put the technique on the base.

    Raises: DataError for rows that do not fit the model, ConfigError for options that do not fit the base.
    """
    config, splits = _lasting(drafted.config, base), drafted.splits
    technique = drafted.technique.read(base.tokenizer.encode)
    encoder = base.encoder(min(config.max_length, base.decoder.context - technique.positions))
    train, valid, test = (encode_rows(encoder, rows) for rows in (splits.train, splits.valid, splits.test))
    technique.apply(base.decoder, config.seed)
    warnings = _describe(display, splits, train, [*valid, *test], encoder.max_length)
    warnings += _describe_mixture(display, train, drafted.plan)
    return Job(
        config, base, technique, drafted.plan, drafted.reasons, drafted.anchors, splits, train, valid, test, warnings
    )


def _lasting(config: RunConfig, base: Base) -> RunConfig:
    """The configuration with every path whole, so that its run file works from any folder."""
    whole = {key: str(Path(path).resolve()) for key in ("valid", "test") if (path := getattr(config, key))}
    sources = tuple(str(Path(source).resolve()) for source in config.sources)
    data = config.data if config.data == IN_MEMORY else sources[0] if len(sources) == 1 else sources
    return config.model_copy(update=whole | {"data": data, "model": base.source})


def _describe(
    display: Display, splits: Splits, train: Sequence[Example], heldout: Sequence[Example], limit: int
) -> tuple[str, ...]:
    tokens, counted = sum(len(e.ids) for e in train), sum(e.answer_tokens for e in train)
    display.say(
        f"data: {len(splits.train)} training, {len(splits.valid)} validation, {len(splits.test)} test rows "
        f"({splits.shape}); {splits.rule}"
    )
    if splits.extras:
        display.say(f"not read: {', '.join(splits.extras)}")
    display.say(f"training rows hold {tokens:,} tokens, {counted:,} of them answers")
    warnings = []
    cut = [example for example in (*train, *heldout) if example.cut]
    if cut:
        lost = sum(example.cut for example in cut)
        warnings.append(f"{len(cut)} rows are longer than {limit} tokens and lose {lost:,} tokens at their end")
    found = audit(splits)
    if found.exact_duplicates or found.near_duplicates or found.leaks:
        warnings += found.lines()
    else:
        for line in found.lines():
            display.say(line)
    if not heldout:
        warnings.append("no row is held out: nothing can be said about what was gained")
    for warning in warnings:
        display.say(f"warning: {warning}")
    return tuple(warnings)


def _describe_mixture(display: Display, train: Sequence[Example], plan: Plan) -> tuple[str, ...]:
    order = order_for(Examples(train).tasks, plan.shares, plan.batch, plan.epochs, plan.seed)
    if not isinstance(order, MixedOrder):
        return ()
    for line in order.lines():
        display.say(line)
    for warning in order.dry():
        display.say(f"warning: {warning}")
    return tuple(order.dry())


def preview(job: Job, display: Display) -> Forecast:
    """Say what will run, why, and what it will take."""
    with display.stage("forecast"):
        expected = forecast(job.base.decoder, Examples(job.train), Examples(job.valid), job.plan)
    total = count_parameters(job.base.decoder.parameters())
    display.say(
        f"{job.technique.title} on {job.base.name}: {expected.trained_parameters:,} of {total:,} parameters train "
        f"({expected.trained_parameters / total:.2%})"
    )
    display.say(f"learning rate {job.plan.learning_rate:g}: {job.reasons['learning rate']}")
    display.say(
        f"forecast: {expected.steps} steps, {expected.tokens:,} tokens at {expected.tokens_per_second:.0f} tokens/s: "
        f"about {duration(expected.seconds)} of training, {size(expected.memory_bytes)} of memory"
    )
    read, written = judge.work(job.base, paper_of(job))
    sitting = (read + WRITING * written) / expected.forward_tokens_per_second
    if job.config.each:
        display.say("then one adapter a task on its own rows: in all about as long again")
    display.say(f"measuring: up to {duration(sitting)} for the tuned model, as long for the base where it is not known")
    return expected


@dataclass(frozen=True)
class Lesson:
    """What one trainer is given: rows, plan, and what holds the model to its base."""

    train: Sequence[Example]
    valid: Sequence[Example]
    plan: Plan
    holds: Sequence[Hold]


Teach = Callable[[Job, Callable[[], float], Path, Display, bool], Trained]


def execute(job: Job, out: Path, display: Display, resume: bool, teach: Teach | None = None) -> Card:
    """Measure the base, train, measure again, and leave everything in `out`; `teach` trains, by default on all rows."""
    if resume:
        check_same(job.config, out / "run.toml")
    with storage(f"write {out}"):
        out.mkdir(parents=True, exist_ok=True)
        save_toml(job.config.model_copy(update={"out": str(out)}), out / "run.toml")
    started = time.monotonic()
    base = job.base
    paper = paper_of(job)
    with base.decoder.without_deltas():
        engine = Engine(base.decoder, base.tokenizer.eos, base.tokenizer)
        with display.stage("text of the base itself, to measure drift"):
            probe = probe_for(base, engine)
        before = base_sheet(job, engine, paper, out, display)
    measured = time.monotonic() - started

    trained = (teach or teach_all)(job, judge.drift_gauge(base, probe), out, display, resume)

    started = time.monotonic()
    base.decoder.requires_grad_(False)
    _save(job, out)
    engine = Engine(base.decoder, base.tokenizer.eos, base.tokenizer)
    with display.stage("drift"):
        moved = compare(base.decoder, probe)
    after = judge.sit(base, engine, paper, skills.score_all, lambda what: display.say(f"tuned model: {what}"))
    card = Card(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        model=base.name,
        model_fingerprint=base.fingerprint,
        data=", ".join(min(source, os.path.relpath(source), key=len) for source in job.config.sources),
        data_rows={"train": len(job.train), "valid": len(job.valid), "test": len(job.test)},
        warnings=job.warnings,
        gained=judge.gained(paper, before, after),
        tasks=judge.gained_by_task(paper, before, after),
        kept=judge.kept(before, after, moved, probe),
        memory=judge.remembered(before, after),
        chosen=_chosen(job, trained),
        cost=cost(trained.progress, measured + time.monotonic() - started),
        curve=trained.curve,
        samples=judge.samples(paper, base.encoder(), before, after),
    )
    with storage(f"write the report into {out}"):
        write_report(card, out)
    return card


def paper_of(job: Job) -> judge.Paper:
    """What is measured before and after."""
    encoder = job.base.encoder(job.config.max_length)
    return judge.set_paper(encoder, job.train, job.valid, job.test, job.config.seed)


def base_sheet(job: Job, engine: Engine, paper: judge.Paper, out: Path, display: Display) -> judge.Sheet:
    """The base's own results, kept in the run folder so that a resumed run need not put the same paper again."""
    asked = [task.key for task in TASKS.all().values()]
    key = sha256_text(job.base.fingerprint, job.base.decoder.precision, paper.fingerprint, *asked)
    kept = out / "base.json"
    stored = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    if stored.get("key") == key:
        pairs = {key: [(total, count) for total, count in stored[key]] for key in ("losses", "train", "valid")}
        scores = [skills.restored(TASKS.get(name), columns) for name, columns in stored["scores"].items()]
        return judge.Sheet(tuple(stored["said"]), scores=scores, **pairs)
    sheet = judge.sit(job.base, engine, paper, skills.base_scores, lambda what: display.say(f"base: {what}"))
    scored = {scores.task.name: skills.stored(scores) for scores in sheet.scores}
    stored = {"key": key, **asdict(replace(sheet, scores=[])), "scores": scored}
    with storage(f"write {kept}"):
        write_json(kept, stored)
    return sheet


def holds_of(job: Job, display: Display) -> list[Hold]:
    """The anchors at work on what the decoder is now."""
    ground = Ground(job.base, job.technique, Examples(job.train), job.plan, display.stage)
    return [anchor.hold(ground) for anchor in job.anchors]


def teach_all(job: Job, gauge: Callable[[], float], out: Path, display: Display, resume: bool) -> Trained:
    """Train on all rows."""
    lesson = Lesson(job.train, job.valid, job.plan, holds_of(job, display))
    return teach_lesson(job, lesson, gauge, out, display, resume)


def teach_lesson(
    job: Job, lesson: Lesson, gauge: Callable[[], float], out: Path, display: Display, resume: bool
) -> Trained:
    """Train from where the decoder stands, checkpoints and log in `out`, and dial back where an anchor says so."""
    rows = Examples(lesson.train), Examples(lesson.valid)
    decoder, technique = job.base.decoder, job.technique
    rates, stage = technique.rates(decoder), partial(technique.stage, decoder)
    trainer = Trainer(decoder, *rows, lesson.plan, out / "checkpoints", gauge, rates, stage, lesson.holds)
    curve = drive(trainer, out, display, resume)
    dial = math.prod(anchor.dial for anchor in job.anchors)
    if dial != 1:
        trainer.dial(technique, dial)
    return Trained.by(trainer, curve)


def _save(job: Job, out: Path) -> None:
    if job.technique.writes_base:
        save_model(job.base, out / "model")
    else:
        save_adapter(job.base, job.technique, out / "adapter")


def _chosen(job: Job, trained: Trained) -> Chosen:
    config, plan = job.config, job.plan
    options = job.technique.model_dump().items()
    settings = {name: ", ".join(map(str, value)) if isinstance(value, tuple) else str(value) for name, value in options}
    settings |= {
        "learning rate": f"{plan.learning_rate:g}",
        "epochs": f"{config.epochs:g}",
        "batch": f"{config.batch} rows",
        "schedule": "linear",
        "seed": str(config.seed),
    }
    if len(config.sources) > 1:
        settings |= _mixing(config, plan)
    settings |= {f"anchor {anchor.name}": _listed(anchor) for anchor in job.anchors}
    decoder = job.base.decoder
    return Chosen(
        technique=job.technique.title,
        settings=settings,
        reasons={key: why for key, why in job.reasons.items() if key in settings},
        trained_parameters=trained.parameters,
        total_parameters=count_parameters(decoder.parameters()),
        stopped=trained.progress.ended or "stopped by you",
        best_step=trained.progress.best_step,
        steps=trained.progress.step,
        epochs=trained.epochs,
    )


def _mixing(config: RunConfig, plan: Plan) -> dict[str, str]:
    """How the tasks come together."""
    if config.sequence:
        return {"tasks": "one after another"}
    return {"tasks": ", ".join(f"{task} {share:.0%}" for task, share in plan.shares.items()), "stop on": plan.stop_on}


def _listed(anchor: Anchor) -> str:
    return ", ".join(f"{name} {value}" for name, value in anchor.model_dump().items())
