"""A base and many adapters put to the same tasks: one base in memory, the adapters put on and taken off in turn."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from graftwood.base import Base, open_base
from graftwood.checkpoint import ADAPTER_CONFIG, load_adapter, read_technique
from graftwood.errors import ConfigError, ModelError
from graftwood.evals import lm_eval_tasks, skills
from graftwood.evals.asking import Scores
from graftwood.evals.card import Record
from graftwood.evals.comparison import Evaluation, Judged, LmEvaluation, Outside, asked
from graftwood.evals.fitting import fitting
from graftwood.evals.given import find_tasks
from graftwood.evals.programs import GUARD, guarded, warn_of
from graftwood.evals.retention import compare, probe_for
from graftwood.evals.shots import with_shots
from graftwood.evals.task import Task
from graftwood.evals.tiers import check_limit, sized
from graftwood.files import atomic_write, expanded, storage, write_json
from graftwood.generate.engine import Engine
from graftwood.progress import Display
from graftwood.run import Model, run_parts
from graftwood.runtime import place
from graftwood.technique import Technique


def evaluate(
    model: Model | str | Path = "smollm2-135m",
    adapters: str | Path | Sequence[str | Path] = (),
    *,
    tasks: str | None = None,
    tier: str = "standard",
    limit: int | None = None,
    shots: int = 0,
    seed: int = 0,
    samples: int = 1,
    temperature: float = 0.0,
    out: str | Path | None = None,
    device: str = "auto",
    dtype: str = "auto",
    quiet: bool = False,
) -> Evaluation:
    """Put tasks to a base, and to every adapter on it; a run folder stands for its base and its adapter.

    A model stands for the base it was opened from.

    `tasks` are names, files and folders, comma-separated; `tier` says how many items of each, `limit` says it outright.
    Before each item stand `shots` others with their answers, drawn by `seed`. Of a code task's answers `samples` are
    drawn at `temperature`, by the same seed. With `out` the records of all items are kept there.

    Raises: ConfigError, DataError and ModelError for what cannot be used, before anything is asked.
    """
    display = Display(quiet)
    given = [with_shots(task, shots, seed).sampled(samples, temperature, seed) for task in find_tasks(tasks)]
    chosen = sized(given, tier, limit)
    base, folders = _opened(model, adapters, device, dtype, out)
    settings = {"tier": tier, "shots": str(shots), "seed": str(seed)} | ({} if limit is None else {"limit": str(limit)})
    if held := guarded(chosen):
        settings |= {"samples": str(samples), "temperature": f"{temperature:g}", GUARD: held}
        display.say(warn_of(held))
    found, records = _put(base, folders, chosen, settings, display)
    if out is not None:
        lines = {name: [record for one in scores for record in one.records()] for name, scores in records.items()}
        _write(found, lines, expanded(out))
    return found


def evaluate_with_lm_eval(
    tasks: str,
    model: Model | str | Path = "smollm2-135m",
    adapters: str | Path | Sequence[str | Path] = (),
    *,
    folder: str | Path | None = None,
    limit: int | None = None,
    shots: int | None = None,
    out: str | Path | None = None,
    device: str = "auto",
    dtype: str = "auto",
    quiet: bool = False,
) -> LmEvaluation:
    """Put lm-eval's tasks to a base, and to every adapter on it, by lm-eval's own code.

    `tasks` are names and patterns, comma-separated; `folder` holds YAML files beside those of lm-eval. By default all
    items are asked, each with as many `shots` as its task says. With `out` the records of all items are kept there.

    Raises: ConfigError, DataError and ModelError for what cannot be used, before anything is asked.
    """
    lm_eval_tasks.require_lm_eval()
    check_limit(limit)
    if shots is not None and shots < 0:
        raise ConfigError(f"--shots {shots} is not 0 or more")
    display = Display(quiet)
    chosen = lm_eval_tasks.load_tasks(tasks, None if folder is None else Path(folder))
    base, folders = _opened(model, adapters, device, dtype, out)
    display.say("base: lm-eval asks")
    before = lm_eval_tasks.ask(base, chosen, limit, shots)
    judged, records = [], {"base": [*lm_eval_tasks.records(before)]}
    for name, path in zip(_names(folders), folders, strict=True):
        display.say(f"{name}: lm-eval asks")
        with _on(base, path) as technique:
            after = lm_eval_tasks.ask(base, chosen, limit, shots)
        records[name] = [*lm_eval_tasks.records(after)]
        told = lm_eval_tasks.measured(after, before)
        judged.append(Outside(name=name, source=str(path), technique=technique.title, measures=told))
    settings = {"lm-eval": version("lm-eval"), "limit": "all" if limit is None else str(limit)}
    found = LmEvaluation(
        **_sitting(base, settings),
        base=Outside(name=base.name, source=base.source, technique=None, measures=lm_eval_tasks.measured(before)),
        adapters=tuple(judged),
    )
    if out is not None:
        _write(found, records, expanded(out))
    return found


def _opened(
    model: Model | str | Path,
    adapters: str | Path | Sequence[str | Path],
    device: str,
    dtype: str,
    out: str | Path | None,
) -> tuple[Base, list[Path]]:
    """The base, and the folders of the adapters to put on it, the run's own first.

    Raises: StorageError where `out`, which is written last, cannot be.
    """
    if isinstance(model, Model):
        if model.technique is not None or model.merged:
            raise ConfigError("the model carries an adapter; give the base, and the adapter's folder beside it")
        model = model.base.source
    source, own = run_parts(str(model))
    given = [adapters] if isinstance(adapters, (str, Path)) else list(adapters)
    folders = [_adapter_folder(expanded(one)) for one in (*([own] if own else []), *given)]
    if out is not None:
        with storage(f"write into {out}"):
            expanded(out).mkdir(parents=True, exist_ok=True)
            TemporaryFile(dir=expanded(out)).close()
    base = open_base(source, place(device, dtype))
    base.document_start()  # refused before anything is asked
    return base, folders


def _put(
    base: Base, folders: Sequence[Path], tasks: Sequence[Task], settings: dict[str, str], display: Display
) -> tuple[Evaluation, dict[str, list[Scores]]]:
    """Ask the base, then each adapter: what was found, and what each of them said."""
    engine = Engine(base.decoder, base.tokenizer.eos, base.tokenizer)
    # What one adapter has no room for is asked of nobody, so that all are asked the same.
    room = min((read_technique(folder).room(base.decoder) for folder in folders), default=base.decoder.context)
    fits = fitting(base, tasks, room)
    for line in fits.left_out:
        display.say(f"warning: {line}")
    before = skills.base_scores(base, engine, lambda what: display.say(f"base: {what}"), fits.tasks)
    records, judged = {"base": before}, []
    for name, folder in zip(_names(folders), folders, strict=True):
        with display.stage("text of the base itself, to measure drift"):
            probe = probe_for(base, engine, room)
        with _on(base, folder) as technique:
            after = _ask(base, name, before, display)
            moved = compare(base.decoder, probe)
        records[name] = after
        kept = skills.kept(before, after, moved, probe)
        judged.append(Judged(name=name, source=str(folder), technique=technique.title, tasks=asked(after), kept=kept))
    found = Evaluation(
        **_sitting(base, settings),
        base=Judged(name=base.name, source=base.source, technique=None, tasks=asked(before), kept=None),
        adapters=tuple(judged),
        left_out=fits.left_out,
    )
    return found, records


def _sitting(base: Base, settings: dict[str, str]) -> dict[str, Any]:
    """When which model is asked, and how."""
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": base.name,
        "model_fingerprint": base.fingerprint,
        "precision": base.decoder.precision,
        "settings": settings,
    }


def _ask(base: Base, name: str, before: Sequence[Scores], display: Display) -> list[Scores]:
    engine = Engine(base.decoder, base.tokenizer.eos, base.tokenizer)
    return skills.score_again(base, engine, lambda what: display.say(f"{name}: {what}"), before)


@contextmanager
def _on(base: Base, folder: Path) -> Iterator[Technique]:
    """The adapter on the base; afterwards, or when it does not fit, the base is what it was."""
    try:
        yield load_adapter(base, folder)
    finally:
        base.decoder.take_off()


def _adapter_folder(given: Path) -> Path:
    """Where an adapter's files are. Raises: ConfigError for a run that left a whole model, ModelError for none."""
    if (given / "model").is_dir():
        raise ConfigError(f"{given} left a whole model, not an adapter; ask it alone: graft eval {given}")
    folder = given / "adapter" if (given / "adapter").is_dir() else given
    if not (folder / ADAPTER_CONFIG).is_file():
        raise ModelError(f"{given} is no adapter folder: it has no {ADAPTER_CONFIG}")
    return folder


def _names(folders: Sequence[Path]) -> list[str]:
    """What people call each adapter: its run's folder, or its whole path where two are called the same."""
    whole = [folder.resolve() for folder in folders]
    short = [folder.parent.name if folder.name == "adapter" else folder.name for folder in whole]
    return [
        name if name != "base" and short.count(name) == 1 else str(folder).strip("/").replace("/", "-")
        for name, folder in zip(short, whole, strict=True)
    ]


def _write(found: Record, records: Mapping[str, Sequence[Mapping[str, Any]]], out: Path) -> None:
    """`evaluation.json`, and one file a model with a line for each item."""
    with storage(f"write into {out}"):
        for name, own in records.items():
            lines = (json.dumps(record, ensure_ascii=False, default=str) for record in own)
            atomic_write(out / f"items-{name}.jsonl", "".join(f"{line}\n" for line in lines))
        write_json(out / "evaluation.json", found.model_dump())
