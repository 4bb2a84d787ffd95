"""Our side of the benchmark of tunes: `graft pretrain` from the text file, then tunes from its model."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from bench.sides.turns import Turns

from graftwood.config import PretrainConfig
from graftwood.data.corpus import TRAIN
from graftwood.generate.engine import Engine
from graftwood.generate.sampling import Sampling
from graftwood.pretraining import execute, prepare, preview
from graftwood.progress import Display
from graftwood.runtime import use_threads


def main() -> None:
    """A turn is a whole run; how many tokens fit into its time follows from the run's own forecast."""
    turns = Turns()
    work = turns.work
    use_threads(work["threads"])
    config = PretrainConfig(
        data=work["data"], tokenizer="chars", separator=work["separator"], sample_tokens=0, evaluations=5,
        **work["config"],
    )  # fmt: skip
    out, display = Path(work["run"]), Display(quiet=True)

    def turn() -> dict[str, Any]:
        trial = prepare(config.model_copy(update={"tokens": 10**6}), None, out, display)
        speed = preview(trial, display).tokens_per_second
        job = prepare(config.model_copy(update={"tokens": int(speed * work["seconds"])}), None, out, display)
        result = execute(job, preview(job, display), out, display, resume=False)
        base = job.base
        engine = Engine(base.decoder, base.tokenizer.eos, base.tokenizer)
        started = time.perf_counter()
        room = base.decoder.config.max_positions - 1
        written = engine.generate(
            [base.encoder().begin("")] * work["tunes"], Sampling(temperature=0.8, max_tokens=room, seed=0)
        )
        return {
            "tunes": [done.text for done in written],
            "finished": [done.finish == "stop" for done in written],
            "writing_seconds": time.perf_counter() - started,
            "train_seconds": result.train_seconds,
            "valid_loss": result.valid_loss,
            "bits_per_byte": result.bits_per_byte,
            "parameters": result.parameters,
            "passes": result.tokens / job.corpus.tokens[TRAIN],
        }

    turns.ready("torch", "graftwood")
    turns.serve(turn)


if __name__ == "__main__":
    main()
