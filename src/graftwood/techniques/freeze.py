"""Freezing: part of the base trains, the rest stays; which part may change as the run goes on.

Source: gradual unfreezing and rates that fall from layer to layer are ULMFiT, Howard and Ruder 2018, arXiv 1801.06146,
section 3.2; the head before all the rest is LP-FT, Kumar et al. 2022, arXiv 2202.10054.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import AfterValidator, BeforeValidator, Field
from torch import Tensor, nn

from graftwood.errors import nearest
from graftwood.model.decoder import Decoder
from graftwood.model.weights import from_files, to_files
from graftwood.technique import Technique, copy_tensors
from graftwood.techniques._linear import listed, names, patterned


class Freeze(Technique):
    """The top blocks train with the final norm and the head; or the parameters that `targets` name.

    `top` counts blocks: by default the upper third, 0 for the head alone, all of them for the whole model. `order`
    begins with the head alone (`head-first`) or opens block after block from the top (`gradual`), and is through at
    `share` of the run. `decay` multiplies the learning rate once for every block further down.
    """

    name: ClassVar[str] = "freeze"
    title: ClassVar[str] = "partial fine-tuning"
    source: ClassVar[str] = "Howard and Ruder 2018, arXiv 1801.06146; Kumar et al. 2022, arXiv 2202.10054"
    learning_rate: ClassVar[float] = 2e-5
    learning_rate_reason: ClassVar[str] = "full fine-tuning's: the same parameters move, only fewer of them"
    formula: ClassVar[str] = "the top k of L blocks, the final norm and the head move"
    example: ClassVar[str] = "--set top=10 --set order=gradual"
    trains: ClassVar[str] = "the top blocks, the final norm and the head, or parameters by name"
    cost: ClassVar[str] = "full fine-tuning's for what trains; no gradient below it"
    writes_base: ClassVar[bool] = True

    top: Annotated[
        int | None,
        Field(ge=0, description="how many of the top blocks train; by default a third, 0 for the head alone"),
    ] = None
    targets: Annotated[
        tuple[str, ...],
        Field(description="in the place of `top`: parameters or modules, by name or one regular expression"),
        BeforeValidator(listed),
        AfterValidator(patterned),
    ] = ()
    order: Annotated[
        Literal["together", "head-first", "gradual"],
        Field(description="all from the first step, the head before the rest, or block after block from the top"),
    ] = "together"
    share: Annotated[float, Field(gt=0, le=1, description="share of the run by which all that trains is open")] = 0.3
    decay: Annotated[
        float, Field(gt=0, le=1, description="the learning rate is multiplied by this for each block further down")
    ] = 1.0

    def blocks_that_train(self, decoder: Decoder) -> int:
        """How many of the top blocks train."""
        return math.ceil(decoder.config.layers / 3) if self.top is None else self.top

    def problems(self, decoder: Decoder) -> list[str]:
        found = []
        if self.top is not None and self.top > decoder.config.layers:
            found.append(f"top={self.top} is above this model's {decoder.config.layers} blocks")
        if self.top is not None and self.targets:
            found.append("top and targets both say what trains; give one of them")
        paths = [path for path, _ in decoder.named_parameters()]
        missing = [t for t in self.targets if not any(_names(t, path) for path in paths)]
        if missing:
            words = {word for path in paths for word in path.split(".") if not word.isdigit()}
            hints = "".join(nearest(target, words) for target in missing)
            found.append(
                f"no parameter of {decoder.architecture.name} is called {', '.join(map(repr, missing))}.{hints}"
            )
        return found

    def chosen(self, decoder: Decoder) -> dict[str, nn.Parameter]:
        """The parameters that train at some time of the run."""
        parameters = dict(decoder.named_parameters())
        if self.targets:
            return {path: p for path, p in parameters.items() if any(_names(t, path) for t in self.targets)}
        depth, blocks = _depths(decoder), self.blocks_that_train(decoder)
        head = _head(decoder, blocks)
        everything = blocks == decoder.config.layers
        return {path: p for path, p in parameters.items() if everything or path in head or 0 < depth[path] <= blocks}

    def touches(self, decoder: Decoder) -> frozenset[str] | None:
        return frozenset(self.chosen(decoder))

    def mistakes(self, decoder: Decoder) -> list[str]:
        found = []
        if "share" in self.model_fields_set and self.order == "together":
            found.append("share is of order=head-first and order=gradual, and this is order=together; leave it out")
        if self.order == "head-first" and not self.problems(decoder):
            head, layers = _owner_of_head(decoder), decoder.config.layers
            if not any(path.rpartition(".")[0] == head for path in self.chosen(decoder)):
                tied = decoder.config.tied_head and not self.targets
                fix = f"which trains with top=0 or top={layers}" if tied else "which is not among what trains"
                found.append(f"order=head-first begins with the head, {head}, {fix}")
        return found

    def apply(self, decoder: Decoder, seed: int) -> None:
        self.check(decoder)
        chosen = self.chosen(decoder)
        decoder.requires_grad_(False)
        for path, parameter in chosen.items():
            owner, _, leaf = path.rpartition(".")
            trained = nn.Parameter(parameter.detach().to(torch.float32, copy=True))
            decoder.get_submodule(owner).register_parameter(leaf, trained)

    def rates(self, decoder: Decoder) -> dict[str, float]:
        depth = _depths(decoder)
        return {path: self.decay ** depth[path] for path in self.chosen(decoder) if self.decay != 1 and depth[path]}

    def stage(self, decoder: Decoder, progress: float) -> frozenset[str] | None:
        if self.order == "together" or progress >= self.share:
            return None
        depth = {path: depth for path, depth in _depths(decoder).items() if path in self.chosen(decoder)}
        if self.order == "head-first":
            head = _owner_of_head(decoder)
            return frozenset(path for path, d in depth.items() if d == 0 or path.rpartition(".")[0] == head)
        levels = sorted(set(depth.values()))
        open_ = levels[: 1 + int(len(levels) * progress / self.share)]
        return frozenset(path for path, d in depth.items() if d in open_)

    def files(self, decoder: Decoder) -> dict[str, Tensor]:
        return to_files(decoder)

    def load(self, decoder: Decoder, tensors: Mapping[str, Tensor]) -> None:
        copy_tensors(dict(decoder.named_parameters()), from_files(decoder, tensors), "the saved model")

    def fold(self, decoder: Decoder) -> None:
        decoder.requires_grad_(False)


def _names(target: str, path: str) -> bool:
    """A target means a parameter, or all of a module's."""
    return names(target, path) or names(target, path.rpartition(".")[0])


def _head(decoder: Decoder, blocks: int) -> set[str]:
    """Final norm and head; a head that is the embedding trains only where no block does."""
    architecture = decoder.architecture.names
    owners = {architecture.norm, _owner_of_head(decoder)}
    if decoder.config.tied_head and blocks:
        owners.discard(architecture.embedding)
    return {path for path, _ in decoder.named_parameters() if path.rpartition(".")[0] in owners}


def _owner_of_head(decoder: Decoder) -> str:
    """The module that holds the head's matrix, which may be the embedding."""
    names = decoder.architecture.names
    return names.embedding if decoder.config.tied_head else names.head


def _depths(decoder: Decoder) -> dict[str, int]:
    """How far below the head each parameter is: 0 head and final norm, 1 the top block, and last the embeddings."""
    architecture, layers = decoder.architecture.names, decoder.config.layers
    start = architecture.blocks + "."
    depths = {}
    for path, _ in decoder.named_parameters():
        owner = path.rpartition(".")[0]
        if path.startswith(start):
            depths[path] = layers - int(path[len(start) :].partition(".")[0])
        else:
            depths[path] = 0 if owner in (architecture.norm, architecture.head) else layers + 1
    return depths
