"""The peer of the tuning benchmarks: transformers' own Trainer on a PEFT model, with the options the work names.

Everything is a stock class or option. The subclass and the callback only count and keep time, and hold the training
still between turns.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from bench.sides.turns import Turns
from peft import PeftConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    DataCollatorWithFlattening,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)


class Counted(Trainer):
    """Counts the tokens that are no padding, and keeps every step's loss."""

    tokens = 0
    losses: list[float]

    def training_step(self, model: Any, inputs: dict[str, torch.Tensor], *rest: Any, **named: Any) -> torch.Tensor:
        mask = inputs.get("attention_mask")
        self.tokens += int(mask.sum()) if mask is not None else inputs["input_ids"].numel()
        loss: torch.Tensor = super().training_step(model, inputs, *rest, **named)
        self.losses.append(loss.item())
        return loss


class Held(TrainerCallback):
    """Waits for the turn before its first step and gives it back after its last."""

    def __init__(self, turns: Turns, steps_a_turn: int) -> None:
        self.turns, self.steps_a_turn = turns, steps_a_turn
        self.trainer: Counted | None = None
        self.started = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        self._wait(control)

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        if state.global_step % self.steps_a_turn:
            return
        seconds = time.perf_counter() - self.started
        assert self.trainer is not None
        self.turns.reply(seconds=seconds, tokens=self.trainer.tokens, losses=self.trainer.losses)
        self._wait(control)

    def _wait(self, control: Any) -> None:
        if not self.turns.wait():
            control.should_training_stop = True
        assert self.trainer is not None
        self.trainer.tokens, self.trainer.losses = 0, []
        self.started = time.perf_counter()


def load(work: dict[str, Any]) -> tuple[Any, Any]:
    """The model with exactly what trains requiring a gradient, and its tokenizer."""
    folder = work["folder_of_base"]
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if "adapter" not in work:
        return opened(base, work["top"]), tokenizer
    config = PeftConfig.from_pretrained(work["adapter"])
    if config.is_prompt_learning:  # PEFT trains on none that was saved
        config.inference_mode = False
        return get_peft_model(base, config), tokenizer
    return PeftModel.from_pretrained(base, work["adapter"], is_trainable=True), tokenizer


def opened(base: Any, top: int | None) -> Any:
    """A model of which the top blocks and the final norm train (its head is its embedding); for None all of it."""
    if top is not None:
        base.requires_grad_(False)
        for part in (*base.model.layers[-top:], base.model.norm):
            part.requires_grad_()
    return base


def trainer(model: Any, tokenizer: Any, work: dict[str, Any], steps: int) -> Counted:
    """A Trainer as it comes, but for what the work asks for by name."""
    arguments = TrainingArguments(
        output_dir=work["folder"],
        per_device_train_batch_size=work["batch"],
        max_steps=steps,
        learning_rate=work["learning_rate"],
        train_sampling_strategy=work["sampling"],
        seed=work["seed"],
        use_cpu=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    rows = [
        {
            "input_ids": row["ids"],
            "labels": [index if counts else -100 for index, counts in zip(row["ids"], row["answer"], strict=True)],
        }
        for row in work["rows"]
    ]
    collator = DataCollatorWithFlattening() if work["flatten"] else DataCollatorForSeq2Seq(tokenizer)
    optimizers: tuple[Any, Any] = (None, None)
    if "rates" in work:
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=work["learning_rate"], weight_decay=0.0)
        rates = [*work["rates"], 0.0]
        optimizers = (optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rates[step]))
    made = Counted(model=model, args=arguments, train_dataset=rows, data_collator=collator, optimizers=optimizers)
    made.losses = []
    return made


def main() -> None:
    """Load, warm up, train a number of steps a turn."""
    turns = Turns()
    work = turns.work
    torch.set_num_threads(work["threads"])
    torch.set_float32_matmul_precision(work.get("products", "highest"))
    model, tokenizer = load(work)
    if work["warm_up"]:
        trainer(model, tokenizer, work, 1).train()
    held = Held(turns, work["steps_a_turn"])
    held.trainer = trainer(model, tokenizer, work, work["steps_a_turn"] * work["turns"])
    held.trainer.add_callback(held)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    turns.ready("torch", "transformers", "peft", trained_parameters=trained)
    held.trainer.train()


if __name__ == "__main__":
    main()
