"""A run that is ready to start: rows encoded, technique on the base, and what it will take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from graftwood.anchor import ANCHORS, Anchor, Ground, narrow
from graftwood.base import Base
from graftwood.choose.budget import NONE
from graftwood.choose.recipe import recipe
from graftwood.config import RunConfig
from graftwood.data.audit import audit
from graftwood.data.batch import Examples
from graftwood.data.encode import Example, encode_rows
from graftwood.data.mixture import MixedOrder, order_for
from graftwood.data.sources import Splits
from graftwood.draft import IN_MEMORY, Draft, choose
from graftwood.errors import ConfigError
from graftwood.evals import canaries, judge
from graftwood.evals.canaries import Canary
from graftwood.evals.fitting import fitting
from graftwood.evals.programs import GUARD, guarded, warn_of
from graftwood.evals.task import TASKS
from graftwood.model.decoder import count_parameters
from graftwood.progress import Display, duration, size
from graftwood.runtime import Place, advice
from graftwood.train.below import rows_kept, rows_tried
from graftwood.train.forecast import Forecast, forecast
from graftwood.train.hold import Hold
from graftwood.train.loop import Plan

WRITING = 2  # a token written takes about as long as so many read, where dozens of rows grow together


@dataclass(frozen=True)
class Job(Draft):
    """A draft that is ready to start: the technique is on the base, nothing has been trained.

    `budget` and `tasks` are what must be kept and what asks for it; training begins at the block `begins`;
    `planted` are the rows of the `canaries`, `expected` what training is to take, where it was asked.
    """

    base: Base
    train: list[Example]
    valid: list[Example]
    test: list[Example]
    warnings: tuple[str, ...]
    begins: int
    canaries: tuple[Canary, ...] = ()
    planted: tuple[Example, ...] = ()
    expected: Forecast | None = None

    @property
    def taught(self) -> list[Example]:
        """What is trained on: the training rows, and after them the canaries, which nothing else counts as rows."""
        return [*self.train, *self.planted]

    @property
    def recipe(self) -> str:
        """Technique and anchors by name."""
        return " + ".join((self.technique.name, *(anchor.name for anchor in self.anchors)))


def prepare(drafted: Draft, base: Base, display: Display) -> Job:
    """Encode the rows, say what they are, and put the technique on the base.

    Raises: DataError for rows that do not fit the model, ConfigError for options that do not fit the base.
    """
    config, splits = _lasting(drafted.config, base), drafted.splits
    base.document_start()  # refused before anything is encoded
    technique = drafted.technique.read(base.tokenizer.encode)
    encoder = base.encoder(min(config.max_length, technique.room(base.decoder)))
    train, valid, test = (encode_rows(encoder, rows) for rows in (splits.train, splits.valid, splits.test))
    technique.apply(base.decoder, config.seed)
    begins = narrow(drafted.anchors, base.decoder)
    warnings = _describe(display, splits, train, [*valid, *test], encoder.max_length)
    warnings += _describe_mixture(display, train, drafted.plan)
    secrets = canaries.made(config.canaries, config.seed)
    planted = tuple(encode_rows(encoder, canaries.planted(secrets, splits.train[0])))
    if any(len(example.ids) + canaries.DIGITS > encoder.max_length for example in planted):
        raise ConfigError(f"canaries do not fit in {encoder.max_length} tokens; leave out --canaries")
    if secrets:
        times = ", ".join(str(secret.repeats) for secret in secrets)
        display.say(f"canaries: {len(secrets)} planted as {len(planted)} training rows, repeated {times} times")
    asked = fitting(base, drafted.tasks, technique.room(base.decoder))
    for line in asked.left_out:
        display.say(f"warning: {line}")
    final = replace(drafted, config=config, technique=technique, tasks=asked.tasks)
    return Job(
        **vars(final), base=base, train=train, valid=valid, test=test, begins=begins,
        warnings=(*warnings, *asked.left_out), canaries=secrets, planted=planted,
    )  # fmt: skip


def without_budget(job: Job, why: str) -> Job:
    """The run that `--keep none` asks for, on the technique that is there already; a warning says why."""
    config, decided = recipe(job.asked.model_copy(update={"keep": NONE}))
    technique, plan, reasons, anchors = choose(config)
    assert type(technique) is type(job.technique), "a budget decides no technique"
    return replace(
        job,
        config=_lasting(config, job.base),
        plan=replace(plan, shares=job.plan.shares),
        reasons=reasons | decided,
        anchors=anchors,
        budget=None,
        warnings=(*job.warnings, why),
    )


def _lasting(config: RunConfig, base: Base) -> RunConfig:
    """The configuration with every path whole, so that its run file works from any folder."""
    whole: dict[str, object] = {
        key: str(Path(path).resolve()) for key in ("valid", "test") if (path := getattr(config, key))
    }
    sources = tuple(str(Path(source).resolve()) for source in config.sources)
    if config.data != IN_MEMORY:
        whole["data"] = sources[0] if len(sources) == 1 else sources
    if config.skills is not None:
        parts = [part.strip() for part in config.skills.split(",")]
        whole["skills"] = ",".join(
            part if part in TASKS.names() or not Path(part).exists() else str(Path(part).resolve()) for part in parts
        )
    if config.anchors:
        whole["anchors"] = {name: _whole(ANCHORS.get(name), options) for name, options in config.anchors.items()}
    return config.model_copy(update=whole | {"model": base.source})


def _whole(kind: type[Anchor], options: Mapping[str, Any]) -> dict[str, Any]:
    return {**options, **{key: str(Path(options[key]).resolve()) for key in kind.paths if options.get(key)}}


def _describe(
    display: Display, splits: Splits, train: Sequence[Example], heldout: Sequence[Example], limit: int
) -> tuple[str, ...]:
    tokens, counted = sum(len(e.ids) for e in train), sum(e.answer_tokens for e in train)
    display.say(
        f"data: {len(splits.train)} training, {len(splits.valid)} validation, {len(splits.test)} test rows "
        f"({splits.shape}); {splits.rule}"
    )
    if splits.extras:
        display.say(f"not read: {', '.join(splits.extras)}")
    display.say(f"training rows hold {tokens:,} tokens, {counted:,} of them answers")
    warnings = []
    cut = [example for example in (*train, *heldout) if example.cut]
    if cut:
        lost = sum(example.cut for example in cut)
        warnings.append(f"{len(cut)} rows are longer than {limit} tokens and lose {lost:,} tokens at their end")
    found = audit(splits)
    warnings += found.findings()
    for line in found.lines():
        display.say(line)
    if not heldout:
        warnings.append("no row is held out: nothing can be said about what was gained")
    for warning in warnings:
        display.say(f"warning: {warning}")
    return tuple(warnings)


def _describe_mixture(display: Display, train: Sequence[Example], plan: Plan) -> tuple[str, ...]:
    order = order_for(Examples(train).tasks, plan.shares, plan.batch, plan.epochs, plan.seed)
    if not isinstance(order, MixedOrder):
        return ()
    for line in order.lines():
        display.say(line)
    for warning in order.dry():
        display.say(f"warning: {warning}")
    return tuple(order.dry())


def tried(job: Job) -> Forecast:
    """What training on the rows will take, by a trial of it."""
    rows = rows_tried(job.base.decoder, job.taught, job.begins)
    return forecast(job.base.decoder, rows, Examples(job.valid), job.plan)


def with_anchors(alone: Forecast, anchors: Sequence[Anchor]) -> Forecast:
    """The same with the text that anchors read beside the rows, a token of which counts as one of theirs."""
    times = 1 + sum(anchor.beside for anchor in anchors)
    return replace(alone, tokens=round(times * alone.tokens), train_seconds=times * alone.train_seconds)


def preview(job: Job, display: Display) -> Forecast:
    """Say what will run, why, and what it will take."""
    with display.stage("forecast"):
        expected = with_anchors(tried(job), job.anchors)
    total = count_parameters(job.base.decoder.parameters())
    display.say(
        f"{job.technique.title} on {job.base.name}: {expected.trained_parameters:,} of {total:,} parameters train "
        f"({expected.trained_parameters / total:.2%})"
    )
    display.say(f"learning rate {job.plan.learning_rate:g}: {job.reasons['learning rate']}")
    display.say(
        f"forecast: {expected.steps} steps, {expected.tokens:,} tokens at {expected.tokens_per_second:.0f} tokens/s: "
        f"about {duration(expected.seconds)} of training, {size(expected.memory_bytes)} of memory"
    )
    say_beside(job, expected, display)
    return expected


def say_beside(job: Job, expected: Forecast, display: Display) -> None:
    """Say what comes before and after training, and how this machine could be quicker."""
    if hint := advice(Place(job.base.decoder.device, job.base.decoder.compute_dtype)):
        display.say(hint)
    if job.begins:
        once = f"what enters block {job.begins} is computed once for every row"
        display.say(f"{once}, which takes {duration(expected.below_seconds)} of this the first time")
    if held := guarded(job.tasks):
        display.say(warn_of(held))
    read, written = judge.work(job.base, paper_of(job), job.tasks)
    sitting = (read + WRITING * written) / expected.forward_tokens_per_second
    if job.config.each:
        display.say("then one adapter a task on its own rows: in all about as long again")
    display.say(f"measuring: up to {duration(sitting)} for the tuned model, as long for the base where it is not known")


def paper_of(job: Job) -> judge.Paper:
    """What is measured before and after."""
    encoder = job.base.encoder(job.technique.room(job.base.decoder))
    return judge.set_paper(encoder, job.train, job.valid, job.test, job.config.seed)


def rows_of(job: Job, display: Display) -> tuple[Examples, Examples]:
    """Training and validation rows as training reads them."""
    train, valid = (rows_kept(job.base, part, job.begins, display.stage) for part in (job.taught, job.valid))
    return train, valid


def holds_of(job: Job, display: Display) -> list[Hold]:
    """The anchors at work on what the decoder is now; what they know of a row goes by its number in `rows_of`."""
    train, _ = rows_of(job, display)
    ground = Ground(job.base, job.technique, train, job.plan, display.stage)
    return [anchor.hold(ground) for anchor in job.anchors]


def settings_of(job: Job) -> dict[str, str]:
    """Every setting by name, as people read it."""
    config, plan = job.config, job.plan
    options = job.technique.model_dump().items()
    settings = {name: ", ".join(map(str, value)) if isinstance(value, tuple) else str(value) for name, value in options}
    settings |= {
        "learning rate": f"{plan.learning_rate:g}",
        "epochs": f"{config.epochs:g}",
        "batch": f"{config.batch} rows",
        "schedule": "linear",
        "seed": str(config.seed),
    }
    if len(config.sources) > 1:
        settings |= _mixing(config, plan)
    if job.canaries:
        settings["canaries"] = f"{len(job.canaries)} planted as {len(job.planted)} rows"
    if held := guarded(job.tasks):
        settings[GUARD] = held
    if job.begins:
        settings["training begins at"] = f"block {job.begins} of {job.base.decoder.config.layers}"
    return settings | {f"anchor {anchor.name}": _listed(anchor) for anchor in job.anchors}


def _mixing(config: RunConfig, plan: Plan) -> dict[str, str]:
    """How the tasks come together."""
    if config.sequence:
        return {"tasks": "one after another"}
    return {"tasks": ", ".join(f"{task} {share:.0%}" for task, share in plan.shares.items()), "stop on": plan.stop_on}


def _listed(anchor: Anchor) -> str:
    return ", ".join(f"{name} {value}" for name, value in anchor.model_dump(exclude_none=True).items())
