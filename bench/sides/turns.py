"""How a side talks to its benchmark: facts once it is ready, then one line of JSON for every turn it is given.

Standard library only, since peers' interpreters need not have graftwood.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any


class Turns:
    """The side's end of the line. Whatever else the program prints goes to stderr."""

    def __init__(self) -> None:
        self._line = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
        self.work: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
        self._cpu = 0.0

    def ready(self, *packages: str, **facts: Any) -> None:
        """Say what was loaded; the work of a turn is yet to come."""
        self._send(versions={name: version(name) for name in packages}, ready_peak_bytes=peak_bytes(), **facts)

    def wait(self) -> bool:
        """Wait for the turn; False when there is none any more."""
        given = bool(sys.stdin.readline())
        self._cpu = time.process_time()
        return given

    def reply(self, **facts: Any) -> None:
        """Give the turn back with what was measured."""
        self._send(cpu_seconds=time.process_time() - self._cpu, peak_bytes=peak_bytes(), **facts)

    def serve(self, turn: Callable[[], dict[str, Any]]) -> None:
        """Answer every turn with what `turn` returns."""
        while self.wait():
            self.reply(**turn())

    def _send(self, **facts: Any) -> None:
        self._line.write(json.dumps(facts) + "\n")
        self._line.flush()


def peak_bytes() -> int:
    """Highest resident memory of this process.

    `getrusage` hands down the peak of the parent that started it, so the process's own mark is read where there is one.
    """
    try:
        with open("/proc/self/status", encoding="ascii") as handle:
            return next(int(line.split()[1]) * 1024 for line in handle if line.startswith("VmHWM"))
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
