"""A run as far as it can be checked before any weight is loaded; all that is wrong is said at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from graftwood.anchor import ANCHORS, Anchor
from graftwood.choose.budget import NONE, Budget, read_budget
from graftwood.choose.items import leaked, unhalved
from graftwood.choose.recipe import AUTO, recipe
from graftwood.config import RunConfig
from graftwood.data.mixture import load_mixture, order_for, shares
from graftwood.data.rows import Row
from graftwood.data.sources import Source, Splits, load_splits
from graftwood.errors import ConfigError, DataError, GraftError
from graftwood.evals.given import find_tasks
from graftwood.evals.task import Task
from graftwood.evals.tiers import beyond, sized
from graftwood.hub import at_hand
from graftwood.model.decoder import Decoder
from graftwood.registry import Registry
from graftwood.runtime import place
from graftwood.technique import TECHNIQUES, Technique
from graftwood.train.loop import Plan

Entry = TypeVar("Entry", Technique, Anchor)
IN_MEMORY = "rows"  # what a configuration calls data that came as objects, from no file


@dataclass(frozen=True)
class Draft:
    """What will run: technique, training plan with the reason of each value that was not given, and the rows.

    `config` is `asked` with what was decided; `reserve` is asked where what `tasks` ask leaves a decision open.
    """

    asked: RunConfig
    config: RunConfig
    technique: Technique
    plan: Plan
    reasons: dict[str, str]
    anchors: tuple[Anchor, ...]
    budget: Budget | None
    tasks: tuple[Task, ...]
    reserve: tuple[Task, ...]
    splits: Splits


Chosen = tuple[Technique, Plan, dict[str, str], tuple[Anchor, ...]]


def choose(config: RunConfig) -> Chosen:
    """Technique, training plan, the reason of each value that was not given, and the anchors.

    Raises: ConfigError for an unknown technique or anchor or an option it does not have.
    """
    problems: list[GraftError] = []
    chosen = _choose(config, problems)
    if problems or chosen is None:
        raise ConfigError("; ".join(map(str, problems)))
    return chosen


def _choose(config: RunConfig, problems: list[GraftError]) -> Chosen | None:
    """The same without what is wrong, which is added to the problems; None for a technique there is not."""
    found = [_parsed(ANCHORS, name, options, problems) for name, options in config.anchors.items()]
    anchors = tuple(anchor for anchor in found if anchor is not None)
    technique = _parsed(TECHNIQUES, config.technique, config.options, problems)
    if technique is None:
        return None
    kind = type(technique)
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
        stop_on=config.stop_on,
    )
    for anchor in anchors:
        plan = anchor.plan(plan)
    return technique, plan, reasons, anchors


def _parsed(
    entries: Registry[type[Entry]], name: str, options: Mapping[str, Any], problems: list[GraftError]
) -> Entry | None:
    """An entry with its options; those that are wrong are added to the problems and left out."""
    try:
        kind = entries.get(name)
    except ConfigError as error:
        problems.append(error)
        return None
    good = dict(options)
    try:
        kind.parse(good)
    except ConfigError as error:
        problems.append(error)
        good = {key: value for key, value in good.items() if _fits(kind, key, value)}
    return kind.parse(good)


def _fits(kind: type[Entry], option: str, value: Any) -> bool:
    try:
        kind.parse({option: value})
    except ConfigError:
        return False
    return True


def draft(config: RunConfig, data: Source | None = None, outline: Callable[[], Decoder] | None = None) -> Draft:
    """Choose the technique, hold it against the model's outline, and read the rows.

    Raises: the one problem there is, or a ConfigError that lists them all.
    """
    problems: list[GraftError] = _contradictions(config)
    rows = decoder = budget = None
    tasks: tuple[Task, ...] = ()
    reserve: tuple[Task, ...] = ()
    asked, (config, decided) = config, recipe(config)
    chosen = _choose(config, problems)
    try:
        budget = read_budget(config.keep or NONE, config.keep_worst)
    except GraftError as error:
        problems.append(error)
    try:
        found = find_tasks(config.skills)
        tasks, reserve = sized(found, config.tier), beyond(found, config.tier)
    except GraftError as error:
        problems.append(error)
    try:
        rows = _rows(config, data)
    except GraftError as error:
        problems.append(error)
    try:
        place(config.device, config.dtype)
    except GraftError as error:
        problems.append(error)
    if outline is not None and (not problems or at_hand(config.model)):  # nothing is fetched for a run that cannot be
        try:
            decoder = outline()
        except GraftError as error:
            problems.append(error)
    if chosen is not None:
        problems += map(ConfigError, unsuited(config, chosen[0], chosen[3], decoder))
    if budget is not None:
        fix = "add some, leave the task out of --skills, or give --keep none"
        problems += [ConfigError(f"{what}; {fix}") for what in unhalved(tasks)]
    if chosen is not None and decoder is not None:
        problems += map(ConfigError, _unkeepable(budget, chosen[0], chosen[3], rows and rows[0]))
    asks = [*tasks, *(reserve if budget else ())]
    problems += _leaks(asks, rows[0].train if rows is not None else (), chosen[3] if chosen is not None else ())
    if len(problems) == 1:
        raise problems[0]
    if chosen is None or rows is None or problems:
        raise ConfigError("\n  ".join((f"{len(problems)} problems:", *map(str, problems))))
    (technique, plan, reasons, anchors), (splits, given) = chosen, rows
    plan = replace(plan, shares=given)
    if asked.search:  # what is chosen is not known yet, and the run file says no more than what was asked
        config = asked.model_copy(update={"keep": config.keep})
    return Draft(asked, config, technique, plan, reasons | decided, anchors, budget, tasks, reserve, splits)


def _leaks(tasks: Sequence[Task], rows: Sequence[Row], anchors: Sequence[Anchor]) -> list[GraftError]:
    """What is wrong with rows that train, an anchor's among them: that they cannot be read, that they hold a question.

    Rows that give a question away are refused without a budget too: the report would measure memory.
    """
    found: list[GraftError] = []
    trained = [*rows]
    for anchor in anchors:
        try:
            trained += anchor.rows()
        except GraftError as error:
            found.append(error)
    if leaks := leaked(tasks, trained):
        more = f" and {len(leaks) - 20} more" if len(leaks) > 20 else ""
        where = "; ".join(leaks[:20]) + more
        found.append(ConfigError(f"training rows hold what measures the base: {where}; take them out"))
    return found


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


def unsuited(config: RunConfig, technique: Technique, anchors: Sequence[Anchor], decoder: Decoder | None) -> list[str]:
    """What technique and anchors ask of the base that other options, or its decoder if there is one, rule out."""
    found: list[str] = []
    precision: str = config.base_precision
    fix = "leave out --base-precision"
    if precision == "full" and decoder is not None and decoder.base_precision != "full":
        precision, fix = decoder.base_precision, "load the base anew"
    if technique.writes_base and precision != "full":
        found.append(
            f"{technique.name} moves the base's own weights, which {precision} cannot hold; {fix}, or choose a "
            "technique that leaves the base alone"
        )
    if technique.needs_full and precision != "full":
        what = technique.needs_full
        found.append(f"{what} needs the weights as the files hold them, which {precision} has not; {fix} or {what}")
    if config.sequence and any(anchor.dial != 1 for anchor in anchors):
        found.append(
            "--sequence begins each task where the one before ended, and interpolate goes back to where it began; "
            "leave one of them out"
        )
    if technique.writes_base and config.each:
        found.append(f"--each puts adapters on one base, and {technique.name} moves the base itself")
    if precision != "full":
        found += [
            f"{anchor.name} needs slopes of the base's matrices, which {precision} has not; {fix}, or leave out the "
            "anchor"
            for anchor in anchors
            if anchor.needs_slopes
        ]
    if decoder is not None:
        found += [*technique.problems(decoder), *technique.mistakes(decoder)]
        found += [what for anchor in anchors for what in anchor.problems(technique, decoder)]
    return found


def _contradictions(config: RunConfig) -> list[GraftError]:
    """Options that need what this run has not."""
    several = len(config.sources) > 1
    found = []
    if several and (config.valid or config.test):
        fix = "of several, each brings its own in its folder or by its prefix"
        found.append(f"--valid and --test are for one source; {fix}")
    weighs = config.mix_cap is not None or config.mix_temperature != 1
    if not several and weighs:
        found.append("--mix-temperature and --mix-cap weigh several sources, and this run has one; leave them out")
    if not several and (config.each or config.sequence):
        found.append("--each and --sequence are for several sources, and this run has one; give more with --data")
    if several and config.canaries:
        found.append("--canaries are planted among the rows of one source, and this run has several; leave them out")
    if config.each and config.sequence:
        found.append("--each goes with a mixture and --sequence learns one task after another; choose one of them")
    if config.sequence and weighs:
        found.append("--sequence reads every task as often; leave out --mix-temperature and --mix-cap")
    if (config.each or config.sequence) and config.keep not in (None, NONE):
        found.append("--each and --sequence compare models that go all the way; a budget is for one: leave out --keep")
    if config.search and config.technique != AUTO:
        found.append(f"--search chooses the technique, and {config.technique} is given; leave one of them out")
    if config.search and config.keep == NONE:
        found.append("--search races for a budget; give --keep 95% or leave --keep out")
    if config.search and (config.each or config.sequence):
        found.append("--search looks for one model; leave out --each and --sequence")
    return list(map(ConfigError, found))


def _rows(config: RunConfig, data: Source | None) -> tuple[Splits, dict[str, float]]:
    """The rows, and of several sources the share of the drawn rows that each task has."""
    if data is not None or len(config.sources) == 1:
        valid, test = (Path(path) if path else None for path in (config.valid, config.test))
        source = data if data is not None else Path(config.sources[0])
        return load_splits(source, valid, test, config.held_out, config.seed), {}
    splits, weights = load_mixture(config.sources, config.held_out, config.seed)
    if (config.each or config.sequence) and not splits.valid:
        raise DataError("--each and --sequence measure every task on rows of its own; hold some out with --held-out")
    if config.sequence:
        if any(weights.values()):
            raise ConfigError("--sequence reads every task as often; leave out the weights")
        return splits, {}
    if any(weights.values()) and (config.mix_cap is not None or config.mix_temperature != 1):
        raise ConfigError("weights fix the shares; leave out --mix-temperature and --mix-cap, or the weights")
    tasks = {task: range(count) for task, count in Counter(row.task for row in splits.train).items()}
    given = shares({task: len(rows) for task, rows in tasks.items()}, weights, config.mix_cap, config.mix_temperature)
    order_for(tasks, given, config.batch, config.epochs, config.seed)
    return splits, given
