"""A frozen base in fewer bits: weights stay quantised in memory and are made whole where they multiply.

`int8` keeps a scale for each block of 32 inputs, `q4` a scale and a least value: the numbers of GGUF's Q8_0 and Q4_1.
Source: Dettmers et al. 2023, arXiv 2305.14314, for training adapters on such a base.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from graftwood.model.decoder import Decoder
from graftwood.model.layers import Linear, Packed

PRECISIONS = ("full", "int8", "q4")
_BLOCK = 32


class Quantised(Packed):
    """A frozen linear with a quantised weight. Shapes: codes [out, K, S] (q4: S / 2), scales and least [out, K, 1]."""

    codes: Tensor
    scales: Tensor
    least: Tensor | None

    def __init__(self, linear: Linear, precision: str) -> None:
        nn.Module.__init__(self)
        self.bias, self.delta = linear.bias, linear.delta
        self._dtype = linear.weight.dtype
        outputs, inputs = linear.weight.shape
        # Whole blocks; two codes of q4 share a byte.
        blocks = linear.weight.detach().float().view(outputs, -1, math.gcd(inputs, _BLOCK))
        least = None
        if precision == "int8":
            scales = (blocks.abs().amax(2, keepdim=True) / 127).half()
            codes = _divided(blocks, scales).clamp(-127, 127).to(torch.int8)
        else:
            assert blocks.shape[2] % 2 == 0, "q4 needs an even number of inputs"
            low, high = blocks.aminmax(dim=2, keepdim=True)
            scales, least = ((high - low) / 15).half(), low.half()
            wide = _divided(blocks - least.float(), scales).clamp(0, 15).to(torch.uint8)
            codes = wide[..., ::2] | wide[..., 1::2] << 4
        self.register_buffer("codes", codes, persistent=False)
        self.register_buffer("scales", scales, persistent=False)
        self.register_buffer("least", least, persistent=False)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The whole weight, [out, in], made anew."""
        if self.least is None:
            values = self.codes * self.scales.float()
        else:
            wide = torch.stack([self.codes & 15, self.codes >> 4], dim=-1).flatten(-2)
            values = torch.addcmul(self.least.float(), wide.float(), self.scales.float())
        return values.flatten(1).to(self._dtype)

    def plain(self, x: Tensor) -> Tensor:
        y: Tensor = _Product.apply(x, self)  # type: ignore[no-untyped-call]
        return y if self.bias is None else y + self.bias.to(x.dtype)

    def frozen(self, dtype: torch.dtype) -> Linear | None:
        return self if dtype == self._dtype else None

    def outputs(self, x: Tensor, group: tuple[Linear, ...]) -> tuple[Tensor, ...]:
        return tuple(linear.plain(x) if linear.delta is None else linear.delta(linear, x) for linear in group)


class _Product(torch.autograd.Function):
    """`x W^T` that keeps nothing: the weight is made again for the way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, linear: Quantised) -> Tensor:
        ctx.linear = linear
        return F.linear(x, linear.weight.to(x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None]:
        return grad @ ctx.linear.weight.to(grad.dtype) if ctx.needs_input_grad[0] else None, None


def _divided(values: Tensor, scales: Tensor) -> Tensor:
    return (values / scales.float().clamp_min(torch.finfo(torch.float16).tiny)).round()


@torch.no_grad()
def quantise(decoder: Decoder, precision: str) -> None:
    """Replace every linear of the blocks by a quantised one; embeddings, norms and the head stay as they are."""
    if precision == decoder.base_precision:
        return
    assert decoder.base_precision == "full", "what is quantised has lost what another precision would keep"
    for path, linear in decoder.linears().items():
        owner, _, leaf = path.rpartition(".")
        setattr(decoder.get_submodule(owner), leaf, Quantised(linear, precision).train(linear.training))
    decoder.base_precision = precision


def held_bytes(decoder: Decoder) -> int:
    """Bytes of all parameters and buffers, each storage counted once."""
    tensors = {t.data_ptr(): t.nbytes for t in (*decoder.parameters(), *decoder.buffers())}
    return sum(tensors.values())
