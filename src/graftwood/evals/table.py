"""An evaluation as a table for a terminal: task by task the base and every adapter, then what each adapter kept."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from graftwood.evals import words
from graftwood.evals.card import Estimate, Skill
from graftwood.evals.comparison import Asked, Evaluation, Judged, LmEvaluation
from graftwood.evals.terminal import print_plainly

_MOVED = {"better": "green", "worse": "red", "unclear": ""}


def render(found: Evaluation, console: Console) -> None:
    """Print the scores and, where there are adapters, what each of them kept."""
    parts: list[RenderableType] = []
    for place, task in enumerate(found.base.tasks):
        about = f"{task.title}: {words.plural(task.items, 'item')}, chance {words.percent(task.chance)}"
        parts += [Text(words.one_line(about), "bold"), _scores(found, place)]
    left_out = [Text(words.one_line(line), "yellow") for line in found.left_out]
    print_plainly(Group(*parts, *([_kept(found)] if found.adapters else []), *left_out), console)


def render_lm_eval(found: LmEvaluation, console: Console) -> None:
    """Print every metric of every task: the base, then each adapter with its change on the same items."""
    adapters = found.adapters
    columns = {"value [95%]": 26, "change [95%]": 26} if adapters else {"value [95%]": 26}
    parts: list[RenderableType] = []
    for place, measure in enumerate(found.base.measures):
        title = f"{measure.task}: {measure.metric}" + (", lower is better" if measure.higher_is_better is False else "")
        table = _table(columns, header=place == 0)
        for model in (found.base, *adapters):
            own = model.measures[place]
            name = "base" if model is found.base else words.one_line(model.name)
            change = [] if own.change is None else [Text(_plain(own.change))]
            table.add_row(Text(name), Text(_plain(own.score)), *change)
        parts += [Text(words.one_line(title), "bold"), table]
    print_plainly(Group(*parts), console)


def _plain(given: Estimate) -> str:
    """`0.412 [0.381, 0.443]`: metrics of lm-eval keep their own units."""
    if given.value is None:
        return "—"
    if given.low is None or given.high is None:
        return f"{given.value:.4g}"
    return f"{given.value:.4g} [{given.low:.4g}, {given.high:.4g}]"


def _scores(found: Evaluation, place: int) -> Table:
    """One task: scores in per cent, changes in points, 95% intervals in brackets."""
    columns = {"score [95%]": 20, "change [95%]": 22, "lost/won": 8, "p": 5, "kept": 6}
    table = _table(columns if found.adapters else {"score [95%]": 20}, header=place == 0)
    table.add_row(Text("base"), Text(_interval(found.base.tasks[place].score)))
    _more(table, found.base.tasks[place])
    for adapter in found.adapters:
        assert adapter.kept is not None
        table.add_row(*_row(adapter, adapter.tasks[place], adapter.kept.skills[place]))
        _more(table, adapter.tasks[place])
    return table


def _more(table: Table, task: Asked) -> None:
    """A code task's pass@k; the score itself is pass@1."""
    for name, estimate in task.pass_at.items():
        if name != "pass@1":
            table.add_row(Text(f"  {name}", "dim"), Text(_interval(estimate), "dim"))


def _kept(found: Evaluation) -> Table:
    """What is left of the base under each adapter."""
    columns = {"kept [95%]": 20, "worst": 20, "drift": 6, "same next word": 14}
    table = _table(columns, header=True)
    for adapter in found.adapters:
        kept = adapter.kept
        assert kept is not None
        table.add_row(
            Text(words.one_line(adapter.name)),
            Text(_interval(kept.kept)),
            Text(kept.worst or "—"),
            Text("—" if kept.drift.value is None else words.bare(kept.drift.value, "nats")),
            Text(words.value(kept.same_next_word, "share")),
        )
    return table


def _table(columns: Mapping[str, int], header: bool) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim", show_header=header)
    for name, width in {"": 13, **columns}.items():
        table.add_column(name, width=width, overflow="fold")  # on a narrow terminal narrower, nothing cut off
    return table


def _row(adapter: Judged, task: Asked, skill: Skill) -> list[Text]:
    moved = _MOVED[words.direction(skill.measure)]
    kept = "—" if skill.kept.value is None else words.percent(skill.kept.value)
    p_value = "" if skill.p_value is None else f"{skill.p_value:.3f}"
    change = _interval(skill.measure.change, change=True)
    cells = (_interval(task.score), change, f"{skill.lost}/{skill.won}", p_value, kept)
    return [Text(words.one_line(adapter.name)), *(Text(cell, moved) for cell in cells)]


def _interval(given: Estimate, change: bool = False) -> str:
    """`56.0 [46.0, 66.0]`."""
    show = words.signed if change else words.bare
    if given.value is None:
        return "—"
    if given.low is None or given.high is None:
        return show(given.value, "share")
    return f"{show(given.value, 'share')} [{show(given.low, 'share')}, {show(given.high, 'share')}]"
