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

    `columns` is true where the files store it as [in, out].
    """

    path: str
    linears: Mapping[str, Linear]
    config: ModelConfig
    rows: Transform = SAME
    columns: bool = False

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
    for path, linear in linears.items():
        rule, layer = rule_of(path + _WEIGHT, decoder.architecture.rules) or (None, "")
        if rule is None or rule.transform is None or not rule.file.endswith(_WEIGHT):
            found[path] = Matrix(path, {path: linear}, config)
            continue
        whole = rule.file.replace("{n}", layer).removesuffix(_WEIGHT)
        members = (name.removesuffix(_WEIGHT) for name in rule.members(layer, config))
        rows = rule.transform.turned or rule.transform
        found[whole] = Matrix(
            whole, {name: linears[name] for name in members}, config, rows, rule.transform.turned is not None
        )
    return found
