"""What a technique says of itself: one frozen configuration that knows how to change a decoder and back."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from graftwood.config import parse_options
from graftwood.errors import ConfigError
from graftwood.model.decoder import Decoder
from graftwood.registry import Registry


class Technique(BaseModel, ABC):
    """An entry of `techniques/`. Its fields are the options a user may set.

    `learning_rate` is the default with its reason; `formula`, `trains`, `cost` and the `example` flags are for people
    who choose. `writes_base` is true where training changes the base's own parameters, so that the result is a model
    of its own and not an adapter. `starts_at_base` is false where the model computes something else before the first
    step, `draws` where nothing of the start is random. `cannot_merge` says why there is no matrix to fold the result
    into. `peft_type` is what an `adapter_config.json` calls it, `opened_by` what else opens such folders,
    `weights_file` where its tensors are, or `pickled_file` in folders of before safetensors.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: ClassVar[str]
    title: ClassVar[str]
    source: ClassVar[str]
    learning_rate: ClassVar[float]
    learning_rate_reason: ClassVar[str]
    formula: ClassVar[str]
    example: ClassVar[str] = ""
    trains: ClassVar[str]
    cost: ClassVar[str]
    weight_decay: ClassVar[float] = 0.0
    writes_base: ClassVar[bool] = False
    starts_at_base: ClassVar[bool] = True
    draws: ClassVar[bool] = True
    cannot_merge: ClassVar[str | None] = None
    peft_type: ClassVar[str | None] = None
    opened_by: ClassVar[str | None] = "peft"
    weights_file: ClassVar[str] = "adapter_model.safetensors"
    pickled_file: ClassVar[str] = "adapter_model.bin"

    @classmethod
    def summary(cls) -> dict[str, Any]:
        """What there is to know before choosing."""
        merges = "nothing to merge" if cls.writes_base else f"no: {cls.cannot_merge}" if cls.cannot_merge else "yes"
        return {
            "name": cls.name,
            "title": cls.title,
            "formula": cls.formula,
            "trains": cls.trains,
            "saves": "a whole model" if cls.writes_base else f"an adapter folder ({cls.peft_type})",
            "costs": cls.cost,
            "merges": merges,
            "options": {name: field.get_default(call_default_factory=True) for name, field in cls.model_fields.items()},
            "learning_rate": cls.learning_rate,
            "learning_rate_reason": cls.learning_rate_reason,
            "source": cls.source,
        }

    def read(self, encode: Callable[[str], Sequence[int]]) -> Self:
        """The same with every text among the options turned into tokens."""
        return self

    @property
    def positions(self) -> int:
        """How many positions it takes before the first token of every text."""
        return 0

    def room(self, decoder: Decoder) -> int:
        """How many tokens a sequence may have beside them, whether the technique is on the decoder or not."""
        return decoder.config.max_positions - self.positions

    @property
    def needs_full(self) -> str | None:
        """Which of its options needs the base's weights as the files hold them, if one does."""
        return None

    def touches(self, decoder: Decoder) -> frozenset[str] | None:
        """The base's parameters that it trains or stands on, by name; None for some in every block."""
        return None

    def problems(self, decoder: Decoder) -> list[str]:
        """All that keeps these options from fitting this decoder, whose parameters may have no values."""
        return []

    def mistakes(self, decoder: Decoder) -> list[str]:
        """What nobody means who asks for it, asked before training alone: a folder that others wrote may say it."""
        return []

    def check(self, decoder: Decoder) -> None:
        """Raises: ConfigError with all the problems."""
        if found := self.problems(decoder):
            raise ConfigError("; ".join(found))

    @abstractmethod
    def apply(self, decoder: Decoder, seed: int) -> None:
        """Change the decoder so that exactly what this technique trains requires a gradient.

        None of it is one of the decoder's own tensors, which whoever holds them finds as they were.

        Raises: ConfigError for a target that matches nothing or an option that does not fit.
        """

    @abstractmethod
    def files(self, decoder: Decoder) -> dict[str, Tensor]:
        """What training changed, under the names of the published file format."""

    @abstractmethod
    def load(self, decoder: Decoder, tensors: Mapping[str, Tensor]) -> None:
        """Put tensors that `files` gave back. Raises: ConfigError listing all that do not fit."""

    def merge(self, decoder: Decoder) -> Callable[[], None]:
        """Fold what was trained into the base's parameters and leave a plain decoder.

        Calling what comes back takes it out again, to the bit: it holds what the decoder had, by reference, for as long
        as it is kept. Taking the update off the merged weights would leave their rounding behind.

        Raises: ConfigError where there is nothing it could be folded into.
        """
        if self.cannot_merge is not None:
            raise ConfigError(f"{self.name} cannot be merged: {self.cannot_merge}")
        back = decoder.keepsake()
        self.fold(decoder)
        return back

    def fold(self, decoder: Decoder) -> None:
        """Put new parameters in the place of the base's and its deltas; the old ones stay as they are."""
        raise AssertionError(f"{self.name} says neither how it is folded in nor why it cannot be merged")

    @torch.no_grad()
    def dial(self, decoder: Decoder, start: Mapping[str, Tensor], end: Mapping[str, Tensor], alpha: float) -> None:
        """Put what trained at a share of its way: 0 is where it began, 1 where it ended, to the bit.

        The way is straight in the technique's own parameters. Source: Wortsman et al. 2021, arXiv 2109.01903.

        Raises: ConfigError where the beginning is not the base.
        """
        if not self.starts_at_base:
            raise ConfigError(f"{self.name} does not begin at the base, so there is no way from it to go back on")
        for name in end:
            parameter = decoder.get_parameter(name)
            parameter.copy_(end[name] if alpha == 1 else torch.lerp(start[name], end[name], alpha))

    def rates(self, decoder: Decoder) -> dict[str, float]:
        """What multiplies the learning rate, for each parameter that does not train at the rate itself."""
        return {}

    def stage(self, decoder: Decoder, progress: float) -> frozenset[str] | None:
        """The parameters that train at this share of the run; None for all that `apply` chose."""
        return None

    def describe(self, decoder: Decoder) -> dict[str, Any]:
        """The technique's own part of an `adapter_config.json`."""
        raise ConfigError(f"{self.name} writes a whole model, not an adapter")

    @classmethod
    def opens(cls, config: Mapping[str, Any]) -> bool:
        """Whether a published `adapter_config.json` is of this technique."""
        return cls.peft_type is not None and config.get("peft_type") == cls.peft_type

    @classmethod
    def from_peft(cls, config: Mapping[str, Any]) -> Self:
        """The technique an `adapter_config.json` describes.

        Raises: ConfigError naming every field whose value changes the result and is not implemented here.
        """
        raise ConfigError(f"{cls.name} has no adapter folders")

    @classmethod
    def parse(cls, options: Mapping[str, Any]) -> Self:
        """Options as a user gave them. Raises: ConfigError naming every option that is unknown or out of range."""
        return parse_options(cls, cls.name, options)


def check_tensors(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor], what: str) -> None:
    """Raises: ConfigError listing every name and shape that does not fit."""
    problems = [f"{name} is missing" for name in wanted if name not in given]
    problems += [f"{name} has no place" for name in given if name not in wanted]
    problems += [
        f"{name} is {list(given[name].shape)}, not {list(place.shape)}"
        for name, place in wanted.items()
        if name in given and given[name].shape != place.shape
    ]
    if problems:
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ConfigError(f"{what} does not fit this base: " + "; ".join(problems[:3]) + more)


@torch.no_grad()
def copy_tensors(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor], what: str) -> None:
    """Copy each tensor to the place of its name. Raises: ConfigError for what does not fit."""
    check_tensors(wanted, given, what)
    for name, place in wanted.items():
        place.copy_(given[name])


def _entry(value: object) -> type[Technique] | None:
    if inspect.isclass(value) and issubclass(value, Technique) and not inspect.isabstract(value):
        return value
    return None


TECHNIQUES: Registry[type[Technique]] = Registry("graftwood.techniques", "technique", _entry)
