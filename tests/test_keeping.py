"""Runs under a budget on a tiny base that has an ability: what is shipped, what is not, what is left to read."""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch

import graftwood as gw
import graftwood.racing as racing_module
from command import Graft
from conftest import CPU
from graftwood.base import open_base
from graftwood.choose.budget import Budget, read_budget
from graftwood.choose.dial import Look, Settled
from graftwood.choose.items import halves
from graftwood.choose.race import RUNGS
from graftwood.choose.recipe import RACING
from graftwood.choose.relation import SHELF
from graftwood.cli import NOTHING_SHIPPED, app, guarded
from graftwood.config import RunConfig
from graftwood.data.batch import Examples
from graftwood.deciding import Deciding
from graftwood.draft import IN_MEMORY, draft
from graftwood.errors import ConfigError, DataError, GraftError, ModelError
from graftwood.evals.asking import Scores
from graftwood.evals.card import Decision, Estimate
from graftwood.evals.given import find_tasks
from graftwood.evals.report import read_report
from graftwood.evals.skills import work
from graftwood.evals.tiers import sized
from graftwood.job import prepare, preview
from graftwood.keeping import price, reason
from graftwood.model.decoder import count_parameters
from graftwood.model.expected import Expected
from graftwood.progress import Display
from graftwood.racing import preview_race
from graftwood.train.loop import Evaluated, Stepped, Trainer
from tiny import WORDS, decoder, encoded, model_folder, picked

ROWS = [{"prompt": f"say {word} now:", "completion": f" {word} {word}"} for word in WORDS]
QUICK: dict[str, Any] = {"epochs": 6, "batch": 2, "evaluations": 2, "quiet": True, "held_out": 0.3, "max_length": 64}


@pytest.fixture
def folder(tmp_path: Path, tokenizer_files: Callable[[Path], None]) -> Path:
    # Wide weights: a peaked distribution, as a trained model has.
    return model_folder(tmp_path / "base", tokenizer_files, decoder(max_positions=512, init_std=0.45))


@pytest.fixture
def skills(folder: Path, tmp_path: Path) -> Path:
    """Questions whose right answer is nearly always what this base picks."""
    return picked(open_base(str(folder), CPU), tmp_path / "picks.jsonl")


def test_what_is_shipped_was_certified_on_items_no_report_uses(
    folder: Path, skills: Path, tmp_path: Path, home: Path
) -> None:
    # Long enough for the anchor to read some text of the base's.
    options = QUICK | {"epochs": 18, "keep": "60%", "lr": 0.004, "skills": str(skills)}
    run = gw.tune(str(folder), ROWS, out=str(tmp_path / "run"), **options)
    choice = run.report.choice
    assert choice is not None
    assert choice.dial is not None
    (arm,) = choice.arms
    assert arm.name == "lora + kl" == choice.shipped
    (shipped,) = [one for one in arm.candidates if one.dial == choice.dial]
    assert shipped.decision is not None
    assert shipped.decision.passed
    assert shipped.decision.kept.low is not None
    assert shipped.decision.kept.low >= 0.6
    (skill,) = run.report.kept.skills
    assert choice.items + (skill.measure.base.n or 0) == 60
    assert run.report.chosen.settings["dial"] == f"{choice.dial:g}"
    assert choice.tokens > choice.plain_tokens > 0
    assert choice.full is not None
    assert (choice.full.seconds > 0, choice.full.tokens) == (True, choice.plain_tokens)
    assert choice.full.source == "an estimate, from the forecast's speed"
    assert run.report.gained.note is not None
    assert "also chose the step and the dial: for figures that chose nothing give test" in run.report.gained.note
    again = gw.load(tmp_path / "run")
    assert again.generate(["say the now:"], max_tokens=6) == run.model.generate(["say the now:"], max_tokens=6)
    (learned,) = (home / SHELF).iterdir()
    assert learned.name.startswith(f"{run.report.model_fingerprint[:16]}-")
    assert json.loads(learned.read_text())


def test_an_impossible_budget_ships_nothing_and_names_its_price(
    folder: Path, skills: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, out = tmp_path / "rows.jsonl", tmp_path / "run"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    test = tmp_path / "test.jsonl"
    test.write_text("".join(json.dumps(row | {"prompt": f"now {row['prompt']}"}) + "\n" for row in ROWS[:4]))
    words = ["tune", "--data", rows, "--model", folder, "--out", out, "--skills", skills, "--keep", "99%"]
    words += ["--test", test]
    words += ["--lr", "0.3", "--epochs", "4", "--batch", "2", "--held-out", "0.3", "--technique", "full"]
    code = guarded(lambda: app([str(word) for word in words], standalone_mode=False))
    said = capsys.readouterr()
    card = read_report(out)
    assert card.choice is not None
    assert (card.gained.split, card.gained.note) == ("test", None)
    assert card.choice.full is not None
    assert card.choice.full.source == "measured, without what held it to the base"
    assert card.choice.full.tokens == card.choice.plain_tokens
    if card.choice.dial is None:
        assert code == 3
        assert "nothing is shipped" in said.err
        assert not (out / "model").exists()
        assert card.kept.drift.value == 0
        with pytest.raises(ModelError, match="shipped nothing: no gain within its budget; see graft explain"):
            gw.load(out)
    assert guarded(lambda: app(["explain", str(out)], standalone_mode=False)) == 0
    told = capsys.readouterr().out
    assert "budget 99%" in told
    assert "over" in told
    assert "the budget is 99.0%" in told


@pytest.mark.parametrize(
    ("budget", "kept", "worst", "said"),
    [
        (Budget(0.95), 0.875, 0.6, "--keep 87% would ship dial 1: validation loss 2.000 -> 1.000"),
        (Budget(0.95, 0.9), 0.97, 0.6, "--keep-worst 60% would ship dial 1: validation loss 2.000 -> 1.000"),
        (Budget(0.95, 0.9), 1.04, 0.6, "--keep-worst 60% would ship dial 1: validation loss 2.000 -> 1.000"),
        (Budget(0.95, 0.9), 0.9, 0.6, "--keep 90% --keep-worst 60% would ship dial 1: validation loss 2.000 -> 1.000"),
        (Budget(0.95, 0.9), 0.97, 0.009, None),
        (Budget(0.95, 0.9), 0.9, -0.2, None),
        (Budget(0.95), 0.005, 0.0, None),
        (Budget(0.95), None, None, None),
    ],
)
def test_the_price_is_of_the_bound_that_failed(
    budget: Budget, kept: float | None, worst: float | None, said: str | None
) -> None:
    whole, own = (Estimate(value=None if low is None else 1.0, low=low, high=1.1, n=300) for low in (kept, worst))
    decision = Decision(kept=whole, worst="piqa", worst_kept=own, passed=False)
    settled = Settled((Look(1.0, 1.0, 0.01), Look(0.5, 1.5, 0.002)), {1.0: decision}, None)
    assert price(settled, 2.0, budget) == said
    assert price(settled, 1.0, budget) is None, "nothing would be gained"
    if said is not None:
        assert read_budget(said.split()[1]) is not None, "what is named can be given"


def test_a_stopped_choice_goes_on_without_asking_twice(folder: Path, skills: Path, tmp_path: Path) -> None:
    options = QUICK | {"out": str(tmp_path / "run"), "skills": str(skills), "keep": "60%", "lr": 0.01}
    first = gw.tune(str(folder), ROWS, **options)
    (tmp_path / "run" / "report.json").unlink()
    stored = json.loads((tmp_path / "run" / "decisions.json").read_text())
    marked = {alpha: {**decision, "worst": "asked before"} for alpha, decision in stored["decisions"].items()}
    hours = dict.fromkeys(marked, 7200.0)
    (tmp_path / "run" / "decisions.json").write_text(json.dumps({**stored, "decisions": marked, "seconds": hours}))
    second = gw.tune(str(folder), ROWS, resume=True, **options)
    assert first.report.choice is not None
    assert second.report.choice is not None
    assert second.report.choice.dial == first.report.choice.dial
    (arm,) = second.report.choice.arms
    assert {one.decision.worst for one in arm.candidates if one.decision is not None} == {"asked before"}
    assert set(stored["seconds"]) == set(marked)
    assert first.report.choice.seconds < 7200 * len(marked) < second.report.choice.seconds, "what they took is counted"


def test_a_choice_that_goes_on_with_other_questions_asks_them(folder: Path, skills: Path, tmp_path: Path) -> None:
    """A file of questions that was edited meanwhile: nothing certified on the old ones is taken for theirs."""
    options = QUICK | {"out": str(tmp_path / "run"), "skills": str(skills), "keep": "60%", "lr": 0.01}

    def deciding(run: gw.Run) -> set[int]:
        choice = run.report.choice
        assert choice is not None
        decisions = [one.decision for arm in choice.arms for one in arm.candidates if one.decision is not None]
        return {choice.items, *(decision.items for decision in decisions)}

    assert deciding(gw.tune(str(folder), ROWS, **options)) == {30}
    (tmp_path / "run" / "report.json").unlink()
    skills.write_text("".join(skills.read_text().splitlines(keepends=True)[:36]))
    assert deciding(gw.tune(str(folder), ROWS, resume=True, **options)) == {18}


@pytest.mark.parametrize("what", ["fingerprint", "questions", "reserve", "rows"])
def test_what_decides_is_told_apart(what: str, folder: Path, skills: Path) -> None:
    base = open_base(str(folder), CPU)
    (task,) = find_tasks(str(skills))
    items = task.items()
    rows = Examples(encoded(base, 4)).packs(range(4), 1024)
    probe = Expected(*(torch.zeros(1, 1, 1) for _ in range(3)))
    one = Deciding(tuple(rows), 1.0, 1.0, [Scores(task.of(items[:8]), (1.0,) * 8)], probe, (task.of(items[8:]),))
    changed = {
        "fingerprint": one,
        "questions": replace(one, scores=[Scores(task.of(items[1:8]), (1.0,) * 7)]),
        "reserve": replace(one, reserve=()),
        "rows": replace(one, rows=tuple(Examples(encoded(base, 4, start=1)).packs(range(4), 1024))),
    }
    other = replace(base, fingerprint="another") if what == "fingerprint" else base
    assert changed[what].key(other) != one.key(base) == replace(one, base_loss=2.0).key(base)
    assert (changed[what].asked(other) == one.asked(base)) is (what == "rows"), "no row says what is kept at a drift"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"keep": "much"}, "--keep much is no percentage"),
        ({"technique": "prompt", "keep": "95%"}, "--keep needs a way back to the base, which prompt does not have"),
        (
            {"anchors": {"interpolate": {}}, "keep": "95%"},
            "the dial that the anchor interpolate sets by hand",
        ),
        ({"keep": "95%", "held_out": 0.0}, "--keep chooses on validation rows and there are none"),
        ({"skills": "nowhere.jsonl"}, "nowhere.jsonl"),
        ({"tier": "puls"}, "unknown tier 'puls'. Did you mean 'pulse'"),
        (
            {"tier": "pulse", "skills": "arc_easy", "keep": "95%"},
            "give --keep none, or ask more items with --tier certificate",
        ),
        ({"keep": "95%"}, "tiny is at chance in every ability, so no share can be kept; give --keep none"),
        ({"keep_worst": "90%", "skills": "arc_easy"}, "tiny is at chance in every ability, so no share can be kept"),
        ({"search": True, "skills": "arc_easy"}, "a race is for a budget; leave out --search"),
    ],
)
def test_a_budget_that_cannot_be_kept_is_refused(
    options: dict[str, Any], words: str, tmp_path: Path, tokenizer_files: Callable[[Path], None]
) -> None:
    folder = model_folder(tmp_path / "tiny", tokenizer_files, decoder(max_positions=512))
    with pytest.raises(GraftError, match=words):
        gw.tune(str(folder), ROWS, out=str(tmp_path / "run"), **QUICK | options)


def test_without_a_budget_of_its_own_a_base_at_chance_gets_a_plain_run(
    tmp_path: Path, tokenizer_files: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """What `--keep none` trains, asks and leaves, and it goes on as it began."""
    folder, rows = model_folder(tmp_path / "tiny", tokenizer_files, decoder(max_positions=512)), tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    options = QUICK | {"skills": "arc_easy", "epochs": 2, "quiet": False}
    cards = {}
    for name, more in (("bare", {}), ("plain", {"keep": "none"})):
        cards[name] = gw.tune(str(folder), str(rows), out=str(tmp_path / name), **options, **more).report
        said = capsys.readouterr().err
        line = "tiny is at chance in every ability, so no share can be kept: a plain run, as with --keep none"
        assert said.count(line) == (name == "bare")
        assert (line in cards[name].warnings) == (name == "bare")
    bare, plain = cards["bare"], cards["plain"]
    assert bare.choice is None
    assert (bare.gained, bare.kept, bare.chosen) == (plain.gained, plain.kept, plain.chosen)
    (skill,) = bare.kept.skills
    assert skill.measure.base.n == 100, "no half is needed to decide"
    files = [(tmp_path / name / "run.toml").read_text().replace(name, "") for name in cards]
    assert files[0] == files[1]
    weights = [(tmp_path / name / "adapter" / "adapter_model.safetensors").read_bytes() for name in cards]
    assert weights[0] == weights[1]
    (tmp_path / "bare" / "report.json").unlink()
    again = gw.tune(str(folder), str(rows), out=str(tmp_path / "bare"), resume=True, **options)
    assert again.report.gained == bare.gained
    with pytest.raises(ConfigError, match="is of another run"):
        gw.tune(str(folder), str(rows), out=str(tmp_path / "bare"), resume=True, keep="95%", **options)


@pytest.mark.parametrize(
    ("keep", "said"),
    [
        ("60%", None),
        ("95%", "20 items cannot show that, it takes {needed} at least, were nothing lost"),
        ("100%", "no number of items can show that"),
    ],
)
def test_what_the_items_at_hand_cannot_show_is_refused_before_training(
    keep: str, said: str | None, folder: Path, tmp_path: Path, graft: Graft
) -> None:
    """Requests that this base follows: right or wrong, so that a small loss takes many to show."""
    asked = [" ".join(pair) for pair in permutations(WORDS, 2)][:40]
    answers = gw.load(folder).complete(asked, chat=True, max_tokens=8)
    checks = [[{"kind": "matches", "pattern": f"^{re.escape(answer.text.strip())}"}] for answer in answers]
    requests = ({"prompt": one, "checks": check} for one, check in zip(asked, checks, strict=True))
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in requests), encoding="utf-8")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    words = ["tune", "--data", tmp_path / "rows.jsonl", "--model", folder, "--out", tmp_path / "run", "--keep", keep]
    done = graft(*words, "--skills", tmp_path / "asked.jsonl", "--held-out", "0.3", "--epochs", "1")
    if said is None:
        assert "to keep 60% of the base takes " in done.err
        assert done.code in (0, NOTHING_SHIPPED)
        return
    assert done.code == 2
    assert said.partition("{")[0] in done.err.splitlines()[-1]
    assert "give a smaller share, more questions with --skills, or --keep none" in done.err.splitlines()[-1]
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_where_nothing_is_shipped_it_is_said_what_failed() -> None:
    def failed(low: float, why: str) -> Decision:
        kept = Estimate(value=0.9, low=low, high=1.1)
        return Decision(kept=kept, worst="piqa", worst_kept=kept, passed=False, why=(why,))

    decisions = {1.0: failed(0.5, "far"), 0.5: failed(0.9, "kept 90.0%, the budget is 95.0%")}
    settled = Settled((Look(1.0, 1.0, 0.01), Look(0.5, 1.5, 0.002)), decisions, None)
    assert reason(settled, 2.0, Budget(0.95)) == (
        "no place with a gain was certified to keep 95% of the base: dial 0.5, the nearest to it, kept 90.0%, the "
        "budget is 95.0%"
    )


@pytest.mark.parametrize(
    ("questions", "families", "said"),
    [
        (1, 1, "few has 1 question, and a budget needs 4 that are independent"),
        (3, 3, "few has 3 questions, and a budget needs 4"),
        (30, 1, "few has 30 questions in 1 family, and a budget needs 4"),
        (30, 3, "few has 30 questions in 3 families, and a budget needs 4"),
        (30, 4, None),
    ],
)
def test_what_cannot_be_halved_is_refused_under_a_budget(
    questions: int, families: int, said: str | None, tmp_path: Path
) -> None:
    rows = [{"context": f"word {n} is", "word": f"{n}", "family": f"{n % families}"} for n in range(questions)]
    (tmp_path / "few.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = RunConfig(data=IN_MEMORY, skills=str(tmp_path / "few.jsonl"), keep="95%", held_out=0.3)
    (task,) = draft(config.model_copy(update={"keep": "none"}), ROWS).tasks
    assert len(task.items()) == questions
    if said is None:
        decide, report = halves(draft(config, ROWS).tasks[0])
        assert len(set(decide.units())) == len(set(report.units())) == 2
        return
    with pytest.raises(ConfigError, match=f"{said}.*leave the task out of --skills, or give --keep none"):
        draft(config, ROWS)


def test_a_tier_says_how_many_items_decide_and_how_many_report(folder: Path, tmp_path: Path) -> None:
    """A file of 60 questions and a bundled task; half of what a tier takes decides."""
    base = open_base(str(folder), CPU)
    asked = f"{picked(base, tmp_path / 'picks.jsonl')},piqa"
    counts, reserves = {}, {}
    for tier in ("pulse", "standard", "certificate"):
        config = RunConfig(data=IN_MEMORY, model=str(folder), skills=asked, tier=tier, held_out=0.3)
        drafted = draft(config, ROWS)
        split = [halves(task) for task in drafted.tasks]
        counts[tier] = [tuple(len(side.items()) for side in pair) for pair in split]
        reserves[tier] = [len(task.items()) for task in drafted.reserve]
        for decide, report in split:
            assert not {item.id for item in decide.items()} & {item.id for item in report.items()}
    assert counts == {"pulse": [(5, 5)] * 2, "standard": [(30, 30), (50, 50)], "certificate": [(30, 30), (200, 200)]}
    assert reserves == {"pulse": [], "standard": [300], "certificate": []}
    assert draft(RunConfig(data=IN_MEMORY, skills=asked, held_out=0.3), ROWS).config.tier == "standard"


def test_the_forecast_of_measuring_follows_the_tier(folder: Path) -> None:
    base = open_base(str(folder), CPU)
    few, all_ = (sized(find_tasks("piqa"), tier) for tier in ("pulse", "standard"))
    assert 0 < work(base, few)[0] < work(base, all_)[0] / 5


def test_rows_that_hold_what_measures_the_base_are_refused(folder: Path, skills: Path, tmp_path: Path) -> None:
    question = json.loads(skills.read_text().splitlines()[3])["query"]
    rows = [*ROWS, {"prompt": f"Tell me: {question.upper()}", "completion": " yes"}]
    options = QUICK | {"held_out": 0.0, "keep": "none", "skills": str(skills), "out": str(tmp_path / "run")}
    with pytest.raises(ConfigError, match=r"hold what measures the base: data:13 holds picks.*take them out"):
        gw.tune(str(folder), rows, **options)


def test_replayed_rows_that_hold_what_measures_the_base_are_refused(folder: Path, skills: Path, tmp_path: Path) -> None:
    question = json.loads(skills.read_text().splitlines()[3])["query"]
    rows, replayed = [{"text": "a"}, {"text": "b"}, {"text": f"It is said: {question}"}], tmp_path / "general.jsonl"
    replayed.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = QUICK | {
        "skills": str(skills),
        "out": str(tmp_path / "run"),
        "anchors": {"replay": {"file": str(replayed)}},
    }
    with pytest.raises(
        ConfigError, match=r"hold what measures the base: \S+/general.jsonl:3 holds picks.*take them out"
    ):
        gw.tune(str(folder), ROWS, **options)
    replayed.write_text('{"text": "a"}\n{"foo": 1}\n')
    with pytest.raises(DataError, match="1 of 2 rows cannot be used"):
        gw.tune(str(folder), ROWS, **options)


def test_a_race_is_won_within_the_budget_and_goes_on_where_it_stopped(
    folder: Path, skills: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    options = QUICK | {"out": str(out), "skills": str(skills), "keep": "60%", "search": True, "epochs": 12}
    run = gw.tune(str(folder), ROWS, **options | {"quiet": False})
    said = capsys.readouterr().err
    assert "stopped by you" not in said
    assert said.count("paused at step") == len(RACING) - 1 + 2, "at 6% all that race, at 33% the two that went on"
    choice = run.report.choice
    assert choice is not None
    assert len(choice.arms) == len(RACING) - 1, "a sparse part of rank 16 does not fit this model"
    assert sum(arm.fate.startswith("won the race") for arm in choice.arms) == 1
    assert all(arm.tokens > 0 and arm.candidates for arm in choice.arms)
    assert choice.tokens == sum(arm.tokens for arm in choice.arms) > choice.plain_tokens
    assert choice.full is not None
    won_in_full = any(arm.name.startswith("full") and arm.fate.startswith("won") for arm in choice.arms)
    assert choice.full.source.startswith("measured" if won_in_full else "an estimate, from the ")
    assert choice.full.source.endswith("checkpoints with it" if won_in_full else " steps that it raced")
    assert {one.trained for arm in choice.arms if arm.fate.startswith("dropped") for one in arm.candidates} == {
        rung.share for rung in RUNGS
    }
    assert "the step, the dial and the winner: for figures" in str(run.report.gained.note)
    if choice.dial is not None:
        (winner,) = [arm for arm in choice.arms if arm.name == choice.shipped]
        assert winner.settings["learning rate"] == run.report.chosen.settings["learning rate"]
        assert gw.load(out).generate(["say the now:"], max_tokens=6) == run.model.generate(
            ["say the now:"], max_tokens=6
        )
    (out / "report.json").unlink()
    again = gw.tune(str(folder), ROWS, resume=True, **options)
    assert again.report.choice is not None
    assert [arm.tokens for arm in again.report.choice.arms] == [arm.tokens for arm in choice.arms]
    assert again.report.choice.dial == choice.dial
    assert guarded(lambda: app(["explain", str(out)], standalone_mode=False)) == 0
    assert "dropped at 6% of its steps" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(ConfigError, match="--search chooses the technique, and lora is given"):
        gw.tune(str(folder), ROWS, **options | {"out": str(tmp_path / "other"), "technique": "lora"})


def test_a_race_is_forecast_with_all_that_race(folder: Path, skills: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Sixteen steps: five recipes train one, two go on to the fifth, one to the end; most read the base's text too."""
    some = {"held_out": 0.3, "epochs": 4, "batch": 2, "max_length": 64, "technique": "auto"}
    config = RunConfig(data=IN_MEMORY, model=str(folder), skills=str(skills), keep="60%", **some)
    opened, expected = gw.load(folder, device="cpu"), {}
    for search in (False, True):
        asked = config.model_copy(update={"search": search})
        job = prepare(draft(asked, ROWS, lambda: decoder(max_positions=512)), opened.base, Display())
        before = {name: tensor.clone() for name, tensor in job.base.decoder.named_parameters()}
        expected[search] = preview_race(job, Display()) if search else preview(job, Display())
        assert all(torch.equal(tensor, before[name]) for name, tensor in job.base.decoder.named_parameters())
        opened.base.decoder.take_off()
    plain, race = expected[False], expected[True]
    assert (plain.steps, race.steps) == (16, 5 * 1 + 2 * 4 + 11)
    rows = sum(len(example.ids) for example in job.taught) * 4
    assert plain.tokens == round(rows * 1.125)
    assert rows - 1 <= race.tokens * plain.steps / race.steps <= plain.tokens + 1
    assert race.trained_parameters == count_parameters(opened.base.decoder.parameters()), "full tuning races"
    assert race.memory_bytes >= plain.memory_bytes
    assert race.train_seconds == pytest.approx(race.tokens / race.tokens_per_second, rel=0.01)
    said = capsys.readouterr().err
    assert "a race of 5: lora + kl at" in said
    assert said.count("parameters train (") == 1, "of the plain run alone"
    assert said.count("measuring: up to") == 2


def test_only_what_a_quantised_base_can_hold_races_on_it(folder: Path, skills: Path, tmp_path: Path) -> None:
    options = QUICK | {"out": str(tmp_path / "run"), "skills": str(skills), "keep": "60%", "search": True, "rank": 2}
    choice = gw.tune(str(folder), ROWS, base_precision="int8", **options).report.choice
    assert choice is not None
    assert [arm.name.split()[0] for arm in choice.arms] == ["lora", "lora", "shira"]
    assert not list((tmp_path / "run").rglob("model"))


@pytest.fixture
def racing(skills: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The options of a race of two recipes."""
    monkeypatch.setattr("graftwood.choose.recipe.RACING", (("lora", 1.0, True), ("lora", 3.0, True)))
    more = {"keep": "60%", "search": True, "rank": 2, "lr": 0.01}
    return QUICK | more | {"out": str(tmp_path / "run"), "skills": str(skills)}


def at_step(number: int, do: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Do something before a step of any trainer; the list that is given back counts the steps."""
    steps, plain = [0], Trainer.step

    def step(trainer: Trainer) -> Stepped:
        steps[0] += 1
        if steps[0] == number:
            do()
        return plain(trainer)

    monkeypatch.setattr(Trainer, "step", step)
    return steps


class Killed(BaseException):
    """What nothing in the package catches."""


def killed() -> None:
    raise Killed


def told(run: gw.Run) -> list[tuple[Any, ...]]:
    """What a race came to, its seconds aside."""
    assert run.report.choice is not None
    return [(arm.name, arm.steps, arm.tokens, arm.fate, arm.candidates) for arm in run.report.choice.arms]


def test_a_killed_race_goes_on_as_if_nothing_had_happened(
    folder: Path, racing: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = [{"prompt": f"say {word} later:", "completion": f" {word}"} for word in WORDS]
    monkeypatch.setenv("GRAFTWOOD_HOME", str(tmp_path / "home"))
    undisturbed = gw.tune(str(folder), ROWS, **racing)
    for number in (5, 20):  # on the way to the second rung, and of the winner
        options = racing | {"out": str(tmp_path / f"killed-{number}")}
        monkeypatch.setenv("GRAFTWOOD_HOME", str(tmp_path / f"home-{number}"))  # what other races learned is not there
        with monkeypatch.context() as patched:
            at_step(number, killed, patched)
            with pytest.raises(Killed):
                gw.tune(str(folder), ROWS, **options)
        with pytest.raises(ConfigError, match="already holds a run; go on with --resume"):
            gw.tune(str(folder), ROWS, **options)
        assert told(gw.tune(str(folder), ROWS, resume=True, **options)) == told(undisturbed)
    with pytest.raises(ConfigError, match="is of another race: its rows"):
        gw.tune(str(folder), others, resume=True, **options)


def timed(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds of every rung, of the winner's training and of its choice, as they come."""
    seconds: list[float] = []

    def watched(plain: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any) -> Any:
            started = time.monotonic()
            try:
                return plain(*given)
            finally:
                seconds.append(time.monotonic() - started)

        return call

    train = racing_module.Runner.train
    to_the_end = watched(train)
    # `stand` trains too, always with a share.
    monkeypatch.setattr(racing_module.Runner, "train", lambda *given: (train if given[1:] else to_the_end)(*given))
    monkeypatch.setattr(racing_module.Runner, "stand", watched(racing_module.Runner.stand))
    monkeypatch.setattr(racing_module, "keep", watched(racing_module.keep))
    return seconds


@pytest.mark.parametrize("number", [None, 5, 20])  # on the way to the second rung, and of the winner
def test_a_race_counts_every_second_also_those_before_a_stop(
    number: int | None, folder: Path, racing: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = timed(monkeypatch)
    if number is not None:
        with monkeypatch.context() as patched:
            at_step(number, killed, patched)
            with pytest.raises(Killed):
                gw.tune(str(folder), ROWS, **racing)
    choice = gw.tune(str(folder), ROWS, resume=number is not None, **racing).report.choice
    assert choice is not None
    assert len(seconds) >= 5, "two rungs of two and of one, training, choosing"
    assert sum(seconds) < choice.seconds < sum(seconds) + 10
    (Path(racing["out"]) / "report.json").unlink()
    again = gw.tune(str(folder), ROWS, resume=True, **racing).report.choice
    assert again is not None
    assert again.seconds > choice.seconds, "it is not cheaper for being resumed"


@pytest.mark.parametrize("number", [1, 5])
def test_ctrl_c_ends_a_race_in_which_nobody_was_ranked_for_it(
    number: int, folder: Path, racing: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        begun = at_step(number, lambda: signal.raise_signal(signal.SIGINT), patched)
        with pytest.raises(KeyboardInterrupt):
            gw.tune(str(folder), ROWS, **racing)
        assert begun == [number], "the step that had begun is the last"
    steps = at_step(0, killed, monkeypatch)
    choice = gw.tune(str(folder), ROWS, resume=True, **racing).report.choice
    assert choice is not None
    assert number + steps[0] == sum(arm.steps for arm in choice.arms), "no step was lost, and none made twice"


def test_the_base_is_found_once_for_all_who_race(
    folder: Path, racing: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a recipe is before its first step is the base: its loss is measured by the first and stands in all logs."""
    begun, plain = [], Trainer.evaluate

    def evaluate(trainer: Trainer) -> Evaluated:
        found = plain(trainer)
        begun.extend([found] if found.step == 0 else [])
        return found

    monkeypatch.setattr(Trainer, "evaluate", evaluate)
    gw.tune(str(folder), ROWS, **racing)
    assert len(begun) == 1
    logs = sorted(Path(racing["out"]).glob("arms/*/metrics.jsonl"))
    assert len(logs) == 2
    first = [json.loads(log.read_text().splitlines()[0]) for log in logs]
    assert first[0] == first[1]
    assert first[0]["step"] == 0
    assert first[0]["eval_loss"] == begun[0].valid_loss


def interrupt(*given: object) -> None:
    signal.raise_signal(signal.SIGINT)


@pytest.fixture
def command(folder: Path, skills: Path, tmp_path: Path) -> list[str]:
    """A run under a budget as it is given on the command line."""
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    words = ["tune", "--data", tmp_path / "rows.jsonl", "--model", folder, "--out", tmp_path / "run", "--keep", "60%"]
    words += ["--skills", skills, "--lr", "0.01", "--epochs", "6", "--batch", "2", "--held-out", "0.3"]
    return [str(word) for word in [*words, "--evaluations", "2"]]


def test_ctrl_c_before_anything_gained_is_no_result(
    command: list[str], graft: Graft, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patched:
        at_step(1, interrupt, patched)
        said = graft(*command)
    assert said.code == 130
    assert "nothing is shipped yet: nowhere on the way is the validation loss below the base's own" in said.err
    assert said.err.endswith(f"stopped early; go on with: graft tune {out}/run.toml --resume\n")
    with pytest.raises(ModelError, match=r"has no result yet; finish it with graft tune .* --resume"):
        gw.load(out)
    assert graft("tune", out / "run.toml", "--resume").code in (0, NOTHING_SHIPPED)


@pytest.mark.parametrize(
    ("where", "line"),
    [
        ("keeping.Keeper._decided", "stopped; go on with: graft tune {out}/run.toml --resume"),
        ("keeping.Looks.look", "stopped; go on with: graft tune {out}/run.toml --resume"),
        (
            "tuning._base_sheet",
            "stopped before the first step; give it again, what the base was asked to the end is kept",
        ),
    ],
)
def test_ctrl_c_outside_training_says_how_to_go_on(
    where: str, line: str, command: list[str], graft: Graft, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    # What is started in the background is started deaf to Ctrl-C, these tests too.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with monkeypatch.context() as patched:
            patched.setattr(f"graftwood.{where}", interrupt)
            said = graft(*command)
    finally:
        signal.signal(signal.SIGINT, before)
    assert said.code == 130
    assert said.err.endswith(f"{line.format(out=out)}\ngraft: stopped\n")
    again = ("tune", out / "run.toml", "--resume") if "--resume" in line else command
    assert graft(*again).code in (0, NOTHING_SHIPPED)


def test_what_a_run_saved_when_it_was_stopped_is_not_its_result(
    folder: Path, skills: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = QUICK | {"out": str(tmp_path / "run"), "skills": str(skills), "keep": "60%", "lr": 0.01}
    with monkeypatch.context() as patched:
        at_step(12, interrupt, patched)
        gw.tune(str(folder), ROWS, **options)
    assert (tmp_path / "run" / "adapter").is_dir(), "there was a gain already"
    monkeypatch.setattr("graftwood.keeping.settle", lambda way, *given, **more: Settled((way.look(1.0),), {}, None))
    assert gw.tune(str(folder), ROWS, resume=True, **options).model.technique is None
    with pytest.raises(ModelError, match="shipped nothing"):
        gw.load(tmp_path / "run")


@pytest.mark.parametrize("epochs", [6, 12])  # a step before it is ranked, and several
def test_a_recipe_that_diverges_is_out(
    epochs: int,
    folder: Path,
    racing: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("graftwood.choose.recipe.RACING", (("lora", 1e30, True), ("lora", 1.0, True)))
    choice = gw.tune(str(folder), ROWS, **racing | {"epochs": epochs}).report.choice
    assert choice is not None
    assert [arm.fate.partition(" before")[0].partition(",")[0] for arm in choice.arms] == ["diverged", "won the race"]
    assert choice.arms[0].steps > 0
    assert guarded(lambda: app(["explain", racing["out"]], standalone_mode=False)) == 0
    assert "diverged before 6% of its steps" in capsys.readouterr().out


def test_a_cache_that_takes_nothing_more_ends_no_run(folder: Path, skills: Path, tmp_path: Path, home: Path) -> None:
    (home / "kept-against-drift").write_text("in the way", encoding="utf-8")
    run = gw.tune(str(folder), ROWS, **QUICK | {"out": str(tmp_path / "run"), "skills": str(skills), "keep": "60%"})
    assert run.report.choice is not None
    assert (home / "kept-against-drift").read_text(encoding="utf-8") == "in the way"
