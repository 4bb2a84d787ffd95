"""Where a number of the report card becomes text: every rendering takes its sentences and formats from here."""

from __future__ import annotations

import re
from typing import Literal

from graftwood.evals.card import (
    Card,
    Cell,
    Chosen,
    Compared,
    Cost,
    Estimate,
    Figure,
    Gained,
    Kept,
    Matrix,
    Skill,
    TaskGained,
)

Unit = Literal["share", "nats", "points", "ratio"]
ACCENTS = {"GAINED": "#15803d", "KEPT": "#1d4ed8", "MEMORY": "#7c3aed", "CHOSEN": "#b45309"}
MEANING = {
    "clean": "learned the task, not the rows",
    "mild": "begins to learn rows by heart",
    "moderate": "partly learned by heart",
    "severe": "learned by heart",
    "unknown": "not measured",
}
_ASKED = {
    "choice": "multiple choice",
    "word": "next word",
    "text": "answer compared with the wanted one",
    "program": "answer checked by a program",
    "code": "program run against a test",
}
_SUFFIX = {"share": "%", "nats": " nats", "points": "", "ratio": ""}
# Control characters break XML and steer terminals; direction overrides make a text read as what it is not.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ufffe\uffff]")


def clean(text: str) -> str:
    """`text` with line ends as newlines and every control or direction character shown as one replacement mark."""
    return _UNSAFE.sub("\ufffd", text.replace("\r\n", "\n").replace("\r", "\n"))


def one_line(text: str, most: int = 400) -> str:
    """`text` cleaned, its white space folded to single spaces, cut to `most` characters."""
    flat = " ".join(clean(text).split())
    return flat if len(flat) <= most else flat[: most - 1].rstrip() + "…"


def bare(value: float, unit: Unit) -> str:
    """`value` in the digits of its unit, without the unit's name."""
    if unit == "share":
        text = f"{value * 100:.1f}"
    elif unit == "nats":
        text = f"{value:.4f}" if 0.00005 <= abs(value) < 0.01 else f"{value:.3f}"
    else:
        text = f"{value:.1f}" if unit == "points" else f"{value:.2f}"
    zero = not text.strip("-0.")
    return text.lstrip("-") if zero else text.replace("-", "−")


def number(value: float, unit: Unit) -> str:
    """`value` with its unit: `88.4%`, `0.021 nats`."""
    return bare(value, unit) + _SUFFIX[unit]


def percent(share: float) -> str:
    """A share of one as per cent."""
    return number(share, "share")


def signed(value: float, unit: Unit) -> str:
    """A change with its sign and no unit: `+85.3`, `−12.1`, `0.0`."""
    text = bare(value, unit)
    return text if text.startswith("−") or not text.strip("0.") else f"+{text}"


def interval(estimate: Estimate, unit: Unit, *, change: bool = False) -> str:
    """The 95% interval in words, or why there is none."""
    if estimate.low is None or estimate.high is None:
        return f"no interval: {one_line(estimate.note)}" if estimate.note else "no interval"
    show = signed if change else bare
    return f"95% CI {show(estimate.low, unit)} to {show(estimate.high, unit)}"


def missing(estimate: Estimate) -> str:
    """What stands where a number should: that it was not measured, and why."""
    return f"not measured: {one_line(estimate.note or 'no reason was recorded')}"


def value(given: Estimate, unit: Unit, per: str = "") -> str:
    """A number alone, or why it is missing; `per` follows the unit: `0.021 nats a token`."""
    return missing(given) if given.value is None else f"{number(given.value, unit)} {per}".rstrip()


def estimate(given: Estimate, unit: Unit, per: str = "") -> str:
    """A number and its interval: `88.4% (95% CI 81.6 to 92.0)`, or why it is missing."""
    shown = value(given, unit, per)
    return shown if given.value is None else f"{shown} ({interval(given, unit)})"


def kept_share(kept: Kept) -> tuple[str, str]:
    """The kept share as it is shown and what stands behind it; above 100% it is shown as 100%, the raw value behind.

    A gain elsewhere must not read as having kept more than everything.
    """
    given = kept.kept
    if given.value is None:
        return "—", missing(given)
    if given.value <= 1:
        return percent(given.value), interval(given, "share")
    return percent(1.0), f"{percent(given.value)} as measured, {interval(given, 'share')}"


def count(amount: int) -> str:
    """A large count in three or four digits: `512`, `40.2k`, `134.5M`."""
    for size, letter in ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "k")):
        if amount >= 0.99995 * size:
            return f"{amount / size:.1f}{letter}"
    return str(amount)


def plural(amount: int, noun: str) -> str:
    """`1 row`, `300 rows`."""
    return f"{amount:,} {noun}" if amount == 1 else f"{amount:,} {noun}s"


def duration(seconds: float) -> str:
    """Seconds as a person would say them."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def storage(size: int) -> str:
    """Bytes in the largest fitting decimal unit."""
    for unit, letter in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if size >= unit:
            return f"{size / unit:.1f} {letter}"
    return f"{size} B"


def before_after(measure: Compared) -> str:
    """`3.1% → 88.4%`, or why one side is missing."""
    if measure.base.value is None or measure.tuned.value is None:
        return missing(measure.base if measure.base.value is None else measure.tuned)
    base, tuned = measure.base.value, measure.tuned.value
    left = number(base, measure.unit) if measure.unit == "share" else bare(base, measure.unit)
    return f"{left} → {number(tuned, measure.unit)}"


def titled(measure: Compared) -> str:
    """The name of a measure, saying so where less is better."""
    return one_line(measure.title) + ("" if measure.higher_is_better else " (lower is better)")


def change(measure: Compared) -> str:
    """`+85.3 (95% CI +81.6 to +88.7)`, tuned minus base; shares in percentage points."""
    given = measure.change
    if given.value is None:
        return missing(given)
    return f"{signed(given.value, measure.unit)} ({interval(given, measure.unit, change=True)})"


def direction(measure: Compared) -> Literal["better", "worse", "unclear"]:
    """Which way the measure moved, as far as the interval of its change leaves zero outside."""
    low, high = measure.change.low, measure.change.high
    if low is None or high is None or low <= 0 <= high:
        return "unclear"
    return "better" if (low > 0) == measure.higher_is_better else "worse"


def flips(skill: Skill) -> str:
    """How many items the skill lost and won."""
    return f"{skill.lost} lost / {skill.won} won"


def skill_kind(skill: Skill) -> str:
    """How the skill is asked, what guessing would score, and of how many items."""
    asked = _ASKED[skill.kind]
    items = "" if skill.measure.change.n is None else f", {plural(skill.measure.change.n, 'item')}"
    return f"{asked}, chance {percent(skill.chance)}{items}"


def uncounted(skill: Skill) -> str:
    """Why a skill is not part of the kept share."""
    reason = skill.kept.note or f"the base is not clearly above chance ({percent(skill.chance)})"
    return f"not counted: {one_line(reason)}"


def worst(kept: Kept) -> str | None:
    """The skill that lost most, in one line; None where none was named."""
    if kept.worst is None:
        return None
    for skill in kept.skills:
        if kept.worst in (skill.measure.name, skill.measure.title):
            fallen = skill.measure.change.value
            moved = "" if fallen is None else f"{signed(fallen, skill.measure.unit)}, "
            return f"worst: {one_line(skill.measure.title)} {before_after(skill.measure)} ({moved}{flips(skill)})"
    return f"worst: {one_line(kept.worst)}"


def measure_line(measure: Compared) -> str:
    """One measure before and after with its change, or why it is missing."""
    head = f"{titled(measure)} {before_after(measure)}"
    if measure.change.value is None or measure.base.value is None or measure.tuned.value is None:
        return head
    reach = interval(measure.change, measure.unit, change=True)
    return f"{head} ({signed(measure.change.value, measure.unit)}, {reach})"


def gained_line(gained: Gained) -> str:
    """The headline of GAINED."""
    rows = f"on {plural(gained.rows, 'row')} it was not trained on ({one_line(gained.split)})"
    return f"{measure_line(gained.measures[0])} {rows}" if gained.measures else f"nothing was measured {rows}"


def task_measures(given: TaskGained) -> tuple[Compared, ...]:
    """What is shown of a task: its headline and its answer loss."""
    measures = given.gained.measures
    return measures[:1] + tuple(measure for measure in measures[1:] if measure.name == "answer_loss")


def matrix_line(matrix: Matrix) -> str:
    """What the cells of a matrix are."""
    return f"answer loss in nats, in brackets how much lower it is than that of {one_line(matrix.against)}"


def cell(given: Cell) -> str:
    """A loss and its gain: `1.234 (+0.021)`."""
    if given.loss.value is None:
        return "—"
    gain = "" if given.gain.value is None else f" ({signed(given.gain.value, 'nats')})"
    return bare(given.loss.value, "nats") + gain


def cell_direction(given: Cell) -> Literal["better", "worse", "unclear"]:
    """Which way a gain goes, as far as its interval leaves zero outside."""
    low, high = given.gain.low, given.gain.high
    if low is None or high is None or low <= 0 <= high:
        return "unclear"
    return "better" if low > 0 else "worse"


def figure_line(figure: Figure) -> str:
    """`BWT, backward transfer: −0.021 nats (95% CI −0.030 to −0.011)`."""
    given = figure.value
    if given.value is None:
        return f"{figure.name}, {figure.title}: {missing(given)}"
    shown, behind = signed(given.value, "nats"), interval(given, "nats", change=True)
    return f"{figure.name}, {figure.title}: {shown} nats ({behind})"


def kept_line(kept: Kept) -> str:
    """The headline of KEPT."""
    shown, behind = kept_share(kept)
    share = f"kept share {behind}" if kept.kept.value is None else f"{shown} of the base's skills ({behind})"
    same = value(kept.same_next_word, "share")
    return f"{share}; drift {value(kept.drift, 'nats', 'a token')}, same next word {same}"


def trained(chosen: Chosen) -> str:
    """How much of the model was trained: `1.2M of 134.5M parameters (0.9%)`."""
    part = chosen.trained_parameters / chosen.total_parameters if chosen.total_parameters else 0.0
    share = percent(part) if part >= 0.001 or not part else f"{part * 100:.3f}%" if part >= 0.00001 else "<0.001%"
    return f"{count(chosen.trained_parameters)} of {count(chosen.total_parameters)} parameters ({share})"


def stopped(chosen: Chosen) -> str:
    """Which step was kept, how long training ran, and why it ended."""
    epochs = f"{chosen.epochs:.1f} epoch" + ("" if f"{chosen.epochs:.1f}" == "1.0" else "s")
    return f"best step {chosen.best_step:,} of {chosen.steps:,}, {epochs}; {one_line(chosen.stopped)}"


def chosen_line(chosen: Chosen) -> str:
    """The headline of CHOSEN."""
    return f"{one_line(chosen.technique)}, {trained(chosen)}; {stopped(chosen)}"


def chosen_rows(chosen: Chosen) -> tuple[tuple[str, str, str], ...]:
    """Each setting, its value and the reason for it; those with a reason come first."""
    names = sorted({**chosen.settings, **chosen.reasons}, key=lambda name: name not in chosen.reasons)
    return tuple(
        (one_line(name), one_line(chosen.settings.get(name, "")), one_line(chosen.reasons.get(name, "")))
        for name in names
    )


def cost_line(cost: Cost) -> str:
    """What the run took, in one line."""
    return (
        f"trained in {duration(cost.train_seconds)}, reported in {duration(cost.report_seconds)}; "
        f"{count(cost.train_tokens)} tokens seen, {count(cost.answer_tokens)} learned from, "
        f"{cost.tokens_per_second:,.0f} tokens/s; peak memory {storage(cost.peak_memory_bytes)}"
    )


def machine_line(cost: Cost) -> str:
    """The machine, as far as it was recorded."""
    shown = {
        name.removesuffix("_bytes"): storage(item) if name.endswith("_bytes") and isinstance(item, int) else str(item)
        for name, item in cost.machine.items()
    }
    return ", ".join(f"{one_line(name)} {one_line(item)}" for name, item in shown.items())


def title_line(card: Card) -> str:
    """What was tuned on what."""
    return f"{one_line(card.model, 80)} tuned on {one_line(card.data, 80)}"


def rows_line(card: Card) -> str:
    """The rows of each split: `800 train, 300 test rows`."""
    if not card.data_rows:
        return "no rows recorded"
    total = list(card.data_rows.values())[-1]
    parts = ", ".join(f"{amount:,} {one_line(split)}" for split, amount in card.data_rows.items())
    return f"{parts} {'row' if len(card.data_rows) == 1 and total == 1 else 'rows'}"


def created(card: Card) -> str:
    """The day and minute of the report."""
    return one_line(card.created.replace("T", " "), 17).rstrip("…")
