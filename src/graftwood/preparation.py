"""What a command says to torch's libraries; they read it once, so it must be said before torch is imported.

A thread that waits by spinning goes on at once; one that sleeps must be woken, some 60 us where this was measured. A
decode step of a small model is 150 parallel regions of 100 us: 21 ms a step with spinning threads, 33 ms with sleeping
ones. Training has longer regions and gains nothing. But where another process holds a core, the thread that spins keeps
the one that works from running: a factor of ten and more.

Activations are some megabytes each, and each is made anew at every step. In huge pages they take a tenth less memory,
and the kernel has fewer pages to find and to clear. What a step frees, the C library gives back to the kernel, which
clears it again for the next: kept instead, a step of training is some 5% faster. Where rows have many lengths, what is
kept is in pieces that the next step does not fit into; `runtime.Heap` gives it back when it has grown.

oneDNN keeps the program of each product's sizes, a thousand of them, some 0.4 MB each. Rows of other lengths are other
sizes: those of the last steps are all that come again.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from pathlib import Path

_SAMPLE = 0.05  # seconds; the kernel counts in hundredths
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
_LARGEST_MMAP_THRESHOLD = 32 << 20  # bytes; glibc takes no more
_PRODUCTS = 192  # a step of LoRA has some 45 sizes, the most of them thirty times


def prepare(briefly: bool) -> None:
    """Let threads spin where every core is free now and the work is done `briefly`, and sleep soon everywhere else.

    What the user has set already stays.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(_PRODUCTS))
    if not (briefly and _free_cores() > (os.cpu_count() or 1) - 0.5):
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    _keep_freed_memory()


def _keep_freed_memory() -> None:
    """Have glibc keep what is freed for what is allocated next; other C libraries stay as they are."""
    if sys.platform != "linux" or any(name.startswith("MALLOC_") for name in os.environ):
        return
    try:
        adjust = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    adjust(_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
    adjust(_TRIM_THRESHOLD, 2**31 - 1)


def _free_cores() -> float:
    """How many cores have nothing to do, this process aside; 0 where the system does not tell."""
    try:
        before = _idle_ticks()
        time.sleep(_SAMPLE)
        return (_idle_ticks() - before) / (_SAMPLE * os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, AttributeError):
        return 0.0


def _idle_ticks() -> int:
    """Clock ticks that all cores together have been idle or waited for a disk."""
    _, _user, _nice, _system, idle, disk, *_ = Path("/proc/stat").read_text(encoding="ascii").split(maxsplit=9)
    return int(idle) + int(disk)
