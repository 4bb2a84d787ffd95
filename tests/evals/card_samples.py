"""Report cards to draw: a full one, one where nothing could be measured, and hostile or extreme ones."""

from __future__ import annotations

from graftwood.evals.card import (
    Arm,
    Candidate,
    Card,
    Cell,
    Choice,
    Chosen,
    Compared,
    Cost,
    CurvePoint,
    Decision,
    Estimate,
    Figure,
    FullRun,
    Gained,
    Kept,
    Learner,
    Matrix,
    Memory,
    Sample,
    Skill,
    TaskGained,
)

GONE = Estimate(value=None, note="switched off")
HOSTILE = (
    "<script>alert('x')</script> & \"quoted\" [bold]loud[/bold] \x1b[31m\x00\u202e 汉字漢字 🎉🎉 ]]>\ufffe"
    + "wide W" * 60
)


def measured(value: float, half: float = 0.02, n: int = 300) -> Estimate:
    return Estimate(value=value, low=value - half, high=value + half, n=n)


def compared(name: str, title: str, base: float, tuned: float, half: float = 0.03, unit: str = "share") -> Compared:
    return Compared(
        name=name,
        title=title,
        unit=unit,
        higher_is_better=unit != "nats",
        base=measured(base, half / 2),
        tuned=measured(tuned, half / 2),
        change=measured(tuned - base, half),
    )


def skill(
    name: str, title: str, base: float, tuned: float, lost: int, won: int, kind: str = "choice", counted: bool = True
) -> Skill:
    chance = 0.25 if kind == "choice" else 0.0
    note = None if counted else "the base is not above chance (25.0%)"
    kept = Estimate(value=None, note=note) if note else measured((tuned - chance) / (base - chance), 0.05)
    measure = compared(name, title, base, tuned, 0.029)
    return Skill(measure=measure, kind=kind, chance=chance, lost=lost, won=won, counted=counted, kept=kept)


def task(name: str, headline: Compared, base: float, tuned: float) -> TaskGained:
    loss = compared("answer_loss", "answer loss", base, tuned, 0.08, "nats")
    return TaskGained(task=name, gained=Gained(rows=48, split="test", measures=(headline, loss)))


def matrix(tasks: tuple[str, ...], names: tuple[str, ...]) -> Matrix:
    """Every learner is a little better than the one before."""
    learners = tuple(
        Learner(
            name=name,
            cells=tuple(
                Cell(
                    loss=measured(2.0 - 0.2 * place + column), gain=measured(0.1 * place - 0.1, 0.05) if place else GONE
                )
                for column in range(len(tasks))
            ),
        )
        for place, name in enumerate(names)
    )
    figures = (
        Figure(name="BWT", title="backward transfer", value=measured(-0.031, 0.01)),
        Figure(name="FWT", title="forward transfer", value=GONE),
    )
    return Matrix(against="the base", tasks=tasks, learners=learners, figures=figures)


def full_card() -> Card:
    steps = range(0, 161, 20)
    return Card(
        created="2026-11-24T06:22:31+00:00",
        model="SmolLM2-135M-Instruct",
        model_fingerprint="9f2c41d07be3",
        data="invoices.jsonl",
        data_rows={"train": 800, "valid": 100, "test": 300},
        warnings=("3 rows appear in both train and test: they were left out of the test",),
        gained=Gained(
            rows=300,
            split="test",
            measures=(
                compared("exact", "exact match", 0.031, 0.884, 0.0355),
                compared("loss", "answer loss", 1.92, 0.31, 0.08, "nats"),
                compared("fields", "fields right", 0.412, 0.951, 0.02),
            ),
        ),
        tasks=(
            task("invoices", compared("exact_match", "exact match", 0.02, 0.91), 2.1, 0.28),
            task("receipts", compared("rouge_l", "ROUGE-L", 0.312, 0.305), 1.4, 1.39),
        ),
        matrix=matrix(("invoices", "receipts"), ("base", "after invoices", "after receipts")),
        kept=Kept(
            kept=Estimate(value=0.976, low=0.959, high=0.992, n=2000),
            worst="followed",
            skills=(
                skill("arc_easy", "science questions", 0.540, 0.532, 21, 18),
                skill("piqa", "physical sense", 0.665, 0.661, 15, 13),
                skill("lambada", "word from context", 0.312, 0.335, 18, 27, "word"),
                skill("siqa", "social sense", 0.431, 0.425, 17, 15),
                skill("followed", "requests followed", 0.793, 0.672, 14, 6, "program"),
                skill("obqa", "open-book science", 0.281, 0.302, 19, 27, counted=False),
            ),
            drift=Estimate(value=0.0213, low=0.0192, high=0.0236, n=64),
            same_next_word=Estimate(value=0.958, low=0.951, high=0.964, n=64),
            probe="64 windows of 128 tokens sampled from the base",
        ),
        memory=Memory(
            verdict="clean",
            loss_train=measured(0.27, 0.01),
            loss_heldout=measured(0.31, 0.02),
            ratio=measured(1.14, 0.05),
            membership_auc=measured(0.56, 0.04),
            extractable=measured(0.021, 0.009),
            extractable_heldout=measured(0.012, 0.007),
            extractable_base=measured(0.011, 0.006),
        ),
        chosen=Chosen(
            technique="LoRA + self-replay",
            settings={"rank": "16", "learning rate": "3e-4", "replay": "20%", "dial": "0.70", "epochs": "at most 3"},
            reasons={
                "rank": "enough for 800 rows on every linear layer",
                "learning rate": "ten times the full rate, the usual ratio for LoRA",
                "replay": "holds the base on its own samples",
                "dial": "the largest share of the update inside the 95% budget",
                "epochs": "held-out loss decides when to stop",
            },
            trained_parameters=4_884_480,
            total_parameters=134_515_008,
            stopped="held-out loss rose twice in a row",
            best_step=120,
            steps=160,
            epochs=1.6,
        ),
        cost=Cost(
            train_seconds=744.2,
            report_seconds=203.8,
            train_tokens=81_240,
            answer_tokens=40_110,
            tokens_per_second=109.2,
            peak_memory_bytes=2_140_000_000,
            machine={"cpu": "Xeon", "cores": 2, "torch": "2.9.1"},
        ),
        curve=tuple(
            CurvePoint(
                step=step,
                tokens=step * 508,
                train_loss=None if step == 0 else 0.22 + 1.7 * 0.975**step,
                valid_loss=0.31 + 1.6 * 0.965**step + (0.0012 * max(0, step - 120)),
                drift=0.028 * (1 - 0.98**step),
            )
            for step in steps
        ),
        samples=(
            Sample(
                prompt="Invoice 4711 from Baker & Sons, 3 March 2026: two desks at 120.00, total 240.00 EUR.",
                wanted='{"vendor": "Baker & Sons", "total": 240.0}',
                base="The invoice is from Baker & Sons. It is dated 3 March 2026 and it lists two desks.",
                tuned='{"vendor": "Baker & Sons", "total": 240.0}',
                base_right=False,
                tuned_right=True,
            ),
            Sample(
                prompt="Receipt: Nordlys AS, 12 lamps, 1,180.50 NOK",
                wanted='{"vendor": "Nordlys AS", "total": 1180.5}',
                base="Nordlys AS",
                tuned='{"vendor": "Nordlys", "total": 1180.5}',
                base_right=False,
                tuned_right=False,
            ),
        ),
    )


def bare_card() -> Card:
    """Everything that may be missing is."""
    full = full_card()
    blank = {"base": GONE, "tuned": GONE, "change": GONE}
    return full.model_copy(
        update={
            "warnings": (),
            "data_rows": {},
            "gained": full.gained.model_copy(
                update={"measures": tuple(m.model_copy(update=blank) for m in full.gained.measures)}
            ),
            "tasks": (TaskGained(task="nothing", gained=Gained(rows=0, split="valid", measures=())),),
            "kept": full.kept.model_copy(
                update={
                    "kept": GONE,
                    "worst": None,
                    "drift": GONE,
                    "same_next_word": GONE,
                    "skills": tuple(
                        s.model_copy(update={"measure": s.measure.model_copy(update=blank), "kept": GONE})
                        for s in full.kept.skills
                    ),
                }
            ),
            "memory": Memory(
                verdict="unknown",
                loss_train=GONE,
                loss_heldout=GONE,
                ratio=GONE,
                membership_auc=GONE,
                extractable=GONE,
                extractable_heldout=GONE,
                extractable_base=GONE,
            ),
            "chosen": full.chosen.model_copy(update={"settings": {}, "reasons": {}}),
            "cost": full.cost.model_copy(update={"machine": {}}),
            "curve": tuple(
                CurvePoint(step=s, tokens=s, train_loss=None, valid_loss=None, drift=None) for s in (10, 20)
            ),
            "samples": (),
        }
    )


def floor_card() -> Card:
    """One row, no skill, nothing kept, a single point of the curve, an estimate without interval."""
    full = full_card()
    one = Estimate(value=1.0, n=1, note="one row gives no interval")
    zero = Estimate(value=0.0, low=0.0, high=0.0, n=1)
    measure = full.gained.measures[0].model_copy(update={"base": zero, "tuned": one, "change": one})
    return full.model_copy(
        update={
            "data_rows": {"train": 1},
            "gained": Gained(rows=1, split="test", measures=(measure,)),
            "tasks": (),
            "matrix": None,
            "kept": full.kept.model_copy(update={"kept": zero, "skills": (), "worst": "nothing is left"}),
            "memory": full.memory.model_copy(update={"verdict": "severe", "ratio": measured(9.0), "extractable": one}),
            "chosen": full.chosen.model_copy(update={"best_step": 1, "steps": 1, "epochs": 1.0}),
            "curve": (CurvePoint(step=1, tokens=40, train_loss=2.0, valid_loss=2.1, drift=0.0),),
            "samples": full.samples[:1],
        }
    )


def hostile_card() -> Card:
    """Text that attacks every format, names without end, more of everything than fits, numbers out of range."""
    full = full_card()
    text = HOSTILE
    measures = tuple(m.model_copy(update={"title": text}) for m in full.gained.measures * 3)
    skills = tuple(
        s.model_copy(update={"measure": s.measure.model_copy(update={"title": text})}) for s in full.kept.skills
    )
    return full.model_copy(
        update={
            "created": text,
            "model": text,
            "model_fingerprint": text,
            "data": text,
            "data_rows": {text: 10**9},
            "warnings": (text,) * 5,
            "gained": Gained(rows=10**9, split=text, measures=measures),
            "matrix": matrix((text,) * 9, (text,) * 4),
            "tasks": tuple(
                TaskGained(task=f"{text}{i}", gained=Gained(rows=10**9, split=text, measures=measures))
                for i in range(5)
            ),
            "kept": full.kept.model_copy(
                update={"skills": skills * 3, "worst": "followed", "probe": text, "kept": measured(1.42, 0.3)}
            ),
            "memory": full.memory.model_copy(
                update={"verdict": "moderate", "membership_auc": Estimate(value=None, note=text)}
            ),
            "chosen": full.chosen.model_copy(
                update={
                    "technique": text,
                    "stopped": text,
                    "settings": {f"{text}{i}": text for i in range(9)},
                    "reasons": {f"{text}{i}": text for i in range(10)},
                    "trained_parameters": 12,
                    "total_parameters": 10**12,
                    "best_step": 10**7,
                }
            ),
            "cost": full.cost.model_copy(update={"machine": {text: text}, "train_seconds": 1e7}),
            "curve": tuple(
                CurvePoint(step=i * 1000, tokens=i, train_loss=1e6 * (i + 1), valid_loss=None, drift=1e-6 * i)
                for i in range(60)
            ),
            "samples": (
                Sample(prompt=text, wanted=text, base="", tuned="\n\n" + text, base_right=True, tuned_right=False),
            )
            * 4,
        }
    )


def raced() -> Choice:
    """A race of four that the third won, of the worst ability too; one recipe's loss and drift left every scale."""

    def told(kept: float, worst: float, passed: bool) -> Decision:
        return Decision(kept=measured(kept), worst="piqa", worst_kept=measured(worst, 0.04), passed=passed, items=700)

    def arm(name: str, fate: str, *places: Candidate) -> Arm:
        settings = {"rank": "16"}
        return Arm(name=name, settings=settings, steps=9, tokens=4000, seconds=30.0, fate=fate, candidates=places)

    def looked(trained: float, *places: tuple[float, float, float]) -> tuple[Candidate, ...]:
        return tuple(Candidate(dial=at, loss=loss, drift=drift, trained=trained) for at, loss, drift in places)

    won = (
        Candidate(dial=1.0, loss=1.2, drift=0.03, decision=told(0.938, 0.86, False)),
        Candidate(dial=0.75, loss=1.21, drift=0.017, decision=told(0.972, 0.95, True)),
        Candidate(dial=0.5, loss=1.3, drift=0.008),
    )
    early, late = looked(0.06, (1, 1.35, 0.05), (0.63, 1.45, 0.02)), looked(0.33, (1, 1.24, 0.09), (0.47, 1.33, 0.02))
    arms = (
        arm("lora + kl at 0.0015", "dropped at 33% of its steps, 0.03 nats behind", *early, *late),
        arm("full at 2e-05", "dropped at 6% of its steps, 0.4 nats behind", *looked(0.06, (1, 1.5, 0.012))),
        arm("lora + kl at 0.0005", "won the race, shipped", *won),
        arm("shira + kl at 0.0006", "dropped at 6% of its steps", *looked(0.06, (1, 9.9, 7.5), (0.1, 2.0, 0.02))),
    )
    return Choice(
        budget=0.95, worst_budget=0.9, base_loss=2.1, items=342, arms=arms, shipped="lora + kl at 0.0005", dial=0.75,
        why="lora + kl at 0.0005 won a race of 4", price="--keep 91% would ship dial 1", seconds=600.0, tokens=300_000,
        plain_seconds=200.0, plain_tokens=120_000,
        full=FullRun(seconds=300.0, tokens=120_000, source="an estimate, from the 9 of 150 steps that it raced"),
    )  # fmt: skip


NOTE = "validation rows also chose the step, the dial and the winner: give test rows"


def raced_card() -> Card:
    """The card of a race, without test rows."""
    full = full_card()
    gained = full.gained.model_copy(update={"split": "valid", "note": NOTE})
    return full.model_copy(update={"gained": gained, "choice": raced()})


CARDS = {"raced": raced_card, "full": full_card, "bare": bare_card, "floor": floor_card, "hostile": hostile_card}
