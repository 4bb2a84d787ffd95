"""Weight names as data: how a file's tensors become parameters, and back.

A rule pairs a file's name pattern with a parameter's; `{n}` stands for a layer number. A transform changes values
(transposes, orders of heads) and has an inverse. Names that no rule mentions are the same on both sides.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from torch import Tensor

from graftwood.model.config import ModelConfig

Change = Callable[[Tensor, ModelConfig], Tensor]


@dataclass(frozen=True)
class Transform:
    """A change of values and the change that undoes it."""

    forward: Change
    inverse: Change


@dataclass(frozen=True)
class Rule:
    """`file` is the name in the checkpoint, `parameter` the name in the model."""

    file: str
    parameter: str
    transform: Transform | None = None

    def to_parameter(self, name: str) -> str | None:
        """The parameter's name for a file tensor, or None if this rule is not about it."""
        return _rename(self.file, self.parameter, name)

    def to_file(self, name: str) -> str | None:
        """The file tensor's name for a parameter, or None if this rule is not about it."""
        return _rename(self.parameter, self.file, name)


@cache
def _pattern(template: str) -> re.Pattern[str]:
    return re.compile(re.escape(template).replace(r"\{n\}", r"(?P<n>\d+)"))


def _rename(source: str, target: str, name: str) -> str | None:
    match = _pattern(source).fullmatch(name)
    if match is None:
        return None
    return target.replace("{n}", match.groupdict().get("n") or "")


def _interleave(heads: Callable[[ModelConfig], int]) -> Transform:
    def undo(weight: Tensor, config: ModelConfig) -> Tensor:
        shape = weight.shape
        return weight.reshape(heads(config), -1, 2, *shape[1:]).transpose(1, 2).reshape(shape)

    def redo(weight: Tensor, config: ModelConfig) -> Tensor:
        shape = weight.shape
        return weight.reshape(heads(config), 2, -1, *shape[1:]).transpose(1, 2).reshape(shape)

    return Transform(undo, redo)


# llama.cpp stores the rows of these two so that rotary pairs are neighbours; ours, like Hugging Face's, are halves.
ROTARY_QUERY = _interleave(lambda config: config.heads)
ROTARY_KEY = _interleave(lambda config: config.kv_heads)
