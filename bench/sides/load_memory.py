"""Loading a made-up checkpoint in a process of its own, which tells how far its memory rose above where it stood."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from bench.sides.turns import Turns

from graftwood.model.weights import load_decoder
from graftwood.runtime import place


def _resident(key: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def main() -> None:
    """Load the folder in the number format asked for, keep the model, and tell peak and size."""
    turns = Turns()
    torch.set_num_threads(turns.work["threads"])

    def turn() -> dict[str, Any]:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the peak so far
        before = _resident("VmRSS")
        decoder = load_decoder(Path(turns.work["checkpoint"]), place("cpu", turns.work["dtype"]))
        size = sum(parameter.nbytes for parameter in decoder.parameters())
        return {"model_bytes": size, "rise_bytes": _resident("VmHWM") - before}

    turns.ready("torch", "graftwood")
    turns.serve(turn)


if __name__ == "__main__":
    main()
