"""Peak memory of loading a made-up checkpoint of 2 GB, as a share of the model; a fresh process for each case.

python -m bench.load_memory
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from bench.common import Figure, Side, finish, options, run, say

from graftwood.model.architecture import ARCHITECTURES
from graftwood.model.config import ModelConfig
from graftwood.model.decoder import Decoder
from graftwood.model.tensor_files import PICKLED_SINGLE
from graftwood.model.weights import save_tensors, to_files

# A family, the file's number format, the one asked for, and whether the file is a pickle: matrices that only change
# their format, that are split, that are stored the other way round.
CASES = (
    ("llama", torch.bfloat16, "float32", False),
    ("gpt_neox", torch.bfloat16, "float32", False),
    ("gpt2", torch.float32, "bfloat16", True),
    ("llama", torch.float32, "float32", False),
)


def make(folder: Path, family: str, dtype: torch.dtype, pickled: bool, megabytes: float) -> None:
    """A checkpoint of zeros of about this size in memory, four bytes a parameter."""
    width = 1024
    layers = max(2, round(megabytes * 1e6 / 4 / (12 * width * width)))
    entry = ARCHITECTURES.get(family)
    sizes = {"hidden_size": width, "layers": layers, "heads": 16, "kv_heads": 16, "head_size": 64}
    wished = ModelConfig(
        architecture=family, vocab_size=8192, feed_forward_size=4 * width, max_positions=1024, norm_eps=1e-5, **sizes
    )
    decoder = Decoder(entry, entry.read(entry.write(wished))).requires_grad_(False).to(dtype)
    for parameter in decoder.parameters():
        parameter.zero_()
    (folder / "config.json").write_text(json.dumps(entry.write(decoder.config)), encoding="utf-8")
    if pickled:
        torch.save(to_files(decoder), folder / PICKLED_SINGLE)
    else:
        save_tensors(to_files(decoder), folder)


def measure(case: tuple[str, torch.dtype, str, bool], megabytes: float, threads: int) -> Side:
    """The case's turn in a process of its own."""
    family, dtype, asked, pickled = case
    with tempfile.TemporaryDirectory(prefix="graftwood-bench-") as folder:
        make(Path(folder), family, dtype, pickled, megabytes)
        work: dict[str, Any] = {"threads": threads, "checkpoint": folder, "dtype": asked}
        with Side("load_memory", sys.executable, work) as side:
            side.turn()
        return side


def main() -> int:
    """Measure and write `results/load_memory.json`."""
    given = options(__doc__.splitlines()[0] if __doc__ else "", rounds=1).parse_args()
    sides: dict[str, list[Side]] = {}
    shares = {}
    for case in CASES:
        family, dtype, asked, pickled = case
        name = f"{family} {str(dtype).removeprefix('torch.')} {'.bin' if pickled else 'safetensors'} to {asked}"
        side = measure(case, 100 if given.smoke else 2000, given.threads)
        sides[name] = [side]
        shares[name] = side.turns[0]["rise_bytes"] / side.turns[0]["model_bytes"]
        say(f"{name}: peak {shares[name]:.3f} of the model")
    worst = max(shares, key=lambda name: shares[name])
    figure = Figure(
        "load_peak_memory", shares[worst], "x the model", "highest memory while loading a checkpoint of 2 GB",
        f"{shares[worst]:.3f} ({worst})", "1.1 is the most allowed",
    )  # fmt: skip
    return finish("load_memory", given, [figure], sides, needs_quiet=False)


if __name__ == "__main__":
    run(main)
