"""Loading a checkpoint: memory-mapped, audited both ways, every problem said at once."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import CPU
from graftwood.base import open_base
from graftwood.errors import ModelError
from graftwood.model.architecture import ARCHITECTURES
from graftwood.model.config import ModelConfig
from graftwood.model.decoder import Decoder
from graftwood.model.tensor_files import INDEX, SINGLE, shard_files
from graftwood.model.weights import FINGERPRINT, fingerprint, load_decoder, save_tensors, to_files
from graftwood.runtime import Place

Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def folder(tmp_path: Path, tiny_decoder: Decoder) -> Path:
    """A folder as we write it ourselves, so that none of these tests needs transformers."""
    save_tensors(to_files(tiny_decoder), tmp_path)
    config = ARCHITECTURES.get("llama").write(tiny_decoder.config)
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return tmp_path


def edit_tensors(folder: Path, change: Change) -> None:
    tensors = load_file(folder / SINGLE)
    change(tensors)
    save_file(tensors, folder / SINGLE, metadata={"format": "pt"})


def edit_config(folder: Path, change: Change) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    change(config)
    path.write_text(json.dumps(config), encoding="utf-8")


def shard(folder: Path, shard_bytes: int = 20_000) -> list[Path]:
    tensors = load_file(folder / SINGLE)
    (folder / SINGLE).unlink()
    save_tensors(tensors, folder, shard_bytes)
    return sorted(folder.glob("model-*.safetensors"))


def refusal(folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        load_decoder(folder, CPU)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_every_misfit_is_named_at_once(folder: Path) -> None:
    def spoil(tensors: dict[str, Any]) -> None:
        del tensors["model.layers.0.mlp.up_proj.weight"]
        del tensors["model.norm.weight"]
        tensors["model.layers.0.self_attn.q_norm.weight"] = torch.ones(8)
        tensors["model.layers.1.self_attn.k_proj.weight"] = torch.ones(32, 32)

    edit_tensors(folder, spoil)
    message = refusal(folder)
    assert "model.layers.0.mlp.up_proj.weight is missing" in message
    assert "model.norm.weight is missing" in message
    assert "model.layers.0.self_attn.q_norm.weight is in the file, but the model has no place" in message
    assert "model.layers.1.self_attn.k_proj.weight is [32, 32], the model needs [16, 32]" in message


def test_a_config_of_another_size_is_told_by_its_shapes(folder: Path) -> None:
    edit_config(folder, lambda config: config.update(num_hidden_layers=9))
    message = refusal(folder)
    assert "model.layers.2." in message
    assert re.search(r"and \d+ more", message), "a long list is cut"


def test_ignored_and_tied_tensors_are_not_misfits(folder: Path, tiny_decoder: Decoder) -> None:
    def add(tensors: dict[str, Any]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)

    edit_tensors(folder, add)
    ids = torch.arange(20).unsqueeze(0)
    assert torch.equal(load_decoder(folder, CPU)(ids), tiny_decoder(ids))


def test_a_head_of_its_own_under_a_tied_configuration_is_refused(folder: Path) -> None:
    def untie(tensors: dict[str, Any]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] * 1.01

    edit_tensors(folder, untie)
    assert "its head is not its embedding, though tie_word_embeddings is on; turn that off" in refusal(folder)


def test_a_whole_file_goes_before_an_index_that_was_left(folder: Path) -> None:
    whole = (folder / SINGLE).read_bytes()
    shard(folder)
    (folder / SINGLE).write_bytes(whole)
    assert shard_files(folder) == [folder / SINGLE]


def test_missing_shards_are_named(folder: Path) -> None:
    shards = shard(folder)
    for gone in shards[1:3]:
        gone.unlink()
    message = refusal(folder)
    assert f"lacks 2 of {len(shards)} shards: {shards[1].name}, {shards[2].name}" in message


@pytest.mark.parametrize("index", ["{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}'])
def test_a_damaged_index_is_one_line(folder: Path, index: str) -> None:
    shard(folder)
    (folder / INDEX).write_text(index, encoding="utf-8")
    assert INDEX in refusal(folder)


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_file_cut_short_is_damaged(folder: Path, keep: int) -> None:
    path = folder / SINGLE
    path.write_bytes(path.read_bytes()[:keep])
    assert "is damaged or cut short" in refusal(folder)


def test_what_a_folder_must_hold(tmp_path: Path, folder: Path) -> None:
    (folder / SINGLE).unlink()
    assert "has no weights: neither model.safetensors nor pytorch_model.bin" in refusal(folder)
    (folder / "config.json").unlink()
    assert "has no config.json" in refusal(folder)


@pytest.mark.parametrize(
    ("text", "said"), [("{", "is not valid JSON"), ("[1]", "holds list, not an object"), ("{}", "model_type None")]
)
def test_a_damaged_config_is_one_line(folder: Path, text: str, said: str) -> None:
    (folder / "config.json").write_text(text, encoding="utf-8")
    assert said in refusal(folder)


def test_an_unknown_model_type_gets_its_near_names(folder: Path) -> None:
    edit_config(folder, lambda config: config.update(model_type="lama"))
    message = refusal(folder)
    assert "model_type 'lama'" in message
    assert "Did you mean 'llama'" in message


def test_a_foreign_model_type_lists_the_families(folder: Path) -> None:
    edit_config(folder, lambda config: config.update(model_type="mamba2"))
    message = refusal(folder)
    assert "model_type 'mamba2'" in message
    assert all(kind in message for kind in ("gpt2", "gpt_neox", "gpt_oss", "llama", "qwen3"))


def test_a_config_without_a_size_says_which(folder: Path) -> None:
    edit_config(folder, lambda config: config.pop("intermediate_size"))
    assert "lacks 'intermediate_size', which llama needs" in refusal(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"model_type": ["llama"]}, "model_type ['llama']"),
        ({"rms_norm_eps": None}, "norm_eps None"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 5.0}}}, "in layers of full_attention are not computed"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}, "rope scaling 'dynamic'"),
        ({"sliding_window": 8, "layer_types": ["x"]}, "layer_types ['x'], sliding_window 8: the llama block"),
        ({"quantization_config": {"bits": 4}}, "quantization_config {'bits': 4}"),
        ({"num_local_experts": 8}, "num_local_experts 8"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 4.0}}, "lacks 'low_freq_factor'"),
        ({"num_key_value_heads": 3}, "4 query heads"),
        ({"hidden_size": "32"}, "hidden_size '32'"),
        ({"num_hidden_layers": None}, "layers None"),
    ],
)
def test_what_the_block_does_not_compute_is_refused(folder: Path, change: dict[str, Any], said: str) -> None:
    edit_config(folder, lambda config: config.update(change))
    assert said in refusal(folder)


def test_loading_copies_nothing(tmp_path: Path, tiny_config: Callable[..., ModelConfig]) -> None:
    """The mapped pages of the file are the parameters: their addresses lie inside its mapping."""
    decoder = Decoder(ARCHITECTURES.get("llama"), tiny_config(vocab_size=20_000))
    decoder.initialise(seed=0)
    save_tensors(to_files(decoder), tmp_path)
    config = decoder.architecture.write(decoder.config)
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    loaded = load_decoder(tmp_path, CPU)
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("only Linux lists a process's mappings")
    mapped = [line.split("-", 1) for line in maps.read_text().splitlines() if line.endswith(str(tmp_path / SINGLE))]
    spans = [(int(start, 16), int(rest.split()[0], 16)) for start, rest in mapped]
    for name, parameter in loaded.named_parameters():
        assert any(start <= parameter.data_ptr() < end for start, end in spans), name


def test_writing_to_a_loaded_parameter_leaves_the_file_alone(folder: Path) -> None:
    before = (folder / SINGLE).read_bytes()
    decoder = load_decoder(folder, CPU)
    with torch.no_grad():
        decoder.embedding.weight.zero_()
    assert (folder / SINGLE).read_bytes() == before
    assert load_decoder(folder, CPU).embedding.weight.any()


def test_loaded_parameters_are_frozen_and_in_the_asked_format(folder: Path) -> None:
    decoder = load_decoder(folder, Place(torch.device("cpu"), torch.bfloat16))
    assert decoder.trained() == {}
    assert {parameter.dtype for parameter in decoder.parameters()} == {torch.bfloat16}
    assert decoder.compute_dtype == torch.bfloat16
    logits = decoder(torch.arange(8).unsqueeze(0))
    assert logits.dtype == torch.float32
    exact = load_decoder(folder, CPU)(torch.arange(8).unsqueeze(0))
    assert (logits - exact).abs().mean() < 0.1 * exact.std()


def test_the_fingerprint_is_of_the_content(folder: Path) -> None:
    single = fingerprint(folder)
    edit_config(folder, lambda config: config.update(transformers_version="9", dtype="float32"))
    assert fingerprint(folder) == single, "only sizes count"
    assert len(shard(folder)) > 3
    assert fingerprint(folder) == single, "sharding does not matter"


def test_the_fingerprint_changes_with_every_tensor_and_size(folder: Path) -> None:
    seen = {fingerprint(folder)}
    for number, name in enumerate(sorted(load_file(folder / SINGLE)), 2):
        edit_tensors(folder, lambda tensors, name=name: tensors[name].view(-1)[-1:].add_(1e-3))
        seen.add(fingerprint(folder))
        assert len(seen) == number, name
    for field, value in {"rope_theta": 5.0, "rms_norm_eps": 1e-3, "num_key_value_heads": 4, "vocab_size": 7}.items():
        before = len(seen)
        edit_config(folder, lambda config, field=field, value=value: config.update({field: value}))
        seen.add(fingerprint(folder))
        assert len(seen) == before + 1, field


def test_the_fingerprint_stays_from_release_to_release(folder: Path) -> None:
    edit_tensors(folder, lambda tensors: [tensor.fill_(0.5) for tensor in tensors.values()])
    assert (FINGERPRINT, fingerprint(folder)[:16]) == (2, "64cc5e4b7d9bb3af")


def test_shards_are_of_the_asked_size_and_indexed(folder: Path) -> None:
    tensors = load_file(folder / SINGLE)
    shards = shard(folder, 20_000)
    assert shard_files(folder) == shards
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    assert index["weight_map"].keys() == tensors.keys()
    for path in shards:
        held = load_file(path)
        assert len(held) == 1 or sum(tensor.nbytes for tensor in held.values()) <= 20_000


def test_a_tokenizer_larger_than_the_model_is_refused(folder: Path, tokenizer_files: Callable[[Path], None]) -> None:
    tokenizer_files(folder)
    assert open_base(str(folder), CPU).decoder.config.vocab_size == 320
    edit_tensors(folder, lambda tensors: tensors.update({"model.embed_tokens.weight": torch.ones(100, 32)}))
    edit_config(folder, lambda config: config.update(vocab_size=100))
    with pytest.raises(ModelError, match=r"the tokenizer has \d+ tokens, the model only 100"):
        open_base(str(folder), CPU)
