"""A trained model taken as far along its way as a budget allows, and the record of how that place was found."""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from graftwood.base import Base
from graftwood.choose.budget import Budget, percent
from graftwood.choose.dial import Look, Settled, settle
from graftwood.choose.relation import learn, read_relation
from graftwood.choose.reserve import wanted
from graftwood.data.batch import Examples
from graftwood.deciding import Deciding
from graftwood.errors import StorageError
from graftwood.evals import asking, skills
from graftwood.evals.asking import Scores
from graftwood.evals.card import Arm, Candidate, Choice, Decision, Estimate, FullRun
from graftwood.evals.decision import decide, is_open, together, too_few
from graftwood.evals.retention import compare
from graftwood.evals.task import Task
from graftwood.files import sha256_text, storage, write_json
from graftwood.generate.engine import Engine
from graftwood.job import Job, settings_of
from graftwood.model.decoder import count_parameters
from graftwood.progress import Display
from graftwood.train.forecast import full_seconds, planned
from graftwood.train.loop import mean_loss, way_back
from graftwood.training import Trained

SPARED, PASSES = 0.08, 3  # of a run for a certificate's items in reserve; a token trained takes as long as three read
SMALLEST = 0.01  # a budget below a percent is none


class Looks:
    """A trained model on its way, read at places that `go` takes it to."""

    def __init__(self, base: Base, go: Callable[[float], None], deciding: Deciding, display: Display) -> None:
        self._base, self._go, self._deciding, self._display = base, go, deciding, display

    def look(self, alpha: float) -> Look:
        """Validation loss and drift there."""
        self._go(alpha)
        loss = mean_loss(self._base.decoder, self._deciding.rows)
        assert loss is not None, "a budget needs validation rows"
        drift = float(compare(self._base.decoder, self._deciding.probe).drift.mean())
        self._display.say(f"dial {alpha:g}: validation loss {loss:.4f}, drift {drift:.4f}")
        return Look(alpha, loss, drift)


class Keeper(Looks):
    """The same, certified: what the base could do is asked again, abilities without room above chance aside.

    What was certified is kept in `file`, and the seconds it took with it, so that a run that was stopped in the middle
    asks nothing twice; `key` names the training it belongs to and what decides. `note` is called after every one. How
    many items in reserve a certificate may ask goes by the tokens that were `trained`.
    """

    def __init__(
        self,
        base: Base,
        go: Callable[[float], None],
        deciding: Deciding,
        budget: Budget,
        file: Path,
        key: str,
        display: Display,
        note: Callable[[], None] = lambda: None,
        trained: float = math.inf,
    ) -> None:
        super().__init__(base, go, deciding, display)
        self._before, self._budget = [scores for scores in deciding.scores if skills.counts(scores)], budget
        self._more: dict[Task, Scores] = {}
        self._costs: dict[Task, int] = {}
        # A budget that no model could show without what is in reserve may cost what it costs.
        shown_by_few = too_few(self._before, budget.kept, budget.worst) is None
        self._most = SPARED * PASSES * trained if shown_by_few else math.inf
        self.once = 0.0  # seconds in which the base itself was asked, whose answers stay in the cache
        self._file, self._key, self._note = file, key, note
        stored = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        resumed = stored.get("key") == key and "seconds" in stored
        known = stored["decisions"] if resumed else {}
        self._seconds: dict[str, float] = stored["seconds"] if resumed else {}
        self.before = sum(self._seconds.values())
        # What other runs found out meanwhile would send a resumed choice another way.
        self._asked = deciding.asked(base)
        fresh = read_relation(base.fingerprint, self._asked).drift_limit(budget.kept)
        self._limit: float | None = stored["drift_limit"] if resumed else fresh
        self._known = {alpha: Decision.model_validate(decision) for alpha, decision in known.items()}

    @property
    def items(self) -> int:
        """How many items decide."""
        return sum(len(scores.right) for scores in self._before)

    def certify(self, alpha: float) -> Decision:
        """The base's abilities asked again there, on the items that decide."""
        name = f"{alpha:.4f}"
        if name not in self._known:
            started, once = time.monotonic(), self.once
            self._known[name] = self._decided(alpha)
            self._seconds[name] = time.monotonic() - started - (self.once - once)
            decisions = {alpha: decision.model_dump() for alpha, decision in self._known.items()}
            certified = {"drift_limit": self._limit, "decisions": decisions, "seconds": self._seconds}
            with storage(f"write {self._file}"):
                write_json(self._file, {"key": self._key, **certified})
            self._note()
        decision = self._known[name]
        held = "within" if decision.passed else "over"
        kept = f"{shown(decision.kept)} of the base"
        self._display.say(f"dial {alpha:g}: keeps {kept}, {held} the budget of {self._budget}")
        return decision

    def _decided(self, alpha: float) -> Decision:
        budget, reserve = self._budget, self._deciding.reserve
        self._go(alpha)
        engine = self._engine()
        after = skills.score_again(self._base, engine, lambda what: None, self._before)
        decision = decide(self._before, after, budget.kept, budget.worst)
        if not reserve or not is_open(decision, budget.kept, budget.worst):
            return decision
        keeps = f"dial {alpha:g}: keeps {shown(decision.kept)} of the base"
        asked, low = wanted(
            self._before, after, reserve, budget.kept, budget.worst, cost=self._tokens_of, most=self._most
        )
        if not asked:
            self._display.say(f"{keeps}, and as many more items as may be asked would not do")
            return decision.model_copy(update={"likely_low": low})
        self._display.say(f"{keeps}, so {_counted(asked)} more are asked")
        more = self._of_base(asked, alpha)
        again = skills.score_again(self._base, engine, lambda what: None, more)
        before, after = together(self._before, more), together(after, again)
        names = [scores.task.name for scores in self._before]  # one that did worse on more items does not drop out
        return decide(before, after, budget.kept, budget.worst, names)

    def _tokens_of(self, part: Task) -> int:
        if part not in self._costs:
            self._costs[part] = sum(asking.work(self._base, part))
        return self._costs[part]

    def _of_base(self, asked: Sequence[Task], alpha: float) -> list[Scores]:
        """The base's own scores of items in reserve, asked the first time on this machine."""
        if new := [part for part in asked if part not in self._more]:
            started = time.monotonic()
            self._go(0.0)
            found = skills.base_scores(self._base, self._engine(), lambda what: None, new)
            self._more |= dict(zip(new, found, strict=True))
            self._go(alpha)
            self.once += time.monotonic() - started
        return [self._more[part] for part in asked]

    def _engine(self) -> Engine:
        return Engine(self._base.decoder, self._base.tokenizer.eos, self._base.tokenizer)

    def settle(self) -> Settled:
        """The place that is shipped; what was certified is learned for the next run."""
        deciding = self._deciding
        settled = settle(self, deciding.base_loss, self._budget.kept, self._limit, answer=deciding.answer)
        drifts = {look.alpha: look.drift for look in settled.looks}
        kept = [(drifts[alpha], decision.kept) for alpha, decision in settled.decisions.items()]
        points = [(drift, k.low, k.value) for drift, k in kept if k.low is not None and k.value is not None]
        try:
            learn(self._base.fingerprint, self._asked, tuple(points))
        except StorageError as error:  # it would only have helped later runs
            self._display.say(f"warning: {error}")
        self._go(settled.shipped or 0.0)
        return settled


def keep(
    job: Job,
    trained: Trained,
    deciding: Deciding,
    out: Path,
    display: Display,
    note: Callable[[], None] = lambda: None,
) -> Choice:
    """Take the trained model as far along its way as the budget allows, and say how that was found.

    `note` is called after every certificate.
    """
    budget, progress = job.budget, trained.progress
    assert budget is not None
    started = time.monotonic()
    trained_by = f"{job.plan} {job.technique!r} {job.anchors!r} step {progress.best_step} {budget}"
    key = sha256_text(trained_by, deciding.key(job.base))
    plain = int(Examples(job.taught).sizes.sum() * trained.epochs)
    go = way_back(job.base.decoder, job.technique, out / "checkpoints")
    keeper = Keeper(job.base, go, deciding, budget, out / "decisions.json", key, display, note, plain)
    settled, base_loss = keeper.settle(), deciding.base_loss
    arm = Arm(
        name=job.recipe,
        settings=settings_of(job),
        steps=progress.step,
        tokens=progress.tokens,
        seconds=progress.train_seconds,
        fate="dropped" if settled.shipped is None else "shipped",
        candidates=candidates(settled),
    )
    choice = Choice(
        budget=budget.kept,
        worst_budget=budget.worst,
        base_loss=base_loss,
        items=keeper.items,
        arms=(arm,),
        shipped=None if settled.shipped is None else arm.name,
        dial=settled.shipped,
        why=reason(settled, base_loss, budget),
        price=price(settled, base_loss, budget),
        seconds=progress.train_seconds + keeper.before + time.monotonic() - started - keeper.once,
        tokens=progress.tokens,
        plain_seconds=progress.train_seconds - progress.held_seconds,
        plain_tokens=plain,
        full=full_run(job, trained, plain),
    )
    display.say(choice.why + (f"; {choice.price}" if choice.price else ""))
    return choice


def _counted(parts: Sequence[Task]) -> str:
    """How many items of which ability."""
    items = Counter[str]()
    for part in parts:
        items[part.title] += len(part.items())
    return " and ".join(f"{count} of {title}" for title, count in items.items())


def full_run(job: Job, trained: Trained, plain: int) -> FullRun | None:
    """One full fine-tune of the same rows: this run where it was one, of `plain` tokens of rows, else an estimate.

    None where there is nothing to estimate from, or where no full fine-tune can be: of a base in another precision.
    """
    decoder, progress = job.base.decoder, trained.progress
    steps, tokens = planned(Examples(job.taught), job.plan)
    if trained.parameters == count_parameters(decoder.parameters()):
        own = progress.train_seconds - progress.held_seconds
        if progress.ended is not None:
            return FullRun(seconds=own, tokens=plain, source="measured, without what held it to the base")
        source = f"an estimate, from the {progress.step} of {steps} steps of this run"
        return FullRun(seconds=own * tokens / max(1, plain), tokens=tokens, source=source)
    if job.expected is None or decoder.base_precision != "full":
        return None
    seconds = full_seconds(decoder, steps, tokens, job.expected.forward_tokens_per_second)
    return FullRun(seconds=seconds, tokens=tokens, source="an estimate, from the forecast's speed")


def candidates(settled: Settled) -> tuple[Candidate, ...]:
    """Every place that was looked at, as the record keeps it."""
    return tuple(
        Candidate(dial=look.alpha, loss=look.loss, drift=look.drift, decision=settled.decisions.get(look.alpha))
        for look in settled.looks
    )


def reason(settled: Settled, base_loss: float, budget: Budget) -> str:
    """Why this place is shipped, or why none is."""
    looks = {look.alpha: look for look in settled.looks}
    best = min(settled.looks, key=lambda look: look.loss)
    if settled.shipped is None:
        if best.loss >= base_loss:
            return "nowhere on the way is the validation loss below the base's own"
        failed = {alpha: found for alpha, found in settled.decisions.items() if not found.passed}
        lows = {alpha: found.kept.low for alpha, found in failed.items()}
        near = max(lows, key=lambda alpha: -math.inf if (low := lows[alpha]) is None else low, default=None)
        why = "" if near is None else f": dial {near:g}, the nearest to it, {'; '.join(failed[near].why)}"
        return f"no place with a gain was certified to keep {budget} of the base{why}"
    share = (base_loss - looks[settled.shipped].loss) / (base_loss - best.loss)
    gain = f"{percent(round(share, 3))} of the best gain"
    if any(not decision.passed for decision in settled.decisions.values()):
        return f"dial {settled.shipped:g} is the farthest place that was certified, with {gain}"
    return f"dial {settled.shipped:g} has {gain} and is the nearest to the base that has nearly all of it"


def price(settled: Settled, base_loss: float, budget: Budget) -> str | None:
    """What a smaller budget would buy: the failed place with the most gain, and the bounds that failed there."""
    looks = {look.alpha: look for look in settled.looks}
    failed = [(looks[alpha].loss, alpha) for alpha, decision in settled.decisions.items() if not decision.passed]
    if not failed:
        return None
    loss, alpha = min(failed)
    decision = settled.decisions[alpha]
    bounds = (("--keep", decision.kept.low, budget.kept), ("--keep-worst", decision.worst_kept.low, budget.worst))
    short = {flag: low or 0.0 for flag, low, least in bounds if least is not None and (low is None or low < least)}
    if loss >= base_loss or any(low < SMALLEST for low in short.values()):
        return None
    asked = " ".join(f"{flag} {int(100 * low)}%" for flag, low in short.items())
    return f"{asked} would ship dial {alpha:g}: validation loss {base_loss:.3f} -> {loss:.3f}"


def shown(estimate: Estimate) -> str:
    """A share with its interval: `97.1% (95.4..98.9)`."""
    if estimate.value is None:
        return f"unknown ({estimate.note})"
    if estimate.low is None or estimate.high is None:
        return f"{100 * estimate.value:.1f}%"
    return f"{100 * estimate.value:.1f}% ({100 * estimate.low:.1f}..{100 * estimate.high:.1f})"
