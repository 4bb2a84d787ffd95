"""Several LoRA updates of one linear as one.

A and B are combined apart, each by the root of its weight, as PEFT's `add_weighted_adapter` does. `cat` alone gives the
weighted sum of the updates itself; with A and B apart, every A also meets every other adapter's B.

Letters: N adapters, R rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from graftwood.errors import ConfigError

Factors = dict[str, tuple[Tensor, Tensor, float]]  # by path: A [R, in], B [out, R], the scale of B A
Sum = Callable[[Tensor, Tensor, float, torch.Generator], Tensor]


def linear(values: Tensor, weights: Tensor, density: float, generator: torch.Generator) -> Tensor:
    """The weighted sum. Shapes: values [N, ...], weights [N, 1, 1]."""
    return (values * weights).sum(0)


def ties(values: Tensor, weights: Tensor, density: float, generator: torch.Generator) -> Tensor:
    """The largest values of each, then of each place the weighted mean of those with the sign of the sum.

    Source: Yadav et al. 2023, arXiv 2306.01708, algorithm 1.
    """
    trimmed = torch.stack([_largest(value, density) for value in values])
    elected = torch.where(trimmed.sum(0) >= 0, 1.0, -1.0)
    agree = trimmed.sign() == elected
    return (trimmed * weights * agree).sum(0) / agree.sum(0).clamp(min=1)


def dare(values: Tensor, weights: Tensor, density: float, generator: torch.Generator) -> Tensor:
    """The weighted sum of what is left when each value is dropped at random, scaled up to the expectation.

    Source: Yu et al. 2023, arXiv 2311.03099, eq. 3.
    """
    kept = torch.stack([torch.bernoulli(torch.full(value.shape, density), generator=generator) for value in values])
    return linear(values * kept.to(values) / density, weights, density, generator)


SUMS: Mapping[str, Sum] = {"linear": linear, "ties": ties, "dare": dare}
CAT = "cat"
HOWS = (*SUMS, CAT)


def combine(
    paths: Sequence[str], given: Sequence[Factors], weights: Sequence[float], how: str, density: float, seed: int
) -> Factors:
    """Adapters with weights as one adapter of scale 1; an adapter without an update of a linear counts nothing there.

    `paths` are the model's linears in order, of which each adapter updates some.

    Raises: ConfigError where ranks differ that must be one.
    """
    ranks = {len(a) for factors in given for a, _, _ in factors.values()}
    if how != CAT and len(ranks) > 1:
        raise ConfigError(f"ranks {', '.join(map(str, sorted(ranks)))} cannot be added; --how cat takes any ranks")
    generator = torch.Generator().manual_seed(seed)
    found: Factors = {}
    for path in (path for path in paths if any(path in factors for factors in given)):
        parts = [
            (*factors[path][:2], w * factors[path][2])
            for factors, w in zip(given, weights, strict=True)
            if path in factors
        ]
        if how == CAT:
            a = torch.cat([a * weight for a, _, weight in parts])
            found[path] = a, torch.cat([b for _, b, _ in parts], dim=1), 1.0
            continue
        device = parts[0][0].device
        roots = torch.tensor([math.sqrt(abs(weight)) for *_, weight in parts], device=device).view(-1, 1, 1)
        signs = torch.tensor([math.copysign(1, weight) for *_, weight in parts], device=device).view(-1, 1, 1)
        a = SUMS[how](torch.stack([a for a, _, _ in parts]), roots * signs, density, generator)
        found[path] = a, SUMS[how](torch.stack([b for _, b, _ in parts]), roots, density, generator), 1.0
    return _of_one_rank(found)


def _of_one_rank(factors: Factors) -> Factors:
    """The same updates, the smaller ones with zeros up to the largest rank."""
    rank = max(len(a) for a, _, _ in factors.values())

    def filled(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, float]:
        more = rank - len(a)
        return torch.cat([a, a.new_zeros(more, a.shape[1])]), torch.cat([b, b.new_zeros(len(b), more)], dim=1), 1.0

    return {path: filled(a, b) for path, (a, b, _) in factors.items()}


def _largest(value: Tensor, density: float) -> Tensor:
    flat = value.flatten()
    kept = torch.zeros_like(flat)
    kept[flat.abs().topk(int(density * flat.numel())).indices] = 1
    return value * kept.view_as(value)
