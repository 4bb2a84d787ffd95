"""A small model of tunes: ten minutes on the Nottingham collection, then how many of its tunes are ABC, and its own.

python -m bench.pretrain_abc
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from bench.abc_notation import is_valid
from bench.common import BenchError, Figure, Side, finish, options, require_quiet_machine, run, say
from bench.shakespeare import CORPORA

SEPARATOR = "\n\n\n"
CONFIG = {"params": 5_000_000, "context": 1024, "lr": 0.008, "batch_tokens": 2048, "decay": 1.0}
SECONDS, MARGIN, TUNES = 600, 0.9, 200


def longest_copy(text: str, corpus: str) -> str:
    """The longest run of characters of `text` that stands in `corpus`."""
    best = ""
    for start in range(len(text)):
        while start + len(best) < len(text) and text[start : start + len(best) + 1] in corpus:
            best = text[start : start + len(best) + 1]
    return best


def main() -> int:
    """Measure and write `results/pretrain_abc.json`."""
    parser = options(__doc__.splitlines()[0] if __doc__ else "", rounds=1)
    parser.add_argument("--corpora", type=Path, default=CORPORA, help="folder with nottingham.abc")
    given = parser.parse_args()
    file = given.corpora / "nottingham.abc"
    if not file.exists():
        raise BenchError(f"there is no {file}; give the folder it is in with --corpora")
    before = None if given.smoke else require_quiet_machine(given.threads)
    corpus = file.read_text(encoding="utf-8")
    real = [tune for tune in corpus.split(SEPARATOR) if tune.strip()]
    seconds = 20 if given.smoke else SECONDS
    config = CONFIG | ({"params": 500_000} if given.smoke else {})
    sides = []
    with tempfile.TemporaryDirectory(prefix="graftwood-bench-") as folder:
        for seed in range(1 if given.smoke else 3):
            work = {
                "threads": given.threads, "data": str(file), "separator": SEPARATOR, "config": config | {"seed": seed},
                "seconds": seconds * MARGIN, "run": f"{folder}/{seed}", "tunes": 20 if given.smoke else TUNES,
            }  # fmt: skip
            with Side("ours_tunes", sys.executable, work) as side:
                told = side.turn()
            sides.append(side)
            copies = sorted((longest_copy(tune, corpus) for tune in told["tunes"]), key=len)
            ended = zip(told["tunes"], told["finished"], strict=True)
            told["valid_share"] = sum(done and is_valid(tune) for tune, done in ended) / len(told["tunes"])
            told["longest_copy"], told["median_copy_characters"] = copies[-1], len(copies[len(copies) // 2])
            say(f"seed {seed}: {told['valid_share']:.1%} valid, longest copy {len(copies[-1])} characters")
    shares = [side.turns[0]["valid_share"] for side in sides]
    longest = max(len(side.turns[0]["longest_copy"]) for side in sides)
    figure = Figure(
        "abc_valid_share", sorted(shares)[len(shares) // 2], "of the tunes",
        "tunes of a model trained for ten minutes that a strict ABC reader accepts",
        f"{min(shares):.1%} to {max(shares):.1%} over {len(shares)} seeds, longest run copied {longest} characters",
        f"{sum(map(is_valid, real)) / len(real):.1%} of the collection itself",
    )  # fmt: skip
    return finish("pretrain_abc", given, [figure], {"ours": sides}, others_share_before=before, parameters=config)


if __name__ == "__main__":
    run(main)
