"""What is measured of every arm, by one scorer that opens any Hugging Face folder.

Gain on the task's test rows: the metric of its answers and the loss on the right ones. What is left of the base:
requests followed, skill items that are not in the bundle, and drift on text of the base that no replay and no probe of
Graftwood draws, its samples and its answers to chat prompts.

Letters: T tokens, K tokens kept of a distribution, V vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from bench.common import BenchError
from bench.keep.records import Reading
from bench.keep.rows import Asked
from bench.keep.tasks import Target
from torch import Tensor

from graftwood.base import Base, open_base
from graftwood.data.rows import Row
from graftwood.evals import skills
from graftwood.evals.asking import score_task
from graftwood.evals.given import task_from_file
from graftwood.evals.score import answer_losses
from graftwood.evals.skills import counts
from graftwood.evals.task import TASKS, Task
from graftwood.files import write_json
from graftwood.generate.engine import Engine
from graftwood.generate.sampling import Sampling
from graftwood.model.decoder import Decoder
from graftwood.model.expected import likeliest, with_rest
from graftwood.runtime import place
from graftwood.samples import LENGTH, sample_windows

CHATS = Path(__file__).with_name("chats.txt")
SKILL_ITEMS, WINDOWS, ANSWER_TOKENS = 100, 24, 64
SEED = 7  # of the base's text: probe and replay of Graftwood have others

Say = Callable[[str], None]


@dataclass(frozen=True)
class Passage:
    """Text of the base and what it expected of it from `start` on. Shapes: words [T, K], log_p [T, K + 1]."""

    ids: tuple[int, ...]
    start: int
    words: Tensor
    log_p: Tensor


@dataclass(frozen=True)
class Exam:
    """What every arm is asked about the base, with the base's own answers; of skills those alone that the base has."""

    base: str
    tasks: tuple[Task, ...]
    before: tuple[Reading, ...]
    passages: dict[str, tuple[Passage, ...]]


def set_exam(base: Base, folder: Path, tasks: Sequence[Task], say: Say) -> Exam:
    """Ask the base; its text is drawn once and kept in `folder`, so that all machines measure drift on the same."""
    engine = Engine(base.decoder, base.tokenizer.eos, base.tokenizer)
    scored = skills.base_scores(base, engine, lambda what: say(f"base: {what}"), tasks)
    asked = [scores for scores in scored if scores.task.name == "requests" or counts(scores)]
    if left := [scores.task.name for scores in scored if scores not in asked]:
        say(f"not above chance, so not asked: {', '.join(left)}")
    passages = {
        name: tuple(_passage(base.decoder, ids, start) for ids, start in texts)
        for name, texts in _texts(base, engine, folder / "texts.json").items()
    }
    kept = tuple(scores.task for scores in asked)
    return Exam(base.fingerprint, kept, tuple(Reading.of(scores) for scores in asked), passages)


def skill_tasks(folder: Path, limit: int = SKILL_ITEMS) -> list[Task]:
    """Items of the public skills that the bundle does not have, so many of each, in the order of their hashes."""
    files = sorted(folder.glob("*.jsonl"))
    if not files:
        raise BenchError(f"{folder} holds no skill files; give the folder they are in with --skills")
    bundled = {item.prompt for task in TASKS.all().values() for item in (*task.items(), *task.more())}
    found = []
    for file in files:
        task = task_from_file(file)
        items = tuple(item for item in task.items() if item.prompt not in bundled)
        found.append(replace(task.of(items[:limit]), name=file.stem, source=file.name))
    return found


def score(folder: Path, exam: Exam, target: Target, rows: Sequence[Asked], say: Say) -> tuple[Reading, ...]:
    """Every instrument on the model in `folder`."""
    model = open_base(str(folder), place("cpu", "float32"))
    retained = exam.before if model.fingerprint == exam.base else _asked(model, exam.tasks, say)
    drifts = (
        Reading.numbers(f"drift_{name}", *zip(*_moved(model.decoder, name, passages), strict=True))
        for name, passages in exam.passages.items()
    )
    say(f"{len(rows)} test rows of {target.title}")
    return (*_gain(model, target, rows), *retained, *drifts)


def _asked(model: Base, tasks: Sequence[Task], say: Say) -> tuple[Reading, ...]:
    engine = Engine(model.decoder, model.tokenizer.eos, model.tokenizer)
    readings = []
    for task in tasks:
        say(task.title)
        readings.append(Reading.of(score_task(model, engine, task)))
    return tuple(readings)


def _gain(model: Base, target: Target, rows: Sequence[Asked]) -> tuple[Reading, Reading]:
    """Answers judged by the task's metric, and the summed loss of the right ones with their tokens."""
    engine = Engine(model.decoder, model.tokenizer.eos, model.tokenizer)
    answers = Reading.of(score_task(model, engine, target.asked(rows)))
    encoder = model.encoder()
    examples = [encoder.example(Row("completion", prompt=row.prompt, completion=row.answer)) for row in rows]
    sums, tokens = zip(*answer_losses(model.decoder, examples), strict=True)
    losses = Reading.numbers("answer_loss", answers.ids, sums)
    return answers, losses.model_copy(update={"units": answers.units, "weights": tokens})


def _texts(base: Base, engine: Engine, file: Path) -> dict[str, list[tuple[list[int], int]]]:
    """The base's samples, and its answers to chat prompts with the place where they begin."""
    if file.exists():
        stored = json.loads(file.read_text(encoding="utf-8"))
        if stored["base"] != base.fingerprint:
            raise BenchError(f"{file} is of another base ({stored['base'][:12]}); move it and its records away")
        return {name: [(ids, start) for ids, start in texts] for name, texts in stored["texts"].items()}
    samples = sample_windows(base, engine, WINDOWS, LENGTH, SEED).tolist()
    encoder = base.encoder()
    prompts = [encoder.ask(line) for line in CHATS.read_text(encoding="utf-8").splitlines()]
    said = engine.generate(prompts, Sampling(temperature=1.0, seed=SEED, max_tokens=ANSWER_TOKENS))
    texts = {
        "self": [(ids, 1) for ids in samples],
        "chat": [([*prompt, *done.ids], len(prompt)) for prompt, done in zip(prompts, said, strict=True) if done.ids],
    }
    write_json(file, {"base": base.fingerprint, "texts": texts})
    return texts


@torch.inference_mode()
def _passage(decoder: Decoder, ids: Sequence[int], start: int) -> Passage:
    words, log_p = likeliest(_logits(decoder, ids, start))
    return Passage(tuple(ids), start, words, log_p)


@torch.inference_mode()
def _moved(decoder: Decoder, name: str, passages: Sequence[Passage]) -> list[tuple[str, float]]:
    """By passage: mean KL(base || model) in nats a token."""
    found = []
    for number, passage in enumerate(passages):
        log_q = with_rest(_logits(decoder, passage.ids, passage.start).log_softmax(-1).gather(-1, passage.words))
        divergence = (passage.log_p.exp() * (passage.log_p - log_q)).sum(-1)
        found.append((f"{name}-{number:02d}", float(divergence.double().mean())))
    return found


def _logits(decoder: Decoder, ids: Sequence[int], start: int) -> Tensor:
    """What is expected at each place from `start` on, [T, V]."""
    hidden = decoder.hidden(torch.tensor([list(ids)], device=decoder.device), (len(ids),))
    return decoder.logits(hidden[0, start - 1 : -1])
