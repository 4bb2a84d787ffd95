"""What techniques have in common that train what stands before the text: prompts and prefixes.

Letters: P positions, C channels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from graftwood.model.decoder import Decoder, Preface
from graftwood.technique import Technique, copy_tensors
from graftwood.techniques._peft import options_from

FILE = "prompt_embeddings"


class Table(Preface):
    """A row for each position, made by a network where there is one, and taken apart where attention wants it so.

    Shapes: rows [P, ...], table [P, C]; split `(2 * layers, G, D)`.
    """

    def __init__(
        self, rows: Tensor, network: nn.Module | None = None, split: tuple[int, int, int] | None = None
    ) -> None:
        super().__init__()
        self.tokens, self.split = len(rows), split
        self.rows = nn.Parameter(rows)
        self.network = network

    def table(self) -> Tensor:
        """What a file holds."""
        return self.rows if self.network is None else self.network(self.rows)

    def forward(self) -> Tensor:
        table = self.table()
        return table if self.split is None else table.unflatten(1, self.split).transpose(0, 1)


class PrefaceTechnique(Technique, ABC):
    """A technique whose whole result is a table of what stands before every sequence."""

    seam: ClassVar[Literal["prompt", "prefix"]] = "prompt"
    starts_at_base: ClassVar[bool] = False
    cannot_merge: ClassVar[str | None] = (
        "what it trained stands before the text, and no matrix of the base holds that; keep the adapter"
    )
    peft_past: ClassVar[tuple[str, ...]] = ()

    tokens: Annotated[int, Field(ge=1, description="positions before every text")] = 20

    @property
    def positions(self) -> int:
        return self.tokens

    @abstractmethod
    def begin(self, decoder: Decoder, seed: int) -> Table:
        """What trains, as it starts."""

    def split(self, decoder: Decoder) -> tuple[int, int, int] | None:
        """How a row is taken apart, if it is."""
        return None

    def shape(self, decoder: Decoder) -> tuple[int, int]:
        """Key/value groups and channels as PEFT counts them: `num_attention_heads` and `token_dim`."""
        return decoder.config.heads, decoder.config.hidden_size

    def problems(self, decoder: Decoder) -> list[str]:
        limit = decoder.config.max_positions
        if self.tokens < limit:
            return []
        return [f"tokens={self.tokens} leaves no room in this model's {limit} positions; lower it"]

    def apply(self, decoder: Decoder, seed: int) -> None:
        self.check(decoder)
        decoder.requires_grad_(False)
        setattr(decoder, self.seam, self.begin(decoder, seed).to(decoder.device).train(decoder.training))

    def files(self, decoder: Decoder) -> dict[str, Tensor]:
        table = getattr(decoder, self.seam)
        assert isinstance(table, Table), "apply or load comes first"
        return {FILE: table.table().detach()}

    def load(self, decoder: Decoder, tensors: Mapping[str, Tensor]) -> None:
        # The network that made the table is not in the file, so what is loaded is the table.
        table = Table(torch.zeros_like(self.files(decoder)[FILE]), split=self.split(decoder))
        copy_tensors({FILE: table.rows}, tensors, "the adapter")
        setattr(decoder, self.seam, table.train(decoder.training))

    def describe(self, decoder: Decoder) -> dict[str, Any]:
        heads, channels = self.shape(decoder)
        return {
            "num_virtual_tokens": self.tokens,
            "token_dim": channels,
            "num_transformer_submodules": 1,
            "num_attention_heads": heads,
            "num_layers": decoder.config.layers,
            "modules_to_save": None,
        }

    @classmethod
    def from_peft(cls, config: Mapping[str, Any]) -> Self:
        odd = [] if config.get("num_virtual_tokens") else ["num_virtual_tokens"]
        odd += [] if config.get("num_transformer_submodules") in (None, 1) else ["num_transformer_submodules"]
        sizes = ("token_dim", "num_transformer_submodules", "num_attention_heads", "num_layers")
        return cls.parse(
            options_from(cls.title, config, {"num_virtual_tokens": "tokens"}, (*sizes, *cls.peft_past), odd)
        )
