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
    """Load and plan, warm up, generate with each prompt alone, guessing ahead and not, then with all at once."""
    turns = Turns()
    work = turns.work
    use_threads(work["threads"])
    base = open_base(work["model"], place("cpu", "float32"))
    engine = Engine(base.decoder, (), base.tokenizer)
    step_by_step = Engine(base.decoder, (), base.tokenizer, lookup=False)

    def seconds(engine: Engine, tokens: int, batch: int) -> tuple[float, list[list[int]]]:
        started = time.perf_counter()
        made = engine.generate(work["prompts"], Sampling(max_tokens=tokens), batch)
        return time.perf_counter() - started, [list(completion.ids) for completion in made]

    def turn() -> dict[str, Any]:
        one, alone = seconds(engine, work["new_tokens"], 1)
        plain, _ = seconds(step_by_step, work["new_tokens"], 1)
        eight, _ = seconds(engine, work["new_tokens"], len(work["prompts"]))
        return {"one_seconds": one, "one_seconds_without_lookup": plain, "eight_seconds": eight, "ids": alone}

    seconds(engine, 4, len(work["prompts"]))
    turns.ready("torch", "graftwood")
    turns.serve(turn)


if __name__ == "__main__":
    main()
