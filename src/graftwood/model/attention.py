"""Causal attention three ways: rows, packed documents, and continuation from a key/value cache.

Letters: B batch, T tokens, H query heads, G key/value heads, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from graftwood.model.config import ModelConfig
from graftwood.model.layers import Linear, project, rotary_tables, rotate

SHORT = 128  # tokens up to which attention that trains on a processor is written out


class KVCache:
    """Keys and values of the tokens each row has seen, and the rotary angles of every position there is room for.

    `lengths` are the tokens seen, by row; it begins without rows. `admit` and `advance` make room for tokens and say
    how a forward pass reaches them, so a cache serves one pass at a time.
    """

    def __init__(self, config: ModelConfig, rows: int, capacity: int, dtype: torch.dtype, device: torch.device) -> None:
        self.rows, self.capacity, self.groups = rows, capacity, config.kv_heads
        self.lengths: list[int] = []
        # Keys of a layer, then its values. Zeros, because what no query may see is still multiplied, by zero.
        shape = (2 * config.layers, rows, config.kv_heads, capacity, config.head_size)
        self._states = torch.zeros(shape, dtype=dtype, device=device)
        self._flat = self._states.view(2 * config.layers, -1, config.head_size).unbind()
        cos, sin = rotary_tables(config, torch.arange(capacity, device=device))
        self._cos, self._sin = cos.unsqueeze(1).to(dtype), sin.unsqueeze(1).to(dtype)

    def admit(self, documents: tuple[int, ...]) -> Scope:
        """A new row for each of the documents that lie end to end in a batch of one."""
        rows = range(len(self.lengths), len(self.lengths) + len(documents))
        assert rows.stop <= self.rows, "the cache has no row left"
        assert max(documents) <= self.capacity, "the cache is full"
        device = self._states.device
        positions = packed_positions(documents, device).unsqueeze(0)
        owners = torch.repeat_interleave(
            torch.tensor(rows, device=device), torch.tensor(documents, device=device)
        ).unsqueeze(0)
        self.lengths += documents
        return self._scope(owners, positions, documents=documents)

    def advance(self, tokens: int) -> Scope:
        """The next `tokens` of every row."""
        rows, device = len(self.lengths), self._states.device
        filled = max(self.lengths) + tokens
        assert filled <= self.capacity, "the cache is full"
        positions = torch.tensor(self.lengths, device=device).unsqueeze(1) + torch.arange(tokens, device=device)
        mask = None
        if tokens > 1 or min(self.lengths) + tokens < filled:
            hidden = torch.arange(filled, device=device) > positions.unsqueeze(-1)
            mask = torch.zeros(hidden.shape, dtype=self._states.dtype, device=device)
            mask = mask.masked_fill_(hidden, -torch.inf).unsqueeze(1)
        self.lengths = [length + tokens for length in self.lengths]
        seen = self._states[:, :rows, :, :filled].unbind()
        return self._scope(torch.arange(rows, device=device).unsqueeze(1), positions, mask=mask, seen=seen)

    def write(self, layer: int, slots: Tensor, k_BTGD: Tensor, v_BTGD: Tensor) -> None:
        """Put keys and values where `slots` of the scope says, [B * T * G]."""
        size = k_BTGD.shape[-1]
        self._flat[2 * layer].index_copy_(0, slots, k_BTGD.reshape(-1, size))
        self._flat[2 * layer + 1].index_copy_(0, slots, v_BTGD.reshape(-1, size))

    def keep(self, rows: Sequence[int]) -> None:
        """Forget all rows but these, in this order. Rows that stay where they are cost nothing."""
        moved = [(row, place) for place, row in enumerate(rows) if row != place]
        if moved:
            sources, places = (torch.tensor(side, device=self._states.device) for side in zip(*moved, strict=True))
            filled = max(self.lengths[row] for row, _ in moved)
            self._states[:, places, :, :filled] = self._states[:, sources, :, :filled]
        self.lengths = [self.lengths[row] for row in rows]

    def _scope(self, rows: Tensor, positions_BT: Tensor, **visibility: Any) -> Scope:
        groups = torch.arange(self.groups, device=positions_BT.device)
        slots = (rows.unsqueeze(-1) * self.groups + groups) * self.capacity + positions_BT.unsqueeze(-1)
        return Scope(self._cos[positions_BT], self._sin[positions_BT], cache=self, slots=slots.view(-1), **visibility)


@dataclass(frozen=True)
class Scope:
    """What one forward pass tells every attention layer: where each token stands and what it may see.

    `documents` are the lengths of sequences laid end to end in a batch of one; none sees another. `masks` are
    for documents that are more than a sequence. With `cache`, keys and values go to its `slots`, and tokens that
    continue rows see those of `seen`, which has two entries a layer.

    Shapes: cos and sin [B or 1, T, 1, D/2], mask [B, 1, T, filled] (0 or -inf), seen [B, G, filled, D], each of masks
    [T, T] of its document (True: visible).
    """

    cos: Tensor
    sin: Tensor
    documents: tuple[int, ...] | None = None
    masks: tuple[Tensor, ...] | None = field(default=None, repr=False)
    cache: KVCache | None = None
    slots: Tensor | None = field(default=None, repr=False)
    mask: Tensor | None = field(default=None, repr=False)
    seen: Sequence[Tensor] = field(default=(), repr=False)


def packed_positions(documents: Sequence[int], device: torch.device) -> Tensor:
    """Each token's position in its own document."""
    return torch.cat([torch.arange(length, device=device) for length in documents])


def forked_positions(documents: Sequence[int], forks: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Positions of documents that end in alternatives: each alternative goes on where their common part ended."""
    pieces = []
    for length, ends in zip(documents, forks, strict=True):
        stem = length - sum(ends)
        pieces += [torch.arange(stem, device=device), *(torch.arange(stem, stem + end, device=device) for end in ends)]
    return torch.cat(pieces)


def forked_mask(length: int, ends: Sequence[int], device: torch.device) -> Tensor:
    """What the tokens of one such document see, [T, T]: the common part and their own alternative, up to themselves."""
    branch = torch.repeat_interleave(
        torch.arange(len(ends) + 1, device=device), torch.tensor([length - sum(ends), *ends], device=device)
    )
    related = (branch == 0) | (branch.unsqueeze(1) == branch)
    return related.tril_()


class Attention(nn.Module):
    """Multi-head attention with grouped key/value heads and rotary positions."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_size = config.head_size
        queries, groups = config.heads * config.head_size, config.kv_heads * config.head_size
        self.q_proj = Linear(config.hidden_size, queries, config.attention_bias)
        self.k_proj = Linear(config.hidden_size, groups, config.attention_bias)
        self.v_proj = Linear(config.hidden_size, groups, config.attention_bias)
        self.o_proj = Linear(queries, config.hidden_size, config.attention_bias)

    def forward(self, x_BTC: Tensor, scope: Scope) -> Tensor:
        batch, tokens, _ = x_BTC.shape
        q, k, v = (
            y.view(batch, tokens, -1, self.head_size) for y in project(x_BTC, self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = rotate(q, scope.cos, scope.sin), rotate(k, scope.cos, scope.sin)
        return self.o_proj(attend(q, k, v, scope, self.layer).reshape(batch, tokens, -1))


def attend(q_BTHD: Tensor, k_BTGD: Tensor, v_BTGD: Tensor, scope: Scope, layer: int) -> Tensor:
    """Weighted values for every query, [B, T, H, D], under the scope's visibility."""
    if scope.cache is not None:
        assert scope.slots is not None
        scope.cache.write(layer, scope.slots, k_BTGD, v_BTGD)
    if scope.documents is not None:
        return _packed(q_BTHD, k_BTGD, v_BTGD, scope.documents, scope.masks)
    if scope.cache is not None:
        return _continued(q_BTHD, scope.seen[2 * layer], scope.seen[2 * layer + 1], scope.mask)
    return _causal(q_BTHD, k_BTGD, v_BTGD)


def _causal(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    if mask is None and q.shape[1] <= SHORT and q.requires_grad and q.device.type == "cpu":
        return _short(q, k, v)
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    seen = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=True)
    return seen.transpose(1, 2)


def _short(q_BTHD: Tensor, k_BTGD: Tensor, v_BTGD: Tensor) -> Tensor:
    """Causal attention written out: of short rows the products are small, and a general kernel's backward costs more.

    Forward and backward of 32 rows of 128 tokens: 12 ms, where the fused kernel takes 17; from 256 on it is the faster.
    """
    batch, tokens, heads, size = q_BTHD.shape
    shared = heads // k_BTGD.shape[2]
    q, k, v = (
        (y if y.shape[2] == heads else y.repeat_interleave(shared, 2)).transpose(1, 2).reshape(-1, tokens, size)
        for y in (q_BTHD, k_BTGD, v_BTGD)
    )
    hidden = torch.full((tokens, tokens), -torch.inf, dtype=q.dtype).triu_(1)
    shares = torch.baddbmm(hidden, q, k.mT, alpha=size**-0.5).softmax(-1)
    return torch.bmm(shares, v).view(batch, heads, tokens, size).transpose(1, 2)


def _packed(
    q: Tensor, k: Tensor, v: Tensor, documents: tuple[int, ...], masks: tuple[Tensor, ...] | None = None
) -> Tensor:
    if len(documents) == 1:
        return _causal(q, k, v, *(masks or ()))
    if masks is None and len(set(documents)) == 1:  # the rows of a batch, in one call
        return _causal(*(y.reshape(len(documents), documents[0], *y.shape[2:]) for y in (q, k, v))).reshape(q.shape)
    parts = [y.split(documents, dim=1) for y in (q, k, v)]
    return torch.cat([_causal(*part) for part in zip(*parts, *([masks] if masks else []), strict=True)], dim=1)


def _continued(q: Tensor, keys_BGSD: Tensor, values_BGSD: Tensor, mask: Tensor | None) -> Tensor:
    batch, tokens, heads, size = q.shape
    if tokens == 1:
        # The heads of a group share their keys, so they can stand where queries of different positions would.
        groups = keys_BGSD.shape[1]
        grouped = q.view(batch, groups, heads // groups, size)
        return F.scaled_dot_product_attention(grouped, keys_BGSD, values_BGSD, attn_mask=mask).view(q.shape)
    return F.scaled_dot_product_attention(
        q.transpose(1, 2), keys_BGSD, values_BGSD, attn_mask=mask, enable_gqa=True
    ).transpose(1, 2)
