"""Where a certificate fails for want of items, more of them decide; nowhere else are they asked."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from conftest import CPU
from graftwood.base import Base, open_base
from graftwood.choose.budget import Budget
from graftwood.choose.reserve import PART, parts, wanted
from graftwood.deciding import Deciding
from graftwood.evals.asking import Scores, work
from graftwood.evals.card import Decision
from graftwood.evals.checks import problems
from graftwood.evals.decision import decide, is_open, together
from graftwood.evals.given import find_tasks
from graftwood.evals.more_requests import TEMPLATES
from graftwood.evals.skills import base_scores
from graftwood.evals.task import TASKS, Item, Task
from graftwood.evals.templates import Template
from graftwood.files import cache_home
from graftwood.generate.engine import Engine
from graftwood.keeping import PASSES, SPARED, Keeper
from graftwood.progress import Display
from tiny import decoder, model_folder, picked


def test_a_template_makes_a_request_of_every_filler() -> None:
    first, second, third = Template("t", "Say {x}!", "this: that|such; it : so; these").items()
    assert [item.prompt for item in (first, second, third)] == ["Say this!", "Say it!", "Say these!"]
    assert first.checks == ({"kind": "contains_any", "values": ["that", "such"]},)
    assert (third.checks, third.cluster) == ((), "t")


@pytest.mark.parametrize("name", TASKS.names())
def test_what_is_in_reserve_of_a_bundled_set_depends_on_nothing_that_is_usually_asked(name: str) -> None:
    task = TASKS.get(name)
    usual, more = task.items(), task.more()
    assert len(more) >= 200
    assert len({item.id for item in (*usual, *more)}) == len(usual) + len(more)
    assert not {item.unit for item in usual} & {item.unit for item in more}
    assert not {item.prompt for item in usual} & {item.prompt for item in more}
    asked = [problems(item.checks) for item in more] if task.kind == "program" else []
    assert not any(asked)


def scores(name: str, right: int, items: int, lost: int = 0, of: str = "") -> Scores:
    """Of so many items the first are right but for those lost."""
    made = tuple(Item(f"{of}{n}", "") for n in range(items))
    task = Task(name, name, "program", 1, 0.0, "", "", lambda: made)
    return Scores(task, (0.0,) * lost + (1.0,) * (right - lost) + (0.0,) * (items - right))


def test_parts_hold_every_item_once_and_of_every_cluster_the_first_ones_first() -> None:
    tasks = [TASKS.get(name) for name in ("requests", "piqa")]
    found = parts([task.of(task.more()) for task in tasks])
    assert [part.name for part in found] == ["requests"] * 4 + ["piqa"] * 5
    assert max(len(part.items()) for part in found) == PART
    for task in tasks:
        own = [part for part in found if part.name == task.name]
        assert sorted(item.id for part in own for item in part.items()) == sorted(item.id for item in task.more())
    families = len(TEMPLATES)
    assert len(set(found[0].units())) == families
    assert max(Counter(found[0].units()).values()) == -(-PART // families)


def test_the_ability_that_says_least_is_asked_as_much_as_would_do() -> None:
    before = [scores("small", 30, 40), scores("large", 3000, 4000)]
    after = [scores("small", 30, 40, 1), scores("large", 3000, 4000, 30)]
    reserve = parts([scores("large", 225, 300, of="l").task, scores("small", 225, 300, of="s").task])
    first = decide(before, after, 0.95)
    assert is_open(first, 0.95)
    asked, low = wanted(before, after, reserve, 0.95)
    assert {part.name for part in asked} == {"small"}
    count = sum(len(part.items()) for part in asked)
    assert 0 < count < 300
    more = [scores("small", count * 3 // 4, count, count // 40, of="s")]
    found = decide(together(before, [scores("small", count * 3 // 4, count, of="s")]), together(after, more), 0.95)
    assert found.kept.low == pytest.approx(low, abs=3e-3), "were they answered alike"
    assert low >= 0.95 > (first.kept.low or 0.0)
    assert wanted(before, after, reserve, 0.95, worst=0.95)[0] == [], "not all of them would show that of the small one"
    assert wanted(before, after, parts([scores("other", 9, 9).task]), 0.95) == ([], first.kept.low)


def test_what_did_not_move_takes_no_items_for_a_budget_of_the_worst() -> None:
    before = [scores("same", 40, 50), scores("moved", 80, 100)]
    after = [scores("same", 40, 50), scores("moved", 80, 100, 2)]
    reserve = parts([scores("same", 225, 300, of="s").task, scores("moved", 225, 300, of="m").task])
    assert is_open(decide(before, after, 0.8, worst=0.92), 0.8, 0.92)
    asked, _ = wanted(before, after, reserve, 0.8, worst=0.92)
    assert {part.name for part in asked} == {"moved"}


@pytest.fixture
def base(tmp_path: Path, tokenizer_files: Callable[[Path], None]) -> Base:
    # Wide weights: a peaked distribution, as a trained model has.
    folder = model_folder(tmp_path / "base", tokenizer_files, decoder(max_positions=512, init_std=0.45))
    return open_base(str(folder), CPU)


def certified(
    base: Base, kept: float, task: Task, reserve: tuple[Task, ...], file: Path, trained: float = math.inf
) -> Decision:
    """The certificate of a base whose head is shaken, as it was again afterwards."""
    head = base.decoder.head_weight()
    start, noise = head.detach().clone(), torch.randn(head.shape, generator=torch.Generator().manual_seed(0))

    @torch.no_grad()
    def go(alpha: float) -> None:
        head.copy_(start - alpha * 0.02 * noise)

    go(0.0)
    engine = Engine(base.decoder, base.tokenizer.eos, base.tokenizer)
    scores = base_scores(base, engine, lambda what: None, [task])
    deciding = Deciding((), 1.0, 1.0, scores, None, reserve)  # type: ignore[arg-type]
    keeper = Keeper(base, go, deciding, Budget(kept), file, "key", Display(quiet=True), trained=trained)
    decision = keeper.certify(1.0)
    go(0.0)
    return decision


def test_more_items_are_asked_where_the_first_leave_a_certificate_open(base: Base, tmp_path: Path) -> None:
    (task,) = find_tasks(str(picked(base, tmp_path / "picks.jsonl")))
    items = task.items()
    few, rest = task.of(items[:20]), task.of(items[20:])
    alone = certified(base, 1.0, few, (), tmp_path / "alone.json").kept
    assert alone.value is not None
    assert alone.low is not None
    assert alone.low < alone.value < 1
    between = (alone.low + alone.value) / 2
    shelf = list(cache_home().rglob("base-scores/**/*.json"))
    opened = certified(base, between, few, (rest,), tmp_path / "open.json")
    assert opened.items == 60
    assert opened.likely_low is None
    assert opened.kept != alone
    assert len(list(cache_home().rglob("base-scores/**/*.json"))) == len(shelf) + 1, "the base is asked too, once"
    beyond = (between + 19 * alone.value) / 20
    told = certified(base, beyond, few, (rest,), tmp_path / "beyond.json")
    assert (told.items, told.kept) == (20, alone), "not even so many more would do, were they answered alike"
    assert told.likely_low is not None
    assert alone.low < told.likely_low < beyond
    for kept in (alone.low - 0.05, 1.0):
        sure = certified(base, kept, few, (rest,), tmp_path / f"{kept}.json")
        assert (sure.items, sure.kept) == (20, alone), "what the first items decide needs no more"


def test_items_in_reserve_cost_a_small_part_of_the_run(base: Base, tmp_path: Path) -> None:
    (task,) = find_tasks(str(picked(base, tmp_path / "picks.jsonl")))
    items = task.items()
    few, rest = task.of(items[:20]), tuple(task.of(items[start : start + 10]) for start in (20, 30, 40, 50))
    alone = certified(base, 1.0, few, (), tmp_path / "alone.json").kept
    assert alone.value is not None
    assert alone.low is not None
    near, far = alone.low + 0.1 * (alone.value - alone.low), alone.low + 0.4 * (alone.value - alone.low)
    cost = sum(work(base, rest[0]))
    counts = {}
    for kept in (near, far):
        for parts_of in (0, 4):
            trained = parts_of * cost / (SPARED * PASSES)
            found = certified(base, kept, few, rest, tmp_path / f"{kept}-{parts_of}.json", trained)
            counts[kept, parts_of] = found.items
    assert counts[near, 0] == 30, "one part may always be asked"
    assert counts[far, 0] == 20, "one would not do"
    assert 30 < (counts[far, 4] or 0) <= 60
