"""A strict reader of ABC tunes: every character must be accounted for by the grammar, or the tune is not valid.

What it knows is the part of the standard (abcnotation.com, version 2.1) that collections of tunes use: the header's
fields in their order, notes, rests, chords, chord names, tuplets, ties, slurs, grace notes, decorations, bars, repeats,
endings, fields within the tune, continued lines and comments.
"""

from __future__ import annotations

import re

_LENGTH = r"(?:\d+(?:/\d*)?|/+\d*)?"
_NOTE = rf"(?:\^\^|\^|__|_|=)?[A-Ga-g](?:,+|'+)?{_LENGTH}"
_CHORD = rf"\[(?:{_NOTE}-?)+\]{_LENGTH}"
_REST = rf"[zx]{_LENGTH}"
_SOUND = rf"(?:{_NOTE}|{_CHORD}|{_REST})"
_TOKENS = (
    ("comment", r"%.*"),
    ("field", r"\[[A-Z]:[^\]\n]*\]"),
    ("words", r'"[^"\n]*"'),
    ("bar", r":*\|+\]?:*|\[\||::+|\|\]"),
    ("ending", r"\[?\d(?:[,-]\d)*(?=[\s\"\[A-Ga-g^_=z(|])"),
    ("ending", r"\[ ?\d"),
    ("tuplet", r"\((?P<count>[2-9])(?::[0-9]?){0,2}"),
    ("grace", rf"\{{/?(?:{_NOTE} ?)+\}}"),
    ("decoration", r"![A-Za-z0-9<>().+ ]*!|[.~uvTHLMOPS](?=[\^_=A-Ga-g\[\"])"),
    ("sound", _SOUND),
    ("tie", r"-"),
    ("broken", r"<{1,3}|>{1,3}"),
    ("open", r"\("),
    ("close", r"\)"),
    ("space", r"[ \t`]+"),
)
_LINE = [(name, re.compile(pattern)) for name, pattern in _TOKENS]
_FIELD = re.compile(r"([A-Za-z]):\s*(.*)")
_KEY = re.compile(r"[A-G][b#]?\s*(?:m|min|minor|maj|major|mix|dor|phr|lyd|aeo|ion|loc)?[a-z]*", re.IGNORECASE)
_METER = re.compile(r"C\|?|\d+(?:\+\d+)*/\d+")
_UNIT = re.compile(r"1/\d+")
_IN_TUNE = set("KMLPQTNRwWVYS")


class NotAbcError(Exception):
    """What is wrong with a tune, in a few words."""


def check(tune: str) -> None:
    """Raises: NotAbcError at the first thing that is not ABC."""
    lines = [line.rstrip() for line in tune.strip("\n").split("\n")]
    if any(not line for line in lines):
        raise NotAbcError("an empty line within the tune")
    body = _header(lines)
    sounds = bars = 0
    last = ""
    for line in body:
        field = _FIELD.fullmatch(line)
        if field and field[1] in _IN_TUNE:
            _value(field[1], field[2])
        elif not line.startswith("%"):
            names = _music(line.removesuffix("\\"))
            sounds += names.count("sound")
            bars += names.count("bar")
            last = next((name for name in reversed(names) if name not in ("space", "comment", "words")), last)
    if not sounds or not bars:
        raise NotAbcError("no music")
    if last not in ("bar", "sound", "close"):
        raise NotAbcError(f"ends with {last or 'nothing'}")


def _header(lines: list[str]) -> list[str]:
    """The tune's lines after the header: a number first, a title, meter, and last the key."""
    seen = ""
    for place, line in enumerate(lines):
        field = _FIELD.fullmatch(line)
        if line.startswith("%"):
            continue
        if field is None:
            raise NotAbcError(f"no field in the header: {line[:20]!r}")
        _value(field[1], field[2])
        seen += field[1]
        if field[1] == "K":
            if seen[0] != "X" or "T" not in seen or "M" not in seen:
                raise NotAbcError(f"the header's fields are {seen}")
            return lines[place + 1 :]
    raise NotAbcError("the header has no key")


def _value(name: str, value: str) -> None:
    rule = {"X": re.compile(r"\d+"), "K": _KEY, "M": _METER, "L": _UNIT}.get(name)
    if rule is not None and not rule.fullmatch(value.split("%")[0].strip()):
        raise NotAbcError(f"{name}: {value!r}")


def _music(line: str) -> list[str]:
    """Names of a line's tokens."""
    names: list[str] = []
    at, owed = 0, 0
    while at < len(line):
        matches = ((name, pattern.match(line, at)) for name, pattern in _LINE)
        name, found = next(((name, found) for name, found in matches if found), ("", None))
        if found is None:
            raise NotAbcError(f"{line[at : at + 10]!r} is no music")
        if name == "tuplet":
            owed = int(found["count"])
        elif name == "sound":
            owed = max(0, owed - 1)
        elif name == "bar" and owed:
            raise NotAbcError("a bar within a tuplet")
        if name == "tie" and next((n for n in reversed(names) if n != "space"), "") != "sound":
            raise NotAbcError("a tie without a note before it")
        names.append(name)
        at = found.end()
    return names


def is_valid(tune: str) -> bool:
    """Whether the tune is ABC."""
    try:
        check(tune)
    except NotAbcError:
        return False
    return True
