"""What is written is whole or absent, whatever happens while it is written."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from graftwood import files
from graftwood.base import open_base
from graftwood.errors import ConfigError, StorageError
from graftwood.files import (
    atomic_folder,
    atomic_write,
    cache_home,
    claimed,
    folder_bytes,
    sha256_file,
    sha256_text,
    storage,
)
from graftwood.runtime import place


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fill(target: Path, text: str) -> None:
    with atomic_folder(target) as work:
        (work / "sub").mkdir()
        (work / "sub" / "a").write_text(text)


def fill_until(target: Path, error: type[BaseException]) -> None:
    with atomic_folder(target) as work:
        (work / "a").write_text("half")
        raise error


def test_a_folder_appears_whole_and_alone(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "target"
    with atomic_folder(target) as work:
        (work / "a").write_text("1")
        assert not target.exists()
        assert work.parent == target.parent, "a rename between file systems is no rename"
    assert (target / "a").read_text() == "1"
    assert names(target.parent) == ["target"]


def test_a_folder_replaces_the_one_before_it_entirely(tmp_path: Path) -> None:
    target = tmp_path / "target"
    fill(target, "old")
    (target / "extra").write_text("x")
    fill(target, "new")
    assert names(target) == ["sub"]
    assert (target / "sub" / "a").read_text() == "new"
    assert names(tmp_path) == ["target"]


def test_an_empty_folder_is_filled_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it must be where it is a mount point, or the working folder."""
    (tmp_path / "out").mkdir()
    (tmp_path / "link").symlink_to("out")
    monkeypatch.chdir(tmp_path / "out")
    number = (tmp_path / "out").stat().st_ino
    with pytest.raises(KeyboardInterrupt):
        fill_until(Path("."), KeyboardInterrupt)
    assert names(tmp_path / "out") == []
    fill(Path("."), "new")
    assert (Path("sub") / "a").read_text() == "new"
    assert (tmp_path / "out").stat().st_ino == number
    fill(tmp_path / "link", "newer")
    assert (tmp_path / "out" / "sub" / "a").read_text() == "newer"
    assert (names(tmp_path / "out"), names(tmp_path)) == (["sub"], ["link", "out"])


def test_an_empty_folder_that_cannot_be_filled_stays_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = os.replace

    def second(source: Path, to: Path) -> None:
        if to.name == "b":
            raise OSError(28, "No space left on device")
        rename(source, to)

    def both() -> None:
        with atomic_folder(tmp_path) as work:
            (work / "a").mkdir()
            (work / "b").touch()

    monkeypatch.setattr(files.os, "replace", second)
    with pytest.raises(OSError, match="No space left"):
        both()
    assert names(tmp_path) == []


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_failure_inside_leaves_what_was(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "target"
    for expected in ([], ["target"]):
        with pytest.raises(error):
            fill_until(target, error)
        assert names(tmp_path) == expected
        fill(target, "old")
    assert (target / "sub" / "a").read_text() == "old"


def test_a_failed_rename_puts_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "target"
    fill(target, "old")
    rename = os.replace

    def refuse(source: Path, to: Path) -> None:
        if source.suffix == ".part":
            raise OSError("no")
        rename(source, to)

    monkeypatch.setattr(files.os, "replace", refuse)
    with pytest.raises(OSError, match="no"):
        fill(target, "new")
    assert (target / "sub" / "a").read_text() == "old"
    assert names(tmp_path) == ["target"]


KILLED = """
import os, signal, sys
from pathlib import Path
from graftwood import files
from graftwood.base import open_base
moments = 0
rename = os.replace
def replace(source, to):
    global moments
    if moments == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    moments += 1
    rename(source, to)
os.replace = replace
with files.atomic_folder(Path(sys.argv[1])) as work:
    (work / "a").write_text("new")
"""


@pytest.mark.parametrize("moment", [0, 1])
def test_a_kill_between_the_renames_loses_neither(tmp_path: Path, moment: int) -> None:
    target = tmp_path / "target"
    fill(target, "old")
    done = subprocess.run([sys.executable, "-c", KILLED, str(target), str(moment)], check=False)
    assert done.returncode == -signal.SIGKILL
    (new,) = tmp_path.glob(".target.*.part")
    assert (new / "a").read_text() == "new"
    (old,) = [target] if moment == 0 else tmp_path.glob(".target.*.old")
    assert (old / "sub" / "a").read_text() == "old"
    fill(target, "next")
    assert (target / "sub" / "a").read_text() == "next", "what a kill leaves is in nobody's way"


def test_leftovers_are_hidden_from_a_listing(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "run-1"):
        assert list(tmp_path.glob("run-*")) == []


def test_modes_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with atomic_folder(tmp_path / "folder") as work:
            (work / "private").touch(mode=0o600)
        atomic_write(tmp_path / "file", "x")
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("folder", "folder/private", "file")]
    assert [oct(mode) for mode in modes] == ["0o750", "0o640", "0o640"]


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "deep" / "a"
    atomic_write(target, "é")
    assert target.read_bytes() == "é".encode()
    atomic_write(target, b"\x00")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(StorageError, match="cannot save it: No space left on device"):
        with storage("save it"):
            atomic_write(target, "new")
    assert target.read_bytes() == b"\x00"
    assert names(target.parent) == ["a"]


def test_json_is_strict_and_readable(tmp_path: Path) -> None:
    files.write_json(tmp_path / "a.json", {"é": [1, None]})
    assert "é" in (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"é": [1, None]}
    with pytest.raises(ValueError, match="Out of range"):
        files.write_json(tmp_path / "a.json", float("nan"))
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"é": [1, None]}


def test_storage_names_the_file_and_lets_bugs_through(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"cannot read it: No such file or directory \(.*nothing\)"):
        with storage("read it"):
            (tmp_path / "nothing").read_bytes()
    with pytest.raises(KeyError):
        with storage("read it"):
            raise KeyError("a bug")


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAFTWOOD_HOME", "~/here")
    assert cache_home() == Path.home() / "here"
    monkeypatch.delenv("GRAFTWOOD_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_home() == Path("/x/graftwood")
    monkeypatch.setenv("GRAFTWOOD_HOME", "~nosuch/xx")
    with pytest.raises(ConfigError, match="~nosuch/xx is in the home of nobody; set GRAFTWOOD_HOME"):
        cache_home()
    monkeypatch.delenv("GRAFTWOOD_HOME")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_home() == Path.home() / ".cache" / "graftwood"


def test_digests_and_sizes(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a").write_bytes(b"abc")
    (tmp_path / "b").write_bytes(b"12345")
    assert sha256_file(tmp_path / "sub" / "a").startswith("ba7816bf")
    assert folder_bytes(tmp_path) == 8
    assert len({sha256_text(*parts) for parts in (("ab", "c"), ("a", "bc"), ("abc",), ("abc", ""))}) == 4


def test_a_fingerprint_is_noted_whole_or_not_at_all(tiny_hf_folder: Path, home: Path) -> None:
    true = open_base(str(tiny_hf_folder), place("cpu")).fingerprint
    (note,) = (home / "fingerprints").iterdir()
    assert note.read_text(encoding="utf-8") == true
    for left in ("", true[:40]):
        note.write_text(left, encoding="utf-8")
        assert open_base(str(tiny_hf_folder), place("cpu")).fingerprint == true
        assert note.read_text(encoding="utf-8") == true


HOLDER = """
import sys, time
from pathlib import Path
from graftwood.files import claimed
with claimed(Path(sys.argv[1]), print):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_claim_ends_with_its_process_however_that_ends(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match=f"process {holder.pid} on "), claimed(tmp_path, print):
            pass
        holder.kill()
    told: list[str] = []
    with claimed(tmp_path, told.append):
        assert names(tmp_path) == [".lock"]
    assert (names(tmp_path), told) == ([], [])


def test_where_files_cannot_be_locked_that_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    told: list[str] = []
    with claimed(tmp_path, told.append):
        pass
    assert told == [
        f"warning: {tmp_path} cannot be locked ([Errno 37] No locks available); see that no other run works in it"
    ]
