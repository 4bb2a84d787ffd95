"""OLMo 2: norms after attention and feed-forward instead of before, and over all heads' queries and keys together.

Source: Walsh et al. 2025, arXiv 2501.00656, section 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from graftwood.model import ggml, hf
from graftwood.model.architecture import Architecture, Names
from graftwood.model.attention import Attention, Scope
from graftwood.model.blocks import GatedFeedForward, rms_norm
from graftwood.model.config import ModelConfig
from graftwood.model.layers import RMSNorm


class Block(nn.Module):
    """Attention, then feed-forward, each result normed and added back."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        queries, keys = (
            RMSNorm(heads * config.head_size, config.norm_eps) for heads in (config.heads, config.kv_heads)
        )
        self.self_attn = Attention(config, layer, norms=(queries, keys))
        self.post_attention_layernorm = rms_norm(config)
        self.mlp = GatedFeedForward(config)
        self.post_feedforward_layernorm = rms_norm(config)

    def forward(self, x: Tensor, scope: Scope) -> Tensor:
        x = scope.leaving(x) + self.post_attention_layernorm(self.self_attn(x, scope))
        return x + self.post_feedforward_layernorm(self.mlp(x))


def read(fields: Mapping[str, Any]) -> ModelConfig:
    """Sizes from a `config.json`. Raises: ModelError for an option the block does not compute."""
    hf.refuse_the_rest(fields, "olmo2", reads=("attention_bias",))
    hf.activation(fields, "hidden_act", "olmo2", "silu", only=("silu",))
    return hf.llama_sizes(
        fields,
        "olmo2",
        norm_eps=fields.get("rms_norm_eps", 1e-5),
        attention_bias=fields.get("attention_bias", False),
    )


def write(config: ModelConfig) -> dict[str, Any]:
    """The `config.json` that `read` maps to `config`."""
    return hf.write_llama_sizes(config, "olmo2", "Olmo2ForCausalLM", attention_bias=config.attention_bias)


STEMS = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "post_ffw_norm": "post_feedforward_layernorm",
}

OLMO2 = Architecture(
    name="olmo2",
    model_types=("olmo2",),
    gguf=("olmo2",),
    names=Names("model.embed_tokens", "model.layers", "model.norm", "lm_head"),
    read=read,
    write=write,
    block=Block,
    norm=rms_norm,
    gguf_config=lambda metadata: ggml.llama_config(metadata, "olmo2", "Olmo2ForCausalLM"),
    gguf_rules=ggml.llama_rules(STEMS),
)
