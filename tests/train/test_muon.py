"""Muon: torch's own update, the right parameters, orthogonal steps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import tiny
from graftwood.data.batch import Examples
from graftwood.train.loop import Trainer
from graftwood.train.muon import Muon, orthogonal


def test_it_steps_as_torchs_own_does() -> None:
    """Torch computes the iteration in bfloat16, whose rounding the tolerance allows for."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(16, 16), (16, 40), (40, 16), (16, 16)]
    first = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    second = [nn.Parameter(parameter.detach().clone()) for parameter in first]
    ours = Muon(first, lr=0.02, weight_decay=0.1)
    theirs = torch.optim.Muon(second, lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    begun = [parameter.detach().clone() for parameter in first]
    for _ in range(3):
        for one, two in zip(first, second, strict=True):
            one.grad = torch.randn(one.shape, generator=generator)
            two.grad = one.grad.clone()
        ours.step()
        theirs.step()
    for start, one, two in zip(begun, first, second, strict=True):
        moved, wanted = (one - start).detach(), (two - start).detach()
        assert (moved - wanted).norm() < 0.03 * wanted.norm()


def test_singular_values_come_near_to_one() -> None:
    wide = torch.randn(3, 8, 20, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonal(wide))
    assert values.min() > 0.6
    assert values.max() < 1.3
    assert not orthogonal(torch.zeros(1, 4, 4)).any()


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_matrices_of_blocks_are_muons_and_the_rest_adamws(kind: str, tmp_path: Path) -> None:
    decoder = tiny.decoder().requires_grad_(True)
    plan = tiny.plan(optimiser=kind, learning_rate=1e-3)
    made = Trainer(decoder, Examples(tiny.examples(16)), Examples([]), plan, tmp_path)
    made.step()
    state = made.optimiser.tensors()
    muons = {name.removesuffix("/momentum_buffer") for name in state if name.endswith("momentum_buffer")}
    assert muons == ({f"{path}.weight" for path in decoder.linears()} if kind == "muon" else set())
    rest = decoder.trained().keys() - muons
    assert {name for name in decoder.trained() if f"{name}/exp_avg" in state} == rest
    again = Trainer(decoder, Examples(tiny.examples(16)), Examples([]), plan, tmp_path)
    again.optimiser.restore(state)
    assert again.optimiser.tensors().keys() == state.keys()
    assert all(torch.equal(again.optimiser.tensors()[name], state[name]) for name in state)
