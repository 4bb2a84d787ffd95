import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graftwood.data.rows import rows_from
from graftwood.data.sources import MAX_HELD_OUT, hold_out, load_splits
from graftwood.errors import ConfigError, DataError


def pair(number: int, answer: str = "yes") -> dict[str, str]:
    return {"prompt": f"question {number}", "completion": answer}


def write(path: Path, rows: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def prompts(rows) -> list[str]:
    return [row.prompt for row in rows]


def test_a_file_is_split_and_says_how(tmp_path):
    path = write(tmp_path / "d.jsonl", [pair(n) for n in range(300)])
    splits = load_splits(path)
    assert (len(splits.train), len(splits.valid), splits.test) == (270, 30, ())
    assert splits.rule == "30 of 300 rows held out by hash of their prompt (seed 0)"
    assert (splits.shape, splits.files) == ("prompt-completion", (path,))
    assert load_splits(str(path)) == splits


def test_rows_in_memory(tmp_path):
    splits = load_splits([pair(n) for n in range(20)], valid=[pair(99)])
    assert (len(splits.train), prompts(splits.valid), splits.files) == (20, ["question 99"], ())
    assert splits.rule == "1 row for validation from valid"


def test_text_rows_are_split_by_their_text():
    splits = load_splits([{"text": f"line {n}"} for n in range(10)])
    assert len(splits.valid) == 1
    assert splits.rule == "1 of 10 rows held out by hash of their text (seed 0)"


@pytest.mark.parametrize("name", ["valid", "validation", "val", "dev"])
def test_a_folder_of_splits(name, tmp_path):
    write(tmp_path / "train.jsonl", [pair(1), pair(2) | {"id": "a"}])
    write(tmp_path / f"{name}.jsonl", [pair(3)])
    write(tmp_path / "test.jsonl", [pair(4), pair(5)])
    splits = load_splits(tmp_path)
    assert [len(part) for part in (splits.train, splits.valid, splits.test)] == [2, 1, 2]
    assert splits.rule == f"1 row for validation from {tmp_path / name}.jsonl"
    assert splits.extras == ("id",)
    assert [path.name for path in splits.files] == ["train.jsonl", f"{name}.jsonl", "test.jsonl"]


def test_a_folder_with_prefixes(tmp_path):
    for prefix in ("summary", "code"):
        write(tmp_path / f"{prefix}.train.jsonl", [pair(1), pair(2)])
        write(tmp_path / f"{prefix}.valid.jsonl", [pair(3, prefix)])
    assert load_splits(tmp_path / "summary").valid[0].completion == "summary"
    offer = rf"has no train\.jsonl; give a file or a prefix instead: {tmp_path / 'code'}, {tmp_path / 'summary'}$"
    with pytest.raises(DataError, match=offer):
        load_splits(tmp_path)


def test_files_given_by_name_replace_the_folders(tmp_path):
    write(tmp_path / "train.jsonl", [pair(1), pair(2)])
    write(tmp_path / "valid.jsonl", [pair(3)])
    mine = write(tmp_path / "mine.jsonl", [pair(4)])
    splits = load_splits(tmp_path, valid=mine, test=mine)
    assert prompts(splits.valid) == prompts(splits.test) == ["question 4"]


def test_a_folder_without_validation_is_split_too(tmp_path):
    write(tmp_path / "train.jsonl", [pair(n) for n in range(10)])
    write(tmp_path / "test.jsonl", [pair(11)])
    splits = load_splits(tmp_path)
    assert [len(part) for part in (splits.train, splits.valid, splits.test)] == [9, 1, 1]


def test_paths_that_lead_nowhere(tmp_path):
    write(tmp_path / "orders.jsonl", [pair(1)])
    with pytest.raises(DataError, match=r"no such file or folder: .*order\.jsonl\. Did you mean 'orders\.jsonl'\?"):
        load_splits(tmp_path / "order.jsonl")
    with pytest.raises(DataError, match="no such file or folder"):
        load_splits(tmp_path / "orders.jsonl", test=tmp_path / "test.jsonl")
    with pytest.raises(DataError, match=r"no such folder: .*nowhere"):
        load_splits(tmp_path / "nowhere" / "d.jsonl")
    with pytest.raises(DataError, match=r"has no train\.jsonl; .*orders\.jsonl"):
        load_splits(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"it has no \.jsonl file"):
        load_splits(tmp_path / "empty")


def test_two_validation_files_are_one_too_many(tmp_path):
    for name in ("train", "valid", "dev"):
        write(tmp_path / f"{name}.jsonl", [pair(1)])
    with pytest.raises(DataError, match=r"has valid\.jsonl and dev\.jsonl; keep one"):
        load_splits(tmp_path)


def test_problems_of_all_files_are_told_together(tmp_path):
    for name in ("train", "valid"):
        write(tmp_path / f"{name}.jsonl", [pair(1), pair(2, answer="")])
    with pytest.raises(DataError, match=r"train\.jsonl: 1 of 2 .*valid\.jsonl: 1 of 2") as caught:
        load_splits(tmp_path)
    assert [Path(said.partition(":")[0]).name for said in caught.value.problems] == ["train.jsonl", "valid.jsonl"]


def test_all_files_have_one_shape(tmp_path):
    train = write(tmp_path / "train.jsonl", [pair(1)])
    valid = write(tmp_path / "valid.jsonl", [{"text": "a"}])
    with pytest.raises(DataError, match=f"{train} is prompt-completion but {valid} is text; write all parts in one"):
        load_splits(tmp_path)


def test_too_few_prompts_to_split():
    for rows in ([pair(1)], [pair(1, "a"), pair(1, "b"), {"prompt": " Question  1", "completion": "c"}]):
        with pytest.raises(DataError, match=r"1 distinct prompt .*at least 2 distinct prompts.*--valid.*--held-out 0"):
            load_splits(rows)
        splits = load_splits(rows, held_out=0)
        assert (len(splits.train), splits.valid, splits.rule) == (len(rows), (), "no rows held out")


@pytest.mark.parametrize("share", [-0.1, 1, 1.5])
def test_a_share_that_is_none(share):
    with pytest.raises(ConfigError, match="at least 0 and below 1"):
        load_splits([pair(1), pair(2)], held_out=share)


def test_never_more_than_the_cap_and_never_all():
    assert len(load_splits([pair(n) for n in range(5000)]).valid) == MAX_HELD_OUT
    assert len(load_splits([pair(1), pair(2)], held_out=0.99).train) == 1


def test_prompts_with_more_rows_than_fit_are_passed_over_or_the_smallest_taken():
    rows = [pair(1, str(n)) for n in range(50)] + [pair(2, str(n)) for n in range(40)]
    splits = load_splits(rows)
    assert set(prompts(splits.valid)) == {"question 2"}
    assert len(splits.valid) == 40


@given(
    st.lists(st.tuples(st.integers(0, 12), st.sampled_from("abc")), min_size=2).filter(
        lambda rows: len({number for number, _ in rows}) > 1
    ),
    st.floats(0.01, 0.99),
    st.integers(0, 3),
    st.randoms(use_true_random=False),
)
def test_the_split_loses_nothing_straddles_nothing_and_ignores_order(pairs, share, seed, random):
    rows = rows_from([pair(*given) for given in pairs]).rows
    kept, held = hold_out(rows, share, seed)
    assert kept
    assert held
    assert sorted(kept + held, key=lambda row: row.line) == list(rows)
    assert not set(prompts(kept)) & set(prompts(held))
    shuffled = list(rows)
    random.shuffle(shuffled)
    assert set(hold_out(shuffled, share, seed)[1]) == set(held)


def test_rows_added_later_move_few_to_the_other_side_and_the_seed_moves_many():
    few, many = ([pair(n) for n in range(count)] for count in (1000, 1100))
    before, after = (set(prompts(load_splits(rows).valid)) for rows in (few, many))
    assert len(before - after) <= 10
    other = set(prompts(load_splits(few, seed=1).valid))
    assert len(before & other) < 30


def test_the_real_tasks_load():
    tasks = Path(__file__).parents[3] / "shared" / "tasks"
    if not tasks.is_dir():
        pytest.skip("the task files are not here")
    splits = load_splits(tasks / "describe")
    assert [len(part) for part in (splits.train, splits.valid, splits.test)] == [4270, 47, 630]
    assert splits.test[0].references
