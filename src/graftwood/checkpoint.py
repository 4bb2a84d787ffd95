"""What training leaves on disk: adapter folders in PEFT's format, whole models in Hugging Face's, resumable steps.

Every folder appears by one rename after all of it is written and synced: a kill or a full disk in the middle leaves
the folder before it untouched.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from graftwood.base import Base
from graftwood.data.tokenizers import bpe
from graftwood.errors import ConfigError, GraftError, ModelError, nearest
from graftwood.files import atomic_folder, storage, write_json
from graftwood.hub import on_hub
from graftwood.model.tensor_files import unpickled
from graftwood.model.weights import save_tensors, to_files, write_tensors
from graftwood.technique import TECHNIQUES, Technique

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
NOTES = "graftwood.json"  # beside them: of which base the adapter is, and where that is found
CARD = "README.md"
HEAD, PICKLED_HEAD = "model_head.safetensors", "pytorch_model_head.bin"


def save_adapter(base: Base, technique: Technique, folder: Path) -> None:
    """Write what the technique trained as an adapter folder, PEFT's where PEFT has it, with its base's fingerprint."""
    config = {
        "peft_type": technique.peft_type,
        "task_type": "CAUSAL_LM",
        # A repository's id is a name everywhere; a folder of the cache is one on this machine, until it is cleaned.
        "base_model_name_or_path": base.source if on_hub(base.source) else str(base.folder),
        "inference_mode": True,
        "peft_version": "0.21.0",
    }
    notes = {
        "base": base.name,
        "base_source": base.source,
        "base_fingerprint": base.fingerprint,
        "technique": technique.name,
    }
    with storage(f"write {folder}"), atomic_folder(folder) as work:
        write_tensors(technique.files(base.decoder), work / technique.weights_file)
        write_json(work / ADAPTER_CONFIG, config | technique.describe(base.decoder))
        write_json(work / NOTES, notes)
        (work / CARD).write_text(_card(base, technique), encoding="utf-8")


def _card(base: Base, technique: Technique) -> str:
    """What the hub and people read of an adapter folder."""
    about = [f"base_model: {base.source}"] if on_hub(base.source) else []
    about += [f"library_name: {technique.opened_by}"] if technique.opened_by else []
    front = "\n".join(("---", *about, f"tags: [{technique.name}]", "---"))
    loaded = f"`graft generate --model {base.name} --adapter FOLDER`"
    return f"""{front}
# {technique.title}: an adapter of {base.name}

Made by Graftwood; fingerprint of the base {base.fingerprint[:12]}. Try it with {loaded}.
"""


def load_adapter(base: Base, folder: Path) -> Technique:
    """Put an adapter folder on a base, ready to be used: its own parameters stay as they are, its dropout is off.

    Raises: ConfigError for a type that is not read, or an adapter that was trained on another base.
    """
    technique = read_technique(folder)
    notes = read_notes(folder)
    recorded = notes.get("base_fingerprint", base.fingerprint)
    if recorded != base.fingerprint:
        raise ConfigError(
            f"{folder} was trained on {notes.get('base')} ({recorded[:12]}), not on {base.name} "
            f"({base.fingerprint[:12]}); load the base it was trained on"
        )
    _check_head(base, folder)
    safe, pickled = folder / technique.weights_file, folder / technique.pickled_file
    tensors = unpickled(pickled) if pickled.exists() and not safe.exists() else load_tensors(safe)
    try:
        technique.apply(base.decoder, seed=0)
        technique.load(base.decoder, tensors)
    except GraftError as error:
        raise ConfigError(f"{folder}: {error}") from None
    base.decoder.requires_grad_(False).eval()
    return technique


def read_notes(folder: Path) -> dict[str, Any]:
    """What an adapter folder of ours says of its base; nothing of another's."""
    return read_object(folder / NOTES) if (folder / NOTES).exists() else {}


def _check_head(base: Base, folder: Path) -> None:
    """AdapterHub lays a copy of the model's head beside an adapter. Raises: ConfigError where it is not the base's."""
    for name, read in ((HEAD, load_tensors), (PICKLED_HEAD, unpickled)):
        if (folder / name).exists():
            own = base.decoder.head_weight()
            if not all(
                head.shape == own.shape and torch.equal(head.to(own), own) for head in read(folder / name).values()
            ):
                raise ConfigError(
                    f"{folder / name} is a head of its own, which is not read; save the adapter without one"
                )


def read_technique(folder: Path) -> Technique:
    """What an adapter folder was trained by. Raises: ModelError for no such folder, ConfigError for one not read."""
    if not (folder / ADAPTER_CONFIG).exists():
        raise ModelError(f"{folder} is no adapter folder: one has {ADAPTER_CONFIG} and {ADAPTER_WEIGHTS}")
    config = read_object(folder / ADAPTER_CONFIG)
    kinds = TECHNIQUES.all().values()
    found = [kind for kind in kinds if kind.opens(config)]
    if not found:
        readable = sorted({kind.peft_type for kind in kinds if kind.peft_type})
        given = config.get("peft_type")
        near = nearest(str(given), readable)
        raise ConfigError(f"{folder}: peft_type {given!r} is not read.{near} Readable: {', '.join(readable)}.")
    assert len(found) == 1, f"{folder} is of {len(found)} techniques"
    try:
        return found[0].from_peft(config)
    except GraftError as error:
        raise ConfigError(f"{folder / ADAPTER_CONFIG}: {error}") from None


def save_model(base: Base, folder: Path) -> None:
    """Write the decoder as a Hugging Face folder with the base's tokenizer, template and generation settings.

    Raises: ModelError when the written folder's end token or chat template is not the base's.
    """
    with storage(f"write {folder}"), atomic_folder(folder) as work:
        decoder = base.decoder
        source = json.loads((base.folder / "config.json").read_text(encoding="utf-8"))
        source.pop("quantization_config", None)  # what is written is not quantised
        dtype = str(decoder.embedding.weight.dtype).removeprefix("torch.")
        write_json(work / "config.json", source | decoder.architecture.write(decoder.config) | {"dtype": dtype})
        for name in bpe.FILES:
            if (base.folder / name).exists():
                shutil.copyfile(base.folder / name, work / name)
        _end(base, source, work / "generation_config.json")
        _check_handover(base, work)
        save_tensors(to_files(decoder), work)


def _end(base: Base, config: dict[str, Any], path: Path) -> None:
    """Let others stop at every end token: they ask the generation settings alone, not the tokenizer."""
    ids = ("bos_token_id", "eos_token_id", "pad_token_id")
    told = read_object(path) if path.exists() else {key: config[key] for key in ids if config.get(key) is not None}
    given = told.get("eos_token_id")
    if set(base.tokenizer.eos) - set(given if isinstance(given, list) else [given]):
        write_json(path, told | {"eos_token_id": list(base.tokenizer.eos)})


def _check_handover(base: Base, work: Path) -> None:
    """The end token and the chat template must survive the way out: a model that lost them never stops."""
    from graftwood.data.templates import from_folder as read_template

    tokenizer = bpe.from_folder(work)
    if tokenizer.eos != base.tokenizer.eos:
        raise ModelError(f"the exported end tokens {tokenizer.eos} are not the base's {base.tokenizer.eos}")
    if read_template(work, tokenizer).source != base.template.source:
        raise ModelError("the exported chat template is not the base's")


@dataclass(frozen=True)
class Saved:
    """A resumable step: trained tensors, optimiser tensors, and everything else as JSON."""

    trained: dict[str, Tensor]
    optimiser: dict[str, Tensor]
    state: dict[str, Any]


def save_step(folder: Path, saved: Saved) -> None:
    """Write a step folder whole or not at all."""
    with storage(f"save the checkpoint {folder}"), atomic_folder(folder) as work:
        write_tensors(saved.trained, work / "trained.safetensors")
        write_tensors(saved.optimiser, work / "optimiser.safetensors")
        write_json(work / "state.json", saved.state)


def load_step(folder: Path) -> Saved:
    """Read a step folder. Raises: ModelError when it is damaged."""
    try:
        return Saved(
            load_tensors(folder / "trained.safetensors"),
            load_tensors(folder / "optimiser.safetensors"),
            read_object(folder / "state.json"),
        )
    except ModelError as error:
        raise ModelError(f"{error}; delete {folder} to go on from the checkpoint before it") from None


def step_folders(folder: Path) -> list[Path]:
    """Finished step folders, oldest first; names have six digits up to the millionth step, and more from then on."""
    found = (path for path in folder.glob("step-*") if _step(path).isdigit() and path.is_dir())
    return sorted(found, key=lambda path: int(_step(path)))


def _step(folder: Path) -> str:
    return folder.name.removeprefix("step-")


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of one safetensors file. Raises: ModelError for a missing or damaged file."""
    try:
        return load_file(path)
    except FileNotFoundError:
        raise ModelError(f"there is no {path}") from None
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} is damaged or cut short ({error})") from None


def read_object(path: Path) -> dict[str, Any]:
    """The object of a JSON file. Raises: ModelError for one that is missing, damaged or something else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"there is no {path}") from None
    except ValueError as error:
        raise ModelError(f"{path} is not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise ModelError(f"{path} holds {type(value).__name__}, not an object")
    return value
