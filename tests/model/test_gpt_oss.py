"""The mixture of experts and its four-bit files give what transformers makes of the same numbers."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import tiny
from conftest import CPU
from graftwood.errors import ModelError
from graftwood.model.architecture import ARCHITECTURES
from graftwood.model.decoder import Decoder
from graftwood.model.experts import ALPHA, LIMIT, Mixture, clamped_swiglu
from graftwood.model.mxfp4 import dequantised
from graftwood.model.tensor_files import SINGLE
from graftwood.model.weights import load_decoder, save_tensors, to_files

DRAW = torch.Generator().manual_seed(0)


def test_the_clamped_activation() -> None:
    reference = pytest.importorskip("transformers.models.gpt_oss.modeling_gpt_oss", reason="needs the extra `peers`")
    gate, up = torch.linspace(-20, 20, 41).unsqueeze(1), torch.linspace(-15, 15, 31)
    gate, up = (x.expand(41, 31).contiguous() for x in (gate, up))
    both = torch.stack((gate, up), dim=-1).flatten(-2)
    theirs = reference.GptOssExperts._apply_gate(SimpleNamespace(alpha=ALPHA, limit=LIMIT), both)
    torch.testing.assert_close(clamped_swiglu(gate, up), theirs)


def test_a_token_gets_its_best_experts_and_no_others() -> None:
    config = tiny.config("gpt_oss")
    mixture = Mixture(config).requires_grad_(False)
    for parameter in mixture.parameters():
        parameter.normal_(generator=DRAW)
    x = torch.randn(2, 5, config.hidden_size, generator=DRAW)
    best, chosen = mixture.router(x).topk(2)
    shares = best.softmax(-1)
    every = torch.stack([expert(x) for expert in mixture.experts])
    slow = torch.zeros_like(x)
    for row in range(2):
        for token in range(5):
            for share, expert in zip(shares[row, token], chosen[row, token], strict=True):
                slow[row, token] += share * every[expert, row, token]
    torch.testing.assert_close(mixture(x), slow, rtol=1e-4, atol=1e-4)


def packed(*shape: int) -> tuple[Tensor, Tensor]:
    """Blocks of any bits, and scales about one."""
    blocks = torch.randint(0, 256, (*shape, 16), dtype=torch.uint8, generator=DRAW)
    return blocks, torch.randint(120, 128, shape, dtype=torch.uint8, generator=DRAW)


def test_blocks_have_the_values_transformers_gives_them() -> None:
    reference = pytest.importorskip("transformers.integrations.mxfp4", reason="needs the extra `peers`")
    blocks, scales = packed(3, 4, 2)
    theirs = reference.convert_moe_packed_tensors(blocks, scales)
    ours = torch.stack([dequantised(*pair).T for pair in zip(blocks, scales, strict=True)])
    assert torch.equal(ours, theirs)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder in four bits: experts of 32 inputs each way, so that a row is one block."""
    entry = ARCHITECTURES.get("gpt_oss")
    decoder = Decoder(entry, tiny.config("gpt_oss", feed_forward_size=32))
    decoder.initialise(0)
    save_tensors(to_files(decoder), tmp_path)
    tensors = load_file(tmp_path / SINGLE)
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, inputs, outputs = tensors.pop(name).shape
        tensors[f"{name}_blocks"], tensors[f"{name}_scales"] = packed(experts, outputs, inputs // 32)
    save_file(tensors, tmp_path / SINGLE, metadata={"format": "pt"})
    config = entry.write(decoder.config) | {"quantization_config": {"quant_method": "mxfp4"}}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return tmp_path


def test_a_four_bit_folder_is_read_and_written_dense(folder: Path, tmp_path: Path) -> None:
    decoder, tensors = load_decoder(folder, CPU), load_file(folder / SINGLE)
    name = "model.layers.1.mlp.experts.gate_up_proj"
    values = dequantised(tensors[f"{name}_blocks"][2], tensors[f"{name}_scales"][2]).float()
    expert: Any = decoder.get_submodule("model.layers.1.mlp.experts.2")
    assert torch.equal(expert.gate_proj.weight, values[0::2])
    assert torch.equal(expert.up_proj.weight, values[1::2])
    files = to_files(decoder)
    assert torch.equal(files[name][2].T, values)
    assert not any("blocks" in file or "scales" in file for file in files)


def test_half_of_a_pair_is_a_misfit(folder: Path) -> None:
    tensors = load_file(folder / SINGLE)
    del tensors["model.layers.0.mlp.experts.down_proj_scales"]
    save_file(tensors, folder / SINGLE, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"down_proj_blocks is in the file, but the model has no place for it"):
        load_decoder(folder, CPU)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"swiglu_limit": 5.0}, "swiglu_limit 5.0"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
        ({"num_experts_per_tok": 9}, "9 experts for a token are more than the 4"),
    ],
)
def test_what_is_not_computed_is_refused(change: dict[str, Any], said: str, folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | change), encoding="utf-8")
    with pytest.raises(ModelError) as caught:
        load_decoder(folder, CPU)
    assert said in str(caught.value)
