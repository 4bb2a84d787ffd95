"""Several sources in one run: their shares, their order, what is said of them before training."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graftwood.config import RunConfig, resolve
from graftwood.data.audit import audit
from graftwood.data.batch import Order
from graftwood.data.encode import Example
from graftwood.data.mixture import (
    MixedOrder,
    load_mixture,
    order_for,
    quotas,
    round_robin,
    shares,
    task_names,
    weighted,
)
from graftwood.data.rows import Row
from graftwood.draft import draft
from graftwood.errors import ConfigError, DataError, GraftError
from graftwood.flags import spelled

sizes = st.lists(st.integers(1, 60), min_size=2, max_size=5)


def write(path: Path, count: int, about: str = "", first: int = 0) -> str:
    about = about or path.stem
    rows = [{"prompt": f"{about} question {n}", "completion": f"{about} {n}"} for n in range(first, first + count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def mixed(
    counts: list[int], batch: int = 8, epochs: float = 3.0, seed: int = 0, temperature: float = 1.0
) -> MixedOrder:
    """An order over tasks a, b, c ... of so many rows."""
    tasks, start = {}, 0
    for name, count in zip("abcde", counts, strict=False):
        tasks[name] = range(start, start + count)
        start += count
    rows = {task: len(numbers) for task, numbers in tasks.items()}
    order = order_for(tasks, shares(rows, dict.fromkeys(tasks), None, temperature), batch, epochs, seed)
    assert isinstance(order, MixedOrder)
    return order


def owner(order: MixedOrder, row: int) -> str:
    return next(task for task, rows in order.tasks.items() if row in rows)


# shares


def test_shares_are_those_of_the_formula() -> None:
    rows, none = {"a": 900, "b": 100}, {"a": None, "b": None}
    assert shares(rows, none, None, 1) == {"a": 0.9, "b": 0.1}
    assert shares(rows, none, 300, 1) == {"a": 0.75, "b": 0.25}
    assert shares(rows, none, None, 2) == pytest.approx({"a": 0.75, "b": 0.25})  # roots of 900 and 100: 30 and 10
    assert shares(rows, none, 400, 2) == pytest.approx({"a": 2 / 3, "b": 1 / 3})
    assert shares(rows, none, None, 1e9) == pytest.approx({"a": 0.5, "b": 0.5})
    assert shares(rows, {"a": None, "b": 3.0}, None, 1) == {"a": 0.25, "b": 0.75}


@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=6), st.integers(1, 500))
def test_quotas_sum_to_the_rows_and_are_each_within_one_of_the_share(weights: list[float], rows: int) -> None:
    given_shares = {str(place): weight / sum(weights) for place, weight in enumerate(weights)}
    each = quotas(given_shares, rows)
    assert sum(each.values()) == rows
    assert all(abs(each[task] - share * rows) < 1 + 1e-9 for task, share in given_shares.items())


def test_a_weight_ends_a_path_unless_the_path_is_there(tmp_path: Path) -> None:
    odd = tmp_path / "rows.jsonl:2"
    odd.touch()
    assert weighted("rows.jsonl:2.5") == ("rows.jsonl", 2.5)
    assert weighted(str(odd)) == (str(odd), None)
    assert weighted("C:/rows.jsonl") == ("C:/rows.jsonl", None)
    with pytest.raises(ConfigError, match=r"a weight is above 0"):
        weighted("rows.jsonl:0")


# order


@settings(deadline=None, max_examples=40)
@given(sizes, st.integers(1, 9), st.integers(0, 3), st.sampled_from([1.0, 2.0, 4.0]))
def test_an_epoch_draws_every_quota_and_every_pass_reads_every_row_once(
    counts: list[int], batch: int, seed: int, temperature: float
) -> None:
    order = mixed(counts, batch, 3.0, seed, temperature)
    seen: dict[str, list[int]] = {task: [] for task in order.tasks}
    for step in range(order.steps):
        assert order.drawn(step) == {task: len(rows) for task, rows in seen.items()}
        for row in order.batch_rows(step):
            seen[owner(order, row)].append(row)
    assert {task: len(rows) for task, rows in seen.items()} == {task: 3 * n for task, n in order.quotas.items()}
    for task, rows in seen.items():
        size = len(order.tasks[task])
        for start in range(0, len(rows) - size + 1, size):
            assert sorted(rows[start : start + size]) == list(order.tasks[task])


def test_in_proportion_to_the_rows_an_epoch_is_every_row_once() -> None:
    order = mixed([30, 12, 5], batch=4, epochs=1)
    assert sorted(row for step in range(order.steps) for row in order.batch_rows(step)) == list(range(47))
    assert order.tokens(np.arange(47)) == Order(47, 4, 1, 0).tokens(np.arange(47)) == sum(range(47))


def test_a_step_holds_rows_of_all_tasks_and_a_new_pass_has_a_new_order() -> None:
    order = mixed([64, 64], batch=16, epochs=4)
    both = [len({owner(order, row) for row in order.batch_rows(step)}) for step in range(order.steps)]
    assert min(both) == 2
    of_a = [row for step in range(order.steps) for row in order.batch_rows(step) if row in order.tasks["a"]]
    assert of_a[:64] != of_a[64:128]
    assert Counter(of_a[:64]) == Counter(of_a[64:128])


def test_the_order_is_a_function_of_seed_and_step() -> None:
    def steps(seed: int) -> list[list[int]]:
        return [mixed([20, 9], seed=seed).batch_rows(step) for step in (7, 2, 7, 0)]

    assert steps(1) == steps(1)
    assert steps(1)[0] == steps(1)[2]
    assert steps(1) != steps(2)


def test_another_task_leaves_the_order_within_a_task_as_it_was() -> None:
    """So that a run of three tasks reads each as a run of two does."""

    def reads(counts: list[int]) -> list[int]:
        order = mixed(counts, epochs=1)
        return [row for step in range(order.steps) for row in order.batch_rows(step) if row in order.tasks["a"]]

    assert reads([20, 9]) == reads([20, 9, 30])


def test_a_task_that_runs_dry_is_said() -> None:
    order = mixed([400, 16], temperature=4, epochs=2)
    (said,) = order.dry()
    drawn = order.drawn(order.steps)["b"]
    assert said == f"b runs dry: its 16 rows are drawn {drawn} times, in a new order after each pass"
    assert drawn > 2 * 16
    assert mixed([400, 16], epochs=2).dry() == []
    assert order.lines()[1].startswith(
        f"task b: {order.quotas['b'] / 416:.1%} of the drawn rows; {drawn} drawn of 16, "
    )


# sources


def test_rows_know_their_task(tmp_path: Path) -> None:
    splits, weights = load_mixture([write(tmp_path / "a.jsonl", 20), write(tmp_path / "b.train.jsonl", 10) + ":2"])
    assert weights == {"a": None, "b": 2.0}
    assert Counter(row.task for row in splits.train) == {"a": 18, "b": 9}
    assert Counter(row.task for row in splits.valid) == {"a": 2, "b": 1}
    assert splits.rule.startswith("a: 2 of 20 rows held out by hash of their prompt (seed 0); b: 1 of 10 rows")
    assert [path.name for path in splits.files] == ["a.jsonl", "b.train.jsonl"]


def test_a_task_is_named_by_as_much_of_its_path_as_is_needed() -> None:
    assert task_names(["x/a.jsonl", "y/b.train.jsonl", "z/folder"]) == ["a", "b", "folder"]
    assert task_names(["x/a.jsonl", "y/a.jsonl", "z/b.jsonl"]) == ["x/a", "y/a", "z/b"]


def test_all_that_is_wrong_with_a_mixture_is_said_at_once(tmp_path: Path) -> None:
    one, copy = write(tmp_path / "one.jsonl", 20), write(tmp_path / "copy.jsonl", 20, "one")
    bare = tmp_path / "bare"
    bare.mkdir()
    write(bare / "train.jsonl", 5)
    (bare / "valid.jsonl").touch()
    with pytest.raises(DataError) as caught:
        load_mixture([one, one, copy, str(tmp_path / "onn.jsonl"), str(bare)])
    said = str(caught.value)
    assert said.startswith("4 problems with the mixture:")
    for part in (
        f"{one} is given twice",
        f"{one} and {copy} hold the same rows",
        "no such file or folder",
        "valid.jsonl",
    ):
        assert part in said


@pytest.mark.parametrize("again", ["one.jsonl", "one.jsonl:2", "./one.jsonl", "folder/../one.jsonl:0.5"])
@pytest.mark.parametrize("turned", [False, True])
def test_a_source_is_given_once_however_it_is_spelled(
    again: str, turned: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "one.jsonl", 20)
    (tmp_path / "folder").mkdir()
    other = write(tmp_path / "other.jsonl", 20)
    monkeypatch.chdir(tmp_path)
    given = [again, "one.jsonl"] if turned else ["one.jsonl", again]
    with pytest.raises(ConfigError, match=r"one\.jsonl is given twice; give it once with a weight, as in FILE:2$"):
        load_mixture([given[0], other, given[1]])


def test_a_task_without_validation_rows_beside_one_that_has_them(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / f"{name}.train.jsonl", 20, name)
    write(tmp_path / "a.valid.jsonl", 5, "a", 100)
    given = [str(tmp_path / "a"), str(tmp_path / "b")]
    with pytest.raises(DataError, match=r"^no validation rows for .*/b, which the other tasks have"):
        load_mixture(given, held_out=0)
    assert {row.task for row in load_mixture(given)[0].valid} == {"a", "b"}


@pytest.mark.parametrize(
    ("sources", "options", "said"),
    [
        (1, {"mix_temperature": 2.0}, "weigh several sources, and this run has one"),
        (2, {"valid": "v.jsonl"}, "--valid and --test are for one source"),
        (2, {"weight": 3, "mix_cap": 10}, "weights fix the shares"),
        (2, {"weight": 10**6}, "the share of s0 comes to none"),
    ],
)
def test_contradictory_options_are_refused(
    tmp_path: Path, sources: int, options: dict[str, int | float | str], said: str
) -> None:
    files = [write(tmp_path / f"s{number}.jsonl", 12) for number in range(sources)]
    if weight := options.pop("weight", None):
        files[-1] += f":{weight}"
    config = RunConfig.model_validate({"data": files, **options})
    with pytest.raises(GraftError, match=said):
        draft(config)


def test_a_draft_has_the_shares_of_its_mixture(tmp_path: Path) -> None:
    files = [write(tmp_path / "a.jsonl", 40), write(tmp_path / "b.jsonl", 10)]
    assert draft(RunConfig(data=tuple(files))).plan.shares == {"a": 0.8, "b": 0.2}
    assert draft(RunConfig(data=tuple(files), mix_cap=9)).plan.shares == {"a": 0.5, "b": 0.5}
    assert draft(RunConfig(data=files[0])).plan.shares == {}


# how a mixture is given


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("tune --data a b:2 c --lr 1", "tune --data a --data b:2 --data c --lr 1"),
        ("tune run.toml -d a b --batch-size 2", "tune run.toml -d a -d b --batch 2"),
        ("tune --data=a b run.toml", "tune --data=a --data b run.toml"),
        ("tune --data a --data b", "tune --data a --data b"),
        ("tune --data a run.toml", "tune --data a run.toml"),
        ("pretrain --data a run", "pretrain --data a run"),
    ],
)
def test_several_values_may_follow_one_flag(words: str, said: str) -> None:
    assert " ".join(spelled(words.split())) == said


def test_a_run_file_lists_sources(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('data = ["a.jsonl", "b.jsonl:2"]\nmix_cap = "10k"\n')
    assert (resolve(file, {}).sources, resolve(file, {}).mix_cap) == (("a.jsonl", "b.jsonl:2"), 10_000)
    file.write_text('data = ["a.jsonl"]\n')
    assert resolve(file, {}).data == "a.jsonl"
    for listed in ("[]", "5", '["a.jsonl", 3]'):
        file.write_text(f"data = {listed}\n")
        with pytest.raises(ConfigError, match="give a source, or a list of sources"):
            resolve(file, {})


def test_a_beginning_is_of_all_tasks() -> None:
    def mixed_up(tasks: str) -> list[str]:
        rows = [Row("completion", completion=str(number), task=task) for number, task in enumerate(tasks)]
        return [e.row.completion for e in round_robin([Example((5, 6), (False, True), row) for row in rows])]

    assert mixed_up("aaabbc") == ["0", "3", "5", "1", "4", "2"]
    assert mixed_up("aaa") == ["0", "1", "2"]


def test_rows_held_out_for_one_task_that_another_trains_on_are_leaks(tmp_path: Path) -> None:
    write(tmp_path / "a.train.jsonl", 12, "a")
    write(tmp_path / "b.train.jsonl", 12, "b")
    write(tmp_path / "b.valid.jsonl", 4, "b", 100)
    shared = write(tmp_path / "a.valid.jsonl", 3, "b", 5)
    splits, _ = load_mixture([str(tmp_path / "a"), str(tmp_path / "b")])
    found = audit(splits)
    assert [(held.task, held.file, trained.task) for held, trained in found.leaks] == [("a", shared, "b")] * 3
    assert "training holds 3 of 7 held-out rows" in " ".join(found.findings())
