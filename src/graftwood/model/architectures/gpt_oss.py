"""gpt-oss: a mixture of experts whose attention sees everything and a window in turn, with a sink in every head and
rotary positions stretched by YaRN.

Its files hold all experts of a layer as one tensor, gate and up interleaved, in MXFP4 or dense. Source: OpenAI 2025,
"gpt-oss-120b & gpt-oss-20b Model Card", arXiv 2508.10925.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from graftwood.errors import ModelError
from graftwood.model import ggml, hf, mxfp4
from graftwood.model.architecture import Architecture, Names
from graftwood.model.attention import Attention
from graftwood.model.blocks import PreNormBlock, rms_norm
from graftwood.model.config import ModelConfig
from graftwood.model.experts import ALPHA, LIMIT, Mixture
from graftwood.model.rules import SAME, Rule, Transform

_YARN = {"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096, "truncate": False}
_DEFAULTS = {"head_dim": 64, "tie_word_embeddings": False, "rms_norm_eps": 1e-5, "max_position_embeddings": 131_072}


def read(fields: Mapping[str, Any]) -> ModelConfig:
    """Sizes from a `config.json`. Raises: ModelError for an option the block does not compute."""
    packed = fields.get("quantization_config") or {}
    kept = ("attention_bias", "layer_types", "num_local_experts", "sliding_window")
    hf.refuse_the_rest(
        fields,
        "gpt_oss",
        reads=(*kept, "quantization_config") if packed.get("quant_method") == "mxfp4" else kept,
    )
    for key, only in (("swiglu_alpha", ALPHA), ("swiglu_limit", LIMIT)):
        if fields.get(key, only) != only:
            raise ModelError(f"{key} {fields[key]!r} is not what the gpt_oss block computes; it computes {only}")
    fields = {**_DEFAULTS, "rope_theta": 150_000.0, **fields}
    if not fields.get("rope_scaling") and not fields.get("rope_parameters"):
        fields["rope_scaling"] = _YARN
    every_other = hf.every(2, fields["num_hidden_layers"])
    return hf.llama_sizes(
        fields,
        "gpt_oss",
        attention_bias=fields.get("attention_bias", True),
        windows=hf.windows(fields, every_other, 128),
        experts=fields.get("num_local_experts", 128),
        experts_per_token=fields.get("num_experts_per_tok") or fields.get("experts_per_token") or 4,
    )


def write(config: ModelConfig) -> dict[str, Any]:
    """The `config.json` that `read` maps to `config`."""
    fields = hf.write_llama_sizes(
        config,
        "gpt_oss",
        "GptOssForCausalLM",
        attention_bias=config.attention_bias,
        num_local_experts=config.experts,
        num_experts_per_tok=config.experts_per_token,
        swiglu_limit=LIMIT,
        **hf.write_windows(config),
    )
    return fields | {
        "rope_scaling": fields["rope_scaling"] or {"rope_type": "default"},
        "sliding_window": fields["sliding_window"] or 128,
    }


def gguf_config(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """A `config.json` from GGUF metadata."""
    fields = ggml.llama_config(metadata, "gpt_oss", "GptOssForCausalLM", ("expert_count", *ggml.WINDOWED))
    scaling = fields["rope_scaling"]
    return fields | {
        "rope_scaling": scaling | {"truncate": False} if scaling else {"rope_type": "default"},
        **ggml.windows(metadata),
        "num_local_experts": metadata["expert_count"],
        "num_experts_per_tok": metadata["expert_used_count"],
        "intermediate_size": metadata["expert_feed_forward_length"],
    }


def _interleaved(file: Tensor, config: ModelConfig) -> Sequence[Tensor]:
    return [expert[..., start::2].T.contiguous() for start in (0, 1) for expert in file]


def _interleave(parts: Sequence[Tensor], config: ModelConfig) -> Tensor:
    gates, ups = (torch.stack([part.T for part in half]) for half in (parts[: config.experts], parts[config.experts :]))
    return torch.stack((gates, ups), dim=-1).flatten(-2)


# The rows of one expert's gate and up in turn.
_IN_TURN = Transform(
    lambda file, config: (file[0::2], file[1::2]), lambda parts, config: torch.stack(list(parts), dim=1).flatten(0, 1)
)
_GATE_UP = Transform(_interleaved, _interleave, turned=_IN_TURN)
_DOWN = Transform(
    lambda file, config: [expert.T for expert in file],
    lambda parts, config: torch.stack([part.T for part in parts]),
    turned=SAME,
)
_STACKED = Transform(lambda file, config: file.unbind(), lambda parts, config: torch.stack(list(parts)))
_GATE_UP_BIAS = Transform(
    lambda file, config: [*file[:, 0::2], *file[:, 1::2]],
    lambda parts, config: _interleave([part.unsqueeze(-1) for part in parts], config).squeeze(1),
)
_EXPERTS = "model.layers.{n}.mlp.experts"


def _each(leaf: str, *parts: str) -> list[str]:
    return [f"{_EXPERTS}.{{e}}.{part}.{leaf}" for part in parts]


GPT_OSS = Architecture(
    name="gpt_oss",
    model_types=("gpt_oss",),
    gguf=("gpt-oss",),
    names=Names("model.embed_tokens", "model.layers", "model.norm", "lm_head"),
    read=read,
    write=write,
    block=lambda config, layer: PreNormBlock(config, Attention(config, layer, sinks=True), Mixture(config)),
    norm=rms_norm,
    gguf_config=gguf_config,
    bare=("mlp.router",),
    rules=(
        Rule(f"{_EXPERTS}.gate_up_proj", _each("weight", "gate_proj", "up_proj"), _GATE_UP),
        Rule(f"{_EXPERTS}.gate_up_proj_bias", _each("bias", "gate_proj", "up_proj"), _GATE_UP_BIAS),
        Rule(f"{_EXPERTS}.down_proj", _each("weight", "down_proj"), _DOWN),
        Rule(f"{_EXPERTS}.down_proj_bias", _each("bias", "down_proj"), _STACKED),
    ),
    gguf_rules=(
        *(
            Rule(f"blk.{{n}}.ffn_{stem}_exps.{leaf}", _each(leaf, f"{stem}_proj"), _STACKED)
            for stem in ("gate", "up", "down")
            for leaf in ("weight", "bias")
        ),
        Rule("blk.{n}.attn_sinks.weight", "model.layers.{n}.self_attn.sinks"),
        *ggml.llama_rules(
            {
                "attn_norm": "input_layernorm",
                "attn_q": "self_attn.q_proj",
                "attn_k": "self_attn.k_proj",
                "attn_v": "self_attn.v_proj",
                "attn_output": "self_attn.o_proj",
                "post_attention_norm": "post_attention_layernorm",
                "ffn_gate_inp": "mlp.router",
            }
        ),
    ),
    unpacked=mxfp4.unpacked,
)
