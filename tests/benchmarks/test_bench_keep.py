"""The keep benchmark on a model of a few thousand weights: what must hold whatever its figures are."""

from __future__ import annotations

import importlib
import json
import random
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from conftest import CPU
from graftwood.base import open_base
from graftwood.evals.checks import problems
from graftwood.evals.task import TASKS
from graftwood.model.weights import save_tensors, to_files
from tiny import decoder, model_folder, picked, shake

sys.path.insert(0, str(Path(__file__).parents[2]))
arms, claims, effects, facts, instruments, making, messages, records, report, requests, sums, tasks = (
    importlib.import_module(f"bench.keep.{name}")
    for name in (
        "arms", "claims", "effects", "facts", "instruments", "making", "messages", "records", "report", "requests",
        "sums", "tasks",
    )
)  # fmt: skip
GENERATED = {"messages": messages, "sums": sums, "facts": facts}
BUNDLED = [item.prompt for item in TASKS.get("requests").items()]


@pytest.mark.parametrize("name", GENERATED)
def test_generated_rows_are_the_same_every_time_and_no_split_holds_a_row_of_another(name: str) -> None:
    made = GENERATED[name].splits(0)
    assert made == GENERATED[name].splits(0) != GENERATED[name].splits(1)
    prompts = [[row.prompt for row in part] for part in (made.train, made.valid, made.test)]
    assert sum(map(len, prompts)) == len({prompt for part in prompts for prompt in part})
    assert len({row.id for row in made.test}) == len(made.test)
    assert all(row.answer.startswith(" ") for part in (made.train, made.valid, made.test) for row in part)


@pytest.mark.parametrize("module", [messages, sums])
def test_test_rows_are_made_from_sentences_that_train_nothing(module: Any) -> None:
    assert not module.sentences("train") & module.sentences("test")
    made = module.splits(0)
    assert {row.cluster for row in (*made.train, *made.valid)} <= module.sentences("train")
    assert not {row.cluster for row in made.test} & module.sentences("train")


def test_vendors_and_numbers_of_the_test_occur_in_no_training_row() -> None:
    made = messages.splits(0)
    vendors = [{json.loads(row.answer)["vendor"] for row in part} for part in (made.train + made.valid, made.test)]
    assert vendors[0]
    assert not vendors[0] & vendors[1]
    assert len(messages.hand_written()) == 40
    assert not set(sums.OPERANDS["train"]) & set(sums.OPERANDS["test"])
    assert [sums.in_words(n) for n in (7, 13, 20, 35)] == ["seven", "thirteen", "twenty", "thirty-five"]
    example = next(row for row in sums.splits(0).test if "take away" in row.prompt)
    large, small = example.prompt.split("From ")[1].split(".")[0].split(" take away ")
    words = {sums.in_words(n): n for n in range(40)}
    assert int(example.answer) == words[large] - words[small]


def test_every_fact_that_is_asked_was_taught_in_other_words() -> None:
    made = facts.splits(0)
    taught = {row.cluster: row.answer for row in made.train}
    assert len(taught) == 300
    assert all(taught[row.cluster] == row.answer for row in (*made.valid, *made.test))


def test_requests_are_not_those_of_the_bundle() -> None:
    task = requests.task()
    prompts = [item.prompt for item in task.items()]
    assert len(set(prompts)) == len(prompts) >= 200
    assert len(set(task.units())) == len(requests.TEMPLATES)
    assert [problem for item in task.items() for problem in problems(item.checks)] == []
    chats = instruments.CHATS.read_text(encoding="utf-8").splitlines()
    deciding = [*BUNDLED, *(item.prompt for item in TASKS.get("requests").more())]
    for text in (*(template.text for template in requests.TEMPLATES), *chats):
        assert requests.shared_run(text, deciding) is None, text
    assert requests.shared_run("Please finish the sentence: {x}", BUNDLED) == "please finish the sentence"


def test_skill_items_are_not_those_of_the_bundle(tmp_path: Path) -> None:
    piqa = TASKS.get("piqa")
    bundled = (*piqa.items()[:3], *piqa.more()[:2])
    rows = [{"query": item.prompt, "choices": list(item.choices), "gold": item.gold} for item in bundled]
    rows += [{"query": f"Question: what is {n}?", "choices": ["this", "that"], "gold": 0} for n in range(8)]
    rows = [{**row, "query": row["query"].removesuffix("\nAnswer:")} for row in rows]
    (tmp_path / "piqa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (task,) = instruments.skill_tasks(tmp_path, limit=6)
    assert len(task.items()) == 6
    assert not {item.prompt for item in task.items()} & {item.prompt for item in bundled}


def test_the_plan_begins_with_what_a_first_picture_needs() -> None:
    slim, full = arms.slim(), arms.full()
    assert [(entry.task, entry.seed) for entry in slim[:5]] == [("messages", 0)] * 5
    assert {entry.arm for entry in slim[:5]} == set(arms.SLIM_ARMS)
    assert full[: len(slim)] == slim
    assert len(set(full)) == len(full) == len(tasks.TARGETS) * (3 * (len(arms.ARMS) - 1) + 1)
    assert {name for claim in claims.CLAIMS for name in (*claim.rivals, claims.OURS, "A0")} == set(arms.SLIM_ARMS)
    assert all(arms.forecast(arm, 10_000, []) > 0 for arm in arms.ARMS.values())


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory, tokenizer_files: Callable[[Path], None]) -> dict[str, Any]:
    """A tiny base with its exam, and records of it and of arms that are the base with noise."""
    folder = tmp_path_factory.mktemp("keep")
    base = open_base(
        str(model_folder(folder / "base", tokenizer_files, decoder(max_positions=512, init_std=0.45))), CPU
    )
    target, rows = tasks.TARGETS["sums"], sums.splits(0).test[:12]
    asked = requests.task().limited(12)
    exam = instruments.set_exam(base, folder, [asked], lambda line: None)
    made = []
    for arm, size in (("A0", 0.0), ("P1", 0.3), ("P2", 0.6), ("A1", 0.5), ("O95", 0.1)):
        for seed in (0, 1) if arm != "A0" else (0,):
            model = base.folder
            if size:
                shaken = decoder(max_positions=512, init_std=0.45)
                shake(shaken, size, seed)
                model = model_folder(folder / f"{arm}-{seed}", tokenizer_files, shaken)
            readings = instruments.score(model, exam, target, rows, lambda line: None)
            training = {"budget": 0.95, "dial": 1.0, "certified": (0.99, 0.96)} if arm == "O95" else {}
            cost = {"choice_seconds": 12.0, "plain_seconds": 10.0} if arm == "O95" else {}
            made.append(
                records.ArmRecord(
                    task="sums", arm=arm, seed=seed, base=base.fingerprint, created="", machine={}, score_seconds=1.0,
                    training=records.Training(**training, **cost), readings=readings,
                )
            )  # fmt: skip
    return {"folder": folder, "base": base, "exam": exam, "records": made}


def test_the_base_forgets_nothing_and_gains_nothing(toy: dict[str, Any]) -> None:
    some = effects.Arms(toy["records"])
    for found in (some.gain("A0", [0]), some.forgotten("A0", [0])):
        for effect in found.values():
            assert effect.value == 0
            assert not effect.draws.any()


def test_more_noise_is_more_drift(toy: dict[str, Any]) -> None:
    some = effects.Arms(toy["records"])
    drifts = [some.forgotten(arm, [0, 1])["drift"].value for arm in ("O95", "P1", "P2")]
    assert 0 < drifts[0] < drifts[1] < drifts[2]


def test_the_base_s_text_is_drawn_once(toy: dict[str, Any]) -> None:
    again = instruments.set_exam(toy["base"], toy["folder"], list(toy["exam"].tasks), lambda line: None)
    passages = [[(p.ids, p.start) for p in exam.passages["chat"]] for exam in (again, toy["exam"])]
    assert passages[0] == passages[1]
    assert all(0 < start < len(ids) for ids, start in passages[0])


def test_records_come_back_as_they_were(toy: dict[str, Any], tmp_path: Path) -> None:
    for record in toy["records"]:
        records.save(record, tmp_path)
    read = records.read_all(tmp_path)
    assert sorted(read, key=repr) == sorted(toy["records"], key=repr)
    first = (tmp_path / read[0].file).read_bytes()
    records.save(read[0], tmp_path)
    assert (tmp_path / read[0].file).read_bytes() == first


def test_the_report_is_made_of_records_alone(
    toy: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for record in toy["records"]:
        records.save(record, tmp_path)
    assert report.write(tmp_path) == 0
    page = capsys.readouterr().out
    assert (tmp_path / "REPORT.md").read_text(encoding="utf-8") == page
    assert (tmp_path / "keep.svg").read_text(encoding="utf-8").startswith("<svg")
    numbers = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert numbers["figures"] == {}, "one task is not every task"
    assert [(claim["level"], len(claim["tasks"])) for claim in numbers["claims"]] == [
        (claim.level, 1) for claim in claims.CLAIMS
    ]
    assert "| sums | O95 | 0 | 95% | 1 | 0.990, at least 0.960 |" in page
    assert "1.20 |" in page


def made_up(arm: str, seed: int, gain: float, requests_right: float, drift: float, task: str = "sums") -> Any:
    """A record whose every item is as good as the next, but for a few."""
    generator = random.Random(f"{arm} {seed} {task}")
    names = tuple(f"item-{n}" for n in range(200))
    wobble = [generator.uniform(0.97, 1.03) for _ in names]
    numbers = {"answer_loss": 2.0 - gain, "drift_self": drift, "drift_chat": drift}
    read = [records.Reading.numbers(name, names, [value * w for w in wobble]) for name, value in numbers.items()]
    for name, share in (("gain", gain), ("requests", requests_right)):
        right = tuple(float(n < share * len(names)) for n in range(len(names)))
        kind = "text" if name == "gain" else "program"
        read.append(read[0].model_copy(update={"name": name, "kind": kind, "values": right}))
    training = records.Training(budget=0.95, dial=1.0, certified=(0.99, 0.96)) if arm == "O95" else records.Training()
    return records.ArmRecord(
        task=task, arm=arm, seed=seed, base="b", created="", machine={}, score_seconds=1.0, training=training,
        readings=tuple(read),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("ours", "word"),
    [
        ((0.80, 0.79, 0.004), claims.HOLDS),
        ((0.60, 0.79, 0.004), claims.FAILS),
        ((0.80, 0.79, 0.090), claims.FAILS),
        ((0.80, 0.60, 0.004), claims.FAILS),
        ((0.745, 0.79, 0.004), claims.OPEN),
        ((0.80, 0.69, 0.004), claims.OPEN),
    ],
    ids=["holds", "gains too little", "drifts too far", "follows too few", "hardly gains enough", "may follow too few"],
)
def test_a_claim_holds_fails_or_is_not_shown(ours: tuple[float, float, float], word: str) -> None:
    made = [made_up("A0", 0, 0.0, 0.8, 0.0)]
    for seed in (0, 1):
        made += [made_up("P1", seed, 0.5, 0.75, 0.02), made_up("P2", seed, 0.78, 0.6, 0.1)]
        made.append(made_up("O95", seed, *ours))
    (verdict,) = claims.verdicts(claims.CLAIMS[0], {"sums": effects.Arms(made)})
    assert verdict.rival == "P2"
    assert verdict.word == word
    assert claims.overall([verdict], None) == word
    assert claims.verdicts(claims.CLAIMS[1], {"sums": effects.Arms(made)}) == [], "A1 is not there"


def test_figures_speak_of_every_task_or_are_not_written(tmp_path: Path) -> None:
    made = []
    for task in ("messages", "sums"):
        made.append(made_up("A0", 0, 0.0, 0.8, 0.0, task))
        for seed in (0, 1):
            made += [made_up("P1", seed, 0.5, 0.75, 0.02, task), made_up("P2", seed, 0.78, 0.6, 0.1, task)]
            made.append(made_up("O95", seed, 0.8, 0.79, 0.004, task))
    grouped = report.grouped(made)
    assert report.complete(grouped, claims.CLAIMS[0].needs)
    assert not report.complete(grouped, claims.CLAIMS[1].needs)
    begun = report.grouped([*made, made_up("P1", 0, 0.5, 0.7, 0.02, "code")])
    assert not report.complete(begun, claims.CLAIMS[0].needs)
    for record in made:
        records.save(record, tmp_path)
    report.write(tmp_path)
    figures = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["figures"]
    assert set(figures) == {"keep_gain_share_min", "keep_forgetting_share_max", "keep_budget_violations"}
    assert figures["keep_gain_share_min"]["value"] == pytest.approx(0.8 / 0.78, rel=0.02)
    assert figures["keep_forgetting_share_max"]["value"] == pytest.approx(0.01 / 0.2, rel=0.1)


def test_a_budget_is_violated_where_all_of_the_interval_is_below_it() -> None:
    base = made_up("A0", 0, 0.0, 0.8, 0.0)
    kept, lost = made_up("O95", 0, 0.8, 0.79, 0.01), made_up("O95", 1, 0.8, 0.4, 0.01)
    found = list(claims.budgeted({"sums": effects.Arms([base, kept, lost])}))
    assert [one.violated for one in found] == [False, True]
    uncertified = kept.model_copy(update={"training": kept.training.model_copy(update={"certified": (0.97, 0.94)})})
    (one,) = claims.budgeted({"sums": effects.Arms([base, uncertified])})
    assert one.violated


def test_shares_of_nothing_are_unknown() -> None:
    some = effects.Arms([made_up("A0", 0, 0.0, 0.8, 0.0), made_up("P1", 0, 0.5, 0.8, 0.02)])
    lost = some.forgotten("P1", [0])
    assert lost["requests"].over(lost["requests"]).value is None
    assert lost["drift"].over(lost["drift"]).value == 1


@pytest.fixture
def place(toy: dict[str, Any], tmp_path: Path) -> Any:
    """A few rows beside the tiny base."""
    made = sums.splits(0)
    tasks.write(replace(made, train=made.train[:16], valid=made.valid[:8]), tmp_path / "data")
    return making.Place(toy["base"].folder, tmp_path / "data", tmp_path / "arm", tmp_path / "cache", "", 1, epochs=1)


def test_of_a_ladder_the_lowest_validation_loss_is_taken(toy: dict[str, Any], place: Any) -> None:
    arm = replace(arms.ARMS["A1"], rates=(1e-3, 1e-2))
    model, training = making.make(arm, 0, place)
    assert set(training.valid_losses) == {"run-0.001", "run-0.01"}
    assert training.valid_losses[f"run-{training.rate:g}"] == min(training.valid_losses.values())
    assert training.tokens > 0
    assert open_base(str(model), CPU).fingerprint != toy["base"].fingerprint
    assert "--technique full" in training.commands[0]


def test_under_a_budget_the_record_has_what_was_certified(toy: dict[str, Any], place: Any, tmp_path: Path) -> None:
    skills = str(picked(toy["base"], tmp_path / "picks.jsonl"))
    arm = replace(arms.ARMS["O90"], flags=("--keep", "60%", "--skills", skills, "--lr", "0.003"), budget=0.6)
    model, training = making.make(arm, 0, place)
    assert training.choice_seconds is not None
    assert training.choice_seconds > training.plain_seconds > 0
    assert training.shipped, "so small a budget holds somewhere"
    assert training.certified is not None
    assert training.certified[1] >= 0.6
    assert open_base(str(model), CPU).fingerprint != toy["base"].fingerprint


def test_weights_are_scored_wherever_they_come_from(toy: dict[str, Any], tmp_path: Path) -> None:
    """A folder with the base's very tensors under another path is the base."""
    copy = tmp_path / "copy"
    for file in toy["base"].folder.iterdir():
        copy.mkdir(exist_ok=True)
        (copy / file.name).write_bytes(file.read_bytes())
    save_tensors(to_files(toy["base"].decoder), copy)
    rows = sums.splits(0).test[:12]
    readings = instruments.score(copy, toy["exam"], tasks.TARGETS["sums"], rows, lambda line: None)
    assert readings == toy["records"][0].readings
