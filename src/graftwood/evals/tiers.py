"""How much is asked: three sizes of an evaluation, and what any task can be given besides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from graftwood.errors import ConfigError, unknown
from graftwood.evals.task import TASKS, Task


@dataclass(frozen=True)
class Tier:
    """Items of a task that are asked: of the bundled ones, and of a file of the user's. None asks all."""

    bundled: int | None
    given: int | None


TIERS = {
    "pulse": Tier(10, 10),  # drift and next words carry it: about a minute for 135M parameters on two cores
    "standard": Tier(None, 100),
    "certificate": Tier(None, 400),
}


def sized(tasks: Sequence[Task], tier: str, limit: int | None = None) -> tuple[Task, ...]:
    """The tasks as a tier asks them; `limit` overrides its counts. A file named like a bundled task is still a file.

    Raises: ConfigError for an unknown tier or a limit below 2, which would leave no interval.
    """
    if tier not in TIERS:
        raise ConfigError(unknown("tier", tier, TIERS))
    check_limit(limit)
    size = TIERS[tier]
    bundled = {(task.name, task.source) for task in TASKS.all().values()}
    counts = (size.bundled if (task.name, task.source) in bundled else size.given for task in tasks)
    return tuple(task.limited(limit or count) for task, count in zip(tasks, counts, strict=True))


def check_limit(limit: int | None) -> None:
    """Raises: ConfigError for a limit below 2, which would leave no interval."""
    if limit is not None and limit < 2:
        raise ConfigError(f"--limit {limit} leaves nothing to compare; ask 2 items a task or more")
