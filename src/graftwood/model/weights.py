"""Checkpoints in Hugging Face's layout: read tensor by tensor, audited both ways, written whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from graftwood.errors import ConfigError, ModelError
from graftwood.model.architecture import for_model_type
from graftwood.model.decoder import Decoder
from graftwood.model.rules import to_files as _to_files
from graftwood.model.rules import to_parameters
from graftwood.model.tensor_files import INDEX, SINGLE, file_tensors
from graftwood.runtime import Place

SHARD_BYTES = 5_000_000_000


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's `config.json`. Raises: ModelError when it is missing or not JSON."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{folder} has no config.json, so it is not a model in Hugging Face's layout") from None
    except ValueError as error:
        raise ModelError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(config, dict):
        raise ModelError(f"{path} holds {type(config).__name__}, not an object")
    return config


def load_decoder(folder: Path, place: Place) -> Decoder:
    """A decoder with the folder's weights, every parameter frozen.

    On the CPU in the file's own dtype the weights stay memory-mapped (copy on write).
    Raises: ModelError listing every tensor that is missing, unexpected or of the wrong shape.
    """
    decoder = outline(folder)
    tensors, unpacked = file_tensors(folder), decoder.architecture.unpacked
    fill(decoder, tensors if unpacked is None else unpacked(tensors), place, str(folder))
    return decoder


def outline(folder: Path) -> Decoder:
    """The decoder of the folder's `config.json`, its parameters without values.

    Raises: ModelError for a configuration that is not read.
    """
    raw = read_config(folder)
    architecture = for_model_type(raw.get("model_type"))
    try:
        config = architecture.read(raw)
    except KeyError as error:
        raise ModelError(f"{folder / 'config.json'} lacks {error.args[0]!r}, which {architecture.name} needs") from None
    except (ModelError, TypeError, ValueError, ArithmeticError) as error:
        raise ModelError(f"{folder / 'config.json'} does not describe a {architecture.name} model: {error}") from None
    with torch.device("meta"):
        return Decoder(architecture, config)


def fill(decoder: Decoder, tensors: Iterator[tuple[str, Tensor]], place: Place, source: str) -> None:
    """Assign file tensors to the decoder's parameters and account for every one of both.

    Raises: ModelError with all problems at once.
    """
    wanted = dict(decoder.named_parameters())
    problems: list[str] = []
    head: Tensor | None = None
    for file, tensor in tensors:
        if file.endswith(decoder.architecture.ignored):
            continue
        for name, value in _parameters(decoder, file, tensor, problems).items():
            if decoder.config.tied_head and name == f"{decoder.architecture.names.head}.weight":
                head = value
            elif name not in wanted:
                problems.append(f"{file} is in the file, but the model has no place for it")
            elif value.shape != wanted[name].shape:
                problems.append(f"{file} is {list(value.shape)}, the model needs {list(wanted.pop(name).shape)}")
            else:
                del wanted[name]
                _assign(decoder, name, value.to(place.device, place.dtype))
    problems += [f"{name} is missing from the file" for name in wanted]
    if not problems and head is not None and not _same(head, decoder.head_weight().detach()):
        problems.append("its head is not its embedding, though tie_word_embeddings is on; turn that off in config.json")
    if problems:
        more = f"; and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise ModelError(f"{source} does not fit its config.json: " + "; ".join(problems[:20]) + more)
    decoder.compute_dtype = place.dtype


def _same(file: Tensor, weight: Tensor) -> bool:
    """Whether the file's tensor is the weight, piece by piece, so that no second one is made."""
    pieces = zip(file.split(4096), weight.split(4096), strict=False)
    return file.shape == weight.shape and all(torch.equal(piece.to(own), own) for piece, own in pieces)


def _parameters(decoder: Decoder, file: str, tensor: Tensor, problems: list[str]) -> dict[str, Tensor]:
    """What a file tensor holds, by parameter; a shape that cannot be taken apart is a problem of its own."""
    name = decoder.architecture.names.whole(file)
    try:
        found = to_parameters(name, tensor, decoder.architecture.rules, decoder.config)
    except (RuntimeError, ValueError, IndexError):
        problems.append(f"{file} is {list(tensor.shape)}, which the model's sizes do not divide")
        return {}
    return {name: tensor} if found is None else found


def to_files(decoder: Decoder) -> dict[str, Tensor]:
    """The decoder's parameters under the names and values of its family's checkpoint files: the inverse of loading.

    Raises: ConfigError where the blocks' weights are quantised, which such files do not hold.
    """
    if decoder.base_precision != "full":
        raise ConfigError(
            f"the base is held in {decoder.base_precision}, which no whole model is written from; load it anew"
        )
    parameters = {
        name: parameter.detach()
        for name, parameter in decoder.named_parameters()
        if ".delta." not in name and not name.startswith(("prompt.", "prefix."))
    }
    files = _to_files(parameters, decoder.architecture.rules, decoder.config)
    return {name: tensor.contiguous() for name, tensor in files.items()}


def from_files(decoder: Decoder, files: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The decoder's parameters that `to_files` gave as these tensors. Raises: ModelError for shapes that do not fit."""
    problems: list[str] = []
    parameters: dict[str, Tensor] = {}
    for file, tensor in files.items():
        parameters |= _parameters(decoder, file, tensor, problems)
    if problems:
        raise ModelError("; ".join(problems))
    return parameters


def save_tensors(tensors: Mapping[str, Tensor], folder: Path, shard_bytes: int = SHARD_BYTES) -> None:
    """Write `model.safetensors`, or numbered shards and their index when the total is over `shard_bytes`."""
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    if len(shards) == 1:
        write_tensors(shards[0], folder / SINGLE)
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_tensors(shard, folder / file)
        weight_map |= dict.fromkeys(shard, file)
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=2), encoding="utf-8")


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write one safetensors file. Raises: OSError, as any other write does, when the disk is full or refuses."""
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})
    except SafetensorError as error:  # the library wraps the operating system's own
        raise OSError(errno.EIO, str(error), str(path)) from error


FINGERPRINT = 2  # counts up when what it is made of changes; caches name it, adapters and records must be made again


def fingerprint(folder: Path) -> str:
    """Hex SHA-256 over the configuration's sizes and options and every tensor's name, type, shape and bytes."""
    raw = read_config(folder)
    digest = hashlib.sha256(repr(for_model_type(raw.get("model_type")).read(raw).options()).encode())
    for name, tensor in sorted(file_tensors(folder)):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _assign(decoder: Decoder, path: str, tensor: Tensor) -> None:
    owner, _, leaf = path.rpartition(".")
    decoder.get_submodule(owner).register_parameter(leaf, nn.Parameter(tensor, requires_grad=False))
