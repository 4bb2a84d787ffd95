"""What learning one task does to another: models by tasks, and the figures of learning tasks one after another.

Letters: T tasks, R[t, i] how good the model is at task i after task t, b[i] the base: minus the answer loss, in nats.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from graftwood.data.encode import Example
from graftwood.evals import stats
from graftwood.evals.card import Cell, Estimate, Figure, Learner, Matrix
from graftwood.evals.stats import Pooled

Losses = Sequence[tuple[float, int]]  # of each held-out row: summed answer loss in nats, answer tokens
ByTask = dict[str, Pooled]

_ITSELF = Estimate(value=None, note="what the others are held against")
_UNFINISHED = Estimate(value=None, note="training was stopped before")


def by_task(heldout: Sequence[Example], losses: Losses) -> ByTask:
    """Losses of held-out rows, pooled by task."""
    rows: dict[str, list[tuple[float, int]]] = {}
    for example, loss in zip(heldout, losses, strict=True):
        rows.setdefault(example.row.task, []).append(loss)
    return {task: Pooled.sums(pairs) for task, pairs in rows.items()}


def beside(rows: Mapping[str, ByTask], alone: Mapping[str, str]) -> Matrix:
    """Models by tasks, each held against the one that was trained on that task `alone`, on the same rows.

    A gain above 0 of an adapter on a task that is not its own is transfer, one below 0 interference. A task whose own
    adapter is not there has no gains.
    """
    tasks = tuple(rows["base"])

    def cell(name: str, task: str) -> Cell:
        loss, own = rows[name][task].mean(), alone.get(task)
        if own is None:
            return Cell(loss=loss, gain=_UNFINISHED)
        return Cell(loss=loss, gain=_ITSELF if own == name else rows[own][task].minus(rows[name][task]).mean())

    learners = tuple(Learner(name=name, cells=tuple(cell(name, task) for task in tasks)) for name in rows)
    return Matrix(against="the adapter of that task alone", tasks=tasks, learners=learners)


def one_after_another(base: ByTask, after: Mapping[str, ByTask]) -> Matrix:
    """The model after each task, by tasks, held against the base, with OP, BWT and FWT once every task is learned.

    Source: Wang et al. 2023 (TRACE), arXiv 2310.06762, section 3; Lopez-Paz and Ranzato 2017, arXiv 1706.08840.
    """
    rows = {"base": base} | {f"after {task}": losses for task, losses in after.items()}
    figures = _figures(base, list(after.values())) if len(after) == len(base) else ()
    return against_base(rows).model_copy(update={"figures": figures})


def against_base(rows: Mapping[str, ByTask]) -> Matrix:
    """Models by tasks, each held against the one called `base`, on the same rows."""
    base = rows["base"]

    def cell(name: str, task: str) -> Cell:
        gain = _ITSELF if name == "base" else base[task].minus(rows[name][task]).mean()
        return Cell(loss=rows[name][task].mean(), gain=gain)

    learners = tuple(Learner(name=name, cells=tuple(cell(name, task) for task in base)) for name in rows)
    return Matrix(against="the base", tasks=tuple(base), learners=learners)


def _figures(base: ByTask, learned: Sequence[ByTask]) -> tuple[Figure, ...]:
    """OP = mean of R[T, i]; BWT = mean over i < T of R[T, i] - R[i, i]; FWT = mean over i > 1 of R[i-1, i] - b[i]."""
    tasks, last = list(base), learned[-1]
    overall = [_minus(last[task]) for task in tasks]
    backward = [learned[place][task].minus(last[task]) for place, task in enumerate(tasks[:-1])]
    forward = [base[task].minus(learned[place][task]) for place, task in enumerate(tasks[1:])]
    return (
        Figure(name="OP", title="overall performance", value=stats.mean_of_means(overall)),
        Figure(name="BWT", title="backward transfer", value=stats.mean_of_means(backward)),
        Figure(name="FWT", title="forward transfer", value=stats.mean_of_means(forward)),
    )


def _minus(losses: Pooled) -> Pooled:
    return Pooled(-losses.totals, losses.counts)
