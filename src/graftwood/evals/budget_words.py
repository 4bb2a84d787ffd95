"""Where a budget and what was chosen under it become text, as in `words`."""

from __future__ import annotations

from graftwood.evals import words
from graftwood.evals.card import Choice


def asked(choice: Choice) -> str:
    """What had to be kept: `budget 95%, 90% of the worst ability`."""
    worst = "" if choice.worst_budget is None else f", {choice.worst_budget * 100:.4g}% of the worst ability"
    return f"budget {choice.budget * 100:.4g}%{worst}"


def budget_line(choice: Choice) -> str:
    """Whether the budget held and on what: `budget 95%: held at 97.1% (95% CI 95.4 to 98.9) on 342 other items`."""
    budget = asked(choice)
    shipped = [
        one.decision
        for arm in choice.arms
        for one in arm.candidates
        if arm.name == choice.shipped and one.dial == choice.dial
    ]
    if not shipped or shipped[0] is None:
        return f"{budget}: nothing is shipped"
    held, items = shipped[0], shipped[0].items or choice.items  # more than at first, where those left it open
    least = ""
    if choice.worst_budget is not None:
        least = f", of {words.one_line(held.worst or 'the worst')} {words.estimate(held.worst_kept, 'share')},"
    return f"{budget}: held at {words.estimate(held.kept, 'share')}{least} on {items:,} other items, which decided"


def budget_short(choice: Choice) -> str:
    """The same in a few words: `budget 95%: certified at dial 0.75`."""
    budget = asked(choice)
    return f"{budget}: nothing is shipped" if choice.dial is None else f"{budget}: certified at dial {choice.dial:g}"


def choice_cost(choice: Choice) -> tuple[str, ...]:
    """What choosing took, beside training alone and beside one full fine-tune, in a line each."""
    took = f"took {words.duration(choice.seconds)} and {words.count(choice.tokens)} tokens of training"
    if choice.plain_seconds > 0:
        alone = f"about {words.duration(choice.plain_seconds)}, {words.count(choice.plain_tokens)} tokens"
        took += f", {choice.seconds / choice.plain_seconds:.2f} times training alone ({alone})"
    full = choice.full
    if full is None or full.seconds <= 0 or full.tokens <= 0:
        return (took,)
    whole = f"{words.duration(full.seconds)}, {words.count(full.tokens)} tokens; {words.one_line(full.source)}"
    beside = (
        f"{choice.seconds / full.seconds:.2f} times the seconds and {choice.tokens / full.tokens:.2f} times the tokens"
    )
    return (took, f"{beside} of one full fine-tune of the same rows ({whole})")
