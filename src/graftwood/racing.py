"""A budget found by a race: several recipes begin, few go on, the winner trains to its end and keeps the budget."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from graftwood.anchor import narrow
from graftwood.base import open_base
from graftwood.checkpoint import load_step, step_folders
from graftwood.choose.dial import Look
from graftwood.choose.race import RUNGS, WON, Raced, Standing, race, standing
from graftwood.choose.recipe import FULL, entrants
from graftwood.choose.relation import read_relation
from graftwood.config import RunConfig
from graftwood.data.batch import Examples
from graftwood.deciding import ROWS, WINDOWS, Deciding
from graftwood.draft import choose, unsuited
from graftwood.errors import ConfigError
from graftwood.evals import judge
from graftwood.evals.card import Arm, Candidate, Card, Choice, FullRun
from graftwood.files import atomic_write, sha256_text, storage, write_json
from graftwood.job import Job, holds_of, rows_of, say_beside, settings_of, tried, with_anchors
from graftwood.keeping import Looks, keep
from graftwood.model.quantised import quantise
from graftwood.progress import Display, duration, size
from graftwood.runtime import give_back_memory, place
from graftwood.samples import LENGTH
from graftwood.train.forecast import Forecast, planned
from graftwood.train.loop import START, Evaluated, NonFiniteLossError, Progress, Trainer, way_back
from graftwood.training import ARMS, RACE, Trained, drive
from graftwood.tuning import Lesson, begin, measure_base, report, trainer_of

SECONDS = "seconds.json"  # what the race has taken, beside where its recipes stand
DECAY = 0.5  # level, then falling over this share of the steps: any prefix of it is a run that can go on


class Watch:
    """The seconds that a race has taken, those before a stop with them; it runs from when it is made."""

    def __init__(self, file: Path, resume: bool) -> None:
        self._file, self._since = file, time.monotonic()
        found = resume and file.exists()
        self._before = float(json.loads(file.read_text(encoding="utf-8"))["seconds"]) if found else 0.0

    @property
    def seconds(self) -> float:
        """All of them until now."""
        return self._before + time.monotonic() - self._since

    def note(self) -> None:
        """Write them down: a race that is killed goes on from there."""
        with storage(f"write {self._file}"):
            write_json(self._file, {"seconds": self.seconds})


@dataclass
class Start:
    """What the first recipe found before its first step, of the base: it holds for all, and no other finds it again."""

    progress: Progress | None = None
    logged: str = ""

    def give(self, trainer: Trainer, folder: Path) -> None:
        """Let a recipe that has not begun begin after that."""
        if self.progress is None or step_folders(trainer.folder):
            return
        with storage(f"write into {folder}"):
            atomic_write(folder / "metrics.jsonl", self.logged)
        trainer.progress = self.progress
        trainer.save()

    def take(self, trainer: Trainer, folder: Path) -> None:
        """Keep it, where nobody did."""
        if self.progress is None:
            found = Progress(**load_step(trainer.folder / START).state["progress"])
            self.progress = replace(found, aside_seconds=0.0)
            self.logged = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)[0]


@dataclass(frozen=True)
class Race:
    """What all recipes share: what ranks them, the seconds of them all, what the first found of the base."""

    deciding: Deciding
    watch: Watch
    start: Start


class Recipe:
    """One recipe of the race, beside the job that asks for it."""

    def __init__(self, job: Job, config: RunConfig) -> None:
        self.technique, plan, self.reasons, self.anchors = choose(config)
        self.plan = replace(plan, decay_share=DECAY, shares=job.plan.shares)
        self._job, self._config = job, config

    @property
    def problems(self) -> list[str]:
        """What keeps it from racing on this base."""
        return unsuited(self._config, self.technique, self.anchors, self._job.base.decoder)

    @property
    def settings(self) -> dict[str, str]:
        """Its settings by name, as people read them."""
        parts = {"technique": self.technique, "plan": self.plan, "anchors": self.anchors, "config": self._config}
        return settings_of(replace(self._job, **parts))  # type: ignore[arg-type]

    @property
    def name(self) -> str:
        """Technique, anchors and rate."""
        return f"{' + '.join((self.technique.name, *(a.name for a in self.anchors)))} at {self.plan.learning_rate:g}"

    @property
    def planned(self) -> tuple[int, int]:
        """Steps and tokens of its rows, did it go to its end."""
        return planned(Examples(self._job.taught), self.plan)

    def job(self) -> Job:
        """The recipe on a base of its own, ready to train."""
        config, given = self._config, self._job
        base = open_base(given.base.source, place(config.device, config.dtype))
        if base.fingerprint != given.base.fingerprint:
            raise ConfigError(f"{given.base.name} is not what {given.base.source} holds; export it and race on that")
        quantise(base.decoder, config.base_precision)
        technique = self.technique.read(base.tokenizer.encode)
        technique.apply(base.decoder, config.seed)
        begins = narrow(self.anchors, base.decoder)
        recipe = {"technique": technique, "plan": self.plan, "reasons": self.reasons, "anchors": self.anchors}
        return replace(given, config=config, base=base, begins=begins, **recipe)  # type: ignore[arg-type]


class Runner(Recipe):
    """One recipe in the race: trained rung by rung in a folder of its own, its standings kept there."""

    def __init__(self, job: Job, config: RunConfig, shared: Race, out: Path, display: Display) -> None:
        super().__init__(job, config)
        self._race, self._display = shared, display
        self.folder = out / ARMS / self.name.replace(" ", "")
        self.tally = _tally(Progress())

    def train(self, share: float = 1.0) -> tuple[Job, Trained]:
        """Train from the last checkpoint until a share of the steps; at the end the best parameters are put back.

        Raises: KeyboardInterrupt where Ctrl-C came before the end: what it left is saved, and ranks nowhere.
        """
        job = self.job()
        gauge = judge.drift_gauge(job.base, self._race.deciding.probe)
        lesson = Lesson(*rows_of(job, self._display), job.plan, holds_of(job, self._display))
        trainer = trainer_of(job, lesson, gauge, self.folder, self._display)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._race.start.give(trainer, self.folder)
        until = None if share == 1 else _until(share, trainer.order.steps)
        try:  # what lies in the folder is of this race: another's was refused
            curve = drive(trainer, self.folder, self._display, resume=True, remark=self._noted, until=until)
        finally:
            self.tally = _tally(trainer.progress)
        self._race.start.take(trainer, self.folder)
        if trainer.stop and until is not None:
            self._display.say("the race ends here, before it was won")
            raise KeyboardInterrupt
        return job, Trained.by(trainer, curve)

    def _noted(self, event: Evaluated) -> dict[str, Any]:
        self._race.watch.note()  # a checkpoint is due
        return {}

    def stand(self, share: float, drift_limit: float) -> Standing | None:
        """Train on until this share of the steps and say where it stands; what was found before is read."""
        file = self.folder / "standings.json"
        known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        name = f"{share:g}"
        if name not in known:
            found = self._stood(share, drift_limit)
            known[name] = {"standing": found and asdict(found), "trained": self.tally}
            with storage(f"write {file}"):
                write_json(file, known)
            self._race.watch.note()
        told = known[name]["standing"]
        self.tally = known[name]["trained"]
        return told and Standing(Look(**told["end"]), Look(**told["within"]), told["gain"])

    def _stood(self, share: float, drift_limit: float) -> Standing | None:
        try:
            job, _ = self.train(share)
        except NonFiniteLossError as error:
            if self.tally["steps"] == 0:  # of the base itself: the rows are to blame, for every recipe
                raise
            self._display.say(f"{self.name} diverges: {error}")
            return None
        go = way_back(job.base.decoder, job.technique, self.folder / "checkpoints")
        looks = Looks(job.base, go, self._race.deciding, self._display)
        found = standing(looks.look, self._race.deciding.base_loss, drift_limit)
        told = (value for look in (found.end, found.within) for value in (look.loss, look.drift))
        return found if all(map(math.isfinite, told)) else None


def _until(share: float, steps: int) -> int:
    """The step that ends a rung."""
    return max(1, round(share * steps))


def preview_race(job: Job, display: Display) -> Forecast:
    """Say who races and what that will take, should those that train longest stay in the race.

    A technique is tried once, on a base of its own beside the one that is open, as it will train.

    Raises: ConfigError where no recipe fits.
    """
    entered = [Recipe(job, config) for config in entrants(job.config)]
    recipes = [recipe for recipe in entered if not recipe.problems]
    if not recipes:
        why = "; ".join(f"{recipe.name}: {', '.join(recipe.problems)}" for recipe in entered)
        raise ConfigError(f"no recipe of the race fits: {why}")
    known: dict[str, Forecast] = {}
    with display.stage("forecast of each technique in the race"):
        for recipe in recipes:
            if repr(recipe.technique) not in known:
                known[repr(recipe.technique)] = tried(recipe.job())
                give_back_memory()  # of that base, before the next is opened
    expected = of_race([with_anchors(known[repr(recipe.technique)], recipe.anchors) for recipe in recipes], job)
    display.say(f"a race of {len(recipes)}: {', '.join(recipe.name for recipe in recipes)}")
    display.say(
        f"forecast: up to {expected.steps} steps, {expected.tokens:,} tokens at {expected.tokens_per_second:.0f} "
        f"tokens/s: about {duration(expected.seconds)} of training where those stay in that train longest, "
        f"{size(expected.memory_bytes)} of memory"
    )
    say_beside(job, expected, display)
    return expected


def of_race(each: Sequence[Forecast], job: Job) -> Forecast:
    """What a race takes at most, by what each who races would take alone; looks count among the evaluations."""
    slowest = sorted(each, key=lambda one: -one.train_seconds)
    steps = each[0].steps
    ends, fields = [0, *(_until(rung.share, steps) for rung in RUNGS), steps], [len(each), *(r.stay for r in RUNGS)]
    legs = [(one, (ends[leg + 1] - ends[leg]) / steps) for leg, stay in enumerate(fields) for one in slowest[:stay]]
    both = sum(sorted((len(example.ids) for example in job.valid), reverse=True)[:ROWS]) + WINDOWS * LENGTH
    looked = both / 2  # `Deciding.half`
    looks = sum(2 * looked / one.forward_tokens_per_second for stay in fields[:-1] for one in slowest[:stay])
    tokens = sum(one.tokens * share for one, share in legs)
    seconds = sum(one.train_seconds * share for one, share in legs)
    return replace(
        each[0],
        steps=round(sum(steps * share for _, share in legs)),
        tokens=round(tokens),
        trained_parameters=max(one.trained_parameters for one in each),
        train_seconds=seconds,
        valid_seconds=sum(one.valid_seconds * share for one, share in legs) + looks,
        below_seconds=max(one.below_seconds for one in each),
        memory_bytes=max(one.memory_bytes for one in each),
        tokens_per_second=tokens / seconds,
    )


def execute_race(job: Job, out: Path, display: Display, resume: bool) -> Card:
    """Measure the base, race for the budget, train the winner to its end, keep the budget, measure again."""
    begin(job, out, resume)
    started = time.monotonic()
    known = measure_base(job, out, display)
    measured = time.monotonic() - started
    watch = Watch(out / ARMS / SECONDS, resume)
    deciding = known.deciding
    assert deciding is not None, "a race is for a budget"
    with job.base.decoder.without_deltas():
        shared = Race(deciding.half(job.base), watch, Start())
    runners = []
    for config in entrants(job.config):
        runner = Runner(job, config, shared, out, display)
        if problems := runner.problems:
            display.say(f"{runner.name} does not race: {'; '.join(problems)}")
        else:
            runners.append(runner)
    limit = limit_of(job, runners, deciding, out, resume)
    try:
        winner, ways = race(runners, limit, say=display.say)
        (best,) = [runner for runner in runners if runner.name == winner]
        ran, trained = best.train()
        kept = keep(ran, trained, deciding, best.folder, display, watch.note)
    finally:
        watch.note()
    choice = with_field(kept, runners, ways, watch.seconds, trained.progress.aside_seconds)
    for name in ("metrics.jsonl", "curve.svg", "curve.png", "decisions.json"):
        if (best.folder / name).exists():
            atomic_write(out / name, (best.folder / name).read_bytes())
    return report(ran, known, trained, choice, out, display, measured)


def limit_of(job: Job, runners: Sequence[Runner], deciding: Deciding, out: Path, resume: bool) -> float | None:
    """The drift that the race allows: a race that goes on ranks as it began, whatever was learned meanwhile.

    Raises: ConfigError where what is to go on was begun with other rows, another model or other recipes.
    """
    assert job.budget is not None, "a race is for a budget"
    rows = [f"{example.ids} {example.answer}" for example in (*job.taught, *job.valid)]
    recipes = [f"{runner.technique!r} {runner.plan} {runner.anchors!r}" for runner in runners]
    asked = [f"{job.budget!r}", *(task.key for task in job.tasks)]
    key = sha256_text(job.base.fingerprint, *rows, *recipes, *asked)
    file = out / ARMS / RACE
    if not resume:
        limit = read_relation(job.base.fingerprint, deciding.asked(job.base)).drift_limit(job.budget.kept)
        with storage(f"write {file}"):
            write_json(file, {"key": key, "drift_limit": limit})
        return limit
    kept = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    if kept.get("key") != key:
        raise ConfigError(
            f"{out} is of another race: its rows, model, recipes or abilities are not those given now; give what was "
            "given there, or another folder with --out"
        )
    limit_then: float | None = kept["drift_limit"]
    return limit_then


def with_field(
    choice: Choice, runners: Sequence[Runner], ways: Sequence[Raced], seconds: float, aside: float
) -> Choice:
    """The choice with everyone who raced, the tokens that all of them read, and the seconds that all of it took.

    `aside` are those of the winner's validations and checkpoints, which are among these.
    """
    (won,) = choice.arms
    arms = []
    for runner, way in zip(runners, ways, strict=True):
        if way.fate == WON:
            arms.append(won.model_copy(update={"name": way.name, "fate": f"{way.fate}, {won.fate}"}))
            continue
        looked = tuple(
            Candidate(dial=look.alpha, loss=look.loss, drift=look.drift, trained=rung.share)
            for rung, standing in zip(RUNGS, way.standings, strict=False)  # who is dropped has no standing after it
            for look in dict.fromkeys((standing.end, standing.within))
        )
        arms.append(Arm(name=way.name, settings=runner.settings, fate=way.fate, candidates=looked, **runner.tally))
    others = [runner.tally for runner, way in zip(runners, ways, strict=True) if way.fate != WON]
    (name,) = [way.name for way in ways if way.fate == WON]
    return choice.model_copy(
        update={
            "arms": tuple(arms),
            "shipped": None if choice.shipped is None else name,
            "why": f"{name} won a race of {len(ways)}; {choice.why}",
            "seconds": seconds,
            "tokens": choice.tokens + sum(int(one["tokens"]) for one in others),
            "full": raced_in_full(choice.full, runners, name, aside),
        }
    )


def raced_in_full(known: FullRun | None, runners: Sequence[Runner], winner: str, aside: float) -> FullRun | None:
    """One full fine-tune, reckoned from the steps that it raced; what is known without where it won or did not race.

    Where it won it had validations and checkpoints as the race had.
    """
    full = [runner for runner in runners if runner.technique.name == FULL]
    raced = next((runner for runner in full if not runner.anchors and runner.tally["tokens"]), None)
    if known is not None and any(runner.name == winner for runner in full):
        source = f"{known.source}, its validations and checkpoints with it"
        return FullRun(seconds=known.seconds + aside, tokens=known.tokens, source=source)
    if raced is None:
        return known
    (steps, tokens), tally = raced.planned, raced.tally
    source = f"an estimate, from the {tally['steps']} of {steps} steps that it raced"
    return FullRun(seconds=tally["seconds"] * tokens / tally["tokens"], tokens=tokens, source=source)


def _tally(progress: Progress) -> dict[str, Any]:
    """What training took, as the record of a choice has it."""
    return {"steps": progress.step, "tokens": progress.tokens, "seconds": progress.train_seconds}
