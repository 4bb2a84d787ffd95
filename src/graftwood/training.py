"""A trainer driven to its end: what a person sees meanwhile, the log that resuming keeps right, Ctrl-C, the curve."""

from __future__ import annotations

import glob
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel

from graftwood.base import Base
from graftwood.checkpoint import step_folders
from graftwood.choose.budget import NONE
from graftwood.config import RUN_FILE, RunConfig, read_config, read_toml
from graftwood.data.mixture import weighted
from graftwood.errors import ConfigError, StorageError
from graftwood.evals.card import Cost, CurvePoint
from graftwood.evals.picture import png
from graftwood.evals.svg import curve_svg
from graftwood.files import atomic_write, storage, write_json
from graftwood.model.decoder import count_parameters
from graftwood.progress import Display
from graftwood.runtime import give_back_memory, machine, peak_memory_bytes
from graftwood.train.loop import Evaluated, Progress, Stepped, Trainer

STOPPED = "stopped by you"  # what a report says of a run that Ctrl-C ended
SEQUENCE = "sequence"  # the folder of tasks that were learned one after another
ARMS, RACE = "arms", "race.json"  # the folder of recipes that race, and the file in it that says for what
EACH = "each"  # the folder of tasks that each have an adapter
_WRITTEN = ("model", "adapter", "checkpoints", ARMS, EACH)  # folders that a run writes anew
_FREE = ("out", "device")  # what a resumed run may change


@dataclass(frozen=True)
class Trained:
    """What training did: how far it came, how many parameters it moved, passes over the rows, the curve."""

    progress: Progress
    parameters: int
    epochs: float
    curve: tuple[CurvePoint, ...]

    @classmethod
    def by(cls, trainer: Trainer, curve: tuple[CurvePoint, ...]) -> Trained:
        """What one trainer has done."""
        progress = trainer.progress
        epochs = progress.step / trainer.order.steps_per_epoch
        return cls(progress, count_parameters(trainer.trained.values()), epochs, curve)

    def then(self, after: Trained) -> Trained:
        """This and what was trained after it, on other rows, as one."""
        one, two = self.progress, after.progress
        progress = replace(
            two,
            step=one.step + two.step,
            tokens=one.tokens + two.tokens,
            answer_tokens=one.answer_tokens + two.answer_tokens,
            train_seconds=one.train_seconds + two.train_seconds,
            held_seconds=one.held_seconds + two.held_seconds,
            aside_seconds=one.aside_seconds + two.aside_seconds,
            best_step=one.step + two.best_step,
        )
        moved = [
            point.model_copy(update={"step": one.step + point.step, "tokens": one.tokens + point.tokens})
            for point in after.curve
        ]
        return Trained(progress, self.parameters, max(self.epochs, after.epochs), (*self.curve, *moved))


def holds_run(folder: Path) -> bool:
    """Whether a run has begun to train in this folder, so that there is something to resume."""
    traces = ("metrics.jsonl", SEQUENCE, f"{ARMS}/{RACE}")
    return any((folder / name).exists() for name in traces) or bool(step_folders(folder / "checkpoints"))


def run_folder(out: str | None, sources: Sequence[str], resume: bool) -> Path:
    """Where a run goes.

    Raises: ConfigError when the folder holds a run and resuming was not asked for, or what no run of its own wrote,
    and where the sources name none.
    """
    folder = Path(out) if out else Path("runs") / "+".join(map(_named, sources))[:100]
    used = holds_run(folder)
    if used and not resume:
        raise ConfigError(f"{folder} already holds a run; go on with --resume, or give another folder with --out")
    there = [name for name in _WRITTEN if (folder / name).is_file() or any((folder / name).glob("*"))]
    if there and not used:
        listed = " and ".join(str(folder / name) for name in there)
        raise ConfigError(f"{listed} would be replaced, and no run here wrote that; give another folder with --out")
    if resume and not used:
        raise ConfigError(f"there is nothing to resume in {folder}; run without --resume, or name it with --out")
    if folder.exists() and not folder.is_dir():
        raise StorageError(f"{folder} is a file; give a folder with --out")
    return folder


def as_begun(config: RunConfig, file: Path) -> RunConfig:
    """What was asked, without the budget that it did not name and that a run which goes on was begun without."""
    begun = config.keep is None and file.exists() and read_toml(file).get("keep") == NONE
    return config.model_copy(update={"keep": NONE}) if begun else config


def _named(source: str) -> str:
    """What a source gives its run's folder: its own name, also where it is `.` or `..`."""
    path = os.path.abspath(weighted(source)[0])
    name = os.path.basename(path).removesuffix(".jsonl")
    if not name or (glob.has_magic(name) and not os.path.exists(path)):
        raise ConfigError(f"{source} does not name the run's folder; give one with --out")
    return name


def own_folder(file: Path | None) -> str | None:
    """The folder of a run whose own run file this is, wherever it was moved to."""
    own = file is not None and file.name == RUN_FILE and holds_run(file.parent)
    return str(file.parent) if file is not None and own else None


def check_base(base: Base, out: Path, resume: bool) -> None:
    """Keep which base a run began on. Raises: ConfigError when a run is to go on upon another.

    Its name does not tell: a folder may hold other weights by now.
    """
    file = out / "begun_on.json"
    if resume and file.exists():
        there = json.loads(file.read_text(encoding="utf-8"))
        if there["fingerprint"] != base.fingerprint:
            raise ConfigError(
                f"{out} was begun on {there['base']} ({there['fingerprint'][:12]}), and {base.name} is another base by "
                f"now ({base.fingerprint[:12]}); resume on what it began on, or give another folder with --out"
            )
    with storage(f"write {file}"):
        write_json(file, {"base": base.name, "fingerprint": base.fingerprint})


def check_same(config: BaseModel, file: Path) -> None:
    """Raises: ConfigError when the run that is to go on was begun with other options."""
    if not file.exists():
        return
    there, here = read_config(type(config), file, {}).model_dump(), config.model_dump()
    odd = [
        f"{key} {there[key]} there, {here[key]} here" for key in here if there[key] != here[key] and key not in _FREE
    ]
    if odd:
        raise ConfigError(f"{file} is of another run: {'; '.join(odd)}; resume with its options, or give another --out")


def drive(
    trainer: Trainer,
    out: Path,
    display: Display,
    resume: bool,
    remark: Callable[[Evaluated], dict[str, Any]] = lambda event: {},
    until: int | None = None,
) -> tuple[CurvePoint, ...]:
    """Train to the end or `until` a step, keeping `metrics.jsonl` and the curve in `out`.

    `remark` adds to what is logged of an evaluation.
    """
    resumed = resume and trainer.resume()
    if resumed and trainer.progress.step:
        display.say(f"resumed at step {trainer.progress.step} of {trainer.order.steps}")
    log = out / "metrics.jsonl"
    with storage(f"write {log}"):
        lines = _up_to(log, trainer.progress.step) if resumed else []
        atomic_write(log, "".join(lines))
        with log.open("a", encoding="utf-8", buffering=1) as handle, _interruptible(trainer, display):
            with display.training(trainer.order.steps, trainer.progress.step) as line:
                for event in trainer.run(until):
                    line.show(event)
                    more = remark(event) if isinstance(event, Evaluated) else {}
                    handle.write(json.dumps(_logged(event, trainer) | more) + "\n")
    give_back_memory()  # what measures next is of other sizes
    curve = _curve(log)
    picture = curve_svg(curve, trainer.progress.best_step)
    with storage(f"write the curve into {out}"):
        atomic_write(out / "curve.svg", picture)
        png(picture, out / "curve.png", 900)
    display.say(_halted(trainer))
    return curve


def _halted(trainer: Trainer) -> str:
    """Where training stands and why: at its end, stopped by the user, or paused for others to catch up."""
    progress = trainer.progress
    if progress.ended is None and not trainer.stop:
        return f"paused at step {progress.step} of {trainer.order.steps}"
    return f"training ended at step {progress.step}: {progress.ended or 'stopped by you'}"


def _logged(event: Stepped | Evaluated, trainer: Trainer) -> dict[str, Any]:
    """One line of `metrics.jsonl`, under the names that transformers' users know."""
    if isinstance(event, Evaluated):
        tasks = {f"eval_{task}_loss": loss for task, loss in event.tasks.items()}
        return {"step": event.step, "eval_loss": event.valid_loss, **tasks, "drift": event.drift, "best": event.best}
    held = {"anchor_loss": event.held} if event.held else {}
    return held | {
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


def cost(progress: Progress, report_seconds: float, device: torch.device) -> Cost:
    """What a run on a device took, for its report card."""
    return Cost(
        train_seconds=progress.train_seconds,
        aside_seconds=progress.aside_seconds,
        report_seconds=report_seconds,
        train_tokens=progress.tokens,
        answer_tokens=progress.answer_tokens,
        tokens_per_second=progress.tokens / max(progress.train_seconds, 1e-9),
        peak_memory_bytes=peak_memory_bytes(device),
        machine=machine(),
    )
