"""What a run will take, from one trial of its own work on this machine."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch

from graftwood.data.batch import Rows
from graftwood.data.mixture import order_for
from graftwood.model.decoder import Decoder, count_parameters
from graftwood.runtime import peak_memory_bytes
from graftwood.train.loop import Plan, optimiser_for
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
    forward_tokens_per_second: float

    @property
    def seconds(self) -> float:
        """Training and its evaluations together."""
        return self.train_seconds + self.valid_seconds


def forecast(decoder: Decoder, train: Rows, valid: Rows, plan: Plan) -> Forecast:
    """Time the fullest micro-batch forward and backward, an optimiser's step, forward alone, and scale up.

    The optimiser steps at a rate of zero along gradients of zero, so parameters stay as they were.
    """
    order = order_for(train.tasks, plan.shares, plan.batch, plan.epochs, plan.seed)
    tokens = order.tokens(train.sizes)
    longest = np.argsort(-train.sizes, kind="stable")[: plan.batch].tolist()
    sample = max(train.packs(longest, plan.token_budget), key=lambda packed: packed.tokens).to(decoder.device)
    optimiser = optimiser_for(decoder, plan)

    decoder.train()
    for _ in range(2):  # the first touches the weights' pages, the second is what a step costs
        optimiser.forget()
        started = time.perf_counter()
        (summed_loss(decoder, sample, plan.z_loss) / max(1, len(sample.targets))).backward()
        passed = time.perf_counter()
        for parameter in decoder.trained().values():
            if parameter.grad is not None:
                parameter.grad.zero_()  # a row whose gradient is no number must not spoil the model here
        optimiser.step(0.0)
        stepped = time.perf_counter()
    optimiser.forget()
    memory = peak_memory_bytes()
    decoder.eval()
    with torch.no_grad():
        begun = time.perf_counter()
        token_losses(decoder, sample)
        forward_speed = sample.tokens / (time.perf_counter() - begun)

    train_seconds = tokens * (passed - started) / sample.tokens + order.steps * (stepped - passed)
    valid_tokens = int(valid.sizes.sum()) * (plan.evaluations + 1)
    return Forecast(
        steps=order.steps,
        tokens=tokens,
        trained_parameters=count_parameters(decoder.trained().values()),
        train_seconds=train_seconds,
        valid_seconds=valid_tokens / forward_speed,
        memory_bytes=memory,
        tokens_per_second=tokens / train_seconds,
        forward_tokens_per_second=forward_speed,
    )
