"""What the race for a budget costs beside one full fine-tune on the same rows.

python -m bench.search_cost
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from bench.common import ROOT, BenchError, Figure, finish, options, require_quiet_machine, run
from bench.keep.tasks import PUBLIC, TARGETS, write
from bench.workload import MODEL

from graftwood.base import open_base
from graftwood.evals.card import Card
from graftwood.evals.report import read_report
from graftwood.runtime import place
from graftwood.training import holds_run

WORK = ROOT / "runs" / "search"
TASK, EPOCHS = "messages", 3


def tuned(name: str, base: Path, threads: int, *flags: str) -> Card:
    """The card of one run of `graft tune`; one that was cut off goes on.

    It has a cache of its own: what earlier runs found out about this base would spare the race some of its looks.
    """
    out = WORK / name
    words = ["tune", "--model", str(base), "--data", str(WORK / "data"), "--out", str(out), "--epochs", str(EPOCHS)]
    words += ["--device", "cpu", "--dtype", "float32", *flags, *(["--resume"] if holds_run(out) else [])]
    if not (out / "report.json").exists():
        program = [sys.executable, "-c", "from graftwood.__main__ import main; main()"]
        own = {"OMP_NUM_THREADS": str(threads), "GRAFTWOOD_HOME": str(WORK / "cache")}
        done = subprocess.run([*program, *words], env=os.environ | own, check=False)
        if done.returncode:
            raise BenchError(f"graft {' '.join(words)} ended with {done.returncode}")
    return read_report(out)


def main() -> int:
    """Run both and write `results/search_cost.json`."""
    parser = options((__doc__ or "").splitlines()[0], rounds=1)
    parser.add_argument("--tasks", type=Path, default=PUBLIC, help="folder of the public tasks' rows")
    given = parser.parse_args()
    before = None if given.smoke else require_quiet_machine(given.threads)
    write(TARGETS[TASK].read(given.tasks), WORK / "data")
    base = open_base(MODEL, place("cpu", "float32")).folder
    full = tuned("full", base, given.threads, "--technique", "full", "--keep", "none", "--skills", "piqa")
    raced = tuned("race", base, given.threads, "--keep", "95%", "--search").choice
    assert raced is not None, "a race leaves a choice"
    after = None if given.smoke else require_quiet_machine(given.threads)
    alone = full.cost.train_seconds + full.cost.aside_seconds
    figure = Figure(
        "search_cost_vs_full_run", raced.seconds / alone, "times a full fine-tune",
        "seconds of the race for 95%, all that it did once the base was measured",
        f"{raced.seconds / 60:.1f} min, {raced.tokens:,} tokens",
        f"{alone / 60:.1f} min, {full.cost.train_tokens:,} tokens of one full fine-tune, validations included",
    )  # fmt: skip
    return finish(
        "search_cost", given, [figure], {}, others_share_before=before, others_share_after=after,
        choice=raced.model_dump(), full=full.cost.model_dump(), task=TASK, epochs=EPOCHS,
    )  # fmt: skip


if __name__ == "__main__":
    run(main)
