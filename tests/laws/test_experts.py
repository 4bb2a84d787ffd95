"""LoRA on the experts of a mixture travels to PEFT and back: its `target_parameters`, one pair of tensors for all."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import tiny
from conftest import CPU
from graftwood.base import open_base
from graftwood.checkpoint import ADAPTER_CONFIG, ADAPTER_WEIGHTS, load_adapter, save_adapter
from graftwood.compose import Sum, compose
from graftwood.data.batch import Examples
from graftwood.errors import ConfigError
from graftwood.train.loop import Trainer
from graftwood.train.optim import Optimiser
from peers import (
    PLAN,
    ROWS,
    check_both_read,
    distance,
    logits,
    move,
    noisy,
    one_step_of_both,
    their_adapter,
    their_base,
    tuned,
)

GATE_UP, DOWN, ROUTER = "mlp.experts.gate_up_proj", "mlp.experts.down_proj", "mlp.router.weight"
ATTENTION = ["k_proj", "o_proj", "q_proj", "v_proj"]


@pytest.fixture
def folder(
    tmp_path: Path, save_with_transformers: Callable[..., None], tokenizer_files: Callable[[Path], None]
) -> Path:
    folder = tmp_path / "mixture"
    save_with_transformers(tiny.config("gpt_oss"), folder)
    tokenizer_files(folder)
    return folder


# Options, and what they are in PEFT's words: modules and parameters.
OURS: dict[str, tuple[dict[str, Any], list[str], list[str]]] = {
    "everything": ({}, ATTENTION, [DOWN, GATE_UP, ROUTER]),
    "both parameters": ({"targets": [GATE_UP, DOWN]}, [], [DOWN, GATE_UP]),
    "one of them and attention": ({"targets": "q_proj,down_proj"}, ["q_proj"], [DOWN]),
    "rsLoRA and the router": ({"targets": "gate_up_proj,router", "rslora": True}, [], [GATE_UP, ROUTER]),
    "patterns": (
        {"targets": [GATE_UP, DOWN, "o_proj"], "rank_pattern": {"gate_up_proj": 2},
         "alpha_pattern": {"1.*down_proj": 5.0}},
        ["o_proj"],
        [DOWN, GATE_UP],
    ),
    "a regular expression": (
        {"targets": r".*layers\.1\..*(v_proj|experts.*proj)"},
        ["model.layers.1.self_attn.v_proj"],
        [f"model.layers.1.{DOWN}", f"model.layers.1.{GATE_UP}"],
    ),
    "gates alone": ({"targets": "gate_proj"}, [], [GATE_UP]),
    "gates and ups apart": ({"targets": "gate_proj,up_proj", "rank_pattern": {"up_proj": 2}}, [], [GATE_UP]),
    "one expert": ({"targets": ["experts.2.down_proj"]}, [], [DOWN]),
}  # fmt: skip


@noisy
@pytest.mark.parametrize(("options", "modules", "parameters"), OURS.values(), ids=OURS)
def test_peft_reads_what_we_write_and_so_do_we(
    options: dict[str, Any], modules: list[str], parameters: list[str], folder: Path, tmp_path: Path
) -> None:
    base, technique = tuned(folder, rank=4, dropout=0.1, **options)
    base.decoder.eval()
    save_adapter(base, technique, tmp_path / "adapter")
    said = json.loads((tmp_path / "adapter" / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    assert (said["target_modules"], said["target_parameters"]) == (modules, parameters)
    check_both_read(base, folder, tmp_path / "adapter")


THEIRS: dict[str, dict[str, Any]] = {
    "both parameters": {"target_parameters": [GATE_UP, DOWN], "r": 4},
    "no modules": {"target_modules": [], "target_parameters": [DOWN]},
    "attention and the router": {"target_modules": "all-linear", "target_parameters": [ROUTER, GATE_UP], "r": 3},
    "rsLoRA": {"target_parameters": ["gate_up_proj"], "r": 4, "lora_alpha": 3, "use_rslora": True},
    "patterns": {
        "target_modules": ["q_proj", "k_proj"],
        "target_parameters": [GATE_UP, DOWN, ROUTER],
        "r": 4,
        "rank_pattern": {"gate_up_proj": 2, "k_proj": 3, "router": 5},  # "router" names no parameter: PEFT leaves it
        "alpha_pattern": {"layers.0.mlp.experts.down_proj": 3, "router.weight": 2},
    },
    "one layer": {"target_modules": r".*\.(q|v)_proj", "target_parameters": [f"model.layers.1.{DOWN}"]},
}


@noisy
@pytest.mark.parametrize("options", THEIRS.values(), ids=THEIRS)
def test_we_read_what_peft_writes(options: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="needs the extra `peers`")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = peft.get_peft_model(their_base(folder), peft.LoraConfig(task_type="CAUSAL_LM", **options)).eval()
    move(parameter for parameter in theirs.parameters() if parameter.requires_grad)
    theirs.save_pretrained(tmp_path / "adapter")
    base = open_base(str(folder), CPU)
    plain = logits(base.decoder)
    technique = load_adapter(base, tmp_path / "adapter")
    assert distance(logits(base.decoder), logits(theirs)) < 1e-5
    assert distance(plain, logits(theirs)) > 1e-3, "the adapter must matter"
    # Both merge to the same; ours comes out again to the bit.
    own = {name: parameter for name, parameter in base.decoder.named_parameters() if "lora" not in name}
    before, back = logits(base.decoder), technique.merge(base.decoder)
    assert distance(logits(base.decoder), before) < 1e-5
    assert distance(logits(base.decoder), logits(theirs.merge_and_unload())) < 1e-5
    back()
    assert torch.equal(logits(base.decoder), before)
    assert all(base.decoder.get_parameter(name) is parameter for name, parameter in own.items())


WHOLE = ("everything", "both parameters", "one of them and attention", "rsLoRA and the router", "patterns")


@noisy
@pytest.mark.parametrize("label", WHOLE)
def test_one_step_gives_the_same_update(label: str, folder: Path, tmp_path: Path) -> None:
    base, technique = tuned(folder, rank=4, **OURS[label][0])
    before, mine, other = one_step_of_both(base, technique, folder, tmp_path)
    for key in mine:
        assert not torch.equal(mine[key], before[key])
        assert distance(mine[key] - before[key], other[key] - before[key]) < 1e-2, key


@noisy
def test_it_starts_as_peft_starts(folder: Path, tmp_path: Path) -> None:
    """A uniform within the same bounds, B zero; the scale of the update is `alpha / rank`."""
    peft = pytest.importorskip("peft", reason="needs the extra `peers`")
    config = peft.LoraConfig(task_type="CAUSAL_LM", target_parameters=[GATE_UP, DOWN], r=8)
    peft.get_peft_model(their_base(folder), config).save_pretrained(tmp_path / "theirs")
    base, technique = open_base(str(folder), CPU), tiny.technique("lora", rank=8, targets=[GATE_UP, DOWN])
    technique.apply(base.decoder, seed=0)
    save_adapter(base, technique, tmp_path / "ours")
    ours, theirs = (load_file(tmp_path / name / ADAPTER_WEIGHTS) for name in ("ours", "theirs"))
    assert {name: tensor.shape for name, tensor in ours.items()} == {name: t.shape for name, t in theirs.items()}
    for name, tensor in theirs.items():
        if "lora_B" in name:
            assert not ours[name].any()
            assert not tensor.any()
        else:
            bound = tensor.shape[1] ** -0.5
            for found in (ours[name], tensor):
                assert 0.97 * bound < found.abs().max() <= bound
                assert float(found.std()) == pytest.approx(bound / 3**0.5, rel=0.1)


def test_an_expert_that_no_token_chose_decays_with_the_others(folder: Path) -> None:
    """PEFT has one tensor of all experts, so what was not chosen has a gradient of zero there and not none."""
    base, _ = tuned(folder, rank=4, targets=[DOWN])
    trained = base.decoder.trained()
    optimiser = Optimiser(trained, (), "adamw", 0.1, (0.9, 0.999), 0.0)
    before = {name: parameter.detach().clone() for name, parameter in trained.items()}
    optimiser.step(0.5)
    for name, parameter in trained.items():
        torch.testing.assert_close(parameter.detach(), before[name] * (1 - 0.5 * 0.1))


@noisy
def test_adapters_of_experts_are_added(folder: Path, tmp_path: Path) -> None:
    """Concatenated, the sum is that of the updates; an expert that only one adapter has counts once."""
    for number, targets in enumerate([[DOWN, GATE_UP], ["experts.1.down_proj"]]):
        base, technique = tuned(folder, rank=4, targets=targets)
        move(base.decoder.trained().values(), seed=7 + number)
        save_adapter(base, technique, tmp_path / str(number))
    compose(
        open_base(str(folder), CPU), [tmp_path / "0", tmp_path / "1"], Sum((1.0, 0.5), ("cat",)), (), tmp_path / "sum"
    )
    merged = []
    for name in ("0", "1", "sum"):
        base = open_base(str(folder), CPU)
        own = {path: p.detach().clone() for path, p in base.decoder.named_parameters()}
        load_adapter(base, tmp_path / name).merge(base.decoder)
        merged.append({path: p.detach() - own[path] for path, p in base.decoder.named_parameters()})
    for path, change in merged[2].items():
        torch.testing.assert_close(change, merged[0][path] + 0.5 * merged[1][path], rtol=1e-3, atol=1e-5)
    theirs = their_adapter(folder, tmp_path / "sum")
    assert distance(logits(theirs), logits(base.decoder)) < 1e-5


@noisy
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"target_parameters": [DOWN]}, f"no linear of llama is called '{DOWN}'"),
        ({"target_parameters": ["q_proj.weight"]}, "no linear of llama is called 'q_proj.weight'"),
        ({"target_parameters": [GATE_UP], "use_dora": True}, f"target_parameters=\\['{GATE_UP}'\\]"),
        ({"target_modules": None}, "target_modules=None"),
    ],
    ids=str,
)
def test_parameters_of_other_families_are_refused_by_name(
    change: dict[str, Any], said: str, tmp_path: Path, tokenizer_files: Callable[[Path], None]
) -> None:
    plain = tiny.model_folder(tmp_path / "tiny", tokenizer_files)
    base, technique = tuned(plain, targets="q_proj,v_proj")
    save_adapter(base, technique, tmp_path / "adapter")
    file = tmp_path / "adapter" / ADAPTER_CONFIG
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | change), encoding="utf-8")
    with pytest.raises(ConfigError, match=said) as caught:
        load_adapter(open_base(str(plain), CPU), tmp_path / "adapter")
    assert "\n" not in str(caught.value)


@noisy
def test_what_peft_has_on_modules_alone_stays_with_us(folder: Path, tmp_path: Path) -> None:
    base, technique = tuned(folder, "dora", rank=4)
    save_adapter(base, technique, tmp_path / "dora")
    with pytest.raises(ValueError, match="not supported"):
        their_adapter(folder, tmp_path / "dora")
    again = open_base(str(folder), CPU)
    load_adapter(again, tmp_path / "dora")
    assert torch.equal(logits(again.decoder), logits(base.decoder))


@noisy
def test_a_trained_folder_is_the_one_that_was_kept(folder: Path, tmp_path: Path) -> None:
    """After some steps of ours, reading the folder gives what the run had."""
    base, technique = tuned(folder, rank=4)
    trainer = Trainer(base.decoder, Examples(ROWS), Examples([]), PLAN, tmp_path / "steps")
    trainer.step()
    save_adapter(base, technique, tmp_path / "adapter")
    again = open_base(str(folder), CPU)
    load_adapter(again, tmp_path / "adapter")
    assert torch.equal(logits(again.decoder), logits(base.decoder.eval()))
