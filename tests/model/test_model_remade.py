"""A projection keeps no input that its maker can make again, and its gradients are the same as if it had."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from graftwood.model.layers import Linear, RMSNorm, project, swiglu
from graftwood.techniques.lora import LoRADelta


def adapted(seed: int, inputs: int, outputs: int) -> Linear:
    """A frozen linear with a delta that is not zero."""
    generator = torch.Generator().manual_seed(seed)
    linear = Linear(inputs, outputs).requires_grad_(False)
    linear.weight.normal_(generator=generator)
    delta = LoRADelta(linear, 2, 0.5, 0.0, generator)
    with torch.no_grad():
        delta.lora_B.normal_(generator=generator)
    linear.delta = delta
    return linear


def normed() -> Callable[[Tensor], Tensor]:
    norm = RMSNorm(8, 1e-5).requires_grad_(False)
    norm.weight.uniform_(0.5, 2.0, generator=torch.Generator().manual_seed(3))
    return norm


def gated() -> Callable[[Tensor], Tensor]:
    return lambda x: swiglu(x, 0.5 * x)


def unmade(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The same numbers from a step that cannot make them again."""
    return lambda x: function(x) * 1.0


@pytest.mark.parametrize("maker", [normed(), gated()], ids=["norm", "gated activation"])
def test_projection_of_what_can_be_made_again(maker: Callable[[Tensor], Tensor]) -> None:
    linears = [adapted(1, 8, 5), adapted(2, 8, 4)]
    start = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0))
    results = []
    for function in (maker, unmade(maker)):
        x = start.clone().requires_grad_(True)
        outputs = project(function(x), *linears)
        kept = outputs[0].grad_fn.saved_tensors[0]
        assert (kept is None) == (function is maker)
        sum((i + 1) * y.square().sum() for i, y in enumerate(outputs)).backward()
        deltas = [parameter for linear in linears for parameter in linear.delta.parameters()]
        results.append([x.grad, *(parameter.grad for parameter in deltas)])
        for parameter in deltas:
            parameter.grad = None
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_a_second_backward_through_a_kept_graph_gives_the_same() -> None:
    linear = adapted(1, 8, 5)
    x = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    loss = linear(swiglu(x, 0.5 * x)).square().sum()
    loss.backward(retain_graph=True)
    once = x.grad.clone()
    loss.backward()
    torch.testing.assert_close(x.grad, 2 * once)
