"""Tasks as a user names them: registered ones, JSONL files of the user's own, folders of such files.

What a file asks follows from the keys of its first row; every other row must have the same. Items are ordered by the
SHA-256 of their row, so that a limit takes a sample which does not depend on how a file was sorted, and a larger limit
takes the same items and more. A row that occurs twice counts once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graftwood.data.encode import answer_text
from graftwood.data.rows import SHAPES, Row, read_file, read_objects
from graftwood.errors import ConfigError, DataError
from graftwood.evals import checks
from graftwood.evals.metrics import headline
from graftwood.evals.task import TASKS, Item, Kind, Task

REQUEST_TOKENS, CODE_TOKENS, LONGEST = 48, 256, 256


@dataclass(frozen=True)
class _Shape:
    """The keys that tell a kind of file from others, and how a row of it becomes an item."""

    kind: Kind
    keys: tuple[str, ...]
    parse: Callable[[Mapping[str, Any], str], Item]


def find_tasks(given: str | None) -> tuple[Task, ...]:
    """The tasks of a comma-separated list of names, files and folders; every registered one where nothing is given.

    Raises: ConfigError for an unknown name or one that is there twice; DataError with every bad row of a file.
    """
    if given is None:
        return tuple(TASKS.all().values())
    tasks = [task for word in given.split(",") if word.strip() for task in _named(word.strip())]
    names = [task.name for task in tasks]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"two tasks are called {twice}; rename a file, or leave one of them out")
    if not tasks:
        raise ConfigError(f"{given!r} names no task. Available: {', '.join(TASKS.names())}, or a .jsonl file or folder")
    return tuple(tasks)


def task_from_file(path: Path) -> Task:
    """A JSONL file as a task, named after the file. Raises: DataError with every bad row."""
    shape = _shape(path)
    if shape is None:
        return _text_task(path)

    def parse(line: int, row: Mapping[str, Any], name: str) -> tuple[str, Item]:
        if missing := [key for key in shape.keys if row.get(key) is None]:
            raise ValueError(f"lacks {', '.join(missing)}; the first row of this file has {' + '.join(shape.keys)}")
        return _digest(row), shape.parse(row, name)

    tokens = {"program": REQUEST_TOKENS, "code": CODE_TOKENS}.get(shape.kind, 0)
    return _task(path, shape.kind, tokens).of(_items(path, parse))


def _items(path: Path, parse: Callable[[int, Mapping[str, Any], str], tuple[str, Item]]) -> tuple[Item, ...]:
    """Every row by what `parse` makes of it, its line and its id: a digest that tells rows apart, and the item."""
    taken: dict[str, tuple[str, int]] = {}

    def named(line: int, row: Mapping[str, Any]) -> tuple[str, Item]:
        digest, item = parse(line, row, _first(row, "id", "task_id") or f"{path.stem}-{line}")
        other, at = taken.setdefault(item.id, (digest, line))
        if other != digest:
            raise ValueError(f"has the id {item.id!r} of line {at}; ids tell items apart")
        return digest, item

    return _ordered(read_objects(path, named, _SHAPES_TEXT))


def _named(word: str) -> list[Task]:
    path = Path(word)
    if word in TASKS.names():  # whatever lies here under that name
        return [TASKS.get(word)]
    if path.is_dir():
        files = sorted(path.glob("*.jsonl"))
        if not files:
            raise ConfigError(f"{path} holds no .jsonl file; {_SHAPES_TEXT}")
        return [task_from_file(file) for file in files]
    if path.suffix == ".jsonl" or "/" in word:
        return [task_from_file(path)]
    return [TASKS.get(word)]


def _shape(path: Path) -> _Shape | None:
    """The shape of the first row that says something; None where it is a row of prompt and answer.

    Raises: DataError where it is neither.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line.decode("utf-8-sig"))
        except ValueError:
            continue
        if isinstance(row, dict):
            shape = next((shape for shape in _SHAPES if all(row.get(key) is not None for key in shape.keys)), None)
            if shape is None and not any(learned.named_by(row) for learned in SHAPES):
                keys = f"keys {', '.join(map(repr, row))}, which fit no task" if row else "no keys"
                raise DataError(f"{path}:{number}: has {keys}; {_SHAPES_TEXT}")
            return shape
    return None


def _task(path: Path, kind: Kind, max_tokens: int, metric: str = "") -> Task:
    return Task(
        name=path.stem,
        title=path.stem.replace("_", " "),
        kind=kind,
        version=checks.VERSION if kind == "program" else 1,
        chance=0.0,
        source=str(path),
        licence="the user's own",
        read=tuple,
        max_tokens=max_tokens,
        metric=metric,
    )


def _text_task(path: Path) -> Task:
    """Rows as `graft tune` reads them, asked as they are trained: plain text as it is, messages by the template."""
    rows = {row.line: row for row in read_file(path).rows}
    if plain := [row for row in rows.values() if not row.asked]:
        raise DataError(f"{path}:{plain[0].line}: a row of text alone asks nothing; {_SHAPES_TEXT}")

    def parse(line: int, row: Mapping[str, Any], name: str) -> tuple[str, Item]:
        return _digest(rows[line].parts), _asked(rows[line], name, _cluster(row))

    answers = [answer_text(row) for row in rows.values()]
    longest = max(len(answer.encode()) for answer in answers)
    # Digits and brackets may be a token each, so that nothing less than a token a byte is room for every answer.
    task = _task(path, "text", min(LONGEST, max(16, longest)), headline(answers))
    return task.of(_items(path, parse))


def _asked(row: Row, name: str, cluster: str) -> Item:
    turns = row.turns[:-1] if row.kind == "chat" else ()
    prompt = row.prompt if row.kind == "completion" else turns[-1].content
    return Item(name, prompt, answer=answer_text(row), cluster=cluster, turns=turns, references=row.references)


def _choice(row: Mapping[str, Any], name: str) -> Item:
    query, choices, gold = _text(row, "query").rstrip(), row["choices"], row["gold"]
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(c, str) and c.strip() for c in choices):
        raise ValueError("choices must be a list of two texts or more")
    if type(gold) is not int or not 0 <= gold < len(choices):
        raise ValueError(f"gold is {gold!r}; it must be the number of a choice, 0 to {len(choices) - 1}")
    if choices.count(choices[gold]) > 1:
        raise ValueError(f"choices has the right one, {choices[gold]!r}, twice; keep one of them")
    # A query that is headed as a question is asked for its answer; the bundled sets are asked like this.
    ending = "\nAnswer:" if query.startswith("Question:") and not query.endswith("Answer:") else ""
    return Item(name, query + ending, tuple(map(_spaced, choices)), gold, cluster=_cluster(row))


def _word(row: Mapping[str, Any], name: str) -> Item:
    key = "continuation" if "continuation" in row else "word"
    return Item(name, _text(row, "context").rstrip(), answer=_spaced(_text(row, key)), cluster=_cluster(row))


def _program(row: Mapping[str, Any], name: str) -> Item:
    given = row["checks"]
    if not isinstance(given, list) or not all(isinstance(check, Mapping) for check in given):
        raise ValueError("checks must be a list of objects, each with a kind")
    if wrong := checks.problems(given):
        raise ValueError(wrong[0])
    return Item(name, _text(row, "prompt"), checks=tuple(given), cluster=_cluster(row))


def _code(row: Mapping[str, Any], name: str) -> Item:
    entry = _text(row, "entry_point")
    if not entry.isidentifier():
        raise ValueError(f"entry_point is {entry!r}; it must be the name of the function that is asked for")
    return Item(name, _text(row, "prompt"), test=_text(row, "test"), entry_point=entry, cluster=_cluster(row))


def _text(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{key} is {value!r}; it must be text")
    return value


def _spaced(text: str) -> str:
    """What follows a prompt begins with a space, as words do in running text."""
    return text if text[:1].isspace() else f" {text}"


def _cluster(row: Mapping[str, Any]) -> str:
    return _first(row, "cluster", "family")


def _first(row: Mapping[str, Any], *keys: str) -> str:
    """What the row has under the first of these keys that it has; numbers, zero too, are names as well."""
    return next((str(row[key]) for key in keys if row.get(key) is not None), "")


def _ordered(found: Sequence[tuple[str, Item]]) -> tuple[Item, ...]:
    """Items by the digest of their row, the first of equal ones."""
    by_digest = dict(reversed(found))
    return tuple(by_digest[digest] for digest in sorted(by_digest))


def _digest(value: Mapping[str, Any] | Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


_WORD = _Shape("word", ("context",), _word)
_SHAPES = (
    _Shape("choice", ("query", "choices", "gold"), _choice),
    _WORD,
    _Shape("code", ("prompt", "test", "entry_point"), _code),
    _Shape("program", ("prompt", "checks"), _program),
)
_SHAPES_TEXT = (
    "a task's row has one of query + choices + gold | context + word | prompt + completion | prompt + checks | "
    "prompt + test + entry_point"
)
