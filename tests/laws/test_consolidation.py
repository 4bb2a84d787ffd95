"""Parameters held to where they began: the pull and the penalty are their formulas, of every technique."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import tiny
from conftest import CPU
from graftwood import samples
from graftwood.anchor import ANCHORS, Ground
from graftwood.anchors.ewc import fisher, moving
from graftwood.base import Base, open_base
from graftwood.config import RunConfig
from graftwood.data.batch import Examples
from graftwood.draft import draft
from graftwood.errors import ConfigError
from graftwood.model.decoder import Decoder
from graftwood.technique import TECHNIQUES
from graftwood.train.hold import Hold

inside = pytest.mark.parametrize("technique", [n for n, kind in TECHNIQUES.all().items() if kind.starts_at_base])
WINDOWS = 4


@pytest.fixture
def base(tmp_path: Path, tokenizer_files: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch) -> Base:
    monkeypatch.setattr(samples, "LENGTH", 16)
    return open_base(str(tiny.model_folder(tmp_path / "tiny", tokenizer_files)), CPU)


def held(base: Base, anchor: str, technique: str, **options: Any) -> Hold:
    entry = tiny.technique(technique)
    entry.apply(base.decoder, seed=0)
    return ANCHORS.get(anchor).parse(options).hold(Ground(base, entry, Examples([]), tiny.plan()))


def moved(decoder: Decoder) -> None:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in decoder.trained().values():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize(("rate", "share"), [(0.01, 0.3), (1.0, 1.0), (0.0, 0.0)])
def test_the_pull_is_a_share_of_the_way_back(rate: float, share: float, base: Base) -> None:
    hold = held(base, "l2sp", "lora", strength=30.0)
    trained = base.decoder.trained()
    start = {name: parameter.detach().clone() for name, parameter in trained.items()}
    moved(base.decoder)
    end = {name: parameter.detach().clone() for name, parameter in trained.items()}
    hold.stepped(trained, rate)
    for name, parameter in trained.items():
        torch.testing.assert_close(parameter.detach(), end[name] + share * (start[name] - end[name]))


def test_fisher_is_the_mean_square_of_the_windows_slopes(base: Base) -> None:
    decoder = base.decoder
    ids = torch.randint(0, 300, (WINDOWS, 9), generator=torch.Generator().manual_seed(1))
    weight = decoder.get_parameter("model.layers.1.mlp.up_proj.weight")
    found = fisher(decoder, {"up": weight}, ids)["up"]
    assert not weight.requires_grad
    assert weight.grad is None

    weight.requires_grad_(True)
    wanted = torch.zeros_like(weight)
    for window in ids:
        logits = decoder(window.unsqueeze(0))[0, :-1]
        (slope,) = torch.autograd.grad(F.cross_entropy(logits, window[1:], reduction="sum"), weight)
        wanted += slope.square() / (WINDOWS * 8)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-6)


@inside
def test_the_penalty_is_of_the_way_in_the_bases_own_coordinates(technique: str, base: Base) -> None:
    hold = held(base, "ewc", technique, weight=3.0, windows=WINDOWS)
    decoder, matrices = base.decoder, moving(base.decoder)
    assert bool(matrices) == (technique in ("lora", "dora", "ia3", "oft", "shira", "vera"))
    at_start = [loss.item() for loss, _ in hold.losses(decoder, 0)]
    assert at_start == pytest.approx([0.0] * len(at_start), abs=1e-9)

    start = {name: parameter.detach().clone() for name, parameter in decoder.trained().items()}
    ids = Ground(base, tiny.technique(technique), Examples([]), tiny.plan()).remembered(WINDOWS).ids
    if matrices:
        with decoder.without_deltas():
            weighed = fisher(decoder, {path: linear.weight for path, linear in matrices.items()}, ids)
    else:
        weighed = fisher(decoder, decoder.trained(), ids)
    moved(decoder)
    wanted = torch.zeros(())
    for path, linear in matrices.items():
        wanted = wanted + 1.5 * (weighed[path] * (linear.delta.merged(linear) - linear.weight) ** 2).sum()
    for name, parameter in decoder.trained().items() if not matrices else ():
        wanted = wanted + 1.5 * (weighed[name] * (parameter - start[name]) ** 2).sum()
    parts = list(hold.losses(decoder, 0))
    found = sum((loss for loss, _ in parts), torch.zeros(()))
    assert all(tokens == 0 for _, tokens in parts)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
    assert found > 0
    names = list(decoder.trained())
    slopes, right = (
        torch.autograd.grad(total, list(decoder.trained().values()), allow_unused=True) for total in (found, wanted)
    )
    for name, slope, expected in zip(names, slopes, right, strict=True):
        assert (slope is None) == (expected is None), name
        if slope is not None and expected is not None:
            torch.testing.assert_close(slope, expected, rtol=1e-3, atol=1e-5)


def test_it_is_the_divergence_to_second_order(base: Base) -> None:
    """One entry of the final norm moved a little: half of Fisher times the square is the divergence a token."""
    decoder, size, way = base.decoder, 256, 0.05
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 300, (size, 1), generator=generator)
    with torch.no_grad():
        for _ in range(6):  # text of the model's own
            logits = decoder(ids.reshape(1, -1), (ids.shape[1],) * size).view(size, ids.shape[1], -1)[:, -1]
            ids = torch.cat([ids, logits.softmax(-1).multinomial(1, generator=generator)], dim=1)
    norm = decoder.get_parameter("model.norm.weight")
    weighed = fisher(decoder, {"norm": norm}, ids)["norm"]
    place = int(weighed.argmax())
    told, before = ids[:, :-1].reshape(1, -1), (ids.shape[1] - 1,) * size
    with torch.no_grad():
        p = decoder(told, before).log_softmax(-1)
        norm[place] += way
        q = decoder(told, before).log_softmax(-1)
    divergence = F.kl_div(q, p, log_target=True, reduction="none").sum(-1).mean()
    assert float(weighed[place] / 2 * way**2) == pytest.approx(float(divergence), rel=0.2)


@pytest.mark.parametrize("technique", ["prompt", "prefix"])
def test_what_does_not_begin_at_the_base_has_no_fisher_of_it(technique: str, base: Base) -> None:
    (problem,) = ANCHORS.get("ewc").parse({}).problems(tiny.technique(technique), base.decoder)
    assert f"begins at the base, which {technique} does not" in problem


def test_a_quantised_base_is_said_before_weights_load(tmp_path: Path, base: Base) -> None:
    rows = [{"prompt": f"what is {n}", "completion": "it is"} for n in range(12)]
    anchors: dict[str, dict[str, Any]] = {"ewc": {}, "freeze_below": {"layers": 2}}
    config = RunConfig(data="rows", base_precision="q4", options={"start": "pissa"}, technique="lora", anchors=anchors)
    with pytest.raises(ConfigError) as raised:
        draft(config, rows, lambda: base.decoder)
    assert "ewc needs slopes of the base's matrices" in str(raised.value)
    assert "start=pissa needs the weights as the files hold them, which q4 has not" in str(raised.value)
    assert "freeze_below: layers=2 leaves none" in str(raised.value)
