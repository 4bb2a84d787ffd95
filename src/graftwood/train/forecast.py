"""What a run will take, from one trial of its own work on this machine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from graftwood.data.batch import Order, pack, split_by_tokens
from graftwood.data.encode import Example
from graftwood.model.decoder import Decoder, count_parameters
from graftwood.runtime import peak_memory_bytes
from graftwood.train.loop import Plan
from graftwood.train.loss import summed_loss, token_losses


@dataclass(frozen=True)
class Forecast:
    """Expected cost of training: seconds, peak resident bytes, and the counts they follow from."""

    steps: int
    tokens: int
    trained_parameters: int
    train_seconds: float
    valid_seconds: float
    memory_bytes: int
    tokens_per_second: float

    @property
    def seconds(self) -> float:
        """Training and its evaluations together."""
        return self.train_seconds + self.valid_seconds


def forecast(decoder: Decoder, train: Sequence[Example], valid: Sequence[Example], plan: Plan) -> Forecast:
    """Time the fullest micro-batch forward and backward, forward alone on validation rows, and scale up.

    The optimiser's state and its step are added by count: two float32 moments and a gradient for each trained number.
    Leaves parameters and gradients as they were.
    """
    order = Order(len(train), plan.batch, plan.epochs, plan.seed)
    tokens = round(sum(len(example.ids) for example in train) * order.steps / order.steps_per_epoch)
    longest = sorted(train, key=lambda e: -len(e.ids))[: 4 * plan.batch]
    groups = [group[: plan.batch] for group in split_by_tokens(longest, plan.token_budget)]
    sample = pack(max(groups, key=lambda group: sum(len(e.ids) for e in group))).to(decoder.device)
    trained = decoder.trained()

    decoder.train()
    for repeat in range(2):  # the first touches the weights' pages, the second is what a step costs
        started = time.perf_counter()
        (summed_loss(decoder, sample) / max(1, len(sample.targets))).backward()
        took = time.perf_counter() - started
        if repeat == 0:
            for parameter in trained.values():
                parameter.grad = None
    speed = sample.tokens / took
    peak = peak_memory_bytes()
    for parameter in trained.values():
        parameter.grad = None
    decoder.eval()
    started = time.perf_counter()
    with torch.no_grad():
        token_losses(decoder, sample)
    forward_speed = sample.tokens / (time.perf_counter() - started)

    valid_tokens = sum(len(example.ids) for example in valid) * (plan.evaluations + 1)
    moments = 2 * 4 * count_parameters(trained.values())
    return Forecast(
        steps=order.steps,
        tokens=tokens,
        trained_parameters=count_parameters(trained.values()),
        train_seconds=tokens / speed,
        valid_seconds=valid_tokens / forward_speed,
        memory_bytes=peak + moments,
        tokens_per_second=speed,
    )
