"""What an anchor says of itself: one frozen configuration of what holds a model to its base while it learns."""

from __future__ import annotations

import inspect
from abc import ABC
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from graftwood.base import Base
from graftwood.config import parse_options
from graftwood.data.batch import Order, Packed, Rows, Trickle, in_turn
from graftwood.data.rows import Row
from graftwood.generate.engine import Engine
from graftwood.model.decoder import Decoder
from graftwood.model.expected import Expected
from graftwood.registry import Registry
from graftwood.samples import LENGTH, REPLAY_SEED, remembered
from graftwood.technique import Technique
from graftwood.train.below import freeze_below
from graftwood.train.hold import Hold
from graftwood.train.loop import Plan

_SETS = (48, 96, 144, 192)  # a batch of the engine, and multiples of it


@dataclass(frozen=True)
class Ground:
    """What there is to hold on to: the base with a technique on it that has not trained yet, the rows, the plan.

    `stage` is told what takes long.
    """

    base: Base
    technique: Technique
    rows: Rows
    plan: Plan
    stage: Callable[[str], AbstractContextManager[Any]] = nullcontext

    def remembered(self, windows: int | None, share: float = 0.0) -> Expected:
        """Samples of the base's own for training, with what it expected in them; never those that measure drift.

        Without a number there are as many as a run of this `share` draws, so that few come twice: 48 to 192.
        """
        base, room = self.base, self.technique.room(self.base.decoder)
        if windows is None:
            steps = Order(len(self.rows), self.plan.batch, self.plan.epochs, self.plan.seed).steps
            drawn = steps * self.rate(share, min(LENGTH, room))
            windows = next((some for some in _SETS if drawn < 1.5 * some), _SETS[-1])
        with base.decoder.without_deltas(), self.stage("text of the base itself, to hold on to"):
            engine = Engine(base.decoder, base.tokenizer.eos, base.tokenizer)
            return remembered(base, engine, windows, REPLAY_SEED, room)

    def rate(self, share: float, length: float) -> float:
        """How many texts of this many tokens a step reads on average: such a share of its own tokens."""
        return share * self.step_tokens / length

    def trickle(self, texts: int, share: float, length: float) -> Trickle:
        """Which of these texts a step reads."""
        return Trickle(texts, self.rate(share, length), self.plan.seed)

    def untouched(self, look: Callable[[Decoder, Packed], tuple[Tensor, ...]]) -> list[tuple[Tensor, ...]]:
        """What the base by itself makes of the rows' predictions, row by row.

        `look` gives tensors with an entry for each prediction of a pack.
        """
        decoder = self.base.decoder
        found: list[tuple[Tensor, ...]] = []
        with decoder.without_deltas(), torch.no_grad(), self.stage("what the base makes of the rows"):
            for packed in in_turn(self.rows, self.plan.token_budget):
                part = packed.to(decoder.device)
                found += zip(*(packed.by_row(told.cpu()) for told in look(decoder, part)), strict=True)
        return found

    @property
    def step_tokens(self) -> float:
        """Tokens an optimiser step reads on average."""
        return float(self.rows.sizes.mean()) * min(self.plan.batch, len(self.rows))


class Anchor(BaseModel, ABC):
    """An entry of `anchors/`. Its fields are the options a user may set.

    `formula`, `cost` and `source` are for people who choose. `needs_slopes` is true where it needs the slope of the
    base's own matrices, which a quantised one has not; `paths` are the options that name files.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: ClassVar[str]
    title: ClassVar[str]
    formula: ClassVar[str]
    cost: ClassVar[str]
    source: ClassVar[str]
    needs_slopes: ClassVar[bool] = False
    paths: ClassVar[tuple[str, ...]] = ()

    def problems(self, technique: Technique, decoder: Decoder) -> list[str]:
        """All that keeps it from working with this technique on this decoder, whose parameters may have no values."""
        return []

    def rows(self) -> Sequence[Row]:
        """Rows of the user's own that the model reads for it. Raises: DataError for those that cannot be used."""
        return ()

    def plan(self, plan: Plan) -> Plan:
        """How the run trains with it."""
        return plan

    def begins(self, decoder: Decoder) -> int:
        """The block that training begins at: nothing below it changes, so what enters it is computed once."""
        return 0

    def hold(self, ground: Ground) -> Hold:
        """The anchor at work on one run, before the first step of it."""
        return Hold()

    @property
    def beside(self) -> float:
        """Tokens of other text that training reads for each token of the rows."""
        return 0.0

    @property
    def dial(self) -> float:
        """How much of the way from the base to where training ended the result has gone."""
        return 1.0

    @classmethod
    def parse(cls, options: Mapping[str, Any]) -> Self:
        """Options as a user gave them. Raises: ConfigError naming every option that is unknown or out of range."""
        return parse_options(cls, cls.name, options)

    @classmethod
    def summary(cls) -> dict[str, Any]:
        """What there is to know before choosing."""
        options = {name: field.get_default(call_default_factory=True) for name, field in cls.model_fields.items()}
        about = {key: getattr(cls, key) for key in ("name", "title", "formula", "cost", "source")}
        return about | {"options": options}


def narrow(anchors: Sequence[Anchor], decoder: Decoder) -> int:
    """Freeze, of what a technique on the decoder trains, what anchors keep as it is; the block that training begins at.

    Raises: ConfigError where nothing is left to train.
    """
    block = max((anchor.begins(decoder) for anchor in anchors), default=0)
    freeze_below(decoder, block)
    return block


def _entry(value: object) -> type[Anchor] | None:
    return value if inspect.isclass(value) and issubclass(value, Anchor) and value is not Anchor else None


ANCHORS: Registry[type[Anchor]] = Registry("graftwood.anchors", "anchor", _entry)
