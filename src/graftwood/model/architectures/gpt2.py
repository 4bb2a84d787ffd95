"""GPT-2: learned positions, layer norms with biases, biases everywhere, a head tied to the embedding.

Its files store matrices as [in, out] and queries, keys and values as one. Source: Radford et al. 2019, "Language Models
are Unsupervised Multitask Learners".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from graftwood.model import ggml, hf
from graftwood.model.architecture import Architecture, Names
from graftwood.model.attention import Attention, Scope
from graftwood.model.blocks import FeedForward, layer_norm
from graftwood.model.config import ModelConfig
from graftwood.model.rules import QKV, QKV_TRANSPOSED, TRANSPOSED, Rule

NAMES = Names("transformer.wte", "transformer.h", "transformer.ln_f", "lm_head", positions="transformer.wpe")
QUERY_KEY_VALUE = ("q_proj", "k_proj", "v_proj")


class Block(nn.Module):
    """Attention, then feed-forward, each on a normed copy and added back."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.ln_1 = layer_norm(config)
        self.attn = Attention(config, layer, output="c_proj", biases=(True, True), turn=None)
        self.ln_2 = layer_norm(config)
        self.mlp = FeedForward(config, "c_fc", "c_proj")

    def forward(self, x: Tensor, scope: Scope) -> Tensor:
        x = scope.leaving(x) + self.attn(self.ln_1(x), scope)
        return x + self.mlp(self.ln_2(x))


def sizes(fields: Mapping[str, Any], family: str, **options: Any) -> ModelConfig:
    """A configuration from GPT-2's keys. Raises: ModelError for an activation that is not computed."""
    hidden, heads = fields["n_embd"], fields["n_head"]
    return ModelConfig(
        architecture=family,
        vocab_size=fields["vocab_size"],
        hidden_size=hidden,
        layers=fields["n_layer"],
        heads=heads,
        kv_heads=heads,
        head_size=hidden // heads,
        feed_forward_size=fields.get("n_inner") or 4 * hidden,
        max_positions=fields.get("n_positions", 1024),
        norm_eps=fields.get("layer_norm_epsilon", 1e-5),
        activation=hf.activation(fields, "activation_function", family, "gelu_new"),
        init_std=fields.get("initializer_range", 0.02),
        **options,
    )


def write_sizes(config: ModelConfig, model_type: str, class_: str) -> dict[str, Any]:
    """The `config.json` that `sizes` reads."""
    return {
        "architectures": [class_],
        "model_type": model_type,
        "vocab_size": config.vocab_size,
        "n_embd": config.hidden_size,
        "n_layer": config.layers,
        "n_head": config.heads,
        "n_inner": config.feed_forward_size,
        "n_positions": config.max_positions,
        "layer_norm_epsilon": config.norm_eps,
        "activation_function": hf.activation_name(config.activation, tanh="gelu_new"),
        "tie_word_embeddings": config.tied_head,
        "initializer_range": config.init_std,
    }


def read(fields: Mapping[str, Any]) -> ModelConfig:
    """Sizes from a `config.json`. Raises: ModelError for an option the block does not compute."""
    hf.refuse_the_rest(fields, "gpt2")
    return sizes(fields, "gpt2", rotary_size=0, tied_head=fields.get("tie_word_embeddings", True))


def write(config: ModelConfig) -> dict[str, Any]:
    """The `config.json` that `read` maps to `config`."""
    return write_sizes(config, "gpt2", "GPT2LMHeadModel")


def gguf_config(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """A `config.json` from GGUF metadata. Raises: ModelError for a key that changes what the block computes."""
    ggml.refuse_the_rest(metadata)
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "n_embd": metadata["embedding_length"],
        "n_layer": metadata["block_count"],
        "n_head": metadata["attention.head_count"],
        "n_inner": metadata["feed_forward_length"],
        "n_positions": metadata["context_length"],
        "layer_norm_epsilon": ggml.decimal(metadata["attention.layer_norm_epsilon"]),
    }


def gguf_fused(attention: str) -> tuple[Rule, ...]:
    """The rules for queries, keys and values that GGUF files stack as rows."""
    return tuple(
        Rule(f"blk.{{n}}.attn_qkv.{leaf}", [f"{attention}.{part}.{leaf}" for part in QUERY_KEY_VALUE], QKV)
        for leaf in ("weight", "bias")
    )


def _fused(leaf: str) -> list[str]:
    return [f"transformer.h.{{n}}.attn.{part}.{leaf}" for part in QUERY_KEY_VALUE]


RULES = (
    Rule("transformer.h.{n}.attn.c_attn.weight", _fused("weight"), QKV_TRANSPOSED),
    Rule("transformer.h.{n}.attn.c_attn.bias", _fused("bias"), QKV),
    *(
        Rule(name, name, TRANSPOSED)
        for part in ("attn.c_proj", "mlp.c_fc", "mlp.c_proj")
        for name in (f"transformer.h.{{n}}.{part}.weight",)
    ),
)

GPT2 = Architecture(
    name="gpt2",
    model_types=("gpt2",),
    gguf=("gpt2",),
    names=NAMES,
    read=read,
    write=write,
    block=Block,
    norm=layer_norm,
    gguf_config=gguf_config,
    rules=RULES,
    gguf_rules=(
        *gguf_fused("transformer.h.{n}.attn"),
        *ggml.rules(
            {
                "token_embd": "transformer.wte",
                "position_embd": "transformer.wpe",
                "output_norm": "transformer.ln_f",
                "output": "lm_head",
            },
            {
                "attn_norm": "ln_1",
                "attn_output": "attn.c_proj",
                "ffn_norm": "ln_2",
                "ffn_up": "mlp.c_fc",
                "ffn_down": "mlp.c_proj",
            },
            "transformer.h",
        ),
    ),
    ignored=(".attn.bias", ".attn.masked_bias"),
)
