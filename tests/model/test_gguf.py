"""GGUF files written here block by block, read back through the same door as a user's: `open_base`."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import pytest
import torch
from gguf.quants import quantize
from tokenizers import Tokenizer

import tiny
from conftest import CHATML, CPU, SPECIALS
from graftwood.base import convert, open_base
from graftwood.checkpoint import save_model
from graftwood.errors import ModelError
from graftwood.model.architecture import ARCHITECTURES
from graftwood.model.config import ModelConfig, RopeScaling
from graftwood.model.decoder import Decoder

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[Any]
Kind = gguf.GGMLQuantizationType
Quantise = Callable[[Floats, np.random.Generator], tuple[Bytes, Floats]]

STEMS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
# Largest error of a value, as a share of the largest value in its block.
SHARE = {
    "F32": 0.0,
    "F16": 2**-11,
    "BF16": 2**-8,
    "Q8_0": 1 / 220,
    "Q5_0": 1 / 15,
    "Q5_1": 1 / 30,
    "Q4_0": 1 / 7,
    "Q4_1": 1 / 14,
}


def file_name(parameter: str) -> str:
    outer = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    if parameter in outer:
        return outer[parameter]
    _, _, layer, rest = parameter.split(".", 3)
    return f"blk.{layer}.{STEMS[rest.removesuffix('.weight')]}.weight"


def interleaved(weight: Floats, heads: int) -> Floats:
    """llama.cpp's order: the rows of each rotary pair side by side, where Hugging Face keeps them half a head apart."""
    size = weight.shape[0] // heads
    order = [head * size + half * (size // 2) + i for head in range(heads) for i in range(size // 2) for half in (0, 1)]
    return weight[order]


def unit_blocks(weight: Floats, draw: np.random.Generator, bits: int) -> tuple[Floats, Bytes, Bytes]:
    """What the K formats have in common: blocks of 256 whole numbers, and a float16 scale for each block."""
    blocks = weight.size // 256
    scale = (draw.uniform(0.5, 1.0, blocks) / 2**bits / 32).astype(np.float16)
    return scale.astype(np.float32), scale, draw.integers(0, 2**bits, (blocks, 256), dtype=np.uint8)


def k4(weight: Floats, draw: np.random.Generator, bits: int = 4) -> tuple[Bytes, Floats]:
    """Blocks of Q4_K or Q5_K: eight runs of 32, each with a whole-number factor and offset below 16."""
    scale, stored, q = unit_blocks(weight, draw, bits)
    factor, offset = (draw.integers(1, 16, (len(q), 8), dtype=np.uint8) for _ in range(2))
    packed = np.concatenate([factor[:, :4], offset[:, :4], factor[:, 4:] | offset[:, 4:] << 4], axis=1)
    low = (q & 15).reshape(-1, 4, 2, 32)
    parts = [stored.view(np.uint8).reshape(-1, 2), stored.view(np.uint8).reshape(-1, 2), packed]
    if bits == 5:
        high = (q >> 4).reshape(-1, 8, 32) << np.arange(8, dtype=np.uint8)[None, :, None]
        parts.append(np.bitwise_or.reduce(high, axis=1))
    parts.append((low[:, :, 0] | low[:, :, 1] << 4).reshape(-1, 128))
    runs = q.reshape(-1, 8, 32).astype(np.float32)
    values = scale[:, None, None] * (factor[:, :, None] * runs - offset[:, :, None])
    return np.concatenate(parts, axis=1).reshape(weight.shape[0], -1), values.reshape(weight.shape).astype(np.float32)


def k5(weight: Floats, draw: np.random.Generator) -> tuple[Bytes, Floats]:
    return k4(weight, draw, bits=5)


def k6(weight: Floats, draw: np.random.Generator) -> tuple[Bytes, Floats]:
    """Blocks of Q6_K: sixteen runs of 16, each with a signed factor; values are six bits about 32."""
    scale, stored, q = unit_blocks(weight, draw, 6)
    factor = draw.integers(-16, 16, (len(q), 16), dtype=np.int8)
    halves = q.reshape(-1, 2, 4, 32)
    low = np.stack([(halves[:, :, i] & 15) | (halves[:, :, i + 2] & 15) << 4 for i in (0, 1)], axis=2)
    high = np.bitwise_or.reduce((halves >> 4) << np.array([0, 2, 4, 6], np.uint8)[None, None, :, None], axis=2)
    parts = [low.reshape(-1, 128), high.reshape(-1, 64), factor.view(np.uint8), stored.view(np.uint8).reshape(-1, 2)]
    values = scale[:, None, None] * factor[:, :, None] * (q.reshape(-1, 16, 16).astype(np.float32) - 32)
    return np.concatenate(parts, axis=1).reshape(weight.shape[0], -1), values.reshape(weight.shape).astype(np.float32)


K_FORMATS: dict[str, Quantise] = {"Q4_K": k4, "Q5_K": k5, "Q6_K": k6}


def write_gguf(
    path: Path, decoder: Decoder, tokenizer: Tokenizer, kind: str = "F32", **changes: Any
) -> dict[str, Floats]:
    """`decoder` as llama.cpp would store it, matrices in `kind`; gives back the exact values stored, by parameter.

    `changes` replace metadata by key; None removes one.
    """
    config = decoder.config
    model = json.loads(tokenizer.to_str())["model"]
    vocabulary = sorted(model["vocab"], key=model["vocab"].get)
    vocabulary += [f"[unused{index}]" for index in range(len(vocabulary), config.vocab_size)]
    metadata: dict[str, Any] = {
        "llama.context_length": config.max_positions,
        "llama.embedding_length": config.hidden_size,
        "llama.block_count": config.layers,
        "llama.feed_forward_length": config.feed_forward_size,
        "llama.rope.dimension_count": config.head_size,
        "llama.attention.head_count": config.heads,
        "llama.attention.head_count_kv": config.kv_heads,
        "llama.attention.layer_norm_rms_epsilon": float(config.norm_eps),
        "llama.rope.freq_base": float(config.rope_theta),
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": vocabulary,
        "tokenizer.ggml.token_type": [3 if t in SPECIALS else 5 if t[:7] == "[unused" else 1 for t in vocabulary],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in model["merges"]],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": CHATML,
    } | changes
    writer = gguf.GGUFWriter(path, metadata.pop("general.architecture", "llama"))
    for key, value in metadata.items():
        if value is not None:
            tiny.put_metadata(writer, key, value)
    values: dict[str, Floats] = {}
    draw = np.random.default_rng(0)
    for name, parameter in decoder.named_parameters():
        weight = parameter.detach().numpy()
        if weight.ndim == 1:
            stored, values[name], written = weight, weight, Kind.F32
        elif kind in K_FORMATS:
            written = Kind[kind]
            stored, values[name] = K_FORMATS[kind](weight, draw)
        else:
            values[name], written = weight, Kind[kind]
            stored = quantize(weight, written)
        heads = {"q_proj": config.heads, "k_proj": config.kv_heads}.get(name.split(".")[-2])
        writer.add_tensor(file_name(name), stored if heads is None else interleaved(stored, heads), raw_dtype=written)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return values


@pytest.fixture
def wide(tiny_config: Callable[..., ModelConfig]) -> Callable[..., Decoder]:
    """A decoder whose rows are whole blocks of every format."""

    def make(**changes: Any) -> Decoder:
        sizes = {"hidden_size": 256, "feed_forward_size": 256, "head_size": 64, "layers": 1, "init_std": 0.05}
        decoder = Decoder(ARCHITECTURES.get("llama"), tiny_config(**(sizes | changes)))
        decoder.initialise(seed=1)
        return decoder.requires_grad_(False)

    return make


def with_values(decoder: Decoder, values: dict[str, Floats]) -> Decoder:
    for name, parameter in decoder.named_parameters():
        parameter.copy_(torch.from_numpy(values[name].copy()))
    return decoder


@pytest.mark.parametrize("kind", SHARE)
def test_simple_formats(kind: str, tmp_path: Path, wide: Callable[..., Decoder], tiny_tokenizer: Tokenizer) -> None:
    source = wide()
    values = write_gguf(tmp_path / "m.gguf", source, tiny_tokenizer, kind)
    loaded = open_base(str(tmp_path / "m.gguf"), CPU).decoder
    for name, parameter in loaded.named_parameters():
        expected = torch.from_numpy(values[name].copy())
        largest = expected.reshape(-1, 32).abs().amax(1, keepdim=True) if expected.ndim > 1 else torch.zeros(1)
        error = (parameter - expected).abs().reshape(largest.shape[0], -1)
        assert bool((error <= largest * SHARE[kind]).all()), (name, (error / largest).max())
    ids = torch.arange(40).unsqueeze(0)
    found, expected = loaded(ids), source(ids)
    distance = (found - expected).norm() / expected.norm()
    assert distance <= (1e-6 if kind == "F32" else 4 * SHARE[kind])
    assert kind == "F32" or distance > 0


@pytest.mark.parametrize("kind", K_FORMATS)
def test_k_formats_give_the_values_their_blocks_say(
    kind: str, tmp_path: Path, wide: Callable[..., Decoder], tiny_tokenizer: Tokenizer
) -> None:
    source = wide()
    values = write_gguf(tmp_path / "m.gguf", source, tiny_tokenizer, kind)
    loaded = open_base(str(tmp_path / "m.gguf"), CPU).decoder
    for name, parameter in loaded.named_parameters():
        torch.testing.assert_close(parameter, torch.from_numpy(values[name].copy()), rtol=1e-6, atol=1e-7, msg=name)
    ids = torch.arange(40).unsqueeze(0)
    torch.testing.assert_close(loaded(ids), with_values(source, values)(ids), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "metadata"),
    [
        ({"tied_head": False}, {}),
        ({"head_size": 32}, {"llama.attention.key_length": 32, "llama.attention.value_length": 32}),
        (
            {"rope_scaling": RopeScaling("linear", 2.0)},
            {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 2.0},
        ),
        ({"rope_theta": 123_456.7, "norm_eps": 3e-6}, {}),
    ],
    ids=["untied", "narrow heads", "linear rope", "odd scalars"],
)
def test_variants_keep_their_config_and_logits(
    changes: dict[str, Any],
    metadata: dict[str, Any],
    tmp_path: Path,
    wide: Callable[..., Decoder],
    tiny_tokenizer: Tokenizer,
) -> None:
    source = wide(**changes)
    write_gguf(tmp_path / "m.gguf", source, tiny_tokenizer, **metadata)
    loaded = open_base(str(tmp_path / "m.gguf"), CPU).decoder
    assert {**vars(loaded.config), "init_std": 0.05} == vars(source.config)
    ids = torch.arange(40).unsqueeze(0)
    torch.testing.assert_close(loaded(ids), source(ids), rtol=0.0, atol=1e-5)


def test_llama_cpp_computes_the_same(tmp_path: Path, wide: Callable[..., Decoder], tiny_tokenizer: Tokenizer) -> None:
    llama_cpp = pytest.importorskip("llama_cpp", reason="needs llama-cpp-python, which no extra installs")
    write_gguf(tmp_path / "m.gguf", wide(layers=2), tiny_tokenizer)
    ids = list(range(3, 43))
    theirs = llama_cpp.Llama(str(tmp_path / "m.gguf"), n_ctx=64, n_threads=2, logits_all=True, verbose=False)
    theirs.eval(ids)
    expected = torch.from_numpy(np.array(theirs.scores[: len(ids)]))
    theirs.close()
    ours = open_base(str(tmp_path / "m.gguf"), CPU).decoder(torch.tensor([ids]))[0]
    # llama.cpp keeps its key/value cache in float16.
    torch.testing.assert_close(ours, expected, rtol=0.0, atol=5e-3)
    assert expected.std() > 0.1


def test_the_tokenizer_and_template_come_along(
    tmp_path: Path, wide: Callable[..., Decoder], tiny_tokenizer: Tokenizer
) -> None:
    write_gguf(tmp_path / "m.gguf", wide(), tiny_tokenizer)
    base = open_base(str(tmp_path / "m.gguf"), CPU)
    for text in ("the assistant said 2024", "  naïve\n\n\t日本 🙂", "<|im_end|>", ""):
        assert base.tokenizer.encode(text, specials=True) == tiny_tokenizer.encode(text).ids
    assert base.tokenizer.eos == (2,)
    assert (base.tokenizer.bos, base.tokenizer.pad, base.tokenizer.begins) == (1, 0, False)
    assert base.template.source == CHATML
    assert base.template.own


def test_what_ends_a_turn_is_an_end_token(
    tmp_path: Path, wide: Callable[..., Decoder], tiny_tokenizer: Tokenizer
) -> None:
    ends = {"tokenizer.ggml.eos_token_id": 0, "tokenizer.ggml.eot_token_id": 2, "tokenizer.ggml.eom_token_id": 0}
    write_gguf(tmp_path / "a.gguf", wide(), tiny_tokenizer, **ends)
    base = open_base(str(tmp_path / "a.gguf"), CPU)
    assert base.tokenizer.eos == (0, 2)
    save_model(base, tmp_path / "out")
    told = json.loads((tmp_path / "out" / "generation_config.json").read_text(encoding="utf-8"))
    assert told["eos_token_id"] == [0, 2]


def test_a_file_is_converted_once_and_again_when_it_changes(
    tmp_path: Path, wide: Callable[..., Decoder], tiny_tokenizer: Tokenizer, home: Path
) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path, wide(), tiny_tokenizer)
    folder = convert(path)
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert convert(path) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    write_gguf(path, wide(layers=2), tiny_tokenizer)
    assert convert(path) != folder
    assert not [left for left in home.rglob("*") if left.suffix in (".part", ".old")]


def refusal(path: Path, home: Path) -> str:
    with pytest.raises(ModelError) as caught:
        open_base(str(path), CPU)
    message = str(caught.value)
    assert "\n" not in message
    assert not list((home / "models").glob("*")), "nothing half-made is kept"
    return message


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        (
            {"general.architecture": "lama"},
            "architecture 'lama' is not one this version reads. Did you mean 'llama'",
        ),
        ({"llama.expert_count": 8}, "mixture of 8 experts"),
        ({"llama.rope.dimension_count": 32}, "rotates 32 of 64 dimensions"),
        ({"llama.rope.scaling.type": "longrope"}, "rope scaling 'longrope'"),
        ({"tokenizer.ggml.pre": "tekken"}, "pre-tokenizer 'tekken' of a GGUF file is not known; known: dbrx, gpt-2"),
        ({"tokenizer.ggml.pre": "default"}, "pre-tokenizer 'default'"),
        ({"tokenizer.ggml.pre": None}, "pre-tokenizer None"),
        ({"tokenizer.ggml.model": "bert"}, "tokenizer model 'bert'"),
        ({"tokenizer.ggml.model": "llama"}, "lacks the metadata tokenizer.ggml.scores"),
        ({"tokenizer.ggml.token_type": None}, "lacks the metadata tokenizer.ggml.token_type"),
        ({"tokenizer.ggml.merges": None}, "lacks the metadata tokenizer.ggml.merges"),
        ({"llama.block_count": None}, "lacks the metadata llama.block_count"),
        ({"llama.block_count": 0}, "layers 0"),
        ({"llama.attention.head_count_kv": 3}, "cannot share 3"),
    ],
)
def test_what_is_not_read_is_refused(
    metadata: dict[str, Any],
    said: str,
    tmp_path: Path,
    wide: Callable[..., Decoder],
    tiny_tokenizer: Tokenizer,
    home: Path,
) -> None:
    write_gguf(tmp_path / "m.gguf", wide(), tiny_tokenizer, **metadata)
    assert said in refusal(tmp_path / "m.gguf", home)


def test_an_unreadable_tensor_type_is_named(
    tmp_path: Path, wide: Callable[..., Decoder], tiny_tokenizer: Tokenizer, home: Path
) -> None:
    write_gguf(tmp_path / "m.gguf", wide(), tiny_tokenizer, "TQ2_0")
    message = refusal(tmp_path / "m.gguf", home)
    assert "holds TQ2_0 tensors; readable types are F32" in message


def test_a_tensor_without_a_place_is_named(
    tmp_path: Path, wide: Callable[..., Decoder], tiny_tokenizer: Tokenizer, home: Path, monkeypatch: Any
) -> None:
    monkeypatch.setitem(STEMS, "mlp.up_proj", "ffn_sideways")
    write_gguf(tmp_path / "m.gguf", wide(), tiny_tokenizer)
    assert "no place for the tensor blk.0.ffn_sideways.weight" in refusal(tmp_path / "m.gguf", home)


def test_a_file_cut_anywhere_is_refused(
    tmp_path: Path, wide: Callable[..., Decoder], tiny_tokenizer: Tokenizer, home: Path
) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path, wide(), tiny_tokenizer, "Q8_0")
    whole = path.read_bytes()
    for keep in (0, 3, 4, 8, 23, 24, 30, 200, 2_000, 6_000, len(whole) // 2, len(whole) - 40):
        path.write_bytes(whole[:keep])
        assert "is not a whole GGUF file" in refusal(path, home), keep


@pytest.mark.parametrize(
    "content",
    [
        b"PK\x03\x04" + b"\0" * 100,
        b"GGUF" + struct.pack("<IQQ", 3, 2**62, 0),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 2**62),
        b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**63) + b"x" * 64,
        b"GGUF" + struct.pack("<IQQ", 99, 0, 0),
    ],
    ids=["a zip", "too many tensors", "too many keys", "an endless key", "a later version"],
)
def test_bytes_that_are_no_model_are_refused(content: bytes, tmp_path: Path, home: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    assert "is not a whole GGUF file" in refusal(path, home)
