"""Whether an answer does what a request asked, decided by program.

A check is a small dict: its `kind` names a function of `CHECKS`, its other fields are that function's arguments. Values
match as whole words, whatever their case and markdown; one that ends in `*` matches every word that begins so. Code
that a model wrote is parsed, never run.
"""

from __future__ import annotations

import ast
import inspect
import re
import unicodedata
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from graftwood.errors import ConfigError, unknown

Check = Mapping[str, Any]

VERSION = 2  # changes whenever a verdict could; the tasks that are judged by checks have it as their own
_STRAIGHT = str.maketrans("‘’“”", "''\"\"")
_MARKDOWN = re.compile(r"[*`]+|(?<!\w)#+|(?<!\w)_+|_+(?!\w)")  # C# is a name
_NUMBERED = re.compile(r"^\W*(\d+)[.):](?!\d)\W*\w", re.MULTILINE)
_BULLET = re.compile(r"^\s*[-*•–]\s+\S", re.MULTILINE)
_MARKUP = re.compile(r"[{}<>|]")
# What a model says instead of an answer. An apology alone is none: a request may ask for one.
_REFUSAL = re.compile(
    r"\bas an? (\w+ ){0,2}(ai|chatbot|assistant|language model)\b"
    r"|\bi (cannot|can't|am unable to|am not able to|don't have the ability to)\b.{0,20}"
    r"\b(answer|assist|create|describe|do|explain|give|help|provide|say|tell|write)\b"
)


def plain(text: str) -> str:
    """Lower case, straight quotes, single spaces and no markdown."""
    text = unicodedata.normalize("NFKC", text).translate(_STRAIGHT).casefold()
    return " ".join(_MARKDOWN.sub(" ", text).split())


def _bare(text: str) -> str:
    """The words of `text` alone."""
    return " ".join(re.findall(r"[\w']+", plain(text)))


def _place(answer: str, value: str) -> int | None:
    """Where `value` first stands in a plain `answer`, as whole words."""
    word = plain(value)
    begin, end = r"(?<!\w)", "" if value.endswith("*") else r"(?!\w)"
    # 5 is not said by 2.5 nor by 5.5, but by 5.0.
    begin += r"(?<!\d\.)" if word[:1].isdecimal() else ""
    end += r"(?!\.\d*[1-9])" if end and word[-1:].isdecimal() else ""
    found = re.search(f"{begin}{re.escape(word)}{end}", answer)
    return found.start() if found else None


def _places(answer: str, values: Sequence[str]) -> list[int]:
    text = plain(answer)
    return [place for value in values if (place := _place(text, value)) is not None]


def contains_any(answer: str, values: Sequence[str]) -> bool:
    """One of `values` occurs."""
    return bool(_places(answer, values))


def contains_all(answer: str, values: Sequence[str]) -> bool:
    """Each of `values` occurs."""
    return len(_places(answer, values)) == len(values)


def not_contains(answer: str, values: Sequence[str]) -> bool:
    """None of `values` occurs."""
    return not _places(answer, values)


def count_of(answer: str, n: int, values: Sequence[str]) -> bool:
    """At least `n` different ones of `values` occur."""
    return len(set(_places(answer, values))) >= n


def first_of(answer: str, values: Sequence[str], against: Sequence[str]) -> bool:
    """One of `values` occurs, and before any of `against`."""
    right, wrong = _places(answer, values), _places(answer, against)
    return bool(right) and (not wrong or min(right) < min(wrong))


def says(answer: str, text: str) -> bool:
    """`text` occurs word for word; case and punctuation do not matter."""
    return f" {_bare(text)} " in f" {_bare(answer)} "


def starts_with_any(answer: str, values: Sequence[str]) -> bool:
    """The first word, or words, are one of `values`."""
    text = plain(answer).lstrip("\"'([ ")
    return any(_place(text, value) == 0 for value in values)


def matches(answer: str, pattern: str) -> bool:
    """The regular expression `pattern` is found in the answer as it was written."""
    return re.search(pattern, answer) is not None


def max_words(answer: str, n: int) -> bool:
    """At most `n` words."""
    return len(re.findall(r"[\w'-]+", plain(answer))) <= n


def prose(answer: str, n: int) -> bool:
    """Running text of at least `n` different words: no record, no markup, no word said over and over."""
    return not _MARKUP.search(answer) and len(set(re.findall(r"[^\W\d_]+", plain(answer)))) >= n


def numbered_list(answer: str, n: int) -> bool:
    """Lines numbered 1, 2, ... up to at least `n`."""
    return [int(number) for number in _NUMBERED.findall(answer)][:n] == list(range(1, n + 1))


def bullets(answer: str, n: int) -> bool:
    """At least `n` lines that begin with a bullet."""
    return len(_BULLET.findall(answer)) >= n


def comma_list(answer: str, n: int) -> bool:
    """A line of at least `n` parts with commas between them."""
    return any(sum(bool(part.strip()) for part in line.split(",")) >= n for line in answer.splitlines())


def python_defines(answer: str, name: str) -> bool:
    """Valid Python for a function `name` that returns or calls something; lines cut off at the end are forgiven."""
    found = re.search(rf"\bdef {re.escape(name)}\s*\(", answer)
    lines = answer[found.start() :].partition("```")[0].splitlines() if found else []
    for end in range(len(lines), 0, -1):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", SyntaxWarning)
                tree = ast.parse("\n".join(lines[:end]))
        except (SyntaxError, ValueError):
            continue
        return any(isinstance(node, ast.Return | ast.Call) for node in ast.walk(tree.body[0]))
    return False


CHECKS: Mapping[str, Callable[..., bool]] = {
    check.__name__: check
    for check in (
        contains_any,
        contains_all,
        not_contains,
        count_of,
        first_of,
        says,
        starts_with_any,
        matches,
        max_words,
        prose,
        numbered_list,
        bullets,
        comma_list,
        python_defines,
    )
}


def problems(checks: Sequence[Check]) -> list[str]:
    """What is wrong with `checks` themselves, one line each."""
    return [problem for check in checks for problem in _problems(check)] if checks else ["no check at all"]


def _problems(check: Check) -> list[str]:
    kind = str(check.get("kind"))
    if kind not in CHECKS:
        return [unknown("check", kind, CHECKS)]
    needed = sorted(set(inspect.signature(CHECKS[kind]).parameters) - {"answer"})
    given = sorted(set(check) - {"kind"})
    if needed != given:
        return [f"check {kind!r} takes {', '.join(needed)}, got {', '.join(given) or 'nothing'}."]
    faults = {name: fault for name in given if (fault := _fault(name, check[name]))}
    if kind == "count_of" and not faults and check["n"] > len(set(check["values"])):
        faults = {"n": "is more than there are values"}
    return [f"check {kind!r}: {name} = {check[name]!r} {fault}." for name, fault in faults.items()]


def _fault(field: str, value: object) -> str | None:
    """Why `value` cannot be the field of a check."""
    if field == "n":
        return None if type(value) is int and value > 0 else "must be a whole number above 0"
    if field in ("values", "against"):
        words = isinstance(value, list | tuple) and all(isinstance(word, str) and plain(word) for word in value)
        return None if words and value else "must be a list of words"
    if not isinstance(value, str) or not value:
        return "must be text"
    if field == "text" and not _bare(value):
        return "must have a word in it"
    if field != "pattern":
        return None
    try:
        re.compile(value)
    except re.error as error:
        return f"is no regular expression: {error}"
    return None


def followed(checks: Sequence[Check], answer: str) -> bool:
    """Whether `answer` says something, is no refusal and passes every check.

    Raises: ConfigError for a check that does not exist or lacks a field.
    """
    if wrong := problems(checks):
        raise ConfigError(wrong[0])
    if not answer.strip() or _REFUSAL.search(plain(answer)):
        return False
    return all(
        CHECKS[check["kind"]](answer, **{field: value for field, value in check.items() if field != "kind"})
        for check in checks
    )
