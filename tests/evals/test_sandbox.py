"""Programs of a model's: the right ones pass, and none gets at the network, other processes, files or more time."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from graftwood.errors import ConfigError
from graftwood.evals import jail
from graftwood.evals.sandbox import LIMITS, Limits, run_all, run_program

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limits are Linux's")
QUICK = Limits(seconds=0.5)


@pytest.mark.parametrize(
    "program",
    [
        "assert sorted([2, 1]) == [1, 2]",
        "import collections, functools, itertools, math, random, re, string; random.random()",
        "open('notes.txt', 'w').write('x' * 1000); assert len(open('notes.txt').read()) == 1000",
        "print('x' * 1000000)",
        "def f(x: int): return x\nassert f.__annotations__ == {'x': int}",
        "import pickle\nclass A: pass\nassert type(pickle.loads(pickle.dumps(A()))) is A",
        "import asyncio\nasync def f(): return 1\nassert asyncio.run(f()) == 1",
        "import sqlite3; sqlite3.connect('own.db').execute('create table a (b)'); sqlite3.connect(':memory:')",
        "import builtins; builtins.print = lambda *_, **__: None",
        "import os; assert os.environ['OPENBLAS_NUM_THREADS'] == '1'",
    ],
)
def test_what_is_right_passes(program: str) -> None:
    outcome = run_program(program)
    assert outcome.passed, outcome.error


@pytest.mark.parametrize(
    ("program", "error"),
    [
        ("assert 1 == 2", "AssertionError"),
        ("def f(: pass", "SyntaxError"),
        ("exit()", "SystemExit"),
        ("import os; os._exit(0)", "ended before its end"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("while True: pass", "took more than 0.5 s"),
        ("import time; time.sleep(60)", "took more than 0.5 s"),
        ("text = 'x' * (1 << 33)", "MemoryError"),
        ("open('big', 'w').write('x' * (1 << 22))", "File too large"),
        ("files = [open(f'{n}', 'w') for n in range(100)]", "Too many open files"),
        ("import socket; socket.socket()", "socket.__new__ is not permitted"),
        ("import urllib.request as r; r.urlopen('http://127.0.0.1')", "not permitted"),
        ("import subprocess; subprocess.run(['ls'])", "subprocess.Popen is not permitted"),
        ("import os; os.fork()", "os.fork is not permitted"),
        ("import os; os.system('ls')", "os.system is not permitted"),
        ("import ctypes; ctypes.CDLL(None)", "ctypes.dlopen is not permitted"),
        ("import os; os.kill(os.getppid(), 9)", "os.kill is not permitted"),
        ("def f(x: List[int]): return x", "NameError"),
        ("import socket; socket.socket(socket.AF_UNIX).connect('/run/x')", "socket.connect is not permitted"),
    ],
)
def test_what_is_wrong_or_reaches_out_does_not(program: str, error: str) -> None:
    outcome = run_program(program, QUICK)
    assert not outcome.passed
    assert outcome.error is not None
    assert error in outcome.error


@pytest.mark.parametrize(
    "change",
    [
        "open({!r}, 'w')",
        "import os; os.remove({!r})",
        "import shutil; shutil.rmtree({!r})",
        "import sqlite3; sqlite3.connect({!r}).execute('create table a (b)')",
    ],
)
def test_files_outside_its_folder_stay(change: str, tmp_path: Path) -> None:
    for path in (tmp_path / "kept", tmp_path / "folder" / "kept"):
        path.parent.mkdir(exist_ok=True)
        path.write_text("kept", encoding="utf-8")
    target = tmp_path / ("folder" if "rmtree" in change else "kept")
    outcome = run_program(change.format(str(target)))
    assert outcome.error is not None
    assert "outside the folder" in outcome.error
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["folder", "kept", "kept"]


def test_a_folder_is_fresh_and_gone_afterwards() -> None:
    where = "import os; raise ValueError(os.getcwd(), os.listdir('.'))"
    first, second = run_all([where, where])
    assert first.error is not None
    assert second.error is not None
    assert first.error != second.error
    assert first.error.endswith("[])")
    assert not Path(first.error.split("'")[1]).exists()


@pytest.mark.parametrize(
    "program",
    [
        "import os\nfor n in range(1500):\n    os.mkdir('d')\n    os.chdir('d')",
        "import os; os.mkdir('a'); open('a/b', 'w').close(); os.chmod('a', 0); os.chmod('.', 0)",
        "import os, shutil; shutil.rmtree(os.getcwd())",
    ],
)
def test_what_is_hard_to_remove_changes_no_outcome(
    program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    outcomes = run_all([program, "pass"], Limits(seconds=30))
    assert [outcome.error for outcome in outcomes] == [None, None]
    assert [*tmp_path.iterdir()] == []


def test_each_program_has_its_own_outcome() -> None:
    outcomes = run_all([f"assert {n} % 2 == 0" for n in range(8)])
    assert [outcome.passed for outcome in outcomes] == [True, False] * 4


def test_a_program_that_could_not_be_started_is_not_a_wrong_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(ConfigError, match="no program can be run here: its interpreter ended"):
        run_program("pass")


def jailed(program: str, change: str) -> list[dict[str, object]]:
    """What the jail tells of a program, with a line of code run before it starts."""
    code = f"from graftwood.evals import jail; {change}; jail.main()"
    work = json.dumps({"program": program, "limits": LIMITS.as_resources(), "token": "t"})
    done = subprocess.run([sys.executable, "-c", code], input=work, capture_output=True, text=True, check=False)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_without_namespaces_the_hook_is_said_to_hold() -> None:
    guard, told = jailed("import socket; socket.socket()", "jail._alone = lambda: False")
    assert guard == {"guard": "audit hook"}
    assert "not permitted" in str(told["error"])


def test_in_namespaces_there_is_no_network_even_without_the_hook() -> None:
    if run_program("pass").guard != "namespaces":
        pytest.skip("this system permits no namespaces")
    hookless = "jail._hook = lambda folder: lambda *_: None"
    with socket.create_server(("127.0.0.1", 0)) as server:
        reach = f"import socket; socket.create_connection(('127.0.0.1', {server.getsockname()[1]}), 2)"
        _, told = jailed(reach, hookless)
        assert "unreachable" in str(told["error"])
        _, told = jailed(reach, f"{hookless}; jail._alone = lambda: False")
        assert told["error"] is None, "where the kernel does not keep it, the server is reached"


def test_what_a_program_starts_ends_with_it() -> None:
    """Even what leaves its group: in its namespace the first process takes all others along."""
    if run_program("pass").guard != "namespaces":
        pytest.skip("this system permits no namespaces")
    mark = f"graftwood-left-{os.getpid()}"
    program = (
        "import os, sys, time\n"
        "if not os.fork():\n"
        "    os.setsid()\n"
        f"    os.execv(sys.executable, [sys.executable, '-c', 'import time; time.sleep(30)', '{mark}'])\n"
        "time.sleep(0.3)\n"
    )
    _, told = jailed(program, "jail._hook = lambda folder: lambda *_: None; jail._limit = lambda limits: None")
    assert told["error"] is None
    time.sleep(0.2)
    left = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            left += [path] * (mark.encode() in path.read_bytes().split(b"\0"))
    assert left == []


def test_the_jail_imports_nothing_of_ours() -> None:
    assert "import graftwood" not in Path(jail.__file__).read_text(encoding="utf-8")
    assert "from graftwood" not in Path(jail.__file__).read_text(encoding="utf-8")
