"""Matrices as a family's files hold them: a linear of the decoder, or several whose rows lie in one tensor.

Published adapters are on these, so this is where adapter folders and a decoder's linears meet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from graftwood.model.config import ModelConfig
from graftwood.model.decoder import Decoder
from graftwood.model.layers import Linear
from graftwood.model.rules import SAME, Transform, rule_of

_WEIGHT = ".weight"


@dataclass(frozen=True)
class Matrix:
    """A matrix by its path in the files, and the linears that hold its rows, by their own paths.

    `columns` is true where the files store it as [in, out]. `parameter` is the name of what holds it in transformers
    where no module does: of all experts of a layer, whose matrices lie in one tensor, the same.
    """

    path: str
    linears: Mapping[str, Linear]
    config: ModelConfig
    rows: Transform = SAME
    columns: bool = False
    parameter: str | None = None

    @property
    def key(self) -> str:
        """What it is called in transformers."""
        return self.parameter or self.path

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs of all its linears together, and inputs."""
        shapes = [linear.weight.shape for linear in self.linears.values()]
        return sum(outputs for outputs, _ in shapes), shapes[0][1]

    def weight(self) -> Tensor:
        """The whole, [out, in]."""
        return self.join([linear.weight for linear in self.linears.values()])

    def split(self, rows: Tensor) -> Sequence[Tensor]:
        """What each linear has of a tensor that goes by the matrix's outputs."""
        return self.rows.forward(rows, self.config)

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """The inverse of `split`."""
        return self.rows.inverse(parts, self.config)

    def numbers(self) -> Sequence[Tensor]:
        """Which of the matrix's rows each linear has."""
        device = next(iter(self.linears.values())).weight.device
        return self.split(torch.arange(self.shape[0], device=device))

    def alone(self) -> dict[str, Matrix]:
        """Each of several linears as a matrix of its own."""
        several = self.linears if len(self.linears) > 1 else {}
        return {path: Matrix(path, {path: linear}, self.config) for path, linear in several.items()}


def matrices(decoder: Decoder) -> dict[str, Matrix]:
    """The matrices of the blocks by path, in the model's order: together they are `decoder.linears()`."""
    linears, config = decoder.linears(), decoder.config
    found: dict[str, Matrix] = {}
    seen: set[str] = set()
    for path, linear in linears.items():
        if path in seen:
            continue
        rule, layer = rule_of(path + _WEIGHT, decoder.architecture.rules) or (None, "")
        if rule is None or rule.transform is None or not (rule.file.endswith(_WEIGHT) or rule.stacks):
            bare = path.endswith(decoder.architecture.bare)
            found[path] = Matrix(path, {path: linear}, config, parameter=path + _WEIGHT if bare else None)
            continue
        whole = rule.file.replace("{n}", layer).removesuffix(_WEIGHT)
        members = [name.removesuffix(_WEIGHT) for name in rule.members(layer, config)]
        seen.update(members)
        rows = rule.transform.turned or rule.transform
        if rule.stacks:
            parent, _, leaf = whole.rpartition(".")
            for expert in range(config.experts):
                own, one = members[expert :: config.experts], f"{parent}.{expert}.{leaf}"
                found[one] = Matrix(one, {name: linears[name] for name in own}, config, rows, parameter=whole)
            continue
        found[whole] = Matrix(
            whole, {name: linears[name] for name in members}, config, rows, rule.transform.turned is not None
        )
    return found
