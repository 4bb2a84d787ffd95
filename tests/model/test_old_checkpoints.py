"""A GPT-2 folder as those of its time are: pickled, no first part in its names, masks among its weights, two tokenizer
files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

import tiny
from conftest import CPU
from graftwood.base import open_base
from graftwood.checkpoint import save_model
from graftwood.corpora import prepare_corpus
from graftwood.data.tokenizers.bpe import from_folder
from graftwood.generate.engine import Engine
from graftwood.generate.sampling import Sampling
from graftwood.model.config import ModelConfig
from graftwood.model.tensor_files import PICKLED_SINGLE, SINGLE
from graftwood.progress import Display

IDS = torch.arange(3, 43).unsqueeze(0)
Save = Callable[[ModelConfig, Path], None]


@pytest.fixture
def folder(tmp_path: Path, save_with_transformers: Save, tiny_tokenizer: Tokenizer) -> Path:
    old = tmp_path / "old"
    save_with_transformers(tiny.config("gpt2", init_std=0.02), old)
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in load_file(old / SINGLE).items()}
    for layer in range(2):
        tensors[f"h.{layer}.attn.bias"] = torch.ones(128, 128).tril().view(1, 1, 128, 128)
        tensors[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    torch.save(tensors, old / PICKLED_SINGLE)
    (old / SINGLE).rename(tmp_path / "kept.safetensors")
    tiny_tokenizer.model.save(str(old))
    return old


def test_it_opens_generates_and_goes_back_to_transformers(folder: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="needs the extra `peers`")
    base = open_base(str(folder), CPU)
    completion = Engine(base.decoder, (), base.tokenizer).generate([[3, 4, 5]], Sampling(max_tokens=8))[0]
    assert len(completion.ids) == 8
    save_model(base, tmp_path / "new")
    before, after = load_file(tmp_path / "kept.safetensors"), load_file(tmp_path / "new" / SINGLE)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert json.loads((tmp_path / "new" / "config.json").read_text(encoding="utf-8"))["model_type"] == "gpt2"
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "new", dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(base.decoder(IDS), theirs(IDS).logits, rtol=0.0, atol=1e-4)


def test_added_tokens_beside_two_tokenizer_files_go_wherever_these_go(folder: Path, tmp_path: Path) -> None:
    own = open_base(str(folder), CPU).tokenizer
    (folder / "added_tokens.json").write_text(json.dumps({"<extra>": own.vocab_size}), encoding="utf-8")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert own.vocab_size < config["vocab_size"]
    (folder / "special_tokens_map.json").write_text('{"eos_token": "<|im_end|>"}', encoding="utf-8")
    base = open_base(str(folder), CPU)
    assert base.tokenizer.encode("a<extra>")[1:] == [own.vocab_size]
    assert base.tokenizer.token(base.tokenizer.eos[0]) == "<|im_end|>"
    save_model(base, tmp_path / "new")
    (tmp_path / "text.txt").write_text("some text of a person\n" * 9, encoding="utf-8")
    corpus = prepare_corpus([str(tmp_path / "text.txt")], tmp_path / "corpus", Display(quiet=True), str(folder))
    assert from_folder(tmp_path / "new").fingerprint == base.tokenizer.fingerprint == corpus.fingerprint


def test_a_fused_tensor_of_another_size_is_a_misfit_by_its_own_name(folder: Path) -> None:
    tensors = torch.load(folder / PICKLED_SINGLE, weights_only=True)
    tensors["h.0.attn.c_attn.weight"] = torch.ones(32, 95)
    tensors["h.1.mlp.c_fc.weight"] = torch.ones(32, 4)
    torch.save(tensors, folder / PICKLED_SINGLE)
    with pytest.raises(Exception, match=r"h\.0\.attn\.c_attn\.weight is \[32, 95\], which the model's sizes do not"):
        open_base(str(folder), CPU)
