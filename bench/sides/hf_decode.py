"""A peer of the decoding benchmark: transformers' `generate`, greedy, as many tokens as asked for."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from bench.sides.turns import Turns
from transformers import AutoModelForCausalLM


def padded(prompts: list[list[int]]) -> dict[str, torch.Tensor]:
    """Prompts as one batch with padding on the left."""
    longest = max(len(prompt) for prompt in prompts)
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return {"input_ids": ids, "attention_mask": mask}


def main() -> None:
    """Load, warm up, generate with each prompt alone, then with all at once."""
    turns = Turns()
    work = turns.work
    torch.set_num_threads(work["threads"])
    path = Path(work["gguf"])
    model: Any = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)

    def seconds(prompts: list[list[int]], tokens: int) -> tuple[float, list[int]]:
        batch = padded(prompts)
        started = time.perf_counter()
        made = model.generate(**batch, do_sample=False, min_new_tokens=tokens, max_new_tokens=tokens, pad_token_id=0)
        return time.perf_counter() - started, made[0, batch["input_ids"].shape[1] :].tolist()

    def turn() -> dict[str, Any]:
        alone = [seconds([prompt], work["new_tokens"]) for prompt in work["prompts"]]
        eight, _ = seconds(work["prompts"], work["new_tokens"])
        one = sum(took for took, _ in alone)
        return {"one_seconds": one, "eight_seconds": eight, "ids": [ids for _, ids in alone]}

    seconds(work["prompts"], 4)
    turns.ready("torch", "transformers")
    turns.serve(turn)


if __name__ == "__main__":
    main()
