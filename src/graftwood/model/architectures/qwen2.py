"""Qwen 2 and 2.5: the Llama block with biases on queries, keys and values, and a window in the upper layers on request.

Source: Yang et al. 2024, arXiv 2407.10671.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from graftwood.model import ggml, hf
from graftwood.model.architecture import Architecture, Names
from graftwood.model.attention import Attention
from graftwood.model.blocks import PreNormBlock, rms_norm
from graftwood.model.config import ModelConfig

WINDOWED = ("layer_types", "sliding_window")


def windows(fields: Mapping[str, Any]) -> tuple[int | None, ...]:
    """Each layer's window: none unless the configuration turns them on, then from some layer upwards."""
    if not fields.get("use_sliding_window", False):
        return ()
    full = fields.get("max_window_layers", 28)
    layers = range(fields["num_hidden_layers"])
    return hf.windows(fields, ["full_attention" if layer < full else "sliding_attention" for layer in layers], 4096)


def write_windows(config: ModelConfig) -> dict[str, Any]:
    """The keys that `windows` reads."""
    return {"use_sliding_window": bool(config.windows)} | hf.write_windows(config)


def read(fields: Mapping[str, Any]) -> ModelConfig:
    """Sizes from a `config.json`. Raises: ModelError for an option the block does not compute."""
    hf.refuse_the_rest(fields, "qwen2", reads=WINDOWED)
    hf.activation(fields, "hidden_act", "qwen2", "silu", only=("silu",))
    return hf.llama_sizes(fields, "qwen2", windows=windows(fields))


def write(config: ModelConfig) -> dict[str, Any]:
    """The `config.json` that `read` maps to `config`."""
    return hf.write_llama_sizes(config, "qwen2", "Qwen2ForCausalLM", **write_windows(config))


QWEN2 = Architecture(
    name="qwen2",
    model_types=("qwen2",),
    gguf=("qwen2",),
    names=Names("model.embed_tokens", "model.layers", "model.norm", "lm_head"),
    read=read,
    write=write,
    block=lambda config, layer: PreNormBlock(config, Attention(config, layer, biases=(True, False))),
    norm=rms_norm,
    gguf_config=lambda metadata: ggml.llama_config(metadata, "qwen2", "Qwen2ForCausalLM"),
    gguf_rules=ggml.llama_rules(),
)
