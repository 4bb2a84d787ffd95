"""Every number, table and picture of the benchmark, derived from the records alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.common import RESULTS, Figure, say, summarise
from bench.keep.arms import ARMS, SLIM_TASKS
from bench.keep.claims import CLAIMS, OURS, Budgeted, Claim, Verdict, budgeted, overall, ready, verdicts
from bench.keep.effects import Arms
from bench.keep.picture import headline
from bench.keep.records import ArmRecord, read_all
from bench.keep.tasks import TARGETS

from graftwood.evals.card import Estimate
from graftwood.files import atomic_write, write_json

PAGE, DATA, PICTURE = "REPORT.md", "report.json", "keep.svg"
FEWEST_TASKS = 2  # of a figure that says "every task"


def write(folder: Path) -> int:
    """Write the page, the numbers and a picture for each task, and what the summary may have; the exit code."""
    records = read_all(folder)
    tasks = grouped(records)
    found = {claim.level: verdicts(claim, tasks) for claim in CLAIMS}
    models = list(budgeted(tasks))
    figures = list(_figures(tasks, found, models))
    page = "\n".join(_page(tasks, found, models)) + "\n"
    atomic_write(folder / PAGE, page)
    write_json(folder / DATA, _numbers(tasks, found, models, figures))
    atomic_write(folder / PICTURE, headline(tasks))
    print(page, end="")
    if figures and folder == RESULTS / "keep":
        summarise(figures, folder / DATA)
    say(f"{len(records)} records; {len(figures)} figures; the page is {folder / PAGE}")
    return 0


def grouped(records: Sequence[ArmRecord]) -> dict[str, Arms]:
    """The records by task, in the order of the tasks; of other bases than the first none."""
    bases = {record.base for record in records}
    assert len(bases) <= 1, f"records of {len(bases)} bases in one folder"
    return {task: Arms(some) for task in TARGETS if (some := [record for record in records if record.task == task])}


def _page(
    tasks: Mapping[str, Arms], found: Mapping[str, Sequence[Verdict]], models: Sequence[Budgeted]
) -> Iterator[str]:
    yield "# The keep benchmark: results"
    yield ""
    yield "Written by `python -m bench.keep --report` from the records in this folder. What was claimed, and how it is"
    yield "decided, stands in [PROTOCOL.md](../../keep/PROTOCOL.md). Intervals are 95%."
    yield ""
    yield f"![What each way of tuning gained, and what it forgot]({PICTURE})"
    yield ""
    yield from _claims(found, models)
    for task, arms in tasks.items():
        if "A0" in arms.names:
            yield from _task(task, arms)
    yield from _budgets(models)


def _claims(found: Mapping[str, Sequence[Verdict]], models: Sequence[Budgeted]) -> Iterator[str]:
    yield "Shares are of what the rival gained and forgot; the last word is the verdict."
    yield ""
    yield "| level | task | against | gain (metric) | gain (loss) | requests lost | drift | |"
    yield "|---|---|---|---|---|---|---|---|"
    for claim in CLAIMS:
        rows = found[claim.level]
        yield f"| **{claim.level}** | all | | | | | | **{_word(claim, rows, models)}** |"
        for row in rows:
            shares = " | ".join(shown(share) for share in (*row.gains.values(), *row.losses.values()))
            yield f"| {claim.level} | {row.task} | {row.rival}, {row.seeds} seeds | {shares} | {row.word} |"
    yield ""
    for claim in CLAIMS:
        yield f"* {claim.level}: {claim.text}"
    yield ""


def _task(task: str, arms: Arms) -> Iterator[str]:
    skills = list(arms.skills("A0", [0]))
    base = [arms.mean("A0", name, [0]) for name in ("gain", "answer_loss", "requests", *skills)]
    yield f"## {TARGETS[task].title}"
    yield ""
    yield "The base: " + ", ".join(
        f"{name} {shown(one)}"
        for name, one in zip((TARGETS[task].metric, "answer loss", "requests followed", *skills), base, strict=True)
    )
    yield ""
    heads = ("arm", "", "seeds", f"gain ({TARGETS[task].metric})", "gain (nats)", "requests lost", "drift (nats)")
    yield "| " + " | ".join((*heads, *(f"{name} lost" for name in skills), "tokens")) + " |"
    yield "|---" * (len(heads) + len(skills) + 1) + "|"
    for name in (name for name in ARMS if name in arms.names and name != "A0"):
        seeds = arms.seeds(name)
        effects = (*arms.gain(name, seeds).values(), *arms.forgotten(name, seeds).values())
        cells = [shown(effect.estimate()) for effect in (*effects, *arms.skills(name, seeds).values())]
        tokens = sum(record.training.tokens for record in arms.records(name)) // len(arms.records(name))
        yield f"| {name} | {ARMS[name].title} | {len(seeds)} | {' | '.join(cells)} | {tokens} |"
    yield ""


def _budgets(models: Sequence[Budgeted]) -> Iterator[str]:
    if not models:
        return
    yield "## Budgets"
    yield ""
    yield "Kept here is the judge's own measure on requests and skills that decided nothing."
    yield ""
    yield "| task | arm | seed | budget | dial | certified | kept here | | cost, plain run = 1 |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for model in models:
        record, training = model.record, model.record.training
        dial = "nothing shipped" if not training.shipped else f"{training.dial:g}"
        certified = f"{training.certified[0]:.3f}, at least {training.certified[1]:.3f}" if training.certified else ""
        word = "violated" if model.violated else "kept"
        cost = _cost(record)
        paid = "" if cost is None else f"{cost:.2f}"
        yield (
            f"| {record.task} | {record.arm} | {record.seed} | {training.budget:.0%} | {dial} | {certified} "
            f"| {shown(model.kept)} | {word} | {paid} |"
        )


def violations(models: Sequence[Budgeted]) -> int:
    """How many budgets were violated."""
    return sum(model.violated for model in models)


def _figures(
    tasks: Mapping[str, Arms], found: Mapping[str, Sequence[Verdict]], models: Sequence[Budgeted]
) -> Iterator[Figure]:
    """The lines of the summary whose arms are all there."""
    for claim, prefix in ((CLAIMS[0], "keep"), (CLAIMS[1], "keep_vs_full")):
        if complete(tasks, claim.needs):
            yield from _shares(prefix, claim, found[claim.level])
    if not complete(tasks, (OURS,)):
        return
    budgets = sorted({f"{model.record.training.budget:.0%}" for model in models})
    yield Figure(
        "keep_budget_violations", float(violations(models)), "of the models", "models below their budget",
        f"{len(models)} models, budgets {', '.join(budgets)}", "none is allowed",
    )  # fmt: skip
    costs = [cost for arms in tasks.values() for record in arms.records(OURS) if (cost := _cost(record)) is not None]
    if costs:
        yield Figure(
            "keep_default_cost_vs_plain_run", max(costs), "times a plain run", "seconds of --keep 95%, the dearest run",
            f"{min(costs):.2f} to {max(costs):.2f} over {len(costs)} runs", "training alone without anchors",
        )  # fmt: skip


def complete(tasks: Mapping[str, Arms], names: Sequence[str]) -> bool:
    """Whether a figure about these arms may speak of every task: two at least, none begun and not finished."""
    begun = [arms for arms in tasks.values() if set(arms.names) - {"A0"}]
    return len(begun) >= FEWEST_TASKS and all(ready(arms, names) for arms in begun)


def _shares(prefix: str, claim: Claim, found: Sequence[Verdict]) -> Iterator[Figure]:
    """The smallest gain share and the largest forgetting share over tasks and measures."""
    for what, pick in (("gain", min), ("forgetting", max)):
        known = [
            (share.value, f"{shown(share)} by {name} on {row.task}", row.rival)
            for row in found
            for name, share in (row.gains if what == "gain" else row.losses).items()
            if share.value is not None
        ]
        value, where, rival = pick(known)
        yield Figure(
            f"{prefix}_{what}_share_{pick.__name__}", value, "of theirs",
            f"{what} of --keep 95%, the worst measure on the worst of {len(found)} tasks",
            where, f"{rival}, {ARMS[rival].title}",
        )  # fmt: skip


def _cost(record: ArmRecord) -> float | None:
    """Seconds of training and choosing over those of training alone."""
    training = record.training
    if training.choice_seconds is None or not training.plain_seconds:
        return None
    return training.choice_seconds / training.plain_seconds


def _numbers(
    tasks: Mapping[str, Arms],
    found: Mapping[str, Sequence[Verdict]],
    models: Sequence[Budgeted],
    figures: Sequence[Figure],
) -> dict[str, Any]:
    """Everything the page says, as data."""
    arms = [
        {"task": TARGETS[task].title, "arm": name, "title": ARMS[name].title, "seeds": len(some.seeds(name))}
        | {
            key: effect.estimate().model_dump()
            for part in (some.gain, some.forgotten, some.skills)
            for key, effect in part(name, some.seeds(name)).items()
        }
        for task, some in tasks.items()
        if "A0" in some.names
        for name in (name for name in ARMS if name in some.names)
    ]
    claims = [
        {
            "level": claim.level,
            "text": claim.text,
            "word": _word(claim, found[claim.level], models),
            "tasks": [
                {"task": row.task, "rival": row.rival, "seeds": row.seeds, "word": row.word}
                | {f"share of {name}": share.model_dump() for name, share in (*row.gains.items(), *row.losses.items())}
                for row in found[claim.level]
            ],
        }
        for claim in CLAIMS
    ]
    return {
        "figures": {figure.name: vars(figure) for figure in figures},
        "claims": claims,
        "budget_violations": violations(models),
        "arms": arms,
    }


def _word(claim: Claim, rows: Sequence[Verdict], models: Sequence[Budgeted]) -> str:
    """What a claim came to over all tasks, those that are not finished named."""
    open_ = [task for task in SLIM_TASKS if task not in {row.task for row in rows}]
    if not rows:
        return "arms are missing"
    word = overall(rows, violations(models) if claim.no_violation else None)
    return f"{word} so far, arms are missing on {' and '.join(open_)}" if open_ else word


def shown(estimate: Estimate) -> str:
    """A number with its interval."""
    if estimate.value is None:
        return f"unknown ({estimate.note})"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.3f}"
    return f"{estimate.value:.3f} ({estimate.low:.3f}..{estimate.high:.3f})"
