"""The optimiser and its schedule."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from graftwood.train.muon import Muon

OptimiserName = Literal["adamw", "muon"]


def schedule(step: int, steps: int, warmup: int, decay: int) -> float:
    """Share of the learning rate at a step: a linear rise over `warmup` steps, a linear fall to zero over `decay`.

    What lies between is level; a `decay` longer than what the rise leaves begins where the rise ends.
    Source: Hu et al. 2024, arXiv 2404.06395, section 4.
    """
    if step < warmup:
        return (step + 1) / warmup
    fall = min(decay, steps - warmup)
    return min(1.0, max(0.0, (steps - step) / max(1, fall)))


class Optimiser:
    """What turns gradients into steps: torch optimisers over groups of parameters, and averaged weights if wanted.

    `adamw` decays matrices and leaves vectors alone (norms, biases, scales, a matrix of one row or column):
    Loshchilov and Hutter 2019, arXiv 1711.05101.
    `muon` takes the matrices of the blocks and leaves the rest to AdamW. `half_life` is that of the averaged weights in
    steps, 0 for none; `rates` multiply the learning rate by name.
    """

    def __init__(
        self,
        trained: Mapping[str, nn.Parameter],
        matrices: Collection[str],
        kind: OptimiserName,
        weight_decay: float,
        betas: tuple[float, float],
        half_life: float,
        rates: Mapping[str, float] | None = None,
    ) -> None:
        self._trained = trained
        hidden = {name for name in matrices if name in trained} if kind == "muon" else set()
        groups: dict[tuple[str, float, float], list[nn.Parameter]] = {}
        for name, parameter in trained.items():
            matrix = sum(size > 1 for size in parameter.shape) > 1
            share, decay = (rates or {}).get(name, 1.0), weight_decay if matrix else 0.0
            groups.setdefault(("muon" if name in hidden else "adamw", share, decay), []).append(parameter)
        parts: dict[str, list[dict[str, Any]]] = {}
        for (part, share, decay), members in groups.items():
            parts.setdefault(part, []).append({"params": members, "share": share, "weight_decay": decay})
        made: dict[str, Callable[..., torch.optim.Optimizer]] = {
            "adamw": partial(torch.optim.AdamW, betas=betas, fused=True),
            "muon": Muon,
        }
        self._parts: list[torch.optim.Optimizer] = [made[part](members) for part, members in parts.items()]
        self._keep = 0.5 ** (1 / half_life) if half_life else 0.0
        self._average = {name: p.detach().clone() for name, p in trained.items()} if half_life else {}

    def forget(self) -> None:
        """Drop the gradients."""
        for parameter in self._trained.values():
            parameter.grad = None

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """One step along the gradients.

        What a batch did not reach, as an expert that no token chose, has a gradient of zero: moments and decay go on.
        """
        for parameter in self._trained.values():
            if parameter.grad is None and parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)
        for part in self._parts:
            for group in part.param_groups:
                group["lr"] = learning_rate * group["share"]
            part.step()
        if self._average:
            torch._foreach_lerp_(list(self._average.values()), [*self._trained.values()], 1 - self._keep)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The averaged weights in place of the trained ones inside the block, where there are any."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange trained and averaged weights."""
        for name, average in self._average.items():
            parameter = self._trained[name]
            parameter.data, self._average[name] = average, parameter.data

    def tensors(self) -> dict[str, Tensor]:
        """The state by parameter name: `<parameter>/<moment>`."""
        state = {
            f"{name}/{key}": value.detach()
            for name, parameter in self._trained.items()
            for part in self._parts
            if parameter in part.state
            for key, value in part.state[parameter].items()
        }
        return state | {f"{name}/average": tensor for name, tensor in self._average.items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `tensors` gave."""
        owners = {
            parameter: part for part in self._parts for group in part.param_groups for parameter in group["params"]
        }
        for name, tensor in tensors.items():
            path, _, key = name.rpartition("/")
            parameter = self._trained[path]
            if key == "average":
                self._average[path] = tensor.to(parameter.device)
            else:  # the fused optimiser counts its steps where the parameter is, too
                owners[parameter].state[parameter][key] = tensor.to(parameter.device)
