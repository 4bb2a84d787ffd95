"""The verbs that show what there is: reports and choices of runs, models, the cache, techniques, anchors."""

from __future__ import annotations

import codecs
import json
import sys
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from graftwood.errors import ConfigError
from graftwood.flags import JsonFlag


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    for verb in (show, explain, compare, models, cache, techniques, anchors):
        app.command()(verb)


def show(
    run: Annotated[Path, typer.Argument(help="run folder")],
    json_: JsonFlag = False,
) -> None:
    """Show a run's report card again."""
    from graftwood.evals.report import read_report

    card = read_report(run)
    if json_:
        print_json(card.model_dump())
    else:
        show_card(run, card)


def explain(
    run: Annotated[Path, typer.Argument(help="run folder")],
    json_: JsonFlag = False,
) -> None:
    """Say how a run's budget was kept: everything that was tried, what each place gained and kept, and the choice."""
    from rich.console import Console

    from graftwood.evals.explain import explain as tell
    from graftwood.evals.report import read_report

    choice = read_report(run).choice
    if choice is None:
        raise ConfigError(f"{run} had no budget, so nothing was chosen; tune with --keep 95% or the like")
    if json_:
        print_json(choice.model_dump())
    else:
        tell(choice, Console())


def compare(
    runs: Annotated[list[Path], typer.Argument(help="run folders")],
    out: Annotated[Optional[Path], typer.Option("--out", "-o", help="folder for the picture")] = None,  # noqa: UP045
    json_: JsonFlag = False,
) -> None:
    """Put runs side by side: what each gained, kept, memorised and took, as a table and as a picture."""
    from rich.console import Console

    from graftwood.data.mixture import task_names
    from graftwood.evals.report import read_report
    from graftwood.evals.side_by_side import compare_runs, write_comparison

    names = task_names([str(run) for run in runs])
    cards = {name: read_report(run) for name, run in zip(names, runs, strict=True)}
    if json_:
        print_json({name: card.model_dump() for name, card in cards.items()})
    else:
        compare_runs(cards, Console())
    if out is not None:
        print("written: " + " ".join(map(str, write_comparison(cards, out))), file=sys.stderr)


def models(json_: JsonFlag = False) -> None:
    """List the models that have a short name and those that are cached, with their sizes."""
    from graftwood.cache import cached_models
    from graftwood.hub import KNOWN

    rows = [{"name": n, "source": k.source, "about": k.about, "licence": k.licence} for n, k in KNOWN.items()]
    cached = cached_models()
    if json_:
        print_json({"known": rows, "cached": cached})
        return
    for row in rows:
        print(f"{row['name']:24} {row['about']}, {row['licence']}, from {row['source']}")
    for entry in cached:
        print(f"{entry['name']:48} {_size(int(entry['bytes']))}  {entry['path']}")


def cache(
    clean: Annotated[bool, typer.Option("--clean", help="delete what is listed")] = False,
    what: Annotated[Optional[str], typer.Argument(help="only this entry")] = None,  # noqa: UP045
    json_: JsonFlag = False,
) -> None:
    """List what is cached, or delete it with --clean; everything cached can be made again."""
    from graftwood.cache import entries, remove
    from graftwood.files import cache_home

    found = entries(what)
    if json_:
        print_json({"home": str(cache_home()), "entries": found})
    else:
        print(f"cache folder {cache_home()}", file=sys.stderr)
        for entry in found:
            print(f"{entry['name']:64} {_size(int(entry['bytes']))}")
    if clean:
        remove(found)
        print(f"deleted {len(found)} entries", file=sys.stderr)


def techniques(json_: JsonFlag = False) -> None:
    """List the tuning techniques: what each trains, saves and costs, its options and its source."""
    from graftwood.technique import TECHNIQUES

    told = "trains {trains}; saves {saves}; costs {costs}\nlr {learning_rate:g}"
    _print_entries([kind.summary() for kind in TECHNIQUES.all().values()], told, json_)


def anchors(json_: JsonFlag = False) -> None:
    """List what can hold a model to its base while it learns: formula, cost, options and source of each."""
    from graftwood.anchor import ANCHORS

    _print_entries([kind.summary() for kind in ANCHORS.all().values()], "costs {cost}", json_)


def _print_entries(rows: list[dict[str, Any]], told: str, json_: bool) -> None:
    """Entries of a registry, `told` filled in between the formula and the options of each."""
    if json_:
        print_json(rows)
        return
    width = max(len(row["name"]) for row in rows)
    for row in rows:
        options = ", ".join(f"{key}={value}" for key, value in row["options"].items()) or "none"
        print(f"{row['name']:{width}} {row['title']}: {row['formula']}")
        for line in (*told.format_map(row).splitlines(), f"options: {options}; {row['source']}"):
            print(f"{'':{width}} {line}")


def show_card(folder: Path, card: Any) -> None:
    """Print a card and say where its files are."""
    from rich.console import Console

    from graftwood.evals.terminal import render

    render(card, Console())
    names = [name for name in ("report.html", "report.png", "report.json") if (folder / name).exists()]
    print("written: " + " ".join(str(folder / name) for name in names), file=sys.stderr)
    if "report.png" not in names:
        print("report.png needs the extra: pip install 'graftwood[report]'", file=sys.stderr)


def print_json(value: Any, line: bool = False) -> None:
    """Data on stdout, for programs; where that is not UTF-8, characters it may lack are written as JSON escapes."""
    plain = codecs.lookup(getattr(sys.stdout, "encoding", None) or "utf-8").name != "utf-8"
    print(json.dumps(value, ensure_ascii=plain, indent=None if line else 2, default=str))


def _size(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"
