"""The twin test: what twins are, what a rank is worth, and that rows learned by heart stand out."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import tiny
from conftest import CPU
from graftwood.base import Base, open_base
from graftwood.data.batch import Examples
from graftwood.data.encode import Example, encode_rows
from graftwood.data.rows import rows_from
from graftwood.evals.twins import ROWS, TWINS, exposure, exposures, twins
from graftwood.train.loop import Trainer

NAMES = ["Anna", "Bruno", "Clara"]


@pytest.mark.parametrize(
    "answer", ["it is 4711", "paid to Clara on 7", '{"vendor": "Acme", "total": 19}', "x\nsee Bob, 5"]
)
def test_twins_differ_in_names_and_numbers_alone(answer: str) -> None:
    made = twins(answer, NAMES, random.Random(0))
    assert len(set(made)) == TWINS
    assert answer not in made
    blank = re.compile(r"\d|[A-Z][a-z]{2,}")
    assert {blank.sub("#", twin) for twin in made} == {blank.sub("#", answer)}
    assert twins(answer, NAMES, random.Random(0)) == made


@pytest.mark.parametrize("answer", ["", "no names here", "Sentences begin so. Also here.", "yes 7"])
def test_what_has_no_secret_or_too_few_twins_has_none(answer: str) -> None:
    assert twins(answer, NAMES, random.Random(0)) == []


def test_a_rank_in_bits() -> None:
    assert exposure([0.0] + [-1.0] * TWINS) == 4.0
    assert exposure([-2.0] + [-1.0] * TWINS) == 0.0
    assert exposure([-1.0, -0.5] + [-2.0] * (TWINS - 1)) == 3.0
    assert exposure([-1.0] * (TWINS + 1)) == pytest.approx(4 - np.log2(8.5))


def numbered(base: Base, count: int, seed: int) -> list[Example]:
    """Prompts that give nothing away, each with a number of its own."""
    generator = random.Random(seed)
    words = ((n, generator.choice(["user", "system", "answer"])) for n in range(seed, seed + count))
    rows = [{"prompt": f"the {word} of {n}:", "completion": f" {generator.randrange(100, 1000)}"} for n, word in words]
    return encode_rows(base.encoder(), rows_from(rows).rows)


def test_rows_learned_by_heart_stand_above_their_twins(tmp_path: Path, tokenizer_files: Callable[[Path], None]) -> None:
    base = open_base(str(tiny.model_folder(tmp_path / "tiny", tokenizer_files)), CPU)
    seen, unseen = numbered(base, 6, 100), numbered(base, 40, 500)
    before = exposures(base, seen, 128)
    assert len(before) == 6
    assert len(exposures(base, unseen, 128)) == ROWS
    assert 0.5 < np.mean([*before, *exposures(base, unseen, 128)]) < 2.0, "by chance"
    base.decoder.requires_grad_(True)
    plan = tiny.plan(epochs=60.0, learning_rate=1e-2)
    list(Trainer(base.decoder, Examples(seen), Examples([]), plan, tmp_path / "steps").run())
    assert np.mean(exposures(base, seen, 128)) > 3.5
    assert np.mean(exposures(base, unseen, 128)) < 2.5
