"""How a budget was kept, told as text: every arm, every place that was looked at, and why one was shipped."""

from __future__ import annotations

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from graftwood.evals import budget_words, words
from graftwood.evals.card import Arm, Candidate, Choice
from graftwood.evals.terminal import print_plainly

_TITLES = ("dial", "loss", "gain", "drift", "kept of the base", "worst ability", "")


def explain(choice: Choice, console: Console) -> None:
    """Print the record of a choice."""
    parts: list[RenderableType] = [Text(budget_words.budget_line(choice), "bold"), Text(f"{choice.why}.")]
    if choice.price is not None:
        parts.append(Text(choice.price))
    parts += [
        Group(Text(f"\n{arm.name}: {arm.fate}", "bold"), Text(_taken(arm), "dim"), _places(arm, choice), *_failed(arm))
        for arm in choice.arms
    ]
    parts += ["", *map(Text, budget_words.choice_cost(choice))]
    print_plainly(Group(*parts), console)


def _taken(arm: Arm) -> str:
    settings = ", ".join(f"{name} {value}" for name, value in arm.settings.items())
    return f"{arm.steps:,} steps, {arm.tokens:,} tokens, {words.duration(arm.seconds)}; {settings}"


def _places(arm: Arm, choice: Choice) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    raced = any(one.trained is not None for one in arm.candidates)
    titles = ("trained", *_TITLES) if raced else _TITLES
    for title in titles:
        table.add_column(title, no_wrap=title in ("trained", "dial", "loss", "gain", "drift"))
    for one in arm.candidates:
        trained = ("" if one.trained is None else f"{one.trained:.0%}",) if raced else ()
        table.add_row(*map(Text, (*trained, *_cells(one, arm, choice))))
    return table


def _failed(arm: Arm) -> list[Text]:
    """Why the places that were over the budget were."""
    decided = [(one.dial, one.decision) for one in arm.candidates if one.decision is not None]
    return [Text(f"dial {dial:g}: {'; '.join(told.why)}") for dial, told in decided if not told.passed and told.why]


def _cells(one: Candidate, arm: Arm, choice: Choice) -> tuple[str, ...]:
    told = one.decision
    shipped = arm.name == choice.shipped and one.dial == choice.dial
    fate = "shipped" if shipped else "" if told is None else "within" if told.passed else "over budget"
    kept = "not asked" if told is None else words.estimate(told.kept, "share")
    worst = "" if told is None or told.worst is None else f"{told.worst} {words.estimate(told.worst_kept, 'share')}"
    gain = choice.base_loss - one.loss
    return (f"{one.dial:g}", f"{one.loss:.4f}", f"{gain:+.4f}", f"{one.drift:.4f}", kept, worst, fate)
