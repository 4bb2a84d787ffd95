"""What is said to torch's libraries is said once, and never over what the user has set."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from graftwood import preparation, runtime

KEY = "GOMP_SPINCOUNT"


@pytest.mark.parametrize(("briefly", "free", "said"), [(True, 2.0, None), (True, 1.0, "1000"), (False, 2.0, "1000")])
def test_threads_spin_only_where_a_short_task_has_every_core(
    briefly: bool, free: float, said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(preparation, "_free_cores", lambda: free)
    monkeypatch.setenv(KEY, "")
    monkeypatch.delenv(KEY)
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "0")
    preparation.prepare(briefly)
    assert os.environ.get(KEY) == said
    assert os.environ["THP_MEM_ALLOC_ENABLE"] == "0"


def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, "7")
    preparation.prepare(briefly=False)
    assert os.environ[KEY] == "7"


def test_free_cores_are_between_none_and_all() -> None:
    assert 0 <= preparation._free_cores() <= (os.cpu_count() or 1) * 1.5


_FAULTS = """
import ctypes, resource
{prepare}
c = ctypes.CDLL(None)
c.malloc.restype, c.malloc.argtypes, c.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
for round in range(20):
    if round == 4:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [c.malloc(16 << 20) for _ in range(8)]  # as many as a step frees at once
    for block in blocks:
        ctypes.memset(block, 1, 16 << 20)
    for block in blocks:
        c.free(block)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told to keep what is freed")
def test_freed_memory_is_used_again_without_asking_the_system() -> None:
    prepare = "from graftwood.preparation import prepare; prepare(briefly=False)"
    clean = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")}

    def faults(told: str, **env: str) -> int:
        program = [sys.executable, "-c", _FAULTS.format(prepare=told)]
        done = subprocess.run(program, env=clean | env, capture_output=True, text=True, check=True)
        return int(done.stdout)

    anew = faults("")
    assert anew > 1000, "without it each round's pages are new ones"
    assert faults(prepare) < anew / 10
    assert faults(prepare, MALLOC_ARENA_MAX="2") > anew / 2, "a user who tunes malloc is left alone"


def test_what_steps_leave_is_given_back_when_it_has_grown_beyond_what_a_step_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given_back: list[int] = []
    readings = iter([100, 110, 114, 116, 130, 140, 149, 150, 90])
    monkeypatch.setattr(runtime, "resident_bytes", lambda: next(readings))
    monkeypatch.setattr(runtime, "give_back_memory", lambda: given_back.append(-1))
    heap = runtime.Heap()
    for step in range(9):
        monkeypatch.setattr(runtime, "give_back_memory", lambda step=step: given_back.append(step))
        heap.stepped()
    # 116 is beyond 100; the step after it takes 130 by itself, and 150 is beyond that.
    assert given_back == [-1, 3, 7]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told to keep what is freed")
def test_memory_that_is_kept_is_in_use_until_it_is_given_back() -> None:
    program = """
from graftwood.preparation import prepare
prepare(briefly=False)
import torch
from graftwood.runtime import give_back_memory, resident_bytes
before = resident_bytes()
parts = [torch.ones(4 << 20) for _ in range(8)]
last = torch.ones(1)
del parts
kept = resident_bytes() - before
give_back_memory()
print(kept >> 20, (resident_bytes() - before) >> 20)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    kept, left = map(int, done.stdout.split())
    assert kept > 100
    assert left < 20
