"""New tokenizers: byte-level BPE, bytes, or characters, all written as a `tokenizer.json` that anyone can load.

The special tokens and the chat template of every new model are these, and only here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from graftwood.data.tokenizers.bpe import BPETokenizer, from_folder
from graftwood.errors import ConfigError, DataError, unknown
from graftwood.files import atomic_folder, storage

END, TURN, TURN_END, UNKNOWN = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|unknown|>"
SPECIALS = (END, TURN, TURN_END)
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
KINDS = ("bpe", "bytes", "chars")
SMALLEST = 256 + len(SPECIALS)


def train(kind: str, texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A tokenizer of this kind; `vocab_size` is for `bpe` alone.

    Raises: ConfigError for another kind or a vocabulary too small for every byte, DataError where there is no text.
    """
    if kind not in KINDS:
        raise ConfigError(unknown("kind of tokenizer", kind, KINDS))
    if kind == "chars":
        tokenizer = _chars(texts)
    else:
        if vocab_size < SMALLEST:
            raise ConfigError(f"a vocabulary of {vocab_size} is too small: 256 bytes and special tokens are {SMALLEST}")
        tokenizer = _bytes() if kind == "bytes" else _bpe(texts, vocab_size)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{END} $A", pair=f"{END} $A $B", special_tokens=[(END, tokenizer.token_to_id(END))]
    )
    return tokenizer


def _bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE over GPT-2's words with digits apart. Source: Radford et al. 2019, section 2.2."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=_added(SPECIALS),
        initial_alphabet=_alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_some(texts), trainer)
    return tokenizer


def _bytes() -> Tokenizer:
    names = [*SPECIALS, *_alphabet()]
    tokenizer = Tokenizer(models.BPE(vocab={name: index for index, name in enumerate(names)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(_added(SPECIALS))
    return tokenizer


def _chars(texts: Iterable[str]) -> Tokenizer:
    characters: set[str] = set()
    for text in _some(texts):
        characters.update(text)
    specials = (*SPECIALS, UNKNOWN)
    vocabulary = {name: index for index, name in enumerate((*specials, *sorted(characters)))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token=UNKNOWN))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(_added(specials))
    return tokenizer


def _some(texts: Iterable[str]) -> Iterator[str]:
    """The texts. Raises: DataError where there is none."""
    empty = True
    for text in texts:
        empty = False
        yield text
    if empty:
        raise DataError("there is no text to make a tokenizer from")


def _alphabet() -> list[str]:
    return sorted(pre_tokenizers.ByteLevel.alphabet())


def _added(tokens: Iterable[str]) -> list[AddedToken]:
    return [AddedToken(token, special=True, normalized=False) for token in tokens]


def usual_size(text_bytes: int) -> int:
    """A vocabulary for a corpus: twice the root of its bytes to the next power of two, 512 to 32,768.

    The vocabulary then grows as the number of distinct words does (Heaps' law, exponent about one half).
    """
    return int(min(32_768, max(512, 1 << round(2 * text_bytes**0.5).bit_length() - 1)))


def save(tokenizer: Tokenizer, folder: Path) -> BPETokenizer:
    """Write a tokenizer folder and read it back."""
    with storage(f"write {folder}"), atomic_folder(folder) as work:
        tokenizer.save(str(work / "tokenizer.json"))
        ids = {name: tokenizer.token_to_id(name) for name in SPECIALS}
        _write(work / "tokenizer_config.json", _settings(tokenizer))
        _write(
            work / "generation_config.json",
            {"bos_token_id": ids[END], "eos_token_id": [ids[END], ids[TURN_END]], "pad_token_id": ids[END]},
        )
    return from_folder(folder)


def _settings(tokenizer: Tokenizer) -> dict[str, Any]:
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END,
        "eos_token": END,
        "pad_token": END,
        "add_bos_token": True,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    return settings | ({"unk_token": UNKNOWN} if tokenizer.token_to_id(UNKNOWN) is not None else {})


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False), encoding="utf-8")
