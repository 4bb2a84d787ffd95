"""What a run will take, from one trial of its own work on this machine."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np
import torch

from graftwood.data.batch import Packed, Rows
from graftwood.data.mixture import order_for
from graftwood.model.decoder import Decoder, count_parameters
from graftwood.runtime import give_back_memory, peak_memory_bytes, wait_for
from graftwood.train.loop import Plan, optimiser_for
from graftwood.train.loss import summed_loss, token_losses

_TRIED = 4 << 20  # parameters; with their moments more than a processor's cache holds


@dataclass(frozen=True)
class Forecast:
    """Expected cost of training: seconds, peak bytes where it runs, and the counts they follow from.

    `below_seconds` are for what enters the block that training begins at, unless the cache has it.
    """

    steps: int
    tokens: int
    trained_parameters: int
    train_seconds: float
    valid_seconds: float
    below_seconds: float
    memory_bytes: int
    tokens_per_second: float
    forward_tokens_per_second: float

    @property
    def seconds(self) -> float:
        """Training and its evaluations together, with what is computed once before."""
        return self.train_seconds + self.valid_seconds + self.below_seconds


def planned(train: Rows, plan: Plan) -> tuple[int, int]:
    """Optimiser steps and tokens of a run that goes to its end."""
    order = order_for(train.tasks, plan.shares, plan.batch, plan.epochs, plan.seed)
    return order.steps, order.tokens(train.sizes)


def full_seconds(decoder: Decoder, steps: int, tokens: int, forward_tokens_per_second: float) -> float:
    """What training every parameter for so long would take, estimated without the memory that it would need.

    Forward and backward are three times the matrix products of forward alone; AdamW goes over all parameters at each
    step, at the speed it has on some, timed here.
    """
    tried = torch.nn.Parameter(torch.zeros(_TRIED, device=decoder.device))
    tried.grad = torch.zeros_like(tried)
    optimiser = torch.optim.AdamW([tried], lr=0.0, fused=True)
    for _ in range(2):  # the first makes the moments
        started = _now(decoder)
        optimiser.step()
        stepped = _now(decoder) - started
    parameters = count_parameters(decoder.parameters())
    return tokens * 3 / forward_tokens_per_second + steps * stepped * parameters / _TRIED


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
        started = _now(decoder)
        (summed_loss(decoder, sample, plan.z_loss) / max(1, len(sample.targets))).backward()
        passed = _now(decoder)
        for parameter in decoder.trained().values():
            if parameter.grad is not None:
                parameter.grad.zero_()  # a row whose gradient is no number must not spoil the model here
        optimiser.step(0.0)
        stepped = _now(decoder)
    optimiser.forget()
    memory = peak_memory_bytes(decoder.device)
    del optimiser
    give_back_memory()
    decoder.eval()
    entered = sample.entering is not None
    forward = _forward_seconds(decoder, sample)  # a token
    whole = _forward_seconds(decoder, replace(sample, entering=None)) if entered else forward

    train_seconds = tokens * (passed - started) / sample.tokens + order.steps * (stepped - passed)
    once, valid_tokens = int(train.sizes.sum()) + int(valid.sizes.sum()), int(valid.sizes.sum())
    return Forecast(
        steps=order.steps,
        tokens=tokens,
        trained_parameters=count_parameters(decoder.trained().values()),
        train_seconds=train_seconds,
        valid_seconds=valid_tokens * (min(plan.evaluations, order.steps) + 1) * forward,
        below_seconds=max(0.0, whole - forward) * once,
        memory_bytes=memory,
        tokens_per_second=tokens / train_seconds,
        forward_tokens_per_second=1 / whole,
    )


@torch.no_grad()
def _forward_seconds(decoder: Decoder, sample: Packed) -> float:
    """What a token of the sample takes without a way back."""
    begun = _now(decoder)
    token_losses(decoder, sample)
    return (_now(decoder) - begun) / sample.tokens


def _now(decoder: Decoder) -> float:
    """The time once the decoder's device has done what came before."""
    wait_for(decoder.device)
    return time.perf_counter()
