"""Several runs beside each other: a table of what each gained, kept and took, and a picture of gained against kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from graftwood.evals import words
from graftwood.evals.card import Card, Compared
from graftwood.evals.picture import png
from graftwood.evals.terminal import print_plainly
from graftwood.evals.tradeoff import Curve, Point, tradeoff_svg
from graftwood.files import atomic_write, storage

WIDE = 150  # characters a table of all columns needs to be read
COLUMNS = ("run", "technique", "gained", "answer loss", "kept", "drift", "memory", "trained", "took")


def compare_runs(cards: Mapping[str, Card], console: Console) -> None:
    """Print one line a run, the first measure of each as its gain; on a narrow terminal a block a run."""
    cells = [_cells(name, card) for name, card in cards.items()]
    tables = [_table(cells)] if console.width >= WIDE else [_block(row) for row in cells]
    print_plainly(Group(*tables, *(Text(line, "yellow") for line in differences(cards))), console)


def _table(rows: Sequence[Sequence[str]]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for title in COLUMNS:
        table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _block(row: Sequence[str]) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(width=max(map(len, COLUMNS)), no_wrap=True)
    table.add_column(ratio=1, overflow="fold")
    table.add_row(Text(COLUMNS[0], "dim"), Text(row[0], "bold"))
    for title, cell in zip(COLUMNS[1:], row[1:], strict=True):
        table.add_row(Text(title, "dim"), Text(cell))
    return table


def differences(cards: Mapping[str, Card]) -> list[str]:
    """What keeps these runs from being compared like with like."""
    found = []
    seen: dict[str, set[object]] = {
        "bases": {card.model_fingerprint for card in cards.values()},
        "data": {(card.data, *sorted(card.data_rows.items())) for card in cards.values()},
        "measured rows": {(card.gained.split, card.gained.rows) for card in cards.values()},
        "items that ask what is kept": {card.kept.kept.n for card in cards.values()},
    }
    for what, values in seen.items():
        if len(values) > 1:
            found.append(f"these runs differ in their {what}: compare them with care")
    return found


def comparison_svg(cards: Mapping[str, Card]) -> str:
    """Gained against kept, a point a run; the gain is the fall of the answer loss."""
    curves = []
    for name, card in cards.items():
        loss = answer_loss(card)
        if loss is not None and loss.change.value is not None and card.kept.kept.value is not None:
            curves.append(Curve(name, (Point(card.kept.kept, -loss.change.value, name),)))
    return tradeoff_svg(curves, "fall of the answer loss on held-out rows, nats a token")


def write_comparison(cards: Mapping[str, Card], folder: Path) -> list[Path]:
    """Write the picture into a folder, as PNG too where the extra `report` is installed."""
    picture = comparison_svg(cards)
    files = [folder / "compare.svg"]
    with storage(f"write the comparison into {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write(files[0], picture)
        if png(picture, folder / "compare.png", 1440):
            files.append(folder / "compare.png")
    return files


def answer_loss(card: Card) -> Compared | None:
    """The measure that every run has."""
    return next((measure for measure in card.gained.measures if measure.name == "answer_loss"), None)


def _cells(name: str, card: Card) -> tuple[str, ...]:
    loss, first = answer_loss(card), card.gained.measures[0] if card.gained.measures else None
    gained = "nothing was measured"
    if first is not None:
        gained = f"{first.title} {words.before_after(first)}, {words.change(first)}"
    kept = words.estimate(card.kept.kept, "share")
    if card.choice is not None:
        kept += "; nothing shipped" if card.choice.dial is None else f"; dial {card.choice.dial:g}"
    return (
        name,
        words.one_line(card.chosen.technique),
        gained,
        "" if loss is None else words.before_after(loss),
        kept,
        words.value(card.kept.drift, "nats"),
        card.memory.verdict,
        words.trained(card.chosen),
        words.duration(card.cost.train_seconds),
    )
