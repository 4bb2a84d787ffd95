"""What lies in the cache folder, by entry, and how to delete it."""

from __future__ import annotations

import shutil
from pathlib import Path

from graftwood.errors import ConfigError, unknown
from graftwood.files import cache_home, folder_bytes, storage

# Folders whose children are the entries; anything else in the cache is an entry itself.
_SHELVES = (
    "models",
    "sources/pypi",
    "sources/huggingface",
    "samples",
    "activations",
    "base-scores",
    "kept-against-drift",
)


def entries(only: str | None = None) -> list[dict[str, str | int]]:
    """Name, size in bytes and path of every cached thing. Raises: ConfigError when `only` names none of them."""
    home = cache_home()
    paths = [path for shelf in _SHELVES if (home / shelf).is_dir() for path in sorted((home / shelf).iterdir())]
    found = [_entry(home, path) for path in paths if not path.name.startswith(".")]
    if only is None:
        return found
    chosen = [entry for entry in found if only in (entry["name"], Path(str(entry["path"])).name)]
    if not chosen:
        raise ConfigError(unknown("cache entry", only, [str(entry["name"]) for entry in found]))
    return chosen


def cached_models() -> list[dict[str, str | int]]:
    """The entries that are models."""
    return [entry for entry in entries() if str(entry["name"]).startswith(("models/", "sources/"))]


def remove(chosen: list[dict[str, str | int]]) -> None:
    """Delete entries."""
    for entry in chosen:
        with storage(f"delete {entry['path']}"):
            shutil.rmtree(str(entry["path"]))


def _entry(home: Path, path: Path) -> dict[str, str | int]:
    return {"name": str(path.relative_to(home)), "bytes": folder_bytes(path), "path": str(path)}
