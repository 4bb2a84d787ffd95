"""Four public tasks learned together and alone: does a mixture cost a task anything, and does its temperature matter?

python -m bench.mixtures
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from bench.common import RESULTS, ROOT, BenchError, need, run, say
from bench.keep.rows import Asked, Splits
from bench.keep.tasks import PUBLIC, Target, public, write
from bench.workload import MODEL

from graftwood.base import Base, open_base
from graftwood.checkpoint import load_adapter
from graftwood.evals.asking import score_task
from graftwood.evals.metrics import METRICS, best_over_references
from graftwood.evals.stats import draws
from graftwood.files import atomic_write, write_json
from graftwood.generate.engine import Engine
from graftwood.runtime import machine, place, use_threads

RECORDS = RESULTS / "mixtures"
WORK = ROOT / "runs" / "mixtures"
EPOCHS, SEEDS = 2, (0, 1)
TOGETHER = {"T1": (), "T2": ("--mix-temperature", "2")}  # what `graft tune` is told beside the tasks

# Sizes in the proportions of the public files; training, validation and test rows.
SIZES = {"summary": (150, 30, 80), "describe": (210, 30, 80), "translate": (300, 30, 80), "code": (105, 30, 80)}
LONGEST = {"summary": 32, "describe": 64, "translate": 48, "code": 40}  # tokens of an answer
SENTENCES = ("exact_match", "rouge_l")  # judged row by row; the others over all rows
METRIC_NAMES = ("rouge_l", "bleu", "chrf", "exact_match")
DRAWS = 1000


def main() -> int:
    """Train what is missing, ask it, and write the table; what has a record is not trained again."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tasks", type=Path, default=PUBLIC, help="folder of the public tasks' rows")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="default: all cores")
    parser.add_argument("--report", action="store_true", help="only write the table from the records")
    given = parser.parse_args()
    need(sys.executable, "sacrebleu")
    if not given.report:
        use_threads(given.threads)
        base = open_base(MODEL, place("cpu", "float32"))
        rows = {name: public(name, *sizes, given.tasks) for name, sizes in SIZES.items()}
        for name, some in rows.items():
            write(some, WORK / "data" / name)
        keep("base", 0, base, {"": None}, rows, given)
        for seed in SEEDS:
            for temperature in TOGETHER:
                together(temperature, seed, base, rows, given)
    report()
    return 0


def together(temperature: str, seed: int, base: Base, rows: Mapping[str, Splits], given: argparse.Namespace) -> None:
    """One mixture, and with the first temperature an adapter for each task alone beside it, by one command."""
    name = f"{temperature}-{seed}"
    if (RECORDS / f"{name}.json.gz").exists():
        return
    each, out = temperature == next(iter(TOGETHER)), WORK / name
    words = ["tune", "--model", MODEL, "--out", str(out), "--epochs", str(EPOCHS), "--seed", str(seed)]
    words += ["--technique", "lora", "--keep", "none", "--device", "cpu", "--dtype", "float32", "--skills", "piqa"]
    words += [*TOGETHER[temperature], *(["--each"] if each else [])]
    words += ["--data", *(str(WORK / "data" / task) for task in rows)]
    if not (out / "report.json").exists():
        again = ["--resume"] if out.exists() else []
        program = [sys.executable, "-c", "from graftwood.__main__ import main; main()"]
        threads = {"OMP_NUM_THREADS": str(given.threads)}
        done = subprocess.run([*program, *words, *again], env=os.environ | threads, check=False)
        if done.returncode:
            raise BenchError(f"graft {' '.join(words)} ended with {done.returncode}")
    adapters: dict[str, Path | None] = {"": out / "adapter"}
    if each:
        adapters |= {task: out / "each" / task / "adapter" for task in rows}
    keep(name, seed, base, adapters, rows, given)


def keep(
    name: str,
    seed: int,
    base: Base,
    adapters: Mapping[str, Path | None],
    rows: Mapping[str, Splits],
    given: argparse.Namespace,
) -> None:
    """Ask each adapter the test rows, one that is called after a task those of that task alone; keep what was said."""
    path = RECORDS / f"{name}.json.gz"
    if path.exists():
        return
    said: dict[str, Any] = {}
    for alone, folder in adapters.items():
        say(f"{name} {alone or 'all'}: answers")
        said[alone] = {task: answers(base, folder, task, rows[task].test) for task in ([alone] if alone else rows)}
    told = {
        "command": "python -m bench.mixtures",
        "machine": {**machine(), "threads": given.threads},
        "seed": seed,
        "sizes": SIZES,
        "epochs": EPOCHS,
        "wanted": {task: [[row.answer, *row.references] for row in rows[task].test] for task in rows},
        "said": said,
    }
    atomic_write(path, gzip.compress(json.dumps(told, ensure_ascii=False).encode(), mtime=0))


def answers(base: Base, folder: Path | None, task: str, rows: Sequence[Asked]) -> list[str]:
    """Greedy answers of the base, or of an adapter on it."""
    target = Target(task, task, "rouge_l", LONGEST[task], lambda folder: Splits((), (), ()))
    try:
        if folder is not None:
            load_adapter(base, folder)
        engine = Engine(base.decoder, base.tokenizer.eos, base.tokenizer)  # of the weights as they are now
        return [answer.strip() for answer in score_task(base, engine, target.asked(rows)).said]
    finally:
        base.decoder.take_off()


# ---- the table ----


def report() -> None:
    """Every score of every model with its interval, from the records alone."""
    records = {path.name.removesuffix(".json.gz"): _read(path) for path in sorted(RECORDS.glob("*.json.gz"))}
    models: dict[str, list[tuple[Mapping[str, Any], Mapping[str, Any]]]] = {}
    for name, record in records.items():
        kind = name.partition("-")[0]
        for alone, said in record["said"].items():
            models.setdefault("alone" if alone else kind, []).append((said, record["wanted"]))
    table: dict[str, Any] = {}
    for task in SIZES:
        asked = {
            model: [(said[task], wanted[task]) for said, wanted in runs if task in said]
            for model, runs in models.items()
        }
        drawn = {model: {m: drawn_scores(m, some) for m in METRIC_NAMES} for model, some in asked.items() if some}
        table[task] = {
            model: {
                metric: estimate(own) | {"seeds": len(asked[model])}
                | ({"against_alone": estimate(own - drawn["alone"][metric])} if "alone" in drawn else {})
                for metric, own in metrics.items()
            }
            for model, metrics in drawn.items()
        }  # fmt: skip
    write_json(RECORDS / "table.json", table)
    say(f"{len(records)} records; {RECORDS / 'table.json'}")


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(gzip.decompress(path.read_bytes()))
    return found


def drawn_scores(metric: str, runs: Sequence[tuple[Sequence[str], Sequence[Sequence[str]]]]) -> Any:
    """A metric in points, the mean over runs: on all rows first, then on a thousand draws of them, alike for all."""
    rows = len(runs[0][0])
    chosen = [np.arange(rows), *draws(rows)[:DRAWS]]
    return np.mean([[score(some) for some in chosen] for score in (scorer(metric, *one) for one in runs)], axis=0)


def estimate(drawn: Any) -> dict[str, float]:
    """The value with its 95% interval over rows."""
    low, high = np.percentile(drawn[1:], (2.5, 97.5))
    return {"value": float(drawn[0]), "low": float(low), "high": float(high)}


def scorer(metric: str, said: Sequence[str], wanted: Sequence[Sequence[str]]) -> Any:
    """What gives the score of some of the rows: a mean of rows, or sacrebleu's score of a corpus from its counts."""
    if metric in SENTENCES:
        rows = [best_over_references(METRICS[metric][1], a, w) for a, w in zip(said, wanted, strict=True)]
        return lambda chosen: 100 * float(np.mean(np.array(rows)[chosen]))
    from sacrebleu.metrics import BLEU, CHRF

    made = BLEU(effective_order=False) if metric == "bleu" else CHRF()
    most = max(map(len, wanted))
    # sacrebleu takes as many references for every row; a repeated one changes nothing.
    references = [[w[min(place, len(w) - 1)].strip() for w in wanted] for place in range(most)]
    counts = made._extract_corpus_statistics([*said], references)

    def score(chosen: Any) -> float:
        some = [counts[row] for row in chosen]
        return float(made._aggregate_and_compute(some).score)

    return score


if __name__ == "__main__":
    run(main)
