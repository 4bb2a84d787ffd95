"""Programs that a model wrote, each run in a process of its own under limits of time, memory, files and processes."""

from __future__ import annotations

import json
import os
import secrets
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from graftwood.errors import ConfigError
from graftwood.runtime import cores

# Libraries of linear algebra start a thread a core, which the limit on processes refuses, and end the program then.
_ONE_THREAD = dict.fromkeys(("MKL_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
_START = 60.0  # seconds an interpreter may take to start on a busy machine; the program's own time begins after that


@dataclass(frozen=True)
class Limits:
    """What a program may use. Units: seconds of wall clock, bytes of memory, bytes a file, open files, processes."""

    seconds: float = 3.0  # HumanEval's
    memory: int = 1 << 30
    file_bytes: int = 1 << 20
    open_files: int = 32
    processes: int = 1

    def as_resources(self) -> dict[str, int]:
        """The same by the names the system has for them."""
        return {
            "CPU": int(self.seconds) + 1,
            "AS": self.memory,
            "FSIZE": self.file_bytes,
            "NOFILE": self.open_files,
            "NPROC": self.processes,
        }


LIMITS = Limits()


@dataclass(frozen=True)
class Outcome:
    """Whether a program ran to its end; if not, `error` says why. `guard` is what kept it from the network."""

    passed: bool
    error: str | None
    guard: str


def run_all(programs: Sequence[str], limits: Limits = LIMITS) -> list[Outcome]:
    """Every program's outcome, as many at once as there are processors."""
    with ThreadPoolExecutor(cores()) as pool:
        return list(pool.map(lambda program: run_program(program, limits), programs))


@cache
def guard() -> str:
    """What keeps programs from the network here: `namespaces`, the kernel's, or `audit hook`, the interpreter's."""
    return run_program("pass").guard


def run_program(program: str, limits: Limits = LIMITS) -> Outcome:
    """One program in a fresh folder that is gone afterwards, as is everything it started.

    Raises: ConfigError where the system has no limits to set, or where no program can be started: that says nothing of
    the program.
    """
    if not hasattr(os, "fork") or not sys.platform.startswith("linux"):
        raise ConfigError(
            f"code tasks run model-written programs under Linux's limits; {sys.platform} has none of them"
        )
    token = secrets.token_hex(16)
    work = {"program": program, "limits": limits.as_resources(), "token": token}
    with _folder() as folder:
        process = subprocess.Popen(
            [sys.executable, "-I", str(Path(__file__).with_name("jail.py"))],
            cwd=folder,
            env={"PATH": os.defpath, **_ONE_THREAD},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            return _outcome(process, json.dumps(work).encode(), token, limits.seconds)
        finally:
            _end(process)


@contextmanager
def _folder() -> Iterator[str]:
    """A fresh folder, gone afterwards with all that a program left there.

    Another process removes it: however deep folders lie in each other, that takes neither our stack nor our open files.
    Nothing that cannot be removed changes an outcome.
    """
    folder = tempfile.mkdtemp(prefix="graftwood-program-")
    try:
        yield folder
    finally:
        for command in (("rm", "-rf"), ("chmod", "-R", "u+rwX"), ("rm", "-rf")):
            if os.path.lexists(folder):
                with suppress(OSError):
                    subprocess.run([*command, "--", folder], capture_output=True, check=False)


def _outcome(process: subprocess.Popen[bytes], work: bytes, token: str, seconds: float) -> Outcome:
    assert process.stdin is not None
    with suppress(BrokenPipeError), process.stdin:
        process.stdin.write(work)
    first = _line(process, _START)
    if not first:
        why = "ended" if first is not None else f"did not begin within {_START:g} s"
        raise ConfigError(
            f"no program can be run here: its interpreter {why}; free memory and processes, then run again"
        )
    guard_ = json.loads(first)["guard"]
    last = _line(process, seconds)
    if last is None:
        return Outcome(False, f"took more than {seconds:g} s", guard_)
    told = json.loads(last) if last else {}
    if told.get("token") != token:
        return Outcome(False, "ended before its end", guard_)
    return Outcome(told["error"] is None, told["error"], guard_)


def _line(process: subprocess.Popen[bytes], seconds: float) -> bytes | None:
    """The next line a process writes, empty where it ended; None when that takes too long."""
    assert process.stdout is not None
    descriptor, found, until = process.stdout.fileno(), b"", time.monotonic() + seconds
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        while not found.endswith(b"\n"):
            if not selector.select(max(0.0, until - time.monotonic())):
                return None
            # One byte at a time, so that nothing of the next line is taken.
            if not (more := os.read(descriptor, 1)):
                return b""
            found += more
    return found


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and its group; what it put into namespaces ends with it."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdout is not None:
        process.stdout.close()
