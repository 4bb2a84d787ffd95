"""Documents of a corpus: found in files, folders, globs or stdin, read one at a time, and told where they came from.

A text file is one document, or several with a separator between them; a JSONL file has one a row, in its `text`. What
is no text is skipped and said.
"""

from __future__ import annotations

import glob
import gzip
import importlib
import io
import json
import shutil
import sys
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from graftwood.errors import ConfigError, DataError
from graftwood.files import storage

STDIN = "-"
_ROWS = (".jsonl", ".ndjson")
_PACKED = (".gz", ".zst")
_BOM = "\ufeff"


@dataclass(frozen=True)
class Document:
    """One document; `line` counts from 1 and is where it begins."""

    text: str
    line: int


@dataclass(frozen=True)
class Skipped:
    """Something that was not read, and why."""

    place: str
    why: str


@dataclass(frozen=True)
class Span:
    """A piece of work: a file from byte `start` to `stop`. Rows belong to the span they begin in.

    `before` are the lines that begin before it, its own first row's number less one.
    """

    file: str
    start: int
    stop: int
    before: int = 0


def find_files(given: Sequence[str], spool: Path, written: Path | None = None) -> list[Path]:
    """Files in the order given; folders and globs in the order of their names, hidden files left out.

    `-` is what comes on stdin, kept in `spool`. What lies in `written` below a folder that is given was made from the
    text and is none of it. Raises: DataError for what leads nowhere.
    """
    found: dict[Path, None] = {}
    ours = None if written is None else written.absolute()

    def text(path: Path, root: Path) -> bool:
        apart = ours is None or root.absolute().is_relative_to(ours) or not path.absolute().is_relative_to(ours)
        return path.is_file() and not _hidden(path, root) and apart

    for name in given:
        path = Path(name)
        if name == STDIN:
            found[_spooled(spool)] = None
        elif path.is_dir():
            found |= dict.fromkeys(p for p in sorted(path.rglob("*")) if text(p, path))
        elif path.is_file():
            found[path] = None
        elif matches := [Path(m) for m in sorted(glob.glob(name, recursive=True)) if Path(m).is_file()]:
            found |= dict.fromkeys(matches)
        else:
            raise DataError(f"{name}: there is no such file or folder, and no file matches it as a pattern")
    if not found:
        raise DataError(f"{', '.join(given)}: there is no file in it")
    return list(found)


def spans(files: Sequence[Path], size: int) -> list[list[Span]]:
    """The files as pieces of work of about `size` bytes: small files together, large files of rows in parts."""
    pieces: list[list[Span]] = []
    room = 0
    for file in files:
        length = file.stat().st_size
        step = max(1, size) if _suffix(file) in _ROWS else max(1, length)
        starts: Sequence[int] = range(0, length, step)
        counts = [0] * len(starts)
        if len(starts) > 1:
            try:
                counts = [*_lines_before(file, starts)]
            except OSError:  # one span, which says that it cannot be read
                starts, counts, step = (0,), [0], length
        for start, before in zip(starts, counts, strict=True):
            stop = min(length, start + step)
            if not pieces or room < stop - start:
                pieces.append([])
                room = size
            pieces[-1].append(Span(str(file), start, stop, before))
            room -= stop - start
    return pieces


def read_span(span: Span, separator: str | None) -> Iterator[Document | Skipped]:
    """Every document of a span, and what could not be read of it."""
    path = Path(span.file)
    plain = path.with_suffix("") if _suffix(path) in _PACKED else path
    try:
        if _suffix(plain) in _ROWS:
            yield from _rows(span)
        else:
            with _opened(path) as handle:
                yield from _texts(handle.read(), span.file, separator)
    except (OSError, EOFError, zlib.error, _zstd_error()) as error:
        yield Skipped(span.file, f"cannot be read: {error}")


def _texts(content: bytes, file: str, separator: str | None) -> Iterator[Document | Skipped]:
    if b"\0" in content[:8192]:
        yield Skipped(file, "is binary: it has a NUL byte")
        return
    try:
        text = content.decode().removeprefix(_BOM)
    except UnicodeDecodeError as error:
        yield Skipped(file, f"is no UTF-8: byte {error.start + 1} is 0x{content[error.start]:02x}")
        return
    line = 1
    for part in text.split(separator) if separator else (text,):
        if part.strip():
            yield Document(part, line)
        line += part.count("\n") + (separator.count("\n") if separator else 0)


def _rows(span: Span) -> Iterator[Document | Skipped]:
    with _opened(Path(span.file)) as handle:
        number = 0
        if span.start:  # a row that crosses the beginning belongs to the span before; lines are counted all the same
            number = span.before
            handle.seek(span.start - 1)
            handle.readline()
        packed = _suffix(Path(span.file)) in _PACKED
        while packed or handle.tell() < span.stop:
            line = handle.readline()
            if not line:
                return
            number += 1
            if line.strip():
                yield _row(line, number, span.file)


def _row(line: bytes, number: int, file: str) -> Document | Skipped:
    place = f"{file}:{number}"
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        return Skipped(place, f"is no JSON: {error}")
    text = row.get("text") if isinstance(row, dict) else None
    if not isinstance(text, str):
        return Skipped(place, 'has no string "text"')
    try:
        text.encode()
    except UnicodeEncodeError:
        return Skipped(place, "has a lone surrogate")
    return Document(text, number) if text.strip() else Skipped(place, "is empty")


def _lines_before(file: Path, starts: Sequence[int]) -> Iterator[int]:
    """For each start the lines that begin before it, in one pass over the file: none before the first, which is 0."""
    count = place = 0
    with file.open("rb") as handle:
        for start in starts:
            while place < start - 1 and (block := handle.read(min(start - 1 - place, 1 << 20))):
                count += block.count(b"\n")
                place += len(block)
            yield count + 1 if start else 0


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    if _suffix(path) == ".gz":
        with gzip.open(path) as handle:
            yield cast(IO[bytes], handle)
    elif _suffix(path) == ".zst":
        with path.open("rb") as raw, io.BufferedReader(_Unpacked(raw, _zstd().ZstdDecompressor())) as buffered:
            yield cast(IO[bytes], buffered)
    else:
        with path.open("rb") as handle:
            yield handle


class _Unpacked(io.RawIOBase):
    """The content of zstd frames. The package's own reader takes a file that is cut short for a whole one."""

    def __init__(self, raw: IO[bytes], package: Any) -> None:
        self._raw, self._package = raw, package
        self._frame: Any = None
        self._packed = self._plain = b""

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: Any) -> int:
        """The next bytes. Raises: EOFError where the file ends within a frame."""
        while not self._plain:
            self._packed = self._packed or self._raw.read(1 << 17)
            if not self._packed:
                if self._frame is not None:
                    raise EOFError("it ends within a frame")
                return 0
            self._frame = self._frame or self._package.decompressobj()
            self._plain = self._frame.decompress(self._packed)
            self._packed = self._frame.unused_data if self._frame.eof else b""
            self._frame = None if self._frame.eof else self._frame
        size = min(len(buffer), len(self._plain))
        buffer[:size], self._plain = self._plain[:size], self._plain[size:]
        return size


def _zstd() -> Any:
    try:
        return importlib.import_module("zstandard")
    except ImportError:
        raise ConfigError("reading .zst files needs the extra: pip install 'graftwood[corpus]'") from None


def _zstd_error() -> type[Exception]:
    """What a damaged .zst file raises; nothing of the kind where the extra is not installed."""
    module = sys.modules.get("zstandard")
    return module.ZstdError if module is not None else EOFError


def _spooled(spool: Path) -> Path:
    target = spool / "stdin.txt"
    if target.exists():
        return target  # a preparation that goes on has read it before
    with storage(f"keep stdin in {target}"):
        spool.mkdir(parents=True, exist_ok=True)
        work = target.with_name(".stdin.part")
        with work.open("wb") as handle:
            shutil.copyfileobj(sys.stdin.buffer, handle)
        work.replace(target)
    return target


def _suffix(path: Path) -> str:
    return path.suffix.lower()


def _hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)
