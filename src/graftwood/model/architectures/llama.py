"""Llama: pre-norm RMS, rotary positions on halves, grouped key/value heads, SwiGLU, no biases unless the file says so.

Source: Touvron et al. 2023, arXiv 2302.13971; grouped heads from arXiv 2307.09288. Read here: Llama 1 to 3, SmolLM 1
and 2, TinyLlama and everything else that calls itself `llama`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from graftwood.model import ggml, hf
from graftwood.model.architecture import Architecture, Names
from graftwood.model.attention import Attention
from graftwood.model.blocks import PreNormBlock, rms_norm
from graftwood.model.config import ModelConfig


def read(fields: Mapping[str, Any]) -> ModelConfig:
    """Sizes from a `config.json`. Raises: ModelError for an option the block does not compute."""
    hf.refuse_the_rest(fields, "llama", reads=("attention_bias", "mlp_bias"))
    hf.activation(fields, "hidden_act", "llama", "silu", only=("silu",))
    return hf.llama_sizes(
        fields,
        "llama",
        attention_bias=fields.get("attention_bias", False),
        feed_forward_bias=fields.get("mlp_bias", False),
    )


def write(config: ModelConfig) -> dict[str, Any]:
    """The `config.json` that `read` maps to `config`."""
    biases = {"attention_bias": config.attention_bias, "mlp_bias": config.feed_forward_bias}
    return hf.write_llama_sizes(config, "llama", "LlamaForCausalLM", **biases)


LLAMA = Architecture(
    name="llama",
    model_types=("llama",),
    gguf=("llama",),
    names=Names("model.embed_tokens", "model.layers", "model.norm", "lm_head"),
    read=read,
    write=write,
    block=lambda config, layer: PreNormBlock(config, Attention(config, layer)),
    norm=rms_norm,
    gguf_config=lambda metadata: ggml.llama_config(metadata, "llama", "LlamaForCausalLM"),
    gguf_rules=ggml.llama_rules(transforms=ggml.PAIRED),
    ignored=("rotary_emb.inv_freq",),
)
