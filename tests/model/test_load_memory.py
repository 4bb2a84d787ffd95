"""Loading takes no more memory than the model it makes and a tenth of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from bench.load_memory import make

LOAD = """
import sys
from pathlib import Path
from graftwood.model.weights import load_decoder
from graftwood.runtime import place

def resident(key):
    return next(int(l.split()[1]) * 1024 for l in open("/proc/self/status") if l.startswith(key))

here = place("cpu", sys.argv[2])
load_decoder(Path(sys.argv[3]), here)
Path("/proc/self/clear_refs").write_text("5")
before = resident("VmRSS")
decoder = load_decoder(Path(sys.argv[1]), here)
print(sum(p.nbytes for p in decoder.parameters()), resident("VmHWM") - before)
"""


def checkpoint(folder: Path, family: str, megabytes: float, dtype: torch.dtype, pickled: bool) -> Path:
    folder.mkdir()
    make(folder, family, dtype, pickled, megabytes)
    return folder


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells a process's peak so finely")
@pytest.mark.parametrize(
    ("family", "stored", "asked", "pickled"),
    [
        ("llama", torch.bfloat16, "float32", False),
        ("gpt_neox", torch.bfloat16, "float32", False),
        ("gpt2", torch.float32, "bfloat16", True),
    ],
    ids=["another format", "split matrices", "a pickle of transposed matrices"],
)
def test_peak_memory(family: str, stored: torch.dtype, asked: str, pickled: bool, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "big", family, 400, stored, pickled)
    small = checkpoint(tmp_path / "small", family, 100, stored, pickled)
    command = [sys.executable, "-c", LOAD, str(folder), asked, str(small)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    size, peak = map(int, done.stdout.split())
    assert size > 150_000_000
    assert peak <= 1.1 * size
