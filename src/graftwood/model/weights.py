"""Checkpoints in Hugging Face's layout: read by memory map, audited both ways, written whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from graftwood.errors import ModelError
from graftwood.model.architecture import Architecture, for_model_type
from graftwood.model.decoder import Decoder
from graftwood.model.rules import Rule
from graftwood.runtime import Place

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
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


def shard_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint. Raises: ModelError naming missing shards, or saying what to convert."""
    if (folder / INDEX).exists():
        try:
            names = sorted(set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
            missing = [name for name in names if not (folder / name).exists()]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ModelError(f"{folder / INDEX} is no index of shards; fetch it again") from None
        if missing:
            raise ModelError(f"{folder} lacks {len(missing)} of {len(names)} shards: {', '.join(missing[:5])}")
        return [folder / name for name in names]
    if (folder / SINGLE).exists():
        return [folder / SINGLE]
    raise ModelError(f"{folder} has neither {SINGLE} nor {INDEX}; only safetensors weights are read")


def file_tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the checkpoint by its file name, memory-mapped, nothing copied.

    Raises: ModelError for a truncated or damaged file.
    """
    with ExitStack() as stack:
        for path in shard_files(folder):
            try:
                handle = stack.enter_context(safe_open(path, framework="pt"))
            except (SafetensorError, OSError) as error:
                raise ModelError(f"{path} is damaged or cut short ({error}); fetch it again") from None
            for name in handle.keys():  # noqa: SIM118 - not a mapping
                yield name, handle.get_tensor(name)


def load_decoder(folder: Path, place: Place) -> Decoder:
    """A decoder with the folder's weights, every parameter frozen.

    On the CPU in the file's own dtype the weights stay memory-mapped (copy on write).
    Raises: ModelError listing every tensor that is missing, unexpected or of the wrong shape.
    """
    decoder = outline(folder)
    fill(decoder, file_tensors(folder), decoder.architecture.rules, place, str(folder))
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


def fill(
    decoder: Decoder, tensors: Iterator[tuple[str, Tensor]], rules: tuple[Rule, ...], place: Place, source: str
) -> None:
    """Assign file tensors to the decoder's parameters and account for every one of both.

    Raises: ModelError with all problems at once.
    """
    wanted = dict(decoder.named_parameters())
    problems: list[str] = []
    for name, tensor in tensors:
        if name.endswith(decoder.architecture.ignored):
            continue
        target, rule = _target(name, rules)
        if target == f"{decoder.architecture.names.head}.weight" and decoder.config.tied_head:
            continue
        if target not in wanted:
            problems.append(f"{name} is in the file, but the model has no place for it")
            continue
        if rule is not None and rule.transform is not None:
            tensor = rule.transform.forward(tensor, decoder.config)
        parameter = wanted.pop(target)
        if tensor.shape != parameter.shape:
            problems.append(f"{name} is {list(tensor.shape)}, the model needs {list(parameter.shape)}")
            continue
        _assign(decoder, target, tensor.to(place.device, place.dtype))
    problems += [f"{name} is missing from the file" for name in wanted]
    if problems:
        more = f"; and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise ModelError(f"{source} does not fit its config.json: " + "; ".join(problems[:20]) + more)
    decoder.compute_dtype = place.dtype


def to_files(decoder: Decoder, architecture: Architecture | None = None) -> dict[str, Tensor]:
    """The decoder's parameters under the names and values of its family's checkpoint files: the inverse of loading."""
    architecture = architecture or decoder.architecture
    files: dict[str, Tensor] = {}
    for name, parameter in decoder.named_parameters():
        if ".delta." in name or name.startswith(("prompt.", "prefix.")):
            continue
        tensor = parameter.detach()
        for rule in architecture.rules:
            target = rule.to_file(name)
            if target is not None:
                if rule.transform is not None:
                    tensor = rule.transform.inverse(tensor, decoder.config)
                name = target
                break
        files[name] = tensor.contiguous()
    return files


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


def fingerprint(folder: Path) -> str:
    """Hex SHA-256 over the configuration's sizes and every tensor's name, type, shape and bytes."""
    raw = read_config(folder)
    digest = hashlib.sha256(repr(for_model_type(raw.get("model_type")).read(raw)).encode())
    for name, tensor in sorted(file_tensors(folder)):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _target(name: str, rules: tuple[Rule, ...]) -> tuple[str, Rule | None]:
    for rule in rules:
        target = rule.to_parameter(name)
        if target is not None:
            return target, rule
    return name, None


def _assign(decoder: Decoder, path: str, tensor: Tensor) -> None:
    owner, _, leaf = path.rpartition(".")
    decoder.get_submodule(owner).register_parameter(leaf, nn.Parameter(tensor, requires_grad=False))
