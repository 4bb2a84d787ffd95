"""The command line in a test's own process, and what it left."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Said:
    """What a command left: its exit code, its data and its messages."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line of a user's error; a traceback or a second line would fail here."""
        (line,) = self.err.splitlines()
        assert line.startswith("graft: ")
        return line.removeprefix("graft: ")


Graft = Callable[..., Said]


def json_lines(said: Said) -> list[dict[str, Any]]:
    """A command's data, which ends each value with a line feed and nothing else."""
    return [json.loads(line) for line in said.out.split("\n")[:-1]]
