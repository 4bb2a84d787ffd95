"""What techniques have in common that change linears: targets, files, merging.

Targets and files are in the matrices of the family's files. Where one of them is several linears here, as GPT-2's
`c_attn` is, a target may name it: its linears then have in common what of a delta does not go by their rows, as if they
were one. Or it names one of the linears, whose delta in the file is that of the matrix with nothing for other rows.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping
from typing import Annotated, Any, ClassVar, Self, TypeVar

import torch
from pydantic import AfterValidator, BeforeValidator, Field
from torch import Tensor, nn

from graftwood.errors import nearest
from graftwood.model.decoder import Decoder
from graftwood.model.layers import Linear
from graftwood.model.matrices import Matrix, matrices
from graftwood.technique import Technique, check_tensors
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
    leaves = sorted({path.removesuffix(".weight").rpartition(".")[2] for path in among})
    hints = "".join(nearest(target, leaves) for target in missing)
    known = f"{', '.join(leaves) or 'none'}; or {every}"
    return [f"no {what} is called {', '.join(map(repr, missing))}.{hints} There are: {known}."]


def leaves(chosen: Collection[str], among: Iterable[str]) -> list[str]:
    """The shortest names by which PEFT finds exactly the chosen paths: last parts where they are unambiguous."""
    found = set()
    for path in chosen:
        leaf = path.rpartition(".")[2]
        found.add(leaf if all(other in chosen for other in among if names(leaf, other)) else path)
    return sorted(found)


def named(decoder: Decoder) -> dict[str, Matrix]:
    """All that a target may name: the matrices of the files, and each linear of those that are several.

    What has its name in transformers from a parameter goes by that, too.
    """
    whole = matrices(decoder)
    alone = {path: one for matrix in whole.values() for path, one in matrix.alone().items()}
    return whole | alone | {matrix.key: matrix for matrix in whole.values()}


def targeted(targets: tuple[str, ...], decoder: Decoder) -> dict[str, Matrix]:
    """What the targets name, in the model's order; what is named as a whole is not named again by its linears."""
    found: dict[str, Matrix] = {}
    for path, matrix in matrices(decoder).items():
        if matched(targets, {path: matrix, matrix.key: matrix}, ALL_LINEAR):
            found[path] = matrix
        else:
            found |= matched(targets, matrix.alone(), ALL_LINEAR)
    return found


class LinearDelta(nn.Module):
    """What stands on a linear. `by_row` names those of its tensors that go by the linear's outputs."""

    by_row: tuple[str, ...] = ()


class LinearTechnique(Technique, ABC):
    """A technique that puts a delta of its own on each targeted matrix.

    `tensors` names the delta's tensors that go into the file, and how their names end there. `peft` pairs PEFT's fields
    with options; those of `peft_past` only mattered while training, or follow from the base. `only_whole` says why it
    takes no single linear of a matrix that is several.
    """

    tensors: ClassVar[Mapping[str, str]]
    peft: ClassVar[Mapping[str, str]]
    peft_past: ClassVar[tuple[str, ...]] = ()
    only_whole: ClassVar[str | None] = None

    targets: Targets = (ALL_LINEAR,)

    @abstractmethod
    def deltas(self, decoder: Decoder, generator: torch.Generator) -> dict[str, LinearDelta]:
        """A delta for each linear of each targeted matrix, by the linear's path."""

    def still(self, linear: Linear, tensor: str) -> Tensor:
        """What a tensor that goes by rows is for a linear without a delta, in the file of one beside it."""
        raise AssertionError(f"{self.name} has no single linears, or {tensor} does not go by rows")

    def problems(self, decoder: Decoder) -> list[str]:
        found = unmatched(self.targets, named(decoder), ALL_LINEAR, f"linear of {decoder.architecture.name}")
        apart = [matrix for matrix, whole in self.stored(decoder) if not whole]
        if self.only_whole is not None and apart:
            leaf, *parts = (path.rpartition(".")[2] for path in (apart[0].path, *apart[0].linears))
            found.append(f"{self.name} takes {', '.join(parts)} as one, {leaf}, for {self.only_whole}; target {leaf}")
        return found

    def matches(self, decoder: Decoder) -> dict[str, Matrix]:
        """What the targets name."""
        return targeted(self.targets, decoder)

    def touches(self, decoder: Decoder) -> frozenset[str] | None:
        return frozenset(f"{path}.weight" for matrix in self.matches(decoder).values() for path in matrix.linears)

    def stored(self, decoder: Decoder) -> list[tuple[Matrix, bool]]:
        """The matrices of the files in which something is targeted, and whether it is the whole."""
        chosen = self.matches(decoder)
        return [
            (matrix, path in chosen)
            for path, matrix in matrices(decoder).items()
            if path in chosen or not chosen.keys().isdisjoint(matrix.linears)
        ]

    def apply(self, decoder: Decoder, seed: int) -> None:
        self.check(decoder)
        decoder.requires_grad_(False)
        linears = decoder.linears()
        for path, delta in self.deltas(decoder, torch.Generator().manual_seed(seed)).items():
            linears[path].delta = delta.train(linears[path].training)
        for matrix in self.matches(decoder).values():
            _share(matrix)

    def files(self, decoder: Decoder) -> dict[str, Tensor]:
        return {
            f"{PREFIX}{matrix.path}.{self.tensors[tensor]}": value.detach()
            for matrix, whole in self.stored(decoder)
            for tensor, value in self.gathered(matrix, whole).items()
        }

    def load(self, decoder: Decoder, tensors: Mapping[str, Tensor]) -> None:
        check_tensors(self.files(decoder), tensors, "the adapter")
        self.scatter(decoder, tensors)

    @torch.no_grad()
    def scatter(self, decoder: Decoder, tensors: Mapping[str, Tensor]) -> None:
        """Put a file's tensors, which fit, into the deltas."""
        for matrix, whole in self.stored(decoder):
            start = f"{PREFIX}{matrix.path}."
            self.spread(matrix, whole, {tensor: tensors[start + ending] for tensor, ending in self.tensors.items()})

    def gathered(self, matrix: Matrix, whole: bool) -> dict[str, Tensor]:
        """What a file holds of a matrix, by the names of the delta's tensors."""
        some: Any = next(delta for delta in _deltas(matrix) if delta is not None)
        return {t: self.joined(matrix, t) if t in some.by_row else getattr(some, t) for t in self.tensors}

    def joined(self, matrix: Matrix, tensor: str) -> Tensor:
        """A tensor that goes by rows, of all the matrix's rows."""
        linears = matrix.linears.values()
        return matrix.join([self.still(m, tensor) if m.delta is None else getattr(m.delta, tensor) for m in linears])

    def spread(self, matrix: Matrix, whole: bool, values: Mapping[str, Tensor]) -> None:
        """The inverse of `gathered`."""
        for number, delta in enumerate(_deltas(matrix)):
            for tensor, value in values.items() if delta is not None else ():
                getattr(delta, tensor).copy_(matrix.split(value)[number] if tensor in delta.by_row else value)

    @torch.no_grad()
    def fold(self, decoder: Decoder) -> None:
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
        stored = self.stored(decoder)
        # PEFT finds modules alone by `all-linear`, and by a pattern also those that are no linears, which it refuses.
        if self.targets == (ALL_LINEAR,) and all(whole and matrix.parameter is None for matrix, whole in stored):
            return ALL_LINEAR
        return leaves([matrix.path for matrix, _ in stored], matrices(decoder))

    def describe(self, decoder: Decoder) -> dict[str, Any]:
        fields = {field: getattr(self, option) for field, option in self.peft.items() if field != "target_modules"}
        columns = any(matrix.columns for matrix, _ in self.stored(decoder))
        return fields | {
            "target_modules": self.target_modules(decoder),
            "fan_in_fan_out": columns,
            "modules_to_save": None,
        }

    @classmethod
    def from_peft(cls, config: Mapping[str, Any]) -> Self:
        odd = [] if config.get("target_modules") else ["target_modules"]
        return cls.parse(options_from(cls.title, config, cls.peft, (*cls.peft_past, "fan_in_fan_out"), odd))


def _deltas(matrix: Matrix) -> list[Any]:
    return [linear.delta for linear in matrix.linears.values()]


def _share(matrix: Matrix) -> None:
    """Let the deltas of one matrix have in common all that does not go by rows."""
    first, *others = _deltas(matrix)
    for other in others:
        for name, parameter in list(first.named_parameters(recurse=False)):
            if name not in first.by_row:
                setattr(other, name, parameter)
