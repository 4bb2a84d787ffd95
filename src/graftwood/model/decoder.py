"""The decoder: embeddings, blocks, a norm and a head, under the names of the family's Hugging Face checkpoints.

Letters: B batch, T tokens, C channels, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from graftwood.model.architecture import Architecture
from graftwood.model.attention import KVCache, Scope, forked_mask, forked_positions, packed_positions
from graftwood.model.config import ModelConfig
from graftwood.model.layers import Linear, rotary_tables


class Embedding(nn.Module):
    """A table of vectors by token id, [V, C]."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.vocab_size, config.hidden_size))

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weight)


class Decoder(nn.Module):
    """A causal language model of any registered architecture.

    `compute_dtype` is the number format activations have; parameters are cast to it where they are used, so that
    trained parameters can stay in float32.
    """

    def __init__(self, architecture: Architecture, config: ModelConfig) -> None:
        super().__init__()
        self.architecture = architecture
        self.config = config
        self.compute_dtype = torch.float32
        names = architecture.names
        self._put(names.embedding, Embedding(config))
        self._put(names.blocks, nn.ModuleList(architecture.block(config, layer) for layer in range(config.layers)))
        self._put(names.norm, architecture.norm(config))
        if not config.tied_head:
            self._put(names.head, Linear(config.hidden_size, config.vocab_size))

    @property
    def embedding(self) -> Embedding:
        """The token embedding."""
        return cast(Embedding, self.get_submodule(self.architecture.names.embedding))

    @property
    def blocks(self) -> nn.ModuleList:
        """The blocks, bottom to top."""
        return cast(nn.ModuleList, self.get_submodule(self.architecture.names.blocks))

    @property
    def device(self) -> torch.device:
        """Where the parameters live."""
        return self.embedding.weight.device

    def head_weight(self) -> Tensor:
        """The matrix that turns hidden states into logits, [V, C]."""
        if self.config.tied_head:
            return self.embedding.weight
        return cast(Linear, self.get_submodule(self.architecture.names.head)).weight

    def hidden(
        self,
        ids_BT: Tensor,
        documents: Sequence[int] | None = None,
        cache: KVCache | None = None,
        forks: Sequence[Sequence[int]] | None = None,
    ) -> Tensor:
        """Final hidden states, [B, T, C].

        With `documents` the batch is one row of sequences laid end to end, each seeing only itself. With `cache` they
        become rows of it; `[B, T]` tokens without documents continue the B rows it has. With `forks` each document ends
        in alternatives of these lengths: they see what comes before all of them, and not each other.
        """
        if forks is None:
            scope = self._scope(ids_BT, None if documents is None else tuple(documents), cache)
        else:
            assert documents is not None, "forks are the ends of packed documents"
            assert cache is None, "forks are read in one pass, without a cache"
            scope = self._forked(tuple(documents), forks, ids_BT.device)
        x = self.embedding(ids_BT).to(self.compute_dtype)
        for block in self.blocks:
            x = block(x, scope)
        return cast(Tensor, self.get_submodule(self.architecture.names.norm)(x))

    def logits(self, hidden: Tensor) -> Tensor:
        """Unnormalised log-probabilities of the next token, float32. Shapes: [..., C] -> [..., V]."""
        head = None if self.config.tied_head else self.get_submodule(self.architecture.names.head)
        if head is not None:
            return cast(Tensor, head(hidden)).float()
        return F.linear(hidden, self.head_weight().to(hidden.dtype)).float()

    def forward(self, ids_BT: Tensor, documents: Sequence[int] | None = None, cache: KVCache | None = None) -> Tensor:
        """Logits at every position, [B, T, V]; see `hidden`."""
        return self.logits(self.hidden(ids_BT, documents, cache))

    def new_cache(self, rows: int, capacity: int) -> KVCache:
        """A cache with room for `rows` sequences of up to `capacity` tokens, and none yet."""
        return KVCache(self.config, rows, capacity, self.compute_dtype, self.device)

    def linears(self) -> dict[str, Linear]:
        """Every linear of the blocks by its dotted path: what a technique may change."""
        prefix = self.architecture.names.blocks + "."
        return {
            name: module
            for name, module in self.named_modules()
            if isinstance(module, Linear) and name.startswith(prefix)
        }

    def trained(self) -> dict[str, nn.Parameter]:
        """Parameters that training may change, by name."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    @contextmanager
    def without_deltas(self) -> Iterator[None]:
        """The base as it was: every delta taken off inside the block and put back after it."""
        linears = [linear for linear in self.linears().values() if linear.delta is not None]
        deltas = [linear.delta for linear in linears]
        try:
            for linear in linears:
                linear.delta = None
            yield
        finally:
            for linear, delta in zip(linears, deltas, strict=True):
                linear.delta = delta

    @torch.no_grad()
    def initialise(self, seed: int) -> None:
        """Fill every parameter: matrices from N(0, init_std), norms with one, biases with zero."""
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, self.config.init_std, generator=generator)
            else:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)

    def _put(self, path: str, module: nn.Module) -> None:
        """Register `module` under a dotted path, making the containers on the way."""
        *parents, leaf = path.split(".")
        owner: nn.Module = self
        for name in parents:
            if not hasattr(owner, name):
                owner.add_module(name, nn.Module())
            owner = owner.get_submodule(name)
        owner.add_module(leaf, module)

    def _scope(self, ids: Tensor, documents: tuple[int, ...] | None, cache: KVCache | None) -> Scope:
        batch, tokens = ids.shape
        if documents is not None:
            assert batch == 1, "packed documents are a batch of one"
            assert sum(documents) == tokens, "packed documents fill their batch exactly"
        if cache is not None:
            return cache.advance(tokens) if documents is None else cache.admit(documents)
        return Scope(*self._rotary(packed_positions(documents or (tokens,), ids.device)), documents)

    def _forked(self, documents: tuple[int, ...], forks: Sequence[Sequence[int]], device: torch.device) -> Scope:
        masks = tuple(forked_mask(length, ends, device) for length, ends in zip(documents, forks, strict=True))
        return Scope(*self._rotary(forked_positions(documents, forks, device)), documents, masks)

    def _rotary(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = rotary_tables(self.config, positions)
        return cos[None, :, None].to(self.compute_dtype), sin[None, :, None].to(self.compute_dtype)


def count_parameters(parameters: Iterable[Tensor]) -> int:
    """Elements of all the tensors together, each tensor counted once."""
    return sum({id(parameter): parameter.numel() for parameter in parameters}.values())
