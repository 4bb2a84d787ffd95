"""Every anchor: without weight it is not there, with it the model stays nearer; the dial's ends are exact."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import tiny
from conftest import CPU
from graftwood import samples
from graftwood.anchor import ANCHORS, Anchor, Ground, narrow
from graftwood.anchors.kl import KL, masked, whole
from graftwood.base import Base, open_base
from graftwood.data.batch import Examples, Trickle, pack
from graftwood.errors import ConfigError
from graftwood.evals.retention import compare, probe_for
from graftwood.generate.engine import Engine
from graftwood.model.decoder import Decoder
from graftwood.model.expected import likeliest
from graftwood.technique import TECHNIQUES
from graftwood.train.below import rows_kept
from graftwood.train.loop import Stepped, Trainer, way_back
from graftwood.train.loss import CHUNK, Divergence, predicting, summed

# What makes an entry hold hard on a tiny model, and what makes it not hold at all.
HARD: dict[str, dict[str, object]] = {
    "average": {"half_life": 50.0},
    "ewc": {"weight": 1000.0, "windows": 8},
    "l2sp": {"strength": 50.0},
    "kl": {"weight": 20.0, "share": 2.0, "windows": 8},
    "replay": {"weight": 5.0, "share": 4.0, "windows": 96},
    "interpolate": {"alpha": 0.3},
    "freeze_below": {"layers": 1},
    "token_gates": {"kind": "dft", "alpha": 4.0},
}
OFF: dict[str, dict[str, object]] = {
    "average": {"half_life": 0.0},
    "ewc": {"weight": 0.0, "windows": 8},
    "l2sp": {"strength": 0.0},
    "kl": {"weight": 0.0, "windows": 8},
    "replay": {"weight": 0.0, "windows": 8},
    "interpolate": {"alpha": 1.0},
    "freeze_below": {"layers": 0},
    "token_gates": {"alpha": 0.0},
}
anchors = pytest.mark.parametrize("name", ANCHORS.names())
reversible = pytest.mark.parametrize("technique", [n for n, kind in TECHNIQUES.all().items() if kind.starts_at_base])


@pytest.fixture
def folder(tmp_path: Path, tokenizer_files: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(samples, "LENGTH", 24)
    # Wide weights: a peaked distribution, as a trained model has, most of whose mass is kept.
    return tiny.model_folder(tmp_path / "tiny", tokenizer_files, tiny.decoder(init_std=0.45))


def made(folder: Path, out: Path, technique: str, given: list[Anchor]) -> tuple[Base, Trainer]:
    base = open_base(str(folder), CPU)
    entry = tiny.technique(technique)
    entry.apply(base.decoder, seed=0)
    plan = tiny.plan(learning_rate=0.01, epochs=4.0)
    for anchor in given:
        plan = anchor.plan(plan)
    rows = rows_kept(base, tiny.examples(16), narrow(given, base.decoder))
    holds = [anchor.hold(Ground(base, entry, rows, plan)) for anchor in given]
    return base, Trainer(base.decoder, rows, Examples([]), plan, out, holds=holds)


def trained(folder: Path, out: Path, technique: str, given: list[Anchor]) -> tuple[Base, dict[str, Tensor]]:
    base, trainer = made(folder, out, technique, given)
    for _ in trainer.run():
        pass
    for anchor in given:
        if anchor.dial != 1:
            way_back(trainer.decoder, tiny.technique(technique), trainer.folder)(anchor.dial)
    return base, {name: parameter.detach().clone() for name, parameter in trainer.trained.items()}


def drift(folder: Path, decoder: Decoder) -> float:
    base = open_base(str(folder), CPU)
    probe = probe_for(base, Engine(base.decoder, base.tokenizer.eos, base.tokenizer))
    return float(compare(decoder, probe).drift.mean())


@anchors
@pytest.mark.parametrize("technique", ["full", "lora"])
def test_switched_off_it_is_not_there(name: str, technique: str, folder: Path, tmp_path: Path) -> None:
    _, plain = trained(folder, tmp_path / "plain", technique, [])
    _, with_it = trained(folder, tmp_path / "with", technique, [ANCHORS.get(name).parse(OFF[name])])
    assert plain.keys() == with_it.keys()
    assert all(torch.equal(plain[key], with_it[key]) for key in plain)


@anchors
@pytest.mark.parametrize("technique", ["full", "lora"])
def test_with_it_the_model_stays_nearer_to_its_base(name: str, technique: str, folder: Path, tmp_path: Path) -> None:
    plain, _ = trained(folder, tmp_path / "plain", technique, [])
    held, _ = trained(folder, tmp_path / "held", technique, [ANCHORS.get(name).parse(HARD[name])])
    assert drift(folder, held.decoder) < 0.9 * drift(folder, plain.decoder)


@anchors
def test_a_resumed_run_ends_where_an_unbroken_one_does(name: str, folder: Path, tmp_path: Path) -> None:
    anchor = ANCHORS.get(name).parse(HARD[name])
    _, whole = trained(folder, tmp_path / "whole", "lora", [anchor])
    _, first = made(folder, tmp_path / "broken", "lora", [anchor])
    for event in first.run():
        first.stop = isinstance(event, Stepped) and event.step == 2
    _, second = made(folder, tmp_path / "broken", "lora", [anchor])
    assert second.resume()
    for _ in second.run():
        pass
    if anchor.dial != 1:
        way_back(second.decoder, tiny.technique("lora"), second.folder)(anchor.dial)
    assert all(torch.equal(whole[key], parameter) for key, parameter in second.trained.items())


@anchors
def test_it_says_what_it_is(name: str) -> None:
    told = ANCHORS.get(name).summary()
    assert told["name"] == name
    assert all(told[key] for key in ("title", "formula", "cost", "source"))
    with pytest.raises(ConfigError, match=f"{name}: no option 'wieght'"):
        ANCHORS.get(name).parse({"wieght": 1})


def test_the_average_is_the_mean_over_steps_that_it_says(folder: Path, tmp_path: Path) -> None:
    _, trainer = made(folder, tmp_path, "lora", [ANCHORS.get("average").parse({"half_life": 3.0})])
    keep = 0.5 ** (1 / 3)
    wanted = {name: parameter.detach().clone() for name, parameter in trainer.trained.items()}
    for event in trainer.run():
        if isinstance(event, Stepped):
            for name, parameter in trainer.trained.items():
                wanted[name] += (1 - keep) * (parameter.detach() - wanted[name])
    for name, parameter in trainer.trained.items():
        torch.testing.assert_close(parameter.detach(), wanted[name])


@reversible
def test_the_dials_ends_are_exact(technique: str, folder: Path, tmp_path: Path) -> None:
    ids = torch.randint(0, 300, (1, 20), generator=torch.Generator().manual_seed(5))
    base, trainer = made(folder, tmp_path, technique, [])
    for _ in trainer.run():
        pass
    with torch.no_grad():
        untouched = open_base(str(folder), CPU).decoder(ids)
        end = {name: parameter.detach().clone() for name, parameter in trainer.trained.items()}
        go = way_back(trainer.decoder, tiny.technique(technique), trainer.folder)
        go(1.0)
        assert all(torch.equal(end[name], parameter) for name, parameter in trainer.trained.items())
        tuned = base.decoder(ids)
        assert not torch.allclose(tuned, untouched, atol=1e-3)
        go(0.5)
        half = base.decoder(ids)
        assert (half - untouched).norm() < (tuned - untouched).norm()
        go(0.0)
        assert torch.equal(base.decoder(ids), untouched)


@reversible
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_the_dial_turns_on_another_device_than_checkpoints_are_read_to(
    technique: str, alpha: float, folder: Path, tmp_path: Path
) -> None:
    _, trainer = made(folder, tmp_path, technique, [])
    trainer.save()
    way_back(trainer.decoder.to("meta"), tiny.technique(technique), trainer.folder)(alpha)
    assert all(parameter.device.type == "meta" for parameter in trainer.decoder.trained().values())


def test_the_way_of_lora_is_straight_in_its_update(folder: Path, tmp_path: Path) -> None:
    base, trainer = made(folder, tmp_path, "lora", [])
    for _ in trainer.run():
        pass
    (linear, *_) = base.decoder.linears().values()
    whole = linear.delta.merged(linear) - linear.weight
    way_back(trainer.decoder, tiny.technique("lora"), trainer.folder)(0.3)
    torch.testing.assert_close(linear.delta.merged(linear) - linear.weight, 0.3 * whole)


@pytest.mark.parametrize("technique", ["prompt", "prefix", "ptuning"])
def test_what_does_not_begin_at_the_base_has_no_dial(technique: str, folder: Path, tmp_path: Path) -> None:
    base, trainer = made(folder, tmp_path, technique, [])
    trainer.save()
    with pytest.raises(ConfigError, match=f"{technique} does not begin at the base"):
        way_back(trainer.decoder, tiny.technique(technique), trainer.folder)(0.5)
    (problem,) = ANCHORS.get("interpolate").parse({}).problems(tiny.technique(technique), base.decoder)
    assert technique in problem


def test_what_is_replayed_never_measures(folder: Path) -> None:
    base = open_base(str(folder), CPU)
    engine = Engine(base.decoder, base.tokenizer.eos, base.tokenizer)
    ground = Ground(base, tiny.technique("lora"), Examples(tiny.examples(4)), tiny.plan())
    probe, replayed = probe_for(base, engine), ground.remembered(96)
    windows = [{tuple(window) for window in part.ids.tolist()} for part in (probe, replayed)]
    assert not windows[0] & windows[1]
    assert torch.equal(ground.remembered(96).ids, replayed.ids)


@pytest.mark.parametrize("share", [0.05, 0.25, 1.7])
@pytest.mark.parametrize("name", ["kl", "replay"])
def test_a_share_is_the_share_that_is_read_and_weighs_the_same(name: str, share: float, folder: Path) -> None:
    base, rows = open_base(str(folder), CPU), Examples(tiny.examples(4))
    ground = Ground(base, tiny.technique("lora"), rows, tiny.plan())
    hold = ANCHORS.get(name).parse({"share": share, "windows": 8, "weight": 3.0}).hold(ground)
    base.decoder.initialise(seed=5)
    length = ground.remembered(8).ids.shape[1]
    steps = round(40 * length / (share * ground.step_tokens))  # each of the eight windows five times
    with torch.no_grad():
        found = [hold.losses(base.decoder, step) for step in range(steps)]
        parts = [part for step in found for part in step]
        whole = ANCHORS.get(name).parse({"share": 8 * length / ground.step_tokens, "windows": 8, "weight": 3.0})
        expected = sum(loss.item() for loss, _ in whole.hold(ground).losses(base.decoder, 0))
    read = sum(tokens for _, tokens in parts)
    assert read == pytest.approx(share * ground.step_tokens * steps, rel=0.03)
    assert sum(loss.item() for loss, _ in parts) / steps == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("name", ["kl", "replay"])
def test_no_more_is_computed_at_once_than_the_budget(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = open_base(str(folder), CPU)
    length, rows = 24, Examples(tiny.examples(8))
    share = 6.2 * length / Ground(base, tiny.technique("full"), rows, tiny.plan()).step_tokens  # six at a step
    holds = [
        ANCHORS.get(name)
        .parse({"share": share, "windows": 8})
        .hold(Ground(base, tiny.technique("full"), rows, replace(tiny.plan(), token_budget=budget)))
        for budget in (1024, 2 * length + 5)
    ]
    decoder = base.decoder
    decoder.initialise(seed=5)
    decoder.requires_grad_(True)
    hidden, seen = decoder.hidden, []
    monkeypatch.setattr(
        decoder, "hidden", lambda ids, *rest, **more: (seen.append(ids.numel()), hidden(ids, *rest, **more))[1]
    )
    found = []
    for hold in holds:
        seen.clear()
        decoder.zero_grad()
        for loss, _ in hold.losses(decoder, 0):
            loss.backward()
        found.append({key: parameter.grad.clone() for key, parameter in decoder.named_parameters()})
    assert seen == [2 * length] * 3
    for key, whole_one in found[0].items():
        torch.testing.assert_close(found[1][key], whole_one, rtol=1e-4, atol=1e-6)


def test_texts_come_in_turn_and_depend_on_the_step_alone() -> None:
    trickle = Trickle(5, 0.7, seed=3)
    steps = [trickle.at(step) for step in range(50)]
    assert {len(read) for read in steps} == {0, 1}
    drawn = [text for read in steps for text in read]
    assert len(drawn) == 35
    assert all(sorted(drawn[begin : begin + 5]) == [0, 1, 2, 3, 4] for begin in range(0, 35, 5))
    assert [Trickle(5, 0.7, seed=3).at(step) for step in (17, 4)] == [steps[17], steps[4]]
    assert [len(Trickle(5, 2.5, 0).at(step)) for step in range(4)] == [2, 3, 2, 3]


@pytest.mark.parametrize("on", ["task", "masked"])
@pytest.mark.parametrize("technique", ["full", "lora"])
def test_on_the_rows_the_divergence_holds_too(on: str, technique: str, folder: Path, tmp_path: Path) -> None:
    _, plain = trained(folder, tmp_path / "plain", technique, [])
    _, off = trained(folder, tmp_path / "off", technique, [ANCHORS.get("kl").parse({"on": on, "weight": 0.0})])
    assert all(torch.equal(plain[key], off[key]) for key in plain)
    rows = pack(tiny.examples(16))
    kept = []
    for weight in (0.0, 20.0):
        base, trainer = made(folder, tmp_path / f"{weight}", technique, [KL(on=on, weight=weight)])
        steps = [event for event in trainer.run() if isinstance(event, Stepped)]
        assert steps[0].held == pytest.approx(0.0, abs=1e-4)  # the untuned model is the base
        assert (steps[-1].held > 0) == (weight > 0)
        with torch.no_grad():
            words, log_p = whole(open_base(str(folder), CPU).decoder, rows)
            kept.append(float(summed(base.decoder, predicting(base.decoder, rows), Divergence(words, log_p))))
    assert kept[1] < 0.8 * kept[0]


@pytest.mark.parametrize("changes", [{}, {"logit_cap": 5.0}, {"tied_head": False}, {"vocab_size": 40}])
def test_without_the_rows_own_tokens_value_and_slope_are_what_autograd_finds(changes: dict[str, object]) -> None:
    teacher, student = tiny.decoder(seed=1, **changes), tiny.decoder(seed=2, **changes).requires_grad_(True)
    rows = [replace(row, ids=tuple(i % 40 for i in row.ids)) for row in tiny.examples(6)]
    packed = pack(rows)
    with torch.no_grad():
        words, log_p = masked(teacher, packed)
    hidden = torch.randn(len(packed.targets), 32, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    value = summed(student, hidden, Divergence(words, log_p, packed.targets))
    value.backward()
    found = hidden.grad.clone()
    hidden.grad = None

    others = torch.ones(len(packed.targets), student.config.vocab_size).scatter_(1, packed.targets.unsqueeze(1), 0)
    p, q = (
        (logits.softmax(-1) * others) / (logits.softmax(-1) * others).sum(-1, keepdim=True)
        for logits in (teacher.logits(predicting(teacher, packed)), student.logits(hidden))
    )
    kept = torch.zeros_like(others).scatter_(1, words.long(), 1) * others
    rest_p, rest_q = ((1 - (part * kept).sum(-1)).clamp_min(1e-7) for part in (p, q))
    within = torch.where(kept > 0, p * (p.clamp_min(1e-30) / q.clamp_min(1e-30)).log(), 0.0)
    wanted = within.sum() + (rest_p * (rest_p / rest_q).log()).sum()
    wanted.backward()
    torch.testing.assert_close(value, wanted, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(found, hidden.grad, rtol=1e-3, atol=1e-4)
    assert 0 < value < (p * (p.clamp_min(1e-30) / q.clamp_min(1e-30)).log()).sum() + 1e-3


def test_options_of_the_replayed_text_are_not_of_the_rows(folder: Path) -> None:
    anchor = ANCHORS.get("kl").parse({"on": "masked", "share": 0.5, "windows": 8})
    (problem,) = anchor.problems(tiny.technique("lora"), open_base(str(folder), CPU).decoder)
    assert "share and windows are of on=replay" in problem


@pytest.mark.parametrize("changes", [{}, {"logit_cap": 5.0}, {"tied_head": False}])
def test_the_divergence_and_its_slope_are_what_autograd_finds(changes: dict[str, object]) -> None:
    teacher, student = tiny.decoder(seed=1), tiny.decoder(seed=2, **changes).requires_grad_(True)
    hidden = torch.randn(CHUNK + 7, 32, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    with torch.no_grad():
        words, log_p = likeliest(teacher.logits(hidden))
    value = summed(student, hidden, Divergence(words, log_p))
    value.backward()
    found = [hidden.grad.clone(), student.head_weight().grad.clone()]
    hidden.grad = student.head_weight().grad = None

    log_q = student.logits(hidden).log_softmax(-1).gather(-1, words)
    log_q = torch.cat([log_q, (1 - log_q.exp().sum(-1, keepdim=True)).log()], -1)
    wanted = F.kl_div(log_q, log_p, log_target=True, reduction="sum")
    wanted.backward()
    torch.testing.assert_close(value, wanted, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(found[0], hidden.grad, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found[1], student.head_weight().grad, rtol=1e-3, atol=1e-3)
    exact = F.kl_div(
        student.logits(hidden).log_softmax(-1), teacher.logits(hidden).log_softmax(-1), log_target=True, reduction="sum"
    )
    assert 0 < value < exact + 1e-3


def test_a_file_that_is_replayed_has_no_windows(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "old.jsonl").write_text('{"prompt": "a", "completion": "b"}\n', encoding="utf-8")
    decoder, given = open_base(str(folder), CPU).decoder, {"file": str(tmp_path / "old.jsonl")}
    assert ANCHORS.get("replay").parse(given).problems(tiny.technique("lora"), decoder) == []
    (problem,) = ANCHORS.get("replay").parse(given | {"windows": 8}).problems(tiny.technique("lora"), decoder)
    assert "windows are of the base's own text" in problem
