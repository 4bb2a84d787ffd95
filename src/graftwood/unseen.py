"""Rows that the run which made an adapter or a model was not trained on, as far as its run file tells."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from graftwood.config import RUN_FILE, RunConfig, read_config, read_toml
from graftwood.data.audit import folded
from graftwood.data.mixture import weighted
from graftwood.data.rows import Row
from graftwood.data.sources import Splits, load_splits
from graftwood.errors import GraftError


def run_of(made: Path) -> Path | None:
    """The folder of the run that made a folder: itself, or up to three above it; None where none has a run file.

    Run files of pre-training do not count: its text was read whole.
    """
    return next((path for path in (made, *made.resolve().parents[:3]) if _tunes(path / RUN_FILE)), None)


def _tunes(file: Path) -> bool:
    """Whether a file is there and says how a model was tuned."""
    return file.is_file() and read_toml(file).keys() <= RunConfig.model_fields.keys()


def run_file_of(made: Path) -> RunConfig | None:
    """What the run that made a folder was, where its run file is."""
    run = run_of(made)
    return None if run is None else read_config(RunConfig, run / RUN_FILE, {})


def unknown(made: Iterable[Path]) -> str | None:
    """What to say of folders beside or above which there is no run file, if there are any."""
    without = [str(folder) for folder in made if run_of(folder) is None]
    if not without:
        return None
    return (
        f"no {RUN_FILE} is beside or above {', '.join(without)}, so nobody knows which rows it was trained on; what is "
        "measured is right only if none of these rows was among them"
    )


def unseen(run: RunConfig | None, source: str) -> Sequence[Row]:
    """Rows of a source that a run was not trained on: test rows where there are any, else validation rows.

    They are those that the run held out, in files of their own where it had such. Of a source of which it saw nothing,
    and where there is no run file, they are the test or validation rows that the source brings, else all of it.

    Raises: DataError for a source that cannot be read or split.
    """
    brought = load_splits(source, held_out=0)
    rows = (*brought.train, *brought.valid, *brought.test)
    trained = None if run is None else _trained(run)
    if run is None or (trained is not None and not any(folded(row.parts) in trained for row in rows)):
        return brought.test or brought.valid or brought.train
    held = _held(run, source)
    return [row for row in held.test or held.valid if folded(row.parts) not in (trained or ())]


def _held(run: RunConfig, source: str) -> Splits:
    """A source divided as a run of it divides its own."""
    valid, test = (Path(path) if path else None for path in (run.valid, run.test))
    return load_splits(source, valid, test, run.held_out, run.seed)


def _trained(run: RunConfig) -> set[tuple[str, ...]] | None:
    """The texts of all rows that a run was trained on; None where its sources are no longer there."""
    try:
        return {folded(row.parts) for own in run.sources for row in _held(run, weighted(own)[0]).train}
    except GraftError:
        return None
