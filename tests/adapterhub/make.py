"""Make the folders beside this file with AdapterHub's own package: `python make.py BASES`.

`BASES` holds the models `llama` and `gpt2` that `tests/laws/test_adapterhub.py` makes from a seed. Ran once with
adapters 1.3.0 and transformers 4.57.6, which this project's own transformers is too new for.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import adapters
import torch
from transformers import AutoModelForCausalLM

HERE = Path(__file__).resolve().parent
IDS = [[3, 50, 7, 200, 11, 90, 299, 4]]
CASES = {
    "llama-double_seq_bn": adapters.DoubleSeqBnConfig(),
    "llama-seq_bn": adapters.SeqBnConfig(),
    "llama-par_bn": adapters.ParBnConfig(reduction_factor=16),
    "gpt2-double_seq_bn": adapters.DoubleSeqBnConfig(non_linearity="gelu"),
    "gpt2-seq_bn": adapters.SeqBnConfig(dropout=0.1),
    "gpt2-par_bn": adapters.ParBnConfig(reduction_factor=16),
}


def main(bases: Path) -> None:
    os.chdir(bases)
    for number, (name, config) in enumerate(CASES.items()):
        family, _, kind = name.partition("-")
        model = AutoModelForCausalLM.from_pretrained(family, dtype=torch.float32)
        adapters.init(model)
        model.add_adapter("task", config=config)
        model.set_active_adapters("task")
        generator = torch.Generator().manual_seed(number)
        with torch.no_grad():
            for path, parameter in model.named_parameters():
                if ".adapters.task." in path:
                    parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
            model.eval()
            logits = model(torch.tensor(IDS)).logits
        # The trunk alone leaves the first part of the names out; a pickle is what older versions wrote.
        saved = model.base_model if kind == "seq_bn" else model
        saved.save_adapter(str(HERE / name), "task", with_head=False, use_safetensors=kind != "par_bn")
        expected = {"ids": IDS, "logits": logits[0, -1, ::20].tolist()}
        (HERE / name / "expected.json").write_text(json.dumps(expected) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
