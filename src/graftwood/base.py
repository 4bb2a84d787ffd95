"""Open a base: fetch it, convert it once, and bring decoder, tokenizer and chat template together."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from graftwood import hub
from graftwood.data.encode import Encoder
from graftwood.data.templates import ChatTemplate
from graftwood.data.templates import from_folder as read_template
from graftwood.data.tokenizers import bpe
from graftwood.errors import ModelError
from graftwood.files import atomic_folder, atomic_write, cache_home, expanded, sha256_file, sha256_text, storage
from graftwood.model.decoder import Decoder
from graftwood.model.gguf import ROPE_FACTORS, GGUFFile
from graftwood.model.rules import to_files, to_parameters
from graftwood.model.tensor_files import shard_files
from graftwood.model.weights import FINGERPRINT, fingerprint, load_decoder, outline, save_tensors
from graftwood.runtime import Place

CONVERSION = 2  # raised whenever a conversion writes something else, so that older caches are not read


@dataclass(frozen=True)
class Base:
    """A pre-trained model ready for use.

    `source` opens it again from anywhere, `name` is what people read; `folder` is its checkpoint in Hugging Face's
    layout.
    """

    name: str
    source: str
    folder: Path
    fingerprint: str
    decoder: Decoder
    tokenizer: bpe.BPETokenizer
    template: ChatTemplate
    licence: str | None

    def document_start(self) -> int:
        """The id that a text without a beginning begins with.

        Raises: ModelError of a base that has none, or names ids that the model does not have.
        """
        named = [("bos", self.tokenizer.bos), *(("eos", index) for index in self.tokenizer.eos)]
        ids = [(name, index) for name, index in named if index is not None]
        size = self.decoder.config.vocab_size
        for name, index in ids:
            if not 0 <= index < size:
                raise ModelError(
                    f"{self.folder}: {name}_token_id is {index}, the model has {size} tokens; "
                    f"mend it in config.json and generation_config.json, or name {name}_token in tokenizer_config.json"
                )
        if not ids:
            raise ModelError(
                f"{self.folder} names no token that begins or ends a text, so no answer could end; name one as "
                "eos_token in its tokenizer_config.json"
            )
        return ids[0][1]

    def encoder(self, max_length: int | None = None) -> Encoder:
        """An encoder of rows for this base, cutting at `max_length` or at what the context has room for."""
        limit = self.decoder.context
        return Encoder(self.tokenizer, self.template, min(max_length or limit, limit))


def open_base(source: str, place: Place) -> Base:
    """Load a base from anything `hub.fetch` understands.

    Raises: ModelError when it is missing, damaged, or of a kind that is not read.
    """
    fetched, folder = _found(source)
    decoder = load_decoder(folder, place)
    tokenizer = bpe.from_folder(folder)
    if tokenizer.vocab_size > decoder.config.vocab_size:
        raise ModelError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size} tokens, the model only {decoder.config.vocab_size}"
        )
    template = read_template(folder, tokenizer)
    # A path is remembered whole: what is written about this base may be read from another folder.
    lasting = str(expanded(source).resolve()) if expanded(source).exists() else source
    return Base(fetched.name, lasting, folder, _fingerprint(folder), decoder, tokenizer, template, fetched.licence)


def base_outline(source: str) -> Decoder:
    """The decoder of a base without its weights: what can be checked before they are loaded."""
    return outline(_found(source)[1])


def _found(source: str) -> tuple[hub.Fetched, Path]:
    fetched = hub.fetch(source)
    return fetched, convert(fetched.path) if fetched.path.is_file() else fetched.path


def converted_folder() -> Path:
    """Where converted models are kept."""
    return cache_home() / "models"


def convert(path: Path) -> Path:
    """A GGUF file as a model folder in the cache: converted the first time, found the next."""
    stat = path.stat()
    key = sha256_text(str(path), str(stat.st_size), str(stat.st_mtime_ns), str(CONVERSION))[:16]
    folder = converted_folder() / f"{path.stem}-{key}"
    if folder.exists():
        return folder
    file = GGUFFile(path)
    with storage(f"convert {path.name} into {folder}"), atomic_folder(folder) as work:
        config = file.config() | {"dtype": "float32"}
        _write(work / "config.json", config)
        tokenizer = bpe.from_gguf(file.metadata)
        tokenizer.save(str(work / "tokenizer.json"))
        _write(work / "tokenizer_config.json", bpe.gguf_token_settings(file.metadata))
        ids: dict[str, Any] = {k: config[k] for k in ("bos_token_id", "eos_token_id", "pad_token_id") if k in config}
        _write(work / "generation_config.json", ids)
        sizes = file.architecture.read(config)
        parameters: dict[str, Tensor] = {}
        for name, tensor in file.tensors():
            if name == ROPE_FACTORS:  # its configuration says the same
                continue
            held = to_parameters(name, tensor, file.architecture.gguf_rules, sizes)
            if held is None:
                raise ModelError(f"{path}: no place for the tensor {name}; use the model's safetensors folder")
            parameters |= held
        save_tensors(to_files(parameters, file.architecture.rules, sizes), work)
        _write(work / "graftwood.json", {"from": path.name, "sha256": sha256_file(path)})
    return folder


def _fingerprint(folder: Path) -> str:
    """The folder's fingerprint, kept in the cache under its files' names, sizes and times."""
    stats = [(file.resolve(), file.stat()) for file in [folder / "config.json", *shard_files(folder)]]
    key = sha256_text(str(FINGERPRINT), *(f"{file} {stat.st_size} {stat.st_mtime_ns}" for file, stat in stats))[:32]
    note = cache_home() / "fingerprints" / key
    noted = note.read_text(encoding="utf-8") if note.exists() else ""
    if re.fullmatch("[0-9a-f]{64}", noted):  # versions before this one may have left half of it
        return noted
    value = fingerprint(folder)
    with storage(f"write {note}"):
        atomic_write(note, value)
    return value


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False), encoding="utf-8")
