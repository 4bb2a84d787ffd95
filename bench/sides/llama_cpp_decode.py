"""A peer of the decoding benchmark: llama.cpp on the very same GGUF file, one stream, greedy."""

from __future__ import annotations

import time
from itertools import islice
from typing import Any

from bench.sides.turns import Turns
from llama_cpp import Llama


def main() -> None:
    """Load, warm up, generate with each prompt alone."""
    turns = Turns()
    work = turns.work
    model = Llama(work["gguf"], n_ctx=1024, n_threads=work["threads"], n_threads_batch=work["threads"], verbose=False)

    def seconds(prompt: list[int], tokens: int) -> tuple[float, list[int]]:
        model.reset()  # or the prompt of the turn before would still be in its cache
        started = time.perf_counter()
        made = list(islice(model.generate(prompt, temp=0.0), tokens))
        return time.perf_counter() - started, made

    def turn() -> dict[str, Any]:
        alone = [seconds(prompt, work["new_tokens"]) for prompt in work["prompts"]]
        return {"one_seconds": sum(took for took, _ in alone), "ids": [ids for _, ids in alone]}

    seconds(work["prompts"][0], 4)
    turns.ready("llama_cpp_python")
    turns.serve(turn)


if __name__ == "__main__":
    main()
