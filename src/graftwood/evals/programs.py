"""Code tasks by HumanEval's protocol: a prompt is continued, and what comes of it must pass the item's test.

Source: Chen et al. 2021, arXiv 2107.03374, section 2 and appendix A.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import comb

import numpy as np

from graftwood.evals import stats
from graftwood.evals.card import Estimate
from graftwood.evals.sandbox import guard, run_all
from graftwood.evals.task import Item, Task
from graftwood.generate.engine import Engine
from graftwood.generate.sampling import Sampling

STOPS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")  # what can only come after the function asked for
SAMPLES_SEPARATED = "\n# ---- another sample ----\n"
TRIES = (1, 10, 100)
GUARD = "programs kept in by"  # the name of that setting in records


def solve(engine: Engine, task: Task, prompts: Sequence[Sequence[int]], batch: int) -> tuple[list[float], list[str]]:
    """By item the share of its samples that pass, and the samples themselves."""
    sampling = Sampling(temperature=task.temperature, seed=task.seed, max_tokens=task.max_tokens, stop=STOPS)
    many = [prompt for prompt in prompts for _ in range(task.samples)]
    said = [done.text for done in engine.generate(many, sampling, batch=batch)]
    asked = [item for item in task.items() for _ in range(task.samples)]
    outcomes = run_all([program(item, text) for item, text in zip(asked, said, strict=True)])
    passed = np.array([outcome.passed for outcome in outcomes]).reshape(-1, task.samples)
    texts = [SAMPLES_SEPARATED.join(said[at : at + task.samples]) for at in range(0, len(said), task.samples)]
    return passed.mean(axis=1).tolist(), texts


def guarded(tasks: Sequence[Task]) -> str | None:
    """What keeps the programs that these tasks have a model write from the network; None where they have it write none.

    Raises: ConfigError where no program can be run here.
    """
    return guard() if any(task.kind == "code" for task in tasks) else None


def warn_of(guard_: str) -> str:
    """The line that is said before the first program runs."""
    return f"model-written programs run here, kept from the network by {guard_}"


def program(item: Item, completion: str) -> str:
    """Prompt, completion and test as one program; it ends well where the completion is right."""
    return f"{item.prompt}{completion}\n{item.test}\ncheck({item.entry_point})\n"


def pass_at_k(samples: int, passed: int, k: int) -> float:
    """Chance that one of k samples passes, estimated without bias from more. Source: Chen et al. 2021, eq. 1."""
    assert 0 <= passed <= samples >= k >= 1
    return 1.0 - comb(samples - passed, k) / comb(samples, k)


def pass_at(task: Task, right: Sequence[float]) -> dict[str, Estimate]:
    """pass@k for every k that the samples allow, from the share of an item's samples that passed."""
    passed = [round(share * task.samples) for share in right]
    return {
        f"pass@{k}": stats.mean([pass_at_k(task.samples, count, k) for count in passed], task.units())
        for k in TRIES
        if k <= task.samples
    }
