"""GGUF files of every family llama.cpp names, under the names the `gguf` package gives, are read as written."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import quantize
from tokenizers import Tokenizer
from torch import Tensor

import tiny
from conftest import CPU, SPECIALS
from graftwood.base import open_base
from graftwood.errors import ModelError
from graftwood.model.architecture import ARCHITECTURES
from graftwood.model.config import ModelConfig, RopeScaling
from graftwood.model.decoder import Decoder
from graftwood.model.rope import frequencies
from graftwood.model.weights import to_files

# What a family is written with: only what its files can say.
CONFIGS: dict[str, dict[str, Any]] = {
    "gemma2": {"attention_scale": 8**-0.5, "windows": (6, None)},
    "gemma3": {"attention_scale": 8**-0.5, "windows": (6, 6), "local_rope_theta": 100.0, "rope_theta": 500.0},
    "gpt_oss": {"rope_scaling": RopeScaling("yarn", 8.0, 1.0, 32.0, 64, 0.1 * math.log(8) + 1, False)},
    "qwen2": {"windows": ()},
    "smollm3": {"layers": 4, "unturned": (3,), "windows": ()},
}
FAMILIES = [name for name in ARCHITECTURES.names() if ARCHITECTURES.get(name).gguf]


def paired(weight: Tensor, heads: int) -> Tensor:
    """llama.cpp's order of rows for the families that turn neighbouring dimensions."""
    return weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def stacked(weight: Tensor, heads: int) -> Tensor:
    """Queries, keys and values one after another, from NeoX's head by head."""
    return weight.unflatten(0, (heads, 3, -1)).transpose(0, 1).flatten(0, 2)


def as_llama_cpp_stores(files: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """The family's own tensors with the values its conversion script gives them."""
    stored = {}
    for name, tensor in files.items():
        family = config.architecture
        if family == "gpt2" and name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
            tensor = tensor.T
        elif family == "gpt_neox" and "query_key_value" in name:
            tensor = stacked(tensor, config.heads)
        elif family in ("llama", "smollm3") and "q_proj" in name:
            tensor = paired(tensor, config.heads)
        elif family in ("llama", "smollm3") and "k_proj" in name:
            tensor = paired(tensor, config.kv_heads)
        elif family in ("gemma2", "gemma3") and name.endswith("norm.weight"):
            tensor = tensor + 1
        if ".experts.gate_up_proj" in name:
            flat = tensor if name.endswith("_bias") else tensor.mT
            leaf = ".bias" if name.endswith("_bias") else ".weight"
            for start, part in ((0, "gate"), (1, "up")):
                stored[name.partition("gate_up")[0] + f"{part}_proj{leaf}"] = flat[:, start::2]
        elif ".experts.down_proj" in name:
            weight = not name.endswith("_bias")
            stored[name.removesuffix("_bias") + (".weight" if weight else ".bias")] = tensor.mT if weight else tensor
        else:
            stored[name] = tensor
    return stored


def metadata(config: ModelConfig) -> dict[str, Any]:
    wanted: dict[str, Any] = {
        "context_length": config.max_positions,
        "embedding_length": config.hidden_size,
        "block_count": config.layers,
        "feed_forward_length": config.feed_forward_size,
        "attention.head_count": config.heads,
        "attention.head_count_kv": config.kv_heads,
        "attention.key_length": config.head_size,
        "attention.value_length": config.head_size,
        "attention.layer_norm_epsilon": config.norm_eps,
        "attention.layer_norm_rms_epsilon": config.norm_eps,
        "rope.dimension_count": config.turned,
        "rope.freq_base": config.rope_theta,
        "rope.freq_base_swa": config.local_rope_theta,
        "attention.sliding_window": next((window for window in config.windows if window), None),
        "attn_logit_softcapping": config.attention_cap,
        "final_logit_softcapping": config.logit_cap,
        "use_parallel_residual": config.parallel_residual,
    }
    if config.experts:
        wanted |= {"expert_count": config.experts, "expert_used_count": config.experts_per_token}
        wanted |= {"expert_feed_forward_length": config.feed_forward_size}
    if config.rope_scaling is not None and config.rope_scaling.kind == "yarn":
        wanted |= {"rope.scaling.type": "yarn", "rope.scaling.factor": config.rope_scaling.factor}
        wanted |= {"rope.scaling.original_context_length": config.rope_scaling.original_positions}
    return {key: value for key, value in wanted.items() if value is not None}


def write(path: Path, decoder: Decoder, tokenizer: Tokenizer, **tensors: Tensor) -> None:
    config, name = decoder.config, decoder.architecture.gguf[0]
    kind = next(arch for arch, called in gguf.MODEL_ARCH_NAMES.items() if called == name)
    names = gguf.get_tensor_name_map(kind, config.layers)
    writer = gguf.GGUFWriter(path, name)
    for key, value in metadata(config).items():
        put = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        put[type(value)](f"{name}.{key}", value)
    model = json.loads(tokenizer.to_str())["model"]
    vocabulary = sorted(model["vocab"], key=model["vocab"].get)
    vocabulary += [f"[unused{index}]" for index in range(len(vocabulary), config.vocab_size)]
    writer.add_string("tokenizer.ggml.model", "gpt2")
    writer.add_string("tokenizer.ggml.pre", "smollm")
    writer.add_array("tokenizer.ggml.tokens", vocabulary)
    writer.add_array("tokenizer.ggml.token_type", [3 if token in SPECIALS else 1 for token in vocabulary])
    writer.add_array("tokenizer.ggml.merges", [" ".join(merge) for merge in model["merges"]])
    for file, tensor in as_llama_cpp_stores(to_files(decoder), config).items():
        called = names.get_name(file, try_suffixes=(".weight", ".bias")) or names.get_name(f"{file}.weight")
        if called is None:
            stem = file.removesuffix(".weight").removesuffix(".bias")
            called = f"{names.get_name(stem)}{file.removeprefix(stem)}"
        called += ".weight" if file.endswith("sinks") and not called.endswith(".weight") else ""
        writer.add_tensor(called, tensor.contiguous().numpy())
    for called, tensor in tensors.items():
        writer.add_tensor(called, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def made(name: str, **changes: Any) -> Decoder:
    decoder = Decoder(ARCHITECTURES.get(name), replace(tiny.config(name), **CONFIGS.get(name, {}), **changes))
    decoder.initialise(seed=1)
    with torch.no_grad():
        for parameter in decoder.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.linspace(-0.3, 0.3, len(parameter)))
    return decoder.requires_grad_(False)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_read_as_it_was_written(name: str, tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    source = made(name)
    write(tmp_path / "m.gguf", source, tiny_tokenizer)
    loaded = open_base(str(tmp_path / "m.gguf"), CPU).decoder
    assert {**vars(loaded.config), "init_std": 0.2} == vars(source.config)
    ids = torch.arange(3, 63).unsqueeze(0)
    torch.testing.assert_close(loaded(ids), source(ids), rtol=0.0, atol=1e-4)


def test_a_gemma_2_file_that_names_no_caps_means_the_usual_ones() -> None:
    entry = ARCHITECTURES.get("gemma2")
    assert entry.gguf_config is not None
    told = {key: value for key, value in metadata(made("gemma2").config).items() if "softcapping" not in key}
    config = entry.read(entry.gguf_config(told) | {"vocab_size": 320})
    assert (config.attention_cap, config.logit_cap) == (50.0, 30.0)


KEYS: dict[str, Any] = {
    "attention.causal": False,
    "attention.clamp_kqv": 8.0,
    "attention.max_alibi_bias": 8.0,
    "attention.output_scale": 0.5,
    "attention.scale": 0.25,
    "attention.sliding_window": 5,
    "attention.sliding_window_pattern": [False, True],
    "attn_logit_softcapping": 7.0,
    "embedding_scale": 12.0,
    "final_logit_softcapping": 7.0,
    "logit_scale": 0.5,
    "residual_scale": 0.5,
    "rope.dimension_count_swa": 2,
    "rope.dimension_sections": [1, 1, 1, 1],
    "rope.freq_base_swa": 77.0,
    "rope.scale_linear": 4.0,
    "rope.scaling.attn_factor": 1.2,
    "rope.scaling.factor": 3.0,
    "rope.scaling.type": "longrope",
    "rope.scaling.yarn_ext_factor": 0.5,
    "rope.scaling.yarn_log_multiplier": 0.1,
}


def read(name: str, told: Mapping[str, Any]) -> ModelConfig:
    entry = ARCHITECTURES.get(name)
    assert entry.gguf_config is not None
    return entry.read(entry.gguf_config(told) | {"vocab_size": 320, "tie_word_embeddings": False})


@pytest.mark.parametrize("name", FAMILIES)
def test_a_key_that_changes_a_result_is_read_or_refused_by_name(name: str) -> None:
    told = {**metadata(made(name).config), "rope.dimension_count": 4}
    told |= {} if name in ("gpt_neox", "gptj", "phi3") else {"rope.dimension_count": 8}
    told |= {"attention.sliding_window_pattern": 2} if "attention.sliding_window" in told and name != "phi3" else {}
    plain = read(name, told)
    for key, value in KEYS.items():
        found: object
        try:
            found = read(name, {**told, key: value})
        except ModelError as error:
            found = str(error)
        named = isinstance(found, str) and (
            key in found or (key.startswith("rope.scaling") and "rope scaling" in found)
        )
        assert named or not isinstance(found, str), found
        assert found != plain, f"{key} is passed over"


def test_windows_lie_where_the_file_says() -> None:
    told = metadata(made("gemma2").config)
    for pattern, windows in (([False, True], (None, 6)), (2, (6, None)), (1, ()), (0, (6, 6))):
        assert read("gemma2", {**told, "attention.sliding_window_pattern": pattern}).windows == windows


def test_an_olmo_3_file_is_not_taken_for_an_olmo_2() -> None:
    told = metadata(made("olmo2").config)
    with pytest.raises(ModelError, match=r"attention\.sliding_window 4096, attention\.sliding_window_pattern \[True"):
        read("olmo2", {**told, "attention.sliding_window": 4096, "attention.sliding_window_pattern": [True, False]})


def test_yarn_is_read_with_its_own_numbers() -> None:
    scaling = RopeScaling("yarn", 8.0, 2.0, 64.0, 64, 0.1 * math.log(8) + 1)
    told = metadata(made("qwen3", rope_scaling=scaling).config)
    told |= {"rope.scaling.yarn_beta_fast": 64.0, "rope.scaling.yarn_beta_slow": 2.0}
    usual = float(np.float32(scaling.attention_factor))
    assert read("qwen3", {**told, "rope.scaling.yarn_attn_factor": usual}).rope_scaling == scaling
    assert read("qwen3", told).rope_scaling == scaling
    with pytest.raises(ModelError, match=r"yarn_attn_factor 1\.5 .* only 1\.2079"):
        read("qwen3", {**told, "rope.scaling.yarn_attn_factor": 1.5})


def test_a_factor_without_a_kind_is_linear() -> None:
    told = metadata(made("llama").config)
    assert read("llama", {**told, "rope.scaling.factor": 4.0}).rope_scaling == RopeScaling("linear", 4.0)


def llama3(factor: float, low: float = 1.0) -> tuple[Decoder, Tensor]:
    """A Llama with stretched positions, and the factors its file says them with."""
    scaling = RopeScaling("llama3", factor, low, 4.0, 8192)
    plain = frequencies(8, 500_000.0, None)
    return made("llama", rope_scaling=scaling, rope_theta=500_000.0), plain / frequencies(8, 500_000.0, scaling)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_factors_of_rotary_positions_are_llama_3s(factor: float, tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    source, factors = llama3(factor)
    write(tmp_path / "m.gguf", source, tiny_tokenizer, **{"rope_freqs.weight": factors})
    loaded = open_base(str(tmp_path / "m.gguf"), CPU).decoder
    assert loaded.config.rope_scaling == source.config.rope_scaling


def test_other_factors_are_refused(tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    source, factors = llama3(8.0)
    write(
        tmp_path / "m.gguf", source, tiny_tokenizer, **{"rope_freqs.weight": factors * torch.tensor([1.0, 1, 1.1, 1])}
    )
    with pytest.raises(ModelError, match="factors that are not Llama 3's"):
        open_base(str(tmp_path / "m.gguf"), CPU)


def test_mxfp4_is_what_the_gguf_package_makes_of_it() -> None:
    from graftwood.model.mxfp4 import dequantised

    values = torch.randn(4, 64, generator=torch.Generator().manual_seed(0)).numpy()
    packed = torch.from_numpy(quantize(values, gguf.GGMLQuantizationType.MXFP4)).view(4, 2, 17)
    expected = gguf.quants.dequantize(packed.flatten(1).numpy(), gguf.GGMLQuantizationType.MXFP4)
    # ggml keeps the first sixteen of a block in the lower halves; the published files keep neighbours together.
    low, high = packed[..., 1:] & 15, packed[..., 1:] >> 4
    order = torch.cat((low, high), dim=-1)
    blocks = order[..., 0::2] | order[..., 1::2] << 4
    found = dequantised(blocks, packed[..., 0])
    assert torch.equal(found.float(), torch.from_numpy(expected))
