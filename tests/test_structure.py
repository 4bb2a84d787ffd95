"""The house rules that no single file shows: which way imports go, how long things are, what is said of them."""

from __future__ import annotations

import ast
import graphlib
import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import graftwood

SOURCE = Path(graftwood.__file__).parent
ROOT = Path(__file__).parents[1]
MODULES = {
    ".".join(("graftwood", *path.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(SOURCE.rglob("*.py"))
}

# From the bottom up. A module imports from its own room and from lower layers, never from a neighbour in its layer.
LAYERS = (
    ("errors",),
    ("registry", "files", "preparation", "telling"),
    ("config", "runtime"),
    ("hub",),
    ("data", "model"),
    ("base", "technique", "scaling", "planner"),
    ("techniques",),
    ("checkpoint",),
    ("train", "generate"),
    ("samples",),
    ("anchor",),
    ("anchors",),
    ("evals",),
    ("choose",),
    ("progress", "prompts", "unseen", "held"),
    ("training", "corpora", "draft", "deciding"),
    ("job",),
    ("keeping", "continued"),
    ("tuning", "pretraining"),
    ("apart", "racing"),
    ("run",),
    ("evaluation",),
    ("graftwood", "handover", "compose", "soup", "cache", "flags", "commands"),
    ("listings",),
    ("verbs", "judging", "merging"),
    ("cli",),
    ("__main__",),
)
HEIGHT = {room: height for height, layer in enumerate(LAYERS) for room in layer}

FILE_LINES, FUNCTION_LINES = 400, 60
# In two parts each, so that this file does not hold them.
FORBIDDEN = ("TO" + "DO", "FIX" + "ME", "X" + "XX", "NotImplemented" + "Error", "/" + "work/")


def room(module: str) -> str:
    """The part of the package a module belongs to; the package itself is `graftwood`."""
    return module.split(".")[1] if "." in module else module


def tree(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


def imports(module: str) -> set[str]:
    """Every module of the package that a module imports, at its top or inside a function."""
    found: set[str] = set()
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else str(node.module) for name in names}
    return found & MODULES.keys()


def functions(module: str) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree(module)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def public(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """What a module defines for others: functions, classes, and the methods and properties of those classes."""
    for name, value in vars(module).items():
        own = getattr(value, "__module__", None) == module.__name__
        if name.startswith("_") or not own:
            continue
        if inspect.isclass(value):
            yield name, value
            for member, raw in vars(value).items():
                if not member.startswith("_") and (inspect.isroutine(raw) or isinstance(raw, property)):
                    yield f"{name}.{member}", raw if isinstance(raw, property) else getattr(value, member)
        elif inspect.isroutine(inspect.unwrap(value)):
            yield name, value


def documented(value: Any) -> bool:
    """A class speaks for itself; a method may leave it to the one it overrides."""
    if inspect.isclass(value):
        # dataclass writes the signature where nothing was said
        return bool(value.__doc__) and not str(value.__doc__).startswith(f"{value.__name__}(")
    return bool(inspect.getdoc(value))


def test_every_part_of_the_package_has_its_layer() -> None:
    assert {room(module) for module in MODULES} == HEIGHT.keys()


def test_imports_go_down() -> None:
    wrong = [
        f"{module} imports {target}"
        for module in MODULES
        for target in sorted(imports(module))
        if room(module) != room(target) and HEIGHT[room(target)] >= HEIGHT[room(module)]
    ]
    assert not wrong, "\n".join(wrong)


def test_no_imports_go_in_a_circle() -> None:
    # A package's empty __init__ is reached by importing its modules and imports nothing itself.
    graphlib.TopologicalSorter({module: imports(module) for module in MODULES}).prepare()


def test_the_docs_draw_the_same_layers() -> None:
    drawn = " -> ".join(" | ".join(layer) for layer in LAYERS)
    page = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    assert drawn in " ".join(page.split()), f"docs/README.md must show the layers as: {drawn}"


def test_files_are_short() -> None:
    lengths = {module: len(path.read_text(encoding="utf-8").splitlines()) for module, path in MODULES.items()}
    assert {module: length for module, length in lengths.items() if length > FILE_LINES} == {}


def test_functions_are_short() -> None:
    long = {
        f"{module}.{node.name}": lines
        for module in MODULES
        for node in functions(module)
        if node.end_lineno is not None and (lines := node.end_lineno - node.lineno + 1) > FUNCTION_LINES
    }
    assert long == {}


def test_every_function_is_annotated() -> None:
    bare = []
    for module in MODULES:
        for node in functions(module):
            spec = node.args
            named = [*spec.posonlyargs, *spec.args, *spec.kwonlyargs, *filter(None, (spec.vararg, spec.kwarg))]
            missing = [given.arg for given in named if given.annotation is None and given.arg not in ("self", "cls")]
            if missing or node.returns is None:
                bare.append(f"{module}:{node.lineno} {node.name} {missing or 'return'}")
    assert not bare, "\n".join(bare)


def test_everything_public_is_documented() -> None:
    silent = [
        f"{module}.{name}"
        for module in MODULES
        for name, value in public(importlib.import_module(module))
        if not documented(value)
    ]
    assert not silent, "\n".join(silent)


def written() -> Iterator[Path]:
    """Every file of the project that people write, hidden folders aside."""
    yield from (*ROOT.glob("*.md"), ROOT / "pyproject.toml", ROOT / ".ci" / "run")
    for folder in ("src", "tests", "docs", "scripts", "examples", "bench"):
        for path in (ROOT / folder).rglob("*"):
            hidden = any(part.startswith(".") for part in path.relative_to(ROOT).parts)
            if path.is_file() and not hidden and path.suffix in (".py", ".md", ".sh", ".toml", ""):
                yield path


def test_no_unfinished_work_and_no_machine_of_ours() -> None:
    pattern = re.compile("|".join(rf"(?<!\w){re.escape(word)}" for word in FORBIDDEN))
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in written()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if pattern.search(line)
    ]
    assert not found, "\n".join(found)


WATCHED = """
import logging, os, random, signal, sys, warnings
import gguf, huggingface_hub, jinja2, numpy, pydantic, rich.progress, safetensors.torch, tokenizers, torch, typer


def state():
    return {
        "os.environ": dict(os.environ),
        "random": random.getstate(),
        "numpy.random": repr(numpy.random.get_state()),
        "torch random": torch.get_rng_state().tolist(),
        "torch threads": torch.get_num_threads(),
        "torch dtype": torch.get_default_dtype(),
        "torch gradients": torch.is_grad_enabled(),
        "torch determinism": torch.are_deterministic_algorithms_enabled(),
        "torch matmul precision": torch.get_float32_matmul_precision(),
        "root logger": (logging.root.level, list(logging.root.handlers), logging.root.manager.disable),
        "warnings": list(warnings.filters),
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        "sys": (sys.excepthook, sys.path[:], sys.getrecursionlimit()),
    }


before = state()
for module in sys.argv[1:]:
    __import__(module)
    after = state()
    for name, value in after.items():
        if value != before[name]:
            print(f"importing {module} changes {name}")
    before = after
"""


def test_importing_changes_nothing_global() -> None:
    done = subprocess.run([sys.executable, "-c", WATCHED, *MODULES], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


HELP = """
import sys, typer
from graftwood.cli import app, guarded
verbs = typer.main.get_command(app).commands
for words in ([], *([verb] for verb in verbs)):
    guarded(lambda: app([*words, "--help"], standalone_mode=False))
heavy = {"torch", "numpy", "transformers", "tokenizers", "gguf", "huggingface_hub"} & sys.modules.keys()
print(len(verbs), *sorted(heavy), file=sys.stderr)
"""


def test_help_imports_nothing_heavy() -> None:
    done = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, check=False)
    verbs, *heavy = done.stderr.split()
    assert (done.returncode, heavy) == (0, []), done.stderr
    assert done.stdout.count("Usage: ") == 1 + int(verbs)
