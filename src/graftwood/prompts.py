"""What a model is asked: a text or a conversation, from arguments, a file or stdin."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from graftwood.data.rows import read_objects, rows_from
from graftwood.errors import ConfigError, DataError

# A text, or the messages of a conversation as `{"role", "content"}`.
Asked = str | Sequence[Mapping[str, str]]

_SHAPES = 'with "prompt" (a text or messages), "messages", or another shape of data, whose answer is not read'
# Lists of messages by their key, with an answer such as a row to learn ends in.
_ANSWERS = {"messages": {"role": "assistant", "content": "-"}, "conversations": {"from": "gpt", "value": "-"}}


def prompts(given: Sequence[str] | None, file: Path | None) -> list[Asked]:
    """The prompts of a command. Raises: ConfigError or DataError where there is none or one cannot be used."""
    if given and file is not None:
        raise ConfigError("a prompt is given and --file as well; give one of them")
    if given:
        return [readable(prompt, f"prompt {number}") for number, prompt in enumerate(given, 1)]
    if file is None:
        return [_from_stdin()]
    if file.suffix == ".jsonl":
        return read_objects(file, _asked, _SHAPES)
    lines = [line.rstrip("\r") for line in _text_of(file).split("\n")]
    if not (found := [line for line in lines if line.strip()]):
        raise ConfigError(f"{file} holds no prompt; write one a line, or JSONL rows into a .jsonl file")
    return list(found)


def readable(text: str, where: str) -> str:
    """The text. Raises: ConfigError where bytes of it were no UTF-8, which Python keeps as lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"{where} is not UTF-8 at character {error.start + 1}; write it as UTF-8") from None
    return text


def _from_stdin() -> str:
    if sys.stdin.isatty():
        raise ConfigError("no prompt: give one as an argument, with --file, or on stdin")
    text = readable(sys.stdin.read().rstrip("\n"), "stdin")
    if not text:
        raise ConfigError("no prompt: stdin is empty; give one as an argument, with --file, or on stdin")
    return text


def _text_of(file: Path) -> str:
    try:
        return file.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"there is no prompt file {file}") from None
    except OSError as error:
        raise ConfigError(f"cannot read the prompt file {file}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is not UTF-8 at byte {error.start + 1}; save it as UTF-8") from None


def _asked(_: int, given: Mapping[str, Any]) -> Asked:
    """What a row asks, up to its last answer. Raises: ValueError for one that asks nothing."""
    prompt = given.get("prompt")
    if prompt == "":
        raise ValueError("prompt is empty; it is what the model is asked")
    if prompt is None and not {"messages", "conversations", "instruction", "text"} & given.keys():
        raise ValueError(f"the row asks nothing; it must be an object {_SHAPES}")
    try:
        (row,) = rows_from([_answered(given)]).rows
    except DataError as error:
        raise ValueError(error.problems[0].partition(": ")[2]) from None
    if row.kind == "text":
        raise ValueError(f"text is to be learned and asks nothing; give an object {_SHAPES}")
    if row.kind == "completion":
        return row.prompt
    return [{"role": turn.role, "content": turn.content} for turn in row.turns[:-1]]


def _answered(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """The row as one to learn from: where it ends with a question, an answer is put after it."""
    prompt = given.get("prompt")
    if prompt is not None:
        return {"prompt": prompt, "completion": [_ANSWERS["messages"]] if isinstance(prompt, list) else "-"}
    if "instruction" in given:
        return {"output": "-", **given}
    for key, answer in _ANSWERS.items():
        turns, role = given.get(key), next(iter(answer))
        if isinstance(turns, list) and turns and isinstance(turns[-1], Mapping):
            ended = turns[-1].get(role) in ("assistant", "gpt")
            return given if ended else {**given, key: [*turns, answer]}
    return given
