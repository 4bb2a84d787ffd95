"""Ids to text as they come: whole characters only, and nothing that may still turn out to be a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from graftwood.data.tokenizers.bpe import BPETokenizer

_WINDOW, _CONTEXT = 64, 8
_LONGEST = 4  # bytes of a character, and so the most tokens it can take
_BROKEN = "\ufffd"


class TextStream:
    """One row's text, token by token. `stopped` once a stop string appeared; the text then ends before it."""

    def __init__(self, tokenizer: BPETokenizer, stop: Sequence[str] = ()) -> None:
        self.stopped = False
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._ids: list[int] = []  # the last ones: enough to decode what is to come
        self._given = 0  # characters of their text that went on to `_released`
        self._held = ""

    def push(self, index: int) -> str:
        """The text that is certain after one more token, beyond what was given before."""
        self._ids.append(index)
        text = self._decoded()
        # Bytes without their rest decode to U+FFFD; they may be the start of a character.
        whole = text.rstrip(_BROKEN)
        piece = whole[self._given :]
        self._given = max(self._given, len(whole))
        if len(self._ids) > _WINDOW and whole == text:
            self._shorten(text)
        return self._released(piece)

    def _shorten(self, text: str) -> None:
        """Keep the last ids alone, from one that a character begins with.

        Where tokens are single bytes, a run of them that begins within a character decodes to U+FFFD as a whole, what
        is still to come of it too.
        """
        for size in range(_CONTEXT, _CONTEXT + _LONGEST):
            kept = self._tokenizer.decode(self._ids[-size:], skip_specials=True)
            if text.endswith(kept):
                self._ids, self._given = self._ids[-size:], len(kept)
                return

    def end(self) -> str:
        """What was held back, when no token follows."""
        if self.stopped:
            return ""
        rest = self._released(self._decoded()[self._given :])
        if not self.stopped:
            rest, self._held = rest + self._held, ""
        return rest

    def _decoded(self) -> str:
        return self._tokenizer.decode(self._ids, skip_specials=True)

    def _released(self, piece: str) -> str:
        text = self._held + piece
        first = min((place for stop in self._stop if (place := text.find(stop)) >= 0), default=None)
        if first is not None:
            self.stopped, self._held = True, ""
            return text[:first]
        keep = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` may be the beginning of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
