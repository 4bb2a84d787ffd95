"""Seconds to open the base a second time, beside transformers from the GGUF file; a fresh process for every turn.

python -m bench.load_time --peer-python PATH
"""

from __future__ import annotations

import sys
from statistics import median

from bench import workload
from bench.common import Figure, Side, finish, need, options, require_quiet_machine, run, say


def main() -> int:
    """Measure and write `results/load_time.json`."""
    given = options(__doc__.splitlines()[0] if __doc__ else "", rounds=5).parse_args()
    need(given.peer_python, "transformers")
    before = None if given.smoke else require_quiet_machine(given.threads)
    base = workload.open_model()  # the first time; the turns find it converted
    work = workload.setting(given.threads) | {"prompts": [base.tokenizer.encode("A quiet river.")]}
    modules = (("ours_load", sys.executable), ("hf_load", given.peer_python))
    sides: dict[str, list[Side]] = {module: [] for module, _ in modules}
    for number in range(given.rounds):
        for module, python in modules:
            with Side(module, python, work) as side:
                told = side.turn()
            sides[module].append(side)
            say(f"round {number + 1} of {given.rounds}: {module} took {told['seconds']:.2f} s")
    mine, theirs = (median(side.turns[0]["seconds"] for side in group) for group in sides.values())
    peer = f"transformers {sides['hf_load'][0].ready['versions']['transformers']}"
    figure = Figure(
        "load_second_time_seconds", mine, "s", "opening a base the second time",
        f"{mine:.2f} s", f"{theirs:.2f} s with {peer} from the GGUF file",
    )  # fmt: skip
    return finish("load_time", given, [figure], sides, others_share_before=before)


if __name__ == "__main__":
    run(main)
