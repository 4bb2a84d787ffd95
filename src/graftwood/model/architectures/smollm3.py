"""SmolLM3: the Llama block, heads of every fourth layer not turning with their position.

Source: Bakouch et al. 2025, "SmolLM3: smol, multilingual, long-context reasoner"; layers without positions from Yang et
al. 2025, arXiv 2501.18795.
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
from graftwood.model.layers import rotate


def read(fields: Mapping[str, Any]) -> ModelConfig:
    """Sizes from a `config.json`. Raises: ModelError for an option the block does not compute."""
    hf.refuse_the_rest(fields, "smollm3", reads=("attention_bias", "mlp_bias", "no_rope_layers", *qwen2.WINDOWED))
    hf.activation(fields, "hidden_act", "smollm3", "silu", only=("silu",))
    every = fields.get("no_rope_layer_interval", 4)
    turning = fields.get("no_rope_layers") or [(layer + 1) % every for layer in range(fields["num_hidden_layers"])]
    kinds = ["full_attention" if turns else "sliding_attention" for turns in turning]
    return hf.llama_sizes(
        fields,
        "smollm3",
        tied_head=fields.get("tie_word_embeddings", True),
        attention_bias=fields.get("attention_bias", False),
        feed_forward_bias=fields.get("mlp_bias", False),
        unturned=tuple(layer for layer, turns in enumerate(turning) if not turns),
        windows=hf.windows(fields, kinds) if fields.get("use_sliding_window") else (),
    )


def write(config: ModelConfig) -> dict[str, Any]:
    """The `config.json` that `read` maps to `config`."""
    own = {
        "attention_bias": config.attention_bias,
        "mlp_bias": config.feed_forward_bias,
        "no_rope_layers": [int(layer not in config.unturned) for layer in range(config.layers)],
        **qwen2.write_windows(config),
    }
    return hf.write_llama_sizes(config, "smollm3", "SmolLM3ForCausalLM", **own)


def block(config: ModelConfig, layer: int) -> PreNormBlock:
    """The Llama block around attention that turns or does not."""
    return PreNormBlock(config, Attention(config, layer, turn=None if layer in config.unturned else rotate))


SMOLLM3 = Architecture(
    name="smollm3",
    model_types=("smollm3",),
    gguf=("smollm3",),
    names=Names("model.embed_tokens", "model.layers", "model.norm", "lm_head"),
    read=read,
    write=write,
    block=block,
    norm=rms_norm,
    gguf_config=lambda metadata: ggml.llama_config(metadata, "smollm3", "SmolLM3ForCausalLM"),
    gguf_rules=ggml.llama_rules(transforms=ggml.PAIRED),
)
