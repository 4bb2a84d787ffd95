"""Folders that AdapterHub's own package wrote give here what they gave there; `tests/adapterhub/make.py` made them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import tiny
from conftest import CPU
from graftwood.base import Base, open_base
from graftwood.checkpoint import load_adapter
from graftwood.errors import ConfigError

HERE = Path(__file__).resolve().parents[1] / "adapterhub"
FOLDERS = sorted(path.name for path in HERE.iterdir() if path.is_dir() and "-" in path.name)


def base_of(name: str, folder: Path, tokenizer_files: Callable[[Path], None]) -> Base:
    family = name.partition("-")[0]
    return open_base(str(tiny.model_folder(folder / family, tokenizer_files, tiny.family(family))), CPU)


@pytest.mark.parametrize("name", FOLDERS)
def test_the_logits_are_those_of_adapterhub(name: str, tmp_path: Path, tokenizer_files: Callable[[Path], None]) -> None:
    base = base_of(name, tmp_path, tokenizer_files)
    expected = json.loads((HERE / name / "expected.json").read_text(encoding="utf-8"))
    wanted, ids = torch.tensor(expected["logits"]), torch.tensor(expected["ids"])
    with torch.no_grad():
        plain = base.decoder(ids)[0, -1, ::20]
        technique = load_adapter(base, HERE / name)
        found = base.decoder(ids)[0, -1, ::20]
    assert (technique.name, technique.kind) == ("adapter", name.partition("-")[2])  # type: ignore[attr-defined]
    assert (found - wanted).norm() / wanted.norm() < 1e-5
    assert (plain - wanted).norm() / wanted.norm() > 1e-2, "the adapter must matter"


def test_a_head_beside_the_adapter_must_be_the_bases(tmp_path: Path, tokenizer_files: Callable[[Path], None]) -> None:
    name = "llama-seq_bn"
    folder = tmp_path / "adapter"
    folder.mkdir()
    for file in (HERE / name).iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    base = base_of(name, tmp_path, tokenizer_files)
    head = base.decoder.head_weight().detach().clone()
    save_file({"lm_head.weight": head}, folder / "model_head.safetensors")
    load_adapter(base, folder)
    base.decoder.take_off()
    save_file({"lm_head.weight": head + 0.1}, folder / "model_head.safetensors")
    with pytest.raises(ConfigError, match=r"model_head\.safetensors is a head of its own, which is not read"):
        load_adapter(base, folder)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"architecture": "lora", "r": 8}, "architecture='lora', r=8"),
        ({"mh_adapter": True, "original_ln_before": True, "reduction_factor": 16}, "original_ln_before=True"),
        ({"original_ln_before": True, "reduction_factor": {"1": 8, "default": 16}}, "reduction_factor={'1': 8"),
        ({"original_ln_before": True, "reduction_factor": 16, "inv_adapter": "nice"}, "inv_adapter='nice'"),
    ],
)
def test_what_else_it_writes_is_refused_by_name(
    config: dict[str, object], said: str, tmp_path: Path, tokenizer_files: Callable[[Path], None]
) -> None:
    base = base_of("llama", tmp_path, tokenizer_files)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"config": config, "name": "task"}), encoding="utf-8")
    with pytest.raises(ConfigError, match=f"this adapter uses .*{said}.*which this version does not read"):
        load_adapter(base, tmp_path)
