"""The report card in every rendering: what it says, that it parses, and that nothing in it can break out."""

from __future__ import annotations

import io
import json
import re
import sys
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from itertools import combinations

import pytest
from card_samples import (
    CARDS,
    GONE,
    HOSTILE,
    NOTE,
    bare_card,
    floor_card,
    full_card,
    hostile_card,
    measured,
    raced,
    raced_card,
)
from rich.cells import cell_len
from rich.console import Console

from graftwood.errors import ConfigError
from graftwood.evals import budget_words, memory_words, words
from graftwood.evals.card import (
    Arm,
    Canaries,
    Candidate,
    Cell,
    Choice,
    CurvePoint,
    Decision,
    Estimate,
    FoundCanary,
    Learner,
    Matrix,
)
from graftwood.evals.explain import explain
from graftwood.evals.html import card_html
from graftwood.evals.lights import EXTRACTABLE, RATIO, level, lights, position
from graftwood.evals.report import read_report, write_report
from graftwood.evals.svg import card_svg, curve_svg, skills_svg
from graftwood.evals.svgkit import extent, labels, shorten, ticks, wrap
from graftwood.evals.terminal import render
from graftwood.evals.tradeoff import choice_curves, looks_svg, tradeoff_svg

VOID = {"meta", "br", "link", "img", "hr"}
every_card = pytest.mark.parametrize("card", [build() for build in CARDS.values()], ids=list(CARDS))


class Page(HTMLParser):
    """Tags that close in order, the tags met and the text between them."""

    def __init__(self, source):
        super().__init__()
        self.open, self.tags, self.text = [], [], []
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def printed(card, width=80, encoding="utf-8"):
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding)
    render(card, Console(file=file, width=width))
    file.flush()
    return raw.getvalue().decode(encoding)


def text_boxes(svg):
    for item in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text"):
        size = float(item.get("font-size"))
        width = extent(item.text or "", size, bold=item.get("font-weight") is not None)
        x, y = float(item.get("x")), float(item.get("y"))
        left = x - {"start": 0, "middle": width / 2, "end": width}[item.get("text-anchor", "start")]
        yield item.text, left, y - 0.75 * size, left + width, y + 0.2 * size


def assert_laid_out(svg):
    _, _, right, bottom = map(float, ET.fromstring(svg).get("viewBox").split())
    boxes = list(text_boxes(svg))
    for text, x1, y1, x2, y2 in boxes:
        assert x1 >= -0.5, text
        assert y1 >= 0, text
        assert x2 <= right + 0.5, text
        assert y2 <= bottom, text
    for (a, ax1, ay1, ax2, ay2), (b, bx1, by1, bx2, by2) in combinations(boxes, 2):
        apart = ax2 <= bx1 + 0.5 or bx2 <= ax1 + 0.5 or ay2 <= by1 + 0.5 or by2 <= ay1 + 0.5
        assert apart, f"{a!r} lies on {b!r}"


# words


def test_an_estimate_reads_as_a_sentence():
    assert words.estimate(Estimate(value=0.884, low=0.816, high=0.92), "share") == "88.4% (95% CI 81.6 to 92.0)"
    assert words.estimate(Estimate(value=0.0213, low=0.0192, high=0.0236), "nats", "a token") == (
        "0.021 nats a token (95% CI 0.019 to 0.024)"
    )
    assert words.estimate(Estimate(value=1.0, note="one row"), "ratio") == "1.00 (no interval: one row)"
    assert words.estimate(GONE, "share") == "not measured: switched off"
    assert words.estimate(Estimate(value=None), "share") == "not measured: no reason was recorded"


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.853, "share", "+85.3"),
        (-0.121, "share", "−12.1"),
        (-0.0001, "share", "0.0"),
        (0.0, "nats", "0.000"),
        (-0.0042, "nats", "−0.0042"),
        (-1.61, "nats", "−1.610"),
        (3.25, "points", "+3.2"),
    ],
)
def test_a_change_carries_its_sign(value, unit, text):
    assert words.signed(value, unit) == text


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (words.plural(1, "row"), "1 row"),
        (words.plural(0, "row"), "0 rows"),
        (words.plural(2300, "row"), "2,300 rows"),
        (words.count(512), "512"),
        (words.count(999_960), "1.0M"),
        (words.count(134_515_008), "134.5M"),
        (words.duration(3.21), "3.2 s"),
        (words.duration(59.7), "1 min 0 s"),
        (words.duration(3660), "1 h 1 min"),
        (words.storage(2_140_000_000), "2.1 GB"),
        (words.percent(0.5), "50.0%"),
        (words.number(0.3, "nats"), "0.300 nats"),
    ],
)
def test_amounts_are_said_as_a_person_would(given, text):
    assert given == text


def test_the_headlines_say_the_four_things():
    card = full_card()
    assert words.gained_line(card.gained) == (
        "exact match 3.1% → 88.4% (+85.3, 95% CI +81.8 to +88.8) on 300 rows it was not trained on (test)"
    )
    assert words.kept_line(card.kept) == (
        "97.6% of the base's skills (95% CI 95.9 to 99.2); drift 0.021 nats a token, same next word 95.8%"
    )
    assert memory_words.memory_line(card.memory) == (
        "clean, learned the task, not the rows: held-out/train loss 1.14, membership AUC 0.56, "
        "extractable answers 2.1% (held-out 1.2%, base 1.1%)"
    )
    assert words.chosen_line(card.chosen) == (
        "LoRA + self-replay, 4.9M of 134.5M parameters (3.6%); "
        "best step 120 of 160, 1.6 epochs; held-out loss rose twice in a row"
    )
    assert words.worst(card.kept) == "worst: requests followed 79.3% → 67.2% (−12.1, 14 lost / 6 won)"


def test_canaries_are_told_by_how_often_they_were_seen():
    pairs = ((1, 1.5, False), (8, 8.0, True), (1, 2.5, False), (8, 7.0, False))
    told = Canaries(
        compared=256,
        exposure=measured(4.75, 1.0, 4),
        found=tuple(
            FoundCanary(asked="code:", secret="123456", repeats=repeats, exposure=bits, verbatim=said)
            for repeats, bits, said in pairs
        ),
    )
    line = "canaries: 1 of 4 said word for word; exposure 4.75 bits (95% CI 3.75 to 5.75), 8 at most, 1.4 by chance"
    assert memory_words.canaries_line(told) == line
    assert memory_words.canaries_rows(told) == (
        ("seen 1 time a pass", "2", "0", "2.00 bits"),
        ("seen 8 times a pass", "2", "1", "7.50 bits"),
    )
    card = full_card()
    card = card.model_copy(update={"memory": card.memory.model_copy(update={"canaries": told})})
    assert line in printed(card, width=140)
    assert "<th scope=row>seen 8 times a pass</th><td>2</td><td>1</td><td>7.50 bits</td>" in card_html(card)
    assert line in card_html(card)
    assert "canaries" not in printed(full_card(), width=140)


def test_the_headlines_of_a_card_without_numbers_say_why():
    card = bare_card()
    for line in (words.gained_line(card.gained), words.kept_line(card.kept), memory_words.memory_line(card.memory)):
        assert "not measured: switched off" in line
    assert words.worst(card.kept) is None
    assert words.gained_line(floor_card().gained).endswith("on 1 row it was not trained on (test)")
    empty = card.gained.model_copy(update={"measures": (), "rows": 0})
    assert words.gained_line(empty) == "nothing was measured on 0 rows it was not trained on (test)"


def test_more_than_everything_is_shown_as_everything_with_the_raw_value_behind():
    kept = full_card().kept.model_copy(update={"kept": measured(1.42, 0.3)})
    assert words.kept_share(kept) == ("100.0%", "142.0% as measured, 95% CI 112.0 to 172.0")
    assert words.kept_line(kept).startswith("100.0% of the base's skills (142.0% as measured")


def test_a_direction_needs_an_interval_that_leaves_zero_outside():
    exact, loss, _ = full_card().gained.measures
    unsure = exact.model_copy(update={"change": measured(0.01, 0.02)})
    unknown = exact.model_copy(update={"change": Estimate(value=0.5)})
    worse = loss.model_copy(update={"change": measured(0.3, 0.1)})
    assert [words.direction(m) for m in (exact, loss, unsure, unknown, worse)] == [
        "better",
        "better",
        "unclear",
        "unclear",
        "worse",
    ]


def test_the_items_that_decided_are_those_of_the_decision():
    held = Decision(kept=measured(0.97), worst=None, worst_kept=measured(0.97), passed=True, items=700)
    place = Candidate(dial=1.0, loss=1.0, drift=0.1, decision=held)
    arm = Arm(name="lora", settings={}, steps=1, tokens=1, seconds=1.0, fate="shipped", candidates=(place,))
    took = {"seconds": 1.0, "tokens": 1, "plain_seconds": 1.0, "plain_tokens": 1}
    picked = {"shipped": "lora", "dial": 1.0, "why": "", "price": None, "worst_budget": None}
    choice = Choice(budget=0.95, base_loss=2.0, items=342, arms=(arm,), **picked, **took)
    assert "on 700 other items, which decided" in budget_words.budget_line(choice)


def explained(choice):
    out = io.StringIO()
    explain(choice, Console(file=out, width=200))
    return out.getvalue()


def test_a_race_says_what_it_kept_of_the_worst_and_what_it_cost_beside_a_full_fine_tune():
    card = raced_card()
    page = "".join(Page(card_html(card)).text).split("Raw data")[0]
    held = (
        "budget 95%, 90% of the worst ability: held at 97.2% (95% CI 95.2 to 99.2), of piqa 95.0% (95% CI 91.0 to "
        "99.0), on 700 other items, which decided"
    )
    took = "took 10 min 0 s and 300.0k tokens of training, 3.00 times training alone (about 3 min 20 s, 120.0k tokens)"
    beside = (
        "2.00 times the seconds and 2.50 times the tokens of one full fine-tune of the same rows (5 min 0 s, "
        "120.0k tokens; an estimate, from the 9 of 150 steps that it raced)"
    )
    for text in (page, printed(card, width=250), explained(raced())):
        for line in (held, took, beside):
            assert line in text
    shown = " ".join(text for text, *_ in text_boxes(card_svg(card)))
    assert "budget 95%, 90% of the worst ability: certified at dial 0.75" in shown
    without = raced().model_copy(update={"worst_budget": None, "full": None})
    assert "worst ability:" not in (told := explained(without))
    assert "held at 97.2% (95% CI 95.2 to 99.2) on 700 other items" in told
    assert "full fine-tune of" not in told
    assert "nothing is shipped" in budget_words.budget_line(raced().model_copy(update={"shipped": None, "dial": None}))


def test_what_else_the_measured_rows_were_used_for_stands_beside_the_gain():
    card = raced_card()
    page = "".join(Page(card_html(card)).text).split("Raw data")[0]
    assert page.count(NOTE) == printed(card, width=250).count(NOTE) == 1
    assert NOTE not in printed(full_card(), width=250)


def test_the_record_of_a_race_says_how_far_a_recipe_was_trained_when_it_was_looked_at():
    lost, _, won, _ = re.split(r"\n\n", explained(raced()))[1:5]
    assert re.findall(r"^(\d+%) +(\S+)", lost, re.MULTILINE) == [
        ("6%", "1"), ("6%", "0.63"), ("33%", "1"), ("33%", "0.47")
    ]  # fmt: skip
    assert "trained" not in won


def test_settings_with_a_reason_come_first():
    chosen = full_card().chosen.model_copy(update={"settings": {"seed": "0", "rank": "16"}, "reasons": {"rank": "why"}})
    assert words.chosen_rows(chosen) == (("rank", "16", "why"), ("seed", "0", ""))


# lights


def test_a_light_stands_in_the_band_of_its_level():
    assert [level(value, RATIO) for value in (0.9, 1.2, 1.21, 1.6, 7.0)] == [
        "clean",
        "clean",
        "mild",
        "moderate",
        "severe",
    ]
    assert [position(value, RATIO) for value in (0.5, 1.1, 1.2, 3.0, 9.0)] == pytest.approx([0, 0.125, 0.25, 1, 1])
    assert position(-0.1, EXTRACTABLE) == 0


def test_what_the_base_could_already_say_does_not_darken_the_light():
    memory = full_card().memory.model_copy(update={"extractable": measured(0.6), "extractable_base": measured(0.58)})
    assert [light.level for light in lights(memory)] == ["clean", "clean", "clean"]
    assert lights(memory.model_copy(update={"extractable_base": GONE}))[2].level == "severe"
    assert {light.level for light in lights(bare_card().memory)} == {"unknown"}


# measured text


def test_text_is_cut_to_its_room():
    for room in (1, 20, 33, 80, 200):
        assert extent(shorten(HOSTILE, room, 12), 12) <= max(room, extent("…", 12))
        lines = wrap("several words of differing lengths " * 4, room, 12, 3)
        assert 0 < len(lines) <= 3
        assert all(extent(line, 12) <= max(room, extent("…", 12)) for line in lines)
    assert shorten("short", 100, 12) == "short"
    assert wrap("", 100, 12, 2) == []
    assert wrap("all of it fits", 400, 12, 2) == ["all of it fits"]
    assert extent("WW", 10) > extent("ii", 10)
    assert extent("bold", 10, bold=True) > extent("bold", 10)


@pytest.mark.parametrize(
    ("low", "high", "marks"),
    [(0, 1, ["0.0", "0.5", "1.0"]), (0, 140, ["0", "50", "100"]), (0, 6e7, ["0", "2e+07", "4e+07", "6e+07"])],
)
def test_ticks_are_round(low, high, marks):
    assert labels(ticks(low, high, 3)) == marks


# pictures


@every_card
def test_the_picture_is_well_formed_and_nothing_overlaps(card):
    drawn = [card_svg(card), curve_svg(card.curve, card.chosen.best_step), skills_svg(card.kept.skills)]
    if card.choice is not None:
        drawn += [looks_svg(card.choice, "nats"), tradeoff_svg(choice_curves(card.choice), "nats", 0.95, 0.9)]
    for svg in drawn:
        assert_laid_out(svg)
        assert "nan" not in svg.lower()
        assert "<script" not in svg
        assert "http" not in svg.replace("http://www.w3.org/2000/svg", "")


def test_the_picture_holds_the_numbers_of_the_card():
    shown = " ".join(text for text, *_ in text_boxes(card_svg(full_card())))
    for number in ("88.4%", "3.1%", "+85.3", "97.6%", "95.9 to 99.2", "0.021", "95.8%", "−12.1", "14 lost / 6 won"):
        assert number in shown
    for number in ("1.14", "0.56", "2.1%", "1.1%", "3e-4", "best step 120", "4.9M of 134.5M", "12 min 24 s", "2.1 GB"):
        assert number in shown


@pytest.mark.parametrize(
    "points",
    [
        (),
        (CurvePoint(step=5, tokens=1, train_loss=1.0, valid_loss=None, drift=None),),
        (CurvePoint(step=0, tokens=0, train_loss=None, valid_loss=None, drift=0.0),),
        tuple(CurvePoint(step=s, tokens=s, train_loss=2.0, valid_loss=2.0, drift=None) for s in range(3)),
        tuple(CurvePoint(step=s, tokens=s, train_loss=-1e-7 * s, valid_loss=None, drift=1e-9) for s in (7, 9)),
    ],
)
def test_a_curve_of_any_length_is_drawn(points):
    svg = curve_svg(points, 5)
    assert_laid_out(svg)
    assert ("best step 5" in svg) == bool(points)


# terminal


@every_card
@pytest.mark.parametrize("width", [80, 120])
def test_the_terminal_card_fits_and_holds_no_control_character(card, width):
    text = printed(card, width)
    assert all(cell_len(line) <= width for line in text.split("\n"))
    assert re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", text) is None
    assert all(section in text for section in ("GAINED", "KEPT", "MEMORY", "CHOSEN", "COST"))


def test_the_terminal_card_holds_both_samples_and_the_skills():
    text = printed(full_card())
    assert "requests followed  79.3% → 67.2%  −12.1 (−15.0 to −9.2)" in text
    assert "not counted: the base is not above chance (25.0%)" in text
    assert '✓ {"vendor": "Baker & Sons", "total": 240.0}' in text
    assert "✗ Nordlys AS" in text
    assert "WARNING  3 rows appear" in text
    assert "[bold]loud[/bold]" in printed(hostile_card())


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_the_terminal_card_survives_a_narrow_encoding(encoding):
    text = printed(full_card(), encoding=encoding)
    assert "3.1% -> 88.4%" in text
    assert "-12.1" in text
    assert printed(hostile_card(), encoding=encoding)


# page


@every_card
def test_the_page_parses_needs_nothing_from_outside_and_runs_nothing(card):
    source = card_html(card)
    page = Page(source)
    assert {"script", "iframe", "img", "link", "object"}.isdisjoint(tag for tag, _ in page.tags)
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on") or name in ("href", "src")]
    assert "<script" not in source.lower()
    assert re.search(r"[\x00-\x08\x0b-\x1f\u202e]", source) is None
    visible = "".join(page.text)
    assert re.search(r"\b(nan|None)\b", visible.split("Raw data")[0]) is None
    for pattern in ("prefers-color-scheme", "@media print", "viewport"):
        assert pattern in source


def test_the_page_holds_every_number_of_the_card():
    card = full_card()
    shown = "".join(Page(card_html(card)).text).split("Raw data")[0]
    measures = [*card.gained.measures, *(skill.measure for skill in card.kept.skills)]
    for measure in measures:
        for side in (measure.base, measure.tuned):
            assert words.number(side.value, measure.unit) in shown
            assert words.interval(side, measure.unit) in shown
        assert words.signed(measure.change.value, measure.unit) in shown
        assert words.interval(measure.change, measure.unit, change=True) in shown
    for name, given, unit in memory_words.memory_rows(card.memory):
        assert name in shown
        assert words.number(given.value, unit) in shown
        assert words.interval(given, unit) in shown
    for skill in card.kept.skills:
        assert f"{skill.lost} / {skill.won}" in shown
    for text in ("4,884,480 of 134,515,008", "81.2k", "40.1k", "9f2c41d07be3", *card.chosen.reasons.values()):
        assert text in shown
    for sample in card.samples:
        assert all(text in shown for text in (sample.prompt, sample.wanted, sample.base, sample.tuned))


def test_the_raw_data_on_the_page_is_the_card():
    raw = "".join(Page(card_html(full_card())).text).split("Raw data")[1]
    assert json.loads(raw) == full_card().model_dump(mode="json")


# files


@every_card
def test_a_written_report_reads_back_as_the_same_card(card, tmp_path, monkeypatch):
    monkeypatch.setattr("graftwood.evals.report.png", lambda svg, path, width: False)
    paths = write_report(card, tmp_path / "run")
    assert [path.name for path in paths] == ["report.json", "report.html"]
    assert sorted(tmp_path.joinpath("run").iterdir()) == sorted(paths)
    assert read_report(tmp_path / "run") == card


def test_the_picture_is_written_where_the_converter_is_installed(tmp_path):
    pytest.importorskip("vl_convert")
    paths = write_report(full_card(), tmp_path)
    assert paths[-1].name == "report.png"
    head = paths[-1].read_bytes()[:24]
    assert head.startswith(b"\x89PNG")
    assert int.from_bytes(head[16:20]) == 2400


def test_without_the_converter_no_picture_is_promised(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    assert [path.name for path in write_report(full_card(), tmp_path)] == ["report.json", "report.html"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "report.json is missing. Give the folder of a finished run."),
        ("{", "is not a report card of this version"),
        ('{"loss": 1}', "created: Field required"),
        ("[]", "is not a report card of this version"),
        (b"\xff\xfe", "is not a report card of this version"),
    ],
)
def test_a_missing_or_foreign_report_is_said_in_one_line(content, said, tmp_path):
    if content is not None:
        (tmp_path / "report.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError) as caught:
        read_report(tmp_path)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_report_of_another_version_is_refused(tmp_path):
    (tmp_path / "report.json").write_text(full_card().model_dump_json().replace('"version":1', '"version":2'))
    with pytest.raises(ConfigError, match="version"):
        read_report(tmp_path)


# several tasks


def test_every_task_is_shown_alone_and_what_tasks_do_to_each_other():
    shown = " ".join(printed(full_card(), width=120).split())
    assert "invoices exact match 2.0% → 91.0% +89.0 (+86.0 to +92.0)" in shown
    assert "answer loss 2.100 → 0.280 nats −1.820 (−1.900 to −1.740)" in shown
    assert "after receipts 1.600 (+0.100) 2.600 (+0.100)" in shown
    assert "BWT, backward transfer: −0.031 nats (95% CI −0.041 to −0.021)" in shown
    assert "FWT, forward transfer: not measured: switched off" in shown
    page = "".join(Page(card_html(full_card())).text)
    assert "Models by tasks" in page
    assert "1.600 (+0.100)95% CI +0.050 to +0.150" in page
    picture = card_svg(full_card())
    for words_ in ("TASKS", "MODELS BY TASKS", "receipts", "1.600 (+0.100)", "BWT, backward transfer"):
        assert words_ in picture


def test_names_of_tasks_are_shown_with_their_brackets():
    card = full_card()
    name = "notes[/v2] [draft]"
    tasks = (card.tasks[0].model_copy(update={"task": name}),)
    learner = card.matrix.learners[0].model_copy(update={"name": name})
    matrix = card.matrix.model_copy(update={"tasks": (name, *card.matrix.tasks[1:]), "learners": (learner,)})
    shown = " ".join(printed(card.model_copy(update={"tasks": tasks, "matrix": matrix}), width=120).split())
    assert shown.count("[/v2]") == 3


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_matrix_of_many_tasks_shows_every_number(width):
    card, tasks = full_card(), tuple(f"task-{place}" for place in range(30))
    cells = tuple(Cell(loss=measured(1 + place / 100), gain=measured(0.125)) for place in range(30))
    learners = tuple(Learner(name=name, cells=cells) for name in ("base", "mix"))
    card = card.model_copy(update={"matrix": Matrix(against="the base", tasks=tasks, learners=learners)})
    shown, picture = printed(card, width=width), card_svg(card)
    for place, task in enumerate(tasks):
        loss = f"{1 + place / 100:.3f}"
        assert task in shown
        assert loss in shown
        assert f">{task}<" in picture
        assert picture.count(f"{loss} (+0.125)") == 2
    assert shown.count("(+0.125)") == 60
    assert_laid_out(picture)


def test_a_card_of_one_task_is_as_it_was():
    card = full_card().model_copy(update={"tasks": (), "matrix": None})
    assert not {"TASKS", "MATRIX"} & set(printed(card).split())
    assert "<h2>Tasks</h2>" not in card_html(card)
    assert "TASKS" not in card_svg(card)


def test_a_gain_moves_a_cell_where_its_interval_leaves_zero_outside():
    cells = [Cell(loss=measured(1.0), gain=measured(gain, 0.05)) for gain in (0.1, -0.1, 0.01)]
    assert [words.cell_direction(cell) for cell in cells] == ["better", "worse", "unclear"]
    assert words.cell(Cell(loss=measured(1.0), gain=GONE)) == "1.000"
    assert words.cell(Cell(loss=GONE, gain=GONE)) == "—"
