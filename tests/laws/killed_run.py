"""A run in peace and the same run killed again and again at random moments; prints what each of them left.

Run as a program: `killed_run.py MODEL_FOLDER RUNS_FOLDER`. Children are forked, so torch must not have threads.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

from graftwood.base import open_base
from graftwood.checkpoint import load_step, step_folders
from graftwood.config import RunConfig
from graftwood.draft import draft
from graftwood.evals.retention import Probe, score_probe
from graftwood.progress import Display
from graftwood.runtime import Place
from graftwood.tuning import Job, _train, prepare

ROWS = [
    {"prompt": f"what is {n} and {n}", "completion": f"the answer is {'here ' * (n % 5)}{2 * n}"} for n in range(40)
]
KILLS = 8


def ready(folder: Path) -> tuple[Job, Probe]:
    """A run that is ready to start; every child starts from it as a new process would."""
    options = {"rank": 4, "dropout": 0.3}
    config = RunConfig(
        data="rows", model=str(folder), lr=0.01, batch=4, epochs=3.0, save_seconds=1e-9, evaluations=9, options=options
    )
    base = open_base(str(folder), Place(torch.device("cpu"), torch.float32))
    job = prepare(draft(config, ROWS), base, Display(quiet=True))
    ids = torch.randint(0, 320, (6, 16), generator=torch.Generator().manual_seed(0))
    return job, score_probe(base.decoder, ids)


def child(job: Job, probe: Probe, out: Path) -> int:
    """A process that trains: the part of a run that its checkpoints, one after every step, protect."""
    out.mkdir(parents=True, exist_ok=True)
    pid = os.fork()
    if pid == 0:
        torch.manual_seed(time.time_ns() % 2**32)  # whatever the process drew before must not matter
        _train(job, probe, out, Display(quiet=True), resume=True)
        os._exit(0)
    return pid


def left(out: Path) -> dict[str, Any]:
    newest = load_step(step_folders(out / "checkpoints")[-1])
    digest = hashlib.sha256()
    for tensors in (newest.trained, newest.optimiser):
        for name, tensor in sorted(tensors.items()):
            digest.update(name.encode() + tensor.numpy().tobytes())
    progress = {key: value for key, value in newest.state["progress"].items() if key != "train_seconds"}
    log = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    for record in log:
        record.pop("tokens_per_second", None)
    return {"tensors": digest.hexdigest(), "progress": progress, "log": log}


def main(folder: Path, runs: Path) -> None:
    torch.set_num_threads(1)
    torch.optim.AdamW([torch.zeros(1, requires_grad=True)]).step()  # what torch imports late, it imports here
    job, probe = ready(folder)
    started = time.monotonic()
    os.waitpid(child(job, probe, runs / "whole"), 0)
    whole = time.monotonic() - started

    kills = middle = 0
    for number in range(KILLS):
        pid = child(job, probe, runs / "killed")
        time.sleep(random.Random(number).uniform(0.03, 0.25) * whole)
        os.kill(pid, signal.SIGKILL)
        kills += os.WIFSIGNALED(os.waitpid(pid, 0)[1])
        found = step_folders(runs / "killed" / "checkpoints")
        middle += (
            bool(found) and int(found[-1].name[5:]) > 0 and load_step(found[-1]).state["progress"]["ended"] is None
        )
    status = os.waitpid(child(job, probe, runs / "killed"), 0)[1]
    assert os.waitstatus_to_exitcode(status) == 0
    result = {"whole": left(runs / "whole"), "killed": left(runs / "killed")}
    print(json.dumps(result | {"kills": kills, "resumed_in_the_middle": middle, "seconds": whole}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
