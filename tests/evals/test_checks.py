import pytest
from hypothesis import given
from hypothesis import strategies as st

from graftwood.errors import ConfigError
from graftwood.evals.checks import CHECKS, followed, problems

EXAMPLES = {
    "contains_any": ({"values": ["no", "never"]}, "Oh, **no**!", "I know nothing of it."),
    "contains_all": ({"values": ["moon", "night"]}, "Moon by night", "The moon."),
    "not_contains": ({"values": ["in a sentence"]}, "The garden is green.", "Use it in a  Sentence"),
    "count_of": ({"n": 2, "values": ["berr*", "berry", "fig"]}, "Berries, a fig", "One berry, two berries"),
    "first_of": ({"values": ["horse"], "against": ["table"]}, "A horse, not a table.", "The table or the horse"),
    "says": ({"text": "hello world"}, "Sure: “Hello, World!”", "hello wide world"),
    "starts_with_any": ({"values": ["yes"]}, "**Yes**, it is.", "Yesterday, yes."),
    "matches": ({"pattern": r"\bSTOP\b"}, "It is STOP.", "It is stop."),
    "max_words": ({"n": 3}, "It's all green.", "It is all green."),
    "prose": ({"n": 4}, "Rain falls from clouds.", "rain rain rain rain rain"),
    "numbered_list": ({"n": 2}, "Here:\n1. **Red**\n2) Blue", "1. Red\n3. Blue"),
    "bullets": ({"n": 2}, "* red\n - blue", "1. red\n2. blue"),
    "comma_list": ({"n": 3}, "Here they are:\nred, green, blue", "red, green\nblue, white"),
    "python_defines": (
        {"name": "add"},
        "```python\ndef add(a, b):\n    return a + b\n\ntotal = add(1,",
        "def add(a, b): a plus b",
    ),
}


@pytest.mark.parametrize("kind", CHECKS)
def test_each_check_tells_right_from_wrong(kind):
    fields, right, wrong = EXAMPLES[kind]
    check = {"kind": kind, **fields}
    assert problems([check]) == []
    assert followed([check], right)
    assert not followed([check], wrong)


def test_all_checks_must_hold():
    cat, dog = {"kind": "contains_any", "values": ["cat"]}, {"kind": "contains_any", "values": ["dog"]}
    assert followed([cat, dog], "A cat and a dog")
    assert not followed([cat, dog], "A cat")


def test_words_are_whole_unless_they_end_in_a_star():
    assert not followed([{"kind": "contains_any", "values": ["art"]}], "The party starts.")
    assert followed([{"kind": "contains_any", "values": ["art*"]}], "Two artists.")
    assert not followed([{"kind": "contains_any", "values": ["art*"]}], "A smart cart.")


@pytest.mark.parametrize(
    ("value", "said", "not_said"),
    [
        ("5", ["It is 5.", "2,5,6", "5.0 in all", "$5.00"], ["2.5", "5.5", "15", "It is 5.05"]),
        ("2.5", ["2.5 km", "It is 2.5."], ["12.5", "2.55", "1.2.5"]),
        ("C#", ["I like C#.", "**C#**", "# C#"], ["vitamin C", "plan c"]),
    ],
)
def test_a_number_or_a_name_is_no_part_of_another(value, said, not_said):
    check = [{"kind": "contains_any", "values": [value]}]
    assert [followed(check, answer) for answer in said] == [True] * len(said)
    assert [followed(check, answer) for answer in not_said] == [False] * len(not_said)


def test_what_is_to_be_said_need_be_no_regular_expression():
    assert followed([{"kind": "says", "text": "*(hello"}], "Hello there")


def test_amounts_are_no_numbered_list():
    check = [{"kind": "numbered_list", "n": 3}]
    assert not followed(check, "1.5 kg of flour\n2.5 kg of sugar\n3.1 l of milk")
    assert followed(check, "1.flour\n2) sugar\n**3.** milk")


@pytest.mark.parametrize("dressed", ["**Paris**", "_Paris_", "`paris`", "# PARIS", "‘Paris’", "It is Paris."])
def test_markdown_case_and_quotes_do_not_matter(dressed):
    assert followed([{"kind": "contains_any", "values": ["Paris"]}], dressed)


def test_python_that_only_promises_is_not_code():
    check = [{"kind": "python_defines", "name": "add"}]
    assert not followed(check, 'def add(a, b):\n    """Return the sum."""\n    pass')
    assert not followed(check, "def total(a, b):\n    return a + b")
    assert not followed(check, "def add(a, b)\n    return a + b")


def test_prose_is_no_record_and_no_markup():
    check = [{"kind": "prose", "n": 3}]
    assert not followed(check, '{"reply": "rain falls from clouds above"}')
    assert not followed(check, "<reply>rain falls from clouds</reply>")


def test_an_apology_is_no_refusal():
    assert followed([{"kind": "contains_any", "values": ["sorry"]}], "Dear Mr Brown, I am sorry about the noise.")
    assert not followed([{"kind": "contains_any", "values": ["sorry"]}], "Sorry, as an AI I do not send mail.")


def test_an_unknown_check_names_its_neighbours():
    with pytest.raises(ConfigError, match=r"unknown check 'contain_any'\. Did you mean 'contains_any'"):
        followed([{"kind": "contain_any", "values": ["x"]}], "x")


@pytest.mark.parametrize(
    ("check", "said"),
    [
        ({"kind": "max_words"}, "takes n, got nothing"),
        ({"kind": "max_words", "n": 3, "m": 4}, "takes n, got m, n"),
        ({"kind": "max_words", "n": 0}, "whole number above 0"),
        ({"kind": "max_words", "n": True}, "whole number above 0"),
        ({"kind": "contains_any", "values": []}, "list of words"),
        ({"kind": "contains_any", "values": "yes"}, "list of words"),
        ({"kind": "contains_any", "values": ["*"]}, "list of words"),
        ({"kind": "matches", "pattern": "("}, "no regular expression"),
        ({"kind": "says", "text": "..."}, "must have a word in it"),
        ({"kind": "count_of", "n": 3, "values": ["a", "b", "b"]}, "is more than there are values"),
        ({"kind": "says", "text": ""}, "must be text"),
        ({}, "unknown check"),
    ],
)
def test_a_bad_check_is_explained_in_one_line(check, said):
    assert [said in line and "\n" not in line for line in problems([check])] == [True]


def test_no_check_at_all_is_a_problem():
    assert problems([]) == ["no check at all"]


@given(st.text(max_size=60))
def test_no_answer_breaks_a_check(answer):
    for kind, (fields, _, _) in EXAMPLES.items():
        assert followed([{"kind": kind, **fields}], answer) in (True, False)
