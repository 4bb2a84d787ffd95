"""Runs side by side: a line each, what keeps them apart, a picture of gained against kept."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from card_samples import compared, full_card
from rich.console import Console

from graftwood.cli import app, guarded
from graftwood.evals.report import write_report
from graftwood.evals.side_by_side import WIDE, answer_loss, compare_runs, comparison_svg, differences
from graftwood.evals.words import before_after, change, estimate


def test_every_run_has_its_line_and_the_picture_its_points(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    card = full_card()
    loss = compared("answer_loss", "answer loss", 1.9, 0.3, unit="nats")
    card = card.model_copy(
        update={"gained": card.gained.model_copy(update={"measures": (*card.gained.measures, loss)})}
    )
    other = card.model_copy(update={"chosen": card.chosen.model_copy(update={"technique": "another"})})
    for name, given in {"one": card, "two": other}.items():
        (tmp_path / name).mkdir()
        write_report(given, tmp_path / name)
    runs = [str(tmp_path / "one"), str(tmp_path / "two")]
    assert guarded(lambda: app(["compare", *runs, "--out", str(tmp_path / "out")], standalone_mode=False)) == 0
    told = "".join(capsys.readouterr().out.split())
    assert "another" in told
    assert "differ" not in told
    svg = (tmp_path / "out" / "compare.svg").read_text(encoding="utf-8")
    assert ">one<" in svg
    assert ">two<" in svg
    assert guarded(lambda: app(["compare", *runs, "--json"], standalone_mode=False)) == 0
    assert set(json.loads(capsys.readouterr().out)) == {"one", "two"}


def test_what_keeps_runs_from_being_compared_is_said() -> None:
    card = full_card()
    odd = card.model_copy(update={"model_fingerprint": "f" * 64, "data": "elsewhere.jsonl"})
    assert differences({"one": card, "two": card}) == []
    assert [line.split(":")[0] for line in differences({"one": card, "two": odd})] == [
        "these runs differ in their bases",
        "these runs differ in their data",
    ]


def test_a_run_that_measured_nothing_has_no_point() -> None:
    card = full_card()
    bare = card.model_copy(update={"gained": card.gained.model_copy(update={"measures": ()})})
    assert answer_loss(bare) is None
    assert "nothing to draw" in comparison_svg({"bare": bare})


@pytest.mark.parametrize("width", [40, 80, 160])
def test_nothing_is_cut_however_narrow_the_terminal(width: int) -> None:
    card, out = full_card(), io.StringIO()
    name = "runs/a-rather-long-name-of-a-run"
    compare_runs({name: card, "two": card}, Console(file=out, width=width, force_terminal=False))
    told = "".join(out.getvalue().split())
    assert "…" not in told
    if width < WIDE:  # else a cell's lines lie beside those of others
        first = card.gained.measures[0]
        assert name in told
        for cell in (before_after(first), change(first), estimate(card.kept.kept, "share")):
            assert "".join(cell.split()) in told
