"""How much is asked: three sizes of an evaluation, and what any task can be given besides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from graftwood.errors import ConfigError, unknown
from graftwood.evals.task import TASKS, Task


@dataclass(frozen=True)
class Tier:
    """Items of a task that are asked: of the bundled ones, and of a file of the user's.

    None asks the bundled items that are usually asked, `whole` those beyond them, too.
    """

    bundled: int | None
    given: int
    whole: bool = False


TIERS = {
    "pulse": Tier(10, 10),  # drift and next words carry it: about a minute for 135M parameters on two cores
    "standard": Tier(None, 100),
    "certificate": Tier(None, 400, whole=True),
}


def sized(tasks: Sequence[Task], tier: str, limit: int | None = None) -> tuple[Task, ...]:
    """The tasks as a tier asks them; `limit` overrides its counts. A file named like a bundled task is still a file.

    Raises: ConfigError for an unknown tier or a limit below 2, which would leave no interval.
    """
    if tier not in TIERS:
        raise ConfigError(unknown("tier", tier, TIERS))
    check_limit(limit)
    size, bundled = TIERS[tier], {(task.name, task.source) for task in TASKS.all().values()}
    found = []
    for task in tasks:
        if (task.name, task.source) not in bundled:
            found.append(task.limited(limit or size.given))
        else:
            found.append(_bundled(task, limit or size.bundled, size.whole and limit is None))
    return tuple(found)


def _bundled(task: Task, count: int | None, whole: bool) -> Task:
    """So many of a bundled task's items, the usual ones first; None are all of those, and `whole` the others, too."""
    usual, more = task.items(), task.more()
    if not more or not (whole or (count or 0) > len(usual)):
        return task.limited(count)
    return task.of((*usual, *task.of(more).limited(None if count is None else count - len(usual)).items()))


def beyond(tasks: Sequence[Task], tier: str) -> tuple[Task, ...]:
    """What a certificate asks beyond a tier and does not depend on what the tier asks; a pulse stays small."""
    found: list[Task] = []
    if tier == "pulse":
        return ()
    for asked, whole in zip(sized(tasks, tier), sized(tasks, "certificate"), strict=True):
        units = set(asked.units())
        if left := tuple(item for item in whole.items() if item.unit not in units):
            found.append(whole.of(left))
    return tuple(found)


def check_limit(limit: int | None) -> None:
    """Raises: ConfigError for a limit below 2, which would leave no interval."""
    if limit is not None and limit < 2:
        raise ConfigError(f"--limit {limit} leaves nothing to compare; ask 2 items a task or more")
