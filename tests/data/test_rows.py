import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graftwood.data.rows import SHAPES, Row, Turn, parse_rows, read_file, rows_from
from graftwood.errors import DataError

ASK = {"role": "user", "content": "2 + 2?"}
ANSWER = {"role": "assistant", "content": "4"}
EXAMPLES = {
    "messages": {"messages": [ASK, ANSWER]},
    "sharegpt": {"conversations": [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4"}]},
    "prompt-completion": {"prompt": "2 + 2?", "completion": " 4"},
    "prompt-completion messages": {"prompt": [ASK], "completion": [ANSWER]},
    "alpaca": {"instruction": "Add.", "input": "2 + 2", "output": "4"},
    "text": {"text": "2 + 2 is 4."},
}
CHAT = (Turn("user", "2 + 2?", False), Turn("assistant", "4", True))

words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1).filter(str.strip)


def problem(*rows: object) -> str:
    """The first problem of rows given as objects or as bytes."""
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    with pytest.raises(DataError) as caught:
        parse_rows(enumerate(lines, start=1), "d.jsonl")
    return caught.value.problems[0] if caught.value.problems else str(caught.value)


def test_every_shape_has_an_example_here():
    assert [shape.name for shape in SHAPES] == list(EXAMPLES)


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_shape_is_recognised_from_a_file_and_from_memory(name, tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(EXAMPLES[name]) + "\n", encoding="utf-8")
    from_file, from_memory = read_file(path), rows_from([EXAMPLES[name]])
    assert from_file.shape == from_memory.shape == name
    assert from_file.extras == ()
    assert (from_file.rows[0].file, from_file.rows[0].line) == (str(path), 1)
    assert (from_memory.rows[0].file, from_memory.rows[0].line) == ("data", 1)
    assert from_file.rows[0].parts == from_memory.rows[0].parts


def test_what_each_shape_becomes():
    rows = {name: rows_from([row]).rows[0] for name, row in EXAMPLES.items()}
    assert rows["messages"].turns == rows["sharegpt"].turns == rows["prompt-completion messages"].turns == CHAT
    assert rows["alpaca"].turns == (Turn("user", "Add.\n\n2 + 2", False), Turn("assistant", "4", True))
    assert rows["prompt-completion"] == Row("completion", (), "2 + 2?", " 4", (), "data", 1)
    assert rows["text"] == Row("text", (), "", "2 + 2 is 4.", (), "data", 1)


@given(st.lists(st.tuples(words, words), min_size=1))
def test_what_was_written_is_what_is_read(pairs):
    lines = [json.dumps({"prompt": p, "completion": c}, ensure_ascii=False).encode() for p, c in pairs]
    rows = parse_rows(enumerate(lines, start=1), "d.jsonl").rows
    assert [(row.prompt, row.completion) for row in rows] == pairs
    assert [row.line for row in rows] == list(range(1, len(pairs) + 1))


@given(words, words, st.booleans())
def test_three_ways_to_write_a_conversation_are_one(ask, answer, parts):
    content = [{"type": "text", "text": ask[:1]}, {"type": "text", "text": ask[1:]}] if parts else ask
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
    shared = [{"from": "human", "value": ask}, {"from": "gpt", "value": answer}]
    for row in (
        {"messages": messages},
        {"conversations": shared},
        {"prompt": messages[:1], "completion": messages[1:]},
        {"instruction": ask, "output": answer},
    ):
        assert rows_from([row]).rows[0].turns == (Turn("user", ask, False), Turn("assistant", answer, True))


def test_weight_chooses_the_answers_that_are_learned():
    messages = [ASK, ANSWER | {"weight": 0}, ASK, ANSWER | {"weight": 1}, ASK, ANSWER]
    turns = rows_from([{"messages": messages}]).rows[0].turns
    assert [turn.train for turn in turns] == [False, False, False, True, False, True]


def test_answers_inside_a_prompt_are_not_learned():
    row = rows_from([{"prompt": [ASK, ANSWER, ASK], "completion": [ANSWER]}]).rows[0]
    assert [turn.train for turn in row.turns] == [False, False, False, True]


@pytest.mark.parametrize("row", [EXAMPLES["alpaca"], EXAMPLES["sharegpt"]])
def test_a_system_text_comes_first_and_an_empty_one_is_none(row):
    assert rows_from([row | {"system": "Be brief."}]).rows[0].turns[0] == Turn("system", "Be brief.", False)
    assert rows_from([row | {"system": ""}]).rows[0].turns == rows_from([row]).rows[0].turns


def test_alpaca_without_input():
    for row in ({"instruction": "Add.", "output": "4"}, {"instruction": "Add.", "input": "", "output": "4"}):
        assert rows_from([row]).rows[0].turns[0].content == "Add."


def test_null_is_absent():
    row = {"prompt": "a", "completion": "b", "messages": None, "references": None, "note": None}
    parsed = rows_from([row])
    assert (parsed.shape, parsed.extras) == ("prompt-completion", ())
    assert rows_from([{"messages": [ASK | {"weight": None}, ANSWER | {"tool_calls": None}], "tools": None}]).rows


def test_references_are_kept():
    row = EXAMPLES["prompt-completion"] | {"references": ["4", "four"]}
    assert rows_from([row]).rows[0].references == ("4", "four")


def test_keys_that_are_not_read_are_noted():
    first = {"messages": [ASK | {"name": "Ann"}, ANSWER], "id": 7}
    assert rows_from([first, {"messages": [ASK, ANSWER], "source": "x"}]).extras == ("id", "messages[].name", "source")


def test_known_data_sets_with_two_shapes_worth_of_keys():
    assert rows_from([EXAMPLES["alpaca"] | {"text": "Below is an instruction..."}]).shape == "alpaca"
    assert rows_from([EXAMPLES["messages"] | {"prompt": "p", "chosen": [], "rejected": []}]).shape == "messages"


def test_a_row_that_has_the_files_shape_as_well_is_read_in_it():
    parsed = rows_from([EXAMPLES["text"], EXAMPLES["text"] | {"prompt": "p", "completion": "c"}])
    assert (len(parsed.rows), parsed.extras) == (2, ("completion", "prompt"))


def test_mark_crlf_and_blank_lines_are_accepted_and_lines_counted(tmp_path):
    path = tmp_path / "d.jsonl"
    row = json.dumps(EXAMPLES["text"]).encode()
    path.write_bytes(b"\xef\xbb\xbf" + row + b"\r\n\r\n  \r\n" + row)
    assert [row.line for row in read_file(path).rows] == [1, 4]


def test_asked_and_parts():
    row = rows_from([{"messages": [{"role": "system", "content": "s"}, ASK, ANSWER]}]).rows[0]
    assert row.asked == ("s", "2 + 2?")
    assert row.parts == ("s", "2 + 2?", "4")
    assert rows_from([EXAMPLES["text"]]).rows[0].asked == ()


MESSAGE = {"role": "user", "content": "x"}
BAD = {
    "broken JSON": (b'{"text": "a" "b"}', "invalid JSON at column 14: Expecting", """near '{"text": "a" "b"}'"""),
    "cut short": (b'{"text": "a', "invalid JSON at column 10", "one JSON object on one line"),
    "control character": (b'{"text": "a\tb"}', "invalid JSON at column 12", "control character"),
    "too deep": (b"[" * 100_000, "invalid JSON", "one JSON object on one line"),
    "not an object": (b'"text"', "the row is a string; it must be an object", "messages"),
    "not UTF-8": (b'{"text": "caf\xe9"}', "byte 14 (0xe9) is not UTF-8", "save the file as UTF-8"),
    "key twice": (b'{"text": "a", "text": "b"}', "has the key 'text' twice", "keep one"),
    "surrogate key": (b'{"text": "a", "\\ud800": 1}', "the key '\\ud800' has a lone surrogate", "remove it"),
    "surrogate": (b'{"text": "ab\\ud800"}', "text has a lone surrogate (U+D800) at character 3", "remove it"),
    "NUL": (b'{"text": "\\u0000"}', "text has a NUL (U+0000) at character 1", "remove it"),
    "no keys": ({}, "has no keys", "a row has one of messages | conversations | prompt + completion"),
    "no shape": ({"question": "a"}, "has keys 'question', which fit no shape", "instruction + output | text"),
    "null": ({"prompt": "a", "completion": None}, "'completion' (null)", "prompt + completion"),
    "preferences": ({"prompt": "a", "chosen": "b", "rejected": "c"}, "preferences", "a row has one of messages"),
    "wrong type": ({"text": 3}, "text is a number", "must be a string"),
    "boolean": ({"prompt": "a", "completion": True}, "completion is a boolean", "must be a string"),
    "half a list": ({"prompt": [MESSAGE], "completion": "b"}, "prompt is a list and completion is a string", "both"),
    "empty answer": ({"prompt": "a", "completion": " \n"}, "completion is empty", "an answer needs words"),
    "empty prompt": ({"prompt": "", "completion": "a"}, "prompt is empty", '{"text": ...}'),
    "empty text": ({"text": ""}, "text is empty", "learns"),
    "empty output": ({"instruction": "a", "output": ""}, "output is empty", "an answer needs words"),
    "input": ({"instruction": "a", "input": 3, "output": "b"}, "input is a number", "must be a string"),
    "empty messages": ({"messages": []}, "messages is empty", "at least one message"),
    "no list": ({"messages": "hello"}, "messages is a string", "must be a list of messages"),
    "bare message": ({"messages": ["hello"]}, "messages[0] is a string", '{"role": ..., "content": ...}'),
    "role": ({"messages": [{"role": "bot", "content": "x"}]}, "role 'bot'", "system, user, assistant, tool"),
    "no role": ({"messages": [{"content": "x"}]}, "messages[0] has role None", "system, user, assistant, tool"),
    "no content": ({"messages": [{"role": "user"}]}, "messages[0].content is null", "must be a string"),
    "blank turn": ({"messages": [{"role": "user", "content": ""}]}, "messages[0].content is empty", "needs words"),
    "weight": ({"messages": [ASK, ANSWER | {"weight": 2}]}, "messages[1] has weight 2", "allowed are 0 and 1"),
    "nothing learned": ({"messages": [ASK, ANSWER | {"weight": 0}]}, "weight 0 on every answer", "at least one"),
    "order": ({"messages": [ANSWER, ASK]}, "messages ends with user", "the last message must be the assistant's"),
    "no user": ({"messages": [ANSWER]}, "messages has no user message", "needs one"),
    "tools": ({"messages": [ASK, ANSWER], "tools": [{}]}, "tools is not supported yet", "remove the key"),
    "tool calls": (
        {"messages": [ASK, {"role": "assistant", "tool_calls": [{}]}]},
        "messages[1] has tool_calls, which is not supported yet",
        "as content",
    ),
    "image": (
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        "messages[0].content[0] is 'image_url'",
        '{"type": "text", "text": ...}',
    ),
    "sharegpt role": ({"conversations": [{"from": "bot", "value": "x"}]}, "from 'bot'", "human, gpt, system, user"),
    "references": ({"text": "a", "references": "b"}, "references is a string", "must be a list of strings"),
    "reference": ({"text": "a", "references": [""]}, "references[0] is empty", "needs words"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_is_named_with_what_is_wrong_and_what_is_allowed(name):
    row, wrong, allowed = BAD[name]
    good = b'\n{"text": "fine"}' if isinstance(row, bytes) or "text" in row else b""
    said = problem(good, row)
    assert said.startswith("d.jsonl:2: ")
    assert wrong in said
    assert allowed in said
    assert "\n" not in said
    said.encode()  # printable whatever the row held


@pytest.mark.parametrize("other", [name for name in EXAMPLES if name != "messages"])
def test_one_shape_a_file(other):
    said = problem(EXAMPLES["messages"], EXAMPLES[other])
    assert said == f"d.jsonl:2: looks like {other}, but the file is messages: one shape a file"


def test_strings_and_message_lists_do_not_mix():
    said = problem(EXAMPLES["prompt-completion"], EXAMPLES["prompt-completion messages"])
    assert "looks like prompt-completion messages, but the file is prompt-completion" in said


def test_the_first_well_formed_row_decides_the_shape():
    with pytest.raises(DataError) as caught:
        rows_from([{"text": ""}, EXAMPLES["alpaca"], EXAMPLES["text"]])
    assert [said.partition(":")[2][:13] for said in caught.value.problems] == ["1: text is em", "3: looks like"]


def test_all_problems_at_once_and_the_first_twenty_shown():
    rows = [EXAMPLES["text"], *({"text": number} for number in range(25))]
    with pytest.raises(DataError, match=r"^d: 25 of 26 rows cannot be used\n") as caught:
        rows_from(rows, "d")
    assert len(caught.value.problems) == 21
    assert caught.value.problems[0].startswith("d:2: ")
    assert caught.value.problems[-1] == "... and 5 more"


@pytest.mark.parametrize("content", [b"", b"\n  \r\n", b"\xef\xbb\xbf\n"])
def test_a_file_without_rows(content, tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"d\.jsonl has no rows; a row has one of messages"):
        read_file(path)


def test_a_file_that_cannot_be_opened(tmp_path):
    with pytest.raises(DataError, match=r"cannot read .*: No such file"):
        read_file(tmp_path / "none.jsonl")


@pytest.mark.parametrize("indent", [None, 2])
def test_a_json_array_is_told_apart_and_the_fix_works(indent, tmp_path: Path):
    path = tmp_path / "my data.jsonl"
    path.write_text(json.dumps([EXAMPLES["text"]] * 2, indent=indent), encoding="utf-8")
    with pytest.raises(DataError, match=r"this is a JSON array; JSONL has one object a line") as caught:
        read_file(path)
    assert not caught.value.problems
    command = str(caught.value).partition("Convert it: ")[2]
    subprocess.run(command.replace("python", sys.executable, 1), shell=True, check=True)
    assert len(read_file(tmp_path / "my data.rows.jsonl").rows) == 2


def test_text_is_told_apart_in_one_line(tmp_path: Path):
    path = tmp_path / "tale.txt"
    path.write_text("\nOnce upon a time\nthere was a fox.\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"tale.txt: this is text, not JSONL.*\"text\".*pretrain") as caught:
        read_file(path)
    assert not caught.value.problems
