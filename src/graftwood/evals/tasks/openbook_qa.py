"""OpenBookQA: sentences about elementary science facts, each with four endings."""

from functools import partial

from graftwood.evals.task import Task, pocket_choices

TASK = Task(
    name="openbook_qa",
    title="science facts",
    kind="choice",
    version=1,
    chance=0.25,
    source="OpenBookQA, test set (Mihaylov and others, 2018, arXiv:1809.02789)",
    licence="Apache-2.0",
    read=partial(pocket_choices, "openbook_qa"),
    more=partial(pocket_choices, "openbook_qa", more=True),
)
