"""The decoder: embeddings, blocks, a norm and a head, under the names of the family's Hugging Face checkpoints.

Letters: B batch, T tokens, C channels, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from graftwood.model.architecture import Architecture
from graftwood.model.attention import KVCache, Scope, packed_turns, turning
from graftwood.model.config import ModelConfig
from graftwood.model.forks import Fork, fork_parts, forked_mask, forked_positions
from graftwood.model.layers import Linear


class Embedding(nn.Module):
    """A table of vectors by token id, [V, C], or by position."""

    def __init__(self, rows: int, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, size))

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weight)


class Preface(nn.Module, ABC):
    """What stands before every sequence and takes `tokens` positions.

    As `Decoder.prompt` it gives embeddings, [P, C]; as `Decoder.prefix` keys and values of each layer, as attention
    sees them, [2 * layers, P, G, D].
    """

    tokens: int

    @abstractmethod
    def forward(self) -> Tensor:
        """The embeddings, or the keys and values."""


class Decoder(nn.Module):
    """A causal language model of any registered architecture.

    `compute_dtype` is the number format activations have; parameters are cast to it where they are used, so that
    trained parameters can stay in float32. `base_precision` says whether the blocks' linears are quantised.
    """

    def __init__(self, architecture: Architecture, config: ModelConfig) -> None:
        super().__init__()
        self.architecture = architecture
        self.config = config
        self.compute_dtype = torch.float32
        self.base_precision = "full"
        names = architecture.names
        self._put(names.embedding, Embedding(config.vocab_size, config.hidden_size))
        if names.positions is not None:
            self._put(names.positions, Embedding(config.max_positions, config.hidden_size))
        self._put(names.blocks, nn.ModuleList(architecture.block(config, layer) for layer in range(config.layers)))
        self._put(names.norm, architecture.norm(config))
        if not config.tied_head:
            self._put(names.head, Linear(config.hidden_size, config.vocab_size, config.head_bias))
        # What a technique may put before every sequence: see `Preface`.
        self.prompt: Preface | None = None
        self.prefix: Preface | None = None
        self._own: dict[str, nn.Parameter | None] = {}  # what `swap` put aside, by path

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

    @property
    def precision(self) -> str:
        """The number format it computes in: what was measured in one is no baseline for another."""
        dtype = str(self.compute_dtype).removeprefix("torch.")
        return dtype if self.base_precision == "full" else f"{dtype}-{self.base_precision}"

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
        forks: Sequence[Sequence[Fork]] | None = None,
        entering: tuple[int, Tensor] | None = None,
        only: Tensor | None = None,
    ) -> Tensor:
        """Final hidden states, [B, T, C]; with `only` at these places alone, [B, M, C]: the last block does less.

        With `documents` the batch is one row of sequences laid end to end, each seeing only itself. With `cache` they
        become rows of it; `[B, T]` tokens without documents continue the B rows it has. With `forks` each document ends
        in alternatives of these lengths: they see what comes before all of them, and not each other; an alternative may
        end in alternatives itself. With `entering`, a block and what `into` gave for it, the pass
        begins there.
        """
        if entering is not None:
            return self._from(entering, documents, only)
        x, lengths, own = self._begun(ids_BT, None if documents is None else tuple(documents), cache)
        if forks is None:
            scope = self._scope(x, lengths, cache)
        else:
            assert lengths is not None, "forks are the ends of packed documents"
            assert cache is None, "forks are read in one pass, without a cache"
            scope = self._forked(lengths, forks, ids_BT.device)
        if own is not None:
            only = own if only is None else own[only]
        return self._normed(self._through(self._placed(x, scope), scope, only=only))

    @torch.no_grad()
    def into(self, block: int, ids_BT: Tensor, documents: Sequence[int]) -> Tensor:
        """Hidden states of packed documents on their way into a block, [1, T, C]."""
        x = self.embedded(ids_BT)
        scope = self._scope(x, tuple(documents), None)
        return self._through(self._placed(x, scope), scope, 0, block)

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
        return KVCache(self.config, rows, self.before + capacity, self.compute_dtype, self.device)

    @property
    def before(self) -> int:
        """Positions that prompt and prefix take before the first token of every sequence."""
        return sum(preface.tokens for preface in (self.prompt, self.prefix) if preface is not None)

    @property
    def context(self) -> int:
        """How many tokens a sequence may have."""
        return self.config.max_positions - self.before

    def linears(self) -> dict[str, Linear]:
        """Every linear of the blocks by its dotted path: what a technique may change."""
        prefix = self.architecture.names.blocks + "."
        return {
            name: module
            for name, module in self.named_modules()
            if isinstance(module, Linear) and name.startswith(prefix)
        }

    def sublayers(self) -> list[tuple[str, nn.Module, nn.Module]]:
        """Path of each block with its attention and its feed-forward: its first and its last part with linears."""
        found = []
        for number, block in enumerate(self.blocks):
            parts = [part for part in block.children() if any(isinstance(m, Linear) for m in part.modules())]
            found.append((f"{self.architecture.names.blocks}.{number}", _called(parts[0]), _called(parts[-1])))
        return found

    def below(self, block: int) -> dict[str, nn.Parameter]:
        """Parameters on the way into a block, by name: the embeddings, which may be the head, too, and other blocks."""
        names = self.architecture.names
        paths = [names.embedding, *filter(None, [names.positions]), *(f"{names.blocks}.{n}" for n in range(block))]
        starts = tuple(f"{path}." for path in paths)
        return {name: parameter for name, parameter in self.named_parameters() if name.startswith(starts)}

    def trained(self) -> dict[str, nn.Parameter]:
        """Parameters that training may change, by name."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def swap(self, path: str, value: Tensor) -> None:
        """Let `value` train in the place of a parameter, or where there is none; `without_deltas` undoes it."""
        owner, _, leaf = path.rpartition(".")
        module = self.get_submodule(owner)
        self._own.setdefault(path, getattr(module, leaf))
        setattr(module, leaf, nn.Parameter(value))

    def swapped(self) -> dict[str, nn.Parameter]:
        """What trains in the place of the base's own parameters, by path."""
        return {path: self.get_parameter(path) for path in self._own}

    def without_place(self) -> list[str]:
        """What was swapped in where the base has nothing."""
        return [path for path, own in self._own.items() if own is None]

    def settle(self) -> None:
        """Make what was swapped in the base's own, in the number format of what it replaces."""
        for path, own in self._own.items():
            owner, _, leaf = path.rpartition(".")
            assert own is not None, "what has no place in the base cannot become part of it"
            self.get_submodule(owner)._parameters[leaf] = nn.Parameter(
                self.get_parameter(path).detach().to(own.dtype), requires_grad=False
            )
        self._own = {}

    @contextmanager
    def without_deltas(self) -> Iterator[None]:
        """The base as it was: everything a technique put on is taken off inside the block and put back after it."""
        places = self._added()
        held = [place[name] for place, name, _ in places]
        try:
            for place, name, own in places:
                place[name] = own
            yield
        finally:
            for (place, name, _), value in zip(places, held, strict=True):
                place[name] = value

    def keepsake(self) -> Callable[[], None]:
        """What puts every parameter and delta back where it is now; it holds them, and copies nothing."""
        held = [(module, dict(module._parameters), dict(module._modules)) for module in self.modules()]
        own, trains = dict(self._own), [(p, p.requires_grad) for p in self.parameters()]

        def back() -> None:
            for module, parameters, parts in held:
                # What came since is asked for by its name, so it becomes nothing instead of going.
                module._parameters = dict.fromkeys(module._parameters) | parameters
                module._modules = dict.fromkeys(module._modules) | parts
            self._own = dict(own)
            for parameter, train in trains:
                parameter.requires_grad_(train)

        return back

    def take_off(self) -> None:
        """Make the decoder the base it was: everything a technique put on is gone."""
        for place, name, own in self._added():
            place[name] = own
        self._own = {}

    def _added(self) -> list[tuple[dict[str, Any], str, nn.Parameter | None]]:
        """Where a technique put something, and what the base has there: the dictionary, the name, its own value."""
        places: list[tuple[dict[str, Any], str, nn.Parameter | None]] = []
        for module in self.modules():
            added = ("delta", "prompt", "prefix") if module is self else ("delta",)
            places += [(module._modules, name, None) for name in added if module._modules.get(name) is not None]
        for path, own in self._own.items():
            owner, _, leaf = path.rpartition(".")
            places.append((self.get_submodule(owner)._parameters, leaf, own))
        return places

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

    def embedded(self, ids: Tensor) -> Tensor:
        """What tokens are to the first block, their positions aside."""
        x = self.embedding(ids).to(self.compute_dtype)
        return x if self.config.embedding_scale == 1.0 else x * x.new_tensor(self.config.embedding_scale)

    def _put(self, path: str, module: nn.Module) -> None:
        """Register `module` under a dotted path, making the containers on the way."""
        *parents, leaf = path.split(".")
        owner: nn.Module = self
        for name in parents:
            if not hasattr(owner, name):
                owner.add_module(name, nn.Module())
            owner = owner.get_submodule(name)
        owner.add_module(leaf, module)

    def _begun(
        self, ids: Tensor, documents: tuple[int, ...] | None, cache: KVCache | None
    ) -> tuple[Tensor, tuple[int, ...] | None, Tensor | None]:
        """Inputs, the documents' lengths, and, where a prompt stands among them, the places of the tokens."""
        x = self.embedded(ids)
        if self.prompt is None or (cache is not None and (documents is None or cache.common is not None)):
            return x, documents, None
        prompt = self.prompt().to(x.dtype)
        before, lengths = len(prompt), documents or (ids.shape[1],)
        parts = [part for own in x.split(lengths, dim=1) for part in (prompt.expand(len(x), *prompt.shape), own)]
        ends = [length + before for length in lengths]
        starts = [sum(ends[:number]) for number in range(len(ends))]
        own = [
            torch.arange(start + before, start + end, device=ids.device)
            for start, end in zip(starts, ends, strict=True)
        ]
        return torch.cat(parts, dim=1), None if documents is None else tuple(ends), torch.cat(own)

    def _from(self, entering: tuple[int, Tensor], documents: Sequence[int] | None, only: Tensor | None) -> Tensor:
        """Final hidden states of packed documents, from their states on the way into a block."""
        assert documents is not None, "packed documents alone go on from a block"
        assert not self.before, "what stands before every sequence is below every block"
        first, x = entering
        return self._normed(self._through(x, self._scope(x, tuple(documents), None), first, only=only))

    def _placed(self, x: Tensor, scope: Scope) -> Tensor:
        """What enters the first block: tokens with their positions, where the family adds those."""
        positions = self.architecture.names.positions
        return x if positions is None else x + self.get_submodule(positions)(scope.positions).to(x.dtype)

    def _through(
        self, x: Tensor, scope: Scope, first: int = 0, end: int | None = None, only: Tensor | None = None
    ) -> Tensor:
        blocks = list(islice(self.blocks, first, end))
        for block in blocks[:-1]:
            x = block(x, scope)
        scope = scope if only is None else replace(scope, only=only)
        return blocks[-1](x, scope) if blocks else scope.leaving(x)

    def _normed(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.get_submodule(self.architecture.names.norm)(x))

    def _scope(self, x: Tensor, documents: tuple[int, ...] | None, cache: KVCache | None) -> Scope:
        batch, tokens, _ = x.shape
        if documents is not None:
            assert batch == 1, "packed documents are a batch of one"
            assert sum(documents) == tokens, "packed documents fill their batch exactly"
        if cache is not None and documents is None:
            return cache.advance(tokens)
        prefix, start = self._prefixed()
        if cache is not None and documents is not None:
            return cache.admit(documents, prefix)
        places = packed_turns(self.config, documents or (tokens,), start, self.compute_dtype, x.device)
        return Scope(*places, documents, prefix=prefix)

    def _forked(self, documents: tuple[int, ...], forks: Sequence[Sequence[Fork]], device: torch.device) -> Scope:
        parts = [fork_parts(length, ends) for length, ends in zip(documents, forks, strict=True)]
        masks = tuple(forked_mask(these, device) for these in parts)
        prefix, start = self._prefixed()
        positions = torch.cat([forked_positions(these, device) for these in parts]).unsqueeze(0) + start
        return Scope(positions, turning(self.config, positions, self.compute_dtype), documents, masks, prefix)

    def _prefixed(self) -> tuple[Tensor | None, int]:
        if self.prefix is None:
            return None, 0
        return self.prefix().to(self.compute_dtype), self.prefix.tokens


def _called(part: nn.Module) -> nn.Module:
    """The part, or what a family keeps in it: a dictionary is there for the name alone, and never called."""
    while isinstance(part, nn.ModuleDict):
        (part,) = part.values()
    return part


def hook(module: nn.Module, delta: nn.Module) -> None:
    """Let `delta(input, output)` answer for a module, until its `delta` is None again; both are of what leaves it."""
    if "delta" not in module._modules:
        module.register_forward_hook(_answer)
    module.add_module("delta", delta)


def _answer(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    delta = module._modules["delta"]
    if delta is None:
        return output
    x, *scope = inputs
    return cast(Tensor, delta(scope[0].leaving(x) if scope else x, output))


def count_parameters(parameters: Iterable[Tensor]) -> int:
    """Elements of all the tensors together, each tensor counted once."""
    return sum({id(parameter): parameter.numel() for parameter in parameters}.values())
