"""GPT-3: GPT-2's block, every other layer seeing a band of the last positions instead of all. No weights are published.

The band's width is not published either; 256 is GPT-Neo's. Source: Brown et al. 2020, arXiv 2005.14165, section 2.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from graftwood.model import hf
from graftwood.model.architecture import Architecture
from graftwood.model.architectures import gpt2
from graftwood.model.blocks import layer_norm
from graftwood.model.config import ModelConfig

BAND = 256


def read(fields: Mapping[str, Any]) -> ModelConfig:
    """Sizes from a `config.json`. Raises: ModelError for an option the block does not compute."""
    hf.refuse_the_rest(fields, "gpt3", reads=("layer_types", "sliding_window"))
    dense_first = ["sliding_attention" if layer % 2 else "full_attention" for layer in range(fields["n_layer"])]
    return gpt2.sizes(
        {"n_positions": 2048, **fields},
        "gpt3",
        rotary_size=0,
        tied_head=fields.get("tie_word_embeddings", True),
        windows=hf.windows(fields, dense_first, BAND),
    )


def write(config: ModelConfig) -> dict[str, Any]:
    """The `config.json` that `read` maps to `config`."""
    return gpt2.write_sizes(config, "gpt3", "GPT3LMHeadModel") | hf.write_windows(config)


GPT3 = Architecture(
    name="gpt3",
    model_types=("gpt3",),
    gguf=(),
    names=gpt2.NAMES,
    read=read,
    write=write,
    block=gpt2.Block,
    norm=layer_norm,
    rules=gpt2.RULES,
)
