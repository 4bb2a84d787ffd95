"""The strict reader of tunes, and the model that stands in for nanoGPT."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))
abc_notation = importlib.import_module("bench.abc_notation")
pretrain_abc = importlib.import_module("bench.pretrain_abc")
nanogpt = importlib.import_module("bench.sides.nanogpt")

TUNE = """X: 12
T:A Walk by the Water
% a comment
S:someone
M:6/8
L:1/8
K:Am
P:A
|:"Am"A2c e3/2d/2c|"E7"[B2e2] ^G (3ABc|_e'2- e'2 z2 \\
|1 A,6:|2 "Am"a4z2||
M:3/4
 g>f (d2 e)|]
"""


def test_a_tune_is_a_tune() -> None:
    abc_notation.check(TUNE)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("X: 12\n", ""),
        ("K:Am", "K:H"),
        ("K:Am\n", ""),
        ("M:6/8", "M:six"),
        ("T:A Walk by the Water\n", ""),
        ('"Am"A2c', '"AmA2c'),
        ("[B2e2]", "[B2e2"),
        ("(3ABc|", "(3AB|c"),
        ("A2c", "A2h"),
        ("|_e'2-", "|-_e'2"),
        ("S:someone", "S:someone\n"),
        ("6:|2", "6|\n\n2"),
        (TUNE.partition("P:A")[2], "\n"),
    ],
)
def test_what_is_no_tune_is_not(old: str, new: str) -> None:
    assert old in TUNE
    spoilt = TUNE.replace(old, new, 1)
    with pytest.raises(abc_notation.NotAbcError):
        abc_notation.check(spoilt)
    assert not abc_notation.is_valid(spoilt)


def test_the_longest_copy() -> None:
    assert pretrain_abc.longest_copy("xx the cat yy", "a the cat sat") == " the cat "
    assert pretrain_abc.longest_copy("abc", "xyz") == ""


def test_the_peer_has_nanogpts_parameters() -> None:
    model = nanogpt.GPT(vocabulary=65, layers=4, width=128, heads=4, block=64)
    # nanoGPT prints 0.80M for this configuration, positions left out
    assert sum(p.numel() for p in model.parameters()) - model.wpe.weight.numel() == 795_904
