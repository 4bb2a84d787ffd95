"""ARC Easy: questions from school science tests, four answers each."""

from functools import partial

from graftwood.evals.task import Task, pocket_choices

TASK = Task(
    name="arc_easy",
    title="school science",
    kind="choice",
    version=1,
    chance=0.25,
    source="ARC Easy, test set (Clark and others, 2018, arXiv:1803.05457)",
    licence="CC BY-SA 4.0",
    read=partial(pocket_choices, "arc_easy", "\nAnswer:"),
    more=partial(pocket_choices, "arc_easy", "\nAnswer:", more=True),
)
