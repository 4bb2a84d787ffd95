"""One run from rows to report, in stages: prepare, forecast, measure the base, train, measure again, write."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from graftwood.anchor import Anchor, Ground, narrow
from graftwood.base import Base
from graftwood.checkpoint import save_adapter, save_model
from graftwood.choose.budget import Budget
from graftwood.choose.dial import Settled
from graftwood.choose.items import halves
from graftwood.config import RunConfig, save_toml
from graftwood.data.audit import audit
from graftwood.data.batch import Examples
from graftwood.data.encode import Example, encode_rows
from graftwood.data.sources import Splits
from graftwood.draft import IN_MEMORY, Draft
from graftwood.errors import ConfigError
from graftwood.evals import judge, skills
from graftwood.evals.card import Arm, Card, Choice, Chosen, CurvePoint
from graftwood.evals.decision import able
from graftwood.evals.report import write_report
from graftwood.evals.retention import compare, probe_for
from graftwood.evals.task import Task
from graftwood.files import sha256_text, storage, write_json
from graftwood.generate.engine import Engine
from graftwood.keeping import WINDOWS, Deciding, Keeper, candidates, chosen
from graftwood.model.decoder import count_parameters
from graftwood.model.expected import Expected
from graftwood.progress import Display, duration, size
from graftwood.technique import Technique
from graftwood.train.below import rows_kept, rows_tried
from graftwood.train.forecast import Forecast, forecast
from graftwood.train.loop import Plan, Trainer
from graftwood.training import check_same, cost, drive

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
    budget: Budget | None
    tasks: tuple[Task, ...]
    splits: Splits
    train: list[Example]
    valid: list[Example]
    test: list[Example]
    warnings: tuple[str, ...]
    begins: int  # the block that training begins at


def prepare(drafted: Draft, base: Base, display: Display) -> Job:
    """Encode the rows, say what they are, and put the technique on the base.

    Raises: DataError for rows that do not fit the model, ConfigError for options that do not fit the base.
    """
    config, splits = _lasting(drafted.config, base), drafted.splits
    technique = drafted.technique.read(base.tokenizer.encode)
    encoder = base.encoder(min(config.max_length, base.decoder.context - technique.positions))
    train, valid, test = (encode_rows(encoder, rows) for rows in (splits.train, splits.valid, splits.test))
    technique.apply(base.decoder, config.seed)
    begins = narrow(drafted.anchors, base.decoder)
    warnings = _describe(display, splits, train, [*valid, *test], encoder.max_length)
    chosen = drafted.plan, drafted.reasons, drafted.anchors, drafted.budget, drafted.tasks
    return Job(config, base, technique, *chosen, splits, train, valid, test, warnings, begins)


def _lasting(config: RunConfig, base: Base) -> RunConfig:
    """The configuration with every path whole, so that its run file works from any folder."""
    paths = {key: getattr(config, key) for key in ("data", "valid", "test") if getattr(config, key)}
    whole = {key: str(Path(path).resolve()) for key, path in paths.items() if key != "data" or path != IN_MEMORY}
    if config.skills is not None:
        parts = [part.strip() for part in config.skills.split(",")]
        whole["skills"] = ",".join(str(Path(part).resolve()) if Path(part).exists() else part for part in parts)
    return config.model_copy(update=whole | {"model": base.source})


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


def preview(job: Job, display: Display) -> Forecast:
    """Say what will run, why, and what it will take."""
    with display.stage("forecast"):
        rows = rows_tried(job.base.decoder, job.train, job.begins)
        expected = forecast(job.base.decoder, rows, Examples(job.valid), job.plan)
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
    read, written = judge.work(job.base, _paper(job))
    sitting = (read + WRITING * written) / expected.forward_tokens_per_second
    display.say(f"measuring: up to {duration(sitting)} for the tuned model, as long for the base where it is not known")
    return expected


def execute(job: Job, out: Path, display: Display, resume: bool) -> Card:
    """Measure the base, train, measure again, and leave everything in `out`."""
    if resume:
        check_same(job.config, out / "run.toml")
    with storage(f"write {out}"):
        out.mkdir(parents=True, exist_ok=True)
        save_toml(job.config.model_copy(update={"out": str(out)}), out / "run.toml")
    started = time.monotonic()
    base, paper = job.base, _paper(job)
    known = _measure(job, paper, out, display)
    measured = time.monotonic() - started

    trainer, curve = _train(job, known.probe, out, display, resume)
    choice = None if known.deciding is None else _settle(job, trainer, known.deciding, out, display)

    started = time.monotonic()
    base.decoder.requires_grad_(False)
    engine = Engine(base.decoder, base.tokenizer.eos, base.tokenizer)
    with display.stage("drift"):
        moved = compare(base.decoder, known.probe)
    after = known.before
    if choice is None or choice.dial is not None:
        _save(job, out)
        report = partial(skills.score_all, tasks=known.tasks)
        after = judge.sit(base, engine, paper, report, lambda what: display.say(f"tuned model: {what}"))
    card = Card(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        model=base.name,
        model_fingerprint=base.fingerprint,
        data=min(job.config.data, os.path.relpath(job.config.data), key=len),
        data_rows={"train": len(job.train), "valid": len(job.valid), "test": len(job.test)},
        warnings=job.warnings,
        gained=judge.gained(paper, known.before, after),
        kept=judge.kept(known.before, after, moved, known.probe),
        memory=judge.remembered(known.before, after),
        chosen=_chosen(job, trainer, choice),
        cost=cost(trainer, measured + time.monotonic() - started),
        curve=curve,
        samples=judge.samples(paper, base.encoder(), known.before, after),
        choice=choice,
    )
    with storage(f"write the report into {out}"):
        write_report(card, out)
    return card


def _paper(job: Job) -> judge.Paper:
    encoder = job.base.encoder(job.config.max_length)
    return judge.set_paper(encoder, job.train, job.valid, job.test, job.config.seed)


@dataclass(frozen=True)
class _Known:
    """What was measured of the base for the report, and under a budget what decides."""

    before: judge.Sheet
    tasks: Sequence[Task]
    probe: Expected
    deciding: Deciding | None = None


def _measure(job: Job, paper: judge.Paper, out: Path, display: Display) -> _Known:
    """Put the paper to the base; under a budget half of the items report and the others decide.

    Raises: ConfigError where a budget is given and the base has no ability above chance.
    """
    base, budget = job.base, job.budget
    with base.decoder.without_deltas():
        engine = Engine(base.decoder, base.tokenizer.eos, base.tokenizer)
        with display.stage("text of the base itself, to measure drift"):
            probe = probe_for(base, engine)
        if budget is None:
            return _Known(_before(job, engine, paper, job.tasks, out, display), job.tasks, probe)
        decide, report = (list(side) for side in zip(*map(halves, job.tasks), strict=True))
        before = _before(job, engine, paper, report, out, display)
        scores = skills.base_scores(base, engine, lambda what: display.say(f"base, to decide: {what}"), decide)
    if not any(map(able, scores)):
        raise ConfigError(f"{base.name} is at chance in every ability, so no share can be kept; give --keep none")
    decides, reports = probe.split(WINDOWS)
    return _Known(before, report, reports, Deciding(job.valid, scores, decides))


def _before(
    job: Job, engine: Engine, paper: judge.Paper, tasks: Sequence[Task], out: Path, display: Display
) -> judge.Sheet:
    """The base's own results, kept in the run folder so that a resumed run need not put the same paper again."""
    named = {task.name: task for task in tasks}
    asked = [task.key for task in tasks]
    key = sha256_text(job.base.fingerprint, job.base.decoder.precision, paper.fingerprint, *asked)
    kept = out / "base.json"
    stored = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    if stored.get("key") == key:
        pairs = {key: [(total, count) for total, count in stored[key]] for key in ("losses", "train", "valid")}
        scores = [skills.restored(named[name], columns) for name, columns in stored["scores"].items()]
        return judge.Sheet(tuple(stored["said"]), scores=scores, **pairs)
    ask = partial(skills.base_scores, tasks=tasks)
    sheet = judge.sit(job.base, engine, paper, ask, lambda what: display.say(f"base: {what}"))
    scored = {scores.task.name: skills.stored(scores) for scores in sheet.scores}
    stored = {"key": key, **asdict(replace(sheet, scores=[])), "scores": scored}
    with storage(f"write {kept}"):
        write_json(kept, stored)
    return sheet


def _settle(job: Job, trainer: Trainer, deciding: Deciding, out: Path, display: Display) -> Choice:
    """Take the trained model as far along its way as the budget allows."""
    assert job.budget is not None
    started = time.monotonic()
    key = f"{job.plan} {job.technique!r} {job.anchors!r} step {trainer.progress.best_step}"
    go, file = trainer.way(job.technique), out / "decisions.json"
    keeper = Keeper(job.base, go, deciding, job.budget, file, sha256_text(key), display)
    base_loss, settled = keeper.settle()
    choice = chosen(_arm(job, trainer, settled), settled, base_loss, job.budget, keeper.items)
    display.say(choice.why + (f"; {choice.price}" if choice.price else ""))
    plain = int(Examples(job.train).sizes.sum()) * trainer.progress.step / trainer.order.steps_per_epoch
    progress = trainer.progress
    return choice.model_copy(
        update={
            "seconds": progress.train_seconds + time.monotonic() - started,
            "tokens": progress.tokens,
            "plain_seconds": progress.train_seconds * plain / max(1, progress.tokens),
            "plain_tokens": round(plain),
        }
    )


def _arm(job: Job, trainer: Trainer, settled: Settled) -> Arm:
    """What was trained, as the record of the choice names it."""
    progress = trainer.progress
    return Arm(
        name=" + ".join((job.technique.name, *(anchor.name for anchor in job.anchors))),
        settings=_settings(job),
        steps=progress.step,
        tokens=progress.tokens,
        seconds=progress.train_seconds,
        fate="dropped" if settled.shipped is None else "shipped",
        candidates=candidates(settled),
    )


def _train(
    job: Job, probe: Expected, out: Path, display: Display, resume: bool
) -> tuple[Trainer, tuple[CurvePoint, ...]]:
    gauge = judge.drift_gauge(job.base, probe)
    train, valid = (rows_kept(job.base, part, job.begins, display.stage) for part in (job.train, job.valid))
    decoder, technique = job.base.decoder, job.technique
    rates, stage = technique.rates(decoder), partial(technique.stage, decoder)
    ground = Ground(job.base, technique, train, job.plan, display.stage)
    holds = [anchor.hold(ground) for anchor in job.anchors]
    trainer = Trainer(decoder, train, valid, job.plan, out / "checkpoints", gauge, rates, stage, holds)
    curve = drive(trainer, out, display, resume)
    dial = math.prod(anchor.dial for anchor in job.anchors)
    if dial != 1:
        trainer.way(technique)(dial)
    return trainer, curve


def _save(job: Job, out: Path) -> None:
    if job.technique.writes_base:
        save_model(job.base, out / "model")
    else:
        save_adapter(job.base, job.technique, out / "adapter")


def _settings(job: Job) -> dict[str, str]:
    """Every setting by name, as people read it."""
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
    return settings | {f"anchor {anchor.name}": _listed(anchor) for anchor in job.anchors}


def _chosen(job: Job, trainer: Trainer, choice: Choice | None) -> Chosen:
    settings, reasons, title = _settings(job), job.reasons, job.technique.title
    if choice is not None:
        settings |= {"dial": "nothing is shipped" if choice.dial is None else f"{choice.dial:g}"}
        reasons = reasons | {"dial": choice.why}
    return Chosen(
        technique=" + ".join((title, *(anchor.title for anchor in job.anchors))),
        settings=settings,
        reasons={key: why for key, why in reasons.items() if key in settings},
        trained_parameters=count_parameters(trainer.trained.values()),
        total_parameters=count_parameters(job.base.decoder.parameters()),
        stopped=trainer.progress.ended or "stopped by you",
        best_step=trainer.progress.best_step,
        steps=trainer.progress.step,
        epochs=trainer.progress.step / trainer.order.steps_per_epoch,
    )


def _listed(anchor: Anchor) -> str:
    return ", ".join(f"{name} {value}" for name, value in anchor.model_dump().items())
