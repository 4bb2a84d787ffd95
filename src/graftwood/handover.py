"""Export with a check: what was written is read back and must give the same logits."""

from __future__ import annotations

from pathlib import Path

import torch

from graftwood.checkpoint import ADAPTER_CONFIG, read_notes, read_object
from graftwood.errors import ConfigError, ModelError
from graftwood.model.weights import load_decoder
from graftwood.run import Model, recorded_model
from graftwood.runtime import Place

TOLERANCE = 1e-3  # of a logit, in float32: what merging a low-rank product into a matrix may round
_TEXT = "The quick brown fox jumps over the lazy dog. 3 + 4 = 7\ndef add(a, b):\n    return a + b\n"


def export(model: Model, folder: Path) -> float:
    """Write the model as a Hugging Face folder and return the largest difference of a logit after reading it back.

    Raises: ModelError when the difference is above `TOLERANCE` for float32.
    """
    decoder = model.base.decoder
    ids = torch.tensor([model.base.tokenizer.encode(_TEXT)], device=decoder.device)
    with torch.inference_mode():
        wanted = decoder(ids)
        written = model.export(folder)
        again = load_decoder(written, Place(decoder.device, decoder.compute_dtype))(ids)
    difference = float((wanted - again).abs().max())
    if decoder.compute_dtype == torch.float32 and difference > TOLERANCE:
        raise ModelError(f"{folder} gives logits that differ by {difference:.1e}; do not use it")
    return difference


def recorded_base(adapter: Path) -> str:
    """The base an adapter or run folder names. Raises: ConfigError where it names none."""
    if (adapter / "run.toml").is_file():
        return recorded_model(adapter)
    if (adapter / ADAPTER_CONFIG).is_file():
        # PEFT's file names a folder that transformers opens, which for a converted base is one of the cache.
        theirs = read_object(adapter / ADAPTER_CONFIG).get("base_model_name_or_path")
        named = read_notes(adapter).get("base_source", theirs)
        if not isinstance(named, str) or not named:
            raise ConfigError(f"{adapter / ADAPTER_CONFIG} does not say of which base it is; name it with --model")
        if Path(named).is_absolute() and not Path(named).exists():
            raise ConfigError(f"{adapter} is of the base {named}, which is not there; name it with --model")
        return named
    raise ConfigError(f"{adapter} is neither a run nor an adapter folder; name the base with --model")
