"""What runs leave behind about a base: how much drift a budget allows."""

from __future__ import annotations

import math

from graftwood.choose.relation import Relation, learn, read_relation


def test_nothing_is_known_at_first() -> None:
    assert read_relation("f" * 64).points == ()
    assert read_relation("f" * 64).drift_limit(0.95) is None


def test_what_was_learned_is_there_the_next_time_and_once() -> None:
    learn("a" * 64, ((0.01, 0.97), (0.1, 0.8)))
    learn("a" * 64, ((0.01, 0.97), (0.05, 0.9)))
    assert read_relation("a" * 64).points == ((0.01, 0.97), (0.1, 0.8), (0.05, 0.9))
    assert read_relation("b" * 64).points == ()


def test_the_limit_lies_between_what_held_and_what_failed() -> None:
    known = Relation("", ((0.01, 0.97), (0.002, 0.99), (0.04, 0.9), (0.1, 0.8)))
    assert known.drift_limit(0.95) == math.sqrt(0.01 * 0.04)
    assert known.drift_limit(0.85) == math.sqrt(0.04 * 0.1)
    assert known.drift_limit(0.7) is None, "all of it held, so nothing is known of where it ends"
    assert known.drift_limit(0.995) == 0.002 / 4


def test_what_held_above_a_failure_was_luck() -> None:
    known = Relation("", ((0.01, 0.94), (0.02, 0.96), (0.005, 0.97)))
    assert known.drift_limit(0.95) == math.sqrt(0.005 * 0.01)
