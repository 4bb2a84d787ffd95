"""The machine a run stands on: device, number format, threads, random state, memory. Touches nothing when imported."""

from __future__ import annotations

import os
import platform
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from graftwood.errors import ConfigError, unknown

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Place:
    """Where tensors live and in which number format they are computed."""

    device: torch.device
    dtype: torch.dtype


def place(device: str = "auto", dtype: str = "auto") -> Place:
    """Resolve `auto`: the first CUDA device when there is one, else the CPU; bfloat16 on CUDA, float32 on the CPU.

    Raises: ConfigError for an unknown name or a device that this machine lacks.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    kind = device.partition(":")[0]
    if kind not in ("cpu", "cuda"):
        raise ConfigError(unknown("device", device, ("auto", "cpu", "cuda", "cuda:0")))
    if kind == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device {device!r}: torch {torch.__version__} sees no CUDA device; use --device cpu")
    if dtype == "auto":
        dtype = "bfloat16" if kind == "cuda" else "float32"
    if dtype not in DTYPES:
        raise ConfigError(unknown("dtype", dtype, ("auto", *DTYPES)))
    return Place(torch.device(device), DTYPES[dtype])


def use_threads(count: int | None = None) -> int:
    """Set torch's intra-op threads once for a command, by default to the cores this process may use."""
    threads = count or len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    return threads


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Run a block under its own random state and give the caller's back afterwards."""
    before, gpus = torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    torch.default_generator.manual_seed(seed)  # `torch.manual_seed` asks every kind of device, a share of a short step
    if gpus:
        torch.cuda.manual_seed_all(seed)
    try:
        yield
    finally:
        torch.set_rng_state(before)
        if gpus:
            torch.cuda.set_rng_state_all(gpus)


def peak_memory_bytes() -> int:
    """Highest resident memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def machine() -> dict[str, str | int]:
    """What a figure needs beside it to be read: processor, cores, memory, versions."""
    model = platform.processor()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as handle:
            model = next((line.partition(":")[2].strip() for line in handle if line.startswith("model name")), model)
    except OSError:
        pass
    return {
        "processor": model or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "simd": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": platform.system(),
    }
