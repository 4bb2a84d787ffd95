"""How much of the base must be left: what a person asks for, as a number."""

from __future__ import annotations

from dataclasses import dataclass

from graftwood.errors import ConfigError

NONE = "none"


@dataclass(frozen=True)
class Budget:
    """Shares of the base's abilities that a model must provably keep to be shipped: their mean, and the worst of them.

    Both hold on the lower bound of a 95% interval.
    """

    kept: float
    worst: float | None = None

    def __str__(self) -> str:
        worst = "" if self.worst is None else f", {percent(self.worst)} of the worst ability"
        return percent(self.kept) + worst


def read_budget(keep: str, worst: str | None = None) -> Budget | None:
    """`95%`, `0.95` or `95` as a budget; None for `none`.

    Raises: ConfigError for what is no percentage, and for a worst ability without a budget.
    """
    if keep.strip().lower() == NONE:
        if worst is not None:
            raise ConfigError(f"--keep-worst {worst} needs a budget; give --keep 95% or the like, or leave it out")
        return None
    return Budget(_share(keep, "--keep"), None if worst is None else _share(worst, "--keep-worst"))


def percent(share: float) -> str:
    """A share as a person writes it: `95%`, `97.5%`."""
    return f"{100 * share:.4g}%"


def _share(given: str, flag: str) -> float:
    text = given.strip()
    try:
        number = float(text.removesuffix("%"))
    except ValueError:
        number = float("nan")
    share = number / 100 if text.endswith("%") or number > 1 else number
    if not 0 < share <= 1:
        raise ConfigError(f"{flag} {given} is no percentage between 0 and 100; write 95%, 0.95 or {NONE}")
    return share
