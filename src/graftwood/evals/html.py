"""The card as one self-contained page: no script, no address outside itself, every text escaped."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from graftwood.evals import budget_words, memory_words, words
from graftwood.evals.card import (
    Canaries,
    Card,
    Cell,
    Choice,
    Chosen,
    Compared,
    Cost,
    Estimate,
    Gained,
    Matrix,
    Memory,
    Sample,
    Skill,
    TaskGained,
)
from graftwood.evals.html_style import CSS
from graftwood.evals.lights import lights
from graftwood.evals.svg import curve_svg, skills_svg
from graftwood.evals.tradeoff import choice_curves, looks_svg, tradeoff_svg

GLOSSARY = (
    ("95% CI", "The range that holds the true value in 95 of 100 repetitions. When the range of a change holds zero, "
     "the change may be chance."),
    ("Gained", "The task, measured on rows the model was not trained on, by the base and by the tuned model on the "
     "same rows."),
    ("Kept share", "The mean over the skills the base had of what is left of each: (tuned − chance) divided by (base − "
     "chance), by the probability of the right answer where there is one, else by right and wrong. A skill counts only "
     "where the base is clearly above chance; above 100% the mean is shown as 100%."),
    ("Budget", "The share of the base that had to be kept. It holds where the lower end of the interval of the mean "
     "over abilities does, asked with items that are in no other figure of this page."),
    ("Lost / won", "Questions the base had right and the tuned model has wrong, and the reverse. Two equal averages "
     "can hide many of both."),
    ("Drift", "How far the tuned model's next-word probabilities moved from the base's, as KL divergence in nats a "
     "token; 0 means unchanged."),
    ("Same next word", "How often both models think the same word most likely to come next."),
    ("Held-out / train loss", "The loss on rows it has not seen divided by the loss on rows it has. Near 1 it learned "
     "the task; far above 1 it learned the rows."),
    ("Membership AUC", "How well one can tell trained rows from unseen ones by how much their loss fell: 0.5 is no "
     "better than guessing, 1 is certain."),
    ("Extractable", "The share of training answers that 100 samples would hold word for word with a chance of one half "
     "or more. To be held against it: answers it never saw, and what the base could say."),
    ("Canaries", "Made-up secrets planted in the training rows on request. Exposure is how far up the secret stands "
     "among codes of its kind, in bits: 1.4 on average for what was never learned."),
)  # fmt: skip

_LOOKS = (
    "Every recipe from the base to where its training ended or, in brackets, had come when it left the race. Hollow: "
    "looked at. Full: certified. What lost much is at the edge."
)


def card_html(card: Card) -> str:
    """The report card as an HTML page."""
    title = _text(words.title_line(card))
    warnings = "".join(f"<p class=warning><b>Warning:</b> {_text(warning)}</p>" for warning in card.warnings)
    about = (words.created(card), card.chosen.technique, words.rows_line(card), f"base {card.model_fingerprint}")
    body = (
        f"<header><h1>{title}</h1><p class=soft>{' · '.join(map(_text, about))}</p>{warnings}</header>",
        _summary(card),
        _gained(card.gained),
        _tasks(card.tasks),
        _matrix(card.matrix),
        _kept(card),
        *([] if card.choice is None else [_choice(card.choice)]),
        _memory(card.memory),
        _chosen(card.chosen),
        _section("Training", _figure(curve_svg(card.curve, card.chosen.best_step), "Losses, drift and the kept step")),
        _samples(card.samples),
        _cost(card.cost),
        _section("How to read this", _glossary()),
        f"<details><summary>Raw data</summary><pre>{_text(card.model_dump_json(indent=2))}</pre></details>",
    )
    head = (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{title}</title><style>{CSS}</style></head>"
    )
    return f"{head}\n<body><main>\n" + "\n".join(body) + "\n</main></body></html>\n"


def _glossary() -> str:
    return "<dl>" + "".join(f"<dt>{_text(name)}</dt><dd>{_text(meaning)}</dd>" for name, meaning in GLOSSARY) + "</dl>"


def _text(text: str) -> str:
    return escape(words.clean(text))


def _section(title: str, *parts: str, accent: str = "") -> str:
    style = f' class="{accent}"' if accent else ""
    return f"<section{style}><h2>{_text(title)}</h2>{''.join(parts)}</section>"


def _figure(svg: str, caption: str) -> str:
    return f"<figure><div class=scroll>{svg}</div><figcaption class=soft>{_text(caption)}</figcaption></figure>"


def _facts(rows: Iterable[tuple[str, Estimate, words.Unit]]) -> str:
    cells = ((_text(name), _estimate(given, unit)) for name, given, unit in rows)
    return f"<div class=facts>{_table(('measure', 'value'), cells)}</div>"


def _table(head: Iterable[str], rows: Iterable[Iterable[str]], *, dim: Iterable[int] = ()) -> str:
    """A table of ready HTML cells, the first of each row its name; the rows numbered in `dim` are faded."""
    faded = set(dim)
    lines = "".join(
        f"<tr{' class=dim' if place in faded else ''}><th scope=row>{first}</th>"
        + "".join(f"<td>{cell}</td>" for cell in cells)
        + "</tr>"
        for place, (first, *cells) in enumerate(rows)
    )
    names = "".join(f"<th scope=col>{_text(name)}</th>" for name in head)
    return f"<div class=scroll><table><thead><tr>{names}</tr></thead><tbody>{lines}</tbody></table></div>"


def _estimate(given: Estimate, unit: words.Unit, *, items: bool = True) -> str:
    """The number, its interval below it, and where asked how many items stand behind it."""
    if given.value is None:
        return f"<span class=soft>{_text(words.missing(given))}</span>"
    behind = words.interval(given, unit) + (f", n {given.n:,}" if items and given.n is not None else "")
    return f"{_text(words.number(given.value, unit))}<br><small>{_text(behind)}</small>"


def _change(measure: Compared) -> str:
    given = measure.change
    if given.value is None:
        return f"<span class=soft>{_text(words.missing(given))}</span>"
    behind = words.interval(given, measure.unit, change=True)
    shown = _text(words.signed(given.value, measure.unit))
    return f"<b class={words.direction(measure)}>{shown}</b><br><small>{_text(behind)}</small>"


def _summary(card: Card) -> str:
    gained, kept, chosen = card.gained, card.kept, card.chosen
    first = gained.measures[0] if gained.measures else None
    shown = "—" if first is None or first.tuned.value is None else words.number(first.tuned.value, first.unit)
    memory = f'<i class="light {card.memory.verdict}"></i>{card.memory.verdict}'
    tiles = (
        ("GAINED", _text(shown), words.gained_line(gained)),
        ("KEPT", _text(words.kept_share(kept)[0]), words.kept_line(kept)),
        ("MEMORY", memory, memory_words.memory_line(card.memory)),
        ("CHOSEN", _text(words.one_line(chosen.technique, 60)), words.chosen_line(chosen)),
    )
    return "<div class=tiles>" + "".join(
        f'<article class="{name.lower()}"><h2>{name}</h2><p class=big>{big}</p><p>{_text(line)}</p></article>'
        for name, big, line in tiles
    ) + "</div>"  # fmt: skip


def _gained(gained: Gained) -> str:
    rows = (
        (_text(words.titled(m)), _estimate(m.base, m.unit), _estimate(m.tuned, m.unit), _change(m))
        for m in gained.measures
    )
    line = f"On {words.plural(gained.rows, 'row')} it was not trained on ({gained.split})."
    table = _table(("measure", "base", "tuned", "change"), rows) if gained.measures else "<p>No measure was taken.</p>"
    note = "" if gained.note is None else f"<p class=soft>{_text(gained.note)}</p>"
    return _section("Gained", f"<p>{_text(line)}</p>{note}", table, accent="gained")


def _tasks(tasks: tuple[TaskGained, ...]) -> str:
    if not tasks:
        return ""
    rows = (
        (
            f"{_text(given.task)}<br><small>{_text(words.plural(given.gained.rows, 'row'))}, "
            f"{_text(given.gained.split)}</small>",
            _text(words.titled(m)),
            _estimate(m.base, m.unit, items=False),
            _estimate(m.tuned, m.unit, items=False),
            _change(m),
        )
        for given in tasks
        for m in words.task_measures(given)
    )
    table = _table(("task", "measure", "base", "tuned", "change"), rows)
    return _section("Tasks", "<p>Each task on rows of its own.</p>", table, accent="gained")


def _matrix(matrix: Matrix | None) -> str:
    if matrix is None:
        return ""
    rows = ((_text(learner.name), *map(_cell, learner.cells)) for learner in matrix.learners)
    figures = "".join(f"<p>{_text(words.figure_line(figure))}</p>" for figure in matrix.figures)
    table = _table(("", *matrix.tasks), rows)
    return _section("Models by tasks", f"<p>{_text(words.matrix_line(matrix))}.</p>", table, figures, accent="gained")


def _cell(given: Cell) -> str:
    shown = f"<span class={words.cell_direction(given)}>{_text(words.cell(given))}</span>"
    if given.gain.value is None:
        return shown
    return f"{shown}<br><small>{_text(words.interval(given.gain, 'nats', change=True))}</small>"


def _kept(card: Card) -> str:
    kept = card.kept
    facts: tuple[tuple[str, Estimate, words.Unit], ...] = (
        ("kept share", kept.kept, "share"),
        ("drift, nats a token", kept.drift, "nats"),
        ("same next word", kept.same_next_word, "share"),
    )
    fallen = words.worst(kept)
    parts = [
        f"<p>Drift was measured on: {_text(kept.probe)}.</p>",
        _facts(facts),
        f"<p><b>{_text(fallen)}</b></p>" if fallen else "",
    ]
    if kept.skills:
        dim = (place for place, skill in enumerate(kept.skills) if not skill.counted)
        head = ("skill", "base", "tuned", "change", "lost / won", "kept")
        parts.append(_table(head, map(_skill, kept.skills), dim=dim))
        parts.append(_figure(skills_svg(kept.skills), "Hollow: base. Full: tuned. Band: 95% interval of the change."))
    else:
        parts.append("<p>No skill of the base was measured.</p>")
    return _section("Kept", *parts, accent="kept")


def _skill(skill: Skill) -> tuple[str, ...]:
    measure = skill.measure
    name = f"{_text(measure.title)}<br><small>{_text(words.skill_kind(skill))}</small>"
    kept = _estimate(skill.kept, "share", items=False) if skill.counted else _text(words.uncounted(skill))
    sides = (_estimate(side, measure.unit, items=False) for side in (measure.base, measure.tuned))
    return (name, *sides, _change(measure), f"{skill.lost:,} / {skill.won:,}", kept)


def _memory(memory: Memory) -> str:
    shown = "".join(
        f'<li><i class="light {light.level}"></i><b>{_text(light.name)}: {light.level}</b> '
        f"{_text(light.shown)} <span class=soft>{_text(light.meaning)}</span></li>"
        for light in lights(memory)
    )
    planted = [] if memory.canaries is None else [_canaries(memory.canaries)]
    lights_ = f"<ul class=lights>{shown}</ul>"
    return _section("Memory", lights_, _facts(memory_words.memory_rows(memory)), *planted, accent="memory")


def _canaries(given: Canaries) -> str:
    line = f"<p>{_text(memory_words.canaries_line(given))}</p>"
    head = ("", "canaries", "word for word", "exposure")
    return line + _table(head, (map(_text, row) for row in memory_words.canaries_rows(given)))


def _choice(choice: Choice) -> str:
    said = (
        budget_words.budget_line(choice),
        choice.why,
        *([choice.price] if choice.price else []),
        *budget_words.choice_cost(choice),
    )
    gain, lines = "fall of validation loss, nats a token", "".join(f"<p>{_text(line)}</p>" for line in said)
    looks = _figure(looks_svg(choice, gain), _LOOKS)
    picture = tradeoff_svg(choice_curves(choice), gain, choice.budget, choice.worst_budget)
    below = "" if choice.worst_budget is None else "; hollow below: its worst ability"
    certified = "Every certified place: gained against kept, on items that no other figure here uses"
    return _section("Budget", lines, looks, _figure(picture, certified + below), accent="kept")


def _chosen(chosen: Chosen) -> str:
    rows = (tuple(map(_text, row)) for row in words.chosen_rows(chosen))
    exact = f"{chosen.trained_parameters:,} of {chosen.total_parameters:,} parameters trained."
    table = _table(("setting", "value", "why"), rows) if chosen.settings or chosen.reasons else ""
    return _section("Chosen", f"<p>{_text(words.chosen_line(chosen))}. {exact}</p>", table, accent="chosen")


def _samples(samples: tuple[Sample, ...]) -> str:
    if not samples:
        return ""
    rows = (
        (
            f"<pre>{_text(sample.prompt)}</pre>",
            f"<pre>{_text(sample.wanted)}</pre>",
            _answer(sample.base, sample.base_right),
            _answer(sample.tuned, sample.tuned_right),
        )
        for sample in samples
    )
    table = _table(("prompt", "wanted", "base said", "tuned said"), rows)
    return _section("Samples", f"<div class=samples>{table}</div>")


def _answer(text: str, right: bool) -> str:
    mark = "<b class=better>✓ right</b>" if right else "<b class=worse>✗ wrong</b>"
    return f"{mark}<pre>{_text(text) or '<i class=soft>nothing</i>'}</pre>"


def _cost(cost: Cost) -> str:
    rows = [(_text(str(name)), _text(str(item))) for name, item in cost.machine.items()]
    table = _table(("machine", ""), rows) if rows else ""
    return _section("Cost", f"<p>{_text(words.cost_line(cost))}.</p>", table)
