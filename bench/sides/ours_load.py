"""Our side of the loading benchmark: a fresh process opens a base that was converted before."""

from __future__ import annotations

import time
from typing import Any

import torch
from bench.sides.turns import Turns

from graftwood.base import open_base
from graftwood.runtime import place, use_threads


def main() -> None:
    """Time the opening, and how long until the first logits, for which all weights are read."""
    turns = Turns()
    use_threads(turns.work["threads"])

    def turn() -> dict[str, Any]:
        started = time.perf_counter()
        base = open_base(turns.work["model"], place("cpu", "float32"))
        opened = time.perf_counter() - started
        with torch.inference_mode():
            base.decoder(torch.tensor([turns.work["prompts"][0]]))
        return {"seconds": opened, "first_logits_seconds": time.perf_counter() - started}

    turns.ready("torch", "graftwood")
    turns.serve(turn)


if __name__ == "__main__":
    main()
