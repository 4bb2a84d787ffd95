"""Our side of the tuning benchmarks: the trainer's own step, as `graft tune` takes it."""

from __future__ import annotations

from graftwood.preparation import prepare

prepare(briefly=False)  # as the command does, before torch is imported

# ruff: noqa: E402
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from bench import flops
from bench.sides.turns import Turns

from graftwood.base import Base, open_base
from graftwood.checkpoint import load_tensors
from graftwood.data.batch import Examples
from graftwood.data.encode import Example
from graftwood.data.rows import Row
from graftwood.model.quantised import held_bytes, quantise
from graftwood.runtime import place, use_threads
from graftwood.technique import TECHNIQUES
from graftwood.train.below import freeze_below, rows_kept
from graftwood.train.loop import Plan, Trainer


def trainer(base: Base, work: dict[str, Any]) -> Trainer:
    """A trainer at step 0 over the work's rows."""
    row = Row("completion")
    examples = [Example(tuple(given["ids"]), tuple(given["answer"]), row) for given in work["rows"]]
    plan = Plan(
        learning_rate=work["learning_rate"],
        weight_decay=0.0,
        batch=work["batch"],
        epochs=work["steps_a_turn"] * work["turns"] * work["batch"] / len(examples),
        seed=work["seed"],
        clip=work["clip"],
        warmup_share=work["warmup"],
        token_budget=work["token_budget"],
        evaluations=1,
        patience=1,
        save_seconds=1e9,
    )
    base.decoder.train()
    rows = rows_kept(base, examples, work.get("below", 0))
    return Trainer(base.decoder, rows, Examples([]), plan, Path(work["folder"]))


def sgemm_peak(size: int = 2048, repeats: int = 5) -> float:
    """Operations a second of this machine's own float32 matrix product, the best of several."""
    left, right, out = (torch.ones(size, size) for _ in range(3))
    best = float("inf")
    for _ in range(repeats):
        started = time.perf_counter()
        torch.mm(left, right, out=out)
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def main() -> None:
    """Load, warm up, train a number of steps a turn."""
    turns = Turns()
    work = turns.work
    use_threads(work["threads"])
    base = open_base(work["model"], place("cpu", work.get("dtype", "float32")))
    decoder = base.decoder
    quantise(decoder, work.get("base_precision", "full"))
    held = held_bytes(decoder)
    technique = TECHNIQUES.get(work["technique"]).parse(work["options"]).read(base.tokenizer.encode)
    technique.apply(decoder, work["seed"])
    if "adapter" in work:
        technique.load(decoder, load_tensors(Path(work["adapter"]) / technique.weights_file))
    freeze_below(decoder, work.get("below", 0))
    if work["warm_up"]:
        trainer(base, work).step()
    training = trainer(base, work)
    measures_peak = work.get("sgemm_peak", False)

    def turn() -> dict[str, Any]:
        before = sgemm_peak() if measures_peak else None
        started = time.perf_counter()
        steps = [training.step() for _ in range(work["steps_a_turn"])]
        seconds = time.perf_counter() - started
        after = sgemm_peak() if measures_peak else None
        lengths, answers = training_lengths(training, len(steps)), sum(step.answer_tokens for step in steps)
        return {
            "seconds": seconds,
            "tokens": sum(step.tokens for step in steps),
            "losses": [step.loss for step in steps],
            "steps": [asdict(step) for step in steps],
            "flops": flops.lora_training(decoder, lengths, answers, work["options"]["rank"]) if measures_peak else None,
            "sgemm_flops_a_second": None if before is None or after is None else max(before, after),
        }

    trained = sum(parameter.numel() for parameter in decoder.trained().values())
    turns.ready("torch", "graftwood", trained_parameters=trained, base_bytes=held)
    turns.serve(turn)


def training_lengths(training: Trainer, steps: int) -> list[int]:
    """Tokens of every document that the last `steps` steps read."""
    done = training.progress.step
    rows = [row for step in range(done - steps, done) for row in training.order.batch_rows(step)]
    return [int(training.train.sizes[row]) for row in rows]


if __name__ == "__main__":
    main()
