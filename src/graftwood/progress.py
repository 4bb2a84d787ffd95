"""What a person sees while a run works: one live line on stderr, plain lines where there is no terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from graftwood import telling
from graftwood.train.loop import Evaluated, Stepped

_LINES_EVERY = 10.0  # seconds between lines where no live line is possible
_TASKS = 4  # whose losses a line has room for


class Display:
    """Progress on stderr, as long as somebody reads it. `quiet` says nothing at all, for programs."""

    def __init__(self, quiet: bool = False) -> None:
        self.console = Console(file=telling.stderr(), quiet=quiet, highlight=False)

    def say(self, text: str) -> None:
        """One line that stays."""
        self.console.print(text, markup=False, soft_wrap=True)

    @contextmanager
    def stage(self, title: str) -> Iterator[None]:
        """A step of the run with its duration."""
        started = time.monotonic()
        if self.console.is_terminal:
            with self.console.status(title):
                yield
        else:
            self.say(f"{title} ...")
            yield
        self.say(f"{title}: {duration(time.monotonic() - started)}")

    @contextmanager
    def bytes(self, title: str, total: int) -> Iterator[Callable[[int], None]]:
        """A stage of known size: bar, speed and time left. Gives the call that says how many bytes more are done."""
        started = said = time.monotonic()
        done = 0

        def plain(more: int) -> None:
            nonlocal done, said
            done += more
            now = time.monotonic()
            if done and now - said > _LINES_EVERY:
                said = now
                left = (total - done) * (now - started) / done
                self.say(f"{title}: {size(done)} of {size(total)}, {duration(left)} left")

        if self.console.is_terminal:
            columns = (
                TextColumn(title),
                BarColumn(None),
                DownloadColumn(),
                TransferSpeedColumn(),
                TimeRemainingColumn(),
            )
            with Progress(*columns, console=self.console, transient=True) as progress:
                task = progress.add_task(title, total=total)
                yield lambda more: progress.advance(task, more)
        else:
            yield plain
        self.say(f"{title}: {duration(time.monotonic() - started)}")

    @contextmanager
    def training(self, steps: int, done: int) -> Iterator[Line]:
        """The live line of a training run."""
        line = Line(self, steps)
        if not self.console.is_terminal:
            yield line
            return
        tail = TextColumn("{task.fields[tail]}", markup=False)  # names of tasks may have brackets
        columns = (TextColumn("training"), BarColumn(None), MofNCompleteColumn(), TimeRemainingColumn(), tail)
        with Progress(*columns, console=self.console, transient=True) as progress:
            line.progress = progress
            line.task = progress.add_task("training", total=steps, completed=done, tail="")
            yield line


class Line:
    """Bar, time left, tokens a second, losses and drift."""

    def __init__(self, display: Display, steps: int) -> None:
        self.progress: Progress | None = None
        self.task: TaskID | None = None
        self._display = display
        self._steps = steps
        self._rate: float | None = None
        self._loss: float | None = None
        self._evaluated = ""
        self._said = time.monotonic()

    def show(self, event: Stepped | Evaluated) -> None:
        """Take in one event of the loop."""
        if isinstance(event, Evaluated):
            valid = "" if event.valid_loss is None else f" valid {event.valid_loss:.3f}{_by_task(event.tasks)}"
            drift = "" if event.drift is None else f" drift {event.drift:.4f}"
            self._evaluated = valid + drift
            self._display.say(f"step {event.step}/{self._steps}:{valid}{drift}{' (best)' if event.best else ''}")
            return
        speed = event.tokens / event.seconds
        self._rate = speed if self._rate is None else 0.8 * self._rate + 0.2 * speed
        self._loss = event.loss if self._loss is None else 0.8 * self._loss + 0.2 * event.loss
        tail = f"{self._rate:.0f} tok/s loss {self._loss:.3f}{self._evaluated}"
        if self.progress is not None and self.task is not None:
            self.progress.update(self.task, completed=event.step, tail=tail)
        elif time.monotonic() - self._said > _LINES_EVERY:
            self._said = time.monotonic()
            self._display.say(f"step {event.step}/{self._steps} {tail}")


def _by_task(losses: Mapping[str, float]) -> str:
    """The loss of each task where they fit on a line, else the highest and the lowest."""
    ranked = sorted(losses.items(), key=lambda item: -item[1])
    shown = losses.items() if len(losses) <= _TASKS else (ranked[0], ranked[-1])
    told = ", ".join(f"{task} {loss:.3f}" for task, loss in shown)
    return f" ({told})" if told else ""


def duration(seconds: float) -> str:
    """Seconds as a person says them: `8 s`, `3 min 20 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def size(count: float) -> str:
    """Bytes as a person says them."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
