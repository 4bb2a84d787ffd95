"""A mixture of experts: a router chooses a few feed-forwards for each token and weighs what they give.

Letters: N tokens, E experts, K experts a token, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from graftwood.model.config import ModelConfig
from graftwood.model.layers import Linear, project

ALPHA, LIMIT = 1.702, 7.0


def clamped_swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """`gate * sigmoid(ALPHA * gate) * (up + 1)`, the gate at most LIMIT and `up` within it on both sides.

    Source: OpenAI 2025, "gpt-oss-120b & gpt-oss-20b Model Card", section 2.2, and the code published with it.
    """
    gate, up = gate.clamp(max=LIMIT), up.clamp(-LIMIT, LIMIT)
    return gate * torch.sigmoid(ALPHA * gate) * (up + 1)


class Expert(nn.Module):
    """One feed-forward of the mixture, with biases."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = Linear(config.hidden_size, config.feed_forward_size, bias=True)
        self.up_proj = Linear(config.hidden_size, config.feed_forward_size, bias=True)
        self.down_proj = Linear(config.feed_forward_size, config.hidden_size, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(clamped_swiglu(*project(x, self.gate_proj, self.up_proj)))


class Mixture(nn.Module):
    """The router's best K experts of each token, weighed by a softmax over those K alone."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.chosen = config.experts_per_token
        self.router = Linear(config.hidden_size, config.experts, bias=True)
        self.experts = nn.ModuleList(Expert(config) for _ in range(config.experts))

    def forward(self, x: Tensor) -> Tensor:
        rows_NC = x.reshape(-1, x.shape[-1])
        best_NK, experts_NK = self.router(rows_NC).topk(self.chosen)
        shares_NK = best_NK.float().softmax(-1).to(x.dtype)
        total = torch.zeros_like(rows_NC)
        for expert in experts_NK.unique().tolist():
            tokens, place = (experts_NK == expert).nonzero(as_tuple=True)
            given = self.experts[expert](rows_NC[tokens])
            total = total.index_add(0, tokens, given * shares_NK[tokens, place, None])
        return total.view(x.shape)
