"""The peer of the judge: lm-eval scores choice tasks with its own model class on an exported folder, item by item."""

from __future__ import annotations

from typing import Any

import torch
from bench.sides.turns import Turns
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager


def judged(model: HFLM, sample: dict[str, Any]) -> dict[str, Any]:
    """What lm-eval found of an item: log-probability and tokens of every choice."""
    pairs = [model._encode_pair(*asked) for asked in sample["arguments"]]
    return {
        "query": sample["doc"]["query"],
        "log_probabilities": [log_probability for log_probability, _ in sample["filtered_resps"]],
        "tokens": [len(choice) for _, choice in pairs],
        "acc": sample["acc"],
    }


def main() -> None:
    """Load the folder in float32, then score all tasks in a turn."""
    turns = Turns()
    work = turns.work
    torch.set_num_threads(work["threads"])
    model = HFLM(pretrained=work["model"], dtype="float32", device="cpu", batch_size=work["batch"])
    manager = TaskManager(include_path=work["tasks"], include_defaults=False)

    def turn() -> dict[str, Any]:
        found = simple_evaluate(model, tasks=work["names"], task_manager=manager, bootstrap_iters=0)
        samples = {
            name: [judged(model, one) for one in sorted(group, key=lambda sample: sample["doc_id"])]
            for name, group in found["samples"].items()
        }
        return {"samples": samples}

    turns.ready("torch", "transformers", "lm_eval")
    turns.serve(turn)


if __name__ == "__main__":
    main()
