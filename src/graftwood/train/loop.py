"""The training loop: one step on one screen, everything it needs to go on in one folder."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from graftwood.checkpoint import Saved, load_step, save_step, step_folders
from graftwood.data.batch import Packed, Rows
from graftwood.data.mixture import order_for
from graftwood.errors import GraftError
from graftwood.model.decoder import Decoder
from graftwood.runtime import Heap, seeded
from graftwood.technique import Technique
from graftwood.train.hold import Hold
from graftwood.train.loss import CrossEntropy, Gate, predicting, summed, token_losses
from graftwood.train.optim import Optimiser, OptimiserName, schedule
from graftwood.train.resuming import check_same_run

_AGAIN = "start again without such rows, or with a lower --lr, in another --out; nothing of the base is lost"
START = "step-000000"  # where the run began: what the way to its end is measured from


class NonFiniteLossError(GraftError):
    """A loss or gradient that is not a number; the parameters are as they were before the step."""


@dataclass(frozen=True)
class Plan:
    """How a run trains. `batch` counts rows a step, `token_budget` tokens alive at once, `patience` evaluations.

    `warmup_share` and `decay_share` are of the steps: the rate rises, stays, and falls to zero; averages
    of the weights have a half-life in steps, 0 for none; `save_steps` 0 leaves checkpoints to time and evaluations.
    `shares` are of the drawn rows by task, empty for all rows alike; `stop_on` says what picks the best evaluation:
    the mean of the tasks' losses, or the loss of the task that has gained least since the start.
    """

    learning_rate: float
    weight_decay: float
    batch: int
    epochs: float
    seed: int
    clip: float
    warmup_share: float
    token_budget: int
    evaluations: int
    patience: int
    save_seconds: float
    save_steps: int = 0
    decay_share: float = 1.0
    optimiser: OptimiserName = "adamw"
    betas: tuple[float, float] = (0.9, 0.999)
    z_loss: float = 0.0
    average_half_life: float = 0.0
    shares: dict[str, float] = field(default_factory=dict)
    stop_on: Literal["mean", "worst"] = "mean"


@dataclass(frozen=True)
class Stepped:
    """One optimiser step: mean loss of its answer tokens (nats), gradient norm before clipping, what it read.

    `held` is what anchors added to the loss; their tokens are among `tokens`.
    """

    step: int
    loss: float
    grad_norm: float
    learning_rate: float
    tokens: int
    answer_tokens: int
    seconds: float
    held: float = 0.0


@dataclass(frozen=True)
class Evaluated:
    """One evaluation: validation loss (nats an answer token), drift where a gauge was given, whether it is the best.

    Of several tasks the loss is the mean of theirs, which are in `tasks`.
    """

    step: int
    valid_loss: float | None
    drift: float | None
    best: bool
    tasks: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Progress:
    """What a run has done so far; all of it is in a checkpoint. `first` are the tasks' losses before the first step.

    Of the seconds of its steps, `held_seconds` went into text that anchors read beside the rows; `aside_seconds` are
    those of evaluations and checkpoints, which are no steps.
    """

    step: int = 0
    tokens: int = 0
    answer_tokens: int = 0
    train_seconds: float = 0.0
    held_seconds: float = 0.0
    aside_seconds: float = 0.0
    evaluations: int = 0
    best_step: int = 0
    best_loss: float | None = None
    first: dict[str, float] = field(default_factory=dict)
    behind: int = 0
    ended: str | None = None


class Trainer:
    """Trains whatever requires a gradient on packed examples.

    `folder` takes the checkpoints; `gauge` measures drift at each evaluation. `rates` multiply the learning rate by
    parameter, `stage` says which parameters train at a share of the run, `holds` are the anchors. Iterate over `run()`;
    set `stop` to end after the current step.
    """

    def __init__(
        self,
        decoder: Decoder,
        train: Rows,
        valid: Rows,
        plan: Plan,
        folder: Path,
        gauge: Callable[[], float] | None = None,
        rates: Mapping[str, float] | None = None,
        stage: Callable[[float], Collection[str] | None] | None = None,
        holds: Sequence[Hold] = (),
    ) -> None:
        self.decoder = decoder
        self.train = train
        self.plan = plan
        self.folder = folder
        self.order = order_for(train.tasks, plan.shares, plan.batch, plan.epochs, plan.seed)
        self.trained = decoder.trained()
        self.optimiser = optimiser_for(decoder, plan, rates)
        self.progress = Progress()
        self.stop = False
        self._valid_rows = valid
        self._valid = {
            task: [packed.to(decoder.device) for packed in valid.packs(rows, plan.token_budget)]
            for task, rows in valid.tasks.items()
        }
        self._gauge = gauge
        self._stage = stage
        self._holds = holds
        self._every = max(1, math.ceil(self.order.steps / plan.evaluations))
        self._saved_at = time.monotonic()
        self._heap = Heap()

    def run(self, until: int | None = None) -> Iterator[Stepped | Evaluated]:
        """Train from where the progress stands to the end, and leave the best parameters in the decoder.

        With `until` it ends after that step, from which it can go on, and leaves the parameters as they are there.
        """
        self.decoder.train()
        if self.progress.evaluations == 0:
            yield self.evaluate()
            self.save()
        while self.progress.ended is None and (until is None or self.progress.step < until):
            yield self.step()
            last = self.progress.step >= self.order.steps
            evaluated = last or self.progress.step % self._every == 0
            if evaluated:
                yield self.evaluate()
                self._end_if_due(last)
            # A step is saved once, after all that happened in it was given out: what was logged up to a saved step is
            # all there is to log up to it.
            if evaluated or self.stop or self.progress.step == until or self._save_is_due():
                self.save()
            if self.stop:
                break
        self.decoder.eval()
        if until is None:
            self.restore_best()

    def step(self) -> Stepped:
        """One optimiser step: the summed loss of all micro-batches divided once by the tokens that count."""
        started = time.perf_counter()
        rows = self.order.batch_rows(self.progress.step)
        packed = [part.to(self.decoder.device) for part in self.train.packs(rows, self.plan.token_budget)]
        counted = sum(len(part.targets) for part in packed)

        rate = self._rate()
        loss, held, tokens = 0.0, 0.0, sum(part.tokens for part in packed)
        self.optimiser.forget()
        self._open_stage()
        with seeded(self.plan.seed * 1_000_003 + self.progress.step):  # dropout, too, is a function of seed and step
            for hold in self._holds:
                hold.open(self.decoder, packed)
            for part in packed:
                part_loss, beside = (total / counted for total in self._totals(part))
                (part_loss + beside).backward()
                loss, held = loss + part_loss.item(), held + beside.item()
            beside_rows = time.perf_counter()
            for extra, read in self._extras():
                extra.backward()
                held, tokens = held + extra.item(), tokens + read
            held_seconds = time.perf_counter() - beside_rows
        norm = torch.nn.utils.clip_grad_norm_(self.trained.values(), self.plan.clip).item()
        if not (math.isfinite(loss + held) and math.isfinite(norm)):
            self.optimiser.forget()
            raise NonFiniteLossError(
                f"step {self.progress.step + 1}: loss {loss}, gradient norm {norm}, from "
                f"{self._culprits(self.train, rows)}; the parameters are as they were before this step; {_AGAIN}"
            )
        self.optimiser.step(rate)
        for hold in self._holds:
            hold.stepped(self.trained, rate)
        self._heap.stepped()

        seconds = time.perf_counter() - started
        self.progress = replace(
            self.progress,
            step=self.progress.step + 1,
            tokens=self.progress.tokens + tokens,
            answer_tokens=self.progress.answer_tokens + counted,
            train_seconds=self.progress.train_seconds + seconds,
            held_seconds=self.progress.held_seconds + held_seconds,
            best_step=self.progress.best_step if self._valid else self.progress.step + 1,
        )
        return Stepped(self.progress.step, loss, norm, rate, tokens, counted, seconds, held)

    def evaluate(self) -> Evaluated:
        """Validation loss and drift now, and whether the loss is the best so far.

        Raises: NonFiniteLossError naming the rows whose loss is not a number.
        """
        started = time.perf_counter()
        self.decoder.eval()
        with self.optimiser.averaged():
            losses = {t: loss for t, part in self._valid.items() if (loss := mean_loss(self.decoder, part)) is not None}
            drift = self._gauge() if self._gauge is not None else None
        valid = math.fsum(losses.values()) / len(losses) if losses else None
        if valid is not None and not math.isfinite(valid):
            culprits = self._culprits(self._valid_rows, range(len(self._valid_rows)))
            raise NonFiniteLossError(
                f"after step {self.progress.step}: validation loss {valid}, from {culprits}; {_AGAIN}"
            )
        self.decoder.train()
        before = self.progress
        first = before.first if before.evaluations else losses
        judged = valid
        if losses and self.plan.stop_on == "worst":  # losses of different tasks do not compare; what they gained does
            judged = max(loss - first[task] for task, loss in losses.items())
        best = judged is None or before.best_loss is None or judged < before.best_loss
        self.progress = replace(
            before,
            aside_seconds=before.aside_seconds + time.perf_counter() - started,
            evaluations=before.evaluations + 1,
            best_step=before.step if best else before.best_step,
            best_loss=judged if best else before.best_loss,
            first=first,
            behind=0 if best else before.behind + 1,
        )
        return Evaluated(before.step, valid, drift, best, losses if len(losses) > 1 else {})

    def save(self) -> None:
        """Write this step's folder, then drop what is no longer needed."""
        started, target = time.perf_counter(), self.folder / f"step-{self.progress.step:06d}"
        state = {"progress": asdict(self.progress)} | self._state(self.progress.step)
        trained = {name: parameter.detach() for name, parameter in self.trained.items()}
        save_step(target, Saved(trained, self.optimiser.tensors(), state))
        self._saved_at = time.monotonic()
        self._tidy()
        aside = self.progress.aside_seconds + time.perf_counter() - started
        self.progress = replace(self.progress, aside_seconds=aside)

    def _state(self, step: int) -> dict[str, Any]:
        """What a checkpoint of that step says of the run beside its progress."""
        return {"plan": asdict(self.plan), "drawn": self.order.drawn(step), "rows": self._prints}

    @cached_property
    def _prints(self) -> dict[str, str]:
        return {"training": self.train.fingerprint, "validation": self._valid_rows.fingerprint}

    def _tidy(self) -> None:
        """Drop all steps but the start, the newest and the best, and what a kill left half-written or half-removed."""
        keep = {START, *(f"step-{step:06d}" for step in (self.progress.step, self.progress.best_step))}
        for old in [*step_folders(self.folder), *self.folder.glob(".step-*")]:
            if old.name not in keep:
                shutil.rmtree(old, ignore_errors=True)

    def resume(self) -> bool:
        """Take up the newest checkpoint; False when there is none.

        Raises: ConfigError when it was made by a run that trains differently or on other rows.
        """
        folders = step_folders(self.folder)
        if not folders:
            return False
        saved = load_step(folders[-1])
        state = self._state(saved.state["progress"]["step"])
        check_same_run(folders[-1], saved, state, self.trained)
        self._put(saved)
        self.optimiser.restore(saved.optimiser)
        self.progress = Progress(**saved.state["progress"])
        self._tidy()
        return True

    def restore_best(self) -> None:
        """Put the parameters of the best evaluation back into the decoder, averaged where that is what was measured."""
        if self.progress.best_step != self.progress.step:
            saved = load_step(self.folder / f"step-{self.progress.best_step:06d}")
            self._put(saved)
            self.optimiser.restore(saved.optimiser)
        self.optimiser.swap()

    def _put(self, saved: Saved) -> None:
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(saved.trained[name])

    def _end_if_due(self, last: bool) -> None:
        if last:
            self.progress = replace(self.progress, ended="all steps done")
        elif self.progress.behind >= self.plan.patience:
            why = f"validation loss had not improved for {self.plan.patience} evaluations"
            self.progress = replace(self.progress, ended=why)

    def _open_stage(self) -> None:
        """Let those parameters take gradients that train at this step; the others keep their values."""
        if self._stage is None:
            return
        names = self._stage(self.progress.step / self.order.steps)
        for name, parameter in self.trained.items():
            parameter.requires_grad_(names is None or name in names)

    def _totals(self, packed: Packed) -> tuple[Tensor, Tensor]:
        """The summed loss of a pack, and what anchors ask of the same predictions."""
        hidden = predicting(self.decoder, packed)
        loss = summed(self.decoder, hidden, CrossEntropy(packed.targets, self.plan.z_loss, self._gate(packed)))
        asked = [found for hold in self._holds if (found := hold.beside(packed)) is not None]
        parts = [summed(self.decoder, hidden, objective) * weight for objective, weight in asked]
        return loss, sum(parts, loss.new_zeros(()))

    def _extras(self) -> Iterator[tuple[Tensor, int]]:
        for hold in self._holds:
            yield from hold.losses(self.decoder, self.progress.step)

    def _gate(self, packed: Packed) -> Gate | None:
        """The product of all gates there are."""
        gates = [gate for hold in self._holds if (gate := hold.gate(packed)) is not None]
        if len(gates) < 2:
            return gates[0] if gates else None
        return lambda *given: math.prod(gate(*given) for gate in gates)  # type: ignore[return-value]

    def _save_is_due(self) -> bool:
        every = self.plan.save_steps
        by_step = every > 0 and self.progress.step % every == 0
        return by_step or time.monotonic() - self._saved_at > self.plan.save_seconds

    def _rate(self) -> float:
        steps = self.order.steps
        warmup, decay = max(1, round(self.plan.warmup_share * steps)), round(self.plan.decay_share * steps)
        return self.plan.learning_rate * schedule(self.progress.step, steps, warmup, decay)

    def _culprits(self, source: Rows, rows: Iterable[int]) -> str:
        odd = []
        for row in rows:
            (part,) = source.packs([row], self.plan.token_budget)
            if not torch.isfinite(token_losses(self.decoder, part.to(self.decoder.device))).all():
                odd.append(source.place(row))
        more = f" and {len(odd) - 10} more" if len(odd) > 10 else ""
        return f"rows {', '.join(odd[:10])}{more}" if odd else "no single row (the gradient overflowed)"


def way_back(decoder: Decoder, technique: Technique, folder: Path) -> Callable[[float], None]:
    """How to take a decoder to a share of the way from the start of the run in `folder` to where it is now."""
    saved = load_step(folder / START).trained
    end = {name: decoder.get_parameter(name).detach().clone() for name in saved}
    start = {name: tensor.to(end[name].device) for name, tensor in saved.items()}
    return lambda alpha: technique.dial(decoder, start, end, alpha)


def optimiser_for(decoder: Decoder, plan: Plan, rates: Mapping[str, float] | None = None) -> Optimiser:
    """The plan's optimiser over what the decoder trains."""
    matrices = [f"{path}.weight" for path in decoder.linears()]
    half_life = plan.average_half_life
    return Optimiser(decoder.trained(), matrices, plan.optimiser, plan.weight_decay, plan.betas, half_life, rates)


def mean_loss(decoder: Decoder, parts: Sequence[Packed]) -> float | None:
    """Mean of `-log q` over every prediction that counts, nats; None when there is none."""
    counted = sum(len(part.targets) for part in parts)
    if counted == 0:
        return None
    total = math.fsum(token_losses(decoder, part).double().sum().item() for part in parts)
    return total / counted
