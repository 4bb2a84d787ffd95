"""Causal attention three ways: rows, packed documents, and continuation from a key/value cache.

Letters: B batch, T tokens, H query heads, G key/value heads, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from graftwood.model.config import ModelConfig
from graftwood.model.layers import Linear, project, rotate


class KVCache:
    """Keys and values of the tokens each row has seen, one pair of buffers a layer.

    Shapes: keys and values [layers][B, G, capacity, D]; `lengths` tokens seen, by row.
    """

    def __init__(self, config: ModelConfig, rows: int, capacity: int, dtype: torch.dtype, device: torch.device) -> None:
        shape = (rows, config.kv_heads, capacity, config.head_size)
        self.keys = [torch.empty(shape, dtype=dtype, device=device) for _ in range(config.layers)]
        self.values = [torch.empty(shape, dtype=dtype, device=device) for _ in range(config.layers)]
        self.lengths = [0] * rows
        self.capacity = capacity

    def keep(self, rows: Sequence[int]) -> None:
        """Forget all rows but these, in this order."""
        index = torch.tensor(list(rows), device=self.keys[0].device)
        for buffers in (self.keys, self.values):
            for layer, buffer in enumerate(buffers):
                buffers[layer] = buffer[index]
        self.lengths = [self.lengths[row] for row in rows]


@dataclass(frozen=True)
class Scope:
    """What one forward pass tells every attention layer: where each token stands and what it may see.

    `documents` are the lengths of sequences laid end to end in a batch of one; none sees another. With `cache`, packed
    documents fill the cache's rows in order (they must be empty), and `[B, T]` tokens continue its rows.
    """

    cos: Tensor
    sin: Tensor
    documents: tuple[int, ...] | None = None
    cache: KVCache | None = None
    mask: Tensor | None = field(default=None, repr=False)
    filled: int = 0


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
    if scope.documents is not None:
        if scope.cache is not None:
            _fill(scope.cache, layer, k_BTGD, v_BTGD, scope.documents)
        return _packed(q_BTHD, k_BTGD, v_BTGD, scope.documents)
    if scope.cache is not None:
        return _continued(q_BTHD, k_BTGD, v_BTGD, scope, layer)
    return _causal(q_BTHD, k_BTGD, v_BTGD)


def _causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2)


def _packed(q: Tensor, k: Tensor, v: Tensor, documents: tuple[int, ...]) -> Tensor:
    if len(documents) == 1:
        return _causal(q, k, v)
    parts = zip(*(y.split(documents, dim=1) for y in (q, k, v)), strict=True)
    return torch.cat([_causal(*part) for part in parts], dim=1)


def _fill(cache: KVCache, layer: int, k: Tensor, v: Tensor, documents: tuple[int, ...]) -> None:
    start = 0
    for row, length in enumerate(documents):
        assert cache.lengths[row] == 0, "packed documents start a cache, they do not continue it"
        cache.keys[layer][row, :, :length] = k[0, start : start + length].transpose(0, 1)
        cache.values[layer][row, :, :length] = v[0, start : start + length].transpose(0, 1)
        start += length


def _continued(q: Tensor, k: Tensor, v: Tensor, scope: Scope, layer: int) -> Tensor:
    cache = scope.cache
    assert cache is not None
    batch, tokens, heads, size = q.shape
    groups = k.shape[2]
    keys, values = cache.keys[layer], cache.values[layer]
    if scope.mask is None:
        start = cache.lengths[0]
        keys[:, :, start : start + tokens] = k.transpose(1, 2)
        values[:, :, start : start + tokens] = v.transpose(1, 2)
    else:
        for row, start in enumerate(cache.lengths):
            keys[row, :, start : start + tokens] = k[row].transpose(0, 1)
            values[row, :, start : start + tokens] = v[row].transpose(0, 1)
    keys, values = keys[:, :, : scope.filled], values[:, :, : scope.filled]
    if tokens == 1:
        # The heads of a group share their keys, so they can stand where queries of different positions would.
        grouped = q.view(batch, groups, heads // groups, size)
        seen = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=scope.mask)
        return seen.view(batch, 1, heads, size)
    mask = scope.mask
    if mask is None and cache.lengths[0] > 0:
        query = torch.arange(tokens, device=q.device) + cache.lengths[0]
        mask = torch.arange(scope.filled, device=q.device) <= query.unsqueeze(-1)
    seen = F.scaled_dot_product_attention(
        q.transpose(1, 2), keys, values, attn_mask=mask, is_causal=mask is None, enable_gqa=True
    )
    return seen.transpose(1, 2)
