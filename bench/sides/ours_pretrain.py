"""Our side of the pre-training benchmarks: the trainer's own step over windows, as `graft pretrain` takes it."""

from __future__ import annotations

from graftwood.preparation import prepare

prepare(briefly=True)  # as the command does, before torch is imported

# ruff: noqa: E402
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench.sides.turns import Turns
from torch import Tensor

from graftwood.config import PretrainConfig
from graftwood.data.corpus import Stream, Windows
from graftwood.model.architecture import ARCHITECTURES
from graftwood.model.decoder import Decoder, count_parameters
from graftwood.pretraining import NOTHING, initialise, plan_windows
from graftwood.runtime import place, use_threads
from graftwood.scaling import budget, sizes
from graftwood.technique import TECHNIQUES
from graftwood.train.loop import Trainer, mean_loss


def trainer(work: dict[str, Any], config: PretrainConfig) -> Trainer:
    """A trainer at step 0 with a new model."""
    model, _ = sizes(config, work["vocabulary"])
    decoder = Decoder(ARCHITECTURES.get(model.architecture), model)
    initialise(decoder, config.seed)
    TECHNIQUES.get("full").parse({}).apply(decoder, config.seed)
    stream = Stream([Path(work["train"])], ["tinyshakespeare.txt"])
    schedule = budget(config, count_parameters(decoder.parameters()), len(stream), model.max_positions)
    plan, windows = plan_windows(config, schedule, stream, model.max_positions)
    decoder.train()
    return Trainer(decoder, windows, NOTHING, plan, Path(work["folder"]))


def configured(work: dict[str, Any]) -> PretrainConfig:
    """The work's options; with `seconds`, as many tokens as a trial says this machine can train on in that time."""
    config = PretrainConfig(data="tinyshakespeare", **work["config"])
    if "seconds" not in work:
        return config
    trial = trainer(work, config.model_copy(update={"tokens": 10**7}))
    trial.step()
    begun = trial.progress
    while trial.progress.train_seconds - begun.train_seconds < work["trial_seconds"]:
        trial.step()
    speed = (trial.progress.tokens - begun.tokens) / (trial.progress.train_seconds - begun.train_seconds)
    return config.model_copy(update={"tokens": int(speed * work["seconds"])})


@torch.no_grad()
def windows_loss(decoder: Decoder, windows: Tensor) -> float:
    """Mean loss of every character of the windows but their first, nats."""
    decoder.eval()
    losses = []
    for part in windows.split(48):
        logits = decoder(part[:, :-1])
        losses.append(torch.nn.functional.cross_entropy(logits.flatten(0, 1), part[:, 1:].flatten()).item() * len(part))
    decoder.train()
    return sum(losses) / len(windows)


def main() -> None:
    """A turn trains `steps_a_turn` steps, or the share of the run it is, and validates."""
    turns = Turns()
    work = turns.work
    use_threads(work["threads"])
    place("cpu", "float32")
    training = trainer(work, configured(work))
    decoder, order = training.decoder, training.order
    windows = torch.from_numpy(np.load(work["windows"]).astype(np.int64))
    context = decoder.config.max_positions
    everything = Windows(Stream([Path(work["valid"])], ["tinyshakespeare.txt"]), context, context)
    count = work.get("steps_a_turn") or -(-order.steps // work["turns"])

    def turn() -> dict[str, Any]:
        before = training.progress
        for _ in range(min(count, order.steps - before.step)):
            training.step()
        now = training.progress
        told: dict[str, Any] = {
            "seconds": now.train_seconds - before.train_seconds,
            "tokens": now.tokens - before.tokens,
            "step": now.step,
            "total_seconds": now.train_seconds,
        }
        if work["validates"]:
            told["valid_loss"] = windows_loss(decoder, windows)
        if work.get("validates_all"):
            decoder.eval()
            told["valid_loss_all"] = mean_loss(decoder, everything.packs(range(len(everything)), 8192))
            decoder.train()
        return told

    parameters = count_parameters(decoder.parameters())
    turns.ready("torch", "graftwood", parameters=parameters, steps=order.steps, plan=vars(training.plan))
    turns.serve(turn)


if __name__ == "__main__":
    main()
