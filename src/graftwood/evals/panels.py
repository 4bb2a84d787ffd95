"""The four panels of the card picture, each drawn into a box of the canvas."""

from __future__ import annotations

from dataclasses import dataclass

from graftwood.evals import budget_words, words
from graftwood.evals.card import Card, Choice, Chosen, Compared, Gained, Kept, Memory, Skill
from graftwood.evals.lights import COLOURS, LEVELS, Light, lights
from graftwood.evals.svgkit import FAINT, HAIR, INK, PAPER, SOFT, TRACK, Canvas, Scale, extent, ticks

MEASURES, SKILLS, SETTINGS = 3, 9, 5
MOVED = {"better": "#15803d", "worse": "#b91c1c", "unclear": INK}


@dataclass(frozen=True)
class Box:
    """A rectangle of the canvas. Units: pixels."""

    x: float
    y: float
    width: float
    height: float

    @property
    def right(self) -> float:
        """The right edge."""
        return self.x + self.width

    @property
    def bottom(self) -> float:
        """The lower edge."""
        return self.y + self.height


def heading(canvas: Canvas, box: Box, name: str, aside: str, accent: str) -> None:
    """The rule, the name and the remark at the right that open a panel."""
    canvas.rect(box.x, box.y, box.width, 3, accent)
    taken = canvas.text(box.x, box.y + 26, name, size=13, fill=accent, bold=True)
    canvas.text(box.right, box.y + 26, aside, size=12, fill=SOFT, anchor="end", room=box.width - taken - 24)


def big(canvas: Canvas, box: Box, shown: str, above: str, below: str, accent: str) -> None:
    """The number people remember, with two lines beside it."""
    taken = canvas.text(box.x, box.y + 74, shown, size=42, fill=accent, bold=True, room=box.width * 0.5)
    x = box.x + taken + 16
    canvas.text(x, box.y + 56, above, size=14, bold=True, room=box.right - x)
    canvas.text(x, box.y + 75, below, size=12, fill=SOFT, room=box.right - x)


def gained(canvas: Canvas, box: Box, given: Gained) -> None:
    """The headline measure, then every measure as two bars with whiskers."""
    accent = words.ACCENTS["GAINED"]
    heading(canvas, box, "GAINED", f"on {words.plural(given.rows, 'row')} it was not trained on", accent)
    if not given.measures:
        big(canvas, box, "—", "no measure", "nothing was measured on these rows", accent)
        return
    first = given.measures[0]
    if first.tuned.value is None:
        big(canvas, box, "—", words.one_line(first.title), words.missing(first.tuned), accent)
    else:
        was = "" if first.base.value is None else f", from {words.number(first.base.value, first.unit)}"
        shown = words.number(first.tuned.value, first.unit)
        big(canvas, box, shown, words.one_line(first.title) + was, words.change(first), accent)
    y = box.y + 110
    for item in given.measures[:MEASURES]:
        _bars(canvas, Box(box.x, y, box.width, 44), item, accent)
        y += 51
    if len(given.measures) > MEASURES:
        more = words.plural(len(given.measures) - MEASURES, "more measure")
        canvas.text(box.right, box.bottom + 7, f"{more} in the full report", size=11, fill=SOFT, anchor="end")


def _bars(canvas: Canvas, box: Box, measure: Compared, accent: str) -> None:
    pair = words.before_after(measure)
    taken = canvas.text(box.right, box.y, pair, size=12, anchor="end", room=box.width * 0.6)
    canvas.text(box.x, box.y, words.titled(measure), size=12, fill=SOFT, room=box.width - taken - 16)
    known = [edge for side in (measure.base, measure.tuned) for edge in (side.value, side.low, side.high)]
    values = [edge for edge in known if edge is not None]
    if not values:
        return
    share = measure.unit == "share" and all(0 <= edge <= 1 for edge in values)
    scale = Scale(0, 1, box.x, box.right) if share else Scale.over(values, box.x, box.right, zero=True)
    for side, fill, y in ((measure.base, FAINT, box.y + 9), (measure.tuned, accent, box.y + 20)):
        canvas.rect(box.x, y, box.width, 8, TRACK, 2)
        if side.value is not None:
            start, end = sorted((scale(max(scale.low, 0.0)), scale(side.value)))
            canvas.rect(start, y, end - start, 8, fill, 2)
        if side.low is not None and side.high is not None:
            canvas.whisker(scale(side.low), scale(side.high), y + 4, INK)


def kept(canvas: Canvas, box: Box, given: Kept, choice: Choice | None = None) -> None:
    """The kept share, the drift, and each skill before and after; under a budget whether it held."""
    accent = words.ACCENTS["KEPT"]
    aside = "the same questions before and after" if choice is None else budget_words.budget_short(choice)
    heading(canvas, box, "KEPT", aside, accent)
    shown, behind = words.kept_share(given)
    big(canvas, box, shown, "of the base's skills", behind, accent)
    facts = (words.estimate(given.drift, "nats", "a token"), words.estimate(given.same_next_word, "share"))
    for place, (name, fact) in enumerate(zip(("drift from the base", "same next word"), facts, strict=True)):
        canvas.text(box.x, box.y + 108 + 20 * place, name, size=12, fill=SOFT)
        canvas.text(box.x + 150, box.y + 108 + 20 * place, fact, size=12, room=box.width - 150)
    skills(canvas, Box(box.x, box.y + 152, box.width, box.height - 178), given.skills, accent)
    fallen = words.worst(given)
    if fallen is not None:
        canvas.text(box.x, box.bottom, fallen, size=12, fill=SOFT, room=box.width)


def skills(canvas: Canvas, box: Box, given: tuple[Skill, ...], accent: str) -> None:
    """Each skill as a hollow dot (base), a full dot (tuned) and the interval of the change around the latter."""
    if not given:
        canvas.text(box.x, box.y + 24, "no skill of the base was measured", size=12, fill=SOFT)
        return
    shown = sorted(given, key=lambda skill: not skill.counted)[:SKILLS]
    values = [side.value for skill in shown for side in (skill.measure.base, skill.measure.tuned)]
    known = [value for value in values if value is not None]
    low = max(0.0, min(known, default=0.0) - 0.06)
    scale = Scale(low, min(1.0, max(*known, low + 0.1, 0.0) + 0.06), box.x + 184, box.x + 384)
    step = min(40.0, (box.height - 16) / len(shown))
    foot = box.y + 12 + step * len(shown)
    _key(canvas, box, accent)
    for tick in ticks(scale.low, scale.high, 4) if known else ():
        canvas.line(scale(tick), box.y + 8, scale(tick), foot, HAIR)
        canvas.text(scale(tick), box.y + 2, f"{tick * 100:.0f}%", size=10, fill=SOFT, anchor="middle")
    for place, skill in enumerate(shown):
        _dumbbell(canvas, Box(box.x, box.y + 12 + step * place, box.width, step), skill, scale, accent)
    if len(given) > SKILLS:
        more = f"{len(given) - SKILLS} more in the full report"
        canvas.text(box.right, box.y + 2, more, size=10, fill=SOFT, anchor="end", room=144)


def _key(canvas: Canvas, box: Box, accent: str) -> None:
    canvas.dot(box.x + 4, box.y - 2, 3.5, PAPER, SOFT)
    x = box.x + 12 + canvas.text(box.x + 12, box.y + 2, "base", size=10, fill=SOFT) + 12
    canvas.dot(x, box.y - 2, 4, accent)
    x += 8 + canvas.text(x + 8, box.y + 2, "tuned", size=10, fill=SOFT) + 8
    canvas.rect(x, box.y - 6, 20, 8, accent, 4, 0.22)
    canvas.text(x + 24, box.y + 2, "95% CI", size=10, fill=SOFT)


def _dumbbell(canvas: Canvas, row: Box, skill: Skill, scale: Scale, accent: str) -> None:
    measure, middle = skill.measure, row.y + row.height / 2
    ink, colour = (INK, accent) if skill.counted else (SOFT, FAINT)
    canvas.text(row.x, middle + 4, words.one_line(measure.title), size=12, fill=ink, room=160)
    base, tuned, moved = measure.base.value, measure.tuned.value, measure.change
    if base is None or tuned is None or moved.value is None:
        reason = words.missing(measure.tuned if tuned is None else measure.base if base is None else moved)
        canvas.rect(scale.start - 4, middle - 9, row.right - scale.start + 4, 18, PAPER)
        canvas.text(scale.start, middle + 4, reason, size=11, fill=SOFT, room=row.right - scale.start)
        return
    if moved.low is not None and moved.high is not None:
        left, right = scale(base + moved.low), scale(base + moved.high)
        canvas.rect(left, middle - 5, right - left, 10, colour, 5, 0.22)
    canvas.line(scale(base), middle, scale(tuned), middle, colour, 2)
    canvas.dot(scale(base), middle, 4, PAPER, SOFT if skill.counted else FAINT)
    canvas.dot(scale(tuned), middle, 4.5, colour)
    shift = words.signed(moved.value, measure.unit)
    moved_ink = MOVED[words.direction(measure)] if skill.counted else SOFT
    canvas.text(row.x + 434, middle + 4, shift, size=12, fill=moved_ink, anchor="end", bold=skill.counted)
    aside = words.flips(skill) if skill.counted else "not counted"
    canvas.text(row.right, middle + 4, aside, size=10, fill=SOFT, anchor="end", room=96)


def memory(canvas: Canvas, box: Box, given: Memory) -> None:
    """The verdict and the three lights."""
    heading(canvas, box, "MEMORY", words.MEANING[given.verdict], words.ACCENTS["MEMORY"])
    canvas.dot(box.x + 9, box.y + 55, 9, COLOURS[given.verdict])
    canvas.text(box.x + 28, box.y + 64, given.verdict, size=26, bold=True)
    width = (box.width - 48) / 3
    for place, light in enumerate(lights(given)):
        _light(canvas, Box(box.x + place * (width + 24), box.y + 96, width, box.height - 96), light)


def _light(canvas: Canvas, box: Box, light: Light) -> None:
    canvas.dot(box.x + 5, box.y - 4, 5, COLOURS[light.level])
    taken = 16 + canvas.text(box.x + 16, box.y, light.name, size=12, fill=SOFT)
    canvas.text(box.right, box.y, light.shown, size=14, anchor="end", bold=True, room=box.width - taken - 6)
    part = box.width / len(LEVELS)
    for place, level in enumerate(LEVELS):
        fill = FAINT if light.position is None else COLOURS[level]
        canvas.rect(box.x + place * part, box.y + 14, part - 2, 6, fill, 1, 0.35)
    if light.position is not None:
        x = box.x + light.position * (box.width - 2)
        canvas.rect(min(max(x - 2, box.x), box.right - 6), box.y + 10, 4, 14, INK, 2)
    canvas.paragraph(box.x, box.y + 42, light.meaning, box.width, size=11)


def chosen(canvas: Canvas, box: Box, given: Chosen) -> None:
    """The technique, its settings with their reasons, and why training stopped."""
    heading(canvas, box, "CHOSEN", words.trained(given), words.ACCENTS["CHOSEN"])
    canvas.text(box.x, box.y + 62, words.one_line(given.technique), size=26, bold=True, room=box.width)
    y = box.y + 92
    rows = words.chosen_rows(given)
    names, values = (min(max((extent(row[at], 12, bold=at > 0) for row in rows), default=0), 120) for at in (0, 1))
    value_x, reason_x = box.x + names + 16, box.x + names + values + 32
    for name, value, reason in rows[:SETTINGS]:
        canvas.text(box.x, y, name, size=12, fill=SOFT, room=names)
        canvas.text(value_x, y, value, size=12, bold=True, room=values)
        canvas.text(reason_x, y, reason, size=12, fill=SOFT, room=box.right - reason_x)
        y += 22
    if len(rows) > SETTINGS:
        more = words.plural(len(rows) - SETTINGS, "more setting")
        canvas.text(box.x, y, f"{more} in the full report", size=11, fill=SOFT)
    canvas.paragraph(box.x, box.bottom - 17, words.stopped(given), box.width, fill=INK)


def header(canvas: Canvas, card: Card, left: float, right: float) -> float:
    """What was tuned on what, when and how, with the first warnings; returns where the panels may begin."""
    canvas.text(right, 52, "graftwood", size=17, fill=SOFT, anchor="end", bold=True)
    canvas.text(left, 54, words.title_line(card), size=25, bold=True, room=right - left - 140)
    about = f"{words.created(card)}  ·  {words.one_line(card.chosen.technique)}  ·  {words.rows_line(card)}"
    canvas.text(left, 80, about, size=13, fill=SOFT, room=right - left)
    y = 104.0
    for place, warning in enumerate(card.warnings[:2]):
        more = f" (and {len(card.warnings) - 2} more)" if place == 1 and len(card.warnings) > 2 else ""
        canvas.text(left, y, f"Warning: {words.one_line(warning)}{more}", size=12, fill="#b45309", room=right - left)
        y += 19
    return y
