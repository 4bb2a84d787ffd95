"""Prefix tuning: every layer sees keys and values before the text's own, and those train.

Source: Li and Liang 2021, arXiv 2101.00190, section 4; `hidden` is its reparametrisation (section 4.3), the start from
tokens its section 7.4. Letters: L layers, P positions, G key/value heads, D head size.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from graftwood.model.decoder import Decoder
from graftwood.runtime import seeded
from graftwood.techniques._preface import PrefaceTechnique, Table


class Prefix(PrefaceTechnique):
    """`hidden` above 0 lets a network of that inner size make the prefix; it starts at random then."""

    name: ClassVar[str] = "prefix"
    title: ClassVar[str] = "prefix tuning"
    source: ClassVar[str] = "Li and Liang 2021, arXiv 2101.00190"
    learning_rate: ClassVar[float] = 5e-3
    learning_rate_reason: ClassVar[str] = "the better of PEFT's comparison; at 1e-3 it learned less and forgot more"
    formula: ClassVar[str] = "attention(q, [Pk; K], [Pv; V]) in every layer"
    example: ClassVar[str] = "--set tokens=20"
    trains: ClassVar[str] = "keys and values of every layer before the text"
    cost: ClassVar[str] = "attention sees `tokens` more positions; no linear does"
    seam: ClassVar[Literal["prompt", "prefix"]] = "prefix"
    peft_type: ClassVar[str | None] = "PREFIX_TUNING"
    peft_past: ClassVar[tuple[str, ...]] = ("encoder_hidden_size", "prefix_projection", "init_weights")

    start: Annotated[
        Literal["vocabulary", "random"], Field(description="from random tokens' keys and values, or random numbers")
    ] = "vocabulary"
    hidden: Annotated[int, Field(ge=0, description="inner size of a network that makes the prefix; 0 for none")] = 0

    def mistakes(self, decoder: Decoder) -> list[str]:
        if not self.hidden or self.start == "random" or "start" not in self.model_fields_set:
            return []
        return [
            f"start={self.start} is of a prefix without a network, and hidden={self.hidden} asks for one; leave one"
            " of them out"
        ]

    def begin(self, decoder: Decoder, seed: int) -> Table:
        generator = torch.Generator().manual_seed(seed)
        channels, split = self.shape(decoder)[1], self.split(decoder)
        width = 2 * decoder.config.layers * channels
        if self.hidden:
            with seeded(seed):
                layers = nn.Linear(channels, self.hidden), nn.Tanh(), nn.Linear(self.hidden, width)
                return Table(torch.randn(self.tokens, channels), nn.Sequential(*layers), split)
        if self.start == "random":
            return Table(torch.randn(self.tokens, width, generator=generator), split=split)
        ids = torch.randint(decoder.config.vocab_size, (1, self.tokens), generator=generator)
        return Table(states_of(decoder, ids), split=split)

    def split(self, decoder: Decoder) -> tuple[int, int, int]:
        return 2 * decoder.config.layers, decoder.config.kv_heads, decoder.config.head_size

    def shape(self, decoder: Decoder) -> tuple[int, int]:
        return decoder.config.kv_heads, decoder.config.kv_heads * decoder.config.head_size

    def describe(self, decoder: Decoder) -> dict[str, Any]:
        # A file holds the prefix itself, also where a network made it.
        return super().describe(decoder) | {"prefix_projection": False, "encoder_hidden_size": self.shape(decoder)[1]}


@torch.no_grad()
def states_of(decoder: Decoder, ids: Tensor) -> Tensor:
    """What the base's own attention keeps of these tokens: a prefix that acts as they would, [P, 2L * G * D]."""
    with decoder.without_deltas():
        cache = decoder.new_cache(rows=1, capacity=ids.shape[1])
        decoder.hidden(ids.to(decoder.device), documents=(ids.shape[1],), cache=cache)
        return cache.row(0).transpose(0, 1).flatten(1).float()
