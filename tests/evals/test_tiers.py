"""How much a tier asks, and of which items."""

from __future__ import annotations

from dataclasses import replace

import pytest

from graftwood.errors import ConfigError
from graftwood.evals.task import TASKS, Item
from graftwood.evals.tiers import TIERS, beyond, sized

# A full set in a file that is named as the bundled part of it is.
MINE = replace(TASKS.get("piqa"), source="piqa.jsonl").of(tuple(Item(f"{n}", "q", ("a", "b")) for n in range(500)))


@pytest.mark.parametrize(
    ("tier", "limit", "counts"),
    [
        ("pulse", None, (10, 10, 10)),
        ("standard", None, (100, 185, 100)),
        ("certificate", None, (400, 405, 400)),
        ("pulse", 30, (30, 30, 30)),
        ("standard", 200, (200, 200, 200)),
        ("certificate", 450, (400, 405, 450)),
    ],
)
def test_a_tier_asks_so_many_items(tier: str, limit: int | None, counts: tuple[int, ...]) -> None:
    tasks = sized([TASKS.get("piqa"), TASKS.get("requests"), MINE], tier, limit)
    assert tuple(len(task.items()) for task in tasks) == counts


def test_a_larger_tier_asks_the_same_and_more() -> None:
    asked = [{item.id for item in sized([MINE], tier)[0].items()} for tier in TIERS]
    assert asked[0] < asked[1] < asked[2]


@pytest.mark.parametrize(("tier", "counts"), [("pulse", ()), ("standard", (300, 220, 300)), ("certificate", ())])
def test_beyond_a_tier_is_what_a_certificate_asks_and_does_not_depend_on_it(tier: str, counts: tuple[int, ...]) -> None:
    tasks = [TASKS.get("piqa"), TASKS.get("requests"), MINE]
    found = beyond(tasks, tier)
    assert tuple(len(task.items()) for task in found) == counts
    for task, asked in zip(found, sized(tasks, tier), strict=bool(counts)):
        assert not set(task.units()) & set(asked.units())


def test_a_larger_limit_asks_the_same_and_more() -> None:
    tasks = [TASKS.get("requests")]
    few, all_, more = ({item.id for item in sized(tasks, "standard", count)[0].items()} for count in (40, 185, 300))
    assert few < all_ < more


def test_of_clusters_every_one_is_asked_before_any_is_asked_again() -> None:
    families = {item.cluster for item in TASKS.get("requests").items()}
    few, more = (TASKS.get("requests").limited(count).items() for count in (10, len(families) + 3))
    assert len({item.cluster for item in few}) == 10
    assert {item.cluster for item in more} == families
    assert {item.id for item in few} <= {item.id for item in more}
    assert [item.id for item in more] == sorted(item.id for item in more)


def test_what_cannot_be_asked_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"unknown tier 'pulsar'\. Did you mean 'pulse'"):
        sized([MINE], "pulsar")
    with pytest.raises(ConfigError, match="--limit 1 leaves nothing to compare"):
        sized([MINE], "pulse", 1)
