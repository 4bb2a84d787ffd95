"""The peer of the loading benchmark: a fresh process loads model and tokenizer from the GGUF file with transformers."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from bench.sides.turns import Turns
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    """Time the loading, and how long until the first logits."""
    turns = Turns()
    torch.set_num_threads(turns.work["threads"])
    path = Path(turns.work["gguf"])

    def turn() -> dict[str, Any]:
        started = time.perf_counter()
        model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
        AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        loaded = time.perf_counter() - started
        with torch.inference_mode():
            model(torch.tensor([turns.work["prompts"][0]]))
        return {"seconds": loaded, "first_logits_seconds": time.perf_counter() - started}

    turns.ready("torch", "transformers")
    turns.serve(turn)


if __name__ == "__main__":
    main()
