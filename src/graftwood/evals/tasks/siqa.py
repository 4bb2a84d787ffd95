"""Social IQa: what people feel, want and do; the choices are letters that the question spells out."""

from functools import partial

from graftwood.evals.task import Task, pocket_choices

TASK = Task(
    name="siqa",
    title="social sense",
    kind="choice",
    version=1,
    chance=0.5,
    source="Social IQa (Sap and others, 2019, arXiv:1904.09728)",
    licence="CC BY 4.0",
    read=partial(pocket_choices, "siqa"),
    more=partial(pocket_choices, "siqa", more=True),
)
