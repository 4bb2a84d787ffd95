"""Weights on predictions: each kind is its formula, in the gradient alone, however the rows are packed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import tiny
from conftest import CPU
from graftwood.anchor import ANCHORS, Ground
from graftwood.base import Base, open_base
from graftwood.data.batch import Examples, Packed, pack
from graftwood.errors import ConfigError
from graftwood.flags import anchors
from graftwood.train.hold import Hold
from graftwood.train.loop import Trainer
from graftwood.train.loss import predicting, summed_loss, token_losses

KINDS = ("eaft", "dft", "talr", "flow", "stm")
ROWS = tiny.examples(12, seed=3)
THRESHOLD = 200.0


@pytest.fixture
def base(tmp_path: Path, tokenizer_files: Callable[[Path], None]) -> Base:
    base = open_base(str(tiny.model_folder(tmp_path / "tiny", tokenizer_files)), CPU)
    base.decoder.requires_grad_(True)
    return base


def hold(base: Base, kind: str, alpha: float = 1.0) -> Hold:
    options = {"kind": kind, "alpha": alpha} | ({"threshold": THRESHOLD} if kind == "stm" else {})
    anchor = ANCHORS.get("token_gates").parse(options)
    return anchor.hold(Ground(base, tiny.technique("full"), Examples(ROWS), tiny.plan()))


def formula(kind: str, logits: Tensor, packed: Packed) -> Tensor:
    """The weights as their papers write them, of all rows in one pack."""
    losses = F.cross_entropy(logits, packed.targets, reduction="none")
    rows = packed.by_row(losses)
    if kind == "eaft":
        top = logits.topk(20).values.softmax(-1)
        return -(top * top.log()).sum(-1) / math.log(20)
    if kind == "dft":
        return (-losses).exp()
    if kind == "talr":
        weights = (-losses / losses.median()).exp()
        return weights / weights.mean()
    if kind == "flow":
        means = torch.stack([row.mean() for row in rows])
        return torch.cat(
            [(-mean / means.median()).exp().expand(len(row)) for mean, row in zip(means, rows, strict=True)]
        )
    kept = (losses.exp() <= THRESHOLD).float()
    assert 0 < kept.mean() < 1
    return kept / kept.mean()


def slopes(base: Base, gates: Hold, packs: Sequence[Packed]) -> tuple[float, dict[str, Tensor]]:
    base.decoder.zero_grad(set_to_none=True)
    gates.open(base.decoder, packs)
    losses = [summed_loss(base.decoder, packed, gate=gates.gate(packed)) for packed in packs]
    sum(losses, torch.zeros(())).backward()
    grads = {name: p.grad.clone() for name, p in base.decoder.named_parameters() if p.grad is not None}
    return math.fsum(loss.item() for loss in losses), grads


@pytest.mark.parametrize("alpha", [1.0, 0.5])
@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_its_formula(kind: str, alpha: float, base: Base) -> None:
    packed = pack(ROWS)
    value, found = slopes(base, hold(base, kind, alpha), [packed])
    assert value == pytest.approx(token_losses(base.decoder, packed).sum().item(), rel=1e-5)

    base.decoder.zero_grad(set_to_none=True)
    logits = base.decoder.logits(predicting(base.decoder, packed))
    weights = formula(kind, logits.detach(), packed) ** alpha
    (F.cross_entropy(logits, packed.targets, reduction="none") * weights).sum().backward()
    for name, parameter in base.decoder.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_do_not_depend_on_how_rows_are_packed(kind: str, base: Base) -> None:
    gates, rows, order = hold(base, kind), Examples(ROWS), [7, 2, 11, 0, 5]
    (whole,) = rows.packs(order, 1024)
    apart = [packed for row in order for packed in rows.packs([row], 1024)]
    _, together = slopes(base, gates, [whole])
    _, split = slopes(base, gates, apart)
    for name, slope in together.items():
        torch.testing.assert_close(split[name], slope, rtol=1e-3, atol=1e-4)


def test_gates_of_several_anchors_multiply(base: Base, tmp_path: Path) -> None:
    holds = [hold(base, "dft"), hold(base, "eaft")]
    trainer = Trainer(base.decoder, Examples(ROWS), Examples([]), tiny.plan(), tmp_path, holds=holds)
    shares = torch.randn(5, 40).log_softmax(-1)
    both = trainer._gate(pack(ROWS))
    one, two = (each.gate(pack(ROWS)) for each in holds)
    assert both is not None
    assert one is not None
    assert two is not None
    given = shares, shares[:, :1], slice(0, 5)
    torch.testing.assert_close(both(*given), one(*given) * two(*given))


def test_what_leaves_nothing_to_learn_is_an_error(base: Base) -> None:
    anchor = ANCHORS.get("token_gates").parse({"kind": "stm", "threshold": 1.01})
    with pytest.raises(ConfigError, match="leaves no answer token to learn"):
        anchor.hold(Ground(base, tiny.technique("full"), Examples(ROWS), tiny.plan()))


def test_switches_that_contradict_each_other_are_said(base: Base) -> None:
    anchor = ANCHORS.get("token_gates").parse({"kind": "dft", "threshold": 3.0})
    (problem,) = anchor.problems(tiny.technique("full"), base.decoder)
    assert "threshold is of kind=stm" in problem
    with pytest.raises(ConfigError, match="--anchor token_gates is given twice"):
        anchors(["token_gates:kind=eaft", "token_gates:kind=dft"])
