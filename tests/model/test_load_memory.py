"""Loading takes no more memory than the model it makes and a tenth of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from graftwood.model.architecture import ARCHITECTURES
from graftwood.model.config import ModelConfig
from graftwood.model.decoder import Decoder
from graftwood.model.tensor_files import PICKLED_SINGLE
from graftwood.model.weights import save_tensors, to_files

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


def checkpoint(folder: Path, family: str, layers: int, dtype: torch.dtype, pickled: bool) -> Path:
    """A checkpoint of zeros, about 25 MB a layer at two bytes a parameter."""
    folder.mkdir()
    entry = ARCHITECTURES.get(family)
    sizes = {"hidden_size": 1024, "layers": layers, "heads": 16, "kv_heads": 16, "head_size": 64}
    config = ModelConfig(
        architecture=family, vocab_size=4096, feed_forward_size=4096, max_positions=64, norm_eps=1e-5, **sizes
    )
    decoder = Decoder(entry, entry.read(entry.write(config))).requires_grad_(False).to(dtype)
    for parameter in decoder.parameters():
        parameter.zero_()
    (folder / "config.json").write_text(json.dumps(entry.write(decoder.config)), encoding="utf-8")
    if pickled:
        torch.save(to_files(decoder), folder / PICKLED_SINGLE)
    else:
        save_tensors(to_files(decoder), folder)
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
    folder = checkpoint(tmp_path / "big", family, 8, stored, pickled)
    small = checkpoint(tmp_path / "small", family, 1, stored, pickled)
    command = [sys.executable, "-c", LOAD, str(folder), asked, str(small)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    size, peak = map(int, done.stdout.split())
    assert size > 150_000_000
    assert peak <= 1.1 * size
