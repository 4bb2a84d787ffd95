"""The tensors of a checkpoint's files, one after another by memory map: safetensors, or PyTorch's own `.bin`."""

from __future__ import annotations

import json
import math
import pickle
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast
from zipfile import is_zipfile

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from graftwood.errors import ModelError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PICKLED_INDEX = "pytorch_model.bin.index.json"
PICKLED_SINGLE = "pytorch_model.bin"
# A mapping's pages count as this process's memory until it ends, so files are opened again every so often.
_SHARE, _LEAST = 64, 1 << 24


def shard_files(folder: Path) -> list[Path]:
    """The weight files of a checkpoint, safetensors before pickled ones.

    Raises: ModelError naming missing shards, or saying what a folder must hold.
    """
    for single, index in ((SINGLE, INDEX), (PICKLED_SINGLE, PICKLED_INDEX)):
        if (folder / single).exists():  # before an index that was left there, as transformers does
            return [folder / single]
        if (folder / index).exists():
            return _shards(folder, index)
    raise ModelError(f"{folder} has no weights: neither {SINGLE} nor {PICKLED_SINGLE}, nor an index of shards of one")


def _shards(folder: Path, index: str) -> list[Path]:
    try:
        names = sorted(set(json.loads((folder / index).read_text(encoding="utf-8"))["weight_map"].values()))
        missing = [name for name in names if not (folder / name).exists()]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ModelError(f"{folder / index} is no index of shards; fetch it again") from None
    if missing:
        raise ModelError(f"{folder} lacks {len(missing)} of {len(names)} shards: {', '.join(missing[:5])}")
    return [folder / name for name in names]


def file_tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the checkpoint by its file name, memory-mapped, nothing copied.

    Who keeps a tensor keeps its pages; of the others no more than a share of a file is mapped at any time.
    Raises: ModelError for a truncated or damaged file, or one that holds more than tensors.
    """
    for path in shard_files(folder):
        opened = _Pickled if path.suffix == ".bin" else _Safe
        file = opened(path)
        waiting = sorted(file.sizes, key=lambda name: file.sizes[name])  # the largest first, while little is loaded
        del file
        budget = max(_LEAST, path.stat().st_size // _SHARE)
        while waiting:
            file, read = opened(path), 0
            while waiting and read < budget:
                name = waiting.pop()
                tensor = file.tensor(name)
                read += tensor.nbytes
                yield name, tensor
                del tensor
            del file


class _Safe:
    """A safetensors file: the elements of each tensor, and the tensors."""

    def __init__(self, path: Path) -> None:
        try:
            self._handle = cast(Any, safe_open(path, framework="pt"))
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path} is damaged or cut short ({error}); fetch it again") from None
        self.sizes = {name: math.prod(self._handle.get_slice(name).get_shape()) for name in self._handle.keys()}  # noqa: SIM118

    def tensor(self, name: str) -> Tensor:
        """A tensor of the file, memory-mapped."""
        return cast(Tensor, self._handle.get_tensor(name))


class _Pickled:
    """A `.bin` file: the elements of each tensor, and the tensors."""

    def __init__(self, path: Path) -> None:
        self._tensors = unpickled(path)
        self.sizes = {name: tensor.numel() for name, tensor in self._tensors.items()}

    def tensor(self, name: str) -> Tensor:
        """A tensor of the file, memory-mapped where the file allows."""
        return self._tensors[name]


def unpickled(path: Path) -> Mapping[str, Tensor]:
    """The tensors of a `.bin` file, by memory map unless it is of the form from before 2020."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd pickle protocols: what cannot be read raises
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zipfile(path))
    except pickle.UnpicklingError:
        raise ModelError(
            f"{path} is a pickle that wants to run code, so it is not opened; "
            "ask its author for safetensors, or convert it where you trust it"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        why = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise ModelError(f"{path} is damaged or cut short ({why}); fetch it again") from None
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ModelError(f"{path} holds more than tensors by name; a checkpoint's state_dict alone is read")
    return content
