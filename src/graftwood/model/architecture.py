"""What an architecture says of itself, and the registry that finds it from a file's own words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from graftwood.errors import ModelError, nearest
from graftwood.model.config import ModelConfig
from graftwood.model.rules import Rule
from graftwood.registry import Registry


@dataclass(frozen=True)
class Names:
    """Dotted paths of the parts around the blocks, as the family's Hugging Face checkpoints call them."""

    embedding: str
    blocks: str
    norm: str
    head: str
    positions: str | None = None

    def whole(self, name: str) -> str:
        """A file tensor's full name: files of a model without its head leave the first part out."""
        trunk = self.blocks.partition(".")[0]
        return name if name.partition(".")[0] in (trunk, self.head.partition(".")[0]) else f"{trunk}.{name}"


@dataclass(frozen=True)
class Architecture:
    """An entry of `model/architectures/`.

    `read` maps a Hugging Face `config.json` to sizes and refuses what the block does not compute; `write` is its
    inverse. `gguf_config` maps GGUF metadata (keys without the architecture's prefix) to such a `config.json`.
    `rules` and `gguf_rules` map file tensors to parameters; `unpacked` first turns quantised pairs of them into one.
    `bare` are the ends of paths of linears that are no modules in transformers, where only their parameters have names.
    """

    name: str
    model_types: tuple[str, ...]
    gguf: tuple[str, ...]
    names: Names
    read: Callable[[Mapping[str, Any]], ModelConfig]
    write: Callable[[ModelConfig], dict[str, Any]]
    block: Callable[[ModelConfig, int], nn.Module]
    norm: Callable[[ModelConfig], nn.Module]
    gguf_config: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None
    rules: tuple[Rule, ...] = ()
    gguf_rules: tuple[Rule, ...] = ()
    ignored: tuple[str, ...] = ()
    bare: tuple[str, ...] = ()
    unpacked: Callable[[Iterator[tuple[str, Tensor]]], Iterator[tuple[str, Tensor]]] | None = None


ARCHITECTURES: Registry[Architecture] = Registry(
    "graftwood.model.architectures",
    "architecture",
    lambda value: value if isinstance(value, Architecture) else None,
)


def for_model_type(model_type: object) -> Architecture:
    """The architecture that reads this `model_type` of a `config.json`. Raises: ModelError naming what is read."""
    return _find("model_type", model_type, {t: a for a in ARCHITECTURES.all().values() for t in a.model_types})


def for_gguf(name: object) -> Architecture:
    """The architecture that reads this `general.architecture` of a GGUF file. Raises: ModelError."""
    return _find("GGUF architecture", name, {t: a for a in ARCHITECTURES.all().values() for t in a.gguf})


def _find(kind: str, given: object, known: dict[str, Architecture]) -> Architecture:
    if not isinstance(given, str) or given not in known:
        near = nearest(str(given), known)
        raise ModelError(f"{kind} {given!r} is not one this version reads.{near} Readable: {', '.join(sorted(known))}.")
    return known[given]
