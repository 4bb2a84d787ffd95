"""The embeddings and the lower blocks stay as they are, whatever the technique trains above them."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from graftwood.anchor import Anchor
from graftwood.model.decoder import Decoder
from graftwood.technique import Technique

_SHARE = 0.6


class FreezeBelow(Anchor):
    """Nothing below block `layers` changes; a head that is the embedding is below, too."""

    name: ClassVar[str] = "freeze_below"
    title: ClassVar[str] = "lower blocks as they are"
    formula: ClassVar[str] = "only blocks `layers` and above train, from states that are computed once for every row"
    cost: ClassVar[str] = "less than without it; of every token of the rows one vector of the model's width on disk"
    source: ClassVar[str] = "arXiv 2501.13453"

    layers: Annotated[
        int | None, Field(ge=0, description="how many of the lower blocks stay; by default three of five, 0 for none")
    ] = None

    def begins(self, decoder: Decoder) -> int:
        return round(_SHARE * decoder.config.layers) if self.layers is None else self.layers

    def problems(self, technique: Technique, decoder: Decoder) -> list[str]:
        begins, found = self.begins(decoder), []
        if begins >= decoder.config.layers:
            found.append(
                f"freeze_below: layers={begins} leaves none of this model's {decoder.config.layers} blocks to train; "
                f"give at most {decoder.config.layers - 1}"
            )
        if begins and not technique.starts_at_base:
            found.append(
                f"freeze_below: {technique.name} trains what stands before the text, below every block; leave the "
                "anchor out, or choose a technique that trains in the blocks"
            )
        touched = {_owner(name) for name in technique.touches(decoder) or ()}
        if begins and not found and touched and touched <= set(map(_owner, decoder.below(begins))):
            what = f"nothing that {technique.name} trains is in block {begins} or above it"
            found.append(f"freeze_below: {what}; keep fewer blocks")
        return found


def _owner(name: str) -> str:
    return name.rpartition(".")[0]
