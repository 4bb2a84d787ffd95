"""Pre-training on tinyshakespeare beside nanoGPT's CPU run: time to its loss, tokens a second, the best in ten minutes.

python -m bench.pretrain_shakespeare same_loss
python -m bench.pretrain_shakespeare tokens
python -m bench.pretrain_shakespeare ten_minutes
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from bench import shakespeare
from bench.common import BenchError, Figure, Side, finish, options, require_quiet_machine, run, say, take_turns

# nanoGPT's README, "I only have a macbook": the shape and length of its CPU run.
NANO: dict[str, Any] = {"layers": 4, "width": 128, "heads": 4, "block": 64, "batch": 12, "steps": 2000}
SHAPE = {"layers": 4, "width": 128, "heads": 4, "feed_forward": 344, "context": 64}
SAME_LOSS = SHAPE | {"lr": 0.015, "batch_tokens": 2048, "tokens": 380_000, "decay": 1.0, "weight_decay": 0.3}
TOKENS = SHAPE | {"optimiser": "adamw", "lr": 1e-3, "batch_tokens": 768, "tokens": 2_000_000}
TEN_MINUTES = {"layers": 5, "width": 160, "heads": 5, "context": 256, "lr": 0.015, "batch_tokens": 2048, "decay": 1.0,
               "weight_decay": 0.3}  # fmt: skip
SECONDS, MARGIN = 600, 0.95  # the machine may be slower later than in the trial


def same_loss(given: argparse.Namespace, work: dict[str, Any]) -> tuple[list[Figure], dict[str, list[Side]]]:
    """Both train to the end of their schedules; ours is validated as it goes, with three seeds."""
    steps = 40 if given.smoke else NANO["steps"]
    nano = work | NANO | {"seed": 1337, "steps": steps, "steps_a_turn": steps, "validates": True}
    with Side("nanogpt", given.peer_python, nano) as peer:
        take_turns([peer], 1)
    loss, seconds = peer.turns[0]["valid_loss"], peer.turns[0]["seconds"]
    say(f"nanoGPT: {loss:.4f} nats after {seconds:.1f} s")
    ours, times = [], []
    for seed in range(1 if given.smoke else 3):
        config = SAME_LOSS | {"seed": seed} | ({"tokens": 20_000} if given.smoke else {})
        with Side("ours_pretrain", sys.executable, work | {"config": config, "turns": 20, "validates": True}) as side:
            take_turns([side], 20)
        ours.append(side)
        reached = [turn["total_seconds"] for turn in side.turns if turn["valid_loss"] <= loss]
        if not reached and not given.smoke:
            raise BenchError(f"seed {seed} ended at {side.turns[-1]['valid_loss']:.4f}, above nanoGPT's {loss:.4f}")
        times.append(reached[0] if reached else side.turns[-1]["total_seconds"])
        say(f"seed {seed}: {times[-1]:.1f} s, in the end {side.turns[-1]['valid_loss']:.4f}")
    figure = Figure(
        "pretrain_time_vs_nanogpt_same_loss", median(times) / seconds, "of the time",
        f"training on tinyshakespeare until the validation loss is {loss:.3f} nats",
        f"{median(times):.1f} s ({min(times):.1f} to {max(times):.1f} over {len(times)} seeds)",
        f"{seconds:.1f} s with nanoGPT's CPU run",
    )  # fmt: skip
    return [figure], {"ours": ours, "peer": [peer]}


def tokens(given: argparse.Namespace, work: dict[str, Any]) -> tuple[list[Figure], dict[str, list[Side]]]:
    """The same layers, width, block, batch and optimiser, in turns of 50 steps."""
    shared = {"steps_a_turn": 5 if given.smoke else 50, "validates": False}
    with (
        Side("ours_pretrain", sys.executable, work | shared | {"config": TOKENS}) as ours,
        Side("nanogpt", given.peer_python, work | NANO | shared | {"seed": 1337}) as peer,
    ):
        take_turns((ours, peer), given.rounds)
    mine, theirs = ([turn["tokens"] / turn["seconds"] for turn in side.turns] for side in (ours, peer))
    ratio = median(a / b for a, b in zip(mine, theirs, strict=True))
    shape = f"{NANO['layers']} x {NANO['width']}, block {NANO['block']}, batch {NANO['batch']}"
    figure = Figure(
        "pretrain_tokens_vs_nanogpt", ratio, "times as fast", f"pre-training, tokens a second at {shape}",
        f"{median(mine):.0f} tokens/s, {ours.ready['parameters']:,} parameters",
        f"{median(theirs):.0f} tokens/s with nanoGPT, {peer.ready['parameters']:,} parameters",
    )  # fmt: skip
    return [figure], {"ours": [ours], "peer": [peer]}


def ten_minutes(given: argparse.Namespace, work: dict[str, Any]) -> tuple[list[Figure], dict[str, list[Side]]]:
    """As many tokens as a trial says fit into ten minutes, with three seeds; the whole last tenth is predicted."""
    seconds = 15 if given.smoke else SECONDS
    timed: dict[str, Any] = {
        "validates_all": True,
        "seconds": seconds * MARGIN,
        "trial_seconds": 2 if given.smoke else 15,
        "turns": 5,
        "validates": False,
    }
    sides = []
    for seed in range(1 if given.smoke else 3):
        with Side("ours_pretrain", sys.executable, work | timed | {"config": TEN_MINUTES | {"seed": seed}}) as side:
            take_turns([side], timed["turns"])
        sides.append(side)
        say(f"seed {seed}: {side.turns[-1]['valid_loss_all']:.4f} nats after {side.turns[-1]['total_seconds']:.0f} s")
    within = [[t["valid_loss_all"] for t in side.turns if t["total_seconds"] <= seconds] for side in sides]
    if not all(within) and not given.smoke:
        raise BenchError("the machine was so slow that nothing was validated within the time")
    losses = [min(found) for found in within if found] or [sides[0].turns[-1]["valid_loss_all"]]
    figure = Figure(
        "shakespeare_ten_minutes_nats", median(losses), "nats a character",
        "validation loss on tinyshakespeare after ten minutes of training",
        f"{median(losses):.4f} ({min(losses):.4f} to {max(losses):.4f} over {len(losses)} seeds), "
        f"{sides[0].ready['parameters']:,} parameters",
        "1.4697 published for nanoGPT's 10.65 million parameters on an A100",
    )  # fmt: skip
    return [figure], {"ours": sides}


KINDS = {"same_loss": same_loss, "tokens": tokens, "ten_minutes": ten_minutes}


def main() -> int:
    """Measure and write `results/pretrain_shakespeare_<kind>.json`."""
    parser = options(__doc__.splitlines()[0] if __doc__ else "", rounds=5)
    parser.add_argument("kind", choices=tuple(KINDS))
    parser.add_argument("--corpora", type=Path, default=shakespeare.CORPORA, help="folder with tinyshakespeare.txt")
    given = parser.parse_args()
    before = None if given.smoke else require_quiet_machine(given.threads)
    with tempfile.TemporaryDirectory(prefix="graftwood-bench-") as folder:
        work = {"threads": given.threads, **shakespeare.write(Path(folder), given.corpora)}
        figures, sides = KINDS[given.kind](given, work)
    return finish(
        f"pretrain_shakespeare {given.kind}", given, figures, sides, others_share_before=before,
        parameters={"nanogpt": NANO, "same_loss": SAME_LOSS, "tokens": TOKENS, "ten_minutes": TEN_MINUTES},
    )  # fmt: skip


if __name__ == "__main__":
    run(main)
