"""The keep benchmark: what every arm gains on tasks that the base does not know, and what it leaves of the base.

python -m bench.keep --slim | --full | --report
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from bench.common import RESULTS, ROOT, need, run, say
from bench.keep import report, requests
from bench.keep.arms import ARMS, Entry, forecast, full, slim
from bench.keep.instruments import Exam, score, set_exam, skill_tasks
from bench.keep.making import Place, make
from bench.keep.records import ArmRecord, file_name, read_all, save
from bench.keep.tasks import PUBLIC, TARGETS, Target, write

from graftwood.base import open_base
from graftwood.data.rows import Row
from graftwood.runtime import machine, place, use_threads

MODEL = "smollm2-135m"
RECORDS = RESULTS / "keep"
WORK = ROOT / "runs" / "keep"


def options() -> argparse.ArgumentParser:
    """What the benchmark can be told."""
    parser = argparse.ArgumentParser(prog="python -m bench.keep", description=(__doc__ or "").splitlines()[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--slim", action="store_true", help="three tasks, two seeds, the arms of the claims")
    what.add_argument("--full", action="store_true", help="five tasks, three seeds, every arm; begins with --slim")
    what.add_argument("--report", action="store_true", help="derive every number and picture from the records alone")
    parser.add_argument("--task", action="append", choices=TARGETS, help="only this task; may be given again")
    parser.add_argument("--arm", action="append", choices=ARMS, help="only this arm; may be given again")
    parser.add_argument("--seed", action="append", type=int, help="only this seed; may be given again")
    parser.add_argument("--peer-python", default=sys.executable, help="interpreter that has torch, trl and peft")
    parser.add_argument("--skills", type=Path, default=ROOT.parent / "shared" / "skills", help="the full skill sets")
    parser.add_argument("--tasks", type=Path, default=PUBLIC, help="folder of the public tasks' rows")
    parser.add_argument("--records", type=Path, default=RECORDS, help="where finished arms are kept")
    parser.add_argument("--work", type=Path, default=WORK, help="where models are made")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="default: all cores")
    parser.add_argument("--keep-weights", action="store_true", help="leave the models of finished arms in --work")
    parser.add_argument("--dry-run", action="store_true", help="only say what would run and how long it would take")
    return parser


def planned(given: argparse.Namespace) -> list[Entry]:
    """What was asked for, in the order of the plan, without what is finished."""
    return [
        entry
        for entry in (slim() if given.slim else full())
        if (not given.task or entry.task in given.task)
        and (not given.arm or entry.arm in given.arm)
        and (not given.seed or entry.seed in given.seed)
        and not (given.records / file_name(entry.task, entry.arm, entry.seed)).exists()
    ]


class Bench:
    """Everything that the arms share: the opened base, the rows of the tasks, the exam."""

    def __init__(self, given: argparse.Namespace, tasks: Sequence[str]) -> None:
        self._given = given
        self._base = open_base(MODEL, place("cpu", "float32"))
        self.rows = {name: TARGETS[name].read(given.tasks) for name in tasks}
        self._exam: Exam | None = None
        encoder = self._base.encoder()
        self.tokens = {
            name: sum(len(encoder.example(Row("completion", (), r.prompt, r.answer)).ids) for r in rows.train)
            for name, rows in self.rows.items()
        }

    @property
    def exam(self) -> Exam:
        """Set when the first arm is scored."""
        if self._exam is None:
            asked = [requests.task(), *skill_tasks(self._given.skills)]
            self._exam = set_exam(self._base, self._given.records, asked, say)
        return self._exam

    def finish(self, entry: Entry) -> ArmRecord:
        """Make an arm's model, score it, keep the record, and let the weights go unless they were asked for."""
        given, arm, target = self._given, ARMS[entry.arm], TARGETS[entry.task]
        data = given.work / "data" / entry.task
        write(self.rows[entry.task], data)
        work = given.work / f"{entry.task}-{entry.arm}-{entry.seed}"
        where = Place(self._base.folder, data, work, given.work / "cache", given.peer_python, given.threads)
        model, training = make(arm, entry.seed, where)
        started = time.monotonic()
        readings = score(model, self.exam, target, self.rows[entry.task].test, say)
        record = ArmRecord(
            task=entry.task,
            arm=entry.arm,
            seed=entry.seed,
            base=self._base.fingerprint,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            machine={**machine(), "threads": given.threads},
            training=training,
            score_seconds=time.monotonic() - started,
            readings=readings,
        )
        save(record, given.records)
        if not given.keep_weights:
            shutil.rmtree(work, ignore_errors=True)
        return record


def main() -> int:
    """Run what is planned arm by arm, or report on what is there."""
    given = options().parse_args()
    if given.report:
        return report.write(given.records)
    entries = planned(given)
    if not entries:
        say("nothing is left to run; see --report")
        return 0
    if any(ARMS[entry.arm].side == "peer" for entry in entries):
        need(given.peer_python, "trl", "peft", "transformers")
    use_threads(given.threads)
    bench = Bench(given, sorted({entry.task for entry in entries}))
    known = read_all(given.records)
    times = [forecast(ARMS[entry.arm], bench.tokens[entry.task], known) for entry in entries]
    say(f"{len(entries)} arms, about {clock(sum(times))} on a machine that does nothing else")
    if given.dry_run:
        for entry, seconds in zip(entries, times, strict=True):
            print(f"{entry.task:10} {entry.arm:4} seed {entry.seed}  {clock(seconds)}")
        return 0
    for number, entry in enumerate(entries, 1):
        seconds = forecast(ARMS[entry.arm], bench.tokens[entry.task], known)
        say(f"{number} of {len(entries)}: {named(entry)}; expected to take {clock(seconds)}")
        started = time.monotonic()
        known.append(bench.finish(entry))
        say(f"{named(entry)}: took {clock(time.monotonic() - started)}")
    return 0


def named(entry: Entry) -> str:
    """An entry for a person."""
    target: Target = TARGETS[entry.task]
    return f"{target.title}, {entry.arm} ({ARMS[entry.arm].title}), seed {entry.seed}"


def clock(seconds: float) -> str:
    """Hours and minutes."""
    minutes = max(1, round(seconds / 60))
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"


if __name__ == "__main__":
    run(main)
