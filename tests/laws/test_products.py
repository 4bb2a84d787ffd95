"""Wide products are float32 products, and attention written out for them is attention."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from graftwood import runtime
from graftwood.model import short
from graftwood.runtime import Place, _has_wide_units, advice, narrow_products, products_are_wide, use_wide_products


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(1, 576, 49), (64, 576, 1536), (300, 1536, 576), (1536, 300, 16)], ids=str)
def test_a_wide_product_is_as_exact_as_a_narrow_one(shape: tuple[int, int, int]) -> None:
    if not use_wide_products():
        pytest.skip("this processor's products are as wide as they get, or would not be exact")
    rows, inner, columns = shape
    x, w = numbers(rows, inner), numbers(columns, inner, seed=1)
    exact = x.double() @ w.double().T
    with narrow_products():
        assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"
        narrow = x @ w.T
    assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"
    for product in (narrow, x @ w.T):
        assert (product - exact).norm() < 1e-6 * exact.norm()  # bfloat16: 2e-3


@pytest.mark.parametrize(
    ("vendor", "family", "wide"),
    [("AuthenticAMD", 26, True), ("AuthenticAMD", 25, False), ("GenuineIntel", 26, False), ("", 0, False)],
)
def test_processors_are_told_apart_by_maker_and_family(vendor: str, family: int, wide: bool) -> None:
    told = f"processor\t: 0\nvendor_id\t: {vendor}\ncpu family\t: {family}\nmodel\t\t: 2\n" if vendor else ""
    assert _has_wide_units(told) == wide


@pytest.mark.parametrize(
    ("flags", "has"),
    [("avx512f avx512_bf16", True), ("amx_tile amx_bf16", True), ("avx512f avx512bw", False), ("", False)],
)
def test_who_could_use_bfloat16_is_told_so(flags: str, has: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "_processor", lambda: f"vendor_id\t: AuthenticAMD\nflags\t\t: fpu {flags} sse\n")
    cpu = torch.device("cpu")
    assert bool(advice(Place(cpu, torch.float32))) == has
    assert advice(Place(cpu, torch.bfloat16)) is None
    assert advice(Place(torch.device("cuda"), torch.float32)) is None


def test_a_failure_in_a_narrow_block_leaves_products_wide() -> None:
    use_wide_products()
    before = torch.backends.mkldnn.matmul.fp32_precision
    with pytest.raises(ValueError, match="within"), narrow_products():
        raise ValueError("within")
    assert torch.backends.mkldnn.matmul.fp32_precision == before
    assert products_are_wide() == (before == "bf16")


@pytest.mark.parametrize("tokens", [1, 7, short.SHORT, 200])
@pytest.mark.parametrize("before", [None, 0, 5], ids=["causal", "masked", "after a prefix"])
@pytest.mark.parametrize(("batch", "groups"), [(2, 6), (2, 3), (1, 2), (3, 1)])
def test_written_out_attention_is_the_fused_one(tokens: int, before: int | None, batch: int, groups: int) -> None:
    keys = tokens + (before or 0)
    shapes = ((tokens, 6), (keys, groups), (keys, groups))
    q, k, v = (numbers(batch, n, heads, 16, seed=i).requires_grad_() for i, (n, heads) in enumerate(shapes))
    mask = None
    if before is not None:
        mask = torch.ones(tokens, keys, dtype=torch.bool).tril_(before)
        mask[:, 1 : keys // 3] = False
        mask[torch.arange(tokens), torch.arange(tokens) + before] = True  # a token sees itself
    mine = short.short_attention(q, k, v, 0.3, mask)
    theirs = F.scaled_dot_product_attention(
        *(y.transpose(1, 2) for y in (q, k, v)),
        attn_mask=mask,
        is_causal=mask is None,
        scale=0.3,
        enable_gqa=True,
    ).transpose(1, 2)
    assert torch.allclose(mine, theirs, atol=1e-5)
    slope = numbers(*mine.shape, seed=9)
    for own, other in zip(*(torch.autograd.grad(y, (q, k, v), slope) for y in (mine, theirs)), strict=True):
        assert torch.allclose(own, other, atol=2e-5)
