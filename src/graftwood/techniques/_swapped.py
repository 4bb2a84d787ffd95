"""What techniques have in common that train copies of some of the base's own small parameters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor

from graftwood.model.decoder import Decoder
from graftwood.technique import Technique, copy_tensors


class SwappedTechnique(Technique, ABC):
    """A technique that swaps parameters for copies that train."""

    @abstractmethod
    def starts(self, decoder: Decoder) -> dict[str, Tensor]:
        """The parameters by path, and the float32 values they start from."""

    @abstractmethod
    def file_name(self, path: str) -> str:
        """What a parameter is called in the file."""

    def touches(self, decoder: Decoder) -> frozenset[str] | None:
        return frozenset(self.starts(decoder))

    def apply(self, decoder: Decoder, seed: int) -> None:
        self.check(decoder)
        starts = self.starts(decoder)
        decoder.requires_grad_(False)
        for path, value in starts.items():
            decoder.swap(path, value)

    def files(self, decoder: Decoder) -> dict[str, Tensor]:
        return {self.file_name(path): parameter.detach() for path, parameter in decoder.swapped().items()}

    def load(self, decoder: Decoder, tensors: Mapping[str, Tensor]) -> None:
        copy_tensors(self.files(decoder), tensors, "the adapter")

    def fold(self, decoder: Decoder) -> None:
        decoder.settle()
