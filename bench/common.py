"""What benchmarks share: options, sides that take turns, a watch on the rest of the machine, records, the summary."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from graftwood.files import write_json
from graftwood.runtime import machine

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
ASIDE = ROOT / "runs" / "bench"  # where records go that are no measurement: smoke runs, a machine that was not quiet
QUIET = 0.1  # share of the processor time that other programs may take of what a measurement uses

Turn = dict[str, Any]


class BenchError(Exception):
    """Why nothing can be measured, in one line."""


@dataclass(frozen=True)
class Figure:
    """One line of the summary: `value` in `unit`, what it says, and our own and the peer's measurement as text."""

    name: str
    value: float
    unit: str
    what: str
    ours: str
    peer: str


def options(description: str, rounds: int) -> argparse.ArgumentParser:
    """The options every benchmark has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--peer-python", default=sys.executable, help="interpreter that has the peers' packages")
    parser.add_argument("--rounds", type=int, default=rounds, help=f"turns of each side (default {rounds})")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="default: all cores")
    parser.add_argument("--smoke", action="store_true", help="the smallest sizes, to see that it works; no figure")
    return parser


def peer_has(python: str, package: str) -> bool:
    """Whether an interpreter can import a package."""
    if python == sys.executable:
        return importlib.util.find_spec(package) is not None
    probe = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({package!r}) is None)"
    return subprocess.run([python, "-c", probe], check=False).returncode == 0


def need(python: str, *packages: str, extras: str = "peers") -> None:
    """Raises: BenchError naming the packages that the peers' interpreter lacks."""
    missing = [package for package in packages if not peer_has(python, package)]
    if missing:
        raise BenchError(
            f"{python} lacks {', '.join(missing)}; install graftwood[{extras}] there or give --peer-python"
        )


class Side:
    """One program under test, in a process of its own that works only when it has the turn (`bench/sides/turns.py`)."""

    def __init__(self, module: str, python: str, work: Mapping[str, Any]) -> None:
        self.module = module
        self._folder = tempfile.TemporaryDirectory(prefix="graftwood-bench-")
        file = Path(self._folder.name) / "work.json"
        file.write_text(json.dumps({**work, "folder": self._folder.name}), encoding="utf-8")
        self._errors = Path(self._folder.name) / "stderr"
        threads = str(work["threads"])
        with self._errors.open("wb") as errors:
            self._process = subprocess.Popen(
                [python, "-m", f"bench.sides.{module}", str(file)],
                cwd=ROOT,
                env=os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        self.turns: list[Turn] = []
        try:
            self.ready = self._read()
        except BaseException:
            self._end()
            raise

    def turn(self) -> Turn:
        """Give the turn, and get back what the side says of it and what the rest of the machine did meanwhile."""
        assert self._process.stdin is not None
        busy, started = _busy_seconds(), time.monotonic()
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        told = self._read()
        wall = time.monotonic() - started
        others = _share_of_others(busy, told["cpu_seconds"], wall)
        self.turns.append({**told, "wall_seconds": round(wall, 3), "others_share": others})
        return self.turns[-1]

    def _read(self) -> Turn:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            said = self._errors.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise BenchError(f"{self.module} ended with {code}:\n  " + "\n  ".join(said[-12:]))
        told: Turn = json.loads(line)
        return told

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end()

    def _end(self) -> None:
        self._process.terminate()
        self._process.communicate()
        self._folder.cleanup()


def take_turns(sides: Sequence[Side], rounds: int) -> None:
    """A turn of each side, round after round, so that a machine that drifts drifts for all of them."""
    for number in range(rounds):
        for side in sides:
            told = side.turn()
            say(f"round {number + 1} of {rounds}: {side.module} took {told['wall_seconds']:.1f} s")


def most_of_others(threads: int) -> float:
    """The share of the machine that other programs may take: the cores that no thread of ours needs, and a little."""
    return QUIET + max(0.0, 1 - threads / (os.cpu_count() or 1))


def require_quiet_machine(threads: int, seconds: float = 2.0) -> float | None:
    """Share of the machine that other programs take now. Raises: BenchError when that would spoil a measurement."""
    busy = _busy_seconds()
    time.sleep(seconds)
    share, most = _share_of_others(busy, 0.0, seconds), most_of_others(threads)
    if share is not None and share > most:
        raise BenchError(f"other programs take {share:.0%} of this machine; wait until it is idle (limit {most:.0%})")
    return share


def finish(
    command: str,
    given: argparse.Namespace,
    figures: Sequence[Figure],
    sides: Mapping[str, Sequence[Side]],
    needs_quiet: bool = True,
    file: str | None = None,
    **more: Any,
) -> int:
    """Write the record, and its figures into the summary if the machine was as quiet as they need; the exit code.

    The record's `file` is called after the command, where nothing else is said.
    """
    turns = [turn for group in sides.values() for side in group for turn in side.turns]
    shares = [turn["others_share"] for turn in turns if turn["others_share"] is not None]
    counts = not given.smoke and (not needs_quiet or all(share <= most_of_others(given.threads) for share in shares))
    target = (RESULTS if counts else ASIDE) / (file or f"{command.replace(' ', '_')}.json")
    record = {
        "command": f"python -m bench.{command}",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "graftwood": version("graftwood"),
        "threads": given.threads,
        "rounds": given.rounds,
        "others_share_highest": max(shares, default=None),
        "load_average_after": os.getloadavg(),
        "figures": {figure.name: asdict(figure) for figure in figures},
        **more,
        "sides": {
            name: [{"side": side.module, "ready": side.ready, "turns": side.turns} for side in group]
            for name, group in sides.items()
        },
    }
    write_json(target, record)
    for figure in figures:
        print(f"{figure.name}: {figure.value:.4g} {figure.unit}  (ours {figure.ours}; {figure.peer})")
    if not counts:
        why = "smoke run" if given.smoke else f"other programs took up to {max(shares):.0%} of the machine"
        say(f"{why}: the summary stays as it was; record in {target}")
        return 0 if given.smoke else 1
    summarise(figures, target)
    return 0


def summarise(figures: Sequence[Figure], source: Path) -> None:
    """Put figures into the summary, each with the file that it comes from."""
    path = RESULTS / "summary.json"
    summary = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for figure in figures:
        line = asdict(figure) | {"value": float(f"{figure.value:.4g}"), "source": str(source.relative_to(ROOT))}
        summary[line.pop("name")] = line
    write_json(path, dict(sorted(summary.items())))


def run(main: Any) -> None:
    """Run a benchmark's `main` as a program."""
    try:
        sys.exit(main())
    except BenchError as error:
        sys.exit(f"error: {error}")


def say(line: str) -> None:
    """A line of progress."""
    print(line, file=sys.stderr, flush=True)


def _busy_seconds() -> float | None:
    """Processor time that all programs have used, stolen time included; None where the system does not tell."""
    try:
        with open("/proc/stat", encoding="ascii") as handle:
            user, nice, system, _, _, irq, softirq, steal = (int(x) for x in handle.readline().split()[1:9])
    except OSError:
        return None
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _share_of_others(busy: float | None, own: float, wall: float) -> float | None:
    now = _busy_seconds()
    if busy is None or now is None:
        return None
    return round(max(0.0, now - busy - own) / (wall * (os.cpu_count() or 1)), 3)
