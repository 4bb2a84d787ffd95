"""A few strokes of SVG: measured text that never leaves its room, shapes, scales and their ticks.

Widths are those of DejaVu Sans, the widest face of the font stack, so a text that fits here fits in every other face.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from typing import Literal

from graftwood.evals.words import clean

INK, SOFT, FAINT, HAIR, TRACK, PAPER = "#0f172a", "#64748b", "#cbd5e1", "#e2e8f0", "#f1f5f9", "#ffffff"
FONTS = "Inter, 'Segoe UI', 'Helvetica Neue', 'DejaVu Sans', Verdana, Arial, sans-serif"
Anchor = Literal["start", "middle", "end"]

# Advance widths of printable ASCII from the space on, in hundredths of the font size.
_ADVANCE = (
    *(32, 41, 46, 84, 64, 96, 78, 28, 40, 40, 50, 84, 32, 37, 32, 34, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 34, 34),
    *(84, 84, 84, 54, 100, 69, 69, 70, 78, 64, 58, 78, 76, 30, 30, 66, 56, 87, 75, 79, 61, 79, 70, 64, 62, 74, 69, 99),
    *(69, 62, 69, 40, 34, 40, 84, 50, 50, 62, 64, 55, 64, 62, 36, 64, 64, 28, 28, 58, 28, 98, 64, 62, 64, 64, 42, 53),
    *(40, 64, 60, 82, 60, 60, 53, 64, 34, 64, 84),
)
_BOLD = 1.15


def advance(char: str) -> float:
    """The width of one character in font sizes; generous where the face is unknown."""
    code = ord(char)
    if 32 <= code < 127:
        return _ADVANCE[code - 32] / 100
    if unicodedata.combining(char):
        return 0.0
    plain = unicodedata.normalize("NFD", char)[0]
    if plain != char and 32 <= ord(plain) < 127:
        return _ADVANCE[ord(plain) - 32] / 100
    return 0.4 if char in "·’" else 1.3 if code >= 0x1F000 else 1.1


def extent(text: str, size: float, *, bold: bool = False) -> float:
    """The width of `text` in pixels."""
    return sum(map(advance, text)) * size * (_BOLD if bold else 1.0)


def shorten(text: str, room: float, size: float, *, bold: bool = False) -> str:
    """`text`, cut with an ellipsis where it is wider than `room`."""
    if extent(text, size, bold=bold) <= room:
        return text
    width = extent("…", size, bold=bold)
    for end, char in enumerate(text):
        width += extent(char, size, bold=bold)
        if width > room:
            return text[:end].rstrip(" ,;:(") + "…"
    return text


def wrap(text: str, room: float, size: float, most: int, *, bold: bool = False) -> list[str]:
    """`text` in at most `most` lines of `room`, broken at spaces; what does not fit ends in an ellipsis."""
    words = text.split()
    lines: list[str] = []
    while words and len(lines) < most - 1:
        taken = 1
        while taken < len(words) and extent(" ".join(words[: taken + 1]), size, bold=bold) <= room:
            taken += 1
        lines.append(shorten(" ".join(words[:taken]), room, size, bold=bold))
        words = words[taken:]
    return [*lines, shorten(" ".join(words), room, size, bold=bold)] if words else lines


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round values within `low`..`high`, roughly `about` of them."""
    rough = (high - low) / max(about, 1)
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(magnitude * factor for factor in (1, 2, 5, 10) if magnitude * factor >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def labels(marks: list[float]) -> list[str]:
    """The marks of one axis in the same few digits."""
    for digits in range(5):
        shown = [f"{mark:.{digits}f}" for mark in marks]
        if all(math.isclose(float(text), mark, abs_tol=1e-9) for text, mark in zip(shown, marks, strict=True)):
            return shown if max(map(len, shown)) <= 6 else [f"{mark:.4g}" for mark in marks]
    return [f"{mark:.4g}" for mark in marks]


@dataclass(frozen=True)
class Scale:
    """A straight map from `low`..`high` to the pixels `start`..`end`; values outside stop at the edge."""

    low: float
    high: float
    start: float
    end: float

    @classmethod
    def over(cls, values: Iterable[float], start: float, end: float, *, zero: bool = False) -> Scale:
        """The scale that holds every value with a little air, and zero where asked."""
        held = [*values, *([0.0] if zero else [])]
        low, high = min(held), max(held)
        air = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
        return cls(low if zero and low == 0 else low - air, high + air, start, end)

    def __call__(self, value: float) -> float:
        part = (value - self.low) / (self.high - self.low)
        return self.start + min(max(part, 0.0), 1.0) * (self.end - self.start)


class Canvas:
    """An SVG picture under construction. Units: pixels, y downwards; text sits on its baseline."""

    def __init__(self, width: int, height: int, label: str) -> None:
        self.width, self.height, self.label = width, height, label
        self.parts: list[str] = []

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        size: float = 13,
        fill: str = INK,
        anchor: Anchor = "start",
        bold: bool = False,
        room: float | None = None,
    ) -> float:
        """Write one line, shortened to `room`, and return its width."""
        shown = clean(text).replace("\n", " ")
        if room is not None:
            shown = shorten(shown, room, size, bold=bold)
        weight = ' font-weight="700"' if bold else ""
        place = "" if anchor == "start" else f' text-anchor="{anchor}"'
        head = f'<text x="{_n(x)}" y="{_n(y)}" font-size="{_n(size)}" fill="{fill}"{weight}{place}>'
        self.parts.append(f"{head}{escape(shown)}</text>")
        return extent(shown, size, bold=bold)

    def paragraph(
        self, x: float, y: float, text: str, room: float, *, most: int = 2, size: float = 12, fill: str = SOFT
    ) -> float:
        """Write a text over at most `most` lines and return the baseline after the last."""
        for line in wrap(clean(text), room, size, most):
            self.text(x, y, line, size=size, fill=fill)
            y += size * 1.42
        return y

    def line(
        self, x1: float, y1: float, x2: float, y2: float, stroke: str = HAIR, width: float = 1, dash: str = ""
    ) -> None:
        """A straight stroke."""
        dashes = f' stroke-dasharray="{dash}"' if dash else ""
        self.parts.append(
            f'<line x1="{_n(x1)}" y1="{_n(y1)}" x2="{_n(x2)}" y2="{_n(y2)}" stroke="{stroke}" '
            f'stroke-width="{_n(width)}"{dashes}/>'
        )

    def rect(
        self, x: float, y: float, width: float, height: float, fill: str, radius: float = 0, opacity: float = 1
    ) -> None:
        """A filled rectangle."""
        clear = f' fill-opacity="{_n(opacity)}"' if opacity < 1 else ""
        self.parts.append(
            f'<rect x="{_n(x)}" y="{_n(y)}" width="{_n(max(width, 0))}" height="{_n(height)}" rx="{_n(radius)}" '
            f'fill="{fill}"{clear}/>'
        )

    def dot(self, x: float, y: float, radius: float, fill: str, stroke: str = "none", width: float = 1.5) -> None:
        """A circle."""
        self.parts.append(
            f'<circle cx="{_n(x)}" cy="{_n(y)}" r="{_n(radius)}" fill="{fill}" stroke="{stroke}" '
            f'stroke-width="{_n(width)}"/>'
        )

    def path(self, points: list[tuple[float, float]], stroke: str, width: float = 2, dash: str = "") -> None:
        """An open line through `points`."""
        if len(points) < 2:
            return
        dashes = f' stroke-dasharray="{dash}"' if dash else ""
        route = "L".join(f"{_n(x)} {_n(y)}" for x, y in points)
        self.parts.append(
            f'<path d="M{route}" fill="none" stroke="{stroke}" stroke-width="{_n(width)}" '
            f'stroke-linejoin="round" stroke-linecap="round"{dashes}/>'
        )

    def whisker(self, x1: float, x2: float, y: float, stroke: str, half: float = 4) -> None:
        """A horizontal interval with an end mark on each side."""
        self.line(x1, y, x2, y, stroke, 1.5)
        for x in (x1, x2):
            self.line(x, y - half, x, y + half, stroke, 1.5)

    def svg(self) -> str:
        """The finished picture, on paper."""
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" '
            f'width="{self.width}" height="{self.height}" font-family="{FONTS}" role="img" '
            f'aria-label="{escape(clean(self.label))}">'
        )
        paper = f'<rect width="{self.width}" height="{self.height}" fill="{PAPER}"/>'
        return "\n".join((head, paper, *self.parts, "</svg>", ""))


def _n(value: float) -> str:
    text = f"{value:.2f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
