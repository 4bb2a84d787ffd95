"""Prompts from files, arguments and streams, and what is generated from them."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from command import Graft, json_lines
from graftwood.flags import spelled, unescaped
from graftwood.run import Model


def test_generate_reads_prompts_and_writes_json_lines(graft: Graft, tmp_path: Path, tiny_hf_folder: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "the"}\n{"messages": [{"role": "user", "content": "that"}]}\n', encoding="utf-8")
    said = graft("generate", "--model", tiny_hf_folder, "--file", prompts, "-n", 3, "--json")
    answers = [json.loads(line) for line in said.out.splitlines()]
    assert [answer["prompt"] for answer in answers] == ["the", [{"role": "user", "content": "that"}]]
    assert all(answer["tokens"] <= 3 and answer["finish"] in ("stop", "length") for answer in answers)
    prompts.write_text("{}\n", encoding="utf-8")
    assert f"{prompts}:1: the row asks nothing" in graft("generate", "--model", tiny_hf_folder, "--file", prompts).err


def test_a_row_of_messages_is_answered_as_a_conversation(
    graft: Graft, model: Model, folder: Path, tmp_path: Path
) -> None:
    """Every shape up to its last answer, through the chat template; a text as it stands, whatever else breaks lines."""
    system, user = {"role": "system", "content": "the"}, {"role": "user", "content": "is\u2028here"}
    answer = {"role": "assistant", "content": "not asked"}
    asked = [
        {"messages": [system, user]},
        {"messages": [system, user, answer]},
        {"prompt": [system, user]},
        {"prompt": [system, user], "completion": [answer]},
        {"conversations": [{"from": "system", "value": "the"}, {"from": "human", "value": "is\u2028here"}]},
        {"instruction": "is\u2028here", "system": "the"},
    ]
    file = tmp_path / "rows.jsonl"
    rows = [*asked, {"prompt": "is\u2028here"}]
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    said = json_lines(graft("generate", "--model", folder, "-f", file, "-n", 6, "--json"))
    answered, continued = model.chat([system, user], max_tokens=6), model.generate("is\u2028here", max_tokens=6)
    assert answered != continued, "a test of what is asked needs two answers"
    assert [row["text"] for row in said] == [answered] * len(asked) + [continued]
    assert [row["prompt"] for row in said] == [[system, user]] * len(asked) + ["is\u2028here"]


def test_rows_that_ask_nothing_are_refused_by_line(graft: Graft, folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    bad = ({"prompt": None}, {"prompt": 3}, {"prompt": [{"role": "me"}]}, {"text": "a"}, {"prompt": ""})
    file.write_text("\n\n".join(map(json.dumps, bad)), encoding="utf-8")
    refused = graft("generate", "--model", folder, "-f", file).err
    for part in (
        "1: the row asks nothing",
        "3: prompt is a number; it must",
        "5: prompt[0] has role 'me'",
        "7: text is",
    ):
        assert f"{file}:{part}" in refused
    assert f"{file}:9: prompt is empty" in refused


def test_a_text_file_holds_a_prompt_a_line(graft: Graft, folder: Path, tmp_path: Path) -> None:
    text = tmp_path / "prompts.txt"
    text.write_bytes(b"the user\x0csaid\r\n\nis here")
    said = json_lines(graft("generate", "--model", folder, "-f", text, "-n", 1, "--json"))
    assert [row["prompt"] for row in said] == ["the user\x0csaid", "is here"]
    assert "give one of them" in graft("generate", "--model", folder, "-f", text, "the").error


def test_a_base_without_a_template_says_how_messages_are_worded(graft: Graft, folder: Path) -> None:
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    del settings["chat_template"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    assert graft("generate", "--model", folder, "-n", 1, "the").err == ""
    assert "base has no chat template" in graft("generate", "--model", folder, "-n", 1, "--chat", "the").err


def test_a_stop_may_be_white_space(graft: Graft, model: Model, folder: Path) -> None:
    said = model.generate("the user", max_tokens=40)
    assert " " in said.strip(), "a test of stopping needs something to stop at"
    stopped = graft("generate", "--model", folder, "-n", 40, "--stop", " ", "the user")
    assert stopped.out == said.partition(" ")[0] + "\n"
    assert (unescaped("\\n\\n"), unescaped("a\\tb")) == ("\n\n", "a\tb")
    assert "--stop is empty" in graft("generate", "--stop", "", "the").error


def test_what_stands_after_two_dashes_is_no_flag() -> None:
    words = ["generate", "--max_tokens", "3", "--", "--my_snake_case=3 says", "--"]
    assert spelled(words) == ["generate", "--max-tokens", "3", "--", "--my_snake_case=3 says", "--"]


@pytest.mark.parametrize("words", [("generate", b"caf\xe9"), ("generate",), ("chat", "--system", b"caf\xe9")])
def test_bytes_that_are_no_text_are_refused(words: tuple[str | bytes, ...], folder: Path) -> None:
    command = [sys.executable, "-m", "graftwood", words[0], "--model", folder, *words[1:]]
    done = subprocess.run(command, input=b"caf\xe9", capture_output=True, check=False)
    (said,) = done.stderr.splitlines()
    assert done.returncode == 2
    assert said.endswith(b" is not UTF-8 at character 4; write it as UTF-8")


def test_a_conversation_outlives_a_message_that_cannot_be_answered(
    graft: Graft, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = ["the user", "the " * 200, "caf\udce9", "is here"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines) + "\n"))
    said = graft("chat", "--model", folder, "-t", 0, "-n", 4)
    assert said.code == 0
    assert said.err.count("the message is dropped, /new starts over") == 2
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{lines[0]}\n{lines[3]}\n"))
    assert graft("chat", "--model", folder, "-t", 0, "-n", 4).out == said.out


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "holds no prompt"),
        (b"\n \n", "holds no prompt"),
        (b"caf\xe9", "is not UTF-8 at byte 4"),
        (None, "cannot read the prompt file"),
    ],
)
def test_prompt_files_that_are_none(graft: Graft, tmp_path: Path, content: bytes | None, said: str) -> None:
    path = tmp_path / "prompts.txt"
    path.mkdir() if content is None else path.write_bytes(content)
    done = graft("generate", "--file", path)
    assert done.code == 2
    assert said in done.error


def test_a_text_that_begins_as_a_flag_does_stays_as_it_is() -> None:
    for flag in ("--separator", "--stop", "--system", "--sample-prompt"):
        assert spelled(["verb", flag, "--file_break--", "--max_tokens", "3"]) == [
            "verb", flag, "--file_break--", "--max-tokens", "3",
        ]  # fmt: skip
    assert spelled(["verb", "--sample_prompt", "--a_b"]) == ["verb", "--sample-prompt", "--a_b"]


def test_text_comes_and_goes_whole_on_streams_of_another_encoding(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "graftwood", "generate", "--model", str(folder), "-n", "2", "--json"],
        input="café 本".encode(), capture_output=True, check=True, env=os.environ | {"PYTHONIOENCODING": "latin-1"},
    )  # fmt: skip
    assert json.loads(done.stdout)["prompt"] == "café 本"
