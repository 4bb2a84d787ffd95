"""Parts of blocks that several families share: feed-forwards, and the block of pre-normed residuals in a row."""

from __future__ import annotations

from torch import Tensor, nn

from graftwood.model.attention import Attention, Scope
from graftwood.model.config import ModelConfig
from graftwood.model.layers import ACTIVATIONS, LayerNorm, Linear, RMSNorm, project, swiglu


class FeedForward(nn.Module):
    """`outward(activation(inward(x)))`, both with biases, under the names the family gives them."""

    def __init__(self, config: ModelConfig, inward: str, outward: str) -> None:
        super().__init__()
        self._activation = ACTIVATIONS[config.activation]
        self.add_module(inward, Linear(config.hidden_size, config.feed_forward_size, bias=True))
        self.add_module(outward, Linear(config.feed_forward_size, config.hidden_size, bias=True))
        self._names = inward, outward

    def forward(self, x: Tensor) -> Tensor:
        inward, outward = (self.get_submodule(name) for name in self._names)
        result: Tensor = outward(self._activation(inward(x)))
        return result


class GatedFeedForward(nn.Module):
    """`down(activation(gate(x)) * up(x))`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        inner, bias = config.feed_forward_size, config.feed_forward_bias
        self._activation = ACTIVATIONS[config.activation]
        self._fused = config.activation == "silu"
        self.gate_proj = Linear(config.hidden_size, inner, bias)
        self.up_proj = Linear(config.hidden_size, inner, bias)
        self.down_proj = Linear(inner, config.hidden_size, bias)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = project(x, self.gate_proj, self.up_proj)
        return self.down_proj(swiglu(gate, up) if self._fused else self._activation(gate) * up)


class PreNormBlock(nn.Module):
    """Attention, then feed-forward, each on a normed copy and added back: the block of the Llama family."""

    def __init__(self, config: ModelConfig, attention: Attention, feed_forward: nn.Module | None = None) -> None:
        super().__init__()
        self.input_layernorm = rms_norm(config)
        self.self_attn = attention
        self.post_attention_layernorm = rms_norm(config)
        self.mlp = feed_forward or GatedFeedForward(config)

    def forward(self, x: Tensor, scope: Scope) -> Tensor:
        x = scope.leaving(x) + self.self_attn(self.input_layernorm(x), scope)
        return x + self.mlp(self.post_attention_layernorm(x))


def rms_norm(config: ModelConfig) -> RMSNorm:
    """A root-mean-square norm of the model's width."""
    return RMSNorm(config.hidden_size, config.norm_eps)


def layer_norm(config: ModelConfig) -> LayerNorm:
    """A layer norm of the model's width."""
    return LayerNorm(config.hidden_size, config.norm_eps)
