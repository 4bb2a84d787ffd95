"""Phi-3: the Llama block on a share of each head's dimensions, with a window where one is given.

Its files hold queries, keys and values as one matrix, and gate and up as another. Source: Abdin et al. 2024,
arXiv 2404.14219.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from graftwood.errors import ModelError
from graftwood.model import ggml, hf
from graftwood.model.architecture import Architecture, Names
from graftwood.model.architectures.gpt2 import QUERY_KEY_VALUE
from graftwood.model.attention import Attention
from graftwood.model.blocks import PreNormBlock, rms_norm
from graftwood.model.config import ModelConfig
from graftwood.model.rules import HALVES, QKV, Rule

_QKV = [f"model.layers.{{n}}.self_attn.{part}.weight" for part in QUERY_KEY_VALUE]
_GATE_UP = [f"model.layers.{{n}}.mlp.{part}.weight" for part in ("gate_proj", "up_proj")]


def read(fields: Mapping[str, Any]) -> ModelConfig:
    """Sizes from a `config.json`. Raises: ModelError for an option the block does not compute."""
    hf.refuse_the_rest(fields, "phi3", reads=("partial_rotary_factor", "sliding_window"))
    hf.activation(fields, "hidden_act", "phi3", "silu", only=("silu",))
    turn = hf.rope(fields)
    if hf.rope_scaling(turn, "phi3", 0) is not None:
        raise ModelError(f"rope scaling {turn.get('rope_type') or turn.get('type')!r} is not one phi3 is trained with")
    head_size = fields["hidden_size"] // fields["num_attention_heads"]
    share = turn.get("partial_rotary_factor", fields.get("partial_rotary_factor", 1.0))
    return hf.llama_sizes(
        fields,
        "phi3",
        norm_eps=fields.get("rms_norm_eps", 1e-5),
        rotary_size=None if share == 1.0 else int(head_size * share),
        windows=hf.windows(fields, ["sliding_attention"] * fields["num_hidden_layers"]),
    )


def write(config: ModelConfig) -> dict[str, Any]:
    """The `config.json` that `read` maps to `config`."""
    own = {
        "partial_rotary_factor": config.turned / config.head_size,
        "sliding_window": config.window(0),
        "original_max_position_embeddings": config.max_positions,
    }
    fields = hf.write_llama_sizes(config, "phi3", "Phi3ForCausalLM", **own)
    del fields["head_dim"], fields["rope_scaling"]
    return fields


def gguf_config(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """A `config.json` from GGUF metadata."""
    head_size = metadata["embedding_length"] // metadata["attention.head_count"]
    whole = {**metadata, "rope.dimension_count": head_size}
    return ggml.llama_config(whole, "phi3", "Phi3ForCausalLM", ("attention.sliding_window",)) | {
        "partial_rotary_factor": metadata.get("rope.dimension_count", head_size) / head_size,
        "sliding_window": metadata.get("attention.sliding_window") or None,
    }


PHI3 = Architecture(
    name="phi3",
    model_types=("phi3",),
    gguf=("phi3",),
    names=Names("model.embed_tokens", "model.layers", "model.norm", "lm_head"),
    read=read,
    write=write,
    block=lambda config, layer: PreNormBlock(config, Attention(config, layer, biases=(False, False))),
    norm=rms_norm,
    gguf_config=gguf_config,
    rules=(
        Rule("model.layers.{n}.self_attn.qkv_proj.weight", _QKV, QKV),
        Rule("model.layers.{n}.mlp.gate_up_proj.weight", _GATE_UP, HALVES),
    ),
    gguf_rules=(
        Rule("blk.{n}.attn_qkv.weight", _QKV, QKV),
        Rule("blk.{n}.ffn_up.weight", _GATE_UP, HALVES),
        *ggml.llama_rules(
            {
                "attn_norm": "input_layernorm",
                "attn_output": "self_attn.o_proj",
                "ffn_norm": "post_attention_layernorm",
                "ffn_down": "mlp.down_proj",
            }
        ),
    ),
)
