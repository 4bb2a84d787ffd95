"""LoRA on what is no module in transformers: PEFT's `target_parameters`, by which it reaches the experts of a mixture.

All experts of a parameter have one pair of tensors in PEFT's files: A has their A above each other, the columns of B
are the first of every expert, then the second of every expert. Where a module has several such parameters, PEFT wraps
it once for each, in their order, so that the last is the outermost.

Source: `ParamWrapper` of PEFT 0.21. Letters: E experts, R rank.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from torch import Tensor

from graftwood.model.decoder import Decoder
from graftwood.model.matrices import Matrix, matrices

Part = tuple[Tensor, Tensor, float]  # A [R, in], B [out, R], the scale of B A


def places(decoder: Decoder, touched: Collection[str]) -> dict[str, list[Matrix]]:
    """What PEFT's files hold as one, where one of the paths is in it: by the beginning of its tensors' names."""
    groups: dict[str, list[Matrix]] = {}
    for matrix in matrices(decoder).values():
        groups.setdefault(matrix.key, []).append(matrix)
    found: dict[str, list[Matrix]] = {}
    for group in reversed(groups.values()):
        if any(matrix.path in touched for matrix in group):
            parameter = group[0].parameter
            place = group[0].path if parameter is None else parameter.rpartition(".")[0]
            while place in found:
                place += ".base_layer"
            found[place] = group
    return dict(reversed(found.items()))


def joined(parts: Sequence[Part | None]) -> Part:
    """Updates of all experts as PEFT's pair, of the first one's scale; a smaller one, or none, is filled with zeros."""
    own = [part for part in parts if part is not None]
    (first, last, scale), rank = own[0], max(len(a) for a, _, _ in own)
    a, b = first.new_zeros(len(parts), rank, first.shape[1]), last.new_zeros(len(last), rank, len(parts))
    for expert, part in enumerate(parts):
        if part is not None:
            a[expert, : len(part[0])] = part[0]
            b[:, : len(part[0]), expert] = part[1] * (part[2] / scale)
    return a.flatten(0, 1), b.flatten(1), scale


def parted(a: Tensor, b: Tensor, parts: Sequence[Part | None]) -> list[tuple[Tensor, Tensor]]:
    """The inverse: A and B of every expert that has an update, for parts of these ranks and scales."""
    scale = next(part[2] for part in parts if part is not None)
    whole_a, whole_b = a.unflatten(0, (len(parts), -1)), b.unflatten(1, (-1, len(parts)))
    return [
        (whole_a[expert, : len(part[0])], whole_b[:, : len(part[0]), expert] * (scale / part[2]))
        for expert, part in enumerate(parts)
        if part is not None
    ]


def parameter_names(chosen: Collection[str], among: Iterable[str], blocks: str) -> list[str]:
    """The names for `target_parameters`: from the block on where all blocks have it, else whole."""

    def tail(name: str) -> str:
        return name.removeprefix(f"{blocks}.").partition(".")[2]

    apart = {tail(name) for name in among if name not in chosen}
    return sorted({name if tail(name) in apart else tail(name) for name in chosen})
