"""Files that are either whole or absent, and the one cache folder. Imports no torch."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from graftwood.errors import ConfigError, StorageError

UNFINISHED = r"\.(.+)\.[0-9a-f]{8}\.(?:part|old)"  # how what is being written or replaced is called, and by what name


def cache_home() -> Path:
    """The one folder everything cached lives in: `$GRAFTWOOD_HOME`, else `$XDG_CACHE_HOME/graftwood`."""
    home = os.environ.get("GRAFTWOOD_HOME")
    folder = expanded(home) if home else expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "graftwood"
    if folder.parts[:1] and folder.parts[0].startswith("~"):
        raise ConfigError(f"the cache folder {folder} is in the home of nobody; set GRAFTWOOD_HOME to a folder")
    return folder


def expanded(path: str | Path) -> Path:
    """The path with `~` made a home folder; that of a user there is not stays as it is, and leads nowhere."""
    return Path(os.path.expanduser(path))


@contextmanager
def storage(action: str) -> Iterator[None]:
    """Turn a full disk or a refused write inside the block into one line for the user."""
    try:
        yield
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise StorageError(f"cannot {action}: {error.strerror or error}{where}") from error


@contextmanager
def claimed(folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    """A folder that nobody else works in until the block ends, or this process does, in whatever way.

    It is made where it is missing, and goes again where nothing was put into it. Where files cannot be locked, `say`
    is told why. Raises: ConfigError naming the process that works there.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    with storage(f"write {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
    lock = folder / ".lock"
    try:
        handle = _locked(lock)
    except BlockingIOError:
        who = lock.read_text(encoding="utf-8") if lock.exists() else ""
        fix = "wait for it, or give another folder with --out"
        raise ConfigError(f"another run works in {folder}{who}; {fix}") from None
    except (ImportError, OSError) as error:
        handle = None
        say(f"warning: {folder} cannot be locked ({error}); see that no other run works in it")
    try:
        yield
    finally:
        if handle is not None:
            with suppress(OSError):
                lock.unlink()  # while it is held: who has opened it meanwhile looks again
            handle.close()
        with suppress(OSError):  # one that holds something stays, and so do those around it
            for path in made:
                path.rmdir()


def _locked(lock: Path) -> IO[str]:
    """The open file by which a lock is held: the kernel gives it up with the process, however that ends.

    Raises: BlockingIOError where another holds it, ImportError or OSError where there are no locks.
    """
    import fcntl  # not on every system

    while True:
        handle = lock.open("a+", encoding="utf-8")
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle.fileno()), lock.stat()):
                    handle.truncate(0)
                    handle.write(f" (process {os.getpid()} on {platform.node()})")
                    handle.flush()
                    return handle
        except BaseException:
            handle.close()
            raise
        handle.close()  # of a run that has just ended and took its lock away


def check_new(folder: Path) -> None:
    """Raises: ConfigError where something lies that a new folder would replace."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file; give a new folder with --out")
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder} is not empty; give a new folder with --out")


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """A temporary folder that becomes `target` when the block ends well, and vanishes when it does not.

    The rename is the moment of truth: a reader sees the old folder, then the whole new one. An existing `target` is
    replaced; it is moved aside first and removed last, so that a kill in between loses neither. An empty one is filled
    instead: a mount point cannot be renamed, nor what a shell stands in without leaving it nowhere.
    """
    target = target.resolve()
    fills = target.is_dir() and not any(target.iterdir())
    target.parent.mkdir(parents=True, exist_ok=True)
    work, old = _aside(target / target.name if fills else target, "part"), _aside(target, "old")
    work.mkdir()
    try:
        yield work
        readable = work.stat().st_mode & 0o666
        for path in sorted(work.rglob("*")):
            if path.is_file():
                path.chmod(readable)  # safetensors writes for the owner alone, whatever the umask
            _sync(path)
        _sync(work)
        if fills:
            _move_up(work)
            return
        if target.exists():
            os.replace(target, old)
        os.replace(work, target)
        _sync(target.parent)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        if old.exists() and not target.exists():
            os.replace(old, target)
        raise


def _move_up(work: Path) -> None:
    """Move everything in a folder into the one it is in, which has nothing else; if one cannot be, none stays."""
    moved: list[Path] = []
    try:
        for path in sorted(work.iterdir()):
            moved.append(work.parent / path.name)
            os.replace(path, moved[-1])
        work.rmdir()
        _sync(work.parent)
    except BaseException:
        for path in moved:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        raise


def atomic_write(target: Path, content: str | bytes) -> None:
    """Write `target` so that a reader, a kill or a full disk never meets half of it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    work = _aside(target, "part")
    try:
        with work.open("xb") as handle:
            handle.write(content.encode() if isinstance(content, str) else content)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(work, target)
    except BaseException:
        work.unlink(missing_ok=True)
        raise


def write_json(target: Path, value: Any) -> None:
    """`value` as indented JSON, atomically. Not-a-number is refused: a missing value is null."""
    atomic_write(target, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def sha256_text(*parts: str) -> str:
    """Hex SHA-256 over several strings, unambiguous about where one ends."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{len(part)}:".encode())
        digest.update(part.encode())
    return digest.hexdigest()


def folder_bytes(path: Path) -> int:
    """Bytes of every file below `path`, or of the file that it is; what a link leads to is counted where it lies."""
    files = (item for item in (path, *path.rglob("*")) if item.is_file() and not item.is_symlink())
    return sum(item.stat().st_size for item in files)


def _aside(target: Path, ending: str) -> Path:
    """A name beside `target` that nothing else uses and that no listing of ordinary files shows; see `UNFINISHED`."""
    return target.with_name(f".{target.name}.{secrets.token_hex(4)}.{ending}")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
