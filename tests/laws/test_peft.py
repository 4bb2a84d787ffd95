"""Adapter folders travel between Graftwood and PEFT, and both learn the same from a batch."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import tiny
from conftest import CPU
from graftwood.base import open_base
from graftwood.checkpoint import ADAPTER_CONFIG, load_adapter, save_adapter
from graftwood.data.batch import Examples
from graftwood.errors import ConfigError
from graftwood.technique import TECHNIQUES
from graftwood.train.loop import Trainer
from peers import (
    PLAN,
    ROWS,
    distance,
    logits,
    move,
    noisy,
    one_step_of_both,
    their_adapter,
    their_base,
    their_step,
    tuned,
)


@pytest.fixture
def folder(tmp_path: Path, tokenizer_files: Callable[[Path], None]) -> Path:
    return tiny.model_folder(tmp_path / "tiny", tokenizer_files)


OURS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("lora", {}),
    "lora, a list and rsLoRA": ("lora", {"rank": 4, "rslora": True, "targets": "q_proj,down_proj"}),
    "lora, patterns": ("lora", {"rank": 4, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.*up_proj": 4.0}}),
    "lora, a regular expression": ("lora", {"rank": 4, "targets": r".*layers\.1\..*(q|v)_proj"}),
    "lora, all of a block by its pattern": ("lora", {"rank": 4, "targets": r".*layers\.1\..*"}),
    "lora, one layer": ("lora", {"rank": 4, "targets": "layers.0.self_attn.q_proj"}),
    "lora, PiSSA": ("lora", {"rank": 4, "start": "pissa"}),
    "dora": ("dora", {}),
    "prompt": ("prompt", {}),
    "prefix": ("prefix", {}),
    "prefix, reparametrised": ("prefix", {"hidden": 12}),
    "ptuning": ("ptuning", {}),
    "ia3": ("ia3", {}),
    "ia3, chosen": ("ia3", {"targets": "q_proj,up_proj", "inputs": "up_proj"}),
    "oft": ("oft", {}),
    "oft, exact and a block that does not fit": ("oft", {"block": 20, "cayley": "exact"}),
    "oft, by a pattern": ("oft", {"targets": r".*layers\.1\.mlp.*"}),
    "shira": ("shira", {}),
    "shira, by a pattern": ("shira", {"targets": r".*layers\.1\..*"}),
    "vera": ("vera", {}),
    "vera, by a pattern": ("vera", {"targets": r".*layers\.1\..*"}),
    "norm": ("norm", {}),
}


@noisy
@pytest.mark.parametrize(("name", "options"), OURS.values(), ids=OURS)
def test_peft_reads_what_we_write(name: str, options: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    base, technique = tuned(folder, name, **options)
    save_adapter(base, technique, tmp_path / "adapter")
    theirs = their_adapter(folder, tmp_path / "adapter")
    assert distance(logits(theirs), logits(base.decoder)) < 1e-5
    with base.decoder.without_deltas():
        assert distance(logits(base.decoder), logits(theirs)) > 1e-2, "the adapter must matter"


ALL = "all-linear"
THEIRS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora, a list and rsLoRA": (
        "Lora",
        {"target_modules": ["v_proj", "up_proj"], "r": 4, "lora_alpha": 12, "use_rslora": True},
    ),
    "lora, the family's defaults": ("Lora", {"target_modules": None}),
    "lora, all-linear": ("Lora", {"target_modules": ALL, "lora_dropout": 0.1}),
    "lora, a regular expression": ("Lora", {"target_modules": r".*\.(q|v)_proj", "r": 4}),
    "lora, patterns": (
        "Lora",
        {"target_modules": ALL, "r": 4, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"1.self_attn.k_proj": 3}},
    ),
    "lora, PiSSA": ("Lora", {"target_modules": ["q_proj", "down_proj"], "r": 4, "init_lora_weights": "pissa"}),
    "dora": ("Lora", {"target_modules": ALL, "r": 4, "use_dora": True, "lora_dropout": 0.1}),
    "prompt": ("PromptTuning", {"num_virtual_tokens": 5}),
    "prefix": ("PrefixTuning", {"num_virtual_tokens": 5}),
    "prefix, reparametrised": (
        "PrefixTuning",
        {"num_virtual_tokens": 5, "prefix_projection": True, "encoder_hidden_size": 12},
    ),
    "ptuning": ("PromptEncoder", {"num_virtual_tokens": 5, "encoder_hidden_size": 12}),
    "ia3": ("IA3", {}),
    "ia3, chosen": ("IA3", {"target_modules": ["q_proj", "up_proj"], "feedforward_modules": ["up_proj"]}),
    "oft": ("OFT", {"target_modules": ALL, "oft_block_size": 8}),
    "oft, exact and a block that does not fit": (
        "OFT",
        {"target_modules": ALL, "oft_block_size": 20, "use_cayley_neumann": False},
    ),
    "lora, ranks above the size of some": ("Lora", {"target_modules": "all-linear", "r": 24}),
    "lora, a pattern of what is no target": (
        "Lora",
        {"target_modules": ["q_proj"], "r": 4, "rank_pattern": {"k_proj": 2}},
    ),
    "shira": ("Shira", {"target_modules": ["q_proj", "up_proj"], "r": 2, "random_seed": 3}),
    "vera": ("Vera", {"target_modules": ALL, "r": 8, "vera_dropout": 0.1}),
    "vera, by its seed": ("Vera", {"target_modules": ALL, "r": 8, "save_projection": False, "projection_prng_key": 5}),
    "norm": ("LNTuning", {}),
    "norm, chosen": ("LNTuning", {"target_modules": ["norm", "input_layernorm"]}),
}


@noisy
@pytest.mark.parametrize(("kind", "options"), THEIRS.values(), ids=THEIRS)
def test_we_read_what_peft_writes(kind: str, options: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="needs the extra `peers`")
    config = getattr(peft, f"{kind}Config")(task_type="CAUSAL_LM", **options)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = peft.get_peft_model(their_base(folder), config).eval()
    move(parameter for parameter in theirs.parameters() if parameter.requires_grad)
    theirs.save_pretrained(tmp_path / "adapter")
    base = open_base(str(folder), CPU)
    plain = logits(base.decoder)
    technique: Any = load_adapter(base, tmp_path / "adapter")
    assert distance(logits(base.decoder), logits(theirs)) < 1e-5
    assert distance(plain, logits(theirs)) > 1e-2, "the adapter must matter"
    assert base.decoder.trained() == {}
    if options.get("target_modules", ALL) is None:
        assert set(technique.targets) == {"q_proj", "v_proj"}


# PEFT does not go on with these from a folder.
PREFACES = ("prompt", "prefix", "prefix, reparametrised", "ptuning")
STEPS = {label: case for label, case in OURS.items() if label not in PREFACES}


@noisy
@pytest.mark.parametrize(("name", "options"), STEPS.values(), ids=STEPS)
def test_one_step_gives_the_same_update(name: str, options: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    base, technique = tuned(folder, name, **options)
    before, mine, other = one_step_of_both(base, technique, folder, tmp_path)
    moved = [key for key in mine if not torch.equal(mine[key], before[key])]
    assert moved
    for key in mine:
        if key not in moved:
            assert torch.equal(other[key], before[key]), key
            continue
        # Adam divides a gradient by its own size, so the rounding of the smallest ones shows.
        assert distance(mine[key] - before[key], other[key] - before[key]) < 1e-2, key


@noisy
@pytest.mark.parametrize("label", PREFACES)
def test_one_step_of_what_stands_before_the_text_gives_the_same_update(
    label: str, folder: Path, tmp_path: Path
) -> None:
    name, options = OURS[label]
    kind, their_options = THEIRS[label]
    peft = pytest.importorskip("peft", reason="needs the extra `peers`")
    inner = {"hidden": 12} if "encoder_hidden_size" in their_options else {}
    base, technique = tuned(folder, name, **options | inner)
    ours: Any = getattr(base.decoder, technique.seam)  # type: ignore[attr-defined]
    config = getattr(peft, f"{kind}Config")(task_type="CAUSAL_LM", **their_options)
    theirs = peft.get_peft_model(their_base(folder), config).train()
    encoder = theirs.prompt_encoder["default"]
    with torch.no_grad():
        encoder.embedding.weight.copy_(ours.rows)
    networks = [getattr(encoder, part) for part in ("mlp_head", "transform") if hasattr(encoder, part)]
    for network in networks:
        network.load_state_dict(ours.network.state_dict())
    assert distance(logits(theirs), logits(base.decoder)) < 1e-5
    before = [p.detach().clone() for p in ours.parameters()]
    Trainer(base.decoder, Examples(ROWS), Examples([]), PLAN, tmp_path / "steps").step()
    their_step(theirs)
    other = [encoder.embedding.weight, *(p for network in networks for p in network.parameters())]
    for old, mine, their in zip(before, ours.parameters(), other, strict=True):
        assert distance(mine - old, their - old) < 1e-2


@pytest.mark.parametrize(
    "change",
    [
        {"bias": "lora_only"},
        {"modules_to_save": ["lm_head"]},
        {"layers_to_transform": [0]},
        {"layers_to_transform": 0},
        {"init_lora_weights": "pissa_niter_4"},
        {"a_field_of_next_year": 2},
        {"exclude_modules": ["q_proj"], "trainable_token_indices": [3]},
    ],
    ids=str,
)
def test_what_is_not_read_is_refused_by_name(change: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    base, technique = tuned(folder)
    save_adapter(base, technique, tmp_path / "adapter")
    file = tmp_path / "adapter" / ADAPTER_CONFIG
    config = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(config | change), encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_adapter(open_base(str(folder), CPU), tmp_path / "adapter")
    assert "\n" not in str(caught.value)
    for name, value in change.items():
        assert f"{name}={value!r}" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("dora", {"use_qalora": True}),
        ("dora", {"init_lora_weights": "pissa"}),
        ("prompt", {"num_transformer_submodules": 2}),
        ("prefix", {"modules_to_save": ["lm_head"]}),
        ("ptuning", {"a_field_of_next_year": 2}),
        ("ia3", {"modules_to_save": ["lm_head"]}),
        ("oft", {"coft": True, "block_share": True}),
        ("oft", {"module_dropout": 0.1}),
        ("oft", {"r": 4}),
        ("shira", {"modules_to_save": ["lm_head"]}),
        ("vera", {"bias": "vera_only"}),
        ("vera", {"layers_to_transform": 0}),
        ("norm", {"exclude_modules": ["norm"]}),
        ("bitfit", {"a_field_of_next_year": 2}),
    ],
    ids=str,
)
def test_every_type_refuses_what_it_does_not_read(
    name: str, change: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    base, technique = tuned(folder, name)
    save_adapter(base, technique, tmp_path / "adapter")
    file = tmp_path / "adapter" / ADAPTER_CONFIG
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | change), encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_adapter(open_base(str(folder), CPU), tmp_path / "adapter")
    for field, value in change.items():
        assert f"{field}={value!r}" in str(caught.value)


def test_another_kind_of_adapter_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / ADAPTER_CONFIG).write_text('{"peft_type": "LOHA"}', encoding="utf-8")
    with pytest.raises(
        ConfigError, match=r"peft_type 'LOHA' is not read\. Did you mean 'LORA'.* Readable: .*IA3.*LORA"
    ):
        load_adapter(open_base(str(folder), CPU), tmp_path)


ADAPTERS = [name for name in TECHNIQUES.names() if not TECHNIQUES.get(name).writes_base]


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_folder_is_opened_again(name: str, folder: Path, tmp_path: Path) -> None:
    base, technique = tuned(folder, name)
    save_adapter(base, technique, tmp_path / "adapter")
    again = open_base(str(folder), CPU)
    opened = load_adapter(again, tmp_path / "adapter")
    assert type(opened) is type(technique)
    torch.testing.assert_close(logits(again.decoder), logits(base.decoder), rtol=1e-5, atol=1e-5)
    assert again.decoder.trained() == {}


@pytest.mark.parametrize("kind", ["double_seq_bn", "seq_bn", "par_bn"])
def test_bottleneck_adapters_are_written_as_adapterhub_writes_them(kind: str, folder: Path, tmp_path: Path) -> None:
    base, technique = tuned(folder, "adapter", kind=kind, label="task")
    save_adapter(base, technique, tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    names = set(load_file(tmp_path / "adapter" / "adapter.safetensors"))
    halves = ("adapter_down.0.weight", "adapter_down.0.bias", "adapter_up.weight", "adapter_up.bias")
    places = ("attention_adapters", "output_adapters") if kind == "double_seq_bn" else ("output_adapters",)
    assert names == {f"model.layers.{n}.{p}.adapters.task.{h}" for n in (0, 1) for p in places for h in halves}
    assert (config["name"], config["hidden_size"]) == ("task", 32)
    assert config["config"]["mh_adapter"] == (kind == "double_seq_bn")
    assert config["config"]["original_ln_before"] == (kind == "seq_bn")
    assert config["config"]["is_parallel"] == (kind == "par_bn")
    # What AdapterHub itself writes has no type beside its configuration.
    bare = {key: config[key] for key in ("config", "name", "hidden_size", "model_type")}
    (tmp_path / "adapter" / ADAPTER_CONFIG).write_text(json.dumps(bare), encoding="utf-8")
    again = open_base(str(folder), CPU)
    opened: Any = load_adapter(again, tmp_path / "adapter")
    assert opened.kind == kind
    assert torch.equal(logits(again.decoder), logits(base.decoder))


@pytest.mark.parametrize(
    "change",
    [
        {"is_parallel": True},
        {"architecture": "lora"},
        {"scaling": "learned"},
        {"leave_out": [1]},
        {"use_gating": True},
        {"ln_before": True},
        {"residual_before_ln": "post_add"},
    ],
    ids=str,
)
def test_adapterhubs_other_shapes_are_refused_by_name(change: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    base, technique = tuned(folder, "adapter")
    save_adapter(base, technique, tmp_path / "adapter")
    file = tmp_path / "adapter" / ADAPTER_CONFIG
    config = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(config | {"config": config["config"] | change}), encoding="utf-8")
    with pytest.raises(ConfigError, match="|".join(f"{key}={re.escape(repr(value))}" for key, value in change.items())):
        load_adapter(open_base(str(folder), CPU), tmp_path / "adapter")


def test_an_adapter_of_another_base_is_refused_with_both_names(
    folder: Path, tmp_path: Path, tokenizer_files: Callable[[Path], None]
) -> None:
    base, technique = tuned(folder)
    save_adapter(base, technique, tmp_path / "adapter")
    other = open_base(str(tiny.model_folder(tmp_path / "sister", tokenizer_files, tiny.decoder(seed=1))), CPU)
    with pytest.raises(ConfigError) as caught:
        load_adapter(other, tmp_path / "adapter")
    for part in (base.name, base.fingerprint[:12], other.name, other.fingerprint[:12]):
        assert part in str(caught.value)
    assert all(linear.delta is None for linear in other.decoder.linears().values())
