"""GPT-J: rotary positions on neighbouring pairs of a part of each head, one norm before attention and feed-forward side
by side, and a head of its own with a bias.

Source: Wang and Komatsuzaki 2021, "GPT-J-6B: A 6 Billion Parameter Autoregressive Language Model".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from graftwood.errors import ModelError
from graftwood.model import ggml, hf
from graftwood.model.architecture import Architecture, Names
from graftwood.model.architectures import gpt2
from graftwood.model.attention import Attention, Scope
from graftwood.model.blocks import FeedForward, layer_norm
from graftwood.model.config import ModelConfig
from graftwood.model.layers import rotate_pairs


class Block(nn.Module):
    """Attention and feed-forward read the same normed input; each result is added back."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.ln_1 = layer_norm(config)
        self.attn = Attention(config, layer, output="out_proj", turn=rotate_pairs)
        self.mlp = FeedForward(config, "fc_in", "fc_out")

    def forward(self, x: Tensor, scope: Scope) -> Tensor:
        normed = self.ln_1(x)
        return scope.leaving(x) + self.attn(normed, scope) + self.mlp(scope.leaving(normed))


def read(fields: Mapping[str, Any]) -> ModelConfig:
    """Sizes from a `config.json`. Raises: ModelError for an option the block does not compute."""
    hf.refuse_the_rest(fields, "gptj")
    if fields.get("tie_word_embeddings", False):
        raise ModelError("tie_word_embeddings True: gptj has a head of its own, with a bias")
    turned = fields.get("rotary_dim", 64)
    return gpt2.sizes(
        fields,
        "gptj",
        rotary_size=fields["n_embd"] // fields["n_head"] if turned is None else turned,
        tied_head=False,
        head_bias=True,
        parallel_residual=True,
    )


def write(config: ModelConfig) -> dict[str, Any]:
    """The `config.json` that `read` maps to `config`."""
    own = {"rotary_dim": config.turned, "tie_word_embeddings": False}
    return gpt2.write_sizes(config, "gptj", "GPTJForCausalLM") | own


def gguf_config(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """A `config.json` from GGUF metadata."""
    own = {"model_type": "gptj", "architectures": ["GPTJForCausalLM"], "rotary_dim": metadata["rope.dimension_count"]}
    return gpt2.gguf_config(metadata) | own


GPTJ = Architecture(
    name="gptj",
    model_types=("gptj",),
    gguf=("gptj",),
    names=Names("transformer.wte", "transformer.h", "transformer.ln_f", "lm_head"),
    read=read,
    write=write,
    block=Block,
    norm=layer_norm,
    gguf_config=gguf_config,
    gguf_rules=ggml.rules(
        {"token_embd": "transformer.wte", "output_norm": "transformer.ln_f", "output": "lm_head"},
        {
            "attn_norm": "ln_1",
            "attn_q": "attn.q_proj",
            "attn_k": "attn.k_proj",
            "attn_v": "attn.v_proj",
            "attn_output": "attn.out_proj",
            "ffn_up": "mlp.fc_in",
            "ffn_down": "mlp.fc_out",
        },
        "transformer.h",
    ),
    ignored=(".attn.bias", ".attn.masked_bias"),
)
