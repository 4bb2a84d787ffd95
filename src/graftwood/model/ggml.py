"""What llama.cpp's files of different families have in common: metadata keys, tensor names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from graftwood.errors import ModelError
from graftwood.model.config import RopeScaling
from graftwood.model.hf import write_rope
from graftwood.model.rope import frequencies
from graftwood.model.rules import ROTARY_KEY, ROTARY_QUERY, Rule, Transform

Metadata = Mapping[str, Any]

_LLAMA_STEMS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_LLAMA_OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
PAIRED = {"attn_q": ROTARY_QUERY, "attn_k": ROTARY_KEY}


def decimal(stored: float) -> float:
    """A float32 of the metadata as the shortest decimal that reads back the same: the number its author wrote."""
    return float(str(np.float32(stored)))


def llama_rules(
    stems: Mapping[str, str] = _LLAMA_STEMS, transforms: Mapping[str, Transform] | None = None, **more: str
) -> tuple[Rule, ...]:
    """Rules for the names the Llama family has in GGUF files, `more` stems besides them."""
    return rules(_LLAMA_OUTER, {**stems, **more}, "model.layers", transforms)


def rules(
    outer: Mapping[str, str], stems: Mapping[str, str], blocks: str, transforms: Mapping[str, Transform] | None = None
) -> tuple[Rule, ...]:
    """A rule for the weight and one for the bias of every stem."""
    changes = transforms or {}
    return tuple(
        Rule(f"{file}.{leaf}", f"{parameter}.{leaf}", changes.get(stem))
        for stem, file, parameter in (
            *((stem, stem, parameter) for stem, parameter in outer.items()),
            *((stem, f"blk.{{n}}.{stem}", f"{blocks}.{{n}}.{parameter}") for stem, parameter in stems.items()),
        )
        for leaf in ("weight", "bias")
    )


def llama_config(metadata: Metadata, model_type: str, class_: str) -> dict[str, Any]:
    """A `config.json` from the keys the Llama family shares.

    Raises: ModelError for a mixture of experts, a partial rotation or a scaling the metadata does not spell out.
    """
    if metadata.get("expert_count"):
        raise ModelError(f"this GGUF file is a mixture of {metadata['expert_count']} experts; {model_type} is dense")
    head_size = metadata.get("attention.key_length", metadata["embedding_length"] // metadata["attention.head_count"])
    rotated = metadata.get("rope.dimension_count", head_size)
    if rotated != head_size:
        raise ModelError(
            f"this GGUF file rotates {rotated} of {head_size} dimensions; the {model_type} block rotates all"
        )
    return {
        "model_type": model_type,
        "architectures": [class_],
        "hidden_size": metadata["embedding_length"],
        "num_hidden_layers": metadata["block_count"],
        "num_attention_heads": metadata["attention.head_count"],
        "num_key_value_heads": metadata.get("attention.head_count_kv", metadata["attention.head_count"]),
        "head_dim": head_size,
        "intermediate_size": metadata["feed_forward_length"],
        "max_position_embeddings": metadata["context_length"],
        "rms_norm_eps": decimal(metadata["attention.layer_norm_rms_epsilon"]),
        "rope_theta": decimal(metadata.get("rope.freq_base", 10000.0)),
        "rope_scaling": rope(metadata),
        "hidden_act": "silu",
    }


def rope(metadata: Metadata) -> dict[str, Any] | None:
    """The `rope_scaling` of a GGUF file. Raises: ModelError for a kind its metadata do not say enough of."""
    kind = metadata.get("rope.scaling.type", "none")
    if kind == "none":
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": decimal(metadata["rope.scaling.factor"])}
    if kind == "yarn":
        return {
            "rope_type": "yarn",
            "factor": decimal(metadata["rope.scaling.factor"]),
            "original_max_position_embeddings": metadata["rope.scaling.original_context_length"],
        }
    raise ModelError(f"rope scaling {kind!r} of a GGUF file is not read; use the model's safetensors folder")


def rope_of_factors(factors: Tensor, theta: float) -> dict[str, Any]:
    """The `rope_scaling` of Llama 3's kind that stretches each pair of dimensions by these factors.

    Raises: ModelError where no scaling of the published Llamas does.
    """
    plain = frequencies(2 * len(factors), theta, None)
    scaling = RopeScaling("llama3", decimal(float(factors.max())))
    expected = plain / frequencies(2 * len(factors), theta, scaling)
    if not torch.allclose(expected, factors, rtol=1e-3):
        raise ModelError(
            "this GGUF file stretches rotary positions by factors that are not Llama 3's; "
            "use the model's safetensors folder"
        )
    return cast(dict[str, Any], write_rope(scaling))
