"""Several adapters of one base as one adapter, each way of adding them measured before one is kept."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from graftwood.base import Base
from graftwood.checkpoint import load_adapter, save_adapter
from graftwood.config import RunConfig
from graftwood.data.encode import Example, encode_rows
from graftwood.data.mixture import task_names
from graftwood.errors import ConfigError, DataError
from graftwood.evals.card import Matrix
from graftwood.evals.judge import set_paper
from graftwood.evals.score import answer_losses
from graftwood.evals.transfer import ByTask, beside, by_task
from graftwood.model.decoder import Decoder
from graftwood.model.matrices import matrices
from graftwood.techniques._linear import ALL_LINEAR
from graftwood.techniques._sums import HOWS, Factors, combine
from graftwood.techniques.lora import LoRA
from graftwood.unseen import run_file_of, unknown, unseen


@dataclass(frozen=True)
class Sum:
    """How adapters are added: weights, the ways to try, what ties and dare keep of each, the seed of dare."""

    weights: tuple[float, ...]
    hows: tuple[str, ...] = ("linear",)
    density: float = 0.5
    seed: int = 0

    def check(self, adapters: Sequence[Path], sources: int) -> None:
        """Raises: ConfigError with all that keeps it from being done with these adapters and so many sources."""
        count = len(adapters)
        odd = [how for how in self.hows if how not in HOWS]
        found = [f"--how {', '.join(odd)} is not one of {', '.join(HOWS)}"] if odd else []
        if count < 2:
            found.append(f"{count} adapter to add; give several after --adapters")
        if len({_run(path.resolve()) for path in adapters}) < count:
            found.append("an adapter is given twice; give it once with a weight")
        if len(self.weights) != count:
            found.append(f"{len(self.weights)} weights for {count} adapters; give one each")
        if not all(map(math.isfinite, self.weights)):
            found.append(f"weights {', '.join(map(str, self.weights))} are not all finite numbers")
        if not 0 < self.density <= 1:
            found.append(f"density {self.density:g} is a share above 0 and at most 1")
        if sources not in (0, count):
            found.append(f"{sources} sources for {count} adapters; give one each with --data, in the same order")
        if not sources and len(self.hows) > 1:
            found.append("several ways to add need rows to choose by; give them with --data, or one way with --how")
        if found:
            raise ConfigError("; ".join(found))


@dataclass(frozen=True)
class Composed:
    """The way that was kept, and where rows were given every candidate by tasks; `notes` are warnings."""

    how: str
    matrix: Matrix | None
    notes: tuple[str, ...] = ()


def compose(base: Base, adapters: Sequence[Path], how: Sum, sources: Sequence[str], out: Path) -> Composed:
    """Add adapters and write the result to `out` as an adapter folder that PEFT opens.

    With `sources`, held-out rows of each adapter's task, the way with the lowest mean of the tasks' losses is kept.

    Raises: ConfigError for adapters that are not LoRA or not of this base, DataError for rows that cannot be used.
    """
    how.check(adapters, len(sources))
    names = [f"{name} alone" for name in task_names([str(_run(path)) for path in adapters])]
    heldout = _heldout(base, adapters, sources) if sources else []
    decoder = base.decoder

    def measured() -> ByTask:
        return by_task(heldout, answer_losses(decoder, heldout))

    rows, parts = {"base": measured()}, []
    for name, folder in zip(names, adapters, strict=True):
        parts.append(_factors(base, folder))
        rows[name] = measured()
        _bare(decoder)
    order = list(matrices(decoder))
    candidates = {way: combine(order, parts, how.weights, way, how.density, how.seed) for way in how.hows}
    for way, factors in candidates.items():
        _put(decoder, factors)
        rows[way] = measured()
        _bare(decoder)
    kept = min(candidates, key=lambda way: sum(losses.value for losses in rows[way].values()))
    save_adapter(base, _put(decoder, candidates[kept]), out)
    if not sources:
        return Composed(kept, None)
    matrix = beside(rows, dict(zip(rows["base"], names, strict=True)))
    return Composed(kept, matrix, tuple(filter(None, [unknown(adapters)])))


def _run(adapter: Path) -> Path:
    """The folder that a person knows an adapter by."""
    return adapter.parent if adapter.name == "adapter" else adapter


def _tasks(sources: Sequence[str]) -> list[str]:
    """A name for each source; adapters may be of the same one."""
    different = list(dict.fromkeys(sources))
    named = dict(zip(different, task_names(different), strict=True))
    names = [named[source] for source in sources]
    return [
        name if names.count(name) == 1 else f"{name} ({names[: number + 1].count(name)})"
        for number, name in enumerate(names)
    ]


def _heldout(base: Base, adapters: Sequence[Path], sources: Sequence[str]) -> list[Example]:
    """Rows of each source that its adapter was not trained on."""
    found: list[Example] = []
    for adapter, source, task in zip(adapters, sources, _tasks(sources), strict=True):
        run = run_file_of(adapter)
        rows = [replace(row, task=task) for row in unseen(run, source)]
        if not rows:
            raise DataError(f"{source} has no validation or test rows, and the run of {adapter} held none out")
        config = run or RunConfig(data=source)
        encoder = base.encoder(config.max_length)
        heldout = encode_rows(encoder, rows)
        found += set_paper(encoder, heldout, [], heldout, config.seed).heldout
    return found


def _factors(base: Base, folder: Path) -> Factors:
    """An adapter put on the base, and its updates of the files' matrices."""
    technique = load_adapter(base, folder / "adapter" if (folder / "adapter").is_dir() else folder)
    if not isinstance(technique, LoRA) or technique.name != LoRA.name:
        raise ConfigError(f"{folder} is {technique.title}; only LoRA adapters can be added")
    return {matrix.path: technique.update(matrix, whole) for matrix, whole in technique.stored(base.decoder)}


def _put(decoder: Decoder, factors: Factors) -> LoRA:
    """A LoRA of scale 1 with these updates, on the decoder."""
    rank = len(next(iter(factors.values()))[0])
    everything = factors.keys() == matrices(decoder).keys()
    technique = LoRA(rank=rank, alpha=rank, targets=(ALL_LINEAR,) if everything else tuple(factors))
    technique.apply(decoder, seed=0)
    decoder.requires_grad_(False).eval()
    for path, matrix in technique.matches(decoder).items():
        a, b, _ = factors[path]
        technique.spread(matrix, True, {"lora_A": a, "lora_B": b})
    return technique


def _bare(decoder: Decoder) -> None:
    for linear in decoder.linears().values():
        linear.delta = None
