"""New tokenizers: ids and back, in range, and as transformers reads them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graftwood.data.rows import Turn
from graftwood.data.templates import from_folder as read_template
from graftwood.data.tokenizers import train as new
from graftwood.data.tokenizers.bpe import BPETokenizer, from_folder
from graftwood.errors import ConfigError, DataError

TEXTS = ["To be, or not to be: that is the question.\n", "Ob's edler im Gemüt, 3 + 4 = 7\t…"] * 3


@pytest.fixture(scope="module", params=new.KINDS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, BPETokenizer]:
    folder = tmp_path_factory.mktemp(request.param) / "tokenizer"
    return request.param, folder, new.save(new.train(request.param, TEXTS, 300), folder)


def test_text_comes_back(made: tuple[str, Path, BPETokenizer]) -> None:
    _, _, tokenizer = made
    for text in (*TEXTS, "to be\n\n  to be", "<|endoftext|> is text", ""):
        known = "".join(c for c in text if made[0] != "chars" or c in set("".join(TEXTS)))
        ids = tokenizer.encode(known)
        assert tokenizer.decode(ids) == known
        assert all(0 <= index < tokenizer.vocab_size for index in ids)
        assert not set(ids) & set(tokenizer.specials.values())


@given(st.text())
def test_bytes_take_any_text(text: str) -> None:
    tokenizer = BPETokenizer(new.train("bytes", (), 259), (0,), 0, 0)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert len(ids) == len(text.encode())


def test_an_unknown_character_is_one_token(made: tuple[str, Path, BPETokenizer]) -> None:
    kind, _, tokenizer = made
    if kind == "chars":
        assert tokenizer.encode("be\u4e2dbe")[2] == tokenizer.unknown
    else:
        assert tokenizer.unknown is None


def test_special_tokens_and_template_stand_in_the_folder(made: tuple[str, Path, BPETokenizer]) -> None:
    _, folder, tokenizer = made
    assert tokenizer.token(tokenizer.eos[0]) == new.END
    assert [tokenizer.token(index) for index in tokenizer.eos] == [new.END, new.TURN_END]
    assert (tokenizer.bos, tokenizer.begins) == (tokenizer.eos[0], True)
    assert from_folder(folder).fingerprint == tokenizer.fingerprint
    turns = [Turn("user", "be", False), Turn("assistant", "to be", True)]
    pieces = read_template(folder, tokenizer).pieces(turns)
    answer = [index for piece in pieces if piece.answer for index in piece.ids]
    assert tokenizer.decode(answer) == "to be" + new.TURN_END


def test_transformers_reads_the_same_ids(made: tuple[str, Path, BPETokenizer]) -> None:
    transformers = pytest.importorskip("transformers", reason="needs the extra `peers`")
    _, folder, tokenizer = made
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
        assert theirs.encode(text, add_special_tokens=False) == tokenizer.encode(text)
        assert theirs.encode(text) == [tokenizer.bos, *tokenizer.encode(text)]
        assert theirs.decode(tokenizer.encode(text)) == text
    assert theirs.eos_token == new.END


def test_what_cannot_be_made_is_said() -> None:
    with pytest.raises(ConfigError, match="unknown kind of tokenizer 'word'"):
        new.train("word", TEXTS, 300)
    with pytest.raises(ConfigError, match="a vocabulary of 100 is too small"):
        new.train("bpe", TEXTS, 100)
    for kind in ("bpe", "chars"):
        with pytest.raises(DataError, match="there is no text"):
            new.train(kind, (), 300)


def test_the_vocabulary_grows_with_the_text() -> None:
    assert [new.usual_size(size) for size in (1, 10**6, 10**8, 10**12)] == [512, 1024, 16_384, 32_768]
