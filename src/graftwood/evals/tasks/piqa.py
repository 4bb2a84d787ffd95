"""PIQA: which of two ways to reach an everyday goal works."""

from functools import partial

from graftwood.evals.task import Task, pocket_choices

TASK = Task(
    name="piqa",
    title="physical sense",
    kind="choice",
    version=1,
    chance=0.5,
    source="PIQA, validation set (Bisk and others, 2020, arXiv:1911.11641)",
    licence="AFL-3.0",
    read=partial(pocket_choices, "piqa", "\nAnswer:"),
    more=partial(pocket_choices, "piqa", "\nAnswer:", more=True),
)
