"""Several whole models tuned from one base as one: the mean of their weights, measured before it is kept.

Source: Wortsman et al. 2022 (model soups), arXiv 2203.05482, section 2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from graftwood.base import Base
from graftwood.checkpoint import ADAPTER_CONFIG, save_model
from graftwood.config import RunConfig
from graftwood.data.encode import Example, encode_rows
from graftwood.data.mixture import task_names
from graftwood.data.rows import Row
from graftwood.errors import ConfigError, DataError
from graftwood.evals.card import Matrix
from graftwood.evals.judge import set_paper
from graftwood.evals.score import answer_losses
from graftwood.evals.transfer import ByTask, against_base, by_task
from graftwood.model.decoder import Decoder
from graftwood.model.weights import load_decoder, outline
from graftwood.runtime import Place
from graftwood.unseen import run_file_of, unknown, unseen

HOWS = ("mean", "greedy")


@dataclass(frozen=True)
class Cooked:
    """The way that was kept, the models in it, and where rows were given every candidate by tasks, with warnings."""

    how: str
    models: tuple[str, ...]
    matrix: Matrix | None
    notes: tuple[str, ...] = ()


def check(models: Sequence[Path], bases: Mapping[Path, str], hows: Sequence[str], sources: int) -> None:
    """Raises: ConfigError with all that keeps these models, of these bases, from being averaged."""
    odd = [how for how in hows if how not in HOWS]
    found = [f"--how {', '.join(odd)} is not one of {', '.join(HOWS)}"] if odd else []
    if len(models) < 2:
        found.append(f"{len(models)} model to average; give several after --models")
    if len({path.resolve() for path in models}) < len(models):
        found.append("a model is given twice")
    if len(set(bases.values())) > 1:
        found.append("not of one base: " + ", ".join(f"{path} of {base}" for path, base in bases.items()))
    if not sources and tuple(hows) != ("mean",):
        found.append("greedy, or a choice between ways, needs rows to choose by; give them with --data")
    adapters = [path for path in models if (path / "adapter").is_dir() or (path / ADAPTER_CONFIG).is_file()]
    if adapters:
        found.append(f"{', '.join(map(str, adapters))} is an adapter, no whole model; give it after --adapters")
    if found:
        raise ConfigError("; ".join(found))


def cook(base: Base, models: Sequence[Path], hows: Sequence[str], sources: Sequence[str], out: Path) -> Cooked:
    """Average models into the base's place and write the result to `out` as a Hugging Face folder.

    `mean` takes all of them. `greedy` begins with the best and takes in another while the loss does not rise. With
    `sources`, rows that none of the models was trained on, the way with the lowest mean of the tasks' losses is kept.

    Raises: ConfigError for a model of other sizes than the base's, DataError for rows that cannot be used.
    """
    decoder, place = base.decoder, Place(base.decoder.device, base.decoder.compute_dtype)
    folders = [path / "model" if (path / "model").is_dir() else path for path in models]
    for path, folder in zip(models, folders, strict=True):
        if outline(folder).config != decoder.config:
            raise ConfigError(f"{path} has other sizes than {base.name}; only models of one base can be averaged")
    heldout = _heldout(base, models, sources) if sources else []
    rows: dict[str, ByTask] = {}

    def measured(members: Sequence[int]) -> float:
        _average(decoder, [folders[member] for member in members], place)
        losses = by_task(heldout, answer_losses(decoder, heldout))
        rows[_name(models, members)] = losses
        return _loss(losses)

    if heldout:
        rows["base"] = by_task(heldout, answer_losses(decoder, heldout))
    alone = [measured([number]) for number in range(len(models))] if heldout else []
    pots = {"mean": tuple(range(len(models)))}
    if heldout:
        measured(pots["mean"])
        pots["greedy"] = _greedy(alone, measured)
    kept = min(hows, key=lambda how: _loss(rows[_name(models, pots[how])])) if heldout else "mean"
    _average(decoder, [folders[member] for member in pots[kept]], place)
    save_model(base, out)
    names = tuple(str(models[member]) for member in pots[kept])
    if not heldout:
        return Cooked(kept, names, None)
    best = min(range(len(models)), key=lambda number: alone[number])
    worse = _loss(rows[_name(models, pots[kept])]) > alone[best]
    note = f"{models[best]} alone has a lower loss than what was kept" if worse else None
    return Cooked(kept, names, against_base(rows), tuple(filter(None, [unknown(models), note])))


def _greedy(alone: Sequence[float], measured: Callable[[Sequence[int]], float]) -> tuple[int, ...]:
    """Members of the greedy soup, the best first."""
    first, *others = sorted(range(len(alone)), key=lambda number: alone[number])
    members: tuple[int, ...] = (first,)
    least = alone[first]
    for other in others:
        if (loss := measured((*members, other))) <= least:
            members, least = (*members, other), loss
    return members


@torch.no_grad()
def _average(decoder: Decoder, folders: Sequence[Path], place: Place) -> None:
    """Put the mean of models into the decoder's parameters; of equal models it is each of them, to the bit."""
    means: dict[str, torch.Tensor] = {}
    for count, folder in enumerate(folders, 1):
        for name, parameter in load_decoder(folder, place).named_parameters():
            if count == 1:
                means[name] = parameter.detach().float().clone()
            else:
                means[name] += (parameter.float() - means[name]) / count
    for name, parameter in decoder.named_parameters():
        parameter.copy_(means.pop(name))


def _heldout(base: Base, models: Sequence[Path], sources: Sequence[str]) -> list[Example]:
    """Rows of the sources that none of the models was trained on, a sample where there are many."""
    runs = [run_file_of(path) for path in models]
    found: list[Row] = []
    for source, task in zip(sources, task_names(sources), strict=True):
        known = [unseen(run, source) for run in runs if run is not None]
        first, *others = known or [unseen(None, source)]
        shared = set(first).intersection(*map(set, others))
        rows = [replace(row, task=task) for row in first if row in shared]
        if not rows:
            raise DataError(f"{source} has no rows that all of these runs held out; give a file of rows none has seen")
        found += rows
    configs = [run or RunConfig(data=sources[0]) for run in runs]
    encoder = base.encoder(min(config.max_length for config in configs))
    heldout = encode_rows(encoder, found)
    return list(set_paper(encoder, heldout, [], heldout, configs[0].seed).heldout)


def _name(models: Sequence[Path], members: Sequence[int]) -> str:
    """What a soup is called in the matrix: the mean of all, or whose mean it is."""
    if len(members) == len(models):
        return "mean"
    names = task_names([str(path) for path in models])
    return " + ".join(names[member] for member in sorted(members))


def _loss(losses: ByTask) -> float:
    return sum(task.value or 0.0 for task in losses.values()) / len(losses)
