"""What is left on disk: models and adapters that others can load, steps that are whole or absent."""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from conftest import CHATML, CPU
from graftwood.base import Base, open_base
from graftwood.checkpoint import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    Saved,
    load_adapter,
    load_step,
    save_adapter,
    save_model,
    save_step,
    step_folders,
)
from graftwood.errors import ConfigError, ModelError, StorageError
from graftwood.run import Model
from graftwood.techniques.full import Full
from graftwood.techniques.lora import LoRA

IDS = torch.randint(0, 320, (2, 20), generator=torch.Generator().manual_seed(5))


@pytest.fixture
def folder(tmp_path: Path, tokenizer_files: Callable[[Path], None]) -> Path:
    folder = tiny.model_folder(tmp_path / "tiny", tokenizer_files)
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 0]}', encoding="utf-8")
    return folder


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found = model(IDS)
    return found if isinstance(found, Tensor) else found.logits


def shaken(base: Base) -> None:
    with torch.no_grad():
        for number, parameter in enumerate(base.decoder.trained().values()):
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))


def with_lora(folder: Path, **options: Any) -> tuple[Base, LoRA]:
    base, technique = open_base(str(folder), CPU), LoRA.parse(options)
    technique.apply(base.decoder, seed=0)
    shaken(base)
    return base, technique


def tuned(folder: Path) -> Base:
    base = open_base(str(folder), CPU)
    Full().apply(base.decoder, seed=0)
    shaken(base)
    return base


def test_a_saved_model_opens_with_the_same_logits_end_and_template(folder: Path, tmp_path: Path) -> None:
    base = tuned(folder)
    save_model(base, tmp_path / "out")
    again = open_base(str(tmp_path / "out"), CPU)
    assert torch.equal(logits(again.decoder), logits(base.decoder))
    assert not torch.equal(logits(again.decoder), logits(open_base(str(folder), CPU).decoder))
    assert again.tokenizer.eos == base.tokenizer.eos == (2, 0)
    assert again.template.source == CHATML
    assert again.fingerprint != base.fingerprint
    assert json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))["dtype"] == "float32"


@pytest.mark.parametrize("settings", [None, {"eos_token_id": 0, "temperature": 0.5}])
def test_others_stop_at_the_tokenizers_end_too(settings: dict[str, Any] | None, folder: Path, tmp_path: Path) -> None:
    (folder / "generation_config.json").unlink()
    if settings is not None:
        (folder / "generation_config.json").write_text(json.dumps(settings), encoding="utf-8")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8")) | {"eos_token_id": 0, "pad_token_id": 3}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    base = open_base(str(folder), CPU)
    save_model(base, tmp_path / "out")
    told = json.loads((tmp_path / "out" / "generation_config.json").read_text(encoding="utf-8"))
    assert told == ({"pad_token_id": 3} if settings is None else settings) | {"eos_token_id": [2, 0]}
    assert base.tokenizer.eos == (2, 0)


def test_transformers_opens_a_saved_model_with_the_same_logits(folder: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="needs the extra `peers`")
    base = tuned(folder)
    save_model(base, tmp_path / "out")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    torch.testing.assert_close(logits(theirs), logits(base.decoder), rtol=0, atol=1e-4)
    assert theirs.generation_config.eos_token_id == [2, 0]
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.chat_template == CHATML
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer("the user said")["input_ids"] == base.tokenizer.encode("the user said")


@pytest.mark.parametrize(
    ("changes", "words"), [({"chat_template": None}, "chat template"), ({"eos_token": "<|im_start|>"}, "end tokens")]
)
def test_a_model_that_would_lose_its_end_or_template_is_not_written(
    changes: dict[str, Any], words: str, folder: Path, tmp_path: Path
) -> None:
    base = tuned(folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")
    with pytest.raises(ModelError, match=f"the exported {words}"):
        save_model(base, tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))


def test_a_model_replaces_the_one_before_it(folder: Path, tmp_path: Path) -> None:
    save_model(open_base(str(folder), CPU), tmp_path / "out")
    (tmp_path / "out" / "model-00001-of-00002.safetensors").write_bytes(b"left from before")
    base = tuned(folder)
    save_model(base, tmp_path / "out")
    assert torch.equal(logits(open_base(str(tmp_path / "out"), CPU).decoder), logits(base.decoder))
    assert not (tmp_path / "out" / "model-00001-of-00002.safetensors").exists()


def test_a_full_disk_is_one_line_and_leaves_what_was_there(folder: Path, tmp_path: Path) -> None:
    base, technique = with_lora(folder)
    save_model(base, tmp_path / "model")
    save_adapter(base, technique, tmp_path / "adapter")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16_384, hard))
    try:
        for save in (
            lambda: save_model(base, tmp_path / "model"),
            lambda: save_adapter(base, technique, tmp_path / "adapter"),
        ):
            with pytest.raises(StorageError, match=r"cannot write .*: .*File too large") as caught:
                save()
            assert "\n" not in str(caught.value)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_an_adapter_folder_says_what_it_belongs_to(folder: Path, tmp_path: Path) -> None:
    base, technique = with_lora(folder, rank=4, targets="q_proj,up_proj")
    save_adapter(base, technique, tmp_path / "adapter")
    assert {path.name for path in (tmp_path / "adapter").iterdir()} == {
        ADAPTER_CONFIG,
        ADAPTER_WEIGHTS,
        "graftwood.json",
        "README.md",
    }
    card = (tmp_path / "adapter" / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlibrary_name: peft\ntags: [lora]\n---\n# LoRA: an adapter of tiny\n")
    notes = json.loads((tmp_path / "adapter" / "graftwood.json").read_text(encoding="utf-8"))
    source = {"base": base.name, "base_source": str(folder), "base_fingerprint": base.fingerprint}
    assert notes == source | {"technique": "lora"}
    config = json.loads((tmp_path / "adapter" / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    assert (config["peft_type"], config["r"], config["target_modules"]) == ("LORA", 4, ["q_proj", "up_proj"])
    assert config["base_model_name_or_path"] == str(folder)


def test_an_adapter_of_a_base_from_the_hub_names_its_repository(folder: Path, tmp_path: Path) -> None:
    base, technique = with_lora(folder)
    save_adapter(replace(base, source="org/tiny"), technique, tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == "org/tiny"
    assert "\nbase_model: org/tiny\n" in (tmp_path / "adapter" / "README.md").read_text(encoding="utf-8")


def test_an_adapter_loads_to_the_same_logits_and_options(folder: Path, tmp_path: Path) -> None:
    base, technique = with_lora(folder, rank=4, alpha=6.5, dropout=0.25, rslora=True, targets="q_proj")
    save_adapter(base, technique, tmp_path / "adapter")
    again = open_base(str(folder), CPU)
    assert load_adapter(again, tmp_path / "adapter") == technique
    assert torch.equal(logits(again.decoder), logits(base.decoder.eval()))
    assert again.decoder.trained() == {}


def test_the_base_may_have_moved(folder: Path, tmp_path: Path) -> None:
    base, technique = with_lora(folder)
    save_adapter(base, technique, tmp_path / "adapter")
    folder.rename(tmp_path / "elsewhere")
    load_adapter(open_base(str(tmp_path / "elsewhere"), CPU), tmp_path / "adapter")


def test_an_adapter_of_a_merged_model_is_not_one_of_its_base(folder: Path, tmp_path: Path) -> None:
    base, technique = with_lora(folder)
    model = Model(base, technique)
    model.merge()
    assert model.base.fingerprint != base.fingerprint
    second = LoRA.parse({})
    second.apply(model.base.decoder, seed=1)
    save_adapter(model.base, second, tmp_path / "second")
    with pytest.raises(ConfigError, match=r"second was trained on tiny with a merged adapter \(.*\), not on tiny \("):
        load_adapter(open_base(str(folder), CPU), tmp_path / "second")


def test_a_merged_adapter_is_taken_out_again(folder: Path) -> None:
    base, technique = with_lora(folder)
    model = Model(base, technique)
    before = logits(base.decoder)
    with pytest.raises(ConfigError, match="nothing was merged into this model"):
        model.unmerge()
    model.merge()
    assert model.technique is None
    model.unmerge()
    assert (model.base, model.technique) == (base, technique)
    assert torch.equal(logits(model.base.decoder), before)


def test_a_folder_that_is_no_adapter_is_said_to_be_none(folder: Path, tmp_path: Path) -> None:
    base, technique = with_lora(folder)
    with pytest.raises(ModelError, match=r"is no adapter folder: one has adapter_config\.json"):
        load_adapter(base, tmp_path)
    save_adapter(base, technique, tmp_path / "adapter")
    weights = tmp_path / "adapter" / ADAPTER_WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"adapter_model.safetensors is damaged or cut short"):
        load_adapter(open_base(str(folder), CPU), tmp_path / "adapter")
    weights.unlink()
    with pytest.raises(ModelError, match=r"there is no .*adapter_model.safetensors"):
        load_adapter(open_base(str(folder), CPU), tmp_path / "adapter")
    (tmp_path / "adapter" / ADAPTER_CONFIG).write_text("[1]", encoding="utf-8")
    with pytest.raises(ModelError, match=r"adapter_config.json holds list, not an object"):
        load_adapter(open_base(str(folder), CPU), tmp_path / "adapter")


@pytest.fixture
def steps(tmp_path: Path) -> Path:
    tensors = {"w": torch.arange(600, dtype=torch.float32).view(20, 30)}
    for number in (3, 20, 100):
        state = {"progress": {"step": number, "best_loss": 0.1 + 0.2}, "plan": {}}
        save_step(tmp_path / f"step-{number:06d}", Saved(tensors, {"w/exp_avg": tensors["w"].T}, state))
    return tmp_path


def test_a_step_comes_back_as_it_was(steps: Path) -> None:
    saved = load_step(steps / "step-000020")
    assert torch.equal(saved.trained["w"], torch.arange(600, dtype=torch.float32).view(20, 30))
    assert torch.equal(saved.optimiser["w/exp_avg"], saved.trained["w"].T)
    assert saved.state == {"progress": {"step": 20, "best_loss": 0.1 + 0.2}, "plan": {}}


def test_finished_steps_are_listed_oldest_first_and_nothing_else(steps: Path) -> None:
    for name in (".step-000101.0badcafe.part", ".step-000100.0badcafe.old", "other"):
        shutil.copytree(steps / "step-000003", steps / name)
    (steps / "step-notes.txt").write_text("a file", encoding="utf-8")
    assert [path.name for path in step_folders(steps)] == ["step-000003", "step-000020", "step-000100"]
    assert step_folders(steps / "nowhere") == []


def test_steps_past_the_millionth_are_newer(tmp_path: Path) -> None:
    for step in (1_000_500, 0, 990_000):
        (tmp_path / f"step-{step:06d}").mkdir()
    assert [path.name for path in step_folders(tmp_path)] == ["step-000000", "step-990000", "step-1000500"]


@pytest.mark.parametrize("file", ["trained.safetensors", "optimiser.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["cut", "emptied", "gone"])
def test_a_damaged_step_is_named_with_what_to_do(file: str, damage: str, steps: Path) -> None:
    path = steps / "step-000100" / file
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: 20 if damage == "cut" else 0])
    with pytest.raises(ModelError) as caught:
        load_step(steps / "step-000100")
    message = str(caught.value)
    assert str(path) in message
    assert message.endswith(f"; delete {steps / 'step-000100'} to go on from the checkpoint before it")
    assert "\n" not in message
