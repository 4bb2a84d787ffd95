"""tinyshakespeare as nanoGPT splits it: characters, the last tenth for validation, which is never trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from bench.common import ROOT, BenchError
from numpy.typing import NDArray

from graftwood.data.corpus import ARRAYS

CORPORA = ROOT.parent / "shared" / "corpora"
BLOCK, WINDOWS = 64, 2400


def write(folder: Path, corpora: Path) -> dict[str, str | int]:
    """The two splits as streams and the validation windows of 65 characters, written below `folder`; their paths."""
    file = corpora / "tinyshakespeare.txt"
    if not file.exists():
        raise BenchError(f"there is no {file}; give the folder it is in with --corpora")
    text = file.read_text(encoding="utf-8")
    characters = {character: index for index, character in enumerate(sorted(set(text)))}
    ids = np.array([characters[character] for character in text], dtype=np.uint16)
    train, valid = np.split(ids, [int(len(ids) * 0.9)])
    starts = np.random.default_rng(0).integers(0, len(valid) - BLOCK, WINDOWS)
    np.save(folder / "windows.npy", np.stack([valid[start : start + BLOCK + 1] for start in starts]))
    for name, part in (("train", train), ("valid", valid)):
        _stream(folder / name, part)
    paths = {name: str(folder / name) for name in ("train", "valid")}
    return {**paths, "windows": str(folder / "windows.npy"), "vocabulary": len(characters)}


def _stream(folder: Path, ids: NDArray[np.uint16]) -> None:
    folder.mkdir()
    arrays = (ids, np.array([len(ids)]), np.zeros((1, 2), dtype=np.int64))
    for name, array in zip(ARRAYS, arrays, strict=True):
        np.save(folder / name, array)
