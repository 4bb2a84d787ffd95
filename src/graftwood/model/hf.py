"""What the families' `config.json` files have in common: options that must be off, activations, rotary turns, windows.

Reading refuses, by name and all at once, every option that changes a result and that the family does not compute.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from graftwood.errors import ModelError
from graftwood.model.config import Activation, ModelConfig, RopeScaling

Fields = Mapping[str, Any]

_NOTHING: tuple[Any, ...] = (None, False, [], {})
# Options that change a result in some family. A family names those it reads; the others must have one of these values.
_OFF: dict[str, tuple[Any, ...]] = {
    "add_cross_attention": _NOTHING,
    "alibi": _NOTHING,
    "attention_bias": _NOTHING,
    "attention_multiplier": (None, 1.0),
    "attn_logit_softcapping": _NOTHING,
    "clip_qkv": _NOTHING,
    "embedding_multiplier": (None, 1.0),
    "final_logit_softcapping": _NOTHING,
    "is_encoder_decoder": _NOTHING,
    "layer_types": _NOTHING,
    "logits_scaling": (None, 1.0),
    "mlp_bias": _NOTHING,
    "moe_intermediate_size": _NOTHING,
    "n_routed_experts": _NOTHING,
    "no_rope_layers": _NOTHING,
    "num_experts": (None, 0, 1),
    "num_local_experts": (None, 0, 1),
    "partial_rotary_factor": (None, 1.0),
    "quantization_config": _NOTHING,
    "query_pre_attn_scalar": (None,),
    "reorder_and_upcast_attn": (None, False, True),
    "residual_multiplier": (None, 1.0),
    "rope_local_base_freq": (None,),
    "rotary_pct": (None, 1.0),
    "scale_attn_by_inverse_layer_idx": _NOTHING,
    "scale_attn_weights": (None, True),
    "sliding_window": _NOTHING,
    "use_bidirectional_attention": _NOTHING,
    "use_parallel_residual": _NOTHING,
    "use_qk_norm": _NOTHING,
}

_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}


def refuse_the_rest(hf: Fields, family: str, reads: Iterable[str] = ()) -> None:
    """Raises: ModelError naming every option of `hf` that is on and not among those the family reads."""
    on = [f"{key} {hf[key]!r}" for key, off in _OFF.items() if key in hf and key not in reads and hf[key] not in off]
    if on:
        raise ModelError(f"{', '.join(on)}: the {family} block does not compute that, so the model is not loaded")


def activation(hf: Fields, key: str, family: str, default: str, only: Iterable[str] = _ACTIVATIONS) -> Activation:
    """The activation that `hf[key]` names. Raises: ModelError where the block has no such one."""
    given = hf.get(key) or default
    if given not in only:
        raise ModelError(f"{key} {given!r} is not one the {family} block computes; it computes {', '.join(only)}")
    return _ACTIVATIONS[given]


def activation_name(given: Activation, tanh: str = "gelu_pytorch_tanh") -> str:
    """The name of an activation in a `config.json`; the approximate GELU has one of several, by family."""
    return tanh if given == "gelu_tanh" else given


def rope(hf: Fields) -> dict[str, Any]:
    """What a configuration says of rotary positions, in the older spelling or the newer.

    Raises: ModelError where it says so by kinds of layers.
    """
    old = {"rope_theta": hf["rope_theta"]} if "rope_theta" in hf else {}
    told = {**old, **(hf.get("rope_scaling") or {}), **(hf.get("rope_parameters") or {})}
    if kinds := [key for key, value in told.items() if isinstance(value, Mapping)]:
        raise ModelError(f"rotary positions of their own in layers of {', '.join(kinds)} are not computed")
    return told


def rope_scaling(rope: Fields, family: str, positions: int) -> RopeScaling | None:
    """The scaling that `rope` asks for. Raises: ModelError for a kind that is not computed."""
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
    if kind == "yarn":
        return _yarn(rope, positions)
    raise ModelError(
        f"rope scaling {kind!r} is not one the {family} block computes; it computes default, linear, llama3, yarn"
    )


def _yarn(rope: Fields, positions: int) -> RopeScaling:
    factor = float(rope["factor"])
    attention = rope.get("attention_factor")
    if attention is None:
        over, all_ = rope.get("mscale"), rope.get("mscale_all_dim")
        attention = _mscale(factor, over) / _mscale(factor, all_) if over and all_ else _mscale(factor, 1.0)
    return RopeScaling(
        "yarn",
        factor,
        float(rope.get("beta_slow") or 1.0),
        float(rope.get("beta_fast") or 32.0),
        int(rope.get("original_max_position_embeddings") or positions),
        float(attention),
        bool(rope.get("truncate", True)),
    )


def _mscale(factor: float, multiplier: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * multiplier * math.log(factor) + 1.0


def write_rope(scaling: RopeScaling | None) -> dict[str, Any] | None:
    """The `rope_scaling` that `rope_scaling` reads."""
    if scaling is None:
        return None
    rope: dict[str, Any] = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind == "llama3":
        rope |= {
            "low_freq_factor": scaling.low_frequency_factor,
            "high_freq_factor": scaling.high_frequency_factor,
            "original_max_position_embeddings": scaling.original_positions,
        }
    if scaling.kind == "yarn":
        rope |= {
            "beta_slow": scaling.low_frequency_factor,
            "beta_fast": scaling.high_frequency_factor,
            "original_max_position_embeddings": scaling.original_positions,
            "attention_factor": scaling.attention_factor,
            "truncate": scaling.whole_dimensions,
        }
    return rope


def windows(hf: Fields, kinds: Sequence[str], default: int | None = None) -> tuple[int | None, ...]:
    """Each layer's window, from `layer_types` or else from the family's own `kinds`; empty where no layer has one.

    Raises: ModelError for a kind of layer that is neither full nor sliding attention.
    """
    given = hf.get("layer_types") or kinds
    size = hf.get("sliding_window", default)
    odd = sorted(set(given) - {"full_attention", "sliding_attention"})
    if odd:
        raise ModelError(f"layer_types holds {', '.join(odd)}; full_attention and sliding_attention are computed")
    found = tuple(size if kind == "sliding_attention" else None for kind in given)
    return found if any(found) else ()


def every(period: int, layers: int) -> list[str]:
    """Sliding attention, and full attention in every `period`-th layer."""
    return ["sliding_attention" if (layer + 1) % period else "full_attention" for layer in range(layers)]


def write_windows(config: ModelConfig) -> dict[str, Any]:
    """The `layer_types` and `sliding_window` that `windows` reads."""
    sizes = sorted({window for window in config.windows if window is not None})
    assert len(sizes) <= 1, "these files have room for one size of window"
    kinds = [
        "full_attention" if config.window(layer) is None else "sliding_attention" for layer in range(config.layers)
    ]
    return {"layer_types": kinds, "sliding_window": sizes[0] if sizes else None}


def llama_sizes(hf: Fields, family: str, **options: Any) -> ModelConfig:
    """A configuration from the keys the Llama family shares; `options` are the fields a family has of its own."""
    turn = rope(hf)
    positions = hf.get("max_position_embeddings", 2048)
    fields: dict[str, Any] = {
        "vocab_size": hf["vocab_size"],
        "hidden_size": hf["hidden_size"],
        "layers": hf["num_hidden_layers"],
        "heads": hf["num_attention_heads"],
        "kv_heads": hf.get("num_key_value_heads") or hf["num_attention_heads"],
        "head_size": hf.get("head_dim") or hf["hidden_size"] // hf["num_attention_heads"],
        "feed_forward_size": hf["intermediate_size"],
        "max_positions": positions,
        "norm_eps": hf.get("rms_norm_eps", 1e-6),
        "rope_theta": float(turn.get("rope_theta") or 10_000.0),
        "rope_scaling": rope_scaling(turn, family, positions),
        "tied_head": hf.get("tie_word_embeddings", False),
        "init_std": hf.get("initializer_range", 0.02),
    }
    return ModelConfig(architecture=family, **fields | options)


def write_llama_sizes(config: ModelConfig, model_type: str, class_: str, **options: Any) -> dict[str, Any]:
    """The `config.json` that `llama_sizes` reads, with a family's own options."""
    return {
        "architectures": [class_],
        "model_type": model_type,
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
        "rope_scaling": write_rope(config.rope_scaling),
        "tie_word_embeddings": config.tied_head,
        "hidden_act": activation_name(config.activation),
        "initializer_range": config.init_std,
    } | options
