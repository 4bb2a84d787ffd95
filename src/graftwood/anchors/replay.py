"""Rehearsal: next-token training on other text beside the rows, the base's own samples or a file of the user's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from graftwood.anchor import Anchor, Ground
from graftwood.data.batch import Examples, Packed, Rows, Trickle
from graftwood.data.encode import Example, encode_rows
from graftwood.data.rows import Row
from graftwood.data.sources import load_splits
from graftwood.model.decoder import Decoder
from graftwood.technique import Technique
from graftwood.train.hold import Hold
from graftwood.train.loss import summed_loss


class Replay(Anchor):
    """Loss on text that is not of the task."""

    name: ClassVar[str] = "replay"
    title: ClassVar[str] = "rehearsal of other text"
    formula: ClassVar[str] = "loss + weight * (-log q of the next token), a mean over replayed tokens"
    cost: ClassVar[str] = "`share` of the tokens more; the base's samples once a base where no file is given"
    source: ClassVar[str] = "arXiv 2502.06042; arXiv 2505.13811"
    paths: ClassVar[tuple[str, ...]] = ("file",)

    weight: Annotated[float, Field(ge=0, description="what the loss on replayed text is multiplied with")] = 1.0
    share: Annotated[float, Field(gt=0, le=4, description="replayed tokens a token of the rows")] = 0.25
    windows: Annotated[
        int | None,
        Field(
            ge=1,
            description="samples of 128 tokens; by default 48 to 192, by the steps",
        ),
    ] = None
    file: Annotated[str, Field(description="JSONL rows to replay instead of what the base writes itself")] = ""

    def problems(self, technique: Technique, decoder: Decoder) -> list[str]:
        if not self.file:
            return []
        found = []
        if self.windows is not None:
            found.append("replay: windows are of the base's own text, and file gives other rows; leave one of them out")
        if not Path(self.file).is_file():
            fix = "give a JSONL file, or leave file out to replay the base's text"
            found.append(f"replay: there is no file {self.file}; {fix}")
        return found

    @property
    def beside(self) -> float:
        return self.share

    def rows(self) -> Sequence[Row]:
        return load_splits(Path(self.file), None, None, 0.0, 0).train if Path(self.file).is_file() else ()

    def hold(self, ground: Ground) -> Hold:
        rows = Examples(self._examples(ground))
        trickle = ground.trickle(len(rows), self.share, float(rows.sizes.mean()))
        return Rehearsed(rows, self.weight, trickle, ground.plan.token_budget)

    def _examples(self, ground: Ground) -> list[Example]:
        base = ground.base
        if self.file:
            return encode_rows(base.encoder(), self.rows())
        windows = ground.remembered(self.windows, self.share).ids.tolist()
        return [
            Example(tuple(ids), (False, *(True for _ in ids[1:])), Row("text", file="the base's own text", line=number))
            for number, ids in enumerate(windows, 1)
        ]


class Rehearsed(Hold):
    """Some of the rows at each step, all of them in turn; a row weighs the same at a step that reads many or few."""

    def __init__(self, rows: Rows, weight: float, trickle: Trickle, budget: int) -> None:
        self._rows, self._weight, self._trickle, self._budget = rows, weight, trickle, budget

    def losses(self, decoder: Decoder, step: int) -> Iterator[tuple[Tensor, int]]:
        rows = self._trickle.at(step)
        packs: list[Packed] = self._rows.packs(rows, self._budget) if rows else []
        counted = sum(len(packed.targets) for packed in packs)
        weight = self._weight * len(rows) / self._trickle.rate
        for packed in packs:
            part = packed.to(decoder.device)
            yield summed_loss(decoder, part) * (weight / max(1, counted)), part.tokens
