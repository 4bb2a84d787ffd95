"""How much of this machine's own matrix product speed LoRA training reaches, by the operations it needs (`flops.py`).

python -m bench.tune_share
"""

from __future__ import annotations

import sys
from statistics import median

from bench import workload
from bench.common import Figure, Side, finish, options, require_quiet_machine, run, take_turns


def main() -> int:
    """Measure and write `results/tune_share.json`: a turn is one step, a matrix product timed before and after it."""
    given = options(__doc__.splitlines()[0] if __doc__ else "", rounds=9).parse_args()
    before = None if given.smoke else require_quiet_machine(given.threads)
    base = workload.open_model()
    chosen = workload.examples(base.encoder(), 8 if given.smoke else 24)
    work = workload.tuning(base, given.threads, chosen, given.rounds) | {"steps_a_turn": 1, "sgemm_peak": True}
    with Side("ours_tune", sys.executable, work) as ours:
        take_turns([ours], given.rounds)
    peak = max(turn["sgemm_flops_a_second"] for turn in ours.turns)
    reached = [turn["flops"] / turn["seconds"] for turn in ours.turns]
    figure = Figure(
        "tune_share_of_sgemm_peak", median(reached) / peak, "of the peak", "LoRA training, share of the matrix product",
        f"{median(reached) / 1e9:.0f} GFLOP/s", f"{peak / 1e9:.0f} GFLOP/s of torch.mm at 2048 x 2048 x 2048",
    )  # fmt: skip
    return finish(
        "tune_share", given, [figure], {"ours": [ours]},
        rows=workload.described(chosen), others_share_before=before, shares=[rate / peak for rate in reached],
    )  # fmt: skip


if __name__ == "__main__":
    run(main)
