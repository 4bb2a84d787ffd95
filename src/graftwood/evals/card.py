"""The report card as data: what `report.json` holds and every picture of it is drawn from."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """A frozen part of the card; an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Estimate(Record):
    """A number with its 95% interval. A missing number or interval is None, and `note` then says why."""

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    note: str | None = None


class Compared(Record):
    """One measure on the same items before and after. `change` is tuned minus base, paired.

    `unit` is `share` (0..1, shown as per cent), `nats` or `points`.
    """

    name: str
    title: str
    unit: Literal["share", "nats", "points"]
    higher_is_better: bool
    base: Estimate
    tuned: Estimate
    change: Estimate


class Gained(Record):
    """The task on rows that were not trained on; the first measure is the headline.

    `note` says what else these rows were used for, where they are no test rows.
    """

    rows: int
    split: str
    measures: tuple[Compared, ...]
    note: str | None = None


class TaskGained(Record):
    """What was gained on one task of several."""

    task: str
    gained: Gained


class Cell(Record):
    """A model on a task: its answer loss in nats, and what that is better than something it is held against."""

    loss: Estimate
    gain: Estimate


class Learner(Record):
    """One model on every task."""

    name: str
    cells: tuple[Cell, ...]


class Figure(Record):
    """A number made from a matrix, in nats; higher is better."""

    name: str
    title: str
    value: Estimate


class Matrix(Record):
    """Models by tasks. `against` says what a cell's gain is measured from."""

    against: str
    tasks: tuple[str, ...]
    learners: tuple[Learner, ...]
    figures: tuple[Figure, ...] = ()


class Skill(Record):
    """One ability of the base, before and after. `counted` is false where the base has no room above chance.

    `soft` compares the probability of the right answer. `p_value` is McNemar's for lost against won, corrected for how
    many abilities were compared.
    """

    measure: Compared
    kind: Literal["choice", "word", "text", "program", "code"]
    chance: float
    lost: int
    won: int
    counted: bool
    kept: Estimate
    soft: Compared | None = None
    p_value: float | None = None


class Kept(Record):
    """What is left of the base: the kept share of its abilities, and how far its next-word distribution moved."""

    kept: Estimate
    worst: str | None
    skills: tuple[Skill, ...]
    drift: Estimate
    same_next_word: Estimate
    probe: str


class FoundCanary(Record):
    """One made-up secret that was planted: bits of exposure, and whether a greedy answer is it word for word."""

    asked: str
    secret: str
    repeats: int
    exposure: float
    verbatim: bool


class Canaries(Record):
    """Every planted secret, each compared with others like it, and their mean exposure in bits."""

    compared: int
    exposure: Estimate
    found: tuple[FoundCanary, ...]


class Memory(Record):
    """Whether the tuned model learned the rows or learned them by heart.

    `exposure` is in bits, how far up training answers stand among twins with other names and numbers.
    """

    verdict: Literal["clean", "mild", "moderate", "severe", "unknown"]
    loss_train: Estimate
    loss_heldout: Estimate
    ratio: Estimate
    membership_auc: Estimate
    extractable: Estimate
    extractable_heldout: Estimate
    extractable_base: Estimate
    exposure: Estimate | None = None
    exposure_heldout: Estimate | None = None
    exposure_base: Estimate | None = None
    canaries: Canaries | None = None


class Chosen(Record):
    """What ran and why: each setting with the reason it has its value."""

    technique: str
    settings: dict[str, str]
    reasons: dict[str, str]
    trained_parameters: int
    total_parameters: int
    stopped: str
    best_step: int
    steps: int
    epochs: float


class Decision(Record):
    """What is kept in the mean and of the worst ability, and whether the budget holds; if not, `why` in a line each.

    `items` are those of the abilities that count, `needed` as many as the budget takes at least, were nothing lost.
    `likely_low` is where as many more items as may be asked would leave the lower bound, answered alike: too low.
    """

    kept: Estimate
    worst: str | None
    worst_kept: Estimate
    passed: bool
    why: tuple[str, ...] = ()
    items: int | None = None
    needed: int | None = None
    likely_low: float | None = None


class Candidate(Record):
    """One place on an arm's way from the base: validation loss (nats an answer token) and drift (nats a token).

    Where it was certified, what is kept there on the items that decide, and whether the budget held. `trained` is the
    share of its steps that a recipe had trained when a race looked at it.
    """

    dial: float
    loss: float
    drift: float
    decision: Decision | None = None
    trained: float | None = None


class Arm(Record):
    """One recipe that was tried: its settings, what it trained on, and what became of it."""

    name: str
    settings: dict[str, str]
    steps: int
    tokens: int
    seconds: float
    fate: str
    candidates: tuple[Candidate, ...] = ()


class FullRun(Record):
    """One full fine-tune of the same rows, and where its figures are from: measured, or how they were estimated."""

    seconds: float
    tokens: int
    source: str


class Choice(Record):
    """How the budget was kept: every arm and place that was tried, what is shipped, and what the choice cost.

    `shipped` names an arm and `dial` its place; both are None where nothing gained within the budget. `price` then
    says what a smaller budget would buy. `seconds` are those of the steps, the looks and the certificates, in a race of
    all that it did; `plain_seconds` is what training alone would have taken without anchors, `full` what training every
    parameter takes.
    """

    budget: float
    worst_budget: float | None
    base_loss: float
    items: int
    arms: tuple[Arm, ...]
    shipped: str | None
    dial: float | None
    why: str
    price: str | None
    seconds: float
    tokens: int
    plain_seconds: float
    plain_tokens: int
    full: FullRun | None = None


class Cost(Record):
    """What the run took on this machine; `aside_seconds` are of validations and checkpoints between the steps."""

    train_seconds: float
    aside_seconds: float = 0.0
    report_seconds: float
    train_tokens: int
    answer_tokens: int
    tokens_per_second: float
    peak_memory_bytes: int
    machine: dict[str, str | int]


class CurvePoint(Record):
    """One evaluation during training."""

    step: int
    tokens: int
    train_loss: float | None
    valid_loss: float | None
    drift: float | None


class Sample(Record):
    """One held-out row as the base and the tuned model answer it."""

    prompt: str
    wanted: str
    base: str
    tuned: str
    base_right: bool
    tuned_right: bool


class Card(Record):
    """The whole report of one run."""

    version: Literal[1] = 1
    created: str
    model: str
    model_fingerprint: str
    data: str
    data_rows: dict[str, int]
    warnings: tuple[str, ...]
    gained: Gained
    tasks: tuple[TaskGained, ...] = ()
    matrix: Matrix | None = None
    kept: Kept
    memory: Memory
    chosen: Chosen
    cost: Cost
    curve: tuple[CurvePoint, ...]
    samples: tuple[Sample, ...]
    choice: Choice | None = None
