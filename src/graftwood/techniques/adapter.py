"""Bottleneck adapters: small networks with a narrow middle after, or beside, the parts of each block.

Source: `double_seq_bn` is Houlsby et al. 2019, arXiv 1902.00751; `seq_bn` Pfeiffer et al. 2020, arXiv 2005.00247;
`par_bn` He et al. 2021, arXiv 2110.04366. Names, defaults and files are those of AdapterHub's `adapters`, and so is
what `par_bn` reads: the stream between attention and feed-forward, before it is normed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from graftwood.errors import ConfigError
from graftwood.model.decoder import Decoder, hook
from graftwood.technique import Technique, copy_tensors

Kind = Literal["double_seq_bn", "seq_bn", "par_bn"]
Activation = Literal["relu", "swish", "gelu"]
_ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {"relu": F.relu, "swish": F.silu, "gelu": F.gelu}
_DEFAULTS: dict[Kind, tuple[float, Activation, float]] = {  # reduction, activation, scaling
    "double_seq_bn": (16.0, "swish", 1.0),
    "seq_bn": (16.0, "relu", 1.0),
    "par_bn": (2.0, "relu", 4.0),
}
# What an AdapterHub configuration may say beside the fields that are read; all else must be off.
_FIXED: dict[str, tuple[Any, ...]] = {
    "original_ln_after": (True,),
    "residual_before_ln": (True,),
    "output_adapter": (True,),
}
_PAST = ("init_weights", "init_weights_seed", "dropout", "stochastic_depth", "phm_dim", "factorized_phm_W",
         "shared_W_phm", "shared_phm_rule", "factorized_phm_rule", "phm_c_init", "phm_init_range", "learn_phm",
         "hypercomplex_nonlinearity", "phm_rank", "phm_bias", "adapter_residual_before_ln",
         "inv_adapter_reduction_factor")  # fmt: skip
_READ = {"reduction_factor": "reduction", "non_linearity": "activation", "scaling": "scaling"}
_ABOUT = ("peft_type", "task_type", "base_model_name_or_path", "inference_mode", "peft_version", "config", "name",
          "hidden_size", "model_type", "model_name", "model_class", "version")  # fmt: skip
_PLACED = ("mh_adapter", "original_ln_before", "is_parallel")
_KINDS: dict[tuple[bool, bool, bool], Kind] = {
    (True, False, False): "double_seq_bn",
    (False, True, False): "seq_bn",
    (False, False, True): "par_bn",
}
_OFF: tuple[Any, ...] = (None, False, 0, "none", {}, [])


@dataclass
class Stream:
    """What attention gave in this pass, from the block's own point of view."""

    attention: Tensor | None = None


class Heard(nn.Module):
    """Stands on attention, changes nothing, and keeps what it gives until the block's end."""

    def __init__(self, stream: Stream) -> None:
        super().__init__()
        self.stream = stream

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        self.stream.attention = y
        return y


class Bottleneck(nn.Module):
    """`y + scaling * up(f(down(x)))`; x is y, or, beside a feed-forward, what enters the block plus its attention."""

    def __init__(
        self, channels: int, inner: int, activation: Activation, scaling: float, stream: Stream | None
    ) -> None:
        super().__init__()
        self.adapter_down = nn.Linear(channels, inner)
        self.adapter_up = nn.Linear(inner, channels)
        self.activation, self.scaling, self.stream = _ACTIVATIONS[activation], scaling, stream

    @torch.no_grad()
    def start(self, generator: torch.Generator) -> None:
        """Kaiming's uniform start below and zeros above, as He et al.: the model begins as the base."""
        bound = math.sqrt(1 / self.adapter_down.in_features)
        self.adapter_down.weight.copy_(
            torch.empty(self.adapter_down.weight.shape).uniform_(-bound, bound, generator=generator)
        )
        for parameter in (self.adapter_down.bias, self.adapter_up.weight, self.adapter_up.bias):
            parameter.zero_()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        read = y
        if self.stream is not None:
            assert self.stream.attention is not None, "attention comes before the block's end"
            read, self.stream.attention = x + self.stream.attention, None
        down, up = ((part.weight.to(y.dtype), part.bias.to(y.dtype)) for part in (self.adapter_down, self.adapter_up))
        return y + self.scaling * F.linear(self.activation(F.linear(read, *down)), *up)


class Adapter(Technique):
    """Bottleneck adapters. `reduction` is how much narrower the middle is than the model."""

    name: ClassVar[str] = "adapter"
    title: ClassVar[str] = "bottleneck adapters"
    source: ClassVar[str] = "Houlsby et al. 2019, arXiv 1902.00751; Pfeiffer et al. 2020, arXiv 2005.00247"
    learning_rate: ClassVar[float] = 1e-4
    learning_rate_reason: ClassVar[str] = "of AdapterHub's training guide; Houlsby et al. searched 3e-5 to 3e-3"
    formula: ClassVar[str] = "y + s up(f(down(y)))"
    example: ClassVar[str] = "--set kind=double_seq_bn --set reduction=16"
    trains: ClassVar[str] = "two matrices and their biases after attention and feed-forward"
    cost: ClassVar[str] = "two thin products more for each adapter, in decoding, too"
    cannot_merge: ClassVar[str | None] = (
        "between its two matrices stands an activation, so no one matrix of the base holds them; keep the adapter"
    )
    peft_type: ClassVar[str | None] = "BOTTLENECK"  # AdapterHub's, not one of PEFT's
    opened_by: ClassVar[str | None] = "adapters"
    weights_file: ClassVar[str] = "adapter.safetensors"
    pickled_file: ClassVar[str] = "pytorch_adapter.bin"

    kind: Annotated[
        Kind, Field(description="after attention and feed-forward, after the block, or beside the feed-forward")
    ] = "seq_bn"
    reduction: Annotated[
        float | None, Field(gt=0, description="how much narrower the middle is; by default 16, beside 2")
    ] = None
    activation: Annotated[Activation | None, Field(description="relu, swish or gelu; by default the kind's")] = None
    scaling: Annotated[
        float | None, Field(gt=0, description="what the adapter's output is multiplied with; by default 1, beside 4")
    ] = None
    label: Annotated[str, Field(pattern=r"^[^.]+$", description="what the adapter is called in its file")] = "default"

    def settings(self) -> tuple[float, Activation, float]:
        """Reduction, activation and scaling, those of the kind where none was given."""
        reduction, activation, scaling = _DEFAULTS[self.kind]
        return self.reduction or reduction, self.activation or activation, self.scaling or scaling

    def places(self, decoder: Decoder) -> Iterator[tuple[str, nn.Module]]:
        """What each adapter is called in a file, and the module whose output it changes."""
        for (path, attention, feed_forward), block in zip(decoder.sublayers(), decoder.blocks, strict=True):
            if self.kind == "double_seq_bn":
                yield f"{path}.attention_adapters", attention
            # The others come after the residual is added back, where a block ends.
            yield f"{path}.output_adapters", feed_forward if self.kind == "double_seq_bn" else block

    def apply(self, decoder: Decoder, seed: int) -> None:
        decoder.requires_grad_(False)
        channels = decoder.config.hidden_size
        reduction, activation, scaling = self.settings()
        inner = max(1, int(channels // reduction))
        generator = torch.Generator().manual_seed(seed)
        streams = {}
        if self.kind == "par_bn":
            for (_, attention, _), block in zip(decoder.sublayers(), decoder.blocks, strict=True):
                streams[block] = Stream()
                hook(attention, Heard(streams[block]).train(attention.training))
        for _, module in self.places(decoder):
            bottleneck = Bottleneck(channels, inner, activation, scaling, streams.get(module))
            bottleneck.start(generator)
            hook(module, bottleneck.to(decoder.device).train(module.training))

    def files(self, decoder: Decoder) -> dict[str, Tensor]:
        files: dict[str, Tensor] = {}
        for path, module in self.places(decoder):
            start = f"{path}.adapters.{self.label}"
            bottleneck = module.get_submodule("delta")
            assert isinstance(bottleneck, Bottleneck), "apply comes first"
            for half, part in (("adapter_down.0", bottleneck.adapter_down), ("adapter_up", bottleneck.adapter_up)):
                files |= {f"{start}.{half}.{leaf}": p.detach() for leaf, p in part.named_parameters()}
        return files

    def load(self, decoder: Decoder, tensors: Mapping[str, Tensor]) -> None:
        # AdapterHub leaves the first part out of the names where the model had no head.
        whole = {decoder.architecture.names.whole(name): tensor for name, tensor in tensors.items()}
        copy_tensors(self.files(decoder), whole, "the adapter")

    def describe(self, decoder: Decoder) -> dict[str, Any]:
        reduction, activation, scaling = self.settings()
        heads, before, parallel = next(said for said, kind in _KINDS.items() if kind == self.kind)
        config = {
            "reduction_factor": reduction,
            "non_linearity": activation,
            "scaling": scaling,
            "mh_adapter": heads,
            "output_adapter": True,
            "original_ln_before": before,
            "original_ln_after": True,
            "residual_before_ln": True,
            "is_parallel": parallel,
            "init_weights": "mam_adapter",
        }
        about = {"name": self.label, "hidden_size": decoder.config.hidden_size, "version": "adapters.1.3.0"}
        return about | {"model_type": decoder.config.architecture, "config": config}

    @classmethod
    def opens(cls, config: Mapping[str, Any]) -> bool:
        return super().opens(config) or ("peft_type" not in config and isinstance(config.get("config"), Mapping))

    @classmethod
    def from_peft(cls, config: Mapping[str, Any]) -> Self:
        given: Mapping[str, Any] = config.get("config") or {}
        said = bool(given.get("mh_adapter")), bool(given.get("original_ln_before")), bool(given.get("is_parallel"))
        wrong = [f"{key}={config[key]!r}" for key in config if key not in _ABOUT]
        wrong += [f"{key}={given[key]!r}" for key, ok in _FIXED.items() if given.get(key, ok[0]) not in ok]
        known = {*_FIXED, *_PAST, *_READ, *_PLACED}
        wrong += [f"{key}={value!r}" for key, value in given.items() if key not in known and value not in _OFF]
        numbers = ("reduction_factor", "scaling")
        wrong += [f"{key}={given[key]!r}" for key in numbers if not isinstance(given.get(key, 1.0), int | float)]
        if given.get("architecture") is None and said not in _KINDS:
            wrong.append(", ".join(f"{key}={value}" for key, value in zip(_PLACED, said, strict=True)))
        if wrong:
            raise ConfigError(f"this adapter uses {', '.join(wrong)}, which this version does not read")
        options = {option: given[field] for field, option in _READ.items() if field in given}
        return cls.parse(options | {"kind": _KINDS[said], "label": config.get("name", "default")})
