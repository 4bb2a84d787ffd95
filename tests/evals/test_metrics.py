"""Scores of answers: known values, and what must hold for any two texts."""

from __future__ import annotations

import re
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graftwood.evals.metrics import METRICS, best_over_references, exact_match, headline, rouge_l, token_f1

texts = st.lists(st.sampled_from(["the", "cat", "sat", "On", "mat", ",", "."]), max_size=9).map(" ".join)
metrics = pytest.mark.parametrize("name", METRICS)


@pytest.mark.parametrize(
    ("answer", "wanted", "exact", "f1", "rouge"),
    [
        ("a b c", "a b c", 1.0, 1.0, 1.0),
        ("  a\n b  c ", "a b c", 1.0, 1.0, 1.0),
        ("A b c", "a b c", 0.0, 1.0, 1.0),
        ("c b a", "a b c", 0.0, 1.0, 1 / 3),
        ("a b", "a b c d", 0.0, 2 / 3, 2 / 3),
        ("a a a", "a", 0.0, 0.5, 0.5),
        ("police killed the gunman", "police kill the gunman", 0.0, 0.75, 0.75),
        ("the gunman kill police", "police kill the gunman", 0.0, 1.0, 0.5),
        ('{"n":1}', '{"n": 1}', 0.0, 1.0, 1.0),
        ("今天天气很好", "今天天气很坏", 0.0, 5 / 6, 5 / 6),
        ("วันนี้ดี", "วันนี้ดี", 1.0, 1.0, 1.0),
        ("東京は3度です。", "東京は4度です。", 0.0, 7 / 8, 7 / 8),
        ("", "a", 0.0, 0.0, 0.0),
        ("", "", 1.0, 1.0, 1.0),
    ],
)
def test_known_values(answer: str, wanted: str, exact: float, f1: float, rouge: float) -> None:
    assert exact_match(answer, wanted) == exact
    assert token_f1(answer, wanted) == pytest.approx(f1)
    assert rouge_l(answer, wanted) == pytest.approx(rouge)


@metrics
@given(texts, texts)
def test_every_score_is_a_share_and_does_not_care_which_side_is_right(name: str, one: str, other: str) -> None:
    metric = METRICS[name][1]
    assert 0 <= metric(one, other) <= 1
    assert metric(one, other) == metric(other, one)
    assert metric(one, one) == 1


@given(texts, texts)
def test_rouge_is_that_of_a_slow_subsequence(one: str, other: str) -> None:
    a, b = (re.findall(r"\w+|[^\w\s]", text.lower()) for text in (one, other))

    @cache
    def longest(i: int, j: int) -> int:
        if i == len(a) or j == len(b):
            return 0
        return longest(i + 1, j + 1) + 1 if a[i] == b[j] else max(longest(i + 1, j), longest(i, j + 1))

    if a and b:
        precision, recall = longest(0, 0) / len(a), longest(0, 0) / len(b)
        expected = 2 * precision * recall / (precision + recall) if precision else 0.0
        assert rouge_l(one, other) == pytest.approx(expected)
    assert rouge_l(one, other) <= token_f1(one, other) + 1e-12


def test_the_best_reference_counts() -> None:
    assert best_over_references(exact_match, "8", ("eight", "8")) == 1
    assert best_over_references(token_f1, "the eight", ("eight", "the nine of them")) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("answers", "lead"),
    [
        (["yes", "no", "well, it depends on the day"], "exact_match"),
        (['{"a": "one two three four five"}', '[1, 2, "six or seven words in here"]'], "exact_match"),
        (["it is a long story about a cat", "and another one about a dog", "no"], "rouge_l"),
        (["yes, it's so.", "don't (ever!)", "3.5, or 4-ish?"], "exact_match"),
        (["北京", "不知道", "三"], "exact_match"),
        (["这是一个关于一只猫的长故事", "另一个故事讲的是一只狗", "不"], "rouge_l"),
    ],
)
def test_the_headline_fits_the_answers(answers: list[str], lead: str) -> None:
    assert headline(answers) == lead
