"""How long it takes to ask a base five full skill sets, up to 400 items of each, as a certificate does.

python -m bench.certificate
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.common import BenchError, Figure, finish, options, require_quiet_machine, run
from bench.lm_eval_agreement import NAMES, SKILLS
from bench.workload import MODEL

from graftwood.base import open_base
from graftwood.runtime import place

MOST = 8  # minutes on two cores


def main() -> int:
    """Ask as `graft eval` does, with nothing known of the base, and write `results/certificate.json`."""
    parser = options((__doc__ or "").splitlines()[0], rounds=1)
    parser.add_argument("--skills", type=Path, default=SKILLS, help="folder with the skill sets")
    given = parser.parse_args()
    files = [given.skills / f"{name}.jsonl" for name in (*NAMES, "lambada_openai")]
    if missing := [str(file) for file in files if not file.is_file()]:
        raise BenchError(f"there is no {', '.join(missing)}; give the folder with --skills")
    before = None if given.smoke else require_quiet_machine(given.threads)
    base = open_base(MODEL, place("cpu", "float32")).folder
    words = ["eval", str(base), "--tasks", ",".join(map(str, files)), "--tier", "certificate", "--json"]
    words += ["--device", "cpu", "--dtype", "float32", *(["--limit", "4"] if given.smoke else [])]
    with tempfile.TemporaryDirectory(prefix="graftwood-bench-") as cache:
        own = {"OMP_NUM_THREADS": str(given.threads), "GRAFTWOOD_HOME": cache}
        started = time.monotonic()
        program = [sys.executable, "-c", "from graftwood.__main__ import main; main()"]
        done = subprocess.run([*program, *words], env=os.environ | own, stdout=subprocess.PIPE, text=True, check=False)
        seconds = time.monotonic() - started
    if done.returncode:
        raise BenchError(f"graft {' '.join(words)} ended with {done.returncode}")
    after = None if given.smoke else require_quiet_machine(given.threads)
    asked = json.loads(done.stdout)
    items = sum(task["items"] for task in asked["base"]["tasks"])
    figure = Figure(
        "certificate_minutes", seconds / 60, "min", "five skill sets asked by `graft eval`, starting up included",
        f"{items} items in {seconds:.0f} s, {given.threads} of {os.cpu_count()} cores", f"{MOST} min on two cores",
    )  # fmt: skip
    return finish(
        "certificate", given, [figure], {}, others_share_before=before, others_share_after=after, asked=asked
    )  # fmt: skip


if __name__ == "__main__":
    run(main)
