"""The loss curve beside transformers + PEFT: same rows in the same batches, same initial weights, same schedule.

python -m bench.loss_curve --peer-python PATH
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from bench import workload
from bench.common import BenchError, Figure, Side, finish, need, options, run, say

from graftwood.data.batch import Order
from graftwood.train.optim import schedule

LIMIT = 1e-3


def main() -> int:
    """Compare and write `results/loss_curve.json`; 1 when the curves part by more than the limit."""
    parser = options(__doc__.splitlines()[0] if __doc__ else "", rounds=1)
    given = parser.parse_args()
    need(given.peer_python, "transformers", "peft", "accelerate")
    base = workload.open_model()
    # The shortest of many rows: what is compared does not depend on length, and the peer is slow.
    pool = sorted(workload.examples(base.encoder(), 64), key=lambda example: len(example.ids))
    batch, steps = (2, 2) if given.smoke else (4, 20)
    chosen = pool[: 12 if not given.smoke else 4]
    work = workload.tuning(base, given.threads, chosen, 1) | {"batch": batch, "steps_a_turn": steps, "warm_up": False}
    order = Order(len(chosen), batch, steps * batch / len(chosen), work["seed"])
    assert order.steps == steps, "the epochs are made to fit the steps"
    rates = [schedule(step, steps, max(1, round(work["warmup"] * steps)), steps) for step in range(steps)]
    rows = [work["rows"][row] for step in range(steps) for row in order.batch_rows(step)]

    with tempfile.TemporaryDirectory() as folder:
        work |= workload.begin(base, work, Path(folder) / "adapter")
        theirs = work | {"rows": rows, "rates": rates, "sampling": "sequential", "flatten": False}
        with Side("ours_tune", sys.executable, work) as ours, Side("peft_tune", given.peer_python, theirs) as peer:
            curves = [side.turn()["losses"] for side in (ours, peer)]
    apart = [abs(a - b) for a, b in zip(*curves, strict=True)]
    figure = Figure(
        "loss_curve_max_difference", max(apart), "nats a token", f"loss curve over {steps} steps",
        f"{curves[0][0]:.4f} to {curves[0][-1]:.4f}",
        f"{curves[1][0]:.4f} to {curves[1][-1]:.4f} with transformers {peer.ready['versions']['transformers']} + PEFT "
        f"{peer.ready['versions']['peft']}",
    )  # fmt: skip
    code = finish(
        "loss_curve", given, [figure], {"ours": [ours], "peer": [peer]},
        rows=workload.described(chosen), differences=apart, batch=batch, rates=rates, needs_quiet=False,
    )  # fmt: skip
    if max(apart) > LIMIT:
        raise BenchError(f"the curves part by {max(apart):.2g} nats a token; the limit is {LIMIT:g}")
    say(f"largest difference {max(apart):.2g} of at most {LIMIT:g}")
    return code


if __name__ == "__main__":
    run(main)
