"""A run as far as it can be checked before any weight is loaded; all that is wrong is said at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from graftwood.anchor import ANCHORS, Anchor
from graftwood.choose.budget import NONE, Budget, read_budget
from graftwood.choose.items import leaked
from graftwood.choose.recipe import recipe
from graftwood.config import RunConfig
from graftwood.data.sources import Source, Splits, load_splits
from graftwood.errors import ConfigError, GraftError
from graftwood.evals.given import find_tasks
from graftwood.evals.task import TASKS, Task
from graftwood.evals.tiers import sized
from graftwood.model.decoder import Decoder
from graftwood.technique import TECHNIQUES, Technique
from graftwood.train.loop import Plan

IN_MEMORY = "rows"  # what a configuration calls data that came as objects, from no file


@dataclass(frozen=True)
class Draft:
    """What will run: technique, training plan with the reason of each value that was not given, and the rows."""

    config: RunConfig
    technique: Technique
    plan: Plan
    reasons: dict[str, str]
    anchors: tuple[Anchor, ...]
    budget: Budget | None
    tasks: tuple[Task, ...]
    splits: Splits


def choose(config: RunConfig) -> tuple[Technique, Plan, dict[str, str], tuple[Anchor, ...]]:
    """Technique, training plan, the reason of each value that was not given, and the anchors.

    Raises: ConfigError for an unknown technique or anchor or an option it does not have.
    """
    kind = TECHNIQUES.get(config.technique)
    technique = kind.parse(config.options)
    given = "as given"
    reasons = {
        "learning rate": given if config.lr is not None else kind.learning_rate_reason,
        "epochs": given if "epochs" in config.model_fields_set else "few: small data is learned by heart soon after",
        "batch": given if "batch" in config.model_fields_set else "LoRA Without Regret finds small batches safest",
        "schedule": f"{config.warmup:.0%} warm-up, then linear decay to zero, as in transformers",
    }
    plan = Plan(
        learning_rate=config.lr if config.lr is not None else kind.learning_rate,
        weight_decay=config.weight_decay if config.weight_decay is not None else kind.weight_decay,
        batch=config.batch,
        epochs=config.epochs,
        seed=config.seed,
        clip=config.clip,
        warmup_share=config.warmup,
        token_budget=config.token_budget,
        evaluations=config.evaluations,
        patience=config.patience,
        save_seconds=config.save_seconds,
    )
    anchors = tuple(ANCHORS.get(name).parse(options) for name, options in config.anchors.items())
    for anchor in anchors:
        plan = anchor.plan(plan)
    return technique, plan, reasons, anchors


def draft(config: RunConfig, data: Source | None = None, outline: Callable[[], Decoder] | None = None) -> Draft:
    """Choose the technique, hold it against the model's outline, and read the rows.

    Raises: the one problem there is, or a ConfigError that lists them all.
    """
    problems: list[GraftError] = []
    chosen = splits = decoder = budget = None
    tasks: tuple[Task, ...] = ()
    config, decided = recipe(config)
    valid, test = (Path(path) if path else None for path in (config.valid, config.test))
    source = data if data is not None else Path(config.data)
    try:
        chosen = choose(config)
    except GraftError as error:
        problems.append(error)
    try:
        budget = read_budget(config.keep or NONE, config.keep_worst)
    except GraftError as error:
        problems.append(error)
    try:
        tasks = sized(find_tasks(config.skills), frozenset(TASKS.names()), "certificate")
    except GraftError as error:
        problems.append(error)
    try:
        splits = load_splits(source, valid, test, config.held_out, config.seed)
    except GraftError as error:
        problems.append(error)
    try:
        decoder = outline() if outline is not None else None
    except GraftError as error:
        problems.append(error)
    if chosen is not None and chosen[0].writes_base and config.base_precision != "full":
        why = f"{config.technique} moves the base's own weights, which {config.base_precision} cannot hold"
        fix = "leave out --base-precision, or choose a technique that leaves the base alone"
        problems.append(ConfigError(f"{why}; {fix}"))
    if chosen is not None and decoder is not None:
        problems += map(ConfigError, chosen[0].problems(decoder))
        problems += map(ConfigError, _unkeepable(budget, chosen[0], chosen[3], splits))
        problems += [ConfigError(what) for anchor in chosen[3] for what in anchor.problems(chosen[0], decoder)]
    if splits is not None and (leaks := leaked(tasks, splits.train)):
        more = f" and {len(leaks) - 20} more" if len(leaks) > 20 else ""
        where = "; ".join(leaks[:20]) + more
        problems.append(ConfigError(f"training rows hold what measures the base: {where}; take them out"))
    if len(problems) == 1:
        raise problems[0]
    if chosen is None or splits is None or problems:
        raise ConfigError("\n  ".join((f"{len(problems)} problems:", *map(str, problems))))
    technique, plan, reasons, anchors = chosen
    return Draft(config, technique, plan, reasons | decided, anchors, budget, tasks, splits)


def _unkeepable(
    budget: Budget | None, technique: Technique, anchors: tuple[Anchor, ...], splits: Splits | None
) -> list[str]:
    """All that keeps a budget from being kept."""
    if budget is None:
        return []
    found = []
    if not technique.starts_at_base:
        found.append(f"--keep needs a way back to the base, which {technique.name} does not have; give --keep none")
    if any(anchor.dial != 1 for anchor in anchors):
        found.append("--keep finds the dial that the anchor interpolate sets by hand; give one of them")
    if splits is not None and not splits.valid:
        found.append(
            "--keep chooses on validation rows and there are none; give --valid, --held-out 0.1 or --keep none"
        )
    return found
