"""GPT-NeoX: rotary positions on a share of each head, attention and feed-forward side by side, layer norms, biases.

Its files hold queries, keys and values as one matrix, head by head. Source: Black et al. 2022, arXiv 2204.06745; the
Pythia suite, Biderman et al. 2023, arXiv 2304.01373, is of this family.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from graftwood.model import ggml, hf
from graftwood.model.architecture import Architecture, Names
from graftwood.model.architectures.gpt2 import QUERY_KEY_VALUE, gguf_fused
from graftwood.model.attention import Attention, Scope
from graftwood.model.blocks import FeedForward, layer_norm
from graftwood.model.config import ModelConfig
from graftwood.model.rules import QKV_BY_HEAD, Rule


class SerialBlock(nn.Module):
    """Attention, then feed-forward, each on a normed copy and added back."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = layer_norm(config)
        self.attention = Attention(config, layer, output="dense")
        self.post_attention_layernorm = layer_norm(config)
        self.mlp = FeedForward(config, "dense_h_to_4h", "dense_4h_to_h")

    def forward(self, x: Tensor, scope: Scope) -> Tensor:
        x = scope.leaving(x) + self.attention(self.input_layernorm(x), scope)
        return x + self.mlp(self.post_attention_layernorm(x))


class ParallelBlock(SerialBlock):
    """Attention and feed-forward read the same input; each result is added to it."""

    def forward(self, x: Tensor, scope: Scope) -> Tensor:
        own = scope.leaving(x)
        return own + self.attention(self.input_layernorm(x), scope) + self.mlp(self.post_attention_layernorm(own))


def block(config: ModelConfig, layer: int) -> nn.Module:
    """A block of either kind."""
    return ParallelBlock(config, layer) if config.parallel_residual else SerialBlock(config, layer)


def read(fields: Mapping[str, Any]) -> ModelConfig:
    """Sizes from a `config.json`. Raises: ModelError for an option the block does not compute."""
    hf.refuse_the_rest(
        fields,
        "gpt_neox",
        reads=("attention_bias", "rotary_pct", "partial_rotary_factor", "use_parallel_residual"),
    )
    turn = hf.rope(fields)
    heads, hidden = fields["num_attention_heads"], fields["hidden_size"]
    positions = fields.get("max_position_embeddings", 2048)
    share = turn.get("partial_rotary_factor", fields.get("rotary_pct", 0.25))
    return ModelConfig(
        architecture="gpt_neox",
        vocab_size=fields["vocab_size"],
        hidden_size=hidden,
        layers=fields["num_hidden_layers"],
        heads=heads,
        kv_heads=heads,
        head_size=hidden // heads,
        feed_forward_size=fields["intermediate_size"],
        max_positions=positions,
        norm_eps=fields.get("layer_norm_eps", 1e-5),
        rope_theta=float(turn.get("rope_theta") or fields.get("rotary_emb_base") or 10_000.0),
        rope_scaling=hf.rope_scaling(turn, "gpt_neox", positions),
        rotary_size=int(hidden // heads * share),
        tied_head=fields.get("tie_word_embeddings", False),
        attention_bias=fields.get("attention_bias", True),
        activation=hf.activation(fields, "hidden_act", "gpt_neox", "gelu"),
        parallel_residual=fields.get("use_parallel_residual", True),
        init_std=fields.get("initializer_range", 0.02),
    )


def write(config: ModelConfig) -> dict[str, Any]:
    """The `config.json` that `read` maps to `config`."""
    return {
        "architectures": ["GPTNeoXForCausalLM"],
        "model_type": "gpt_neox",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.feed_forward_size,
        "max_position_embeddings": config.max_positions,
        "layer_norm_eps": config.norm_eps,
        "rotary_emb_base": config.rope_theta,
        "rotary_pct": config.turned / config.head_size,
        "rope_scaling": hf.write_rope(config.rope_scaling),
        "tie_word_embeddings": config.tied_head,
        "attention_bias": config.attention_bias,
        "hidden_act": hf.activation_name(config.activation),
        "use_parallel_residual": config.parallel_residual,
        "initializer_range": config.init_std,
    }


def gguf_config(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """A `config.json` from GGUF metadata. Raises: ModelError for a key that changes what the block computes."""
    ggml.refuse_the_rest(metadata, ggml.ROPE)
    head_size = metadata["embedding_length"] // metadata["attention.head_count"]
    return {
        "model_type": "gpt_neox",
        "architectures": ["GPTNeoXForCausalLM"],
        "hidden_size": metadata["embedding_length"],
        "num_hidden_layers": metadata["block_count"],
        "num_attention_heads": metadata["attention.head_count"],
        "intermediate_size": metadata["feed_forward_length"],
        "max_position_embeddings": metadata["context_length"],
        "layer_norm_eps": ggml.decimal(metadata["attention.layer_norm_epsilon"]),
        "rotary_emb_base": ggml.decimal(metadata.get("rope.freq_base", 10_000.0)),
        "rotary_pct": metadata["rope.dimension_count"] / head_size,
        "rope_scaling": ggml.rope(metadata),
        "use_parallel_residual": bool(metadata.get("use_parallel_residual", True)),
    }


def _fused(leaf: str) -> Rule:
    parts = [f"gpt_neox.layers.{{n}}.attention.{part}.{leaf}" for part in QUERY_KEY_VALUE]
    return Rule(f"gpt_neox.layers.{{n}}.attention.query_key_value.{leaf}", parts, QKV_BY_HEAD)


GPT_NEOX = Architecture(
    name="gpt_neox",
    model_types=("gpt_neox",),
    gguf=("gptneox",),
    names=Names("gpt_neox.embed_in", "gpt_neox.layers", "gpt_neox.final_layer_norm", "embed_out"),
    read=read,
    write=write,
    block=block,
    norm=layer_norm,
    gguf_config=gguf_config,
    rules=(_fused("weight"), _fused("bias")),
    gguf_rules=(
        *gguf_fused("gpt_neox.layers.{n}.attention"),
        *ggml.rules(
            {"token_embd": "gpt_neox.embed_in", "output_norm": "gpt_neox.final_layer_norm", "output": "embed_out"},
            {
                "attn_norm": "input_layernorm",
                "attn_output": "attention.dense",
                "ffn_norm": "post_attention_layernorm",
                "ffn_up": "mlp.dense_h_to_4h",
                "ffn_down": "mlp.dense_4h_to_h",
            },
            "gpt_neox.layers",
        ),
    ),
    ignored=(".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq"),
)
