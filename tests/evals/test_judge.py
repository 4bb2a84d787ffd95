"""The same rows before and after: what a card says was gained, of answers and of plain text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import tiny
from conftest import CPU
from graftwood.base import Base, open_base
from graftwood.data.encode import Example, encode_rows
from graftwood.data.rows import rows_from
from graftwood.evals import judge
from graftwood.generate.engine import Engine


@pytest.fixture
def base(tmp_path: Path, tokenizer_files: Callable[[Path], None]) -> Base:
    return open_base(str(tiny.model_folder(tmp_path / "tiny", tokenizer_files)), CPU)


def sit(base: Base, paper: judge.Paper) -> judge.Sheet:
    return judge.sit(
        base, Engine(base.decoder, base.tokenizer.eos, base.tokenizer), paper, lambda *_: [], lambda _: None
    )


def test_gains_are_measured_on_the_same_rows_before_and_after(base: Base) -> None:
    paper = judge.set_paper(base.encoder(), tiny.encoded(base, 20), tiny.encoded(base, 8, 100), [], seed=0)
    before = sit(base, paper)
    tiny.shake(base.decoder, 0.3)
    after = sit(base, paper)
    gained = judge.gained(paper, before, after)
    assert (gained.rows, gained.split) == (8, "valid")
    assert [measure.name for measure in gained.measures] == ["exact_match", "rouge_l", "token_f1", "answer_loss"]
    loss = gained.measures[-1]
    pooled = [sum(t for t, _ in sheet.losses) / sum(n for _, n in sheet.losses) for sheet in (before, after)]
    assert [loss.base.value, loss.tuned.value] == pytest.approx(pooled)
    assert loss.change.value == pytest.approx(pooled[1] - pooled[0])
    assert not loss.higher_is_better
    same = judge.gained(paper, before, before)
    assert [measure.change.value for measure in same.measures] == [0.0] * 4
    assert len(judge.samples(paper, base.encoder(), before, after)) == judge.SAMPLES


def test_a_headline_that_never_moves_is_said_to_tell_nothing(base: Base) -> None:
    paper = judge.set_paper(base.encoder(), tiny.encoded(base, 20), tiny.encoded(base, 8, 100), [], seed=0)
    before = sit(base, paper)
    tuned = replace(before, losses=[(total / 2, count) for total, count in before.losses], said=("nothing",) * 8)
    (line,) = judge.unmoved(paper, replace(before, said=("",) * 8), tuned)
    assert line.startswith("exact match (0.0%) did not move on each of 8 held-out rows")
    right = next(row.completion for row in paper.asked)
    assert judge.unmoved(paper, before, replace(before, said=(right, *["nothing"] * 7))) == ()
    texts = encode_rows(base.encoder(), rows_from([{"text": f"the user said {n}"} for n in range(12)]).rows)
    plain = judge.set_paper(base.encoder(), texts[:8], texts[8:], [], seed=0)
    assert judge.unmoved(plain, sit(base, plain), sit(base, plain)) == ()


def test_plain_text_is_measured_by_its_loss_alone(base: Base) -> None:
    """A row of plain text asks nothing, so nothing can be answered."""
    texts = encode_rows(base.encoder(), rows_from([{"text": f"the user said {n}"} for n in range(12)]).rows)
    paper = judge.set_paper(base.encoder(), texts[:8], texts[8:], [], seed=0)
    sheet = sit(base, paper)
    gained = judge.gained(paper, sheet, sheet)
    assert gained.rows == 4
    assert [measure.name for measure in gained.measures] == ["answer_loss"]
    assert judge.samples(paper, base.encoder(), sheet, sheet) == ()
    assert judge.remembered(sheet, sheet).ratio.value is not None


def test_a_paper_is_told_from_another(base: Base) -> None:
    rows, held = tiny.encoded(base, 12), tiny.encoded(base, 6, 100)

    def fingerprint(train: list[Example], valid: list[Example]) -> str:
        return judge.set_paper(base.encoder(), train, valid, [], seed=0).fingerprint

    assert fingerprint(rows, held) == fingerprint(tiny.encoded(base, 12), tiny.encoded(base, 6, 100))
    assert len({fingerprint(rows, held), fingerprint(rows[1:], held), fingerprint(rows, held[:-1])}) == 3


def test_nothing_held_out_is_nothing_gained(base: Base) -> None:
    paper = judge.set_paper(base.encoder(), tiny.encoded(base, 5), [], [], seed=0)
    sheet = sit(base, paper)
    gained = judge.gained(paper, sheet, sheet)
    assert (gained.rows, gained.measures) == (0, ())
    remembered = judge.remembered(sheet, sheet)
    assert (remembered.verdict, remembered.ratio.value, remembered.loss_train.value) == ("unknown", None, None)
