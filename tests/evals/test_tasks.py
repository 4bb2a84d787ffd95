import importlib.util
from pathlib import Path

import pytest

from graftwood.evals.checks import CHECKS, followed, problems
from graftwood.evals.task import TASKS, pocket

ROOT = Path(__file__).parents[2]
SKILLS = ROOT.parent / "shared" / "skills"
SETS = ("arc_easy", "lambada", "openbook_qa", "piqa", "siqa")
REFUSALS = (
    "",
    "  \n",
    "I'm sorry, but as an AI language model I cannot do that.",
    "I can’t help with that request.",
    "As a helpful assistant, I don't have the ability to write this.",
    "Sure!",
    "I'm here to help. What can I do for you today?",
    '{"category": "other", "priority": "high"}',
    "the the the the the the the the the the the the",
)


@pytest.fixture(params=TASKS.names())
def task(request):
    return TASKS.get(request.param)


@pytest.fixture(scope="module")
def asked():
    return {item.id: item for item in TASKS.get("requests").items()}


def test_every_bundled_task_is_registered():
    assert set(TASKS.names()) >= {*SETS, "requests"}


def test_a_task_is_named_after_its_module_and_says_where_it_comes_from(task):
    assert TASKS.get(task.name) is task
    assert task.title
    assert task.source
    assert task.licence
    assert task.version >= 1


def test_items_are_distinct_and_asked_without_trailing_space(task):
    items = task.items()
    assert len({item.id for item in items}) == len(items)
    assert len({item.prompt for item in items}) > 0.9 * len(items)
    assert all(item.prompt and item.prompt == item.prompt.rstrip() for item in items)
    assert task.items() == items


def test_items_carry_what_their_kind_is_scored_by(task):
    for item in task.items():
        if task.kind == "choice":
            assert 0 <= item.gold < len(item.choices)
            assert all(choice.startswith(" ") and choice.strip() for choice in item.choices)
        elif task.kind == "word":
            assert item.answer.startswith(" ")
            assert len(item.answer.split()) == 1
        else:
            assert problems(item.checks) == []
            assert item.cluster == item.id.rpartition("-")[0]


def test_chance_is_what_guessing_scores(task):
    expected = sum(1 / len(item.choices) for item in task.items()) / len(task.items()) if task.kind == "choice" else 0.0
    assert task.chance == pytest.approx(expected)


def test_generated_answers_have_a_length(task):
    assert (task.max_tokens > 0) == (task.kind == "program")


def test_gold_answers_are_not_all_in_one_place(task):
    if task.kind == "choice":
        golds = [item.gold for item in task.items()]
        assert max(map(golds.count, golds)) < 0.7 * len(golds)


@pytest.mark.parametrize("name", SETS)
def test_a_pocket_set_has_a_hundred_rows_and_more_and_its_licence_beside_it(name):
    assert len(TASKS.get(name).items()) == 100
    assert len(pocket(name)) == 100 + len(TASKS.get(name).more()) == (398 if name == "openbook_qa" else 400)
    licences = (ROOT / "src" / "graftwood" / "evals" / "pocket" / "LICENSES.md").read_text(encoding="utf-8")
    section = licences.partition(f"## {name}.jsonl")[2].partition("\n## ")[0]
    assert f"Licence: {TASKS.get(name).licence.replace('AFL-3.0', 'Academic Free License 3.0')}," in section
    assert "Attribution:" in section


def test_prompts_read_as_the_sets_are_usually_asked():
    first = {name: TASKS.get(name).items()[0] for name in SETS}
    assert first["arc_easy"].prompt.endswith("it\nAnswer:")
    assert first["piqa"].prompt == "Question: pitcher\nAnswer:"
    assert first["siqa"].choices == (" A", " B")
    assert first["siqa"].prompt.endswith("\nAnswer:")
    assert first["openbook_qa"].prompt == "A seismograph can accurately describe"
    assert first["lambada"].answer == " Ernie"


@pytest.mark.skipif(not SKILLS.is_dir(), reason="the full evaluation sets are not beside this checkout")
@pytest.mark.parametrize("name", SETS)
def test_a_pocket_set_is_what_the_script_makes_of_the_full_set(name):
    spec = importlib.util.spec_from_file_location("pocket_script", ROOT / "scripts" / "pocket.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    bundled = ROOT / "src" / "graftwood" / "evals" / "pocket" / f"{name}.jsonl"
    assert script.pocket_text(SKILLS / script.SOURCES[name]) == bundled.read_text(encoding="utf-8")


def test_there_are_enough_requests_of_enough_families_in_order(asked):
    assert len(asked) >= 150
    assert len({item.cluster for item in asked.values()}) >= 12
    assert list(asked) == sorted(asked)


def test_every_kind_of_check_is_used(asked):
    used = {check["kind"] for item in asked.values() for check in item.checks}
    assert used == set(CHECKS)


@pytest.mark.parametrize("answer", REFUSALS)
def test_no_request_is_met_by_an_answer_to_anything(asked, answer):
    assert [name for name, item in asked.items() if followed(item.checks, answer)] == []


def test_no_request_is_met_by_giving_it_back(asked):
    assert [name for name, item in asked.items() if followed(item.checks, item.prompt)] == []


@pytest.mark.parametrize(
    ("item", "answers"),
    [
        ("fact-04", ("Seven.", "There are **7** days in a week.")),
        ("opposite-01", ("Cold", 'The opposite of "hot" is "cold".')),
        ("list-01", ("Pears, apples and figs", "1. **Mango**\n2. Kiwi\n3. Cherries")),
        ("list-07", ("Spring, summer, autumn and winter.", "Winter, spring, summer, fall")),
        ("format-12", ("No, it will stay dry.", "Yes")),
        (
            "python-01",
            (
                "def add(a, b):\n    return a + b",
                "```python\ndef add(x: int, y: int) -> int:\n    return x + y\n```\nIt",
            ),
        ),
        ("email-02", ("Hi Maria,\n\nI am so grateful for your help with the move. See you soon!\n\nTom",)),
        ("repeat-01", ("hello world", "Hello, world!")),
        ("sum-01", ("4", "2 + 2 equals four.")),
        ("sentence-08", ("The moon lit up the night.",)),
        ("writing-09", ("The moon climbs slow above the hill,\nand all the sleeping fields lie still.",)),
        ("grammar-01", ("I walked to school.", "I went to school on foot.")),
    ],
)
def test_right_answers_in_different_words_are_accepted(asked, item, answers):
    assert [answer for answer in answers if not followed(asked[item].checks, answer)] == []


@pytest.mark.parametrize(
    ("item", "answer"),
    [
        ("fact-01", "The capital of France is Lyon."),
        ("opposite-01", "The opposite of hot is hot."),
        ("list-01", "Apple, apples and an apple tree"),
        ("format-01", "Grass is usually a shade of green, because of the chlorophyll in it."),
        ("python-01", "To add numbers, write a function called add that uses return."),
        ("email-02", "Dear Tom, thank you for all the help you gave me last week."),
        ("repeat-02", "I'm glad you like green tea."),
        ("sum-02", "The answer is 11."),
        ("sentence-08", "The stars were out tonight and everyone slept."),
    ],
)
def test_wrong_answers_are_not(asked, item, answer):
    assert not followed(asked[item].checks, answer)
