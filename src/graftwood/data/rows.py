"""Users' rows: what one is, the shapes it may be written in, and a message for everything that can be wrong with it.

A shape is one entry of `SHAPES`. A file has one shape, decided by its first well-formed row; every bad row of a file is
reported at once, and a file with a bad row yields no rows.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from graftwood.data.unwritable import unwritable
from graftwood.errors import DataError

Role = Literal["system", "user", "assistant", "tool"]
T = TypeVar("T")

_MESSAGE_ROLES: dict[str, Role] = {"system": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
_SHAREGPT_ROLES: dict[str, Role] = {
    "human": "user",
    "gpt": "assistant",
    "system": "system",
    "user": "user",
    "assistant": "assistant",
}
_LISTED = 20  # problems shown before "... and N more"
_BOM = b"\xef\xbb\xbf"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_LIST = (list, tuple)
_KINDS: tuple[tuple[type | tuple[type, ...], str], ...] = (
    (bool, "a boolean"),
    (str, "a string"),
    ((int, float), "a number"),
    (_LIST, "a list"),
    (Mapping, "an object"),
)


@dataclass(frozen=True)
class Turn:
    """One message. `train` says whether its words are learned; only an assistant's can be."""

    role: Role
    content: str
    train: bool


@dataclass(frozen=True)
class Row:
    """One example. A `text` row keeps its text in `completion` and has no prompt; `line` counts from 1.

    `task` is the name of its task where a run has several.
    """

    kind: Literal["chat", "completion", "text"]
    turns: tuple[Turn, ...] = ()
    prompt: str = ""
    completion: str = ""
    references: tuple[str, ...] = ()
    file: str = ""
    line: int = 0
    task: str = ""

    @property
    def parts(self) -> tuple[str, ...]:
        """Every text of the row in order: the turns, or the prompt and the completion."""
        return tuple(turn.content for turn in self.turns) if self.kind == "chat" else (self.prompt, self.completion)

    @property
    def asked(self) -> tuple[str, ...]:
        """The part no assistant wrote: prompt, system, user and tool turns. Empty for a `text` row."""
        if self.kind == "chat":
            return tuple(turn.content for turn in self.turns if turn.role != "assistant")
        return (self.prompt,) if self.kind == "completion" else ()


@dataclass(frozen=True)
class Parsed:
    """The rows of one file, the shape they were written in, and the keys that were there but not read."""

    rows: tuple[Row, ...]
    shape: str
    extras: tuple[str, ...]


@dataclass(frozen=True)
class Shape:
    """A way to write a row: the keys and types that identify it, the keys it may have besides, how it is read."""

    name: str
    keys: Mapping[str, tuple[type, ...]]
    parse: Callable[[Mapping[str, Any]], Row]
    optional: tuple[str, ...] = ()

    def named_by(self, row: Mapping[str, Any]) -> bool:
        """Whether the row has this shape's keys, whatever their types."""
        return all(row.get(key) is not None for key in self.keys)

    def fits(self, row: Mapping[str, Any]) -> bool:
        """Whether the row has this shape's keys with this shape's types."""
        return all(isinstance(row.get(key), types) for key, types in self.keys.items())


class _BadRow(Exception):
    """What is wrong with one row; what is allowed."""


def _kind(value: object) -> str:
    fallback = "null" if value is None else f"a {type(value).__name__}"
    return next((name for types, name in _KINDS if isinstance(value, types)), fallback)


def _text(value: object, where: str, blank: str | None = None) -> str:
    """`value` as text; `blank` tells what to do where it has no words, None permits it."""
    if not isinstance(value, str):
        raise _BadRow(f"{where} is {_kind(value)}; it must be a string")
    if wrong := unwritable(value, where):
        raise _BadRow(wrong)
    if blank is not None and not value.strip():
        raise _BadRow(f"{where} is empty; {blank}")
    return value


def _content(value: object, where: str, blank: str | None) -> str:
    if not isinstance(value, _LIST):
        return _text(value, where, blank)
    texts = []
    for number, part in enumerate(value):
        if not isinstance(part, Mapping) or part.get("type") != "text":
            found = repr(part["type"]) if isinstance(part, Mapping) and "type" in part else _kind(part)
            raise _BadRow(f'{where}[{number}] is {found}; parts must be {{"type": "text", "text": ...}}')
        texts.append(_text(part.get("text"), f"{where}[{number}].text"))
    return _text("".join(texts), where, blank)


def _turns(value: object, where: str, role_key: str = "role", content_key: str = "content") -> tuple[Turn, ...]:
    """The turns of a list of messages, OpenAI's by default."""
    if not isinstance(value, _LIST):
        raise _BadRow(f"{where} is {_kind(value)}; it must be a list of messages")
    if not value:
        raise _BadRow(f"{where} is empty; it needs at least one message")
    roles = _MESSAGE_ROLES if role_key == "role" else _SHAREGPT_ROLES
    turns = []
    for number, message in enumerate(value):
        at = f"{where}[{number}]"
        if not isinstance(message, Mapping):
            raise _BadRow(f'{at} is {_kind(message)}; it must be {{"{role_key}": ..., "{content_key}": ...}}')
        for key in ("tool_calls", "function_call"):
            if message.get(key):
                raise _BadRow(f"{at} has {key}, which is not supported yet; write what is to be learned as content")
        given = message.get(role_key)
        if not isinstance(given, str) or given not in roles:
            raise _BadRow(f"{at} has {role_key} {given!r}; allowed are {', '.join(roles)}")
        role, weight = roles[given], message.get("weight")
        if weight is not None and weight not in (0, 1):
            raise _BadRow(f"{at} has weight {weight!r}; allowed are 0 and 1")
        blank = {"assistant": "an answer needs words", "user": "a user message needs words"}.get(role)
        content = _content(message.get(content_key), f"{at}.{content_key}", blank)
        turns.append(Turn(role, content, train=role == "assistant" and weight != 0))
    return tuple(turns)


def _chat(turns: tuple[Turn, ...], where: str) -> Row:
    if turns[-1].role != "assistant":
        raise _BadRow(f"{where} ends with {turns[-1].role}; the last message must be the assistant's")
    if not any(turn.role == "user" for turn in turns):
        raise _BadRow(f"{where} has no user message; the assistant's answer needs one before it")
    if not any(turn.train for turn in turns):
        raise _BadRow(f"{where} has weight 0 on every answer; at least one must be learned")
    return Row("chat", turns)


def _system(row: Mapping[str, Any]) -> tuple[Turn, ...]:
    text = row.get("system")
    return (Turn("system", _text(text, "system"), train=False),) if text not in (None, "") else ()


def _messages(row: Mapping[str, Any]) -> Row:
    for key in ("tools", "functions"):
        if row.get(key):
            raise _BadRow(f"{key} is not supported yet; remove the key, or write the tools into the system message")
    return _chat(_turns(row["messages"], "messages"), "messages")


def _prompt_completion(row: Mapping[str, Any]) -> Row:
    if any(isinstance(row[key], _LIST) for key in ("prompt", "completion")):
        raise _BadRow(
            f"prompt is {_kind(row['prompt'])} and completion is {_kind(row['completion'])}; "
            "both must be strings or both lists of messages"
        )
    prompt = _text(row["prompt"], "prompt", 'for text without a prompt write {"text": ...}')
    return Row("completion", prompt=prompt, completion=_text(row["completion"], "completion", "an answer needs words"))


def _prompt_completion_messages(row: Mapping[str, Any]) -> Row:
    given = tuple(replace(turn, train=False) for turn in _turns(row["prompt"], "prompt"))
    return _chat(given + _turns(row["completion"], "completion"), "prompt + completion")


def _alpaca(row: Mapping[str, Any]) -> Row:
    instruction = _text(row["instruction"], "instruction", "it is what the model is asked")
    given = "" if row.get("input") is None else _text(row["input"], "input")
    user = Turn("user", f"{instruction}\n\n{given}" if given.strip() else instruction, train=False)
    answer = Turn("assistant", _text(row["output"], "output", "an answer needs words"), train=True)
    return Row("chat", (*_system(row), user, answer))


def _sharegpt(row: Mapping[str, Any]) -> Row:
    return _chat(_system(row) + _turns(row["conversations"], "conversations", "from", "value"), "conversations")


def _plain(row: Mapping[str, Any]) -> Row:
    return Row("text", completion=_text(row["text"], "text", "it is what the model learns"))


# The first entry that fits wins. `text` is last: Alpaca's published files carry it as well.
SHAPES = (
    Shape("messages", {"messages": _LIST}, _messages, ("tools", "functions")),
    Shape("sharegpt", {"conversations": _LIST}, _sharegpt, ("system",)),
    Shape("prompt-completion", {"prompt": (str,), "completion": (str,)}, _prompt_completion),
    Shape("prompt-completion messages", {"prompt": _LIST, "completion": _LIST}, _prompt_completion_messages),
    Shape("alpaca", {"instruction": (str,), "output": (str,)}, _alpaca, ("input", "system")),
    Shape("text", {"text": (str,)}, _plain),
)
_TURN_KEYS = {"role", "content", "from", "value", "weight", "tool_calls", "function_call"}
_ALLOWED = "a row has one of " + " | ".join(dict.fromkeys(" + ".join(shape.keys) for shape in SHAPES))


def read_file(path: Path) -> Parsed:
    """All rows of a JSONL file.

    Raises: DataError with every bad row of the file, or when it cannot be opened, has no row or is a JSON array.
    """
    try:
        with path.open("rb") as handle:
            return parse_rows(enumerate(handle, start=1), str(path))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None


def parse_rows(lines: Iterable[tuple[int, bytes]], file: str) -> Parsed:
    """Rows of numbered JSONL lines; a byte order mark, CRLF and blank lines are accepted. Raises: as `read_file`."""
    return _collect(_written(lines, file), _decode, file)


def read_objects(path: Path, parse: Callable[[int, Mapping[str, Any]], T], shapes: str) -> list[T]:
    """What `parse` makes of each line's number and object, for files of other shapes than rows to learn.

    `parse` raises ValueError for a row it cannot use; `shapes` says what it can. Raises: as `read_file`.
    """
    found: list[T] = []
    problems: list[str] = []
    try:
        with path.open("rb") as handle:
            lines = _written(enumerate(handle, start=1), str(path))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None
    for number, line in lines:
        try:
            given = _decode(line)
            if not isinstance(given, Mapping):
                raise _BadRow(f"the row is {_kind(given)}; it must be an object, {shapes}")
            if wrong := unwritable(given):
                raise _BadRow(wrong)
            found.append(parse(number, given))
        except (_BadRow, ValueError) as bad:
            problems.append(f"{path}:{number}: {bad}")
    _refuse(problems, len(found), str(path))
    if not found:
        raise DataError(f"{path} has no rows; {shapes}, one JSON object a line")
    return found


def _written(lines: Iterable[tuple[int, bytes]], file: str) -> list[tuple[int, bytes]]:
    """The lines that hold something. Raises: DataError for a JSON array."""
    lines = list(lines)
    if lines and lines[0][1].startswith(_UTF16):
        raise DataError(f"{file} is UTF-16; save it as UTF-8")
    stripped = ((number, line.removeprefix(_BOM).rstrip(b"\r\n")) for number, line in lines)
    written = [(number, line) for number, line in stripped if line.strip()]
    if written and written[0][1].lstrip().startswith(b"[") and _is_array(b"\n".join(line for _, line in written)):
        source, target = shlex.quote(file), shlex.quote(str(Path(file).with_suffix(".rows.jsonl")))
        raise DataError(
            f'{file}: this is a JSON array; JSONL has one object a line. Convert it: python -c "import json, sys; '
            f'[print(json.dumps(row)) for row in json.load(sys.stdin.buffer)]" < {source} > {target}'
        )
    if len(written) > 1 and not any(line.lstrip().startswith((b"{", b"[", b'"')) for _, line in written):
        advice = 'write rows as {"text": "..."}, one a line, or learn the text as it stands with graft pretrain'
        raise DataError(f"{file}: this is text, not JSONL: no line of it is an object; {advice}")
    return written


def rows_from(objects: Sequence[Mapping[str, Any]], name: str = "data") -> Parsed:
    """Rows given in memory, numbered from 1 as lines of `name`. Raises: as `read_file`."""
    return _collect(enumerate(objects, start=1), lambda given: given, name)


def _collect(items: Iterable[tuple[int, T]], read: Callable[[T], object], file: str) -> Parsed:
    rows: list[Row] = []
    problems: list[str] = []
    extras: set[str] = set()
    shape: Shape | None = None
    for line, item in items:
        try:
            given = read(item)
            if not isinstance(given, Mapping):
                raise _BadRow(f"the row is {_kind(given)}; it must be an object, {_ALLOWED}")
            found = _detect(given, SHAPES if shape is None else (shape, *SHAPES))
            if shape is not None and found is not shape:
                raise _BadRow(f"looks like {found.name}, but the file is {shape.name}: one shape a file")
            row = replace(found.parse(given), references=_references(given), file=file, line=line)
        except _BadRow as bad:
            problems.append(f"{file}:{line}: {bad}")
            continue
        shape = found
        rows.append(row)
        extras |= _unread(given, found)
    _refuse(problems, len(rows), file)
    if shape is None:
        raise DataError(f"{file} has no rows; {_ALLOWED}, one JSON object a line")
    return Parsed(tuple(rows), shape.name, tuple(sorted(extras)))


def _refuse(problems: Sequence[str], good: int, file: str) -> None:
    if problems:
        more = [f"... and {len(problems) - _LISTED} more"] if len(problems) > _LISTED else []
        summary = f"{file}: {len(problems)} of {len(problems) + good} rows cannot be used"
        raise DataError(summary, [*problems[:_LISTED], *more])


def _detect(row: Mapping[str, Any], shapes: Sequence[Shape]) -> Shape:
    """The first of `shapes` whose keys and types the row has, else the first whose keys it has."""
    named = [shape for shape in shapes if shape.named_by(row)]
    if named:
        return next((shape for shape in named if shape.fits(row)), named[0])
    if "chosen" in row and "rejected" in row:
        raise _BadRow(f"looks like preferences (chosen, rejected), which supervised tuning does not read; {_ALLOWED}")
    keys = ", ".join(f"{key!r} (null)" if value is None else repr(key) for key, value in row.items())
    raise _BadRow(f"has {f'keys {keys}, which fit no shape' if keys else 'no keys'}; {_ALLOWED}")


def _references(row: Mapping[str, Any]) -> tuple[str, ...]:
    given = row.get("references")
    if given is None:
        return ()
    if not isinstance(given, _LIST):
        raise _BadRow(f"references is {_kind(given)}; it must be a list of strings, the other right answers")
    return tuple(_text(text, f"references[{n}]", "an answer needs words") for n, text in enumerate(given))


def _unread(row: Mapping[str, Any], shape: Shape) -> set[str]:
    known = {*shape.keys, *shape.optional, "references"}
    extras = {str(key) for key, value in row.items() if key not in known and value is not None}
    for key in shape.keys:
        if isinstance(row[key], _LIST):
            inner = {name for message in row[key] for name, value in message.items() if value is not None}
            extras |= {f"{key}[].{name}" for name in inner - _TURN_KEYS}
    return extras


def _decode(line: bytes) -> object:
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        raise _BadRow(
            f"byte {error.start + 1} (0x{line[error.start]:02x}) is not UTF-8; save the file as UTF-8"
        ) from None
    try:
        return json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        near = text[max(0, error.pos - 20) : error.pos + 20]
        raise _BadRow(
            f"invalid JSON at column {error.pos + 1}: {error.msg}, near {near!r}; a row is one JSON object on one line"
        ) from None
    except (ValueError, RecursionError) as error:
        raise _BadRow(f"invalid JSON: {error}; a row is one JSON object on one line") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise _BadRow(f"has the key {twice!r} twice; keep one")
    for key in found:
        _text(key, f"the key {key!r}")
    return found


def _is_array(content: bytes) -> bool:
    try:
        return isinstance(json.loads(content), list)
    except (ValueError, RecursionError):
        return False
