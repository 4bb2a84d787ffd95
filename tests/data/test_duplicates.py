"""Repeats: exact ones by digest, near ones by MinHash, held against the shares counted exactly."""

from __future__ import annotations

import random

import numpy as np
import pytest

from graftwood.data.audit import WORD
from graftwood.data.duplicates import NEAR, Repeat, digest, find_repeats, signature

WORDS = [f"w{number}" for number in range(3000)]


def text(seed: int, words: int = 300) -> list[str]:
    return random.Random(seed).choices(WORDS, k=words)


def changed(words: list[str], count: int, seed: int = 0) -> list[str]:
    """With `count` words replaced, far from each other: three runs each."""
    copy = list(words)
    step = len(words) // max(1, count)
    for number in range(count):
        copy[number * step + step // 2] = f"new{seed}-{number}"
    return copy


def share(one: str, two: str) -> float:
    """The Jaccard index of three-word runs, counted."""
    sets = []
    for given in (one, two):
        words = ["", *WORD.findall(given.casefold()), ""]
        sets.append({tuple(words[n : n + 3]) for n in range(len(words) - 2)})
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def repeats(texts: list[str]) -> list[Repeat]:
    digests = np.array([digest(given) for given in texts], dtype=np.uint64)
    return find_repeats(digests, np.array([signature(given) for given in texts]))


def test_the_estimated_share_is_near_the_counted_one() -> None:
    for count in (0, 3, 8, 20, 60):
        words = text(count)
        one, two = " ".join(words), " ".join(changed(words, count))
        estimate = float(np.mean(signature(one) == signature(two)))
        assert estimate == pytest.approx(share(one, two), abs=0.12)


def test_exact_repeats_but_for_case_and_space() -> None:
    one, other = " ".join(text(1)), " ".join(text(2))
    found = repeats([one, other, one.upper().replace(" ", "\n  "), one])
    assert found == [Repeat(2, 0, 1.0, True), Repeat(3, 0, 1.0, True)]


def test_near_repeats_and_nothing_else() -> None:
    originals = [text(seed) for seed in range(30)]
    near = [changed(words, 4) for words in originals]  # 12 of about 300 runs differ: a share of 0.92
    far = [changed(words, 40) for words in originals]
    texts = [" ".join(words) for words in (*originals, *near, *far)]
    found = repeats(texts)
    assert {(r.later, r.earlier) for r in found} == {(30 + n, n) for n in range(30)}
    assert all(not r.exact and NEAR <= r.share < 1 for r in found)


@pytest.mark.parametrize("given", ["", "one", "one two", "one two three"])
def test_short_texts_have_signatures_of_their_own(given: str) -> None:
    assert (signature(given) == signature(given)).all()
    assert (signature(given) != signature(given + " more")).mean() > 0.3


def test_of_a_chain_what_is_like_nothing_that_stays_stays() -> None:
    words = text(0, 1500)
    found = repeats([" ".join(words[start : start + 300]) for start in range(0, 1200, 15)])
    stays = sorted(set(range(80)) - {repeat.later for repeat in found})
    assert len(stays) >= 8  # windows that have no word in common are four
    assert {repeat.earlier for repeat in found} <= set(stays)
    assert all(repeat.share >= NEAR for repeat in found)
