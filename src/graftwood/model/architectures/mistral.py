"""Mistral: the Llama block, every layer of it seeing the last few thousand positions where a window is given.

Source: Jiang et al. 2023, arXiv 2310.06825. GGUF files call it `llama`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from graftwood.model import hf
from graftwood.model.architecture import Architecture, Names
from graftwood.model.attention import Attention
from graftwood.model.blocks import PreNormBlock, rms_norm
from graftwood.model.config import ModelConfig


def read(fields: Mapping[str, Any]) -> ModelConfig:
    """Sizes from a `config.json`. Raises: ModelError for an option the block does not compute."""
    hf.refuse_the_rest(fields, "mistral", reads=("sliding_window",))
    hf.activation(fields, "hidden_act", "mistral", "silu", only=("silu",))
    windows = hf.windows(fields, ["sliding_attention"] * fields["num_hidden_layers"], default=4096)
    return hf.llama_sizes(fields, "mistral", windows=windows)


def write(config: ModelConfig) -> dict[str, Any]:
    """The `config.json` that `read` maps to `config`."""
    return hf.write_llama_sizes(config, "mistral", "MistralForCausalLM", sliding_window=config.window(0))


MISTRAL = Architecture(
    name="mistral",
    model_types=("mistral",),
    gguf=(),
    names=Names("model.embed_tokens", "model.layers", "model.norm", "lm_head"),
    read=read,
    write=write,
    block=lambda config, layer: PreNormBlock(config, Attention(config, layer, biases=(False, False))),
    norm=rms_norm,
)
