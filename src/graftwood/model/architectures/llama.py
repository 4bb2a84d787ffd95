"""Llama: pre-norm RMS, rotary positions on halves, grouped key/value heads, SwiGLU, no biases unless the file says so.

Source: Touvron et al. 2023, arXiv 2302.13971; grouped heads from arXiv 2307.09288. Read here: Llama 1 to 3, SmolLM 1
and 2, TinyLlama and everything else that calls itself `llama`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn

from graftwood.errors import ModelError
from graftwood.model.architecture import Architecture, Names
from graftwood.model.attention import Attention, Scope
from graftwood.model.config import ModelConfig, RopeScaling
from graftwood.model.layers import Linear, RMSNorm, project, swiglu
from graftwood.model.rules import ROTARY_KEY, ROTARY_QUERY, Rule


class GatedFeedForward(nn.Module):
    """`down(silu(gate(x)) * up(x))`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        inner, bias = config.feed_forward_size, config.feed_forward_bias
        self.gate_proj = Linear(config.hidden_size, inner, bias)
        self.up_proj = Linear(config.hidden_size, inner, bias)
        self.down_proj = Linear(inner, config.hidden_size, bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(swiglu(*project(x, self.gate_proj, self.up_proj)))


class Block(nn.Module):
    """Attention, then feed-forward, each on a normed copy and added back."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.mlp = GatedFeedForward(config)

    def forward(self, x: Tensor, scope: Scope) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), scope)
        return x + self.mlp(self.post_attention_layernorm(x))


def read(hf: Mapping[str, Any]) -> ModelConfig:
    """Sizes from a `config.json`. Raises: ModelError for an activation or rope scaling the block does not compute."""
    if hf.get("hidden_act", "silu") != "silu":
        raise ModelError(f"hidden_act {hf['hidden_act']!r} is not one the llama block computes; it computes silu")
    rope = {**(hf.get("rope_scaling") or {}), **(hf.get("rope_parameters") or {})}
    return ModelConfig(
        architecture="llama",
        vocab_size=hf["vocab_size"],
        hidden_size=hf["hidden_size"],
        layers=hf["num_hidden_layers"],
        heads=hf["num_attention_heads"],
        kv_heads=hf.get("num_key_value_heads") or hf["num_attention_heads"],
        head_size=hf.get("head_dim") or hf["hidden_size"] // hf["num_attention_heads"],
        feed_forward_size=hf["intermediate_size"],
        max_positions=hf.get("max_position_embeddings", 2048),
        norm_eps=hf.get("rms_norm_eps", 1e-6),
        rope_theta=float(rope.get("rope_theta") or hf.get("rope_theta") or 10000.0),
        rope_scaling=_rope_scaling(rope),
        tied_head=hf.get("tie_word_embeddings", False),
        attention_bias=hf.get("attention_bias", False),
        feed_forward_bias=hf.get("mlp_bias", False),
        init_std=hf.get("initializer_range", 0.02),
    )


def _rope_scaling(rope: Mapping[str, Any]) -> RopeScaling | None:
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        return None
    if kind == "linear":
        return RopeScaling("linear", float(rope["factor"]))
    if kind == "llama3":
        return RopeScaling(
            "llama3",
            float(rope["factor"]),
            float(rope["low_freq_factor"]),
            float(rope["high_freq_factor"]),
            int(rope["original_max_position_embeddings"]),
        )
    raise ModelError(f"rope scaling {kind!r} is not one the llama block computes; it computes default, linear, llama3")


def write(config: ModelConfig) -> dict[str, Any]:
    """The `config.json` that `read` maps to `config`."""
    rope: dict[str, Any] | None = None
    scaling = config.rope_scaling
    if scaling is not None:
        rope = {"rope_type": scaling.kind, "factor": scaling.factor}
        if scaling.kind == "llama3":
            rope |= {
                "low_freq_factor": scaling.low_frequency_factor,
                "high_freq_factor": scaling.high_frequency_factor,
                "original_max_position_embeddings": scaling.original_positions,
            }
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_size,
        "intermediate_size": config.feed_forward_size,
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": rope,
        "tie_word_embeddings": config.tied_head,
        "attention_bias": config.attention_bias,
        "mlp_bias": config.feed_forward_bias,
        "hidden_act": "silu",
        "initializer_range": config.init_std,
    }


def gguf_config(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """A `config.json` from GGUF metadata. Raises: ModelError for a mixture of experts or a partial rotation."""
    if metadata.get("expert_count"):
        raise ModelError(f"this GGUF file is a mixture of {metadata['expert_count']} experts; the llama block is dense")
    head_size = metadata.get("attention.key_length", metadata["embedding_length"] // metadata["attention.head_count"])
    rotated = metadata.get("rope.dimension_count", head_size)
    if rotated != head_size:
        raise ModelError(f"this GGUF file rotates {rotated} of {head_size} dimensions; the llama block rotates all")
    scaling = metadata.get("rope.scaling.type", "none")
    if scaling not in ("none", "linear"):
        raise ModelError(f"rope scaling {scaling!r} of a GGUF file is not read; use the model's safetensors folder")
    rope = {"rope_type": "linear", "factor": metadata["rope.scaling.factor"]} if scaling == "linear" else None
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": metadata["embedding_length"],
        "num_hidden_layers": metadata["block_count"],
        "num_attention_heads": metadata["attention.head_count"],
        "num_key_value_heads": metadata.get("attention.head_count_kv", metadata["attention.head_count"]),
        "head_dim": head_size,
        "intermediate_size": metadata["feed_forward_length"],
        "max_position_embeddings": metadata["context_length"],
        # Stored as float32; the shortest decimal that reads back the same is the number its author wrote.
        "rms_norm_eps": float(str(np.float32(metadata["attention.layer_norm_rms_epsilon"]))),
        "rope_theta": float(str(np.float32(metadata.get("rope.freq_base", 10000.0)))),
        "rope_scaling": rope,
        "hidden_act": "silu",
    }


def _gguf(stem: str, parameter: str) -> Rule:
    transform = {"attn_q": ROTARY_QUERY, "attn_k": ROTARY_KEY}.get(stem)
    return Rule(f"blk.{{n}}.{stem}.weight", f"model.layers.{{n}}.{parameter}.weight", transform)


LLAMA = Architecture(
    name="llama",
    model_types=("llama",),
    gguf=("llama",),
    names=Names("model.embed_tokens", "model.layers", "model.norm", "lm_head"),
    read=read,
    write=write,
    block=Block,
    norm=lambda config: RMSNorm(config.hidden_size, config.norm_eps),
    gguf_config=gguf_config,
    gguf_rules=(
        Rule("token_embd.weight", "model.embed_tokens.weight"),
        Rule("output_norm.weight", "model.norm.weight"),
        Rule("output.weight", "lm_head.weight"),
        _gguf("attn_norm", "input_layernorm"),
        _gguf("attn_q", "self_attn.q_proj"),
        _gguf("attn_k", "self_attn.k_proj"),
        _gguf("attn_v", "self_attn.v_proj"),
        _gguf("attn_output", "self_attn.o_proj"),
        _gguf("ffn_norm", "post_attention_layernorm"),
        _gguf("ffn_gate", "mlp.gate_proj"),
        _gguf("ffn_up", "mlp.up_proj"),
        _gguf("ffn_down", "mlp.down_proj"),
    ),
    ignored=("rotary_emb.inv_freq",),
)
