"""What runs leave behind about a base: how much drift a budget allows."""

from __future__ import annotations

import math

from graftwood.choose.relation import Relation, learn, read_relation

BUNDLE, FILE = "1" * 64, "2" * 64


def test_nothing_is_known_at_first() -> None:
    assert read_relation("f" * 64, BUNDLE).points == ()
    assert read_relation("f" * 64, BUNDLE).drift_limit(0.95) is None


def test_what_was_learned_is_there_the_next_time_and_once() -> None:
    learn("a" * 64, BUNDLE, ((0.01, 0.97, 0.99), (0.1, 0.8, 0.85)))
    learn("a" * 64, BUNDLE, ((0.01, 0.97, 0.99), (0.05, 0.9, 0.93)))
    assert read_relation("a" * 64, BUNDLE).points == ((0.01, 0.97, 0.99), (0.1, 0.8, 0.85), (0.05, 0.9, 0.93))
    assert read_relation("b" * 64, BUNDLE).points == ()


def test_what_was_asked_other_questions_says_nothing() -> None:
    learn("a" * 64, FILE, ((0.001, 0.7, 0.8),))
    assert read_relation("a" * 64, FILE).drift_limit(0.95) == 0.001 / 4
    assert read_relation("a" * 64, BUNDLE).drift_limit(0.95) is None


def test_the_limit_lies_between_what_held_and_what_failed() -> None:
    known = Relation(((0.01, 0.97, 0.98), (0.002, 0.99, 0.99), (0.04, 0.9, 0.92), (0.1, 0.8, 0.83)))
    assert known.drift_limit(0.95) == math.sqrt(0.01 * 0.04)
    assert known.drift_limit(0.85) == math.sqrt(0.04 * 0.1)
    assert known.drift_limit(0.7) is None, "all of it held, so nothing is known of where it ends"
    assert known.drift_limit(0.995) == 0.002 / 4


def test_what_held_above_a_failure_was_luck() -> None:
    known = Relation(((0.01, 0.93, 0.94), (0.02, 0.96, 0.97), (0.005, 0.97, 0.98)))
    assert known.drift_limit(0.95) == math.sqrt(0.005 * 0.01)


def test_what_failed_for_want_of_items_limits_nothing() -> None:
    assert Relation(((0.001, 0.7, 0.97),)).drift_limit(0.95) is None
    assert Relation(((0.001, 0.7, 0.97), (0.02, 0.9, 0.93))).drift_limit(0.95) == 0.02 / 4
