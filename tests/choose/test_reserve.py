"""Where a certificate fails for want of items, more of them decide; nowhere else are they asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from conftest import CPU
from graftwood.base import Base, open_base
from graftwood.choose.budget import Budget
from graftwood.choose.reserve import EACH, TEMPLATES, reserve_of
from graftwood.evals.card import Decision
from graftwood.evals.checks import problems
from graftwood.evals.given import find_tasks
from graftwood.evals.skills import base_scores
from graftwood.evals.task import TASKS, Task
from graftwood.evals.templates import Template
from graftwood.files import cache_home
from graftwood.generate.engine import Engine
from graftwood.keeping import Deciding, Keeper
from graftwood.progress import Display
from tiny import decoder, model_folder, picked


def test_a_template_makes_a_request_of_every_filler() -> None:
    first, second, third = Template("t", "Say {x}!", "this: that|such; it : so; these").items()
    assert [item.prompt for item in (first, second, third)] == ["Say this!", "Say it!", "Say these!"]
    assert first.checks == ({"kind": "contains_any", "values": ["that", "such"]},)
    assert (third.checks, third.cluster) == ((), "t")


def test_the_reserve_belongs_to_the_bundled_requests() -> None:
    bundled = TASKS.get("requests")
    (reserve,) = reserve_of(list(TASKS.all().values()))
    items = reserve.items()
    assert reserve.name == bundled.name
    assert len({item.prompt for item in items}) == len(items) == EACH * len(TEMPLATES)
    assert {len(template.items()) for template in TEMPLATES} == {10}
    assert [problem for item in items for problem in problems(item.checks)] == []
    assert all(item.checks for item in items)
    assert not {item.cluster for item in items} & set(bundled.units())
    assert reserve_of([replace(bundled, source="someone's own")]) == []


@pytest.fixture
def base(tmp_path: Path, tokenizer_files: Callable[[Path], None]) -> Base:
    # Wide weights: a peaked distribution, as a trained model has.
    folder = model_folder(tmp_path / "base", tokenizer_files, decoder(max_positions=512, init_std=0.45))
    return open_base(str(folder), CPU)


def certified(base: Base, kept: float, task: Task, reserve: Task | None, file: Path) -> Decision:
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
    decision = Keeper(base, go, deciding, Budget(kept), file, "key", Display(quiet=True)).certify(1.0)
    go(0.0)
    return decision


def test_more_items_are_asked_where_the_first_leave_a_certificate_open(base: Base, tmp_path: Path) -> None:
    (task,) = find_tasks(str(picked(base, tmp_path / "picks.jsonl")))
    items = task.items()
    few, rest = task.of(items[:20]), task.of(items[20:])
    alone = certified(base, 1.0, few, None, tmp_path / "alone.json").kept
    assert alone.value is not None
    assert alone.low is not None
    assert alone.low < alone.value < 1
    between = (alone.low + alone.value) / 2
    shelf = list(cache_home().rglob("base-scores/**/*.json"))
    opened = certified(base, between, few, rest, tmp_path / "open.json")
    assert opened.items == 60
    assert opened.kept != alone
    assert len(list(cache_home().rglob("base-scores/**/*.json"))) == len(shelf) + 1, "the base is asked too, once"
    for kept in (alone.low - 0.05, 1.0):
        sure = certified(base, kept, few, rest, tmp_path / f"{kept}.json")
        assert (sure.items, sure.kept) == (20, alone), "what the first items decide needs no more"
