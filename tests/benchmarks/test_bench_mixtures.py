"""The table of mixtures: scores are sacrebleu's own, and differences are drawn row by row."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from bench.keep.rows import Asked
from bench.mixtures import answers, drawn_scores, estimate

import tiny
from conftest import CPU
from graftwood.base import open_base

SAID = ["the cat sat on the mat today", "a dog ran far", "birds sing in the old tree"]
WANTED = [
    [" the cat sat on a mat today"],
    [" a dog ran far", " the dog went far away"],
    [" a bird sings in the old tree"],
]


@pytest.mark.parametrize("metric", ["bleu", "chrf"])
def test_the_score_over_all_rows_is_sacrebleus(metric: str) -> None:
    sacrebleu = pytest.importorskip("sacrebleu", reason="needs the extra `peers`")
    references = [[w[0].strip() for w in WANTED], [w[-1].strip() for w in WANTED]]
    corpus = sacrebleu.corpus_bleu if metric == "bleu" else sacrebleu.corpus_chrf
    assert drawn_scores(metric, [(SAID, WANTED)])[0] == pytest.approx(corpus(SAID, references).score)


def test_a_model_against_itself_differs_by_nothing_and_against_a_worse_one_by_an_interval() -> None:
    good = drawn_scores("rouge_l", [(SAID, WANTED)])
    worse = drawn_scores("rouge_l", [([answer.split()[0] for answer in SAID], WANTED)])
    assert estimate(good - good) == {"value": 0.0, "low": 0.0, "high": 0.0}
    found = estimate(good - worse)
    assert 0 < found["low"] <= found["value"] <= found["high"]
    assert found["value"] == pytest.approx(good[0] - worse[0])


def test_seeds_count_the_same() -> None:
    both = drawn_scores("exact_match", [(SAID, WANTED), ([w[0] for w in WANTED], WANTED)])
    assert both[0] == pytest.approx(100 * np.mean([1 / 3, 1.0]))


def test_an_adapter_answers_for_itself_and_leaves_the_base_as_it_was(
    tmp_path: Path, tokenizer_files: Callable[[Path], None]
) -> None:
    base = open_base(str(tiny.model_folder(tmp_path / "base", tokenizer_files)), CPU)
    rows = [Asked(word, word, f"say {word}:", word) for word in tiny.WORDS]
    before = answers(base, None, "code", rows)
    assert answers(base, tiny.adapter(base, "lora", tmp_path / "adapter"), "code", rows) != before
    assert answers(base, None, "code", rows) == before
