"""Causal attention three ways: rows, packed documents, and continuation from a key/value cache.

Letters: B batch, T tokens, H query heads, G key/value heads, D head size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from graftwood.model.config import ModelConfig
from graftwood.model.layers import Linear, RMSNorm, project, rotate
from graftwood.model.rope import local_tables, rotary_tables
from graftwood.model.short import SHORT_WIDE, is_short, short_attention
from graftwood.runtime import narrow_products

Turn = Callable[[Tensor, Tensor, Tensor], Tensor]


class KVCache:
    """Keys and values of the tokens each row has seen, and the rotary angles of every position there is room for.

    `lengths` are the tokens seen, by row; it begins without rows. `admit` and `advance` make room for tokens and say
    how a forward pass reaches them, so a cache serves one pass at a time. Where
    all rows begin alike, `common` is what `row` gave of that beginning, a technique's part included; documents that are
    admitted then go on from there.
    """

    def __init__(self, config: ModelConfig, rows: int, capacity: int, dtype: torch.dtype, device: torch.device) -> None:
        self.rows, self.capacity, self.groups = rows, capacity, config.kv_heads
        self.lengths: list[int] = []
        # Keys of a layer, then its values. Zeros, because what no query may see is still multiplied, by zero.
        shape = (2 * config.layers, rows, config.kv_heads, capacity, config.head_size)
        self._states = torch.zeros(shape, dtype=dtype, device=device)
        self._flat = self._states.view(2 * config.layers, -1, config.head_size).unbind()
        self._turns = turning(config, torch.arange(capacity, device=device), dtype)
        self._windows = {window for window in config.windows if window is not None}
        self.common: Tensor | None = None

    def admit(self, documents: tuple[int, ...], prefix: Tensor | None = None) -> Scope:
        """A new row for each of the documents that lie end to end in a batch of one; each begins with the prefix."""
        prefix = prefix if self.common is None else self.common
        rows = range(len(self.lengths), len(self.lengths) + len(documents))
        start = 0 if prefix is None else prefix.shape[1]
        assert rows.stop <= self.rows, "the cache has no row left"
        assert start + max(documents) <= self.capacity, "the cache is full"
        device = self._states.device
        positions = packed_positions(documents, device, start).unsqueeze(0)
        owners = torch.repeat_interleave(
            torch.tensor(rows, device=device), torch.tensor(documents, device=device)
        ).unsqueeze(0)
        if prefix is not None:
            self._states[:, rows.start : rows.stop, :, :start] = prefix.transpose(1, 2).unsqueeze(1)
        self.lengths += [start + length for length in documents]
        return self._scope(owners, positions, documents=documents, prefix=prefix)

    def advance(self, tokens: int) -> Scope:
        """The next `tokens` of every row."""
        rows, device = len(self.lengths), self._states.device
        filled = max(self.lengths) + tokens
        assert filled <= self.capacity, "the cache is full"
        positions = torch.tensor(self.lengths, device=device).unsqueeze(1) + torch.arange(tokens, device=device)
        mask = None
        if tokens > 1 or min(self.lengths) + tokens < filled:
            mask = _mask(positions, filled, None, self._states.dtype)
        narrow = {w: _mask(positions, filled, w, self._states.dtype) for w in self._windows if w < filled}
        self.lengths = [length + tokens for length in self.lengths]
        seen = self._states[:, :rows, :, :filled].unbind()
        return self._scope(
            torch.arange(rows, device=device).unsqueeze(1), positions, mask=mask, narrow=narrow, seen=seen
        )

    def write(self, layer: int, slots: Tensor, k_BTGD: Tensor, v_BTGD: Tensor) -> None:
        """Put keys and values where `slots` of the scope says, [B * T * G]."""
        size = k_BTGD.shape[-1]
        self._flat[2 * layer].index_copy_(0, slots, k_BTGD.reshape(-1, size))
        self._flat[2 * layer + 1].index_copy_(0, slots, v_BTGD.reshape(-1, size))

    def row(self, row: int) -> Tensor:
        """Keys and values of one row, [2 * layers, tokens, G, D]."""
        return self._states[:, row, :, : self.lengths[row]].transpose(1, 2)

    def keep(self, rows: Sequence[int]) -> None:
        """Forget all rows but these, in this order. Rows that stay where they are cost nothing."""
        moved = [(row, place) for place, row in enumerate(rows) if row != place]
        if moved:
            sources, places = (torch.tensor(side, device=self._states.device) for side in zip(*moved, strict=True))
            filled = max(self.lengths[row] for row, _ in moved)
            self._states[:, places, :, :filled] = self._states[:, sources, :, :filled]
        self.lengths = [self.lengths[row] for row in rows]

    def forget(self, first: int, counts: Sequence[int]) -> None:
        """Forget the last tokens that the rows from `first` on saw, so many of each."""
        rows = zip(self.lengths[first:], counts, strict=True)
        self.lengths[first:] = [length - count for length, count in rows]

    def _scope(self, rows: Tensor, positions_BT: Tensor, **visibility: Any) -> Scope:
        groups = torch.arange(self.groups, device=positions_BT.device)
        slots = (rows.unsqueeze(-1) * self.groups + groups) * self.capacity + positions_BT.unsqueeze(-1)
        turns = tuple(table[positions_BT] for table in self._turns)
        return Scope(positions_BT, turns, cache=self, slots=slots.view(-1), **visibility)


@dataclass(frozen=True)
class Scope:
    """What one forward pass tells every attention layer: where each token stands and what it may see.

    `documents` are the lengths of sequences laid end to end in a batch of one; none sees another. `masks` are
    for documents that are more than a sequence; `prefix` is what every sequence sees before its first token, keys and
    values of each layer. With `cache`, keys and values go to its `slots`, and tokens that continue rows see those of
    `seen`, which has two entries a layer. `turns` are cosine and sine of the positions' angles, and once more of layers
    with a window where theirs differ; `narrow` are the masks of the windows that hide anything. With `only`, these
    tokens leave the block, to which the others are keys and values.

    Shapes: positions [B or 1, T], turns [B or 1, T, 1, D/2], mask and each of narrow [B, 1, T, filled] (0 or -inf),
    seen [B, G, filled, D], each of masks [T, T] of its document (True: visible), prefix [2 * layers, P, G, D],
    only [M].
    """

    positions: Tensor
    turns: Sequence[Tensor]
    documents: tuple[int, ...] | None = None
    masks: tuple[Tensor, ...] | None = field(default=None, repr=False)
    prefix: Tensor | None = field(default=None, repr=False)
    cache: KVCache | None = None
    slots: Tensor | None = field(default=None, repr=False)
    mask: Tensor | None = field(default=None, repr=False)
    narrow: Mapping[int, Tensor] = field(default_factory=dict, repr=False)
    seen: Sequence[Tensor] = field(default=(), repr=False)
    only: Tensor | None = field(default=None, repr=False)

    def leaving(self, x: Tensor) -> Tensor:
        """What of a block's tokens leaves it. Shapes: [B, T, ...] -> [B, M, ...]."""
        return x if self.only is None else x.index_select(1, self.only)


def packed_positions(documents: Sequence[int], device: torch.device, start: int = 0) -> Tensor:
    """Each token's position in its own document, where the first is at `start`."""
    return torch.cat([torch.arange(start, start + length, device=device) for length in documents])


def turning(config: ModelConfig, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """What `Scope.turns` says of these positions, [..., 1, D/2] each."""
    tables = rotary_tables(config, positions) + (local_tables(config, positions) or ())
    return tuple(table.unsqueeze(-2).to(dtype) for table in tables)


@lru_cache(maxsize=2)
@torch.inference_mode(False)  # what is kept may be differentiated later
def packed_turns(
    config: ModelConfig, documents: tuple[int, ...], start: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Positions of packed documents, [1, N], and `turning` of them: of one batch like the last they are at hand."""
    positions = packed_positions(documents, device, start).unsqueeze(0)
    return positions, turning(config, positions, dtype)


@dataclass(frozen=True)
class Scoring:
    """What a layer makes of queries and keys: how far back they see, their product's factor, its soft cap."""

    window: int | None = None
    scale: float | None = None
    cap: float | None = None


class Attention(nn.Module):
    """Multi-head attention with grouped key/value heads and rotary positions.

    A family says how its projection back is called, which biases there are, how heads turn (None: not at all), which
    norms queries and keys pass (of a head's size or of all heads together) and whether every head has a sink: a logit
    that takes its share of attention and gives nothing.
    """

    def __init__(
        self,
        config: ModelConfig,
        layer: int,
        *,
        output: str = "o_proj",
        biases: tuple[bool, bool] | None = None,
        turn: Turn | None = rotate,
        norms: tuple[RMSNorm, RMSNorm] | None = None,
        sinks: bool = False,
    ) -> None:
        super().__init__()
        self.layer = layer
        self.head_size = config.head_size
        self.scoring = Scoring(config.window(layer), config.attention_scale, config.attention_cap)
        self._output, self._turn = output, turn
        inward, outward = biases or (config.attention_bias, config.attention_bias)
        queries, groups = config.heads * config.head_size, config.kv_heads * config.head_size
        self.q_proj = Linear(config.hidden_size, queries, inward)
        self.k_proj = Linear(config.hidden_size, groups, inward)
        self.v_proj = Linear(config.hidden_size, groups, inward)
        self.add_module(output, Linear(queries, config.hidden_size, outward))
        self.q_norm = None if norms is None else norms[0]
        self.k_norm = None if norms is None else norms[1]
        self.sinks = nn.Parameter(torch.empty(config.heads)) if sinks else None

    def forward(self, x_BTC: Tensor, scope: Scope) -> Tensor:
        batch, tokens, _ = x_BTC.shape
        q, k, v = project(x_BTC, self.q_proj, self.k_proj, self.v_proj)
        q, k = _normed(q, self.q_norm), _normed(k, self.k_norm)
        q, k, v = (y.view(batch, tokens, -1, self.head_size) for y in (q, k, v))
        if self._turn is not None:
            cos, sin = scope.turns[:2] if self.scoring.window is None else scope.turns[-2:]
            q, k = self._turn(q, cos, sin), self._turn(k, cos, sin)
        seen = scope.leaving(attend(q, k, v, scope, self.layer, self.scoring, self.sinks))
        return cast(Tensor, self.get_submodule(self._output)(seen.reshape(batch, seen.shape[1], -1)))


def _normed(y_BTC: Tensor, norm: RMSNorm | None) -> Tensor:
    if norm is None:
        return y_BTC
    return cast(Tensor, norm(y_BTC.unflatten(-1, (-1, len(norm.weight)))).flatten(-2))


def attend(
    q_BTHD: Tensor,
    k_BTGD: Tensor,
    v_BTGD: Tensor,
    scope: Scope,
    layer: int,
    scoring: Scoring,
    sinks_H: Tensor | None = None,
) -> Tensor:
    """Weighted values for every query, [B, T, H, D], under the scope's visibility."""
    if scope.cache is not None:
        assert scope.slots is not None
        scope.cache.write(layer, scope.slots, k_BTGD, v_BTGD)
    if scope.prefix is not None and (scope.cache is None or scope.documents is not None):
        prefix = scope.prefix[2 * layer : 2 * layer + 2]
        return _after(prefix, q_BTHD, k_BTGD, v_BTGD, scope, scoring, sinks_H)
    if scope.documents is not None:
        return _packed(q_BTHD, k_BTGD, v_BTGD, scope, scoring, sinks_H)
    if scope.cache is not None:
        mask = scope.mask if scoring.window is None else scope.narrow.get(scoring.window, scope.mask)
        return _continued(q_BTHD, scope.seen[2 * layer], scope.seen[2 * layer + 1], mask, scoring, sinks_H)
    return _causal(q_BTHD, k_BTGD, v_BTGD, scoring, sinks_H)


def _causal(
    q: Tensor, k: Tensor, v: Tensor, scoring: Scoring, sinks: Tensor | None, mask: Tensor | None = None
) -> Tensor:
    tokens = q.shape[1]
    plain = scoring.cap is None and sinks is None
    if mask is None and not (plain and (scoring.window or tokens) >= tokens):
        mask = ~_hidden(torch.arange(tokens, device=q.device), tokens, scoring.window)
    if plain and is_short(q, k.shape[1], masked=mask is not None):
        return short_attention(q, k, v, scoring.scale or q.shape[-1] ** -0.5, mask)
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    return _weighed(q, k, v, mask, scoring, sinks, is_causal=mask is None).transpose(1, 2)


def _packed(q: Tensor, k: Tensor, v: Tensor, scope: Scope, scoring: Scoring, sinks: Tensor | None) -> Tensor:
    assert scope.documents is not None
    masks: tuple[Tensor | None, ...] = scope.masks or (None,) * len(scope.documents)
    if scope.masks is not None and scoring.window is not None:
        places = scope.positions[0].split(scope.documents)
        masks = tuple(m & (p.unsqueeze(1) - p < scoring.window) for m, p in zip(scope.masks, places, strict=True))
    if len(masks) == 1:
        return _causal(q, k, v, scoring, sinks, masks[0])
    if scope.masks is None and len(set(scope.documents)) == 1:  # the rows of a batch, in one call
        by_row = [y.reshape(len(masks), scope.documents[0], *y.shape[2:]) for y in (q, k, v)]
        return _causal(by_row[0], by_row[1], by_row[2], scoring, sinks).reshape(q.shape)
    parts = zip(*(y.split(scope.documents, dim=1) for y in (q, k, v)), masks, strict=True)
    return torch.cat([_causal(q, k, v, scoring, sinks, mask) for q, k, v, mask in parts], dim=1)


def _after(
    prefix_2PGD: Tensor, q: Tensor, k: Tensor, v: Tensor, scope: Scope, scoring: Scoring, sinks: Tensor | None
) -> Tensor:
    """Attention of sequences that each see the prefix, then themselves."""
    before, documents, outputs = prefix_2PGD.shape[1], scope.documents or (q.shape[1],), []
    places = scope.positions[0].split(documents)
    masks = scope.masks or [torch.ones(n, n, dtype=torch.bool, device=q.device).tril_() for n in documents]
    for own_q, own_k, own_v, own, mask in zip(
        *(y.split(documents, dim=1) for y in (q, k, v)), places, masks, strict=True
    ):
        mask = F.pad(mask, (before, 0), value=True)
        if scoring.window is not None:
            seen = torch.cat([torch.arange(before, device=q.device), own])
            mask &= own.unsqueeze(1) - seen < scoring.window
        keys, values = (
            torch.cat([first.expand(len(rest), *first.shape), rest], dim=1)
            for first, rest in zip(prefix_2PGD, (own_k, own_v), strict=True)
        )
        outputs.append(_causal(own_q, keys, values, scoring, sinks, mask))
    return torch.cat(outputs, dim=1)


def _continued(
    q: Tensor,
    keys_BGSD: Tensor,
    values_BGSD: Tensor,
    mask: Tensor | None,
    scoring: Scoring,
    sinks: Tensor | None,
) -> Tensor:
    batch, tokens, heads, size = q.shape
    if tokens == 1 and scoring.cap is None and sinks is None:
        # The heads of a group share their keys, so they can stand where queries of different positions would.
        groups = keys_BGSD.shape[1]
        grouped = q.view(batch, groups, heads // groups, size)
        return _fused(grouped, keys_BGSD, values_BGSD, mask, scale=scoring.scale).view(q.shape)
    return _weighed(q.transpose(1, 2), keys_BGSD, values_BGSD, mask, scoring, sinks).transpose(1, 2)


def _weighed(
    q_BHTD: Tensor,
    k_BGSD: Tensor,
    v_BGSD: Tensor,
    mask: Tensor | None,
    scoring: Scoring,
    sinks_H: Tensor | None,
    is_causal: bool = False,
) -> Tensor:
    """Attention under a mask, [B, H, T, D]; scores are written out where they are capped or have sinks beside them."""
    if scoring.cap is None and sinks_H is None:
        return _fused(q_BHTD, k_BGSD, v_BGSD, mask, is_causal=is_causal, scale=scoring.scale, enable_gqa=True)
    groups = k_BGSD.shape[1]
    scale = q_BHTD.shape[-1] ** -0.5 if scoring.scale is None else scoring.scale
    scores = q_BHTD.unflatten(1, (groups, -1)) @ k_BGSD.unsqueeze(2).mT * scale
    if scoring.cap is not None:
        scores = scoring.cap * torch.tanh(scores / scoring.cap)
    if mask is not None:
        mask = mask.unsqueeze(-3)
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    if sinks_H is not None:
        column = sinks_H.to(scores.dtype).view(groups, -1, 1, 1).expand(*scores.shape[:-1], 1)
        scores = torch.cat((scores, column), dim=-1)
    shares = scores.float().softmax(-1).to(v_BGSD.dtype)[..., : k_BGSD.shape[2]]
    return (shares @ v_BGSD.unsqueeze(2)).flatten(1, 2)


def _fused(q_BHTD: Tensor, *others: Any, **options: Any) -> Tensor:
    """Torch's own kernel. What few queries multiply is too little for wide products, which take longer to begin."""
    if q_BHTD.shape[2] > SHORT_WIDE:
        return F.scaled_dot_product_attention(q_BHTD, *others, **options)
    with narrow_products():
        return F.scaled_dot_product_attention(q_BHTD, *others, **options)


def _hidden(positions_T: Tensor, filled: int, window: int | None) -> Tensor:
    """What tokens at these positions do not see of the first `filled`, [..., T, filled]."""
    places, own = torch.arange(filled, device=positions_T.device), positions_T.unsqueeze(-1)
    later = places > own
    return later if window is None else later | (places <= own - window)


def _mask(positions_BT: Tensor, filled: int, window: int | None, dtype: torch.dtype) -> Tensor:
    """`_hidden` as what is added to scores, -inf or 0, [B, 1, T, filled]."""
    hidden = _hidden(positions_BT, filled, window)
    return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, -torch.inf).unsqueeze(1)
