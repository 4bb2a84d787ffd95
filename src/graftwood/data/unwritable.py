"""Letters that a JSON text can spell and no tokenizer can read: NUL, and halves of a surrogate pair."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_UNWRITABLE = re.compile("[\x00\ud800-\udfff]")


def unwritable(value: Any, where: str = "") -> str | None:
    """What is wrong with the first text that holds such a letter, in lists and objects too; None where all is well.

    `where` is the name of the value.
    """
    left = [(where, value)]
    while left:
        name, one = left.pop()
        if isinstance(one, str) and (found := _UNWRITABLE.search(one)):
            what = "a NUL" if found[0] == "\0" else "a lone surrogate"
            return f"{name} has {what} (U+{ord(found[0]):04X}) at character {found.start() + 1}; remove it"
        if isinstance(one, Mapping):
            left += [(f"{name}.{key}" if name else str(key), part) for key, part in reversed(list(one.items()))]
        elif isinstance(one, list | tuple):
            left += [(f"{name}[{number}]", part) for number, part in reversed(list(enumerate(one)))]
    return None
