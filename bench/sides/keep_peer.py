"""A peer of the keep benchmark: TRL's own SFTTrainer, with PEFT where the recipe has an adapter.

Reads a work file and writes a merged model in Hugging Face's layout and `told.json`. Options that the work does not
name are the packages' defaults, but for what changes no result: no gradient checkpointing, which only saves memory, and
float32 instead of bfloat16, as all other arms compute.
"""

from __future__ import annotations

import json
import shutil
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, OFTConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

ADAPTERS = {"lora": LoraConfig, "oft": OFTConfig}
CARRIED = ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja")


def rows(path: Path) -> Dataset:
    """The rows, prompt and completion, as TRL wants them."""
    return Dataset.from_list([json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()])


def trainer(work: dict[str, Any], rate: float) -> SFTTrainer:
    """A trainer as it comes, but for what the work names."""
    arguments = SFTConfig(
        output_dir=str(Path(work["out"]) / "trainer"),
        learning_rate=rate,
        num_train_epochs=work["epochs"],
        seed=work["seed"],
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    torch.manual_seed(work["seed"])
    kind = ADAPTERS.get(work["kind"])
    data = Path(work["data"])
    return SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(work["model"], dtype=torch.float32),
        args=arguments,
        train_dataset=rows(data / "train.jsonl"),
        eval_dataset=rows(data / "valid.jsonl"),
        processing_class=AutoTokenizer.from_pretrained(work["model"]),
        peft_config=kind(task_type="CAUSAL_LM", **work["options"]) if kind else None,
    )


@torch.no_grad()
def dialled(model: Any, share: float) -> None:
    """An orthogonal adapter at a share of its way: what generates each rotation is scaled, as PEFT-Arena does."""
    scaled = [parameter for name, parameter in model.named_parameters() if "oft_R" in name]
    assert scaled, "the adapter has no generators"
    for parameter in scaled:
        parameter.mul_(share)


def save(model: Any, base: Path, folder: Path) -> None:
    """The weights as transformers writes them, with the base's own tokenizer, template and end tokens."""
    model.save_pretrained(folder)
    for name in CARRIED:
        if (base / name).exists():
            shutil.copyfile(base / name, folder / name)


def main() -> None:
    """Train at every rate, keep the model of the lowest validation loss."""
    work = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(work["threads"])
    out = Path(work["out"])
    losses: dict[str, float] = {}
    tokens, best = 0, None
    for rate in work["rates"]:
        made = trainer(work, rate)
        made.train()
        tokens += round(work["epochs"] * sum(len(row["input_ids"]) for row in made.train_dataset))
        losses[f"{rate:g}"] = made.evaluate()["eval_loss"]
        if losses[f"{rate:g}"] > min(losses.values()):
            continue
        best, model = rate, made.model
        if "dial" in work:
            dialled(model, work["dial"])
        merged = model.merge_and_unload() if work["kind"] in ADAPTERS else model
        save(merged, Path(work["model"]), out / "model")
    versions = {name: version(name) for name in ("torch", "transformers", "peft", "trl")}
    told = {"rate": best, "valid_losses": losses, "tokens": tokens, "versions": versions}
    (out / "told.json").write_text(json.dumps(told, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
