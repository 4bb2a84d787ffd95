"""Every technique on the real base: speed and memory beside PEFT's, what it gains and leaves, and two ways to pay less.

python -m bench.techniques speed | quality | frozen | base
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from bench import workload
from bench.common import (
    RESULTS,
    ROOT,
    BenchError,
    Figure,
    Side,
    finish,
    need,
    options,
    require_quiet_machine,
    run,
    say,
    summarise,
    take_turns,
)
from bench.keep.rows import Splits
from bench.keep.tasks import PUBLIC, public, write
from bench.tune_speed import DEFAULT, peak, peer_work, speeds

from graftwood.base import open_base
from graftwood.evals.card import Card
from graftwood.evals.report import read_report
from graftwood.evals.retention import compare, probe_for
from graftwood.files import write_json
from graftwood.generate.engine import Engine
from graftwood.model.quantised import quantise
from graftwood.runtime import machine, place
from graftwood.technique import TECHNIQUES

RECORDS = RESULTS / "techniques"
NO_PEER = ("adapter", "bitfit")  # in neither transformers nor PEFT
BLOCK = 18  # of 30: what `frozen` keeps below
FORMATS = {  # of the activations, and of a base that is frozen
    "full": ("float32", "full"),
    "int8": ("float32", "int8"),
    "q4": ("float32", "q4"),
    "bfloat16": ("bfloat16", "full"),
}
TOKENS = 40_000  # prompts and answers that every technique trains on for `quality`, once


def main() -> int:
    """Measure what is asked for; finished techniques are not measured again."""
    parser = options((__doc__ or "").splitlines()[0], rounds=2)
    parser.add_argument("kind", choices=COMMANDS, help="what is measured")
    parser.add_argument("--technique", action="append", choices=TECHNIQUES.names(), help="only this; may be repeated")
    parser.add_argument("--again", action="store_true", help="measure what has a record, too")
    parser.add_argument("--tasks", type=Path, default=PUBLIC, help="folder of the public tasks' rows, for quality")
    given = parser.parse_args()
    return COMMANDS[given.kind](given)


def wanted(given: argparse.Namespace, kind: str, names: Sequence[str]) -> list[str]:
    """The techniques that are asked for and have no record yet."""
    asked = [name for name in names if not given.technique or name in given.technique]
    return [name for name in asked if given.again or given.smoke or not (RECORDS / f"{kind}-{name}.json").exists()]


# ---- speed ----


def speed(given: argparse.Namespace) -> int:
    """Tokens a second and peak memory of every technique that the peer has, one after the other."""
    need(given.peer_python, "transformers", "peft", "accelerate")
    base = workload.open_model()
    chosen = workload.examples(base.encoder(), 8 if given.smoke else 24)
    code = 0
    for name in wanted(given, "speed", [name for name in TECHNIQUES.names() if name not in NO_PEER]):
        before = None if given.smoke else require_quiet_machine(given.threads)
        work = workload.tuning(base, given.threads, chosen, given.rounds) | {"technique": name, "options": {}}
        with tempfile.TemporaryDirectory() as folder:
            theirs = peer_work(work | workload.begin(base, work, Path(folder) / "adapter"), DEFAULT)
            with (
                Side("ours_tune", sys.executable, work) as ours,
                Side("peft_tune", given.peer_python, theirs) as peer,
            ):
                take_turns((ours, peer), given.rounds)
        say(f"{name}: {median(speeds(ours)):.0f} tokens/s, {median(speeds(peer)):.0f} with PEFT")
        code |= finish(
            "techniques speed", given, [], {"ours": [ours], "peer": [peer]}, file=f"techniques/speed-{name}.json",
            technique=name, rows=workload.described(chosen), others_share_before=before,
            measured={
                "speed": median(a / b for a, b in zip(speeds(ours), speeds(peer), strict=True)),
                "memory": peak(ours) / peak(peer),
                "ours": {"tokens_per_second": median(speeds(ours)), "peak_bytes": peak(ours)},
                "peer": {"tokens_per_second": median(speeds(peer)), "peak_bytes": peak(peer)},
            },
        )  # fmt: skip
    medians(given)
    return code


def medians(given: argparse.Namespace) -> None:
    """The figures over all techniques, once each has a record."""
    found = {path.stem.removeprefix("speed-"): json.loads(path.read_text()) for path in RECORDS.glob("speed-*.json")}
    if given.smoke or set(found) != set(TECHNIQUES.names()) - set(NO_PEER):
        return
    figures = []
    for what, unit, title in (
        ("speed", "times as fast", "training with each technique, tokens a second: the median"),
        ("memory", "of the memory", "training with each technique, peak memory: the median"),
    ):
        ratios = {name: record["measured"][what] for name, record in found.items()}
        lowest, highest = min(ratios, key=ratios.__getitem__), max(ratios, key=ratios.__getitem__)
        figures.append(
            Figure(
                f"technique_{what}_vs_peft_median", median(ratios.values()), unit, title,
                f"{ratios[lowest]:.2f} ({lowest}) to {ratios[highest]:.2f} ({highest})",
                "transformers + PEFT, their defaults",
            )
        )  # fmt: skip
    summarise(figures, RECORDS)


# ---- what a technique gains and leaves ----


def quality(given: argparse.Namespace) -> int:
    """One run of `graft tune` a technique on the same rows of a public task; its card in short is the record."""
    rows = few(public("describe", 2000, 40, 80, given.tasks), 2_000 if given.smoke else TOKENS)
    work = ROOT / "runs" / "techniques"
    write(rows, work / "data")
    write(Splits(rows.test, (), ()), work / "test")
    (work / "test" / "train.jsonl").replace(work / "data" / "test.jsonl")
    for name in wanted(given, "quality", TECHNIQUES.names()):
        out = work / name
        words = ["tune", "--data", str(work / "data"), "--model", workload.MODEL, "--out", str(out), "--epochs", "1"]
        words += ["--technique", name, "--keep", "none", "--dtype", "float32", "--device", "cpu"]
        again = ["--resume"] if (out / "metrics.jsonl").exists() else []
        if not (out / "report.json").exists():
            done = subprocess.run(
                [sys.executable, "-c", "from graftwood.__main__ import main; main()", *words, *again], check=False
            )
            if done.returncode:
                raise BenchError(f"graft {' '.join(words)} ended with {done.returncode}")
        record = {
            "command": "python -m bench.techniques quality",
            "machine": {**machine(), "threads": given.threads},
            "technique": name,
            "rows": {"train": len(rows.train), "valid": len(rows.valid), "test": len(rows.test)},
            "size_bytes": sum(path.stat().st_size for path in weights(out)),
            **in_short(read_report(out)),
        }
        if not given.smoke:
            write_json(RECORDS / f"quality-{name}.json", record)
        say(f"{name}: " + json.dumps(record["gained"]["answer_loss"]["change"]))
    return 0


def few(rows: Splits, tokens: int) -> Splits:
    """As many training rows as have so many tokens."""
    encoder, count, some = workload.open_model().encoder(), 0, []
    for row in rows.train:
        if count >= tokens:
            break
        some.append(row)
        count += len(encoder.example(workload.pair(row.prompt, row.answer)).ids)
    assert count >= tokens, "the file has rows enough"
    return Splits(tuple(some), rows.valid, rows.test)


def weights(out: Path) -> list[Path]:
    """The files a run leaves that hold what was trained."""
    folder = out / "adapter" if (out / "adapter").is_dir() else out / "model"
    return [*folder.glob("*.safetensors"), *folder.glob("*.bin")]


def in_short(card: Card) -> Mapping[str, Any]:
    """What a card says of gain, of the base and of cost."""
    return {
        "trained_parameters": card.chosen.trained_parameters,
        "learning_rate": card.chosen.settings["learning rate"],
        "steps": card.chosen.steps,
        "tokens": card.cost.train_tokens,
        "gained": {measure.name: measure.model_dump() for measure in card.gained.measures},
        "kept": card.kept.kept.model_dump(),
        "drift": card.kept.drift.model_dump(),
        "skills": {skill.measure.name: skill.measure.change.model_dump() for skill in card.kept.skills},
        "memory": card.memory.verdict,
    }


# ---- two ways to pay less ----


def frozen(given: argparse.Namespace) -> int:
    """LoRA above a frozen lower part whose activations are kept on disk, beside LoRA everywhere: an epoch of each."""
    before = None if given.smoke else require_quiet_machine(given.threads)
    base = workload.open_model()
    chosen = workload.examples(base.encoder(), 8 if given.smoke else 24)
    work = workload.tuning(base, given.threads, chosen, given.rounds)
    with (
        Side("ours_tune", sys.executable, work) as everywhere,
        Side("ours_tune", sys.executable, work | {"below": BLOCK}) as above,
    ):
        take_turns((everywhere, above), given.rounds)
    ratio = median(a / b for a, b in zip(speeds(above), speeds(everywhere), strict=True))
    layers = base.decoder.config.layers
    figure = Figure(
        "frozen_cache_epoch_vs_lora", ratio, "times as fast",
        f"LoRA above block {BLOCK} of {layers} from kept activations, an epoch after the first",
        f"{median(speeds(above)):.0f} tokens/s", f"{median(speeds(everywhere)):.0f} tokens/s with LoRA in every block",
    )  # fmt: skip
    return finish(
        "techniques frozen", given, [figure], {"above": [above], "everywhere": [everywhere]},
        rows=workload.described(chosen), others_share_before=before,
    )  # fmt: skip


def base(given: argparse.Namespace) -> int:
    """The base in less memory, or computed in bfloat16: what it holds, how far it is from float32, LoRA's speed."""
    before = None if given.smoke else require_quiet_machine(given.threads)
    opened = workload.open_model()
    chosen = workload.examples(opened.encoder(), 8 if given.smoke else 24)
    work = workload.tuning(opened, given.threads, chosen, given.rounds)
    probe = probe_for(opened, Engine(opened.decoder, opened.tokenizer.eos, opened.tokenizer))
    drift, sides = {}, {}
    for name, (dtype, precision) in FORMATS.items():
        again = open_base(workload.MODEL, place("cpu", dtype))
        quantise(again.decoder, precision)
        drift[name] = compare(again.decoder, probe).estimates()[0].model_dump()
        with Side("ours_tune", sys.executable, work | {"dtype": dtype, "base_precision": precision}) as side:
            take_turns([side], given.rounds)
        sides[name] = [side]
    held = {name: side.ready["base_bytes"] for name, (side,) in sides.items()}
    rates = {name: median(speeds(side)) for name, (side,) in sides.items()}
    figures = [
        Figure(
            "int8_base_memory_vs_fp32", held["int8"] / held["full"], "of the memory", "the base's weights in 8 bits",
            f"{held['int8'] / 1e6:.0f} MB", f"{held['full'] / 1e6:.0f} MB in float32",
        ),
        Figure(
            "int8_base_drift_nats", drift["int8"]["value"], "nats a token", "the base in 8 bits beside float32",
            f"{drift['int8']['value']:.2g} nats, q4 {drift['q4']['value']:.2g}", "0.01 is the most allowed",
        ),
        Figure(
            "tune_speed_bfloat16_vs_float32", rates["bfloat16"] / rates["full"], "times as fast",
            "LoRA training with `--dtype bfloat16`", f"{rates['bfloat16']:.0f} tokens/s",
            f"{rates['full']:.0f} tokens/s in float32",
        ),
    ]  # fmt: skip
    told = {
        name: {"tokens_per_second": rates[name], "peak_bytes": peak(side), "base_bytes": held[name]}
        for name, (side,) in sides.items()
    }
    return finish(
        "techniques base", given, figures, sides,
        rows=workload.described(chosen), others_share_before=before, drift=drift, measured=told,
    )  # fmt: skip


COMMANDS = {"speed": speed, "quality": quality, "frozen": frozen, "base": base}

if __name__ == "__main__":
    run(main)
