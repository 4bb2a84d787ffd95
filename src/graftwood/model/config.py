"""The sizes and scalars of a decoder, whatever its family."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from graftwood.errors import ModelError

Activation = Literal["silu", "gelu", "gelu_tanh", "relu"]


@dataclass(frozen=True)
class RopeScaling:
    """How rotary positions are stretched by `factor` over more than the `original_positions`.

    `linear` uses the factor alone. `llama3` and `yarn` keep what turns more often than the high factor says over the
    original positions, stretch what turns less often than the low one says, and blend between. `yarn` multiplies the
    tables by `attention_factor` and, with `whole_dimensions`, rounds where blending begins and ends.
    Source: `rope_scaling` in Hugging Face configurations; Peng et al. 2023, arXiv 2309.00071.
    """

    kind: Literal["linear", "llama3", "yarn"]
    factor: float
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    original_positions: int = 8192
    attention_factor: float = 1.0
    whole_dimensions: bool = True


@dataclass(frozen=True)
class ModelConfig:
    """What a block needs to know. Sizes are counts of elements, `norm_eps` is added to a mean square.

    `rotary_size` dimensions of each head turn with their position, by default all. `windows` says for each layer how
    many positions a token sees, itself included, None being all before it; layers with one turn by `local_rope_theta`
    where that is given, those of `unturned` not at all. `attention_scale` multiplies queries with keys, by default
    `head_size ** -0.5`; caps are soft ones, `cap * tanh(x / cap)`.

    Raises: ModelError for a size that is no positive whole number, or heads that cannot share keys evenly.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    feed_forward_size: int
    max_positions: int
    norm_eps: float
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    tied_head: bool = True
    attention_bias: bool = False
    feed_forward_bias: bool = False
    activation: Activation = "silu"
    init_std: float = 0.02
    rotary_size: int | None = None
    local_rope_theta: float | None = None
    unturned: tuple[int, ...] = ()
    windows: tuple[int | None, ...] = ()
    attention_scale: float | None = None
    attention_cap: float | None = None
    logit_cap: float | None = None
    embedding_scale: float = 1.0
    head_bias: bool = False
    parallel_residual: bool = False
    experts: int = 0
    experts_per_token: int = 0

    def __post_init__(self) -> None:
        sizes = {name: getattr(self, name) for name in _SIZES}
        wrong = [f"{name} {size!r}" for name, size in sizes.items() if not isinstance(size, int) or size < 1]
        if wrong:
            raise ModelError(f"sizes of a model are whole numbers of 1 or more, not {', '.join(wrong)}")
        if not isinstance(self.norm_eps, float | int):
            raise ModelError(f"what is added to a mean square is a number, not norm_eps {self.norm_eps!r}")
        if self.heads % self.kv_heads:
            raise ModelError(f"{self.heads} query heads cannot share {self.kv_heads} key/value heads evenly")
        if self.windows and len(self.windows) != self.layers:
            raise ModelError(f"{len(self.windows)} attention windows are given for {self.layers} layers")
        if not 0 <= self.turned <= self.head_size or self.turned % 2:
            raise ModelError(f"{self.turned} of a head's {self.head_size} dimensions cannot turn in pairs")
        if self.experts_per_token > self.experts:
            raise ModelError(f"{self.experts_per_token} experts for a token are more than the {self.experts} there are")

    @property
    def turned(self) -> int:
        """How many dimensions of a head turn with their position."""
        return self.head_size if self.rotary_size is None else self.rotary_size

    def window(self, layer: int) -> int | None:
        """How many positions a token of this layer sees, or None for all before it."""
        return self.windows[layer] if self.windows else None

    def options(self) -> dict[str, object]:
        """Fields that differ from their defaults, so that an option of a later version leaves this as it is."""
        return {f.name: value for f in fields(self) if (value := getattr(self, f.name)) != f.default}


_SIZES = (
    "vocab_size",
    "hidden_size",
    "layers",
    "heads",
    "kv_heads",
    "head_size",
    "feed_forward_size",
    "max_positions",
)
