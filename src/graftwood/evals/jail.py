"""What runs a program that a model wrote: started by `sandbox.py` as a script of its own, it imports nothing of ours.

It reads limits and program from stdin, writes on stdout first which guard holds, then whether the program ran to its
end. Where the system permits, the program is alone in namespaces of its own: no network, no sight of other processes,
and everything it started ends with it. In any case resources are limited and an audit hook refuses sockets, processes,
foreign code and writing outside the folder; the hook is a guard against accidents, not against an attacker.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import socket
import sys
import types
from typing import Any

_NEW_USER, _NEW_IPC, _NEW_PID, _NEW_NET = 0x10000000, 0x08000000, 0x20000000, 0x40000000
_PARENT_DEATH = 1
_REFUSED = (
    "ctypes.", "os.exec", "os.fork", "os.forkpty", "os.kill", "os.killpg", "os.posix_spawn", "os.spawn", "os.system",
    "pty.spawn", "resource.setrlimit", "socket.", "subprocess.Popen",
)  # fmt: skip
_CHANGES = (
    "os.chmod", "os.chown", "os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink", "os.truncate",
    "os.utime", "shutil.copyfile", "shutil.move", "shutil.rmtree", "sqlite3.connect",
)  # fmt: skip
_LOCAL = getattr(socket, "AF_UNIX", None)
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def main() -> None:
    """Read, shut in, run, tell."""
    given = json.load(sys.stdin)
    tell = os.fdopen(os.dup(1), "w", encoding="utf-8")
    guard = "audit hook"
    if _alone():
        guard = "namespaces"
        if child := os.fork():  # the first process of its namespace, with which all others there end
            os.waitpid(child, 0)
            os._exit(0)
        ctypes.CDLL(None).prctl(_PARENT_DEATH, signal.SIGKILL)
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    print(json.dumps({"guard": guard}), file=tell, flush=True)
    _limit(given["limits"])
    sys.dont_write_bytecode = True
    sys.addaudithook(_hook(os.path.realpath(os.getcwd())))
    said = _run(given["program"])
    tell.write(json.dumps({"token": given["token"], "error": said}) + "\n")  # the program may have a `print` of its own
    tell.flush()
    os._exit(0)


def _alone() -> bool:
    """Leave the network and all other processes behind; False where the system does not permit it."""
    try:
        return ctypes.CDLL(None).unshare(_NEW_USER | _NEW_IPC | _NEW_PID | _NEW_NET) == 0
    except (OSError, AttributeError):
        return False


def _limit(limits: dict[str, int]) -> None:
    for name, most in {**limits, "CORE": 0}.items():
        number = getattr(resource, f"RLIMIT_{name}")
        _, hard = resource.getrlimit(number)
        allowed = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(number, (allowed, allowed))


def _hook(folder: str) -> Any:
    def inside(path: Any) -> bool:
        if isinstance(path, int) or path is None:
            return True
        whole = os.path.realpath(os.fsdecode(path))
        return whole == folder or whole.startswith(folder + os.sep) or whole == os.devnull

    def watch(event: str, given: tuple[Any, ...]) -> None:
        if event == "socket.__new__" and given[1] == _LOCAL:
            return  # a pair of ends in the program itself, as asyncio makes; to bind or connect one is refused
        if event.startswith(_REFUSED):
            raise PermissionError(f"{event} is not permitted here")
        writes = event == "open" and isinstance(given[2], int) and given[2] & _WRITES
        # Of two paths both count; numbers among the arguments are modes and descriptors.
        paths = given[:1] if writes else [part for part in given[:2] if isinstance(part, str | bytes)]
        if (writes or event in _CHANGES) and not all(map(inside, paths)):
            raise PermissionError(f"{event} outside the folder is not permitted here")

    return watch


def _run(program: str) -> str | None:
    """Why the program did not run to its end, None if it did."""
    module = types.ModuleType("__main__")  # where pickle and dataclasses look for what the program defines
    sys.modules["__main__"] = module
    try:
        # Without what this file itself imports from the future: a name that an annotation lacks must be missed.
        exec(compile(program, "program.py", "exec", dont_inherit=True), module.__dict__)
    except BaseException as error:
        return f"{type(error).__name__}: {str(error)[:200]}"
    return None


if __name__ == "__main__":
    main()
