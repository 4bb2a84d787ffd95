"""Checkpoints in PyTorch's own format load like others, by memory map, and nothing in them is ever run."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import tiny
from conftest import CPU
from graftwood.errors import ModelError
from graftwood.model.tensor_files import PICKLED_INDEX, PICKLED_SINGLE, SINGLE, file_tensors
from graftwood.model.weights import fingerprint, load_decoder, save_tensors, to_files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = tiny.decoder()
    save_tensors(to_files(model), tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(model.architecture.write(model.config)), encoding="utf-8")
    return tmp_path


def pickled(folder: Path, **options: Any) -> dict[str, torch.Tensor]:
    tensors = load_file(folder / SINGLE)
    torch.save(tensors, folder / PICKLED_SINGLE, **options)
    (folder / SINGLE).unlink()
    return tensors


def refusal(folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        load_decoder(folder, CPU)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("new", [True, False], ids=["a zip", "the form from before 2020"])
def test_a_bin_file_loads_like_safetensors(folder: Path, new: bool) -> None:
    before, ids = fingerprint(folder), torch.arange(20).unsqueeze(0)
    expected = load_decoder(folder, CPU)(ids)
    pickled(folder, _use_new_zipfile_serialization=new)
    assert torch.equal(load_decoder(folder, CPU)(ids), expected)
    assert fingerprint(folder) == before


def test_shards_are_found_by_their_index(folder: Path) -> None:
    tensors = pickled(folder)
    (folder / PICKLED_SINGLE).unlink()
    weight_map = {name: f"pytorch_model-{n % 3 + 1:05d}-of-00003.bin" for n, name in enumerate(tensors)}
    for file in set(weight_map.values()):
        torch.save({name: tensors[name] for name, place in weight_map.items() if place == file}, folder / file)
    (folder / PICKLED_INDEX).write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")
    found = dict(file_tensors(folder))
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    (folder / "pytorch_model-00002-of-00003.bin").unlink()
    assert "lacks 1 of 3 shards: pytorch_model-00002-of-00003.bin" in refusal(folder)


class Runs:
    """What a harmful file holds: a call made while it is read."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("plain", [True, False], ids=["pickle alone", "torch.save"])
def test_a_pickle_that_wants_code_is_refused_and_runs_nothing(folder: Path, plain: bool, tmp_path: Path) -> None:
    content = pickled(folder) | {"extra": Runs(tmp_path / "ran")}
    path = folder / PICKLED_SINGLE
    if plain:
        path.write_bytes(pickle.dumps(content["extra"]))
    else:
        torch.save(content, path)
    assert "wants to run code, so it is not opened; ask its author for safetensors" in refusal(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("keep", [0, 100, -40])
def test_a_file_cut_short_is_damaged(folder: Path, keep: int) -> None:
    pickled(folder)
    path = folder / PICKLED_SINGLE
    path.write_bytes(path.read_bytes()[:keep])
    assert "is damaged or cut short" in refusal(folder) or "wants to run code" in refusal(folder)


@pytest.mark.parametrize("content", [[1, 2], {"model": {"a": torch.ones(1)}}, torch.ones(3)], ids=repr)
def test_what_is_no_state_dict_is_refused(folder: Path, content: object) -> None:
    pickled(folder)
    torch.save(content, folder / PICKLED_SINGLE)
    assert "holds more than tensors by name" in refusal(folder)
