"""The verbs that hand a result over: `graft export` and `graft merge`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from graftwood.errors import ConfigError
from graftwood.files import check_new
from graftwood.flags import AdapterFlag, DeviceFlag, DtypeFlag, JsonFlag, seed_option
from graftwood.listings import print_json

if TYPE_CHECKING:
    from graftwood.evals.card import Matrix

Out = Annotated[Path, typer.Option("--out", "-o", help="folder to write")]
Adapters = Annotated[list[Path] | None, typer.Option("--adapters", help="several adapter or run folders, to be added")]
Models = Annotated[
    list[Path] | None,
    typer.Option("--models", help="several runs or folders of whole models of one base, to be averaged"),
]
Weights = Annotated[list[float] | None, typer.Option("--weights", help="what each adapter counts; by default 1")]
How = Annotated[
    list[str] | None,
    typer.Option(
        "--how", help="linear, ties, dare or cat; of --models mean or greedy; of several the best on --data is kept"
    ),
]
Density = Annotated[float, typer.Option("--density", help="share of each adapter that ties and dare keep")]
Data = Annotated[list[str] | None, typer.Option("--data", "-d", help="rows of each adapter's task, in the same order")]


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    app.command("export")(_export)
    app.command("merge")(_merge)


def _export(
    model: Annotated[str, typer.Argument(help="run folder, or any model")],
    out: Out,
    adapter: AdapterFlag = None,
    device: DeviceFlag = "cpu",
    dtype: DtypeFlag = "auto",
) -> None:
    """Write a Hugging Face folder that transformers loads, the adapter merged in, and check it."""
    _handed(model, out, adapter, device, dtype)


def _handed(model: str, out: Path, adapter: Path | None, device: str, dtype: str) -> float:
    from graftwood.handover import export
    from graftwood.run import load

    check_new(out)
    difference = export(load(model, adapter, device, dtype), out)
    print(f"{out}: written, read back, largest difference of a logit {difference:.1e}", file=sys.stderr)
    return difference


def _merge(
    out: Out,
    adapter: Annotated[Path | None, typer.Argument(help="adapter or run folder to fold into its base")] = None,
    adapters: Adapters = None,
    models: Models = None,
    weights: Weights = None,
    how: How = None,
    density: Density = 0.5,
    data: Data = None,
    seed: Annotated[int, seed_option("seed of what dare drops")] = 0,
    model: Annotated[str | None, typer.Option("--model", "-m", help="base, if it is not where it was")] = None,
    json_: JsonFlag = False,
    device: DeviceFlag = "cpu",
    dtype: DtypeFlag = "auto",
) -> None:
    """Fold an adapter into its base, add several --adapters to one, or average several --models to one."""
    from graftwood.handover import recorded_base
    from graftwood.run import load

    if sum(map(bool, (adapter, adapters, models))) != 1:
        raise ConfigError("give one adapter to fold into its base, several after --adapters, or several after --models")
    if weights and not adapters:
        raise ConfigError("--weights are for several --adapters")
    if adapter is not None:
        if how or data:
            raise ConfigError("--how and --data are for several --adapters or --models")
        difference = _handed(model or recorded_base(adapter), out, adapter, device, dtype)
        if json_:
            print_json({"folder": str(out), "logit_difference": difference})
        return
    check_new(out)
    given = adapters or models or []
    if adapters:
        from graftwood.compose import Sum, compose

        sum_ = Sum(tuple(weights or [1.0] * len(given)), tuple(how or ["linear"]), density, seed)
        sum_.check(given, len(data or []))
        base = load(model or recorded_base(given[0]), device=device, dtype=dtype).base
        done = compose(base, given, sum_, data or [], out)
        kept, matrix, members, notes = done.how, done.matrix, list(map(str, given)), done.notes
    else:
        from graftwood import soup
        from graftwood.unseen import run_of

        bases = {path: recorded_base(run) for path in given if (run := run_of(path))}
        soup.check(given, bases, how or ["mean"], len(data or []))
        base = load(model or bases.get(given[0]) or recorded_base(given[0]), device=device, dtype=dtype).base
        cooked = soup.cook(base, given, how or ["mean"], data or [], out)
        kept, matrix, members, notes = cooked.how, cooked.matrix, list(cooked.models), cooked.notes
    _told(kept, matrix, members, json_)
    for note in notes:
        print(f"warning: {note}", file=sys.stderr)
    print(f"{out}: written, {kept} of {len(members)}", file=sys.stderr)


def _told(kept: str, matrix: Matrix | None, members: list[str], json_: bool) -> None:
    """What was measured of every candidate, for people or for programs."""
    if json_:
        print_json({"kept": kept, "of": members, "matrix": matrix and matrix.model_dump()})
    elif matrix is not None:
        from rich.console import Console

        from graftwood.evals.terminal import matrix_table, print_plainly

        print_plainly(matrix_table(matrix), Console())
