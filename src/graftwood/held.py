"""What a model that is open already decides of a run: its device and its number format."""

from __future__ import annotations

from graftwood.config import RunConfig
from graftwood.model.decoder import Decoder
from graftwood.runtime import place


def held_in(decoder: Decoder) -> dict[str, str]:
    """Device and number format of a decoder, as a configuration names them."""
    return {"device": device_of(decoder.device), "dtype": str(decoder.compute_dtype).removeprefix("torch.")}


def device_of(given: object) -> str:
    """A device's name; the first is meant where no number is given."""
    return str(given).removesuffix(":0")


def as_held(config: RunConfig, decoder: Decoder | None) -> RunConfig:
    """The configuration with what a decoder that is open has, where `auto` would be something else."""
    if decoder is None:
        return config
    own = held_in(decoder)
    usual = {"device": device_of(place().device), "dtype": str(place(own["device"]).dtype).removeprefix("torch.")}
    return config.model_copy(update={k: v for k, v in own.items() if getattr(config, k) == "auto" and v != usual[k]})
