"""Our side of the decoding benchmark: the engine with its defaults, greedy, no end token."""

from __future__ import annotations

import time
from typing import Any

from bench.sides.turns import Turns

from graftwood.base import open_base
from graftwood.generate.engine import Engine
from graftwood.generate.sampling import Sampling
from graftwood.runtime import place, use_threads


def main() -> None:
    """Load and plan, warm up, generate once with one prompt and once with all."""
    turns = Turns()
    work = turns.work
    use_threads(work["threads"])
    base = open_base(work["model"], place("cpu", "float32"))
    engine = Engine(base.decoder, (), base.tokenizer)

    def seconds(prompts: list[list[int]], tokens: int) -> tuple[float, list[list[int]]]:
        started = time.perf_counter()
        made = engine.generate(prompts, Sampling(max_tokens=tokens), batch=len(prompts))
        return time.perf_counter() - started, [list(completion.ids) for completion in made]

    def turn() -> dict[str, Any]:
        one, alone = seconds(work["prompts"][:1], work["new_tokens"])
        eight, _ = seconds(work["prompts"], work["new_tokens"])
        return {"one_seconds": one, "eight_seconds": eight, "ids": alone[0]}

    seconds(work["prompts"], 4)
    turns.ready("torch", "graftwood")
    turns.serve(turn)


if __name__ == "__main__":
    main()
