"""Tasks of lm-eval put to a model: found by name, asked by lm-eval's own code, measured item by item."""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

from graftwood.base import Base
from graftwood.errors import ConfigError, nearest
from graftwood.evals import stats
from graftwood.evals.card import Estimate
from graftwood.evals.comparison import Measured
from graftwood.evals.lm_eval_model import lm_eval_model

NO_MEAN = "no mean over items, so no interval"
NO_NUMBER = "lm-eval gives no finite number"


@dataclass(frozen=True)
class Tasks:
    """lm-eval's tasks and groups, with the manager that made them."""

    manager: Any
    chosen: tuple[Any, ...]


def require_lm_eval() -> None:
    """Raises: ConfigError where lm-eval is not installed."""
    if importlib.util.find_spec("lm_eval") is None:
        raise ConfigError("--lm-eval needs the package lm-eval; install it with pip install 'graftwood[lm-eval]'")


def load_tasks(names: str, folder: Path | None) -> Tasks:
    """Tasks and groups by comma-separated names or patterns; `folder` adds YAML files to those lm-eval has.

    Raises: ConfigError for an unknown name, or a task that cannot be loaded or that we do not run.
    """
    from lm_eval.tasks import TaskManager

    if folder is not None and not folder.is_dir():
        raise ConfigError(f"--lm-eval-tasks {folder} is no folder; give one that holds lm-eval's YAML files")
    words = [word.strip() for word in names.split(",") if word.strip()]
    if not words:
        raise ConfigError("--lm-eval names no task; give names, comma-separated, such as arc_easy,piqa")
    if folder is not None:  # first alone: to look through all that lm-eval has takes many seconds
        alone = TaskManager(include_path=str(folder), include_defaults=False)
        if all(alone.match_tasks([word]) for word in words):
            with suppress(ConfigError):
                return _chosen(alone, words)
    return _chosen(TaskManager(include_path=None if folder is None else str(folder)), words)


def _chosen(manager: Any, words: Sequence[str]) -> Tasks:
    found: dict[str, Any] = {}
    for word in words:
        matching = manager.match_tasks([word])
        if not matching:
            near = nearest(word, manager.all_tasks)
            raise ConfigError(f"lm-eval has no task {word!r}.{near} See lm-eval ls, or add YAML with --lm-eval-tasks")
        found |= {name: one for match in matching for name, one in _load(manager, match).items()}
    return Tasks(manager, tuple(found.values()))


def _load(manager: Any, name: str) -> dict[str, Any]:
    """A group as it is, otherwise the tasks that a name or a tag stands for."""
    try:
        loaded = manager.load([name])
    except Exception as error:  # a data set, a network or a line of YAML: the libraries raise all kinds
        said = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(
            f"lm-eval cannot load {name}: {said[:300]}; its data must be in the local cache of `datasets`, be a file "
            "that its YAML names, or be there to download"
        ) from None
    for task in loaded["tasks"].values():
        if getattr(task, "UNSAFE_CODE", False):
            raise ConfigError(f"{task.task_name} runs what a model writes without a fence; ask it with --tasks instead")
        if getattr(task, "MULTIMODAL", False):
            raise ConfigError(f"{task.task_name} asks about pictures or sounds, and this model reads text")
    if name in loaded["groups"]:
        return {name: loaded["groups"][name]}
    return dict(loaded["tasks"])


def ask(base: Base, tasks: Tasks, limit: int | None, shots: int | None) -> Mapping[str, Any]:
    """What `lm_eval.simple_evaluate` says of a base as it stands; by default all items, with the tasks' own shots.

    Raises: ConfigError where lm-eval refuses what was asked for.
    """
    from lm_eval import simple_evaluate

    try:
        with redirect_stdout(sys.stderr):  # stdout is for data
            found: Mapping[str, Any] = simple_evaluate(
                lm_eval_model(base),
                tasks=list(tasks.chosen),
                task_manager=tasks.manager,
                num_fewshot=shots,
                limit=limit,
                bootstrap_iters=0,
            )
    except ValueError as error:
        raise ConfigError(f"lm-eval: {' '.join(str(error).split())}") from None
    return found


def measured(found: Mapping[str, Any], before: Mapping[str, Any] | None = None) -> tuple[Measured, ...]:
    """Every metric of every task and group; with `before`, the change against another model on the same items."""
    told = []
    for task, results in {**found["results"], **found.get("groups", {})}.items():
        for key, value in results.items():
            metric, filtered, chosen = key.partition(",")
            if not filtered or metric.endswith("_stderr") or not isinstance(value, Real):
                continue
            items = _items(found, task, metric, chosen, float(value))
            others = [] if before is None else _items(before, task, metric, chosen, before["results"][task][key])
            paired = items and others and all(0 <= number <= 1 for number in (*items, *others))
            told.append(
                Measured(
                    task=task,
                    metric=metric if chosen == "none" else f"{metric} ({chosen})",
                    version=str(found["versions"].get(task, "")),
                    shots=found["n-shot"].get(task),
                    higher_is_better=found["higher_is_better"].get(task, {}).get(metric),
                    score=stats.mean(items) if items else _alone(float(value)),
                    change=stats.change(items, others, range(len(items))) if paired else None,
                )
            )
    return tuple(told)


def records(found: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A line for each item: what every metric says of it, what was wanted, and what the model answered."""
    for task, samples in found["samples"].items():
        for sample in sorted(samples, key=lambda one: (one["doc_id"], one["filter"])):
            scored = {metric: _readable(sample[metric]) for metric in sample["metrics"]}
            yield {
                "task": task,
                "id": sample["doc_id"],
                "filter": sample["filter"],
                **scored,
                "wanted": sample["target"],
                "said": sample["filtered_resps"],
            }


def _alone(value: float) -> Estimate:
    """A result that is no mean; a perplexity out of range and what divides by zero are no number at all."""
    return Estimate(value=value, note=NO_MEAN) if math.isfinite(value) else Estimate(value=None, note=NO_NUMBER)


def _readable(value: Any) -> Any:
    """As it is where JSON has a word for it."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _items(found: Mapping[str, Any], task: str, metric: str, chosen: str, value: float) -> list[float]:
    """By item the numbers whose mean a result is; none where it is another aggregate, or a group's."""
    samples = [one for one in found["samples"].get(task, ()) if one["filter"] == chosen and metric in one]
    numbers = [one[metric] for one in sorted(samples, key=lambda one: one["doc_id"])]
    if not numbers or not all(isinstance(number, Real) for number in numbers):
        return []
    return [*map(float, numbers)] if abs(sum(numbers) / len(numbers) - value) < 1e-9 else []
