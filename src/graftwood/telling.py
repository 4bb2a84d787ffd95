"""Where people are told things: what cannot be told any more is never worth the work it is about."""

from __future__ import annotations

import os
import sys
from typing import IO, Any, cast


class Telling:
    """A stream whose reader may leave or whose disk may fill: from then on what is written to it goes nowhere."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._gone = False

    def write(self, text: str) -> int:
        """Write the text, or nothing once that has failed."""
        if not self._gone:
            try:
                return self._stream.write(text)
            except OSError:
                self._gone = True
        return len(text)

    def flush(self) -> None:
        """Hand on what was written, or nothing once that has failed."""
        if not self._gone:
            try:
                self._stream.flush()
            except OSError:
                self._gone = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def stderr() -> IO[str]:
    """The standard error stream as it is now, told to in this way; a process without one has nobody to tell."""
    stream = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    return cast(IO[str], stream if isinstance(stream, Telling) else Telling(stream))
