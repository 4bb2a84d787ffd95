"""What a user may get wrong, said in one line: what was given, what is allowed, how to fix it.

Everything here derives from `GraftError`. The command line prints such an error as one line on stderr and exits with
`exit_code`; anything else is a bug and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches


class GraftError(Exception):
    """A problem with what the user gave."""

    exit_code = 2


class ConfigError(GraftError):
    """A flag, a run file or a combination of options that cannot work."""


class ModelError(GraftError):
    """A base model that is missing, damaged or of a kind that cannot be read."""


class DataError(GraftError):
    """Rows that cannot be read. Carries every problem found, not only the first."""

    def __init__(self, summary: str, problems: Sequence[str] = ()) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join((summary, *(f"  {problem}" for problem in self.problems))))


class StorageError(GraftError):
    """A disk that is full or a folder that cannot be written."""


def nearest(given: str, known: Iterable[str]) -> str:
    """`" Did you mean 'x' or 'y'?"` for the closest known names, or an empty string."""
    close = get_close_matches(given, list(known), n=3, cutoff=0.5)
    return f" Did you mean {' or '.join(repr(name) for name in close)}?" if close else ""


def unknown(kind: str, given: str, known: Iterable[str]) -> str:
    """One line for a name that is not in a registry: the near matches first, then everything there is."""
    names = sorted(known)
    listed = ", ".join(names) if names else "none"
    return f"unknown {kind} {given!r}.{nearest(given, names)} Available: {listed}."
