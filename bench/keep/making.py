"""How an arm's model is made: `graft` as a user runs it, or a peer's own trainer in a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.common import ROOT, BenchError, say
from bench.keep.arms import EPOCHS, Arm
from bench.keep.records import Training

from graftwood.choose.relation import SHELF
from graftwood.cli import NOTHING_SHIPPED
from graftwood.evals.card import Candidate, Card, Choice
from graftwood.evals.report import read_report

_GRAFT = (sys.executable, "-c", "from graftwood.__main__ import main; main()")


@dataclass(frozen=True)
class Place:
    """Where things are: the base's folder, the rows, the arm's own folder, the cache that all of our arms share."""

    base: Path
    data: Path
    work: Path
    cache: Path
    peer_python: str
    threads: int
    epochs: float = EPOCHS


def make(arm: Arm, seed: int, place: Place) -> tuple[Path, Training]:
    """The folder of the arm's model in Hugging Face's layout, and how it came about."""
    if arm.side == "base":
        return place.base, Training()
    place.work.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    model, training = (_by_graft if arm.side == "graft" else _by_peer)(arm, seed, place)
    return model, training.model_copy(update={"seconds": time.monotonic() - started})


def _by_graft(arm: Arm, seed: int, place: Place) -> tuple[Path, Training]:
    """One run a rate; the model of the lowest validation loss, its adapter folded in."""
    # What earlier runs found out about this base would make an arm depend on which ran before it.
    shutil.rmtree(place.cache / SHELF, ignore_errors=True)
    commands, cards = [], {}
    for rate in arm.rates or (None,):
        run = place.work / ("run" if rate is None else f"run-{rate:g}")
        words = ["tune", "--data", str(place.data), "--model", str(place.base), "--out", str(run)]
        words += ["--epochs", f"{place.epochs:g}", "--seed", str(seed), "--device", "cpu", "--dtype", "float32"]
        words += [*arm.flags, *([] if rate is None else ["--lr", f"{rate:g}"])]
        if not (run / "report.json").exists():
            again = ["--resume"] if (run / "metrics.jsonl").exists() else []
            _run([*_GRAFT, *words, *again], place, allowed=(0, NOTHING_SHIPPED))
        commands.append("graft " + " ".join(Path(word).name if "/" in word else word for word in words))
        cards[run] = (rate, read_report(run))
    losses = {run: _valid_loss(card) for run, (_, card) in cards.items()}
    best = min(losses, key=losses.__getitem__)
    rate, card = cards[best]
    tokens = sum(card.choice.tokens if card.choice else card.cost.train_tokens for _, card in cards.values())
    training = Training(
        commands=tuple(commands),
        tokens=tokens,
        rate=rate,
        valid_losses={run.name: loss for run, loss in losses.items()},
        budget=arm.budget,
    )
    if card.choice is not None:
        training = training.model_copy(update=_chosen(card.choice))
    return (_handed_over(best, place) if training.shipped else place.base), training


def _handed_over(run: Path, place: Place) -> Path:
    """A run's model as a whole folder."""
    if (run / "model").is_dir():
        return run / "model"
    folder = place.work / "model"
    shutil.rmtree(folder, ignore_errors=True)
    _run([*_GRAFT, "export", str(run), "--out", str(folder), "--dtype", "float32"], place)
    return folder


def _valid_loss(card: Card) -> float:
    return min(point.valid_loss for point in card.curve if point.valid_loss is not None)


def _chosen(choice: Choice) -> dict[str, Any]:
    """What a budget came to."""
    certified = None
    for one in (candidate for arm in choice.arms for candidate in arm.candidates):
        if _is_shipped(one, choice):
            assert one.decision is not None
            certified = (one.decision.kept.value, one.decision.kept.low)
    return {
        "shipped": choice.dial is not None,
        "dial": choice.dial,
        "certified": certified,
        "choice_seconds": choice.seconds,
        "plain_seconds": choice.plain_seconds,
    }


def _is_shipped(candidate: Candidate, choice: Choice) -> bool:
    return candidate.decision is not None and candidate.decision.passed and candidate.dial == choice.dial


def _by_peer(arm: Arm, seed: int, place: Place) -> tuple[Path, Training]:
    """The side script's model; what it was told and what it says of it stand in `work.json` and `told.json`."""
    work = {
        **arm.recipe,
        "model": str(place.base),
        "data": str(place.data),
        "out": str(place.work),
        "rates": list(arm.rates),
        "epochs": place.epochs,
        "seed": seed,
        "threads": place.threads,
    }
    file, told_file = place.work / "work.json", place.work / "told.json"
    file.write_text(json.dumps(work, indent=1), encoding="utf-8")
    if not told_file.exists():
        _run([place.peer_python, "-m", "bench.sides.keep_peer", str(file)], place)
    told = json.loads(told_file.read_text(encoding="utf-8"))
    recipe = {key: value for key, value in work.items() if key not in ("model", "data", "out", "threads")}
    training = Training(
        commands=(f"python -m bench.sides.keep_peer {json.dumps(recipe)}",),
        tokens=told["tokens"],
        rate=told["rate"],
        valid_losses=told["valid_losses"],
        versions=told["versions"],
    )
    return place.work / "model", training


def _run(command: Sequence[str], place: Place, allowed: Sequence[int] = (0,)) -> None:
    """A command whose output is kept in the arm's folder. Raises: BenchError with its last lines."""
    log = place.work / "log.txt"
    with log.open("a", encoding="utf-8") as output:
        done = subprocess.run(
            command, cwd=ROOT, env=_environment(place), stdout=output, stderr=subprocess.STDOUT, check=False
        )
    if done.returncode not in allowed:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-12:]
        raise BenchError(f"{place.work.name} ended with {done.returncode}; {log} ends:\n  " + "\n  ".join(lines))
    if done.returncode == NOTHING_SHIPPED:
        say(f"{place.work.name}: nothing was shipped")


def _environment(place: Place) -> Mapping[str, str]:
    threads = str(place.threads)
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    ours = {"GRAFTWOOD_HOME": str(place.cache), "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    return os.environ | offline | ours
