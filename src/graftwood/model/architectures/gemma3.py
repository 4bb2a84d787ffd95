"""Gemma 3, its text part: Gemma 2's block with normed queries and keys instead of caps, five layers in six with a
window, and those turning by a frequency of their own.

Source: Gemma Team 2025, arXiv 2503.19786, section 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from graftwood.errors import ModelError
from graftwood.model import ggml, hf
from graftwood.model.architecture import Architecture, Names
from graftwood.model.architectures import gemma2
from graftwood.model.attention import Attention
from graftwood.model.config import ModelConfig
from graftwood.model.layers import OffsetRMSNorm

_PERIOD = 6


def read(fields: Mapping[str, Any]) -> ModelConfig:
    """Sizes from a `config.json`. Raises: ModelError for an option the block does not compute."""
    hf.refuse_the_rest(fields, "gemma3", reads=("rope_local_base_freq", *gemma2.READS))
    turns = fields.get("rope_parameters") or {}
    if "full_attention" in turns:
        local = turns.get("sliding_attention", {})
        if local.get("rope_type", "default") != "default":
            raise ModelError(f"rope scaling {local['rope_type']!r} in layers with a window is not what gemma3 computes")
        fields = {**fields, "rope_parameters": turns["full_attention"], "rope_local_base_freq": local["rope_theta"]}
    if hf.rope(fields).get("rope_type") == "yarn":
        raise ModelError("rope scaling 'yarn' is not one gemma3 is trained with; it is trained with linear")
    period = fields.get("sliding_window_pattern") or fields.get("_sliding_window_pattern") or _PERIOD
    fields = {"rope_theta": 1_000_000.0, "max_position_embeddings": 131_072, **fields}
    return gemma2.sizes(
        fields,
        "gemma3",
        (None, None),
        windows=hf.windows(fields, hf.every(period, fields["num_hidden_layers"]), 4096),
        local_rope_theta=float(fields.get("rope_local_base_freq", 10_000.0)),
    )


def write(config: ModelConfig) -> dict[str, Any]:
    """The `config.json` that `read` maps to `config`."""
    fields = gemma2.write_sizes(config, "gemma3_text", "Gemma3ForCausalLM")
    return fields | {"rope_local_base_freq": config.local_rope_theta or 10_000.0}


def gguf_config(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """A `config.json` from GGUF metadata."""
    local = ggml.decimal(metadata.get("rope.freq_base_swa", 10_000.0))
    reads = ("rope.freq_base_swa",)
    fields = gemma2.gguf_sizes(metadata, "gemma3_text", "Gemma3ForCausalLM", odd_one=62, reads=reads)
    return fields | {"rope_local_base_freq": local}


def block(config: ModelConfig, layer: int) -> gemma2.SandwichBlock:
    """Gemma 2's block around attention with normed queries and keys."""
    queries, keys = (OffsetRMSNorm(config.head_size, config.norm_eps) for _ in range(2))
    return gemma2.SandwichBlock(config, Attention(config, layer, norms=(queries, keys)))


GEMMA3 = Architecture(
    name="gemma3",
    model_types=("gemma3_text",),
    gguf=("gemma3",),
    names=Names("model.embed_tokens", "model.layers", "model.norm", "lm_head"),
    read=read,
    write=write,
    block=block,
    norm=gemma2.norm,
    gguf_config=gguf_config,
    gguf_rules=ggml.llama_rules(gemma2.STEMS, gemma2.GAINS),
)
