"""The verb that asks: `graft eval`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from graftwood.errors import ConfigError
from graftwood.flags import DeviceFlag, DtypeFlag, JsonFlag, seed_option
from graftwood.listings import print_json

Adapters = Annotated[
    list[Path] | None, typer.Option("--adapter", "-a", help="adapter or run folder; may be given again")
]
Tasks = Annotated[
    str | None, typer.Option("--tasks", help="names, .jsonl files and folders, comma-separated; by default the bundle")
]
LmEval = Annotated[
    str | None, typer.Option("--lm-eval", help="instead of --tasks: tasks of lm-eval, names and patterns, asked by it")
]
LmEvalTasks = Annotated[
    Path | None, typer.Option("--lm-eval-tasks", help="folder with YAML files of tasks beside those lm-eval has")
]


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command("eval")(_evaluate)


def _evaluate(
    model: Annotated[str, typer.Argument(help="base by name, folder, .gguf, package or hub id; or a run")],
    adapter: Adapters = None,
    tasks: Tasks = None,
    tier: Annotated[str, typer.Option("--tier", help="how much is asked: pulse, standard or certificate")] = "standard",
    limit: Annotated[int | None, typer.Option("--limit", help="items of each task, whatever the tier says")] = None,
    shots: Annotated[int, typer.Option("--shots", help="answered items that stand before each item")] = 0,
    seed: Annotated[int, seed_option("seed by which those, and samples of programs, are drawn")] = 0,
    samples: Annotated[int, typer.Option("--samples", help="programs written for each item of a code task")] = 1,
    temperature: Annotated[float, typer.Option("--temperature", "-t", help="of those samples; 0 is greedy")] = 0.0,
    lm_eval: LmEval = None,
    lm_eval_tasks: LmEvalTasks = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="folder for the records of all items")] = None,
    json_: JsonFlag = False,
    device: DeviceFlag = "auto",
    dtype: DtypeFlag = "auto",
) -> None:
    """Ask a base what it can do, and how much of it each adapter keeps."""
    from graftwood import evaluation

    if lm_eval is None:
        if lm_eval_tasks is not None:
            raise ConfigError("--lm-eval-tasks says where tasks are; name them with --lm-eval NAME,...")
        found: Any = evaluation.evaluate(
            model, adapter or (), tasks=tasks, tier=tier, limit=limit, shots=shots, seed=seed, samples=samples,
            temperature=temperature, out=out, device=device, dtype=dtype,
        )  # fmt: skip
    else:
        ours = {"--tasks": tasks is not None, "--tier": tier != "standard", "--seed": seed != 0,
                "--samples": samples != 1, "--temperature": temperature != 0}  # fmt: skip
        if given := [flag for flag, there in ours.items() if there]:
            raise ConfigError(f"--lm-eval asks as its tasks say; leave out {', '.join(given)}, which are for ours")
        found = evaluation.evaluate_with_lm_eval(
            lm_eval, model, adapter or (), folder=lm_eval_tasks, limit=limit, shots=shots or None, out=out,
            device=device, dtype=dtype,
        )  # fmt: skip
    if json_:
        print_json(found.model_dump())
        return
    from rich.console import Console

    from graftwood.evals.table import render, render_lm_eval

    (render if lm_eval is None else render_lm_eval)(found, Console())
