"""Byte-level BPE as GPT-2 and GPT-NeoX ship it gives transformers' own ids, from two files or from one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from graftwood.data.tokenizers.bpe import from_folder
from graftwood.errors import ModelError

END = "<|endoftext|>"
TEXTS = (
    "The quick brown fox, it's the dog's 2024.",
    "  two  spaces\n\n\tand a tab\r\n",
    "naïve façade Ωmega 日本語 🙂👩‍👩‍👧",
    "don't they've I'LL we're",
    "a<|endoftext|>b <|endoftext|>",
    "\x00\x07 control",
    " ",
    "",
    "             deep indent",
)


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    text = "the quick brown fox jumps over the lazy dog and it's not the dog's day, naïve as they've been"
    tokenizer.train_from_iterator([text] * 4, trainer)
    tokenizer.add_special_tokens([AddedToken(END, special=True, normalized=False)])
    return tokenizer


def two_files(trained: Tokenizer, folder: Path, **settings: object) -> Path:
    """`vocab.json`, with the end token in it as GPT-2's has, and `merges.txt`."""
    trained.model.save(str(folder))
    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    (folder / "vocab.json").write_text(json.dumps(vocabulary | {END: len(vocabulary)}), encoding="utf-8")
    if settings:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def same_ids(folder: Path, theirs: object) -> None:
    ours = from_folder(folder)
    for text in TEXTS:
        ids = ours.encode(text, specials=True)
        assert ids == theirs(text, add_special_tokens=False)["input_ids"], text  # type: ignore[operator]
        assert ours.decode(ids) == text
    assert ours.specials == {END: ours.vocab_size - 1}


@pytest.mark.parametrize("settings", [{}, {"add_prefix_space": False, "eos_token": END}], ids=["bare", "with settings"])
def test_gpt2_from_vocabulary_and_merges(settings: dict[str, object], trained: Tokenizer, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="needs the extra `peers`")
    folder = two_files(trained, tmp_path, **settings)
    same_ids(folder, transformers.GPT2TokenizerFast.from_pretrained(folder))


def test_neox_from_one_file(trained: Tokenizer, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="needs the extra `peers`")
    trained.save(str(tmp_path / "tokenizer.json"))
    settings = {"tokenizer_class": "GPTNeoXTokenizerFast", "eos_token": END, "bos_token": END, "unk_token": END}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    same_ids(tmp_path, transformers.AutoTokenizer.from_pretrained(tmp_path))


def test_two_files_and_one_give_the_same(trained: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "two").mkdir()
    (tmp_path / "one").mkdir()
    two = from_folder(two_files(trained, tmp_path / "two"))
    trained.save(str(tmp_path / "one" / "tokenizer.json"))
    one = from_folder(tmp_path / "one")
    for text in TEXTS:
        for specials in (False, True):
            assert two.encode(text, specials) == one.encode(text, specials)


def test_added_tokens_keep_their_ids(trained: Tokenizer, tmp_path: Path) -> None:
    folder = two_files(trained, tmp_path)
    size = from_folder(folder).vocab_size
    (folder / "added_tokens.json").write_text(json.dumps({"<b>": size + 1, "<a>": size}), encoding="utf-8")
    assert from_folder(folder).encode("<b><a>", specials=True) == [size + 1, size]


def test_one_file_of_the_two_is_not_enough(trained: Tokenizer, tmp_path: Path) -> None:
    (two_files(trained, tmp_path) / "merges.txt").unlink()
    with pytest.raises(ModelError, match=r"no tokenizer\.json, nor vocab\.json with merges\.txt"):
        from_folder(tmp_path)


def test_damaged_files_are_one_line(trained: Tokenizer, tmp_path: Path) -> None:
    folder = two_files(trained, tmp_path)
    (folder / "merges.txt").write_text("no-such-token at-all\n", encoding="utf-8")
    with pytest.raises(ModelError, match=r"vocab\.json cannot be read") as caught:
        from_folder(folder)
    assert "\n" not in str(caught.value)
