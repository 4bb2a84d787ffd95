"""GPT-3's shapes compute what GPT-Neo of the same shape does, the one such model that others implement."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import tiny
from conftest import CPU
from graftwood.model.architecture import ARCHITECTURES
from graftwood.model.config import ModelConfig
from graftwood.model.decoder import Decoder
from graftwood.model.weights import load_decoder


def test_it_is_gpt_neo_with_scaled_scores_and_more_biases(
    tmp_path: Path, save_with_transformers: Callable[[ModelConfig, Path], None]
) -> None:
    transformers = pytest.importorskip("transformers", reason="needs the extra `peers`")
    save_with_transformers(tiny.config("gpt_neo", init_std=0.02), tmp_path)
    neo = dict(load_decoder(tmp_path, CPU).named_parameters())
    gpt3 = Decoder(ARCHITECTURES.get("gpt3"), tiny.config("gpt3")).requires_grad_(False)
    assert gpt3.config.windows == (None, 6)
    for name, parameter in gpt3.named_parameters():
        theirs = name.replace(".attn.c_proj", ".attn.out_proj").replace(".attn.", ".attn.attention.")
        if theirs not in neo:
            assert name.endswith(("q_proj.bias", "k_proj.bias", "v_proj.bias"))
            parameter.zero_()
        else:
            scale = gpt3.config.head_size**0.5 if name.endswith("q_proj.weight") else 1.0
            parameter.copy_(neo[theirs] * scale)
    ids = torch.randint(0, 320, (2, 100), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)(ids).logits
        torch.testing.assert_close(gpt3(ids), expected, rtol=0.0, atol=1e-4)
