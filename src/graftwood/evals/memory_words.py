"""The sentences and rows of MEMORY, which every rendering of the card takes from here."""

from __future__ import annotations

import math

from graftwood.evals import words
from graftwood.evals.card import Canaries, Estimate, Memory


def memory_line(memory: Memory) -> str:
    """The headline of MEMORY."""
    controls = known(memory)
    return (
        f"{memory.verdict}, {words.MEANING[memory.verdict]}: held-out/train loss {words.value(memory.ratio, 'ratio')}, "
        f"membership AUC {words.value(memory.membership_auc, 'ratio')}, "
        f"extractable answers {words.value(memory.extractable, 'share')}" + (f" ({controls})" if controls else "")
    )


def known(memory: Memory) -> str:
    """What the extractable share is to be held against: answers never trained on, and the base's own."""
    controls = (("held-out", memory.extractable_heldout), ("base", memory.extractable_base))
    return ", ".join(f"{name} {words.percent(given.value)}" for name, given in controls if given.value is not None)


def canaries_line(given: Canaries) -> str:
    """What canaries say in one line: `canaries: 3 of 8 said word for word, exposure 5.12 bits (...), by chance 1.4`."""
    said = sum(one.verbatim for one in given.found)
    bits = words.estimate(given.exposure, "ratio", "bits")
    return (
        f"canaries: {said} of {len(given.found)} said word for word; exposure {bits}, "
        f"{math.log2(given.compared):g} at most, 1.4 by chance"
    )


def canaries_rows(given: Canaries) -> tuple[tuple[str, str, str, str], ...]:
    """For each number of repeats: how many canaries, how many were said word for word, their mean exposure."""
    rows = []
    for repeats in sorted({one.repeats for one in given.found}):
        own = [one for one in given.found if one.repeats == repeats]
        bits = sum(one.exposure for one in own) / len(own)
        said = sum(one.verbatim for one in own)
        rows.append((f"seen {words.plural(repeats, 'time')} a pass", str(len(own)), str(said), f"{bits:.2f} bits"))
    return tuple(rows)


def memory_rows(memory: Memory) -> tuple[tuple[str, Estimate, words.Unit], ...]:
    """Every measure of MEMORY by its name."""
    exposed = (
        ("exposure of training answers among twins, bits", memory.exposure),
        ("exposure of held-out answers", memory.exposure_heldout),
        ("exposure of training answers, base", memory.exposure_base),
    )
    twins: list[tuple[str, Estimate, words.Unit]] = [
        (name, given, "ratio") for name, given in exposed if given is not None
    ]
    return (
        ("loss on trained rows, nats a token", memory.loss_train, "nats"),
        ("loss on held-out rows, nats a token", memory.loss_heldout, "nats"),
        ("held-out / train loss", memory.ratio, "ratio"),
        ("membership AUC", memory.membership_auc, "ratio"),
        ("extractable training answers", memory.extractable, "share"),
        ("extractable held-out answers", memory.extractable_heldout, "share"),
        ("extractable training answers, base", memory.extractable_base, "share"),
        *twins,
    )
