"""Peak memory of pre-training beside what its forecast said: new models of several sizes, a process for each.

python -m bench.pretrain_memory
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.common import ROOT, BenchError, Figure, finish, options, run, say

# Sizes, so that activations, weights and the output matrix each dominate once.
CASES: dict[str, dict[str, str]] = {
    "1M, short windows": {"--params": "1M", "--context": "64", "--token-budget": "4096", "--batch-tokens": "4096"},
    "10M, long windows": {"--params": "10M", "--context": "512", "--token-budget": "8192", "--batch-tokens": "8192"},
    "50M": {"--params": "50M", "--context": "256", "--token-budget": "1024", "--batch-tokens": "1024"},
    "20M with AdamW, averaged": {
        "--params": "20M", "--context": "256", "--token-budget": "2048", "--batch-tokens": "2048",
        "--optimiser": "adamw", "--average": "5",
    },
}  # fmt: skip
STEPS = 4


def graft(*arguments: str) -> dict[str, float]:
    """What one `graft pretrain --json` says. Raises: BenchError with its own last lines."""
    command = [sys.executable, "-c", "from graftwood.__main__ import main; main()", "pretrain", *arguments, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(f"graft pretrain ended with {done.returncode}: {done.stderr.strip()[-400:]}")
    told: dict[str, float] = json.loads(done.stdout)
    return told


def main() -> int:
    """Measure and write `results/pretrain_memory.json`."""
    given = options(__doc__.splitlines()[0] if __doc__ else "", rounds=1).parse_args()
    cases = dict(list(CASES.items())[:1]) if given.smoke else CASES
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="graftwood-bench-") as folder:
        text = Path(folder) / "text.txt"
        # Enough text for every case, and of no matter: the log's own pages, over and over.
        pages = "\n".join(page.read_text(encoding="utf-8") for page in sorted((ROOT / "docs").glob("*.md")))
        text.write_text(pages * (1 + 400_000 // len(pages)), encoding="utf-8")
        for number, (name, flags) in enumerate(cases.items()):
            shared = [word for pair in flags.items() for word in pair]
            steps = STEPS * int(flags["--batch-tokens"])
            shared += ["--data", str(text), "--tokens", str(steps), "--evaluations", "2", "--valid-tokens", "20000"]
            before = graft(*shared, "--out", f"{folder}/{number}-dry", "--dry-run")["memory_bytes"]
            after = graft(*shared, "--out", f"{folder}/{number}")["peak_memory_bytes"]
            found[name] = {"forecast_bytes": before, "peak_bytes": after, "ratio": after / before}
            say(f"{name}: {after / 1e6:.0f} MB, forecast {before / 1e6:.0f} MB")
    worst = max(found.values(), key=lambda case: abs(case["ratio"] - 1))
    figure = Figure(
        "pretrain_memory_vs_forecast", worst["ratio"], "of the forecast",
        f"peak memory of pre-training, the worst of {len(found)} sizes",
        f"{worst['peak_bytes'] / 1e6:.0f} MB", f"{worst['forecast_bytes'] / 1e6:.0f} MB forecast",
    )  # fmt: skip
    return finish("pretrain_memory", given, [figure], {}, needs_quiet=False, cases=found)


if __name__ == "__main__":
    run(main)
