"""MXFP4: four-bit floats in blocks of 32 that share a power of two.

Source: Open Compute Project 2023, "OCP Microscaling Formats (MX) Specification", sections 5.1 and 5.3.3.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
_BIAS = 127  # of the stored exponents


def dequantised(blocks: Tensor, scales: Tensor) -> Tensor:
    """The values of packed blocks, exact in bfloat16; two values a byte, the lower half first.

    Shapes: blocks [..., G, 16] and scales [..., G], both uint8 -> [..., 32 G].
    """
    values = torch.tensor(_VALUES, dtype=torch.bfloat16, device=blocks.device)
    pairs = torch.stack((values[(blocks & 15).int()], values[(blocks >> 4).int()]), dim=-1)
    return torch.ldexp(pairs.flatten(-2), scales.int().unsqueeze(-1) - _BIAS).to(torch.bfloat16).flatten(-2)


def unpacked(tensors: Iterator[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """File tensors with each pair of `NAME_blocks` and `NAME_scales` made into `NAME`, [experts, in, out].

    A half whose other never comes is passed on as it is, to be told as a misfit.
    """
    waiting: dict[str, Tensor] = {}
    for name, tensor in tensors:
        stem, _, half = name.rpartition("_")
        if half not in ("blocks", "scales"):
            yield name, tensor
            continue
        other = waiting.pop(f"{stem}_{'scales' if half == 'blocks' else 'blocks'}", None)
        if other is None:
            waiting[name] = tensor
            continue
        blocks, scales = (tensor, other) if half == "blocks" else (other, tensor)
        experts = [dequantised(*pair).T for pair in zip(blocks, scales, strict=True)]  # one at a time, to stay small
        yield stem, torch.stack(experts)
    yield from waiting.items()
