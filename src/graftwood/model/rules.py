"""Weight names as data: how a file's tensors become parameters, and back.

A rule pairs a file's name pattern with one parameter's or several; `{n}` stands for a layer number, `{e}` for every
expert in turn. A transform changes values (transposes, splits, orders of heads) and has an inverse. Names that no rule
mentions are the same on both sides.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from graftwood.model.config import ModelConfig

Change = Callable[[Tensor, ModelConfig], Tensor]
Split = Callable[[Tensor, ModelConfig], Sequence[Tensor]]
Join = Callable[[Sequence[Tensor], ModelConfig], Tensor]


@dataclass(frozen=True)
class Transform:
    """A change of one file tensor into the parameters' values, and the change that undoes it.

    `turned` is the change of a matrix's rows where the file stores it as [in, out], or several as [E, in, out].
    """

    forward: Split
    inverse: Join
    turned: Transform | None = None


def each(forward: Change, inverse: Change) -> Transform:
    """A transform of one tensor into one."""
    return Transform(lambda file, config: (forward(file, config),), lambda parts, config: inverse(parts[0], config))


def transposed(rows: Transform) -> Transform:
    """The same for a matrix that the file stores as [in, out]."""
    return Transform(
        lambda file, config: rows.forward(file.T, config), lambda parts, config: rows.inverse(parts, config).T, rows
    )


class Rule:
    """`file` is the name in the checkpoint, `parameters` those in the model."""

    def __init__(self, file: str, parameters: str | Sequence[str], transform: Transform | None = None) -> None:
        self.file = file
        self.parameters = (parameters,) if isinstance(parameters, str) else tuple(parameters)
        self.transform = transform
        assert transform is not None or len(self.parameters) == 1, f"{file} needs a transform to become several"

    @property
    def stacks(self) -> bool:
        """Whether the file's tensor holds matrices of all experts."""
        turned = self.transform is not None and self.transform.turned is not None
        return turned and "{e}" in self.parameters[0]

    def members(self, layer: str, config: ModelConfig) -> list[str]:
        """The parameters of a layer that the file's tensor holds, in the transform's order."""
        named = [template.replace("{n}", layer) for template in self.parameters]
        return [
            name.replace("{e}", str(expert))
            for name in named
            for expert in range(config.experts if "{e}" in name else 1)
        ]


def to_parameters(name: str, tensor: Tensor, rules: Sequence[Rule], config: ModelConfig) -> dict[str, Tensor] | None:
    """The parameters that a file's tensor holds, or None when no rule is about it."""
    for rule in rules:
        layer = _layer(rule.file, name)
        if layer is not None:
            values = (tensor,) if rule.transform is None else rule.transform.forward(tensor, config)
            return dict(zip(rule.members(layer, config), values, strict=True))
    return None


def to_files(parameters: Mapping[str, Tensor], rules: Sequence[Rule], config: ModelConfig) -> dict[str, Tensor]:
    """File tensors that hold these parameters: the inverse of `to_parameters` over a whole model."""
    files: dict[str, Tensor] = {}
    for name, tensor in parameters.items():
        found = rule_of(name, rules)
        if found is None:
            files[name] = tensor
            continue
        rule, layer = found
        file = rule.file.replace("{n}", layer)
        if rule.transform is None:
            files[file] = tensor
        elif file not in files:
            files[file] = rule.transform.inverse([parameters[p] for p in rule.members(layer, config)], config)
    return files


def rule_of(parameter: str, rules: Sequence[Rule]) -> tuple[Rule, str] | None:
    """The rule by which a parameter is in the file, and its layer's number; None where the names are the same."""
    return next(((r, n) for r in rules for p in r.parameters if (n := _layer(p, parameter)) is not None), None)


@cache
def _pattern(template: str) -> re.Pattern[str]:
    return re.compile(re.escape(template).replace(r"\{n\}", r"(?P<n>\d+)").replace(r"\{e\}", r"\d+"))


def _layer(template: str, name: str) -> str | None:
    """The layer's number where `name` fits the template (empty without one), or None where it does not."""
    match = _pattern(template).fullmatch(name)
    return None if match is None else match.groupdict().get("n") or ""


def _interleave(heads: Callable[[ModelConfig], int]) -> Transform:
    def undo(weight: Tensor, config: ModelConfig) -> Tensor:
        shape = weight.shape
        return weight.reshape(heads(config), -1, 2, *shape[1:]).transpose(1, 2).reshape(shape)

    def redo(weight: Tensor, config: ModelConfig) -> Tensor:
        shape = weight.shape
        return weight.reshape(heads(config), 2, -1, *shape[1:]).transpose(1, 2).reshape(shape)

    return each(undo, redo)


def _rows_of_heads(config: ModelConfig) -> list[int]:
    return [config.heads * config.head_size, config.kv_heads * config.head_size, config.kv_heads * config.head_size]


def _join(parts: Sequence[Tensor], config: ModelConfig) -> Tensor:
    return torch.cat(list(parts))


def _split_heads(file: Tensor, config: ModelConfig) -> Sequence[Tensor]:
    queries, keys, values = file.reshape(config.heads, 3, config.head_size, *file.shape[1:]).unbind(1)
    return [part.flatten(0, 1) for part in (queries, keys, values)]


def _join_heads(parts: Sequence[Tensor], config: ModelConfig) -> Tensor:
    heads = [part.unflatten(0, (config.heads, config.head_size)) for part in parts]
    return torch.stack(heads, dim=1).flatten(0, 2)


# llama.cpp stores the rows of these two so that rotary pairs are neighbours; ours, like Hugging Face's, are halves.
ROTARY_QUERY = _interleave(lambda config: config.heads)
ROTARY_KEY = _interleave(lambda config: config.kv_heads)
# The file's tensor as it is.
SAME = each(lambda file, config: file, lambda weight, config: weight)
# A weight stored as [in, out], as GPT-2's is.
TRANSPOSED = transposed(SAME)
# Rows of queries, then of keys, then of values.
QKV = Transform(lambda file, config: file.split(_rows_of_heads(config)), _join)
QKV_TRANSPOSED = transposed(QKV)
# Rows of queries, keys and values head by head.
QKV_BY_HEAD = Transform(_split_heads, _join_heads)
# Rows of two matrices of the same size.
HALVES = Transform(lambda file, config: file.chunk(2), _join)
# A gain that the file stores whole and the parameter as its difference from one.
GAIN = each(lambda file, config: file - 1.0, lambda weight, config: weight + 1.0)
