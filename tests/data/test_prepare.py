"""Preparing a corpus: nothing lost, nothing twice, the same shards however often it is stopped, damage found."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from graftwood.corpora import prepare_corpus, train_tokenizer
from graftwood.data import prepare
from graftwood.data.corpus import ARRAYS, SHARDS, TOKENIZER, TRAIN, VALID, Corpus, open_corpus, verify
from graftwood.data.tokenizers import train as new
from graftwood.data.tokenizers.bpe import from_folder
from graftwood.errors import ConfigError, DataError, StorageError
from graftwood.files import sha256_file
from graftwood.progress import Display

QUIET = Display(quiet=True)


def sentences(count: int, seed: int = 0) -> list[str]:
    generator = random.Random(seed)
    words = ["river", "stone", "light", "under", "garden", "seven", "walks", "and", "the", "quiet", "house"]
    return [" ".join(generator.choices(words, k=generator.randint(5, 40))) for _ in range(count)]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A folder of rows, two text files and something that is no text."""
    folder = tmp_path / "text"
    folder.mkdir()
    rows = [*sentences(60), sentences(60)[3].upper()]
    (folder / "rows.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows), encoding="utf-8")
    (folder / "plain.txt").write_text(sentences(1, seed=7)[0], encoding="utf-8")
    (folder / "more.txt").write_text(sentences(1, seed=8)[0], encoding="utf-8")
    (folder / "picture.png").write_bytes(b"\x89PNG\0\0")
    return folder


def made(text: Path, out: Path, **options: object) -> Corpus:
    given: dict[str, object] = {"tokenizer": "bytes", "workers": 1, "shard_bytes": 1500, **options}
    return prepare_corpus([str(text)], out, QUIET, **given)  # type: ignore[arg-type]


def documents(corpus: Corpus, split: str) -> list[str]:
    """Every document of a split as text, special tokens off."""
    tokenizer = from_folder(corpus.folder / TOKENIZER)
    stream = corpus.stream(split)
    starts = [0, *stream.ends[:-1].tolist()]
    return [
        tokenizer.decode(stream[start:end].tolist(), skip_specials=True)
        for start, end in zip(starts, stream.ends.tolist(), strict=True)
    ]


def sums(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): sha256_file(p) for p in sorted(folder.rglob("*")) if p.is_file()}


def test_every_document_is_in_one_split_once(text: Path, tmp_path: Path) -> None:
    corpus = made(text, tmp_path / "corpus")
    wanted = [*sentences(60), *sentences(1, seed=7), *sentences(1, seed=8)]
    found = {split: documents(corpus, split) for split in (TRAIN, VALID)}
    assert sorted(found[TRAIN] + found[VALID]) == sorted(wanted)
    assert corpus.documents == {TRAIN: 56, VALID: 6}
    assert corpus.removed == {"exact": 1, "near": 0}
    assert corpus.skipped == 1
    assert corpus.bytes == {split: sum(len(part.encode()) for part in found[split]) for split in found}
    assert len(corpus.pieces) > 3
    left_out = [json.loads(line) for line in (corpus.folder / "left_out.jsonl").read_text("utf-8").splitlines()]
    assert [line.get("removed", line.get("place")) for line in left_out] == [
        f"{text / 'rows.jsonl'}:61",
        str(text / "picture.png"),
    ]
    verify(corpus)


def test_a_document_is_encoded_as_a_row_is_for_tuning(text: Path, tmp_path: Path) -> None:
    corpus = made(text, tmp_path / "corpus")
    tokenizer, stream = from_folder(corpus.folder / TOKENIZER), corpus.stream(TRAIN)
    first = stream[0 : int(stream.ends[0])].tolist()
    assert (first[0], first[-1]) == (tokenizer.bos, tokenizer.eos[0])
    assert stream.place(0) == f"{text / 'more.txt'}:1"


def test_a_few_documents_are_cut_and_many_are_chosen_by_their_text(text: Path, tmp_path: Path) -> None:
    one = tmp_path / "one.txt"
    one.write_text("".join(chr(97 + n % 26) for n in range(1000)), encoding="utf-8")
    corpus = made(one, tmp_path / "corpus", held_out=0.1)
    assert [documents(corpus, split) for split in (TRAIN, VALID)] == [
        [one.read_text("utf-8")[:900]],
        [one.read_text("utf-8")[900:]],
    ]
    several = [documents(made(text, tmp_path / str(seed), seed=seed), VALID) for seed in (0, 0, 1)]
    assert several[0] == several[1] != several[2]
    assert made(one, tmp_path / "all", held_out=0.0).tokens[VALID] == 0


def sized(sizes: list[int]) -> prepare.Survey:
    """Different documents of so many bytes."""
    count = len(sizes)
    digests = np.random.default_rng(0).integers(0, 2**63, (count, 2), dtype=np.uint64)
    table = np.array([sizes, sizes], dtype=np.int64).T
    return prepare.Survey(digests, np.empty((0, 128), np.uint32), table, np.zeros((count, 3), np.int64), ())


def test_a_document_that_is_most_of_the_text_is_never_held_out() -> None:
    found = sized([1_000_000, *[1000] * 29])
    for seed in range(30):
        choice = prepare.choose(prepare.Recipe(("a",), removal="none", seed=seed), found)
        assert choice.fate[0] == 0
        assert choice.fate.sum() == 3


def test_of_documents_too_large_to_be_held_out_whole_the_ends_are() -> None:
    choice = prepare.choose(prepare.Recipe(("a",), removal="none"), sized([20_000_000] * 25))
    assert not choice.fate.any()
    assert 1 - choice.keep == pytest.approx(prepare.MAX_HELD_OUT_BYTES / 500e6)
    assert "none is small enough" in choice.rule


@pytest.mark.parametrize("workers", [1, 2])
def test_stopped_and_given_again_it_makes_the_same_corpus(workers: int, text: Path, tmp_path: Path) -> None:
    whole = made(text, tmp_path / "whole")
    out = tmp_path / "stopped"
    with pytest.raises(StorageError, match="cannot write"), full_disk_in(out, at_shard=2):
        made(text, out)
    done = [path.name for path in (out / SHARDS).iterdir() if not path.name.startswith(".")]
    assert 0 < len(done) < len(whole.pieces)
    before = {name: (out / SHARDS / name).stat().st_mtime_ns for name in done}
    with pytest.raises(DataError, match="its preparation has not finished"):
        open_corpus(out)
    (out / SHARDS / ".00003.0badcafe.part" / TRAIN).mkdir(parents=True)  # as a kill would leave it
    again = made(text, out, workers=workers)
    assert {name: (out / SHARDS / name).stat().st_mtime_ns for name in done} == before
    assert sums(out) == sums(whole.folder)
    assert made(text, out) == again, "a finished corpus is found"


class full_disk_in:
    """The disk refuses what is written after some shards are there."""

    def __init__(self, out: Path, at_shard: int) -> None:
        self.out, self.left = out, at_shard

    def __enter__(self) -> None:
        self.real: Callable[..., None] = np.save
        self.limit = resource.getrlimit(resource.RLIMIT_FSIZE)

        def save(path: Path, array: np.ndarray) -> None:
            if str(path).endswith(ARRAYS[0]):
                self.left -= 1
                if self.left < 0:
                    resource.setrlimit(resource.RLIMIT_FSIZE, (64, self.limit[1]))
            self.real(path, array)

        prepare.np.save = save  # type: ignore[assignment]

    def __exit__(self, *error: object) -> None:
        prepare.np.save = self.real  # type: ignore[assignment]
        resource.setrlimit(resource.RLIMIT_FSIZE, self.limit)


def test_a_folder_of_something_else_is_left_alone(text: Path, tmp_path: Path) -> None:
    made(text, tmp_path / "corpus")
    with pytest.raises(ConfigError, match="a corpus made from other held_out; give another folder"):
        made(text, tmp_path / "corpus", held_out=0.2)
    with pytest.raises(ConfigError, match="a corpus made from other tokenizer"):
        made(text, tmp_path / "corpus", tokenizer="chars")
    os.utime(text / "plain.txt", ns=(1, 1))
    with pytest.raises(ConfigError, match="a corpus made from other files"):
        made(text, tmp_path / "corpus")
    with pytest.raises(ConfigError, match="is not empty and holds no corpus"):
        made(text, text)


@pytest.mark.parametrize("array", ARRAYS)
@pytest.mark.parametrize("harm", ["flipped", "cut short", "gone"])
def test_damage_is_found_and_named(array: str, harm: str, text: Path, tmp_path: Path) -> None:
    corpus = made(text, tmp_path / "corpus")
    path = corpus.folder / SHARDS / "00001" / TRAIN / array
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    if harm == "gone":
        path.unlink()
    else:
        path.write_bytes(bytes(content) if harm == "flipped" else bytes(content[:-3]))
    with pytest.raises(DataError, match=f"00001/{TRAIN}/{array} is {'missing' if harm == 'gone' else 'damaged'}"):
        verify(corpus)
    before = sums(corpus.folder)
    shutil.rmtree(corpus.folder / SHARDS / "00001")
    with pytest.raises(DataError, match="00001 is missing or damaged"):
        verify(corpus)
    mended = made(text, corpus.folder)
    verify(mended)
    assert sums(mended.folder).keys() >= before.keys()


def test_a_shard_may_have_nothing_left(text: Path, tmp_path: Path) -> None:
    more = tmp_path / "again.jsonl"
    more.write_text((text / "rows.jsonl").read_text(encoding="utf-8"), encoding="utf-8")
    corpus = prepare_corpus([str(text), str(more)], tmp_path / "corpus", QUIET, "bytes", workers=1, shard_bytes=1500)
    assert corpus.removed["exact"] == 62
    verify(corpus)
    assert sum(corpus.documents.values()) == 62


def test_no_text_at_all_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\0\0")
    (tmp_path / "empty.txt").write_text("  \n", encoding="utf-8")
    with pytest.raises(DataError, match=r"there is no text in .*: .*picture\.png is binary") as caught:
        made(tmp_path, tmp_path / "corpus")
    assert "\n" not in str(caught.value)


def test_characters_the_tokenizer_lacks_are_counted(text: Path, tmp_path: Path) -> None:
    new.save(new.train("chars", ["abc "], 0), tmp_path / "tokenizer")
    corpus = made(text, tmp_path / "corpus", tokenizer=str(tmp_path / "tokenizer"))
    assert corpus.unknown > 1000
    assert corpus.vocab_size == 8


def test_a_tokenizer_is_measured_on_text_it_was_not_made_from(text: Path, tmp_path: Path) -> None:
    told = train_tokenizer([str(text)], tmp_path / "bpe", QUIET, "bpe", 400)
    assert told["held_out_bytes_a_token"] > 2
    assert told["vocab_size"] <= 400
    assert from_folder(tmp_path / "bpe").vocab_size == told["vocab_size"]
    assert train_tokenizer([str(text)], tmp_path / "b", QUIET, "bytes", None)["held_out_bytes_a_token"] == 1.0
    with pytest.raises(ConfigError, match="is not empty"):
        train_tokenizer([str(text)], tmp_path / "bpe", QUIET, "bpe", 400)


def test_a_corpus_below_its_text_is_found_again(text: Path) -> None:
    first = made(text, text / "corpus")
    assert made(text, text / "corpus") == first
