"""A peer of the decoding benchmark: llama.cpp on the very same GGUF file, one stream, greedy."""

from __future__ import annotations

import time
from itertools import islice
from typing import Any

from bench.sides.turns import Turns
from llama_cpp import Llama


def main() -> None:
    """Load, warm up, generate once with one prompt."""
    turns = Turns()
    work = turns.work
    model = Llama(work["gguf"], n_ctx=1024, n_threads=work["threads"], n_threads_batch=work["threads"], verbose=False)

    def seconds(tokens: int) -> tuple[float, list[int]]:
        model.reset()  # or the prompt of the turn before would still be in its cache
        started = time.perf_counter()
        made = list(islice(model.generate(work["prompts"][0], temp=0.0), tokens))
        return time.perf_counter() - started, made

    def turn() -> dict[str, Any]:
        one, ids = seconds(work["new_tokens"])
        return {"one_seconds": one, "ids": ids}

    seconds(4)
    turns.ready("llama_cpp_python")
    turns.serve(turn)


if __name__ == "__main__":
    main()
