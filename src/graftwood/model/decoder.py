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
from graftwood.model.attention import KVCache, Scope, forked_mask, forked_positions, packed_positions, turning
from graftwood.model.config import ModelConfig
from graftwood.model.layers import Linear


class Embedding(nn.Module):
    """A table of vectors by token id, [V, C], or by position."""

    def __init__(self, rows: int, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, size))

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
        self._put(names.embedding, Embedding(config.vocab_size, config.hidden_size))
        if names.positions is not None:
            self._put(names.positions, Embedding(config.max_positions, config.hidden_size))
        self._put(names.blocks, nn.ModuleList(architecture.block(config, layer) for layer in range(config.layers)))
        self._put(names.norm, architecture.norm(config))
        if not config.tied_head:
            self._put(names.head, Linear(config.hidden_size, config.vocab_size, config.head_bias))

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
        x = self._embedded(ids_BT, scope.positions)
        for block in self.blocks:
            x = block(x, scope)
        return cast(Tensor, self.get_submodule(self.architecture.names.norm)(x))

    def logits(self, hidden: Tensor) -> Tensor:
        """Unnormalised log-probabilities of the next token, float32. Shapes: [..., C] -> [..., V]."""
        if self.config.tied_head:
            logits = F.linear(hidden, self.head_weight().to(hidden.dtype)).float()
        else:
            logits = cast(Tensor, self.get_submodule(self.architecture.names.head)(hidden)).float()
        cap = self.config.logit_cap
        return logits if cap is None else cap * torch.tanh(logits / cap)

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
        """Fill every parameter: matrices from N(0, init_std), norms so that they scale by one, biases with zero."""
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            owner, _, leaf = name.rpartition(".")
            if parameter.ndim > 1:
                parameter.normal_(0.0, self.config.init_std, generator=generator)
            else:
                start = getattr(self.get_submodule(owner), "start", 1.0)
                parameter.fill_(start if leaf == "weight" else 0.0)

    def _embedded(self, ids: Tensor, positions: Tensor) -> Tensor:
        x = self.embedding(ids).to(self.compute_dtype)
        if self.config.embedding_scale != 1.0:
            x = x * x.new_tensor(self.config.embedding_scale)
        if self.architecture.names.positions is not None:
            x = x + self.get_submodule(self.architecture.names.positions)(positions).to(x.dtype)
        return x

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
        return self._uncached(packed_positions(documents or (tokens,), ids.device), documents)

    def _forked(self, documents: tuple[int, ...], forks: Sequence[Sequence[int]], device: torch.device) -> Scope:
        masks = tuple(forked_mask(length, ends, device) for length, ends in zip(documents, forks, strict=True))
        return self._uncached(forked_positions(documents, forks, device), documents, masks)

    def _uncached(
        self, positions: Tensor, documents: tuple[int, ...] | None, masks: tuple[Tensor, ...] | None = None
    ) -> Scope:
        positions = positions.unsqueeze(0)
        return Scope(positions, turning(self.config, positions, self.compute_dtype), documents, masks)


def count_parameters(parameters: Iterable[Tensor]) -> int:
    """Elements of all the tensors together, each tensor counted once."""
    return sum({id(parameter): parameter.numel() for parameter in parameters}.values())
