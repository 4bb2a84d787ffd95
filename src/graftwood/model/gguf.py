"""GGUF files: metadata and tensors de-quantised to float32, through the `gguf` package.

Source: the GGUF specification of ggml (docs/gguf.md); block formats as in ggml-quants.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from graftwood.errors import ModelError
from graftwood.model.architecture import Architecture, for_gguf
from graftwood.model.ggml import rope_of_factors

ROPE_FACTORS = "rope_freqs.weight"
READABLE = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K", "MXFP4")


class GGUFFile:
    """An open GGUF file: `metadata` by key, tensors on demand.

    Raises: ModelError for a file that is no GGUF, is cut short, or holds tensors of a type that is not read.
    """

    def __init__(self, path: Path) -> None:
        from gguf import GGUFReader

        self.path = path
        try:
            self._reader = GGUFReader(path)
        except FileNotFoundError:
            raise ModelError(f"there is no file {path}") from None
        except (ValueError, IndexError, OSError, KeyError) as error:
            raise ModelError(f"{path} is not a whole GGUF file ({error}); fetch it again") from None
        foreign = sorted({t.tensor_type.name for t in self._reader.tensors} - set(READABLE))
        if foreign:
            raise ModelError(f"{path} holds {', '.join(foreign)} tensors; readable types are {', '.join(READABLE)}")
        self.metadata: dict[str, Any] = {
            key: field.contents() for key, field in self._reader.fields.items() if not key.startswith("GGUF.")
        }
        self.architecture: Architecture = for_gguf(self.metadata.get("general.architecture"))

    def config(self) -> dict[str, Any]:
        """The `config.json` this file stands for, token ids included."""
        assert self.architecture.gguf_config is not None, (
            "an architecture with names in GGUF files reads their metadata"
        )
        prefix = self.architecture_name + "."
        own = {key.removeprefix(prefix): value for key, value in self.metadata.items() if key.startswith(prefix)}
        try:
            config = self.architecture.gguf_config(own)
        except KeyError as error:
            raise ModelError(f"{self.path} lacks the metadata {prefix}{error.args[0]}") from None
        names = {tensor.name for tensor in self._reader.tensors}
        if ROPE_FACTORS in names:
            factors = next(tensor for name, tensor in self.tensors() if name == ROPE_FACTORS)
            config["rope_scaling"] = rope_of_factors(factors, config["rope_theta"])
        config["vocab_size"] = len(self.metadata.get("tokenizer.ggml.tokens", ()))
        config["tie_word_embeddings"] = "output.weight" not in names
        for key in ("bos", "eos", "padding"):
            token = self.metadata.get(f"tokenizer.ggml.{key}_token_id")
            if token is not None:
                config["pad_token_id" if key == "padding" else f"{key}_token_id"] = int(token)
        # What ends a turn or a message ends an answer too; a file's `eos` is often what ends a document.
        more = [self.metadata.get(f"tokenizer.ggml.{key}_token_id") for key in ("eot", "eom")]
        ends = [int(token) for token in more if token is not None and token != config.get("eos_token_id")]
        if ends:
            config["eos_token_id"] = [*([config["eos_token_id"]] if "eos_token_id" in config else []), *ends]
        return config

    @property
    def architecture_name(self) -> str:
        """What the file calls its architecture."""
        return str(self.metadata["general.architecture"])

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor by its name in the file, float32, in PyTorch's order of dimensions."""
        from gguf.quants import dequantize

        for tensor in self._reader.tensors:
            shape = [int(size) for size in reversed(tensor.shape)]
            values = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
            yield tensor.name, values.to(torch.float32).reshape(shape)
