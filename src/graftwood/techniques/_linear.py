"""What techniques have in common that change linears one by one: targets, files, merging."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, Self, TypeVar

import torch
from pydantic import AfterValidator, BeforeValidator, Field
from torch import Tensor, nn

from graftwood.errors import nearest
from graftwood.model.decoder import Decoder
from graftwood.model.layers import Linear
from graftwood.technique import Technique, copy_tensors
from graftwood.techniques._peft import PREFIX, options_from

ALL_LINEAR = "all-linear"
_PATTERN = re.compile(r"[()\[\]{}|^$*+?\\]")  # what tells a pattern from a name

M = TypeVar("M")


def listed(value: Any) -> Any:
    """A comma-separated string is a list of names, one with the signs of a regular expression is one pattern."""
    if not isinstance(value, str):
        return tuple(sorted(value)) if isinstance(value, set | frozenset) else value
    return (value,) if _PATTERN.search(value) else tuple(part.strip() for part in value.split(",") if part.strip())


def regular(patterns: Iterable[str]) -> None:
    """Raises: ValueError for what is meant as a regular expression and is none."""
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{pattern!r} is no regular expression: {error}") from None


def patterned(targets: tuple[str, ...]) -> tuple[str, ...]:
    """The targets. Raises: ValueError for a pattern that is no regular expression."""
    regular(target for target in targets if _PATTERN.search(target))
    return targets


Targets = Annotated[
    tuple[str, ...],
    Field(min_length=1, description="what is changed: names, comma-separated, one regular expression, or everything"),
    BeforeValidator(listed),
    AfterValidator(patterned),
]


def names(target: str, path: str) -> bool:
    """Whether a target means a path: whole, by its last parts, or as a pattern of all of it. Source: PEFT's rule."""
    if _PATTERN.search(target):
        return re.fullmatch(target, path) is not None
    return path == target or path.endswith("." + target)


def matched(targets: tuple[str, ...], among: Mapping[str, M], every: str) -> dict[str, M]:
    """What the targets name, in the order it has in the model; `every` names all of it."""
    if targets == (every,):
        return dict(among)
    return {path: part for path, part in among.items() if any(names(target, path) for target in targets)}


def unmatched(targets: tuple[str, ...], among: Mapping[str, object], every: str, what: str) -> list[str]:
    """One problem that lists the targets which name nothing, with their near matches; or none."""
    missing = [t for t in targets if targets != (every,) and not any(names(t, path) for path in among)]
    if not missing:
        return []
    leaves = sorted({path.rpartition(".")[2] for path in among})
    hints = "".join(nearest(target, leaves) for target in missing)
    known = f"{', '.join(leaves) or 'none'}; or {every}"
    return [f"no {what} is called {', '.join(map(repr, missing))}.{hints} There are: {known}."]


def leaves(chosen: Mapping[str, object], among: Mapping[str, object]) -> list[str]:
    """The shortest names by which PEFT finds exactly the chosen paths: last parts where they are unambiguous."""
    found = set()
    for path in chosen:
        leaf = path.rpartition(".")[2]
        found.add(leaf if all(other in chosen for other in among if names(leaf, other)) else path)
    return sorted(found)


class LinearTechnique(Technique, ABC):
    """A technique that puts a delta of its own on each targeted linear.

    `tensors` names the delta's tensors that go into the file, and how their names end there. `peft` pairs PEFT's fields
    with options; those of `peft_past` only mattered while training.
    """

    tensors: ClassVar[Mapping[str, str]]
    peft: ClassVar[Mapping[str, str]]
    peft_past: ClassVar[tuple[str, ...]] = ()

    targets: Targets = (ALL_LINEAR,)

    @abstractmethod
    def deltas(self, decoder: Decoder, generator: torch.Generator) -> dict[str, nn.Module]:
        """A delta for each targeted linear, by path."""

    def problems(self, decoder: Decoder) -> list[str]:
        return unmatched(self.targets, decoder.linears(), ALL_LINEAR, f"linear of {decoder.architecture.name}")

    def matches(self, decoder: Decoder) -> dict[str, Linear]:
        """The linears the targets name."""
        return matched(self.targets, decoder.linears(), ALL_LINEAR)

    def apply(self, decoder: Decoder, seed: int) -> None:
        self.check(decoder)
        decoder.requires_grad_(False)
        linears = decoder.linears()
        for path, delta in self.deltas(decoder, torch.Generator().manual_seed(seed)).items():
            linears[path].delta = delta.train(linears[path].training)

    def files(self, decoder: Decoder) -> dict[str, Tensor]:
        return {
            f"{PREFIX}{path}.{ending}": getattr(linear.delta, tensor).detach()
            for path, linear in decoder.linears().items()
            if linear.delta is not None
            for tensor, ending in self.tensors.items()
        }

    def load(self, decoder: Decoder, tensors: Mapping[str, Tensor]) -> None:
        copy_tensors(self.files(decoder), tensors, "the adapter")

    @torch.no_grad()
    def merge(self, decoder: Decoder) -> None:
        for linear in decoder.linears().values():
            delta: Any = linear.delta
            if delta is None:
                continue
            weight = delta.merged(linear).to(linear.weight.dtype)
            if linear.bias is not None and hasattr(delta, "merged_bias"):
                linear.bias = nn.Parameter(delta.merged_bias(linear.bias).to(linear.bias.dtype), requires_grad=False)
            linear.weight = nn.Parameter(weight, requires_grad=False)
            linear.delta = None

    def target_modules(self, decoder: Decoder) -> str | list[str]:
        """The targets as PEFT understands them."""
        if self.targets == (ALL_LINEAR,):
            return ALL_LINEAR
        if len(self.targets) == 1 and _PATTERN.search(self.targets[0]):
            return self.targets[0]
        return leaves(self.matches(decoder), decoder.linears())

    def describe(self, decoder: Decoder) -> dict[str, Any]:
        fields = {field: getattr(self, option) for field, option in self.peft.items() if field != "target_modules"}
        return fields | {"target_modules": self.target_modules(decoder), "modules_to_save": None}

    @classmethod
    def from_peft(cls, config: Mapping[str, Any]) -> Self:
        odd = [] if config.get("target_modules") else ["target_modules"]
        return cls.parse(options_from(cls.title, config, cls.peft, cls.peft_past, odd))
