"""The machine a run stands on: device, number format, threads, random state, memory. Touches nothing when imported."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from graftwood.errors import ConfigError, unknown

_SLACK = 1.15  # giving back and clearing again takes a tenth of a second; at this it is once in some twenty steps
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
    kind, _, number = device.partition(":")
    if not re.fullmatch(r"cpu(:0)?|cuda(:\d+)?", device):
        raise ConfigError(unknown("device", device, ("auto", "cpu", "cuda", "cuda:0")))
    if kind == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device {device!r}: torch {torch.__version__} sees no CUDA device; use --device cpu")
    if kind == "cuda" and int(number or 0) >= (there := torch.cuda.device_count()):
        raise ConfigError(f"device {device!r} is none of the {there} that torch sees; they count from cuda:0")
    if dtype == "auto":
        dtype = "bfloat16" if kind == "cuda" else "float32"
    if dtype not in DTYPES:
        raise ConfigError(unknown("dtype", dtype, ("auto", *DTYPES)))
    if kind == "cpu":
        use_wide_products()
    return Place(torch.device(device), DTYPES[dtype])


def check_trains(*formats: torch.dtype | None) -> None:
    """Raises: ConfigError where one of these is float16: gradients of long steps are below what it has numbers for."""
    if torch.float16 in formats:
        raise ConfigError(
            "float16 is for generating: in training the gradients of a large batch would round to zero unseen; give "
            "--dtype bfloat16, which takes as much memory, or float32"
        )


# MKL, which multiplies float32 matrices for torch, gives a processor of another maker its kernels of 256 bits, even
# where the processor has 512. oneDNN does not ask for the maker, but torch goes to it only where bfloat16 products
# are allowed. A processor without matrix tiles has none that would pay, so oneDNN multiplies in float32 all the same.
_wide = False


@cache
def use_wide_products() -> bool:
    """Multiply float32 matrices with the processor's widest registers where MKL would not: twice as fast, as exact.

    Sets `torch.backends.mkldnn.matmul.fp32_precision`, and only where a product then is exact to float32.
    """
    global _wide
    setting = _onednn()
    if setting is None or torch.backends.cpu.get_cpu_capability() != "AVX512" or not _has_wide_units(_processor()):
        return False
    probe = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    exact = probe.double() @ probe.double().T
    before, setting.fp32_precision = setting.fp32_precision, "bf16"
    if (probe @ probe.T - exact).norm() > 1e-5 * exact.norm():  # bfloat16: 2e-3
        setting.fp32_precision = before
    else:
        _wide = True
    return _wide


def products_are_wide() -> bool:
    """Whether `use_wide_products` changed anything."""
    return _wide


@contextmanager
def narrow_products() -> Iterator[None]:
    """Multiply by MKL in this block: it begins sooner, which counts where products are small."""
    if not _wide:
        yield
        return
    setting = _onednn()
    setting.fp32_precision = "ieee"
    try:
        yield
    finally:
        setting.fp32_precision = "bf16"


def advice(where: Place) -> str | None:
    """What a user who waits may want to know: that this processor has instructions for bfloat16 and uses none."""
    if where.device.type != "cpu" or where.dtype != torch.float32 or not _multiplies_bfloat16(_processor()):
        return None
    return (
        "this processor multiplies bfloat16 faster than float32: --dtype bfloat16 takes less time and memory; what "
        "trains stays float32, what flows between layers has 8 significant bits"
    )


def _multiplies_bfloat16(told: str) -> bool:
    """Whether the processor has products of bfloat16, by vectors or by tiles. Others emulate them, which is slow."""
    return re.search(r"\b(avx512_bf16|amx_bf16)\b", told) is not None


def _has_wide_units(told: str) -> bool:
    """Whether this is a processor by AMD that computes 512 bits at once, as Zen 5 does, the first to (family 26).

    It goes by what the processor is and not by a trial of its speed: a run that is resumed must compute alike.
    """
    family = re.search(r"^cpu family\s*: (\d+)", told, re.MULTILINE)
    return "AuthenticAMD" in told and family is not None and int(family[1]) >= 26


def _onednn() -> Any:
    """Torch's settings of oneDNN's matrix products, or None of a torch that has none."""
    setting = getattr(torch.backends.mkldnn, "matmul", None)
    return setting if hasattr(setting, "fp32_precision") else None


def _processor() -> str:
    """What Linux says of the processor; nothing elsewhere."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as handle:
            return handle.read()
    except OSError:
        return ""


def cores() -> int:
    """How many cores this process may use; where the system does not say, as macOS, all there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def use_threads(count: int | None = None) -> int:
    """Set torch's intra-op threads once for a command, by default to the cores this process may use."""
    threads = count or cores()
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


def give_back_memory() -> None:
    """Let the kernel have what is freed now: what comes next finds the heap in one piece. For glibc; nothing elsewhere.

    `preparation.py` has glibc keep what a step frees for the next one. What is freed for good, as a trial's optimiser,
    would stay as holes that nothing fits into.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


class Heap:
    """Gives back what steps freed when the process has grown by more than `_SLACK` beyond what a step takes.

    What a step takes is seen after one that began with nothing kept, and is the most of those.
    """

    def __init__(self) -> None:
        give_back_memory()
        self._needed = 0
        self._empty = True

    def stepped(self) -> None:
        """To be called after each step."""
        resident = resident_bytes()
        if self._empty:
            self._needed = max(self._needed, resident)
        self._empty = resident > _SLACK * self._needed
        if self._empty:
            give_back_memory()


def resident_bytes() -> int:
    """Memory of this process that is in use now, as Linux counts it; 0 elsewhere."""
    try:
        with open("/proc/self/statm", encoding="ascii") as handle:
            return int(handle.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def wait_for(device: torch.device) -> None:
    """Wait until a device has done all it was given; a CPU has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory so far, in bytes: of tensors on a CUDA device, else what is resident of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def machine() -> dict[str, str | int]:
    """What a figure needs beside it to be read: processor, cores, memory, versions."""
    lines = _processor().splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None)
    return {
        "processor": model or platform.processor() or platform.machine(),
        "cores": cores(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "simd": torch.backends.cpu.get_cpu_capability() + (", wide products" if use_wide_products() else ""),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": platform.system(),
    }
