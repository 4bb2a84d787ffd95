"""What others rely on: verbs, options and public names equal a committed list, and what the docs show works.

A change of the surface is made on purpose: `python tests/test_surface.py --write` writes the list anew.
"""

from __future__ import annotations

import ast
import inspect
import json
import os
import re
import runpy
import shlex
import sys
import tomllib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest
import typer

import graftwood
from graftwood.cli import app
from graftwood.config import PretrainConfig, RunConfig
from graftwood.evals.task import TASKS
from graftwood.flags import ALIASES, spelled
from graftwood.technique import TECHNIQUES

ROOT = Path(__file__).parents[1]
LIST = Path(__file__).with_name("surface.txt")
GROUP = typer.main.get_command(app)
VERBS = runpy.run_path(str(ROOT / "scripts" / "docs"))["verbs"](GROUP)
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").rglob("*.md")])

_BLOCK = re.compile(r"^```(?P<language>\w+)\n(?P<text>.*?)^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\((?P<target>[^)#\s]+)")


def surface() -> list[str]:
    """One line for everything a user can write."""
    lines = [f"graft {verb} {'/'.join(p.opts)}" for verb, command in VERBS.items() for p in command.params]
    lines += [f"graft {verb}" for verb, command in VERBS.items() if not command.params]
    lines += [f"alias {theirs} {ours}" for theirs, ours in ALIASES.items()]
    lines += [f"run file {key}" for key in RunConfig.model_fields]
    lines += [f"pretrain file {key}" for key in PretrainConfig.model_fields]
    lines += [f"technique {name} {option}" for name, kind in TECHNIQUES.all().items() for option in kind.model_fields]
    lines += [f"technique {name}" for name, kind in TECHNIQUES.all().items() if not kind.model_fields]
    for name in graftwood.__all__:
        value = getattr(graftwood, name)
        lines.append(f"graftwood.{name}{_parameters(value) if inspect.isfunction(value) else ''}")
        members = vars(value) if inspect.isclass(value) else {}
        fields = getattr(value, "__dataclass_fields__", {})
        lines += [f"graftwood.{name}.{member}" for member in {**members, **fields} if not member.startswith("_")]
    return sorted(lines)


def _parameters(function: object) -> str:
    assert callable(function)
    return f"({', '.join(inspect.signature(function).parameters)})"


def blocks(language: str) -> Iterator[tuple[str, str]]:
    """Every fenced block of a language: page and text."""
    for page in PAGES:
        for block in _BLOCK.finditer(page.read_text(encoding="utf-8")):
            if block["language"] == language:
                yield page.name, block["text"]


def commands() -> list[tuple[str, list[str]]]:
    """Every command line of the pages as words, up to a pipe or a redirection."""
    found = []
    for page, text in blocks("sh"):
        for line in text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            end = next((place for place, word in enumerate(words) if word in ("|", ">", "<", "&&")), len(words))
            if words[:end]:
                found.append((page, words[:end]))
    return found


def test_the_surface_is_the_committed_one() -> None:
    committed = LIST.read_text(encoding="utf-8").splitlines()
    assert surface() == committed, "on purpose? python tests/test_surface.py --write"


@pytest.mark.parametrize(("page", "words"), commands())
def test_commands_of_the_pages_parse(page: str, words: list[str]) -> None:
    program, *arguments = words
    if program == "graft":
        words = next((n for n in (2, 1) if " ".join(arguments[:n]) in VERBS), 1)
        verb, rest = " ".join(arguments[:words]), spelled(arguments)[words:]
        if verb not in ("--help", "--version"):
            VERBS[verb].make_context(verb, rest).close()
    elif program.startswith(("./", ".ci/")):
        assert os.access(ROOT / program, os.X_OK), f"{page}: {program} is not there to be run"
    else:
        assert Path(program).name in ("python", "pip"), f"{page}: nothing checks {program}"
        assert all((ROOT / word).exists() for word in arguments if word.endswith((".py", "/docs")))


def test_run_files_of_the_pages_are_valid() -> None:
    files = [text for _, text in blocks("toml") if "[project" not in text]
    assert files
    for text in files:
        given = tomllib.loads(text)
        kind = PretrainConfig if {"depth", "params"} & given.keys() else RunConfig
        kind.model_validate(given)


def test_python_of_the_pages_uses_what_there_is() -> None:
    used = set()
    for page, text in blocks("python"):
        for node in ast.walk(ast.parse(text, page)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "gw":
                used.add(node.attr)
            elif isinstance(node, ast.ImportFrom) and str(node.module).startswith("graftwood"):
                module = __import__(str(node.module), fromlist=["*"])
                assert all(hasattr(module, alias.name) for alias in node.names), f"{page}: {ast.unparse(node)}"
    assert {"load", "tune"} <= used <= set(graftwood.__all__)


def test_links_lead_somewhere() -> None:
    dead = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in PAGES
        for target in _LINK.findall(page.read_text(encoding="utf-8"))
        if "://" not in target and not (page.parent / target).exists()
    ]
    assert not dead, "\n".join(dead)


def test_every_dependency_has_its_line() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [*project["dependencies"], *chain(*project["optional-dependencies"].values())]
    wanted = {re.split(r"[<>=\[]", line)[0] for line in lines}
    page = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\|(?: `[\w-]+` \|)? `([\w-]+)` \|", page, re.MULTILINE)) == wanted


def test_every_task_is_described_as_it_is() -> None:
    page = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    rows = {row[0]: row[2:] for row in re.findall(r"^\| `(\w+)` \| (.*) \| (\d+) \| ([\d.]+) \|$", page, re.MULTILINE)}
    assert rows == {name: (str(len(task.items())), f"{task.chance:g}") for name, task in TASKS.all().items()}


def test_generated_pages_are_in_step() -> None:
    written = runpy.run_path(str(ROOT / "scripts" / "docs"))
    stale = [path.name for path, text in written["pages"]().items() if path.read_text(encoding="utf-8") != text]
    assert not stale, "run scripts/docs"


def test_figures_come_from_the_summary_alone(tmp_path: Path) -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "docs"))
    figures = script["figures"]
    figures.__globals__["RESULTS"] = tmp_path
    page = tmp_path / "page.md"
    page.write_text("above <!-- figures: written by scripts/docs --> old <!-- end of figures --> below", "utf-8")
    assert "Not measured yet." in script["with_parts"](page, figures=figures())
    line = {
        "value": 1.5,
        "unit": "times as fast",
        "what": "speed",
        "ours": "9 tokens/s",
        "peer": "6 tokens/s with a peer",
        "source": "bench/results/speed.json",
    }
    (tmp_path / "summary.json").write_text(json.dumps({"speed": line}), "utf-8")
    shown = script["with_parts"](page, figures=figures())
    assert "| speed | **1.5** times as fast | 9 tokens/s | 6 tokens/s with a peer | [speed.json]" in shown
    assert shown.startswith("above ")
    assert shown.endswith(" below")
    assert "old" not in shown


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit(__doc__)
    LIST.write_text("\n".join(surface()) + "\n", encoding="utf-8")
