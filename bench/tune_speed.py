"""LoRA training beside transformers + PEFT: tokens a second and peak memory, `default` or `best` options of the peer.

python -m bench.tune_speed default --peer-python PATH
python -m bench.tune_speed best --peer-python PATH
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from bench import workload
from bench.common import Figure, Side, finish, need, options, require_quiet_machine, run, say, take_turns

DEFAULT: dict[str, Any] = {"batch": 8, "sampling": "random", "flatten": False}
_BY_LENGTH: dict[str, Any] = {"sampling": "group_by_length", "flatten": False}
# All that can be set without writing code and that pays on a CPU. Compiling takes a C++ compiler and minutes for every
# new length. All is float32, as ours is; "medium" is torch's name for products that may be of bfloat16 inside, which on
# a processor without matrix tiles are float32 too, and of its full width.
BEST: dict[str, dict[str, Any]] = {
    **{f"batches of {n} by length": {"batch": n, **_BY_LENGTH} for n in (4, 8, 16)},
    "8 rows without padding": {"batch": 8, "sampling": "random", "flatten": True},
    "batches of 4 by length, medium products": {"batch": 4, **_BY_LENGTH, "products": "medium"},
}

TRIAL_ROWS = 16


def speeds(side: Side) -> list[float]:
    """Real tokens a second of every turn."""
    return [turn["tokens"] / turn["seconds"] for turn in side.turns]


def peak(side: Side) -> int:
    """Highest resident memory over all turns, bytes."""
    return max(turn["peak_bytes"] for turn in side.turns)


def peer_work(work: dict[str, Any], choice: dict[str, Any]) -> dict[str, Any]:
    """The work with the peer's options; a turn is an epoch for every batch size."""
    return work | choice | {"steps_a_turn": -(-len(work["rows"]) // choice["batch"])}


def tried(python: str, work: dict[str, Any]) -> dict[str, Side]:
    """Two turns with each of the peer's best options, one after the other: at once they might not fit into memory."""
    sides = {}
    fewer = work | {"rows": work["rows"][:TRIAL_ROWS], "turns": 2}
    for name, choice in BEST.items():
        with Side("peft_tune", python, peer_work(fewer, choice)) as side:
            take_turns([side], 2)
        say(f"{name}: {max(speeds(side)):.1f} tokens/s")
        sides[name] = side
    return sides


def figures(kind: str, choice: str, ours: Side, peer: Side) -> list[Figure]:
    """Speed against either; memory against the defaults, whose batch size is the same as ours."""
    mine, theirs = median(speeds(ours)), median(speeds(peer))
    name = f"transformers {peer.ready['versions']['transformers']} + PEFT {peer.ready['versions']['peft']}, {choice}"
    ratio = median(a / b for a, b in zip(speeds(ours), speeds(peer), strict=True))
    found = [
        Figure(
            f"tune_speed_vs_peft_{kind}", ratio, "times as fast", "LoRA training, tokens a second",
            f"{mine:.0f} tokens/s", f"{theirs:.0f} tokens/s with {name}",
        )
    ]  # fmt: skip
    if kind == "default":
        found.append(
            Figure(
                "tune_memory_vs_peft_default", peak(ours) / peak(peer), "of the memory", "LoRA training, peak memory",
                f"{peak(ours) / 1e9:.2f} GB", f"{peak(peer) / 1e9:.2f} GB with {name}",
            )
        )  # fmt: skip
    return found


def main() -> int:
    """Measure and write `results/tune_speed_default.json` or `results/tune_speed_best.json`."""
    parser = options("LoRA training beside transformers + PEFT", rounds=3)
    parser.add_argument("kind", choices=("default", "best"), help="the peer's options")
    given = parser.parse_args()
    need(given.peer_python, "transformers", "peft", "accelerate")
    before = None if given.smoke else require_quiet_machine(given.threads)
    base = workload.open_model()
    chosen = workload.examples(base.encoder(), 8 if given.smoke else 24)
    work = workload.tuning(base, given.threads, chosen, given.rounds)
    choice, trials, selected = "its defaults", {}, DEFAULT
    with tempfile.TemporaryDirectory() as folder:
        theirs = work | workload.begin(base, work, Path(folder) / "adapter")
        if given.kind == "best":
            trials = tried(given.peer_python, theirs)
            choice = max(trials, key=lambda name: max(speeds(trials[name])))
            selected = BEST[choice]
        with (
            Side("ours_tune", sys.executable, work) as ours,
            Side("peft_tune", given.peer_python, peer_work(theirs, selected)) as peer,
        ):
            take_turns((ours, peer), given.rounds)
    return finish(
        f"tune_speed {given.kind}", given, figures(given.kind, choice, ours, peer),
        {"ours": [ours], "peer": [peer], "trials": list(trials.values())},
        rows=workload.described(chosen), others_share_before=before, peer_options={"name": choice, **selected},
        parameters={key: value for key, value in work.items() if key not in ("rows", "folder_of_base")},
        trials={name: speeds(side) for name, side in trials.items()},
    )  # fmt: skip


if __name__ == "__main__":
    run(main)
