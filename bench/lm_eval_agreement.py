"""The judge beside lm-eval: the same choice items on the same weights, through transformers, one by one.

python -m bench.lm_eval_agreement --peer-python PATH
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from bench import workload
from bench.common import ROOT, BenchError, Figure, Side, finish, need, options, run, say, take_turns

from graftwood.checkpoint import save_model
from graftwood.evals.asking import Scores, score_task
from graftwood.evals.given import task_from_file
from graftwood.evals.task import Task
from graftwood.generate.engine import Engine

SKILLS = ROOT.parent / "shared" / "skills"
NAMES = ("arc_easy", "openbook_qa", "piqa", "siqa")
ITEMS, BATCH = 100, 16
TIE = 1e-3  # nats a token that two choices may be apart where the judges disagree


@dataclass(frozen=True)
class Item:
    """One item under both judges: whether they pick the same, and how far apart the two picks are for the peer.

    `apart` is in nats a token; `shift` is how far the right answer's probability among the choices is from the peer's.
    """

    id: str
    same: bool
    apart: float
    shift: float


def write_task(task: Task, folder: Path) -> None:
    """The task as lm-eval reads it: its items in a JSON file, our choices as they are, nothing put between."""
    rows = [{"query": item.prompt, "choices": list(item.choices), "gold": item.gold} for item in task.items()]
    data = folder / f"{task.name}.json"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = {
        "task": task.name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "query",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}],
    }
    # JSON is YAML.
    (folder / f"{task.name}.yaml").write_text(json.dumps(config), encoding="utf-8")


def compared(scores: Scores, samples: Sequence[Mapping[str, Any]]) -> list[Item]:
    """Each item as our judge decided it beside the peer's log-probabilities, under the judge's rule: a token's mean."""
    found = []
    for place, (item, sample) in enumerate(zip(scores.task.items(), samples, strict=True)):
        if sample["query"] != item.prompt:
            raise BenchError(f"{item.id}: lm-eval was asked something else: {sample['query']!r}")
        totals, tokens = (torch.tensor(sample[key]).double() for key in ("log_probabilities", "tokens"))
        means = totals / tokens
        theirs, ours = int(means.argmax()), item.choices.index(scores.said[place])
        shift = float(means.softmax(0)[item.gold]) - scores.soft[place]
        found.append(Item(item.id, ours == theirs, float(means[theirs] - means[ours]), shift))
    return found


def figure(items: Sequence[Item], peer: str) -> Figure:
    """The share of items that both judge the same. Raises: BenchError for a disagreement that is no tie."""
    odd = [item for item in items if not item.same]
    if far := [f"{item.id} by {item.apart:.2g}" for item in odd if item.apart > TIE]:
        raise BenchError(f"the judges disagree where no tie is near: {', '.join(far)} nats a token")
    share = 1 - len(odd) / len(items)
    return Figure(
        "lm_eval_item_agreement", share, "of items", "choice items that lm-eval's own code decides the same way",
        f"{len(items) - len(odd)} of {len(items)}, right answers' probability within "
        f"{max(abs(item.shift) for item in items):.1e}", f"{peer}; 99.5% is the least allowed",
    )  # fmt: skip


def main() -> int:
    """Score both ways, and write `results/lm_eval_agreement.json`."""
    parser = options(__doc__.splitlines()[0] if __doc__ else "", rounds=1)
    parser.add_argument("--skills", type=Path, default=SKILLS, help="folder with the choice items")
    given = parser.parse_args()
    need(given.peer_python, "lm_eval", "transformers", extras="peers,lm-eval")
    files = [given.skills / f"{name}.jsonl" for name in NAMES]
    if missing := [str(file) for file in files if not file.is_file()]:
        raise BenchError(f"there is no {', '.join(missing)}; give the folder with --skills")
    torch.set_num_threads(given.threads)
    tasks = [task_from_file(file).limited(4 if given.smoke else ITEMS) for file in files]
    base = workload.open_model()
    engine = Engine(base.decoder, base.tokenizer.eos, base.tokenizer)
    with tempfile.TemporaryDirectory(prefix="graftwood-bench-") as temporary:
        folder = Path(temporary)
        save_model(base, folder / "model")
        (folder / "tasks").mkdir()
        for task in tasks:
            write_task(task, folder / "tasks")
        scores = [score_task(base, engine, task) for task in tasks]
        say("our judge is done")
        work = {
            "threads": given.threads, "model": str(folder / "model"), "tasks": str(folder / "tasks"),
            "names": list(NAMES), "batch": BATCH,
        }  # fmt: skip
        with Side("lm_eval_items", given.peer_python, work) as side:
            take_turns([side], given.rounds)
    items = [item for one in scores for item in compared(one, side.turns[0]["samples"][one.task.name])]
    for one in scores:
        say(f"{one.task.name}: {sum(one.right):.0f} of {len(one.right)} right")
    for turn in side.turns:  # what was asked is in the files already
        turn["samples"] = {name: [_numbers(one) for one in group] for name, group in turn["samples"].items()}
    peer = "lm-eval {lm_eval}, transformers {transformers}".format(**side.ready["versions"])
    return finish(
        "lm_eval_agreement", given, [figure(items, peer)], {"lm_eval_items": [side]}, needs_quiet=False,
        items=[asdict(item) for item in items],
    )  # fmt: skip


def _numbers(sample: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in sample.items() if key != "query"}


if __name__ == "__main__":
    run(main)
