"""The loop: what a step computes, when it stops, and that nothing is lost when it is killed."""

from __future__ import annotations

import json
import math
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import graftwood
import tiny
from conftest import CPU
from graftwood.base import open_base
from graftwood.checkpoint import load_step, step_folders
from graftwood.config import RunConfig, save_toml
from graftwood.data.batch import Examples, Order, pack
from graftwood.data.encode import Example
from graftwood.draft import draft
from graftwood.errors import ConfigError, StorageError
from graftwood.job import prepare
from graftwood.model.decoder import Decoder
from graftwood.progress import Display
from graftwood.technique import TECHNIQUES
from graftwood.train.loop import Evaluated, NonFiniteLossError, Plan, Stepped, Trainer, mean_loss
from graftwood.train.loss import CHUNK, summed_loss, token_losses
from graftwood.train.optim import schedule
from graftwood.tuning import execute

techniques = pytest.mark.parametrize("name", TECHNIQUES.names())


def trainer(
    folder: Path,
    plan: Plan,
    train: list[Example] | None = None,
    valid: list[Example] | None = None,
    name: str = "lora",
    decoder: Decoder | None = None,
    **options: Any,
) -> Trainer:
    decoder = decoder or tiny.decoder()
    technique = tiny.technique(name, **options)
    technique.apply(decoder, seed=0)
    rows = tiny.examples(16) if train is None else train
    held_out = tiny.examples(6, seed=9) if valid is None else valid
    return Trainer(decoder, Examples(rows), Examples(held_out), plan, folder)


def weights(made: Trainer) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in made.trained.items()}


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@techniques
def test_one_batch_of_eight_equals_eight_of_one(name: str, tmp_path: Path) -> None:
    plan = tiny.plan(clip=1e9)
    together, apart = (trainer(tmp_path, replace(plan, token_budget=budget), name=name) for budget in (10_000, 1))
    for _ in range(2):  # the second step is the first in which all of LoRA has a gradient
        whole, parts = together.step(), apart.step()
        assert whole.loss == pytest.approx(parts.loss, rel=1e-5)
        assert whole.grad_norm == pytest.approx(parts.grad_norm, rel=1e-4)
        for path, parameter in together.trained.items():
            assert parameter.grad is not None
            torch.testing.assert_close(apart.trained[path].grad, parameter.grad, rtol=1e-3, atol=1e-6)
            torch.testing.assert_close(apart.trained[path], parameter, rtol=1e-3, atol=1e-4)


def test_every_answer_token_weighs_the_same(tmp_path: Path) -> None:
    made = trainer(tmp_path, tiny.plan(token_budget=1))
    rows = [tiny.examples(16)[row] for row in made.order.batch_rows(0)]
    losses = [token_losses(made.decoder, pack([row])) for row in rows]
    stepped = made.step()
    assert stepped.loss == pytest.approx(torch.cat(losses).mean().item(), rel=1e-5)
    assert stepped.loss != pytest.approx(torch.stack([part.mean() for part in losses]).mean().item(), rel=1e-3)
    assert stepped.answer_tokens == sum(len(part) for part in losses)
    assert stepped.tokens == sum(len(row.ids) for row in rows)


def test_packed_rows_have_the_losses_they_have_alone() -> None:
    decoder, rows = tiny.decoder(), tiny.examples(12)
    alone = torch.cat([token_losses(decoder, pack([row])) for row in rows])
    torch.testing.assert_close(token_losses(decoder, pack(rows)), alone, rtol=1e-5, atol=1e-5)
    assert mean_loss(decoder, [pack(rows[:5]), pack(rows[5:])]) == pytest.approx(alone.mean().item(), rel=1e-5)
    assert mean_loss(decoder, []) is None


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("trains", ["everything", "all but the head", "the head alone"])
@pytest.mark.parametrize("rows", [1, 12, 60])
def test_chunked_cross_entropy_is_cross_entropy(tied: bool, trains: str, rows: int) -> None:
    decoder = tiny.decoder(tied_head=tied)
    head = {id(decoder.head_weight())}
    for parameter in decoder.parameters():
        parameter.requires_grad_(trains == "everything" or (id(parameter) in head) == (trains == "the head alone"))
    packed = pack(tiny.examples(rows))
    assert rows < 60 or len(packed.targets) > 2 * CHUNK
    results = []
    for loss in (
        summed_loss(decoder, packed),
        F.cross_entropy(decoder(packed.ids, packed.documents)[0, packed.predict], packed.targets, reduction="sum"),
    ):
        decoder.zero_grad(set_to_none=True)
        (loss / 7).backward()
        results.append([loss.detach(), *(p.grad for p in decoder.parameters() if p.requires_grad)])
    assert len(results[0]) > 1
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def poisoned() -> tuple[Decoder, list[Example]]:
    """A model to which token 319 is poison, and rows of which the fifth has it."""
    decoder, rows = tiny.decoder(tied_head=False), tiny.examples(8)
    decoder.embedding.weight[319] = torch.inf
    row = rows[4]
    rows[4] = replace(row, ids=(319, *row.ids[1:]))
    return decoder, rows


def test_a_loss_that_is_no_number_changes_nothing_and_names_its_row(tmp_path: Path) -> None:
    decoder, rows = poisoned()
    seed = next(seed for seed in range(9) if 4 not in Order(8, 2, 1.0, seed).batch_rows(0))
    made = trainer(tmp_path, tiny.plan(batch=2, seed=seed), rows, decoder=decoder)
    while 4 not in made.order.batch_rows(made.progress.step):
        made.step()
    before, done = weights(made), made.progress
    state = {name: tensor.clone() for name, tensor in made.optimiser.tensors().items()}
    assert state, "an optimiser that has moved before must show that it does not move now"
    with pytest.raises(NonFiniteLossError) as caught:
        made.step()
    assert equal(weights(made), before)
    assert equal(made.optimiser.tensors(), state)
    assert made.progress == done
    assert f"step {done.step + 1}: loss nan" in str(caught.value)
    assert "from rows rows.jsonl:5;" in str(caught.value)
    assert "start again without such rows" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_validation_loss_that_is_no_number_names_its_row(tmp_path: Path) -> None:
    decoder, rows = poisoned()
    made = trainer(tmp_path, tiny.plan(), valid=rows, decoder=decoder)
    with pytest.raises(NonFiniteLossError, match=r"after step 0: validation loss nan, from rows rows\.jsonl:5;"):
        next(made.run())


def test_the_gradient_is_clipped(tmp_path: Path) -> None:
    made = trainer(tmp_path, tiny.plan(clip=0.01))
    assert made.step().grad_norm > 0.01
    norm = torch.stack([p.grad.norm() for p in made.trained.values() if p.grad is not None]).norm()
    assert norm.item() == pytest.approx(0.01, rel=1e-3)


def test_the_schedule_rises_and_falls_to_nothing() -> None:
    rates = [schedule(step, steps=10, warmup=4, decay=10) for step in range(11)]
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6, 0.0])
    assert [schedule(0, 1, 1, 1), schedule(0, 5, 1, 5)] == [1.0, 1.0]


def test_the_rate_stays_level_between() -> None:
    rates = [schedule(step, steps=10, warmup=2, decay=4) for step in range(11)]
    assert rates == pytest.approx([0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0.0])
    assert schedule(9, steps=10, warmup=2, decay=0) == 1.0


def test_z_loss_is_in_the_gradient_alone() -> None:
    decoder, packed = tiny.decoder().requires_grad_(True), pack(tiny.examples(12))
    plain = summed_loss(decoder, packed)
    value = summed_loss(decoder, packed, z_loss=0.1)
    assert value.item() == plain.item()
    value.backward()
    found = {name: parameter.grad for name, parameter in decoder.named_parameters()}
    decoder.zero_grad(set_to_none=True)
    logits = decoder(packed.ids, packed.documents)[0, packed.predict]
    whole = F.cross_entropy(logits, packed.targets, reduction="sum") + 0.1 * logits.logsumexp(-1).square().sum()
    whole.backward()
    for name, parameter in decoder.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-4)


def test_averaged_weights_are_measured_and_kept(tmp_path: Path) -> None:
    made = trainer(tmp_path, tiny.plan(learning_rate=0.05, average_half_life=2.0, patience=99), name="full")
    mean = weights(made)
    for event in made.run():
        if isinstance(event, Stepped):
            mean = {name: old.lerp(made.trained[name].detach(), 1 - 0.5**0.5) for name, old in mean.items()}
        elif event.step:
            raw = weights(made)
            with made.optimiser.averaged():
                for name, parameter in made.trained.items():
                    torch.testing.assert_close(parameter.detach(), mean[name])
                held_out = mean_loss(made.decoder.eval(), [pack(tiny.examples(6, seed=9))])
                assert held_out == pytest.approx(event.valid_loss, rel=1e-4)
            made.decoder.train()
            assert equal(weights(made), raw)
    assert made.progress.step == made.progress.best_step == 2
    for name, parameter in made.trained.items():
        torch.testing.assert_close(parameter.detach(), mean[name])


@pytest.mark.parametrize(("name", "decays"), [("ia3", False), ("norm", False), ("lora", True)])
def test_weight_decay_is_of_matrices(name: str, decays: bool, tmp_path: Path) -> None:
    ends = []
    for decay in (0.0, 10.0):
        made = trainer(tmp_path / str(decay), tiny.plan(weight_decay=decay), name=name)
        made.step()
        ends.append(weights(made))
    assert equal(*ends) != decays


def test_the_rate_of_a_step_follows_the_schedule(tmp_path: Path) -> None:
    made = trainer(tmp_path, tiny.plan(learning_rate=0.5, batch=4, warmup_share=0.5), valid=[])
    rates = [event.learning_rate for event in made.run() if isinstance(event, Stepped)]
    assert rates == pytest.approx([0.25, 0.5, 0.5, 0.25])


def test_it_stops_early_and_keeps_the_best(tmp_path: Path) -> None:
    plan = tiny.plan(learning_rate=0.05, epochs=20.0, evaluations=20, patience=2)
    made = trainer(tmp_path, plan)
    evaluated = [event for event in made.run() if isinstance(event, Evaluated)]
    losses = [event.valid_loss for event in evaluated]
    best = min(range(len(losses)), key=lambda index: losses[index])
    assert len(losses) == best + 3, "two evaluations without improvement end the run"
    assert [event.best for event in evaluated] == [loss < min([math.inf, *losses[:n]]) for n, loss in enumerate(losses)]
    assert made.progress.step < made.order.steps
    assert made.progress.ended == "validation loss had not improved for 2 evaluations"
    assert made.progress.best_step == evaluated[best].step
    assert mean_loss(made.decoder, [pack(tiny.examples(6, seed=9))]) == pytest.approx(losses[best], rel=1e-5)
    assert not made.decoder.training


def test_without_validation_rows_the_newest_is_the_best(tmp_path: Path) -> None:
    made = trainer(tmp_path, tiny.plan(batch=2), valid=[])
    for event in made.run():
        made.stop = event.step == 3
    assert (made.progress.step, made.progress.best_step, made.progress.ended) == (3, 3, None)
    assert equal(weights(made), load_step(tmp_path / "step-000003").trained)


def test_only_the_start_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    (tmp_path / ".step-000001.0badcafe.part").mkdir()
    made = trainer(tmp_path, tiny.plan(learning_rate=0.05, epochs=5.0, evaluations=10, save_seconds=1e-9))
    for _ in made.run():
        assert len(list(tmp_path.iterdir())) <= 3 or made.progress.step == 0
    kept = {f"step-{step:06d}" for step in (0, made.progress.step, made.progress.best_step)}
    assert len(kept) == 3
    assert {path.name for path in tmp_path.iterdir()} == kept
    # Killed after the last step was written and before what it replaces was gone.
    newest = f"step-{made.progress.step:06d}"
    shutil.copytree(tmp_path / newest, tmp_path / "step-000001")
    again = trainer(tmp_path, made.plan)
    assert again.resume()
    assert {path.name for path in tmp_path.iterdir()} == kept


def test_the_order_is_a_function_of_seed_and_step() -> None:
    order = Order(rows=10, batch=4, epochs=2.5, seed=7)
    steps = [order.batch_rows(step) for step in range(order.steps)]
    assert (order.steps_per_epoch, order.steps) == (3, 8)
    assert [len(step) for step in steps] == [4, 4, 2, 4, 4, 2, 4, 4]
    epochs = [[row for step in epoch for row in step] for epoch in (steps[:3], steps[3:6])]
    assert [sorted(epoch) for epoch in epochs] == [list(range(10))] * 2
    assert epochs[0] != epochs[1]
    assert [Order(10, 4, 2.5, 7).batch_rows(step) for step in range(8)] == steps
    assert [Order(10, 4, 2.5, 8).batch_rows(step) for step in range(8)] != steps
    assert Order(rows=10, batch=4, epochs=0.01, seed=0).steps == 1


@pytest.mark.parametrize(
    ("other", "options", "words"),
    [
        ({"learning_rate": 0.02, "seed": 3}, {}, r"learning_rate 0.01 there, 0.02 here; seed 0 there, 3 here"),
        ({}, {"rank": 8}, r"other parameters train \([\d,]+ there, [\d,]+ here\)"),
        ({}, {"targets": "q_proj"}, r"other parameters train"),
    ],
)
def test_another_run_is_not_resumed(other: dict[str, Any], options: dict[str, Any], words: str, tmp_path: Path) -> None:
    trainer(tmp_path, tiny.plan()).save()
    with pytest.raises(ConfigError, match=words) as caught:
        trainer(tmp_path, tiny.plan(**other), **options).resume()
    assert str(tmp_path / "step-000000") in str(caught.value)


def changed(rows: list[Example]) -> list[Example]:
    """The rows with the last id of the third one another."""
    ids = rows[2].ids
    return [*rows[:2], replace(rows[2], ids=(*ids[:-1], ids[-1] ^ 1)), *rows[3:]]


@pytest.mark.parametrize(
    "other",
    [
        lambda rows: rows[:-1],
        lambda rows: [*rows, rows[0]],
        changed,
        lambda rows: rows[::-1],
        lambda rows: [replace(rows[0], answer=tuple(not counts for counts in rows[0].answer)), *rows[1:]],
    ],
    ids=["a row fewer", "a row more", "another text", "another order", "other answers"],
)
def test_a_run_on_other_rows_is_not_resumed(other: Callable[[list[Example]], list[Example]], tmp_path: Path) -> None:
    rows, held_out, plan = tiny.examples(16), tiny.examples(6, seed=9), tiny.plan(batch=4)
    list(trainer(tmp_path, plan, rows, held_out).run(until=2))
    for kind, given in (("training", (other(rows), held_out)), ("validation", (rows, other(held_out)))):
        with pytest.raises(ConfigError, match=rf"is of another run: other {kind} rows; give") as caught:
            trainer(tmp_path, plan, *given).resume()
        assert "\n" not in str(caught.value)
    assert trainer(tmp_path, plan, list(rows), list(held_out)).resume()


def test_a_run_with_other_options_of_its_technique_is_not_resumed(
    tmp_path: Path, tokenizer_files: Callable[[Path], None]
) -> None:
    folder = tiny.model_folder(tmp_path / "tiny", tokenizer_files)
    rows = [{"prompt": f"say {n}", "completion": f"it is {n}"} for n in range(12)]
    out = tmp_path / "run"
    out.mkdir()
    config = RunConfig(data="rows", model=str(folder), technique="lora", options={"alpha": 16})
    job = prepare(draft(config, rows), open_base(str(folder), CPU), Display(quiet=True))
    save_toml(job.config.model_copy(update={"options": {"alpha": 8}}), out / "run.toml")
    with pytest.raises(
        ConfigError, match=r"run\.toml is of another run: options \{'alpha': 8\} there, \{'alpha': 16\}"
    ):
        execute(job, out, Display(quiet=True), resume=True)
    assert "alpha = 8" in (out / "run.toml").read_text(encoding="utf-8")


def test_there_is_nothing_to_resume_at_first(tmp_path: Path) -> None:
    assert trainer(tmp_path / "none", tiny.plan()).resume() is False


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """The system refuses to let any file grow beyond `size` bytes, as it does when a disk is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@techniques
def test_a_full_disk_leaves_the_last_checkpoint(name: str, tmp_path: Path) -> None:
    made = trainer(tmp_path, tiny.plan(save_seconds=1e-9), name=name)
    run = made.run()
    assert [type(next(run)) for _ in range(2)] == [Evaluated, Stepped]
    saved = {path.name: path.stat().st_size for path in (tmp_path / "step-000000").iterdir()}
    with full_disk(saved["trained.safetensors"] // 2), pytest.raises(StorageError) as caught:
        list(run)
    assert "\n" not in str(caught.value)
    assert f"cannot save the checkpoint {tmp_path / 'step-000001'}: " in str(caught.value)
    assert "File too large" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000"]
    again = trainer(tmp_path, tiny.plan(save_seconds=1e-9), name=name)
    assert again.resume()
    assert [type(event) for event in again.run()][-1] is Evaluated


@pytest.mark.parametrize("kind", ["tune", "pretrain"])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(
    kind: str, tmp_path: Path, tokenizer_files: Callable[[Path], None]
) -> None:
    """Weights, optimiser, progress and log are bit for bit those of a run that nobody killed, with dropout on."""
    folder = tiny.model_folder(tmp_path / "tiny", tokenizer_files)
    script = Path(__file__).with_name("killed_run.py")
    done = subprocess.run(
        [sys.executable, str(script), kind, str(folder), str(tmp_path / "runs")],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
        env={
            "GRAFTWOOD_HOME": str(tmp_path / "home"),
            "OMP_NUM_THREADS": "1",
            "PATH": "",
            "PYTHONPATH": str(Path(graftwood.__file__).parents[1]),
        },
    )
    result = json.loads(done.stdout)
    assert result["kills"] >= 3
    assert result["resumed_in_the_middle"] >= 1
    assert result["killed"] == result["whole"]
    assert [path.name for path in step_folders(tmp_path / "runs" / "killed" / "checkpoints")] == [
        path.name for path in step_folders(tmp_path / "runs" / "whole" / "checkpoints")
    ]


def test_rates_multiply_the_learning_rate_of_their_parameters(tmp_path: Path) -> None:
    decoder, plan = tiny.decoder(), tiny.plan(learning_rate=1e-3, batch=16)
    technique = tiny.technique("freeze", top=2, decay=0.5)
    technique.apply(decoder, seed=0)
    made = Trainer(decoder, Examples(tiny.examples(16)), Examples([]), plan, tmp_path, rates=technique.rates(decoder))
    before = weights(made)
    made.step()
    for path, depth in (("model.layers.1.mlp.up_proj.weight", 1), ("model.layers.0.mlp.up_proj.weight", 2)):
        # Adam's first step is as long as its rate, for every number.
        moved = (made.trained[path] - before[path]).abs().median().item()
        assert moved == pytest.approx(1e-3 * 0.5**depth, rel=1e-2)


def test_what_is_not_yet_open_does_not_move(tmp_path: Path) -> None:
    decoder, plan = tiny.decoder(), tiny.plan(batch=4, epochs=1.0)
    technique = tiny.technique("freeze", top=2, order="gradual", share=0.75)
    technique.apply(decoder, seed=0)
    rows, stage = Examples(tiny.examples(16)), partial(technique.stage, decoder)
    made = Trainer(decoder, rows, Examples([]), plan, tmp_path, stage=stage)
    moved = []
    for _ in range(4):
        before = weights(made)
        made.step()
        moved.append({path for path, value in weights(made).items() if not torch.equal(value, before[path])})
    blocks = [{path.split(".")[2] for path in paths if ".layers." in path} for paths in moved]
    assert moved[0] == {"model.norm.weight"}
    assert blocks == [set(), {"1"}, {"0", "1"}, {"0", "1"}]
    assert moved[3] == set(made.trained)


def test_a_staged_run_resumes_bit_for_bit(tmp_path: Path) -> None:
    def made(folder: str) -> Trainer:
        decoder = tiny.decoder()
        technique = tiny.technique("freeze", top=2, order="gradual", share=0.75, decay=0.5)
        technique.apply(decoder, seed=0)
        stage = partial(technique.stage, decoder)
        plan = tiny.plan(batch=4, epochs=1.0)
        rows, rates = Examples(tiny.examples(16)), technique.rates(decoder)
        return Trainer(decoder, rows, Examples([]), plan, tmp_path / folder, None, rates, stage)

    whole, parts = made("whole"), made("parts")
    for _ in range(4):
        whole.step()
        parts.step()
        parts.save()
        parts = made("parts")
        assert parts.resume()
    assert equal(weights(whole), weights(parts))
