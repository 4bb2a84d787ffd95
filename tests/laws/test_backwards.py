"""Each hand-written backward gives what autograd gives for the same formula written plainly."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from graftwood.model.layers import (
    Linear,
    RMSNorm,
    _FrozenNorm,
    _FrozenProjection,
    _Rotate,
    _SwiGLU,
    _TrainedNorm,
    project,
    rotate,
    swiglu,
)

Function = Callable[..., Any]
dtypes = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])


def draw(*shape: int, seed: int, dtype: torch.dtype, grad: bool = False) -> Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return values.to(dtype).requires_grad_(grad)


def agree(written: Function, plain: Function, inputs: Sequence[Tensor | float | None]) -> None:
    """Outputs and every input's gradient are equal, under output gradients that are not symmetric."""
    results = []
    for function in (written, plain):
        fresh = [x.detach().clone().requires_grad_(x.requires_grad) if isinstance(x, Tensor) else x for x in inputs]
        outputs = function(*fresh)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        weighted = [(y * draw(*y.shape, seed=99 + i, dtype=y.dtype)).sum() for i, y in enumerate(outputs)]
        torch.stack(weighted).sum().backward()
        grads = [x.grad for x in fresh if isinstance(x, Tensor) and x.requires_grad]
        assert all(grad is not None for grad in grads)
        results.append([*outputs, *grads])
    for found, expected in zip(*results, strict=True):
        exact = expected.dtype == torch.float64
        torch.testing.assert_close(found, expected, rtol=1e-10 if exact else 1e-4, atol=1e-12 if exact else 1e-5)


def plain_projection(x: Tensor, *plan: Any) -> tuple[Tensor, ...]:
    outputs = []
    for weight, a, b, scale in zip(*(plan[i::4] for i in range(4)), strict=True):
        y = x @ weight.T
        outputs.append(y if a is None else y + scale * (x @ a.T @ b.T))
    return tuple(outputs)


def projection_inputs(dtype: torch.dtype, x_grad: bool = True) -> list[Tensor | float | None]:
    """Three matrices on one input: with a low-rank update, without, and with another one."""
    inputs: list[Tensor | float | None] = [draw(2, 3, 5, seed=0, dtype=dtype, grad=x_grad)]
    for number, (out, rank) in enumerate(((4, 2), (6, 0), (3, 1))):
        inputs.append(draw(out, 5, seed=10 + number, dtype=dtype))
        if rank:
            inputs.append(draw(rank, 5, seed=20 + number, dtype=dtype, grad=True))
            inputs.append(draw(out, rank, seed=30 + number, dtype=dtype, grad=True))
            inputs.append(0.5 + number)
        else:
            inputs += [None, None, 0.0]
    return inputs


@dtypes
@pytest.mark.parametrize("x_grad", [True, False], ids=["inner", "first layer"])
def test_frozen_projection(dtype: torch.dtype, x_grad: bool) -> None:
    agree(_FrozenProjection.apply, plain_projection, projection_inputs(dtype, x_grad))


def test_frozen_projection_when_one_output_is_not_used() -> None:
    x, *plan = projection_inputs(torch.float64)
    fixed = [value.detach() if isinstance(value, Tensor) else value for value in plan]
    agree(lambda *given: _FrozenProjection.apply(*given)[1], lambda *given: plain_projection(*given)[1], [x, *fixed])


def plain_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * weight


@dtypes
@pytest.mark.parametrize("size", [1.0, 1e-3, 1e3])
def test_norm(dtype: torch.dtype, size: float) -> None:
    x = (draw(2, 3, 8, seed=1, dtype=dtype) * size).requires_grad_(True)
    agree(_FrozenNorm.apply, plain_norm, [x, draw(8, seed=2, dtype=dtype), 1e-5])
    agree(_TrainedNorm.apply, plain_norm, [x, draw(8, seed=2, dtype=dtype, grad=True), 1e-5])


@dtypes
def test_swiglu(dtype: torch.dtype) -> None:
    inputs = [draw(2, 3, 7, seed=seed, dtype=dtype, grad=True) for seed in (3, 4)]
    agree(_SwiGLU.apply, lambda gate, up: gate * torch.sigmoid(gate) * up, inputs)


def plain_rotation(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


@dtypes
def test_rotate(dtype: torch.dtype) -> None:
    angles = draw(1, 5, 1, 4, seed=6, dtype=dtype)
    x = draw(2, 5, 3, 8, seed=5, dtype=dtype, grad=True)
    agree(_Rotate.apply, plain_rotation, [x, angles.cos(), angles.sin()])


@pytest.mark.parametrize(
    ("function", "inputs"),
    [
        (_FrozenProjection.apply, projection_inputs(torch.float64)),
        (
            lambda x: _FrozenNorm.apply(x, draw(4, seed=2, dtype=torch.float64), 1e-5),
            [draw(2, 3, 4, seed=1, dtype=torch.float64, grad=True)],
        ),
        (_SwiGLU.apply, [draw(2, 3, seed=seed, dtype=torch.float64, grad=True) for seed in (3, 4)]),
    ],
    ids=["projection", "norm", "swiglu"],
)
def test_finite_differences_agree(function: Function, inputs: list[Any]) -> None:
    assert torch.autograd.gradcheck(function, inputs)


class PlainLoRA(nn.Module):
    """The smallest delta with factors."""

    def __init__(self, linear: Linear) -> None:
        super().__init__()
        outputs, inputs = linear.weight.shape
        self.a = nn.Parameter(draw(2, inputs, seed=7, dtype=torch.float32))
        self.b = nn.Parameter(draw(outputs, 2, seed=8, dtype=torch.float32))

    def factors(self) -> tuple[Tensor, Tensor, float]:
        return self.a, self.b, 0.5

    def forward(self, linear: Linear, x: Tensor) -> Tensor:
        return linear.plain(x) + 0.5 * (x @ self.a.T @ self.b.T)


def frozen_linear(seed: int) -> Linear:
    linear = Linear(5, 4).requires_grad_(False)
    linear.weight.copy_(draw(4, 5, seed=seed, dtype=torch.float32))
    return linear


def test_the_model_takes_the_written_backwards_where_they_apply() -> None:
    x = draw(2, 3, 5, seed=0, dtype=torch.float32, grad=True)
    linear = frozen_linear(1)
    linear.delta = PlainLoRA(linear)
    norm = RMSNorm(5, 1e-5).requires_grad_(False)
    norm.weight.fill_(1.0)
    angles = draw(3, 1, 2, seed=2, dtype=torch.float32)
    turned = rotate(x.unsqueeze(2)[..., :4], angles.cos(), angles.sin())
    names = [y.grad_fn.name() for y in (project(x, linear)[0], norm(x), swiglu(x, x), turned)]
    assert names == ["_FrozenProjectionBackward", "_FrozenNormBackward", "_SwiGLUBackward", "_RotateBackward"]


def test_fused_projection_equals_each_linear_with_its_delta() -> None:
    linears = [frozen_linear(seed) for seed in (1, 2, 3)]
    for linear in linears[:2]:
        linear.delta = PlainLoRA(linear)
    x = draw(2, 3, 5, seed=0, dtype=torch.float32)

    def apart(x: Tensor) -> tuple[Tensor, ...]:
        return tuple(linear.plain(x) if linear.delta is None else linear.delta(linear, x) for linear in linears)

    def gradients(function: Function) -> list[Tensor]:
        given = x.clone().requires_grad_(True)
        sum((i + 1) * y.square().sum() for i, y in enumerate(function(given))).backward()
        deltas = [p for linear in linears[:2] for p in linear.delta.parameters()]  # type: ignore[union-attr]
        found = [given.grad, *(p.grad for p in deltas)]
        for p in deltas:
            p.grad = None
        return found

    for found, expected in zip(gradients(lambda x: project(x, *linears)), gradients(apart), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_without_gradients_the_same_numbers_come_out() -> None:
    x = draw(2, 3, 8, seed=0, dtype=torch.float32, grad=True)
    norm = RMSNorm(8, 1e-5).requires_grad_(False)
    norm.weight.copy_(draw(8, seed=1, dtype=torch.float32))
    angles = draw(3, 4, seed=2, dtype=torch.float32)
    for function in (norm, lambda x: swiglu(x, 2 * x), lambda x: rotate(x, angles.cos(), angles.sin())):
        with torch.no_grad():
            expected = function(x)
        torch.testing.assert_close(function(x), expected, rtol=1e-6, atol=1e-6)
    assert torch.allclose(norm(x), F.rms_norm(x, (8,), norm.weight, 1e-5))
