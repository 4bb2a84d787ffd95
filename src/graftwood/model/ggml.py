"""What llama.cpp's files of different families have in common: metadata keys, tensor names."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from graftwood.errors import ModelError
from graftwood.model.config import RopeScaling
from graftwood.model.hf import every, write_rope
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


ROPE = (
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
    "rope.scaling.yarn_attn_factor",
)  # what `rope` reads, beside the original context that alone changes nothing
WINDOWED = ("attention.sliding_window", "attention.sliding_window_pattern")  # what `windows` reads
# Keys that change a result in some family. A family names those it reads; the others must have one of these values, or
# that of another key.
_OFF: dict[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "attention.output_scale": (),
    "attention.scale": (),
    "attention.sliding_window": (0,),
    "attention.sliding_window_pattern": (),
    "attention.temperature_length": (0,),
    "attention.temperature_scale": (),
    "attn_logit_softcapping": (0.0,),
    "embedding_scale": (1.0,),
    "expert_count": (0,),
    "final_logit_softcapping": (0.0,),
    "logit_scale": (1.0,),
    "residual_scale": (1.0,),
    "rope.dimension_sections": (),
    "rope.scale_linear": (0.0, 1.0),
    "rope.scaling.alpha": (0.0, 1.0),
    "rope.scaling.attn_factor": (1.0,),
    "rope.scaling.factor": (0.0, 1.0),
    "rope.scaling.type": ("none",),
    "rope.scaling.yarn_attn_factor": (),
    "rope.scaling.yarn_beta_fast": (),
    "rope.scaling.yarn_beta_slow": (),
    "rope.scaling.yarn_ext_factor": (-1.0, 1.0),
    "rope.scaling.yarn_log_multiplier": (0.0,),
    "router_logit_softcapping": (0.0,),
}
_AS = {"rope.dimension_count_swa": "rope.dimension_count", "rope.freq_base_swa": "rope.freq_base"}


def refuse_the_rest(metadata: Metadata, reads: Iterable[str] = ()) -> None:
    """Raises: ModelError naming every key of `metadata` that is on and not among those the family reads."""
    named = set(reads)
    off = {**_OFF, **{key: (metadata.get(other),) for key, other in _AS.items()}}
    on = [
        f"{key} {metadata[key]!r}"
        for key, no in off.items()
        if key in metadata.keys() - named and metadata[key] not in no
    ]
    if on:
        raise ModelError(f"{', '.join(on)}: the family's block does not compute that, so the GGUF file is not loaded")


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


def llama_config(metadata: Metadata, model_type: str, class_: str, reads: Sequence[str] = ()) -> dict[str, Any]:
    """A `config.json` from the keys the Llama family shares; `reads` are those that a family reads beside them.

    Raises: ModelError for a mixture of experts, a partial rotation, a scaling the metadata does not spell out, or a key
    that changes what the block computes.
    """
    if metadata.get("expert_count") and "expert_count" not in reads:
        raise ModelError(f"this GGUF file is a mixture of {metadata['expert_count']} experts; {model_type} is dense")
    refuse_the_rest(metadata, (*ROPE, *reads))
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
    kind = metadata.get("rope.scaling.type", "linear" if metadata.get("rope.scaling.factor") else "none")
    if kind == "none":
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": decimal(metadata["rope.scaling.factor"])}
    if kind == "yarn":
        betas = {key: metadata.get(f"rope.scaling.yarn_{key}") for key in ("beta_fast", "beta_slow")}
        return {
            "rope_type": "yarn",
            "factor": _usual(metadata),
            "original_max_position_embeddings": metadata["rope.scaling.original_context_length"],
            **{key: decimal(value) for key, value in betas.items() if value is not None},
        }
    raise ModelError(f"rope scaling {kind!r} of a GGUF file is not read; use the model's safetensors folder")


def windows(metadata: Metadata) -> dict[str, Any]:
    """The `sliding_window` of a GGUF file, and the `layer_types` where it says which layers have one."""
    size = {"sliding_window": metadata["attention.sliding_window"]}
    given = metadata.get("attention.sliding_window_pattern")
    if given is None:
        return size
    layers = metadata["block_count"]
    if isinstance(given, int):
        return size | {"layer_types": every(given, layers) if given else ["sliding_attention"] * layers}
    return size | {"layer_types": ["sliding_attention" if slides else "full_attention" for slides in given]}


def _usual(metadata: Metadata) -> float:
    """The factor of YaRN. Raises: ModelError for one on attention that is not what follows from it.

    Converters write the whole of it where a configuration has it, and llama.cpp has read it as one beside the usual.
    """
    factor = decimal(metadata["rope.scaling.factor"])
    usual = 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0
    given = metadata.get("rope.scaling.yarn_attn_factor", usual)
    if not math.isclose(given, usual, rel_tol=1e-4):
        raise ModelError(
            f"rope.scaling.yarn_attn_factor {given:g} of a GGUF file is not read, only {usual:.5g}, which a factor of "
            f"{factor:g} asks for; use the model's safetensors folder"
        )
    return factor


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
