"""Qwen 3: the Llama block with a norm on every head's queries and keys before they turn, and wide heads.

Source: Yang et al. 2025, arXiv 2505.09388.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from graftwood.model import ggml, hf
from graftwood.model.architecture import Architecture, Names
from graftwood.model.architectures import qwen2
from graftwood.model.attention import Attention
from graftwood.model.blocks import PreNormBlock, rms_norm
from graftwood.model.config import ModelConfig
from graftwood.model.layers import RMSNorm


def read(fields: Mapping[str, Any]) -> ModelConfig:
    """Sizes from a `config.json`. Raises: ModelError for an option the block does not compute."""
    hf.refuse_the_rest(fields, "qwen3", reads=("attention_bias", *qwen2.WINDOWED))
    hf.activation(fields, "hidden_act", "qwen3", "silu", only=("silu",))
    return hf.llama_sizes(
        fields,
        "qwen3",
        head_size=fields.get("head_dim") or 128,
        attention_bias=fields.get("attention_bias", False),
        windows=qwen2.windows(fields),
    )


def write(config: ModelConfig) -> dict[str, Any]:
    """The `config.json` that `read` maps to `config`."""
    own = {"attention_bias": config.attention_bias, **qwen2.write_windows(config)}
    return hf.write_llama_sizes(config, "qwen3", "Qwen3ForCausalLM", **own)


def block(config: ModelConfig, layer: int) -> PreNormBlock:
    """The Llama block around attention with normed queries and keys."""
    norms = RMSNorm(config.head_size, config.norm_eps), RMSNorm(config.head_size, config.norm_eps)
    return PreNormBlock(config, Attention(config, layer, norms=norms))


QWEN3 = Architecture(
    name="qwen3",
    model_types=("qwen3",),
    gguf=("qwen3",),
    names=Names("model.embed_tokens", "model.layers", "model.norm", "lm_head"),
    read=read,
    write=write,
    block=block,
    norm=rms_norm,
    gguf_config=lambda metadata: ggml.llama_config(metadata, "qwen3", "Qwen3ForCausalLM"),
    gguf_rules=ggml.llama_rules(attn_q_norm="self_attn.q_norm", attn_k_norm="self_attn.k_norm"),
)
