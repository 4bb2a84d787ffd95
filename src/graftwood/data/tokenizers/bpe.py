"""Byte-pair tokenizers, through the `tokenizers` library: from a `tokenizer.json`, or rebuilt from GGUF metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from graftwood.data.tokenizers.spm import from_pieces
from graftwood.errors import ModelError
from graftwood.files import sha256_text

# How llama.cpp's `tokenizer.ggml.pre` names map to the steps before the merges.
_GPT2 = (pre_tokenizers.ByteLevel(add_prefix_space=False),)
_SMOLLM = (pre_tokenizers.Digits(individual_digits=True), *_GPT2)
_LLAMA3 = (
    pre_tokenizers.Split(
        Regex(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
            r"|\s*[\r\n]+|\s+(?!\S)|\s+"
        ),
        "isolated",
    ),
    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
)
_QWEN2 = (
    pre_tokenizers.Split(
        Regex(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
            r"|\s*[\r\n]+|\s+(?!\S)|\s+"
        ),
        "isolated",
    ),
    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
)
_GPT4O = (
    pre_tokenizers.Split(
        Regex(
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
            r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
            r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        ),
        "isolated",
    ),
    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
)
_PRE: dict[str, Sequence[Any]] = {
    "gpt-2": _GPT2,
    "smollm": _SMOLLM,
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "qwen2": _QWEN2,
    "gpt-4o": _GPT4O,
    "olmo": _GPT2,
    "dbrx": _LLAMA3,
}

_LLAMA3_NAMES = ("llama-bpe", "llama3")

_CONTROL, _USER_DEFINED = 3, 4
_SPECIALS = ("bos_token", "eos_token", "unk_token", "pad_token")
_GPT2_END = "<|endoftext|>"

# What `from_folder` and the chat template beside it are read from.
FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
)


class BPETokenizer:
    """Text to ids and back.

    `encode` reads special tokens in its text only when told to: text of a user stays text. Every id it gives is below
    `vocab_size`; `decode(encode(x))` is `x`. Some vocabularies put a space before every text; what goes on from other
    text gets none from `encode_after`. `begins` says whether plain text starts with the `bos` token.
    """

    def __init__(
        self, tokenizer: Tokenizer, eos: Sequence[int], bos: int | None, pad: int | None, begins: bool = False
    ) -> None:
        self.definition = tokenizer.to_str()
        self._plain, self._special = _bare(self.definition), _bare(self.definition)
        self._plain.encode_special_tokens = True
        unspaced = _unspaced(json.loads(self.definition))
        self._after = self._plain if unspaced is None else _bare(json.dumps(unspaced))
        self._after.encode_special_tokens = True
        # Not the number of tokens: a vocabulary may have holes.
        self.vocab_size = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        self.eos = tuple(eos)
        self.bos = bos
        self.begins = begins
        self.pad = pad
        unknown = getattr(tokenizer.model, "unk_token", None)
        self.unknown = tokenizer.token_to_id(unknown) if unknown else None
        added = {index: token for index, token in tokenizer.get_added_tokens_decoder().items() if token.special}
        self.specials = {token.content: index for index, token in added.items()}
        # Whether a special token takes the blanks before it and after it into itself.
        self.swallows = {index: (token.lstrip, token.rstrip) for index, token in added.items()}

    @property
    def fingerprint(self) -> str:
        """Hex SHA-256 over everything that decides ids."""
        return sha256_text(self.definition, repr((self.eos, self.bos, self.pad, self.begins)))

    def encode(self, text: str, specials: bool = False) -> list[int]:
        """Ids of `text`; with `specials`, the text of a special token becomes that token."""
        tokenizer = self._special if specials else self._plain
        return list(tokenizer.encode(text, add_special_tokens=False).ids)

    def encode_batch(self, texts: Sequence[str], specials: bool = False) -> list[list[int]]:
        """`encode` of each text."""
        tokenizer = self._special if specials else self._plain
        return [list(e.ids) for e in tokenizer.encode_batch(list(texts), add_special_tokens=False)]

    def encode_after(self, text: str) -> list[int]:
        """Ids of `text` where other text stands right before it."""
        return list(self._after.encode(text, add_special_tokens=False).ids)

    def encode_after_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode_after` of each text."""
        return [list(e.ids) for e in self._after.encode_batch(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int], skip_specials: bool = False) -> str:
        """Text of `ids`. Bytes that are no UTF-8 yet become U+FFFD."""
        return str(self._special.decode(list(ids), skip_special_tokens=skip_specials))

    def token(self, index: int) -> str:
        """The token's own text, in the vocabulary's spelling."""
        return str(self._special.id_to_token(index))


def _bare(definition: str) -> Tokenizer:
    tokenizer = Tokenizer.from_str(definition)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _unspaced(definition: Mapping[str, Any]) -> dict[str, Any] | None:
    """A tokenizer's definition without the space it puts before a text; None where it puts none."""

    def without(step: dict[str, Any] | None) -> dict[str, Any] | None:
        if step is None or step["type"] == "Prepend":
            return None
        if step["type"] == "Sequence":
            (key,) = step.keys() & {"normalizers", "pretokenizers"}
            return step | {key: [kept for part in step[key] if (kept := without(part)) is not None]}
        if step["type"] == "Metaspace":
            return step | {"prepend_scheme": "never"}
        return step | {"add_prefix_space": False} if step["type"] == "ByteLevel" else step

    changed = {key: without(definition[key]) for key in ("normalizer", "pre_tokenizer")}
    return None if all(definition[key] == step for key, step in changed.items()) else {**definition, **changed}


def from_folder(folder: Path) -> BPETokenizer:
    """The tokenizer of a model folder: `tokenizer.json`, or else GPT-2's `vocab.json` and `merges.txt`.

    Ids of end and begin come from the files beside it. Raises: ModelError when a file is missing or cannot be read.
    """
    settings = {**_json(folder / "special_tokens_map.json"), **_json(folder / "tokenizer_config.json")}
    whole, parts = folder / "tokenizer.json", [folder / "vocab.json", folder / "merges.txt"]
    if not whole.exists() and not all(part.exists() for part in parts):
        raise ModelError(
            f"{folder} has no tokenizer.json, nor vocab.json with merges.txt; "
            "save the tokenizer with transformers' fast tokenizer first"
        )
    try:
        tokenizer = Tokenizer.from_file(str(whole)) if whole.exists() else _byte_level(folder, settings)
    except Exception as error:  # the library raises bare Exception
        raise ModelError(f"{whole if whole.exists() else parts[0]} cannot be read: {error}") from None
    generation = _json(folder / "generation_config.json")
    model = _json(folder / "config.json")
    if isinstance(size := model.get("vocab_size"), int):
        tokenizer = _embedded(tokenizer, size, folder, settings)

    def named(key: str) -> int | None:
        value = settings.get(f"{key}_token")
        content = value.get("content") if isinstance(value, dict) else value
        index = tokenizer.token_to_id(content) if isinstance(content, str) else None
        return index if index is not None else _first(generation.get(f"{key}_token_id"), model.get(f"{key}_token_id"))

    eos = _ids(generation.get("eos_token_id")) or _ids(model.get("eos_token_id"))
    end = named("eos")
    if end is not None and end not in eos:
        eos = [end, *eos]
    elif end is not None:
        eos = [end, *(index for index in eos if index != end)]
    bos, begins = named("bos"), settings.get("add_bos_token")
    if begins is None:
        begins = tokenizer.encode("", add_special_tokens=True).ids[:1] == [bos]
    return BPETokenizer(tokenizer, eos, bos, named("pad"), bool(begins))


def _embedded(tokenizer: Tokenizer, size: int, folder: Path, settings: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer without added tokens past the model's embeddings: Gemma 3 1B has one of images, of no use to it.

    One that the chat template writes stays, so that the misfit is told.
    """
    if all(index < size for index in tokenizer.get_added_tokens_decoder()):
        return tokenizer
    definition, beside = json.loads(tokenizer.to_str()), folder / "chat_template.jinja"
    template = str(settings.get("chat_template")) + (beside.read_text(encoding="utf-8") if beside.exists() else "")
    definition["added_tokens"] = [
        token for token in definition["added_tokens"] if token["id"] < size or token["content"] in template
    ]
    return Tokenizer.from_str(json.dumps(definition))


def _byte_level(folder: Path, settings: Mapping[str, Any]) -> Tokenizer:
    """GPT-2's tokenizer from its two files, with the special tokens that lie beside them."""
    lines = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")
    merges = [
        (first, second)
        for first, _, second in (line.rstrip("\r").partition(" ") for line in lines)
        if second and first != "#version:"
    ]
    tokenizer = Tokenizer(models.BPE(vocab=_json(folder / "vocab.json"), merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=bool(settings.get("add_prefix_space", False)))
    tokenizer.decoder = decoders.ByteLevel()
    added = sorted(_json(folder / "added_tokens.json").items(), key=lambda item: item[1])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token, _ in added])
    contents = [value.get("content") if isinstance(value, dict) else value for value in map(settings.get, _SPECIALS)]
    # Files of GPT-2's own time name none: its code knew the one there is.
    specials = [token for token in contents if isinstance(token, str)] or [_GPT2_END]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    return tokenizer


def from_gguf(metadata: Mapping[str, Any]) -> Tokenizer:
    """Rebuild a tokenizer from a GGUF file's `tokenizer.ggml.*` metadata: byte-level BPE, or SentencePiece's pieces.

    Raises: ModelError for a tokenizer model or pre-tokenizer that is not known here.
    """
    kind, pre = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre")
    if kind == "llama":
        return from_pieces(metadata)
    if kind != "gpt2":
        raise ModelError(f"tokenizer model {kind!r} of a GGUF file cannot be rebuilt; use the model's folder")
    if pre not in _PRE:
        known = ", ".join(sorted(_PRE))
        raise ModelError(f"pre-tokenizer {pre!r} of a GGUF file is not known; known: {known}; use the model's folder")
    try:
        tokens, types, pairs = (metadata[f"tokenizer.ggml.{key}"] for key in ("tokens", "token_type", "merges"))
    except KeyError as error:
        raise ModelError(f"the GGUF file lacks the metadata {error.args[0]}; use the model's folder") from None
    merges = [tuple(merge.split(" ", 1)) for merge in pairs]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=pre in _LLAMA3_NAMES))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(list(_PRE[pre]))
    tokenizer.decoder = decoders.ByteLevel()
    added = [
        AddedToken(token, special=kind == _CONTROL, normalized=False)
        for token, kind in zip(tokens, types, strict=True)
        if kind in (_CONTROL, _USER_DEFINED)
    ]
    tokenizer.add_tokens(added)
    return tokenizer


def gguf_token_settings(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The `tokenizer_config.json` that goes with a tokenizer rebuilt from GGUF metadata."""
    tokens = metadata["tokenizer.ggml.tokens"]
    # What llama.cpp takes a file that does not say to mean: Llama's vocabularies, old and new, begin every text.
    begins = metadata["tokenizer.ggml.model"] == "llama" or metadata.get("tokenizer.ggml.pre") in _LLAMA3_NAMES
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "add_bos_token": bool(metadata.get("tokenizer.ggml.add_bos_token", begins)),
    }
    for ours, theirs in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        index = metadata.get(f"tokenizer.ggml.{theirs}_token_id")
        if index is not None:
            settings[f"{ours}_token"] = tokens[int(index)]
    if "tokenizer.chat_template" in metadata:
        settings["chat_template"] = metadata["tokenizer.chat_template"]
    return settings


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ModelError(f"{path} is not valid JSON: {error}") from None
    return value if isinstance(value, dict) else {}


def _ids(value: object) -> list[int]:
    if isinstance(value, int):
        return [value]
    return [int(index) for index in value] if isinstance(value, list) else []


def _first(*values: object) -> int | None:
    return next((ids[0] for value in values if (ids := _ids(value))), None)
