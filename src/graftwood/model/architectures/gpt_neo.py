"""GPT-Neo: GPT-2 whose layers see everything and the last few hundred tokens in turn, and whose scores are not scaled.

Source: Black et al. 2021, doi 10.5281/zenodo.5297715.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from graftwood.errors import ModelError
from graftwood.model import hf
from graftwood.model.architecture import Architecture
from graftwood.model.architectures.gpt2 import NAMES
from graftwood.model.attention import Attention, Scope
from graftwood.model.blocks import FeedForward, layer_norm
from graftwood.model.config import ModelConfig

_KINDS = ("global", "local")


class Block(nn.Module):
    """Attention, then feed-forward, each on a normed copy and added back."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.ln_1 = layer_norm(config)
        attention = Attention(config, layer, output="out_proj", biases=(False, True), turn=None)
        self.attn = nn.ModuleDict({"attention": attention})
        self.ln_2 = layer_norm(config)
        self.mlp = FeedForward(config, "c_fc", "c_proj")

    def forward(self, x: Tensor, scope: Scope) -> Tensor:
        x = scope.leaving(x) + self.attn["attention"](self.ln_1(x), scope)
        return x + self.mlp(self.ln_2(x))


def read(fields: Mapping[str, Any]) -> ModelConfig:
    """Sizes from a `config.json`. Raises: ModelError for an option the block does not compute."""
    hf.refuse_the_rest(fields, "gpt_neo")
    hidden, heads, layers = fields["hidden_size"], fields["num_heads"], fields["num_layers"]
    given = fields.get("attention_types") or [[list(_KINDS), layers // 2]]
    kinds = [kind for group, times in given for _ in range(times) for kind in group]
    odd = sorted(set(kinds) - set(_KINDS))
    if odd:
        raise ModelError(f"attention_types holds {', '.join(odd)}; global and local attention are computed")
    window = fields.get("window_size", 256)
    return ModelConfig(
        architecture="gpt_neo",
        vocab_size=fields["vocab_size"],
        hidden_size=hidden,
        layers=layers,
        heads=heads,
        kv_heads=heads,
        head_size=hidden // heads,
        feed_forward_size=fields.get("intermediate_size") or 4 * hidden,
        max_positions=fields["max_position_embeddings"],
        norm_eps=fields.get("layer_norm_epsilon", 1e-5),
        rotary_size=0,
        tied_head=fields.get("tie_word_embeddings", True),
        activation=hf.activation(fields, "activation_function", "gpt_neo", "gelu_new"),
        windows=tuple(window if kind == "local" else None for kind in kinds) if "local" in kinds else (),
        attention_scale=1.0,
        init_std=fields.get("initializer_range", 0.02),
    )


def write(config: ModelConfig) -> dict[str, Any]:
    """The `config.json` that `read` maps to `config`."""
    kinds = ["global" if config.window(layer) is None else "local" for layer in range(config.layers)]
    return {
        "architectures": ["GPTNeoForCausalLM"],
        "model_type": "gpt_neo",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_layers": config.layers,
        "num_heads": config.heads,
        "intermediate_size": config.feed_forward_size,
        "max_position_embeddings": config.max_positions,
        "layer_norm_epsilon": config.norm_eps,
        "activation_function": hf.activation_name(config.activation, tanh="gelu_new"),
        "attention_types": [[kinds, 1]],
        "window_size": max((window for window in config.windows if window is not None), default=256),
        "tie_word_embeddings": config.tied_head,
        "initializer_range": config.init_std,
    }


GPT_NEO = Architecture(
    name="gpt_neo",
    model_types=("gpt_neo",),
    gguf=(),
    names=NAMES,
    read=read,
    write=write,
    block=Block,
    norm=layer_norm,
    ignored=(".attn.attention.bias", ".attn.attention.masked_bias"),
)
