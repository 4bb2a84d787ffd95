"""Documents: where they are found, how they are cut, and that what is no text is said and skipped."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest

from graftwood.data.documents import Document, Skipped, Span, find_files, read_span, spans
from graftwood.errors import ConfigError, DataError


def rows(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def read(path: Path, separator: str | None = None) -> list[Document | Skipped]:
    return list(read_span(Span(str(path), 0, path.stat().st_size), separator))


def test_folders_globs_and_files_in_their_order(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z.txt", "a/y.md", ".git/config", "a/.hidden"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("text", encoding="utf-8")
    found = find_files([str(tmp_path / "b.txt"), str(tmp_path / "a"), str(tmp_path / "*.txt")], tmp_path / "spool")
    assert [str(path.relative_to(tmp_path)) for path in found] == ["b.txt", "a/y.md", "a/z.txt"]
    with pytest.raises(DataError, match=r"nothing\.txt: there is no such file"):
        find_files([str(tmp_path / "nothing.txt")], tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="there is no file in it"):
        find_files([str(tmp_path / "empty")], tmp_path)


def test_a_text_file_is_one_document_or_several(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("\ufeffone\ntwo\n\nthree\n\n\n\nfour", encoding="utf-8")
    assert read(path) == [Document("one\ntwo\n\nthree\n\n\n\nfour", 1)]
    assert read(path, "\n\n") == [Document("one\ntwo", 1), Document("three", 4), Document("four", 8)]


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_packed_files_are_read(ending: str, tmp_path: Path) -> None:
    plain = rows(tmp_path / "a.jsonl", ["eins", "zwei\nhalb"])
    packed = tmp_path / f"a.jsonl{ending}"
    if ending == ".gz":
        packed.write_bytes(gzip.compress(plain.read_bytes()))
    else:
        zstandard = pytest.importorskip("zstandard", reason="needs the extra `corpus`")
        packed.write_bytes(zstandard.ZstdCompressor().compress(plain.read_bytes()))
    assert read(packed) == read(plain) == [Document("eins", 1), Document("zwei\nhalb", 2)]
    packed.write_bytes(packed.read_bytes()[:-9])
    damaged = read(packed)
    assert isinstance(damaged[-1], Skipped)
    assert damaged[-1].why.startswith("cannot be read")


def test_zst_without_its_package_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "zstandard", None)
    (tmp_path / "a.txt.zst").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"graftwood\[corpus\]"):
        read(tmp_path / "a.txt.zst")


@pytest.mark.parametrize(
    ("content", "why"),
    [(b"\x89PNG\r\n\0\0", "is binary: it has a NUL byte"), (b"caf\xe9", "is no UTF-8: byte 4 is 0xe9")],
)
def test_what_is_no_text_is_skipped(content: bytes, why: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    assert read(tmp_path / "a.txt") == [Skipped(str(tmp_path / "a.txt"), why)]


def test_bad_rows_are_skipped_and_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "good"}\n{"text": 3}\nnonsense\n\n{"text": " "}\n{"text": "\\ud800"}\n', encoding="utf-8")
    good, *bad = read(path)
    assert good == Document("good", 1)
    assert [row.place for row in bad if isinstance(row, Skipped)] == [f"{path}:{line}" for line in (2, 3, 5, 6)]


@pytest.mark.parametrize("size", [1, 7, 50, 64, 10_000])
def test_parts_of_a_file_of_rows_hold_every_row_once(size: int, tmp_path: Path) -> None:
    path = rows(tmp_path / "a.jsonl", [f"row {number} " + "x" * (number % 9) for number in range(40)])
    whole = read(path)
    pieces = spans([path], size)
    parts = [found for piece in pieces for span in piece for found in read_span(span, None)]
    assert parts == whole
    assert size > 5000 or len(pieces) > 1


def test_small_files_go_together_and_text_files_stay_whole(tmp_path: Path) -> None:
    for name, length in (("a.txt", 10), ("b.txt", 10), ("c.txt", 90), ("d.txt", 5)):
        (tmp_path / name).write_text("x" * length, encoding="utf-8")
    pieces = spans(sorted(tmp_path.iterdir()), 25)
    assert [[Path(span.file).name for span in piece] for piece in pieces] == [["a.txt", "b.txt"], ["c.txt"], ["d.txt"]]


def test_lines_are_counted_once_for_all_spans_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": f"row {number}"}) + "\n" for number in range(50)), encoding="utf-8")
    last = spans([path], 100)[-1][-1]
    (first, *_) = read_span(last, None)
    (moved, *_) = read_span(replace(last, before=last.before + 1000), None)
    assert isinstance(first, Document)
    assert isinstance(moved, Document)
    assert first.text == f"row {first.line - 1}"
    assert moved.line == first.line + 1000


def test_what_was_written_from_the_text_is_no_text(tmp_path: Path) -> None:
    for name in ("notes/a.txt", "notes/run/corpus/b.txt", "notes/run/c.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("text", encoding="utf-8")
    notes, run = tmp_path / "notes", tmp_path / "notes" / "run"
    assert find_files([str(notes)], tmp_path, run) == [notes / "a.txt"]
    assert len(find_files([str(notes)], tmp_path, notes)) == 3  # all a person gave, where the run is written into it
    assert find_files([str(run / "c.txt")], tmp_path, run) == [run / "c.txt"]


def test_names_in_capitals_say_the_same(tmp_path: Path) -> None:
    path = rows(tmp_path / "ROWS.JSONL", ["one", "two"])
    assert [found.text for found in read(path) if isinstance(found, Document)] == ["one", "two"]


def test_a_file_that_cannot_be_opened_is_skipped_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [tmp_path / "a.txt", rows(tmp_path / "b.jsonl", ["one", "two", "three"]), tmp_path / "c.txt"]
    for file in (files[0], files[2]):
        file.write_text("text", encoding="utf-8")
    opened = Path.open

    def shut(path: Path, *given: str) -> object:
        if path.name in ("b.jsonl", "c.txt"):
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *given)

    monkeypatch.setattr(Path, "open", shut)
    found = [read for piece in spans(files, 10) for span in piece for read in read_span(span, None)]
    assert [one.place if isinstance(one, Skipped) else one.text for one in found] == ["text", *map(str, files[1:])]
