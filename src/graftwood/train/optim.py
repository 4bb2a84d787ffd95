"""The optimiser and its schedule."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def schedule(step: int, steps: int, warmup: int) -> float:
    """Share of the learning rate at a step: a linear rise over `warmup` steps, then a linear fall to zero."""
    if step < warmup:
        return (step + 1) / warmup
    return max(0.0, (steps - step) / max(1, steps - warmup))


def adamw(
    trained: Mapping[str, nn.Parameter],
    learning_rate: float,
    weight_decay: float,
    rates: Mapping[str, float] | None = None,
) -> torch.optim.AdamW:
    """AdamW that decays matrices and leaves vectors (norms, biases) alone; `rates` multiply the learning rate by name.

    Source: Loshchilov and Hutter 2019, arXiv 1711.05101; betas (0.9, 0.999) and eps 1e-8 as in transformers.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in trained.items():
        decay = weight_decay if parameter.ndim > 1 else 0.0
        groups.setdefault(((rates or {}).get(name, 1.0), decay), []).append(parameter)
    return torch.optim.AdamW(
        [{"params": params, "weight_decay": decay, "share": share} for (share, decay), params in groups.items()],
        lr=learning_rate,
        fused=True,
    )


def optimiser_tensors(optimiser: torch.optim.Optimizer, trained: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """The optimiser's state by parameter name: `<parameter>/<moment>`."""
    return {
        f"{name}/{key}": value.detach()
        for name, parameter in trained.items()
        for key, value in optimiser.state[parameter].items()
    }


def restore_optimiser(
    optimiser: torch.optim.Optimizer, trained: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]
) -> None:
    """Put back what `optimiser_tensors` gave."""
    for name, tensor in tensors.items():
        parameter, _, key = name.rpartition("/")
        owner = trained[parameter]
        optimiser.state[owner][key] = tensor.to(owner.device)  # the fused optimiser counts its steps there, too
