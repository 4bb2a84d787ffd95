"""The sizes and scalars of a decoder, whatever its family."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from graftwood.errors import ModelError

Activation = Literal["silu", "gelu", "gelu_tanh"]


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3.1's frequency-dependent stretching of rotary positions.

    Source: `rope_scaling` of type `llama3` in Hugging Face configurations. `linear` uses `factor` alone.
    """

    kind: Literal["linear", "llama3"]
    factor: float
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    original_positions: int = 8192


@dataclass(frozen=True)
class ModelConfig:
    """What a block needs to know. Sizes are counts of elements, `norm_eps` is added to a mean square.

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
    rope_theta: float
    rope_scaling: RopeScaling | None = None
    tied_head: bool = True
    attention_bias: bool = False
    feed_forward_bias: bool = False
    activation: Activation = "silu"
    init_std: float = 0.02

    def __post_init__(self) -> None:
        sizes = {name: getattr(self, name) for name in _SIZES}
        wrong = [f"{name} {size!r}" for name, size in sizes.items() if not isinstance(size, int) or size < 1]
        if wrong:
            raise ModelError(f"sizes of a model are whole numbers of 1 or more, not {', '.join(wrong)}")
        if self.heads % self.kv_heads:
            raise ModelError(f"{self.heads} query heads cannot share {self.kv_heads} key/value heads evenly")


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
