"""The card as compact text for a terminal, a log file or a pipe."""

from __future__ import annotations

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from graftwood.evals import budget_words, memory_words, words
from graftwood.evals.card import Canaries, Card, Choice, Gained, Kept, Matrix, Sample, Skill, TaskGained
from graftwood.evals.lights import COLOURS, lights

SAMPLES, SAMPLE_TEXT = 2, 160
_LEARNER, _CELL = 12, 12  # characters that a matrix needs for the names of its rows and for a cell in two lines
_MOVED = {"better": "green", "worse": "red", "unclear": ""}
_ASCII = str.maketrans({"→": "->", "−": "-", "…": "...", "●": "*", "—": "-", "✓": "+", "✗": "x", "·": "|"})


def render(card: Card, console: Console) -> None:
    """Print the card."""
    print_plainly(Group(*_parts(card)), console)


def print_plainly(whole: RenderableType, console: Console) -> None:
    """Print; on a stream that is not Unicode every sign has a plain stand-in."""
    if console.encoding.lower().startswith("utf"):
        console.print(whole)
        return
    with console.capture() as captured:
        console.print(whole)
    plain = captured.get().translate(_ASCII)
    console.file.write(plain.encode(console.encoding, "replace").decode(console.encoding))


def _parts(card: Card) -> list[RenderableType]:
    about = f"{words.created(card)} · {words.rows_line(card)}"
    head = Text.assemble((words.title_line(card), "bold"), "\n", (about, "dim"), "\n")
    body = Table.grid(padding=(0, 2))
    body.add_column(width=7, no_wrap=True)
    body.add_column(ratio=1)
    body.add_row(_name("GAINED"), _gained(card.gained))
    if card.tasks:
        body.add_row(Text("TASKS", f"bold {words.ACCENTS['GAINED']}"), _tasks(card.tasks))
    if card.matrix is not None:
        body.add_row(Text("MATRIX", f"bold {words.ACCENTS['GAINED']}"), matrix_table(card.matrix))
    body.add_row(_name("KEPT"), _kept(card.kept))
    if card.choice is not None:
        body.add_row(Text("BUDGET", "bold"), _budget(card.choice))
    body.add_row(_name("MEMORY"), _memory(card))
    body.add_row(_name("CHOSEN"), _chosen(card))
    if card.samples:
        body.add_row(Text("SAMPLES", "bold"), Group(*(_sample(sample) for sample in card.samples[:SAMPLES])))
    body.add_row(Text("COST", "bold"), Text(words.cost_line(card.cost), "dim"))
    for warning in card.warnings:
        body.add_row(Text("WARNING", "bold yellow"), Text(words.one_line(warning), "yellow"))
    return [head, body]


def _name(section: str) -> Text:
    return Text(section, f"bold {words.ACCENTS[section]}")


def _gained(gained: Gained) -> RenderableType:
    lines = [Text(words.gained_line(gained), "bold")]
    for measure in gained.measures[1:]:
        lines.append(Text(words.measure_line(measure), _MOVED[words.direction(measure)]))
    if gained.note is not None:
        lines.append(Text(words.one_line(gained.note), "dim"))
    return Group(*lines, "")


def _tasks(tasks: tuple[TaskGained, ...]) -> RenderableType:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("task", max_width=16, overflow="ellipsis", no_wrap=True)
    table.add_column("measure", max_width=14)
    table.add_column("base → tuned", no_wrap=True)
    table.add_column("change (95% CI)", max_width=21)
    for given in tasks:
        name = words.one_line(given.task)
        for measure in words.task_measures(given):
            change = "—" if measure.change.value is None else words.change(measure).replace("95% CI ", "")
            moved = Text(change, _MOVED[words.direction(measure)])
            cells = (name, words.one_line(measure.title), words.before_after(measure))
            table.add_row(*map(Text, cells), moved)
            name = ""
    return Group(table, "")


def matrix_table(matrix: Matrix) -> RenderableType:
    """Models by tasks, and the figures made from them."""
    figures = (Text(words.figure_line(figure)) for figure in matrix.figures)
    return Group(Text(words.matrix_line(matrix), "dim"), _Blocks(matrix), *figures, "")


class _Blocks:
    """A matrix in as many tables below each other as it takes to cut off no number."""

    def __init__(self, matrix: Matrix) -> None:
        self._matrix = matrix

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        most = max(1, (options.max_width - _LEARNER) // _CELL)
        for start in range(0, len(self._matrix.tasks), most):
            yield self._table(slice(start, start + most))

    def _table(self, part: slice) -> Table:
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
        table.add_column("", max_width=20)
        for task in self._matrix.tasks[part]:
            table.add_column(Text(words.one_line(task, 40)), max_width=16)
        for learner in self._matrix.learners:
            cells = (Text(words.cell(given), _MOVED[words.cell_direction(given)]) for given in learner.cells[part])
            table.add_row(Text(words.one_line(learner.name, 60)), *cells)
        return table


def _kept(kept: Kept) -> RenderableType:
    parts: list[RenderableType] = [Text(words.kept_line(kept), "bold")]
    if kept.skills:
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
        table.add_column("skill", max_width=22, overflow="ellipsis", no_wrap=True)
        table.add_column("base → tuned", no_wrap=True)
        table.add_column("change (95% CI)", max_width=21)
        table.add_column("lost/won", justify="right", no_wrap=True)
        for skill in kept.skills:
            _skill(table, skill)
        parts.append(table)
        parts += [
            Text(f"{words.one_line(skill.measure.title, 40)}: {words.uncounted(skill)}", "dim")
            for skill in kept.skills
            if not skill.counted
        ]
    fallen = words.worst(kept)
    return Group(*parts, *([Text(fallen)] if fallen else []), "")


def _budget(choice: Choice) -> RenderableType:
    lines = [
        Text(budget_words.budget_line(choice), "bold"),
        Text(choice.why),
        *([Text(choice.price)] if choice.price else []),
    ]
    return Group(*lines, *(Text(line, "dim") for line in budget_words.choice_cost(choice)), "")


def _skill(table: Table, skill: Skill) -> None:
    measure = skill.measure
    change = "—" if measure.change.value is None else words.change(measure).replace("95% CI ", "")
    style = "" if skill.counted else "dim"
    table.add_row(
        Text(words.one_line(measure.title), style),
        Text(words.before_after(measure), style),
        Text(change, _MOVED[words.direction(measure)] if skill.counted else style),
        Text(f"{skill.lost} / {skill.won}", style),
    )


def _memory(card: Card) -> RenderableType:
    line = Text()
    for light in lights(card.memory):
        line.append("● ", COLOURS[light.level]).append(f"{light.name}: {light.level}   ")
    planted = [] if card.memory.canaries is None else [_canaries(card.memory.canaries)]
    return Group(Text(memory_words.memory_line(card.memory), "bold"), line, *planted, "")


def _canaries(given: Canaries) -> RenderableType:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for name in ("", "canaries", "word for word", "exposure"):
        table.add_column(name, justify="right" if name else "left")
    for row in memory_words.canaries_rows(given):
        table.add_row(*row)
    return Group(Text(memory_words.canaries_line(given)), table)


def _chosen(card: Card) -> RenderableType:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(max_width=18)
    table.add_column(max_width=20)
    table.add_column()
    for name, value, reason in words.chosen_rows(card.chosen):
        table.add_row(Text(name, "dim"), Text(value), Text(reason, "dim"))
    return Group(Text(words.chosen_line(card.chosen), "bold"), table, "")


def _sample(sample: Sample) -> RenderableType:
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_column(width=6, no_wrap=True)
    grid.add_column(ratio=1)
    rows = (("prompt", sample.prompt), ("wanted", sample.wanted), ("base", sample.base), ("tuned", sample.tuned))
    marks = (None, None, sample.base_right, sample.tuned_right)
    for (name, text), right in zip(rows, marks, strict=True):
        mark = {None: Text(), True: Text("✓ ", "green"), False: Text("✗ ", "red")}[right]
        shown = words.one_line(text, SAMPLE_TEXT) or "(nothing)"
        grid.add_row(Text(name, "dim"), mark.append(shown, "dim" if name == "prompt" else ""))
    return Group(grid, "")
