"""Code tasks: HumanEval's protocol and its unbiased pass@k."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import pytest

from graftwood.errors import ConfigError
from graftwood.evals.given import task_from_file
from graftwood.evals.programs import pass_at, pass_at_k, program
from graftwood.evals.sandbox import run_program
from graftwood.evals.task import Item, Task

ITEM = Item(
    "add",
    'def add(a, b):\n    """The sum."""\n',
    test="def check(candidate):\n    assert candidate(1, 2) == 3\n    assert candidate(-1, 1) == 0\n",
    entry_point="add",
)


@pytest.mark.parametrize(
    ("completion", "passes"),
    [
        ("    return a + b\n", True),
        ("    return sum((a, b))", True),
        ("    return a - b\n", False),
        ("    return 3\n", False),
        ("    retrun a + b\n", False),
        ("", False),
        ("    exit(0)\n", False),
    ],
)
def test_a_completion_passes_where_it_is_right(completion: str, passes: bool) -> None:
    assert run_program(program(ITEM, completion)).passed == passes


@pytest.mark.parametrize(("samples", "passed"), [(5, 0), (5, 2), (5, 5), (10, 3), (1, 1)])
def test_pass_at_k_is_the_share_of_draws_with_one_that_passes(samples: int, passed: int) -> None:
    fates = [True] * passed + [False] * (samples - passed)
    for k in range(1, samples + 1):
        drawn = [any(draw) for draw in combinations(fates, k)]
        assert pass_at_k(samples, passed, k) == pytest.approx(sum(drawn) / len(drawn))


def test_every_k_that_the_samples_allow_is_reported() -> None:
    task = Task("add", "add", "code", 1, 0.0, "", "", lambda: (ITEM, ITEM), max_tokens=8).sampled(20, 0.8)
    found = pass_at(task.of((ITEM, Item("b", ITEM.prompt))), [0.5, 0.0])
    assert list(found) == ["pass@1", "pass@10"]
    assert found["pass@1"].value == 0.25
    assert found["pass@10"].value == pytest.approx(pass_at_k(20, 10, 10) / 2)


def test_samples_need_a_temperature_and_concern_programs_alone(tmp_path: Path) -> None:
    code = Task("add", "add", "code", 1, 0.0, "", "", lambda: (ITEM,), max_tokens=8)
    for samples, temperature in ((0, 0.5), (5, 0.0)):
        with pytest.raises(ConfigError, match=f"{samples} samples at temperature"):
            code.sampled(samples, temperature)
    assert code.sampled(5, 0.8).key != code.key
    (tmp_path / "w.jsonl").write_text('{"context": "a", "word": "b"}\n', encoding="utf-8")
    word = task_from_file(tmp_path / "w.jsonl")
    assert word.sampled(5, 0.8) is word
