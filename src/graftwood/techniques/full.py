"""Full fine-tuning: every parameter trains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from graftwood.model.decoder import Decoder
from graftwood.model.weights import from_files, to_files
from graftwood.technique import Technique, copy_tensors


class Full(Technique):
    """No options: all of the base trains, in float32 whatever the activations are computed in."""

    name: ClassVar[str] = "full"
    title: ClassVar[str] = "full fine-tuning"
    source: ClassVar[str] = "the baseline of every comparison"
    learning_rate: ClassVar[float] = 2e-5
    learning_rate_reason: ClassVar[str] = "TRL's default for supervised tuning; larger steps forget more"
    formula: ClassVar[str] = "all of W moves"
    trains: ClassVar[str] = "every parameter"
    cost: ClassVar[str] = "gradients and two moments for each parameter"
    writes_base: ClassVar[bool] = True

    def apply(self, decoder: Decoder, seed: int) -> None:
        for path, parameter in list(decoder.named_parameters()):
            owner, _, leaf = path.rpartition(".")
            trained = nn.Parameter(parameter.detach().to(torch.float32, copy=True), requires_grad=True)
            decoder.get_submodule(owner).register_parameter(leaf, trained)

    def files(self, decoder: Decoder) -> dict[str, Tensor]:
        return to_files(decoder)

    def load(self, decoder: Decoder, tensors: Mapping[str, Tensor]) -> None:
        copy_tensors(dict(decoder.named_parameters()), from_files(decoder, tensors), "the saved model")

    def fold(self, decoder: Decoder) -> None:
        decoder.requires_grad_(False)
