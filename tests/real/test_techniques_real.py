"""On the real base: PEFT computes from our folders what we compute, and a base in less memory says nearly the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import CPU
from graftwood.base import Base, open_base
from graftwood.checkpoint import save_adapter
from graftwood.model.quantised import held_bytes, quantise
from graftwood.technique import TECHNIQUES

pytestmark = [pytest.mark.real, pytest.mark.filterwarnings("ignore")]
TEXT = "The quick brown fox jumps over the lazy dog. In 1969 people walked on the moon.\ndef add(a, b):\n    return"
NOT_PEFTS = ("adapter", "bitfit")
SHARED = [n for n in TECHNIQUES.names() if not TECHNIQUES.get(n).writes_base and n not in NOT_PEFTS]


def logits(model: Any, base: Base) -> Tensor:
    ids = torch.tensor([base.tokenizer.encode(TEXT)])
    with torch.inference_mode():
        found = model(ids)
    return found if isinstance(found, Tensor) else found.logits[:, -ids.shape[1] :]


@pytest.mark.parametrize("name", SHARED)
def test_peft_computes_the_same_from_our_folder(name: str, smollm2: Base, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="needs the extra `peers`")
    transformers = pytest.importorskip("transformers", reason="needs the extra `peers`")
    base, technique = open_base(smollm2.source, CPU), TECHNIQUES.get(name).parse({})
    technique.apply(base.decoder, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in base.decoder.trained().values():
            parameter += 0.01 * torch.randn(parameter.shape, generator=generator)
    save_adapter(base, technique, tmp_path / "adapter")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(base.folder, dtype=torch.float32)
    wanted = logits(peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter").eval(), base)
    found = logits(base.decoder, base)
    assert (found - wanted).norm() / wanted.norm() < 1e-5
    with base.decoder.without_deltas():
        assert (logits(base.decoder, base) - wanted).norm() / wanted.norm() > 1e-4, "the adapter must matter"


@pytest.mark.parametrize(("precision", "share", "drift"), [("int8", 0.45, 0.01), ("q4", 0.36, 1e-4)])
def test_a_base_in_less_memory_says_nearly_the_same(precision: str, share: float, drift: float, smollm2: Base) -> None:
    """The base comes from a Q4_1 file, so that q4 finds its very levels again."""
    whole = logits(smollm2.decoder, smollm2).log_softmax(-1)
    decoder = open_base(smollm2.source, CPU).decoder
    quantise(decoder, precision)
    assert held_bytes(decoder) < share * held_bytes(smollm2.decoder)
    divergence = (whole.exp() * (whole - logits(decoder, smollm2).log_softmax(-1))).sum(-1).mean()
    assert divergence < drift
