"""A tokenizer gives back the text it was given, keeps a user's text text, and knows when it has changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, processors

from conftest import SPECIALS
from graftwood.data.tokenizers.bpe import BPETokenizer, from_folder, from_gguf, gguf_token_settings
from graftwood.errors import ModelError

# Text as people and attackers write it: anything, with control tokens' own text strewn in.
TEXT = st.lists(st.one_of(st.text(max_size=20), st.sampled_from([*SPECIALS, "<|im_", "end|>", "  ", "\n\n"]))).map(
    "".join
)
quick = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="session")
def tokenizer(tiny_tokenizer: Tokenizer) -> BPETokenizer:
    return BPETokenizer(tiny_tokenizer, eos=[2], bos=1, pad=0)


@quick
@given(text=TEXT)
def test_decode_undoes_encode(tokenizer: BPETokenizer, text: str) -> None:
    for specials in (False, True):
        ids = tokenizer.encode(text, specials)
        assert tokenizer.decode(ids) == text
        assert all(0 <= index < tokenizer.vocab_size for index in ids)


@quick
@given(text=TEXT)
def test_control_tokens_in_text_stay_text_unless_asked(tokenizer: BPETokenizer, text: str) -> None:
    control = set(tokenizer.specials.values())
    assert not control & set(tokenizer.encode(text))
    found = [index for index in tokenizer.encode(text, specials=True) if index in control]
    assert len(found) == sum(text.count(special) for special in SPECIALS)


@quick
@given(texts=st.lists(TEXT, max_size=5))
def test_a_batch_is_each_text_alone(tokenizer: BPETokenizer, texts: list[str]) -> None:
    for specials in (False, True):
        assert tokenizer.encode_batch(texts, specials) == [tokenizer.encode(text, specials) for text in texts]


def test_decode_of_half_a_character_and_without_specials(tokenizer: BPETokenizer) -> None:
    ids = tokenizer.encode("é")
    assert tokenizer.decode(ids[:-1]) == "�"
    assert tokenizer.decode([1, *tokenizer.encode("the"), 2], skip_specials=True) == "the"
    assert tokenizer.decode([1, *tokenizer.encode("the"), 2]) == "<|im_start|>the<|im_end|>"
    assert tokenizer.token(2) == "<|im_end|>"


def test_truncation_and_padding_of_the_file_are_not_applied(tiny_tokenizer: Tokenizer) -> None:
    cut = Tokenizer.from_str(tiny_tokenizer.to_str())
    cut.enable_truncation(3)
    cut.enable_padding(length=10, pad_id=0)
    text = "a text that is longer than three tokens"
    assert BPETokenizer(cut, [2], 1, 0).encode(text) == tiny_tokenizer.encode(text).ids


def test_ids_stay_below_the_vocabulary_size_when_it_has_holes() -> None:
    holed = Tokenizer(models.BPE(vocab={"a": 0, "b": 7}, merges=[]))
    tokenizer = BPETokenizer(holed, [7], None, None)
    assert tokenizer.encode("ab") == [0, 7]
    assert tokenizer.vocab_size == 8


def test_the_fingerprint_changes_when_anything_that_decides_ids_does(tiny_tokenizer: Tokenizer) -> None:
    def changed(edit: Callable[[dict[str, Any]], object]) -> Tokenizer:
        definition = json.loads(tiny_tokenizer.to_str())
        edit(definition)
        return Tokenizer.from_str(json.dumps(definition))

    def swap_merges(definition: dict[str, Any]) -> None:
        merges = definition["model"]["merges"]
        merges[0], merges[1] = merges[1], merges[0]

    def one_token_more(definition: dict[str, Any]) -> None:
        definition["model"]["vocab"]["brandnew"] = 999

    def no_digit_split(definition: dict[str, Any]) -> None:
        definition["pre_tokenizer"] = definition["pre_tokenizer"]["pretokenizers"][1]

    def not_special(definition: dict[str, Any]) -> None:
        definition["added_tokens"][2]["special"] = False

    same = {
        BPETokenizer(t, [2], 1, 0).fingerprint for t in (tiny_tokenizer, Tokenizer.from_str(tiny_tokenizer.to_str()))
    }
    others = [BPETokenizer(changed(e), [2], 1, 0) for e in (swap_merges, one_token_more, no_digit_split, not_special)]
    others += [
        BPETokenizer(tiny_tokenizer, [2, 0], 1, 0),
        BPETokenizer(tiny_tokenizer, [2], None, 0),
        BPETokenizer(tiny_tokenizer, [2], 1, None),
        BPETokenizer(tiny_tokenizer, [2], 1, 0, begins=True),
    ]
    assert len(same) == 1
    assert len(same | {other.fingerprint for other in others}) == 1 + len(others)


def write(folder: Path, **files: dict[str, Any]) -> Path:
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("files", "eos", "bos", "pad", "begins"),
    [
        ({}, (), None, None, False),
        ({"config": {"eos_token_id": 2, "bos_token_id": 1}}, (2,), 1, None, False),
        ({"config": {"eos_token_id": 2}, "generation_config": {"eos_token_id": [0, 2]}}, (0, 2), None, None, False),
        (
            {
                "tokenizer_config": {"eos_token": {"content": "<|im_end|>"}, "pad_token": "<|endoftext|>"},
                "generation_config": {"eos_token_id": [0, 2]},
            },
            (2, 0),
            None,
            0,
            False,
        ),
        ({"tokenizer_config": {"eos_token": "<|im_end|>"}, "config": {"eos_token_id": 0}}, (2, 0), None, None, False),
        ({"tokenizer_config": {"bos_token": "<|im_start|>", "add_bos_token": True}}, (), 1, None, True),
        ({"tokenizer_config": {"bos_token": "<|im_start|>", "add_bos_token": None}}, (), 1, None, False),
        (
            {"tokenizer_config": {"bos_token": "not in the vocabulary"}, "config": {"bos_token_id": 1}},
            (),
            1,
            None,
            False,
        ),
    ],
)
def test_end_and_begin_come_from_the_files_beside_it(
    files: dict[str, Any],
    eos: tuple[int, ...],
    bos: int | None,
    pad: int | None,
    begins: bool,
    tmp_path: Path,
    tiny_tokenizer: Tokenizer,
) -> None:
    tiny_tokenizer.save(str(tmp_path / "tokenizer.json"))
    tokenizer = from_folder(write(tmp_path, **files))
    assert (tokenizer.eos, tokenizer.bos, tokenizer.pad, tokenizer.begins) == (eos, bos, pad, begins)


@pytest.mark.parametrize(("single", "begins"), [("<|im_start|> $A", True), ("$A <|im_end|>", False), ("$A", False)])
def test_a_post_processor_says_whether_text_begins_with_bos(
    single: str, begins: bool, tmp_path: Path, tiny_tokenizer: Tokenizer
) -> None:
    tokenizer = Tokenizer.from_str(tiny_tokenizer.to_str())
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[("<|im_start|>", 1), ("<|im_end|>", 2)]
    )
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    write(tmp_path, tokenizer_config={"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"})
    loaded = from_folder(tmp_path)
    assert loaded.begins == begins
    assert loaded.encode("the") == tiny_tokenizer.encode("the").ids


def test_a_missing_or_damaged_file_is_one_line(tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    with pytest.raises(ModelError, match=r"has no tokenizer\.json"):
        from_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ModelError, match=r"tokenizer\.json cannot be read"):
        from_folder(tmp_path)
    tiny_tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "generation_config.json").write_text("{", encoding="utf-8")
    with pytest.raises(ModelError, match=r"generation_config\.json is not valid JSON"):
        from_folder(tmp_path)


def gguf_metadata(tokenizer: Tokenizer, pre: str) -> dict[str, Any]:
    model = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token in SPECIALS else 1 for token in tokens],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in model["merges"]],
        "tokenizer.ggml.eos_token_id": 2,
    }


@pytest.fixture(scope="session")
def rebuilt(tiny_tokenizer: Tokenizer) -> BPETokenizer:
    return BPETokenizer(from_gguf(gguf_metadata(tiny_tokenizer, "smollm")), [2], 1, 0)


@quick
@given(text=TEXT)
def test_a_gguf_rebuild_gives_the_same_ids(tokenizer: BPETokenizer, rebuilt: BPETokenizer, text: str) -> None:
    for specials in (False, True):
        assert rebuilt.encode(text, specials) == tokenizer.encode(text, specials)


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "llama-bpe", "llama3"])
def test_every_known_pre_tokenizer_gives_text_back(pre: str, tiny_tokenizer: Tokenizer) -> None:
    rebuilt = BPETokenizer(from_gguf(gguf_metadata(tiny_tokenizer, pre)), [2], None, None)
    for text in ("In 2024, they're\r\n\r\n\tdone…   right? 汉字 🙂‍↔️", " x", "x ", "\n", ""):
        assert rebuilt.decode(rebuilt.encode(text)) == text


def test_user_defined_tokens_are_read_and_are_not_control_tokens(tiny_tokenizer: Tokenizer) -> None:
    metadata = gguf_metadata(tiny_tokenizer, "smollm")
    metadata["tokenizer.ggml.tokens"] = [*metadata["tokenizer.ggml.tokens"], "<tool>"]
    metadata["tokenizer.ggml.token_type"] = [*metadata["tokenizer.ggml.token_type"], 4]
    rebuilt = from_gguf(metadata)
    assert rebuilt.get_added_tokens_decoder()[rebuilt.token_to_id("<tool>")] == AddedToken("<tool>", normalized=False)
    tokenizer = BPETokenizer(rebuilt, [2], None, None)
    assert "<tool>" not in tokenizer.specials
    assert tokenizer.encode("a<tool>b")[1] == tokenizer.vocab_size - 1


def test_gguf_settings_name_tokens_by_their_text(tiny_tokenizer: Tokenizer) -> None:
    settings = gguf_token_settings(gguf_metadata(tiny_tokenizer, "smollm") | {"tokenizer.chat_template": "x"})
    assert settings["eos_token"] == "<|im_end|>"
    assert settings["chat_template"] == "x"
    assert "bos_token" not in settings
    assert settings["add_bos_token"] is False


@pytest.mark.parametrize(("pre", "given", "begins"), [("llama-bpe", None, True), ("llama-bpe", False, False)])
def test_llama_3_begins_every_text_unless_its_file_says_otherwise(
    tiny_tokenizer: Tokenizer, pre: str, given: bool | None, begins: bool
) -> None:
    metadata = gguf_metadata(tiny_tokenizer, pre) | ({} if given is None else {"tokenizer.ggml.add_bos_token": given})
    assert gguf_token_settings(metadata)["add_bos_token"] is begins


def test_an_added_token_without_an_embedding_is_left_out_unless_the_template_writes_it(
    tmp_path: Path, tiny_tokenizer: Tokenizer
) -> None:
    size = tiny_tokenizer.get_vocab_size()
    more = Tokenizer.from_str(tiny_tokenizer.to_str())
    more.add_special_tokens(["<image>"])
    more.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": size}), encoding="utf-8")
    opened = from_folder(tmp_path)
    assert opened.vocab_size == size
    assert "<image>" not in opened.specials
    assert max(opened.encode("a<image>", specials=True)) < size
    (tmp_path / "chat_template.jinja").write_text("<image>", encoding="utf-8")
    assert from_folder(tmp_path).vocab_size == size + 1
