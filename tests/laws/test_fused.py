"""Adapter folders of families whose files hold several matrices as one: what PEFT puts on the one is the same here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from conftest import CPU
from graftwood.base import open_base
from graftwood.checkpoint import load_adapter, save_adapter
from graftwood.compose import Sum, compose
from graftwood.errors import ConfigError
from graftwood.model.architecture import ARCHITECTURES
from graftwood.model.matrices import matrices
from graftwood.model.weights import to_files
from peers import check_both_read, distance, logits, move, noisy, one_step_of_both, their_base, tuned

# By family: attention's matrix that is three, the one that brings the feed-forward back, and a norm.
FAMILIES = {
    "gpt2": ("c_attn", "mlp.c_proj", "ln_1"),
    "gpt_neox": ("query_key_value", "dense_4h_to_h", "input_layernorm"),
    "phi3": ("qkv_proj", "down_proj", "input_layernorm"),
}
COLUMNS = "gpt2"  # whose matrices are PEFT's Conv1D, on which it has neither of these
LINEAR_ALONE = ("oft", "shira")
families = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture
def folder(
    family: str, tmp_path: Path, save_with_transformers: Callable[..., None], tokenizer_files: Callable[[Path], None]
) -> Path:
    folder = tmp_path / family
    save_with_transformers(tiny.config(family), folder)
    tokenizer_files(folder)
    return folder


def cases(table: dict[str, tuple[str, dict[str, Any]]]) -> Any:
    """Every family with every case that PEFT has there."""
    return pytest.mark.parametrize(
        ("family", "name", "options"),
        [
            pytest.param(family, name, options, id=f"{family} {label}")
            for family in FAMILIES
            for label, (name, options) in table.items()
            if family != COLUMNS or name.lower() not in LINEAR_ALONE
        ],
    )


def spelled(family: str, value: Any) -> Any:
    """A case's options in the family's names."""
    if isinstance(value, dict):
        return {spelled(family, key): spelled(family, one) for key, one in value.items()}
    if isinstance(value, list):
        return [spelled(family, one) for one in value]
    return {"QKV": FAMILIES[family][0], "DOWN": FAMILIES[family][1], "NORM": FAMILIES[family][2]}.get(value, value)


WHOLE: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("lora", {"rank": 4}),
    "lora, one matrix and rsLoRA": ("lora", {"rank": 4, "targets": ["QKV"], "rslora": True, "alpha": 3.0}),
    "lora, patterns": ("lora", {"rank": 4, "rank_pattern": {"QKV": 2}, "alpha_pattern": {"DOWN": 4.0}}),
    "lora, PiSSA": ("lora", {"rank": 4, "start": "pissa"}),
    "dora": ("dora", {"rank": 4}),
    "ia3": ("ia3", {"targets": ["QKV", "DOWN"], "inputs": ["DOWN"]}),
    "vera": ("vera", {"rank": 8}),
    "oft": ("oft", {"block": 8}),
    "shira": ("shira", {"rank": 2}),
    "norm": ("norm", {}),
}
# Single linears of a matrix: what is beside them in the file stays as it is.
ALONE: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("lora", {"rank": 4, "targets": ["q_proj", "v_proj", "DOWN"]}),
    "lora, ranks and scales that differ": (
        "lora",
        {"rank": 4, "targets": "k_proj,v_proj", "rank_pattern": {"v_proj": 2}, "alpha_pattern": {"1.*k_proj": 5.0}},
    ),
    "lora, ranks that add up to more than the width": ("lora", {"rank": 16, "targets": "q_proj,k_proj,v_proj"}),
    "lora, all of a part by its pattern": ("lora", {"rank": 4, "targets": r".*1\.(attn|attention|self_attn)\..*"}),
    "rsLoRA": ("lora", {"rank": 4, "targets": r".*\.(q|k|v)_proj", "rslora": True}),
    "dora": ("dora", {"rank": 4, "targets": "q_proj,v_proj"}),
    "ia3": ("ia3", {}),
    "ia3, chosen": ("ia3", {"targets": "q_proj"}),
}


@noisy
@cases({**WHOLE, **{f"{label} alone": case for label, case in ALONE.items()}})
def test_peft_reads_what_we_write_and_so_do_we(
    family: str, name: str, options: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    base, technique = tuned(folder, name, **spelled(family, options))
    save_adapter(base, technique, tmp_path / "adapter")
    check_both_read(base, folder, tmp_path / "adapter")


THEIRS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("Lora", {"target_modules": "all-linear", "r": 4}),
    "lora, the family's defaults": ("Lora", {}),
    "lora, rsLoRA": ("Lora", {"target_modules": ["QKV"], "r": 4, "lora_alpha": 3, "use_rslora": True}),
    "lora, patterns": ("Lora", {"target_modules": ["QKV", "DOWN"], "r": 4, "rank_pattern": {"QKV": 2}}),
    "lora, PiSSA": ("Lora", {"target_modules": ["QKV"], "r": 4, "init_lora_weights": "pissa"}),
    "dora": ("Lora", {"target_modules": ["QKV", "DOWN"], "r": 4, "use_dora": True}),
    "ia3": ("IA3", {"target_modules": ["QKV", "DOWN"], "feedforward_modules": ["DOWN"]}),
    "vera": ("Vera", {"target_modules": ["QKV", "DOWN"], "r": 8}),
    "vera, by its seed": ("Vera", {"target_modules": ["QKV"], "r": 8, "save_projection": False}),
    "oft": ("OFT", {"target_modules": ["QKV"], "oft_block_size": 8}),
    "shira": ("Shira", {"target_modules": ["QKV"], "r": 2, "random_seed": 3}),
    "norm": ("LNTuning", {"target_modules": ["NORM"]}),
    "prompt": ("PromptTuning", {"num_virtual_tokens": 5}),
    "prefix": ("PrefixTuning", {"num_virtual_tokens": 5}),
}


@noisy
@cases(THEIRS)
def test_we_read_what_peft_writes(
    family: str, name: str, options: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft", reason="needs the extra `peers`")
    if family == "phi3" and options == {}:
        options = {"target_modules": ["qkv_proj", "o_proj"]}  # PEFT has no defaults for it
    config = getattr(peft, f"{name}Config")(task_type="CAUSAL_LM", **spelled(family, options))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = peft.get_peft_model(their_base(folder), config).eval()
    move(parameter for parameter in theirs.parameters() if parameter.requires_grad)
    theirs.save_pretrained(tmp_path / "adapter")
    base = open_base(str(folder), CPU)
    plain = logits(base.decoder)
    load_adapter(base, tmp_path / "adapter")
    assert distance(logits(base.decoder), logits(theirs)) < 1e-5
    assert distance(plain, logits(theirs)) > 1e-3, "the adapter must matter"


@noisy
@cases(WHOLE)
def test_one_step_gives_the_same_update(
    family: str, name: str, options: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    base, technique = tuned(folder, name, **spelled(family, options))
    before, mine, other = one_step_of_both(base, technique, folder, tmp_path)
    moved = [key for key in mine if not torch.equal(mine[key], before[key])]
    assert moved
    for key in mine:
        if key in moved:
            assert distance(mine[key] - before[key], other[key] - before[key]) < 1e-2, key
        else:
            assert torch.equal(other[key], before[key]), key


@noisy
@families
def test_adapters_are_added_as_peft_adds_them(family: str, folder: Path, tmp_path: Path) -> None:
    """On the matrices of the files: what `ties` trims is counted over a whole matrix."""
    peft = pytest.importorskip("peft", reason="needs the extra `peers`")
    for number in (0, 1):
        base, technique = tuned(folder, rank=4, targets=list(FAMILIES[family][:2]))
        move(base.decoder.trained().values(), seed=7 + number)
        save_adapter(base, technique, tmp_path / str(number))
    compose(
        open_base(str(folder), CPU),
        [tmp_path / "0", tmp_path / "1"],
        Sum((1.0, 0.5), ("ties",), 0.4),
        (),
        tmp_path / "sum",
    )
    theirs = peft.PeftModel.from_pretrained(their_base(folder), tmp_path / "0", adapter_name="0")
    theirs.load_adapter(tmp_path / "1", "1")
    theirs.base_model.add_weighted_adapter(["0", "1"], [1.0, 0.5], "sum", "ties", density=0.4)
    theirs.set_adapter("sum")
    summed = open_base(str(folder), CPU)
    load_adapter(summed, tmp_path / "sum")
    assert distance(logits(summed.decoder), logits(theirs.eval())) < 1e-5


@families
@pytest.mark.parametrize("name", ["oft", "shira", "vera"])
def test_what_cannot_be_on_a_single_linear_says_so(name: str, family: str) -> None:
    decoder = tiny.family(family)
    whole = FAMILIES[family][0]
    with pytest.raises(
        ConfigError, match=rf"{name} takes q_proj, k_proj, v_proj as one, {whole}, for .*; target {whole}"
    ):
        tiny.technique(name, targets="q_proj").apply(decoder, seed=0)
    with pytest.raises(ConfigError, match="start=pissa needs whole matrices"):
        tiny.technique("lora", start="pissa", targets="q_proj").apply(decoder, seed=0)
    with pytest.raises(ConfigError, match=rf"is called 'qkvproj'.*There are: .*\b{whole}\b"):
        tiny.technique("lora", targets="qkvproj").apply(decoder, seed=0)


@pytest.mark.parametrize("family", ARCHITECTURES.names())
def test_the_matrices_of_the_files_are_all_of_the_linears(family: str) -> None:
    decoder = tiny.family(family)
    files, seen = to_files(decoder), []
    for path, matrix in matrices(decoder).items():
        seen += list(matrix.linears)
        whole = matrix.weight()
        assert whole.shape == matrix.shape
        assert all(torch.equal(a, m.weight) for a, m in zip(matrix.split(whole), matrix.linears.values(), strict=True))
        if f"{path}.weight" in files:
            assert torch.equal(files[f"{path}.weight"], whole.T if matrix.columns else whole)
        else:
            assert ".experts." in path, "only experts have no matrix of their own in the files"
    assert sorted(seen) == sorted(decoder.linears())
