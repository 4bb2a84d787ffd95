"""The peer of the pre-training benchmark: nanoGPT's model and loop in plain PyTorch, as its CPU example runs them.

GPT-2's block without biases, learned positions, tied head; AdamW that is not fused on a CPU, cosine to a tenth of the
rate, batches at random offsets. Source: github.com/karpathy/nanoGPT, `model.py`, `train.py` and
`config/train_shakespeare_char.py` with the README's CPU options (4 layers of 128, block 64, batch 12, no dropout).
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from bench.sides.turns import Turns
from torch import Tensor, nn

RATE, LOWEST_RATE, WARMUP, DECAY, CLIP = 1e-3, 1e-4, 100, 0.1, 1.0
BETAS = (0.9, 0.99)


class Attention(nn.Module):
    """Causal self-attention with one matrix for queries, keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.c_attn = nn.Linear(width, 3 * width, bias=False)
        self.c_proj = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        parts = self.c_attn(x).split(width, dim=2)
        q, k, v = (part.view(batch, tokens, self.heads, -1).transpose(1, 2) for part in parts)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(y.transpose(1, 2).contiguous().view(batch, tokens, width))


class Block(nn.Module):
    """Attention and a feed-forward of four times the width, each on a normed copy."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width, bias=False)
        self.attn = Attention(width, heads)
        self.ln_2 = nn.LayerNorm(width, bias=False)
        self.c_fc = nn.Linear(width, 4 * width, bias=False)
        self.c_proj = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.c_proj(F.gelu(self.c_fc(self.ln_2(x))))


class GPT(nn.Module):
    """The whole model; `forward` gives the mean loss of a batch."""

    def __init__(self, vocabulary: int, layers: int, width: int, heads: int, block: int) -> None:
        super().__init__()
        self.wte = nn.Embedding(vocabulary, width)
        self.wpe = nn.Embedding(block, width)
        self.h = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.ln_f = nn.LayerNorm(width, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                nn.init.normal_(
                    parameter, 0.0, 0.02 / math.sqrt(2 * layers) if name.endswith("c_proj.weight") else 0.02
                )

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1]))
        for block in self.h:
            x = block(x)
        logits = self.ln_f(x) @ self.wte.weight.T
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.reshape(-1))


class Training:
    """One run, stepped."""

    def __init__(self, work: dict[str, Any]) -> None:
        self.work = work
        torch.manual_seed(work["seed"])
        train = np.load(Path(work["train"]) / "tokens.npy")
        self.data = torch.from_numpy(train.astype(np.int64))
        self.model = GPT(work["vocabulary"], work["layers"], work["width"], work["heads"], work["block"])
        groups = [
            {"params": [p for p in self.model.parameters() if p.ndim > 1], "weight_decay": DECAY},
            {"params": [p for p in self.model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self.optimiser = torch.optim.AdamW(groups, lr=RATE, betas=BETAS)
        self.step_number = 0
        self.seconds = 0.0

    def step(self) -> None:
        """One optimiser step, timed."""
        started = time.perf_counter()
        rate = self._rate()
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        block = self.work["block"]
        starts = torch.randint(len(self.data) - block, (self.work["batch"],)).tolist()
        ids = torch.stack([self.data[start : start + block] for start in starts])
        targets = torch.stack([self.data[start + 1 : start + 1 + block] for start in starts])
        loss = self.model(ids, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        loss.item()  # its log line of every step
        self.step_number += 1
        self.seconds += time.perf_counter() - started

    @torch.no_grad()
    def validate(self) -> float:
        """Mean loss over the benchmark's validation windows."""
        self.model.eval()
        windows = torch.from_numpy(np.load(self.work["windows"]).astype(np.int64))
        losses = [self.model(part[:, :-1], part[:, 1:]).item() * len(part) for part in windows.split(12)]
        self.model.train()
        return sum(losses) / len(windows)

    def _rate(self) -> float:
        step, steps = self.step_number, self.work["steps"]
        if step < WARMUP:
            return RATE * (step + 1) / (WARMUP + 1)
        share = (step - WARMUP) / (steps - WARMUP)
        return LOWEST_RATE + 0.5 * (1.0 + math.cos(math.pi * share)) * (RATE - LOWEST_RATE)


def main() -> None:
    """A turn trains `steps_a_turn` steps and validates."""
    turns = Turns()
    work = turns.work
    torch.set_num_threads(work["threads"])
    training = Training(work)

    def turn() -> dict[str, Any]:
        before = training.seconds
        for _ in range(work["steps_a_turn"]):
            training.step()
        seconds = training.seconds - before
        tokens = work["steps_a_turn"] * work["batch"] * work["block"]
        loss = training.validate() if work["validates"] else None
        return {"seconds": seconds, "tokens": tokens, "step": training.step_number, "valid_loss": loss}

    parameters = sum(p.numel() for p in training.model.parameters())
    turns.ready("torch", parameters=parameters, loss_at_start=training.validate() if work["validates"] else None)
    turns.serve(turn)


if __name__ == "__main__":
    main()
