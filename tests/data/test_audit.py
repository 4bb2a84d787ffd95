from collections.abc import Sequence
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graftwood.data import audit as module
from graftwood.data.audit import Audit, audit
from graftwood.data.rows import rows_from
from graftwood.data.sources import Splits, load_splits

WORDS = [f"word{number}" for number in range(4000)]


def prose(seed: int, count: int = 40) -> str:
    return " ".join(Random(seed).choices(WORDS, k=count))


def ask(prompt: str, answer: str = "yes") -> dict[str, str]:
    return {"prompt": prompt, "completion": answer}


def audited(train: Sequence[dict[str, str]], valid: Sequence[dict[str, str]] = ()) -> Audit:
    return audit(load_splits(train, valid=valid or None, held_out=0))


def lines(pairs) -> list[tuple[int, int]]:
    return [(row.line, earlier.line) for row, earlier in pairs]


def test_distinct_rows_with_two_answers_have_no_duplicates():
    rows = [ask(prose(n), "yes" if n % 2 else "no") for n in range(330)]
    found = audited(rows[:300], rows[300:])
    assert (found.exact_duplicates, found.near_duplicates, found.leaks, found.shared_prompts) == (0, 0, (), 0)
    assert found.lines() == ["no duplicates among 300 training rows", "training holds none of 30 held-out rows"]


def test_planted_duplicates_are_found_and_told_apart():
    rows = [ask(prose(n)) for n in range(100)]
    rows.append(ask(f"  {prose(3).upper()}\n", " YES"))
    rows.append(ask(prose(5).replace(prose(5).split()[20], "changed")))
    found = audited(rows)
    assert (found.exact_duplicates, found.near_duplicates) == (1, 1)
    assert lines(found.examples) == [(101, 4), (102, 6)]
    assert found.lines() == []
    assert found.findings() == [
        "1 of 102 training rows repeat an earlier one exactly, 1 nearly "
        "(such as data:101 repeats data:4, data:102 repeats data:6)"
    ]
    assert audited([*rows[:100], rows[101]]).findings() == [
        "1 of 101 training rows nearly repeat an earlier one (such as data:101 repeats data:6)"
    ]
    assert audited(rows[:101]).findings() == [
        "1 of 101 training rows repeat an earlier one exactly (such as data:101 repeats data:4)"
    ]


def test_planted_leaks_are_found_in_validation_and_test():
    train = [ask(prose(n)) for n in range(60)]
    splits = load_splits(
        train, valid=[ask(prose(99)), ask(prose(7) + " too")], test=[ask(prose(8)), ask(prose(9), prose(98))]
    )
    found = audit(splits)
    assert [(row.file, row.line, earlier.line) for row, earlier in found.leaks] == [("valid", 2, 8), ("test", 1, 9)]
    assert found.shared_prompts == 1
    assert found.findings() == [
        "training holds 2 of 4 held-out rows, exactly or nearly "
        "(such as valid:2 repeats data:8, test:1 repeats data:9); scores on them measure memory, not skill"
    ]
    assert found.lines() == [
        "no duplicates among 60 training rows",
        "training holds the prompt of 1 more, with another answer",
    ]


def test_a_row_that_repeats_within_the_held_out_part_is_no_leak():
    found = audited([ask(prose(1))], [ask(prose(2)), ask(prose(2))])
    assert (found.leaks, found.exact_duplicates) == ((), 0)


def test_a_long_shared_instruction_makes_no_duplicates():
    template = prose(0, 400)
    rows = [ask(f"{template} {prose(n, 30)}") for n in range(1, 200)]
    assert audited(rows).near_duplicates == 0
    twin = ask(rows[50]["prompt"].replace("word", "Word"))
    near = ask(rows[60]["prompt"] + " so")
    found = audited([*rows, twin, near])
    assert (found.exact_duplicates, found.near_duplicates) == (1, 1)


def test_one_changed_word_is_near_from_27_words_on():
    # The answer is one of the words.
    for count, near in ((25, 0), (26, 1)):
        words = prose(1, count).split()
        changed = [*words[:12], "changed", *words[13:]]
        assert audited([ask(" ".join(words)), ask(" ".join(changed))]).near_duplicates == near


def test_short_rows_that_differ_in_a_word_are_distinct():
    found = audited([ask("Translate: a red car", "ein rotes Auto"), ask("Translate: a blue car", "ein blaues Auto")])
    assert found.near_duplicates == 0


def test_scripts_without_spaces_are_compared_by_character():
    text = "今日は天気がとても良いので、公園まで散歩に行きたいと思います。あなたも一緒に来ませんか"
    assert audited([ask(text, "はい"), ask(text.replace("公園", "海辺"), "はい")]).near_duplicates == 1
    assert audited([ask(text, "はい"), ask(text[::-1], "はい")]).near_duplicates == 0


def test_conversations_and_texts():
    chat = [{"role": "user", "content": prose(1)}, {"role": "assistant", "content": "yes"}]
    longer = [*chat[:1], {"role": "assistant", "content": "yes indeed"}]
    assert audit(load_splits([{"messages": chat}, {"messages": longer}], held_out=0)).near_duplicates == 1
    texts = [{"text": prose(1)}, {"text": prose(2)}, {"text": prose(1).title()}]
    found = audit(load_splits(texts, valid=[{"text": prose(3)}]))
    assert (found.exact_duplicates, found.near_duplicates, found.shared_prompts) == (1, 0, 0)


def slow_pairs(texts: Sequence[str], train: int) -> list[tuple[int, int]]:
    """Every pair compared: what the index must agree with."""
    runs = []
    for text in texts:
        words = ["", *module.WORD.findall(text.casefold()), ""]
        runs.append(set(zip(words, words[1:], words[2:], strict=False)))
    limit = min(50, max(5, len(texts) // 10))
    common = {run for of in runs for run in of if sum(run in other for other in runs) > limit}

    def alike(one: set[tuple[str, ...]], two: set[tuple[str, ...]]) -> bool:
        return len(one & two) / len(one | two) >= 0.8

    own = [run - common for run in runs]
    return [
        (a, b)
        for b in range(len(texts))
        for a in range(min(b, train))
        if own[a] and own[b] and alike(runs[a], runs[b]) and alike(own[a], own[b])
    ]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(2, 30), st.integers(1, 60))
def test_no_pair_is_missed_and_none_invented(seed, rows, length):
    random = Random(seed)
    bases = [random.choices(WORDS[:50], k=length) for _ in range(3)]
    texts = []
    for _ in range(rows):
        words = list(random.choice(bases))
        for _ in range(random.randrange(4)):
            words[random.randrange(len(words))] = random.choice(WORDS[:50])
        texts.append(" ".join(words))
    parsed = rows_from([{"text": text} for text in texts]).rows
    train = random.randint(1, rows)
    assert module._near_pairs(parsed, train) == sorted(slow_pairs(texts, train))


def test_nothing_to_compare():
    empty = Splits(train=(), valid=(), test=(), rule="", shape="text", extras=(), files=())
    assert audit(empty).lines() == ["no duplicates among 0 training rows"]


@pytest.mark.parametrize("task", ["code", "describe", "summary", "translate"])
def test_real_data_is_mostly_distinct(task):
    tasks = Path(__file__).parents[3] / "shared" / "tasks"
    if not tasks.is_dir():
        pytest.skip("the task files are not here")
    found = audit(load_splits(tasks / task))
    assert found.exact_duplicates + found.near_duplicates < 0.05 * found.train
    assert len(found.leaks) < 0.005 * found.held_out
