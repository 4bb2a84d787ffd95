"""Gemma 2: norms before and after attention and feed-forward, windows in every other layer, soft caps on scores and
logits, gated GELU, embeddings scaled by the root of the width, norms that store what their gain differs from one by.

Source: Gemma Team 2024, arXiv 2408.00118, section 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from graftwood.model import ggml, hf
from graftwood.model.architecture import Architecture, Names
from graftwood.model.attention import Attention, Scope
from graftwood.model.blocks import GatedFeedForward
from graftwood.model.config import ModelConfig
from graftwood.model.layers import OffsetRMSNorm
from graftwood.model.rules import GAIN

READS = (
    "attention_bias",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "layer_types",
    "query_pre_attn_scalar",
    "sliding_window",
)


def norm(config: ModelConfig) -> OffsetRMSNorm:
    """A norm of the model's width."""
    return OffsetRMSNorm(config.hidden_size, config.norm_eps)


class SandwichBlock(nn.Module):
    """Attention, then feed-forward, each on a normed copy, its result normed and added back."""

    def __init__(self, config: ModelConfig, attention: Attention) -> None:
        super().__init__()
        self.input_layernorm = norm(config)
        self.self_attn = attention
        self.post_attention_layernorm = norm(config)
        self.pre_feedforward_layernorm = norm(config)
        self.mlp = GatedFeedForward(config)
        self.post_feedforward_layernorm = norm(config)

    def forward(self, x: Tensor, scope: Scope) -> Tensor:
        x = scope.leaving(x) + self.post_attention_layernorm(self.self_attn(self.input_layernorm(x), scope))
        return x + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x)))


def sizes(fields: Mapping[str, Any], family: str, caps: tuple[float | None, float | None], **own: Any) -> ModelConfig:
    """A configuration from the keys that Gemma 2 and 3 share; `caps` on scores and logits where none are given."""
    gelu = hf.activation(
        {"hidden_activation": fields.get("hidden_activation") or fields.get("hidden_act")},
        "hidden_activation",
        family,
        "gelu_pytorch_tanh",
        only=("gelu_pytorch_tanh",),
    )
    return hf.llama_sizes(
        fields,
        family,
        head_size=fields.get("head_dim") or 256,
        tied_head=fields.get("tie_word_embeddings", True),
        attention_bias=fields.get("attention_bias", False),
        activation=gelu,
        attention_scale=fields.get("query_pre_attn_scalar", 256) ** -0.5,
        attention_cap=fields.get("attn_logit_softcapping", caps[0]),
        logit_cap=fields.get("final_logit_softcapping", caps[1]),
        embedding_scale=fields["hidden_size"] ** 0.5,
        **own,
    )


def write_sizes(config: ModelConfig, model_type: str, class_: str) -> dict[str, Any]:
    """The `config.json` that `sizes` reads."""
    scale = config.attention_scale or config.head_size**-0.5
    fields = hf.write_llama_sizes(
        config,
        model_type,
        class_,
        attention_bias=config.attention_bias,
        hidden_activation="gelu_pytorch_tanh",
        query_pre_attn_scalar=round(scale**-2),
        attn_logit_softcapping=config.attention_cap,
        final_logit_softcapping=config.logit_cap,
        **hf.write_windows(config),
    )
    del fields["hidden_act"]
    return fields | {"sliding_window": fields["sliding_window"] or 4096}


def read(fields: Mapping[str, Any]) -> ModelConfig:
    """Sizes from a `config.json`. Raises: ModelError for an option the block does not compute."""
    hf.refuse_the_rest(fields, "gemma2", reads=READS)
    windows = hf.windows(fields, hf.every(2, fields["num_hidden_layers"]), 4096)
    return sizes(fields, "gemma2", (50.0, 30.0), windows=windows)


def write(config: ModelConfig) -> dict[str, Any]:
    """The `config.json` that `read` maps to `config`."""
    return write_sizes(config, "gemma2", "Gemma2ForCausalLM")


def gguf_sizes(
    metadata: Mapping[str, Any], model_type: str, class_: str, odd_one: int, reads: tuple[str, ...] = ()
) -> dict[str, Any]:
    """A `config.json` from GGUF metadata; the model of `odd_one` layers scales by its width instead of its heads'."""
    reads = (*ggml.WINDOWED, "attn_logit_softcapping", "final_logit_softcapping", *reads)
    fields = ggml.llama_config(metadata, model_type, class_, reads)
    mean = metadata["embedding_length"] // metadata["attention.head_count"]
    del fields["hidden_act"]
    caps = ("attn_logit_softcapping", "final_logit_softcapping")  # files from before they were written mean the usual
    return fields | {
        **ggml.windows(metadata),
        "query_pre_attn_scalar": mean if metadata["block_count"] == odd_one else fields["head_dim"],
        **{key: metadata[key] for key in caps if key in metadata},
    }


STEMS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "post_ffw_norm": "post_feedforward_layernorm",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
}
GAINS = {stem: GAIN for stem in ("output_norm", *STEMS) if stem.endswith("norm")}

GEMMA2 = Architecture(
    name="gemma2",
    model_types=("gemma2",),
    gguf=("gemma2",),
    names=Names("model.embed_tokens", "model.layers", "model.norm", "lm_head"),
    read=read,
    write=write,
    block=lambda config, layer: SandwichBlock(config, Attention(config, layer)),
    norm=norm,
    gguf_config=lambda metadata: gguf_sizes(metadata, "gemma2", "Gemma2ForCausalLM", odd_one=46),
    gguf_rules=ggml.llama_rules(STEMS, GAINS),
)
