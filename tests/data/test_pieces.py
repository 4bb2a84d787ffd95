"""SentencePiece vocabularies of GGUF files: ids and text as llama.cpp and transformers have them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

import tiny
from graftwood.base import Base
from graftwood.data.encode import Encoder
from graftwood.data.rows import Row, Turn
from graftwood.data.templates import PLAIN, ChatTemplate
from graftwood.data.tokenizers.bpe import BPETokenizer, from_folder, from_gguf, gguf_token_settings
from graftwood.errors import ModelError
from graftwood.evals.asking import needed, work
from graftwood.evals.lm_eval_model import Verbs
from graftwood.evals.task import Item, Task

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
# Longer pieces out of shorter ones, in an order in which the first pair that can merge is often not the best.
LEARNED = (
    "▁t", "he", "▁the", "in", "er", "▁a", "on", "re", "▁w", "or", "▁wor", "ld", "▁world", "▁▁", "▁▁▁▁", "ing", "▁h",
    "el", "lo", "▁hel", "▁hello", "llo",
    "hello", "00", "12", "123", "23", "▁1", "ab", "bc", "abc", "cd", "abcd", "bcd", "né",
    "▁né", "日本", "\n\n", "▁\n", "aa", "aaa", "aaaa", "▁<", "s>", "<s", "ё", "при", "вет", "ив", "▁при",
)  # fmt: skip
TEXTS = (
    "", " ", "hello world", " hello", "  hello   world    ", "the thing\n\nin the world\n", "\n\n\n", "\t tab\ttab",
    "12300123 1 23", "abcd abcbcd aaaaaaa bcdabc", "né caf\u00e9 cafe\u0301", "日本語 日本", "привет ёж",
    "\U0001f469\u200d\U0001f467 \U0001f642\U0001f3fd ok", "<s>hello</s> <unk> [T]hi[T] ", "a▁b ▁", "<0x41> \x00\x7f",
    "العربية עברית हिन्दी ไทย", "x" * 40, "\u00a0\u200b\u3000wide",
)  # fmt: skip


def metadata(space: bool = True, bytes_too: bool = True) -> dict[str, Any]:
    """A vocabulary with every character of the pieces and some more, the 256 bytes, and what has a meaning."""
    rows = [("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL)]
    if bytes_too:
        rows += [(f"<0x{number:02X}>", 0.0, BYTE) for number in range(256)]
    rows += [(piece, -float(rank), NORMAL) for rank, piece in enumerate(LEARNED)]
    letters = sorted({letter for piece in LEARNED for letter in piece} | set("abcdefghijklmnopqrstuvwxyz<>/é."))
    letters = [letter for letter in letters if letter not in LEARNED]
    rows += [(letter, -1000.0 - rank, NORMAL) for rank, letter in enumerate(letters)]
    rows += [("[T]", -5000.0, USER_DEFINED)]
    tokens, scores, types = (list(column) for column in zip(*rows, strict=True))
    keys = {"model": "llama", "tokens": tokens, "scores": scores, "token_type": types, "add_space_prefix": space}
    ids = {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0}
    return {f"tokenizer.ggml.{key}": value for key, value in (keys | ids).items()}


def written(path: Path, given: dict[str, Any]) -> Path:
    """A GGUF file of the vocabulary alone."""
    from gguf import GGUFWriter

    writer = GGUFWriter(path, "llama")
    for key, value in {"context_length": 64, "embedding_length": 8, "block_count": 1, "feed_forward_length": 8}.items():
        writer.add_uint32(f"llama.{key}", value)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    for key, value in given.items():
        tiny.put_metadata(writer, key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def rebuilt(given: dict[str, Any]) -> BPETokenizer:
    return BPETokenizer(from_gguf(given), [2], 1, None)


@pytest.mark.parametrize("space", [True, False], ids=["space before", "as it is"])
def test_ids_are_those_of_llama_cpp(space: bool, tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    given = metadata(space)
    theirs = llama_cpp.Llama(str(written(tmp_path / "vocab.gguf", given)), vocab_only=True, verbose=False)
    ours = rebuilt(given)
    for text in TEXTS:
        for specials in (False, True):
            expected = theirs.tokenize(text.encode(), add_bos=False, special=specials)
            assert ours.encode(text, specials) == expected, (text, specials)


@pytest.mark.parametrize("space", [True, False], ids=["space before", "as it is"])
def test_text_comes_back(space: bool) -> None:
    """But for a letter that stands for a space, and for the space before what follows a piece of its own."""
    ours = rebuilt(metadata(space))
    for text in TEXTS:
        if "▁" not in text and not (space and "[T]" in text):
            assert ours.decode(ours.encode(text)) == text


@pytest.mark.parametrize("architecture", ["phi3", "llama"])
def test_ids_are_those_of_transformers(architecture: str) -> None:
    """Which, but for `phi3`, puts no space before one that is there, nor after a special token; llama.cpp does."""
    gguf = pytest.importorskip("transformers.integrations.gguf", reason="transformers is not installed")
    given = metadata()
    keys = {"add_prefix_space": "add_space_prefix", "unk_token_id": "unknown_token_id", "tokenizer_type": "model"}
    keys |= {key: key for key in ("tokens", "scores", "token_type", "bos_token_id", "eos_token_id")}
    told = {theirs: given[f"tokenizer.ggml.{key}"] for theirs, key in keys.items()}
    theirs, _ = gguf.convert_gguf_tokenizer(architecture, told)
    ours = rebuilt(given)
    for text in TEXTS:
        if architecture == "phi3" or not text.startswith((" ", "<s>")):
            assert ours.encode(text, specials=True) == theirs.encode(text, add_special_tokens=False).ids, text


def test_without_byte_pieces_the_unknown_piece_stands_for_a_letter() -> None:
    ours = rebuilt(metadata(bytes_too=False))
    assert ours.encode("日本ж語").count(ours.unknown or 0) == 2


def test_a_folder_made_of_it_reads_the_same(tmp_path: Path) -> None:
    given = metadata()
    from_gguf(given).save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(gguf_token_settings(given)), encoding="utf-8")
    opened, ours = from_folder(tmp_path), rebuilt(given)
    assert (opened.bos, opened.eos, opened.unknown, opened.begins) == (1, (2,), 0, True)
    assert [opened.encode(text) for text in TEXTS] == [ours.encode(text) for text in TEXTS]
    assert gguf_token_settings(given | {"tokenizer.ggml.add_bos_token": False})["add_bos_token"] is False


def test_scores_that_are_not_there_are_named() -> None:
    given = metadata()
    scores = given.pop("tokenizer.ggml.scores")
    with pytest.raises(ModelError, match=r"lacks the metadata tokenizer\.ggml\.scores"):
        from_gguf(given)
    with pytest.raises(ModelError, match=f"{len(scores)} pieces, {len(scores) - 1} scores and {len(scores)} types"):
        from_gguf(given | {"tokenizer.ggml.scores": scores[1:]})


PAIRS = (("the hello", " world"), ("12", "3"), ("the", "\n\nin the"), ("日本", "語"), ("hello", " 1 23"), ("a  ", "b"))


@pytest.mark.parametrize("space", [True, False], ids=["space before", "as it is"])
@pytest.mark.parametrize(("before", "text"), PAIRS)
def test_text_after_text_has_no_space_but_its_own(space: bool, before: str, text: str) -> None:
    ours = rebuilt(metadata(space))
    both = [*ours.encode(before), *ours.encode_after(text)]
    assert ours.decode(both) == before + text
    if (before, text) != ("12", "3"):  # which together are a piece
        assert both == ours.encode(before + text)
    assert ours.encode_after_batch([text, before]) == [ours.encode_after(text), ours.encode_after(before)]


@pytest.mark.parametrize(
    ("step", "spaced"),
    [
        (pre_tokenizers.Metaspace(prepend_scheme="always"), "▁"),
        (pre_tokenizers.Metaspace(prepend_scheme="first", split=False), "▁"),
        (pre_tokenizers.Sequence([pre_tokenizers.Digits(), pre_tokenizers.ByteLevel(add_prefix_space=True)]), "Ġ"),
        (pre_tokenizers.ByteLevel(add_prefix_space=False), ""),
    ],
)
def test_the_space_before_a_text_goes_wherever_the_tokenizer_keeps_it(step: Any, spaced: str) -> None:
    bare = Tokenizer(models.BPE(vocab={"▁": 0, "Ġ": 1, "a": 2, "b": 3, "▁a": 4}, merges=[("▁", "a")]))
    bare.pre_tokenizer = step
    ours = BPETokenizer(bare, [0], None, None)
    assert "".join(map(ours.token, ours.encode("ab"))) == f"{spaced}ab"
    assert "".join(map(ours.token, ours.encode_after("ab"))) == "ab"
    if spaced != "▁":
        assert ours.encode_after(" ab") == ours.encode(" ab")


def spaced_base() -> tuple[BPETokenizer, Base]:
    ours = rebuilt(metadata())
    decoder = tiny.decoder(vocab_size=ours.vocab_size)
    return ours, Base("b", "b", Path(), "b", decoder, ours, ChatTemplate(PLAIN, ours, own=False), None)


def test_rows_are_trained_as_their_text_reads() -> None:
    ours, base = spaced_base()
    encoder: Encoder = base.encoder()
    for prompt, completion in (("12", "3"), ("the hello", " world"), ("", "hello world")):
        row = Row("completion" if prompt else "text", prompt=prompt, completion=completion)
        example = encoder.example(row)
        assert ours.decode(example.ids, skip_specials=True) == prompt + completion
        assert list(example.ids) == [*encoder.prompt(row), *encoder.answers(row, [completion])[0], 2]


def test_conversations_are_trained_as_their_text_reads() -> None:
    ours = rebuilt(metadata())
    talk = (Turn("user", "hello", False), Turn("assistant", "world", True))
    llama2 = (
        "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content + ' [/INST]' }}"
        "{% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}"
    )
    after_control = "{% for m in messages %}{{ m.role + bos_token + m.content + eos_token }}{% endfor %}"
    blank_after_control = (
        "{% for m in messages %}{{ m.content + bos_token if m.role == 'user' else ' ' + m.content + eos_token }}"
        "{% endfor %}"
    )
    for source, prompt, answer in (
        (PLAIN, "hello</s> \nAssistant:\n", "world</s>"),
        (llama2, "<s> [INST] hello [/INST]", "▁world▁</s>"),
        (after_control, "</s> assistant<s>", "▁world</s>"),
        (blank_after_control, "hello<s>", "▁world</s>"),
    ):
        template = ChatTemplate(source, ours)
        *_, last = [piece for piece in template.pieces(talk) if piece.answer]
        asked = template.prompt(talk[:1])
        assert "".join(map(ours.token, last.ids)) == answer
        assert ours.decode(asked).endswith(prompt)
        assert template.answers(["world"]) == [list(last.ids[: len(template.answers(["world"])[0])])]
        whole = [index for piece in template.pieces(talk) for index in piece.ids]
        # llama.cpp reads a blank after a control token twice; nobody answers with two.
        assert (whole == ours.encode(template.text(talk), specials=True)) == (source != blank_after_control)


def test_what_is_weighed_is_cut_as_lm_eval_cuts_it() -> None:
    ours, base = spaced_base()
    verbs = Verbs(base)
    for context, ending in (("the hello", " world"), ("in the", " thing"), ("привет", " hello 1")):
        item = Item("a", context, answer=ending)
        task = Task("x", "x", "word", 1, 0.0, "", "", lambda item=item: (item,))  # type: ignore[misc]
        first, second = verbs._pair(context, ending)
        assert (first, second) == (ours.encode(context), ours.encode_after(ending))
        assert work(base, task)[0] == needed(base, task)[0] + 1 == len(first) + len(second)
