"""A run in peace and the same run killed again and again at random moments; prints what each of them left.

Run as a program: `killed_run.py tune|pretrain MODEL_FOLDER RUNS_FOLDER`. Children are forked, so torch must not have
threads.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from graftwood import pretraining
from graftwood.base import open_base
from graftwood.checkpoint import load_step, step_folders
from graftwood.config import PretrainConfig, RunConfig
from graftwood.corpora import prepare_corpus
from graftwood.draft import draft
from graftwood.evals import judge
from graftwood.job import prepare
from graftwood.model.expected import expect
from graftwood.progress import Display
from graftwood.runtime import Place
from graftwood.tuning import teach_all

ROWS = [
    {"prompt": f"what is {n} and {n}", "completion": f"the answer is {'here ' * (n % 5)}{2 * n}"} for n in range(40)
]
KILLS = 8
QUIET = Display(quiet=True)


Train = Callable[[Path], object]


def tuning(folder: Path) -> Train:
    """A tuning run that is ready to start; every child starts from it as a new process would."""
    options = {"rank": 4, "dropout": 0.3}
    config = RunConfig(
        data="rows",
        model=str(folder),
        technique="lora",
        lr=0.01,
        batch=4,
        epochs=3.0,
        save_seconds=1e-9,
        evaluations=9,
        options=options,
    )
    base = open_base(str(folder), Place(torch.device("cpu"), torch.float32))
    job = prepare(draft(config, ROWS), base, QUIET)
    ids = torch.randint(0, 320, (6, 16), generator=torch.Generator().manual_seed(0))
    probe = expect(base.decoder, ids)
    return lambda out: teach_all(job, judge.drift_gauge(base, probe), out, QUIET, resume=True)


def pretraining_(folder: Path) -> Train:
    """A new model on a corpus of several shards, with Muon, averages and documents that cross windows."""
    text = folder / "text.jsonl"
    text.write_text("".join(json.dumps({"text": row["completion"] * 3}) + "\n" for row in ROWS), encoding="utf-8")
    prepare_corpus([str(text)], folder / "corpus", QUIET, "bytes", workers=1, shard_bytes=600, removal="none")
    config = PretrainConfig(
        data=str(folder / "corpus"), layers=2, width=32, heads=2, context=32, tokens=5000, batch_tokens=128,
        average=5.0, save_seconds=1e-9, evaluations=9, sample_tokens=8, device="cpu",
    )  # fmt: skip
    job = pretraining.prepare(config, None, folder / "ready", QUIET)
    expected = pretraining.preview(job, QUIET)
    return lambda out: pretraining.execute(job, expected, out, QUIET, resume=True)


def child(train: Train, out: Path) -> int:
    """A process that trains: the part of a run that its checkpoints, one after every step, protect."""
    out.mkdir(parents=True, exist_ok=True)
    pid = os.fork()
    if pid == 0:
        torch.manual_seed(time.time_ns() % 2**32)  # whatever the process drew before must not matter
        train(out)
        os._exit(0)
    return pid


def left(out: Path) -> dict[str, Any]:
    newest = load_step(step_folders(out / "checkpoints")[-1])
    digest = hashlib.sha256()
    for tensors in (newest.trained, newest.optimiser):
        for name, tensor in sorted(tensors.items()):
            digest.update(name.encode() + tensor.numpy().tobytes())
    progress = {key: value for key, value in newest.state["progress"].items() if not key.endswith("_seconds")}
    log = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    for record in log:
        record.pop("tokens_per_second", None)
    return {"tensors": digest.hexdigest(), "progress": progress, "log": log}


def main(ready: Callable[[Path], Train], folder: Path, runs: Path) -> None:
    torch.set_num_threads(1)
    torch.optim.AdamW([torch.zeros(1, requires_grad=True)]).step()  # what torch imports late, it imports here
    train = ready(folder)
    started = time.monotonic()
    os.waitpid(child(train, runs / "whole"), 0)
    whole = time.monotonic() - started

    kills = middle = 0
    for number in range(KILLS):
        pid = child(train, runs / "killed")
        time.sleep(random.Random(number).uniform(0.03, 0.25) * whole)
        os.kill(pid, signal.SIGKILL)
        kills += os.WIFSIGNALED(os.waitpid(pid, 0)[1])
        found = step_folders(runs / "killed" / "checkpoints")
        middle += (
            bool(found) and int(found[-1].name[5:]) > 0 and load_step(found[-1]).state["progress"]["ended"] is None
        )
    status = os.waitpid(child(train, runs / "killed"), 0)[1]
    assert os.waitstatus_to_exitcode(status) == 0
    result = {"whole": left(runs / "whole"), "killed": left(runs / "killed")}
    print(json.dumps(result | {"kills": kills, "resumed_in_the_middle": middle, "seconds": whole}))


if __name__ == "__main__":
    main({"tune": tuning, "pretrain": pretraining_}[sys.argv[1]], Path(sys.argv[2]), Path(sys.argv[3]))
