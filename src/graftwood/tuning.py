"""One run from rows to report, in stages: prepare, forecast, measure the base, train, measure again, write."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from graftwood.base import Base
from graftwood.checkpoint import save_adapter, save_model, step_folders
from graftwood.config import RunConfig, resolve, save_toml
from graftwood.data.audit import audit
from graftwood.data.encode import Example, encode_rows
from graftwood.data.sources import Splits
from graftwood.draft import IN_MEMORY, Draft
from graftwood.errors import ConfigError, StorageError
from graftwood.evals import judge, skills
from graftwood.evals.card import Card, Chosen, Cost, CurvePoint
from graftwood.evals.picture import png
from graftwood.evals.report import write_report
from graftwood.evals.retention import Probe, compare, precision, probe_for
from graftwood.evals.svg import curve_svg
from graftwood.evals.task import TASKS
from graftwood.files import atomic_write, sha256_text, storage, write_json
from graftwood.generate.engine import Engine
from graftwood.model.decoder import count_parameters
from graftwood.progress import Display, duration, size
from graftwood.runtime import machine, peak_memory_bytes
from graftwood.technique import Technique
from graftwood.train.forecast import Forecast, forecast
from graftwood.train.loop import Evaluated, Plan, Stepped, Trainer

_FREE = ("out", "device")  # what a resumed run may change


@dataclass(frozen=True)
class Job:
    """A run that is ready to start: the technique is on the base, nothing has been trained."""

    config: RunConfig
    base: Base
    technique: Technique
    plan: Plan
    reasons: dict[str, str]
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
    technique.apply(base.decoder, config.seed)
    encoder = base.encoder(config.max_length)
    train, valid, test = (encode_rows(encoder, rows) for rows in (splits.train, splits.valid, splits.test))
    warnings = _describe(display, splits, train, [*valid, *test], encoder.max_length)
    return Job(config, base, technique, drafted.plan, drafted.reasons, splits, train, valid, test, warnings)


def _lasting(config: RunConfig, base: Base) -> RunConfig:
    """The configuration with every path whole, so that its run file works from any folder."""
    paths = {key: getattr(config, key) for key in ("data", "valid", "test") if getattr(config, key)}
    whole = {key: str(Path(path).resolve()) for key, path in paths.items() if key != "data" or path != IN_MEMORY}
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
        expected = forecast(job.base.decoder, job.train, job.valid, job.plan)
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
    return expected


def execute(job: Job, out: Path, display: Display, resume: bool) -> Card:
    """Measure the base, train, measure again, and leave everything in `out`."""
    if resume:
        _check_same(job.config, out / "run.toml")
    with storage(f"write {out}"):
        out.mkdir(parents=True, exist_ok=True)
        save_toml(job.config.model_copy(update={"out": str(out)}), out / "run.toml")
    started = time.monotonic()
    base = job.base
    paper = judge.set_paper(base.encoder(job.config.max_length), job.train, job.valid, job.test, job.config.seed)
    with base.decoder.without_deltas():
        engine = Engine(base.decoder, base.tokenizer.eos, base.tokenizer)
        with display.stage("text of the base itself, to measure drift"):
            probe = probe_for(base, engine)
        before = _before(job, engine, paper, out, display)
    measured = time.monotonic() - started

    trainer, curve = _train(job, probe, out, display, resume)

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
        data=min(job.config.data, os.path.relpath(job.config.data), key=len),
        data_rows={"train": len(job.train), "valid": len(job.valid), "test": len(job.test)},
        warnings=job.warnings,
        gained=judge.gained(paper, before, after),
        kept=judge.kept(before, after, moved, probe),
        memory=judge.remembered(before, after),
        chosen=_chosen(job, trainer),
        cost=_cost(trainer, measured + time.monotonic() - started),
        curve=curve,
        samples=judge.samples(paper, base.encoder(), before, after),
    )
    with storage(f"write the report into {out}"):
        write_report(card, out)
    return card


def _check_same(config: RunConfig, file: Path) -> None:
    """Raises: ConfigError when the run that is to go on was begun with other options."""
    if not file.exists():
        return
    there, here = resolve(file, {}).model_dump(), config.model_dump()
    odd = [
        f"{key} {there[key]} there, {here[key]} here" for key in here if there[key] != here[key] and key not in _FREE
    ]
    if odd:
        raise ConfigError(f"{file} is of another run: {'; '.join(odd)}; resume with its options, or give another --out")


def _before(job: Job, engine: Engine, paper: judge.Paper, out: Path, display: Display) -> judge.Sheet:
    """The base's own results, kept in the run folder so that a resumed run need not put the same paper again."""
    kept, key = out / "base.json", sha256_text(job.base.fingerprint, precision(job.base.decoder), paper.fingerprint)
    stored = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    if stored.get("key") == key:
        pairs = {key: [(total, count) for total, count in stored[key]] for key in ("losses", "train", "valid")}
        scores = [skills.Scores(TASKS.get(name), tuple(right)) for name, right in stored["scores"].items()]
        return judge.Sheet(tuple(stored["said"]), scores=scores, **pairs)
    sheet = judge.sit(job.base, engine, paper, skills.base_scores, lambda what: display.say(f"base: {what}"))
    stored = {"key": key, **asdict(replace(sheet, scores=[])), "scores": {s.task.name: s.right for s in sheet.scores}}
    with storage(f"write {kept}"):
        write_json(kept, stored)
    return sheet


def _train(job: Job, probe: Probe, out: Path, display: Display, resume: bool) -> tuple[Trainer, tuple[CurvePoint, ...]]:
    gauge = judge.drift_gauge(job.base, probe)
    decoder, technique = job.base.decoder, job.technique
    rates, stage = technique.rates(decoder), partial(technique.stage, decoder)
    trainer = Trainer(decoder, job.train, job.valid, job.plan, out / "checkpoints", gauge, rates, stage)
    resumed = resume and trainer.resume()
    if resumed:
        display.say(f"resumed at step {trainer.progress.step} of {trainer.order.steps}")
    log = out / "metrics.jsonl"
    with storage(f"write {log}"):
        lines = _up_to(log, trainer.progress.step) if resumed else []
        atomic_write(log, "".join(lines))
        with log.open("a", encoding="utf-8", buffering=1) as handle, _interruptible(trainer, display):
            with display.training(trainer.order.steps, trainer.progress.step) as line:
                for event in trainer.run():
                    line.show(event)
                    handle.write(json.dumps(_logged(event, trainer)) + "\n")
    curve = _curve(log)
    picture = curve_svg(curve, trainer.progress.best_step)
    with storage(f"write the curve into {out}"):
        atomic_write(out / "curve.svg", picture)
        png(picture, out / "curve.png", 900)
    display.say(f"training ended at step {trainer.progress.step}: {trainer.progress.ended or 'stopped by you'}")
    return trainer, curve


def _logged(event: Stepped | Evaluated, trainer: Trainer) -> dict[str, Any]:
    """One line of `metrics.jsonl`, under the names that transformers' users know."""
    if isinstance(event, Evaluated):
        return {"step": event.step, "eval_loss": event.valid_loss, "drift": event.drift, "best": event.best}
    return {
        "step": event.step,
        "epoch": round(event.step / trainer.order.steps_per_epoch, 4),
        "loss": event.loss,
        "grad_norm": event.grad_norm,
        "learning_rate": event.learning_rate,
        "num_tokens": trainer.progress.tokens,
        "tokens_per_second": round(event.tokens / event.seconds, 1),
    }


def _up_to(log: Path, step: int) -> list[str]:
    """The log's lines up to a checkpoint: what a killed run logged beyond it will be logged again."""
    if not log.exists():
        return []
    kept = []
    for line in log.read_text(encoding="utf-8").splitlines(keepends=True):
        if not line.endswith("\n") or json.loads(line)["step"] > step:
            break
        kept.append(line)
    return kept


def _curve(log: Path) -> tuple[CurvePoint, ...]:
    """Evaluations with the mean training loss since the one before."""
    points: list[CurvePoint] = []
    losses: list[float] = []
    tokens = 0
    for record in map(json.loads, log.read_text(encoding="utf-8").splitlines()):
        if "loss" in record:
            losses.append(record["loss"])
            tokens = record["num_tokens"]
            continue
        train = sum(losses) / len(losses) if losses else None
        point = CurvePoint(
            step=record["step"], tokens=tokens, train_loss=train, valid_loss=record["eval_loss"], drift=record["drift"]
        )
        points.append(point)
        losses = []
    return tuple(points)


@contextmanager
def _interruptible(trainer: Trainer, display: Display) -> Iterator[None]:
    """The first Ctrl-C ends the run after its step, with its checkpoint and its report; the second ends it at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def once(number: int, frame: object) -> None:
        trainer.stop = True
        signal.signal(signal.SIGINT, previous)
        display.say("stopping after this step, then saving and reporting; press Ctrl-C again to leave at once")

    previous = signal.signal(signal.SIGINT, once)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def _save(job: Job, out: Path) -> None:
    if job.technique.writes_base:
        save_model(job.base, out / "model")
    else:
        save_adapter(job.base, job.technique, out / "adapter")


def _chosen(job: Job, trainer: Trainer) -> Chosen:
    config, plan = job.config, job.plan
    settings = {name: str(value) for name, value in job.technique.model_dump().items()}
    settings |= {
        "learning rate": f"{plan.learning_rate:g}",
        "epochs": f"{config.epochs:g}",
        "batch": f"{config.batch} rows",
        "schedule": "linear",
        "seed": str(config.seed),
    }
    decoder = job.base.decoder
    return Chosen(
        technique=job.technique.title,
        settings=settings,
        reasons={key: why for key, why in job.reasons.items() if key in settings},
        trained_parameters=count_parameters(trainer.trained.values()),
        total_parameters=count_parameters(decoder.parameters()),
        stopped=trainer.progress.ended or "stopped by you",
        best_step=trainer.progress.best_step,
        steps=trainer.progress.step,
        epochs=trainer.progress.step / trainer.order.steps_per_epoch,
    )


def _cost(trainer: Trainer, report_seconds: float) -> Cost:
    progress = trainer.progress
    return Cost(
        train_seconds=progress.train_seconds,
        report_seconds=report_seconds,
        train_tokens=progress.tokens,
        answer_tokens=progress.answer_tokens,
        tokens_per_second=progress.tokens / max(progress.train_seconds, 1e-9),
        peak_memory_bytes=peak_memory_bytes(),
        machine=machine(),
    )


def run_folder(config: RunConfig, resume: bool) -> Path:
    """Where a run goes. Raises: ConfigError when the folder holds a run and resuming was not asked for."""
    out = Path(config.out) if config.out else Path("runs") / Path(config.data).name.removesuffix(".jsonl")
    used = (out / "metrics.jsonl").exists() or bool(step_folders(out / "checkpoints"))
    if used and not resume:
        raise ConfigError(f"{out} already holds a run; go on with --resume, or give another folder with --out")
    if resume and not used:
        raise ConfigError(f"there is nothing to resume in {out}; run without --resume, or name the folder with --out")
    if out.exists() and not out.is_dir():
        raise StorageError(f"{out} is a file; give a folder with --out")
    return out
