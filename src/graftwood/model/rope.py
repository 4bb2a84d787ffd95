"""Rotary positions: how fast each pair of dimensions turns, stretched as a configuration asks."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from graftwood.model.config import ModelConfig, RopeScaling


def rotary_tables(config: ModelConfig, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine of every position's angles.

    Shapes: positions [...] -> two float32 [..., D/2], D being what turns of a head.
    Source: Su et al. 2021, arXiv 2104.09864, eq. 34.
    """
    frequency = frequencies(config.turned, config.rope_theta, config.rope_scaling, positions.device)
    factor = 1.0 if config.rope_scaling is None else config.rope_scaling.attention_factor
    return _tables(positions, frequency, factor)


def local_tables(config: ModelConfig, positions: Tensor) -> tuple[Tensor, Tensor] | None:
    """The tables of layers with a window, where they turn otherwise: never stretched."""
    if config.local_rope_theta is None:
        return None
    return _tables(positions, frequencies(config.turned, config.local_rope_theta, None, positions.device), 1.0)


def frequencies(size: int, theta: float, scaling: RopeScaling | None, device: torch.device | None = None) -> Tensor:
    """Radians a position of each of the `size / 2` pairs."""
    half = torch.arange(0, size, 2, dtype=torch.float32, device=device) / max(1, size)
    frequency = 1.0 / (theta**half)
    if scaling is None:
        return frequency
    if scaling.kind == "linear":
        return frequency / scaling.factor
    if scaling.kind == "llama3":
        # Wavelengths beyond the original context are stretched, short ones stay, those between are blended.
        turns = scaling.original_positions * frequency / (2 * torch.pi)
        span = scaling.high_frequency_factor - scaling.low_frequency_factor
        kept = ((turns - scaling.low_frequency_factor) / span).clamp(0, 1)
    else:
        kept = _yarn_kept(size, theta, scaling, device)
    return frequency * (kept + (1 - kept) / scaling.factor)


def _yarn_kept(size: int, theta: float, scaling: RopeScaling, device: torch.device | None) -> Tensor:
    """The share of each pair's frequency that is not stretched. Source: arXiv 2309.00071, eqs. 17 to 23."""

    def pair(turns: float) -> float:
        """Which pair turns that often over the original positions."""
        return size * math.log(scaling.original_positions / (turns * 2 * math.pi)) / (2 * math.log(theta))

    first, last = pair(scaling.high_frequency_factor), pair(scaling.low_frequency_factor)
    if scaling.whole_dimensions:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, size - 1)
    place = torch.arange(size // 2, dtype=torch.float32, device=device)
    return 1 - ((place - first) / max(last - first, 1e-3)).clamp(0, 1)


def _tables(positions: Tensor, frequency: Tensor, factor: float) -> tuple[Tensor, Tensor]:
    angles = positions.float().unsqueeze(-1) * frequency
    return angles.cos() * factor, angles.sin() * factor
