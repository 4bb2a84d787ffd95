"""Windows over shards: every token predicted once, documents apart, places that a person can find."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

import tiny
from graftwood.data.corpus import ARRAYS, Stream, Windows
from graftwood.train.loss import token_losses


def stream(folder: Path, *shards: list[list[int]]) -> Stream:
    """Shards of documents, each at line 10 times its number of file 0."""
    paths = []
    for number, documents in enumerate(shards):
        path = folder / str(number)
        path.mkdir(parents=True)
        first = sum(len(shard) for shard in shards[:number])
        arrays = (
            np.array([index for document in documents for index in document], dtype=np.uint16),
            np.cumsum([len(document) for document in documents]),
            np.array([(0, 10 * (first + n)) for n in range(len(documents))]),
        )
        for name, array in zip(ARRAYS, arrays, strict=True):
            np.save(path / name, array)
        paths.append(path)
    return Stream(paths, ["text.txt"])


def numbered(*lengths: int) -> list[list[int]]:
    """Documents of consecutive ids."""
    starts = [sum(lengths[:n]) for n in range(len(lengths))]
    return [list(range(start, start + length)) for start, length in zip(starts, lengths, strict=True)]


def test_a_stream_reads_across_its_shards(tmp_path: Path) -> None:
    documents = numbered(5, 3, 9, 1, 4)
    made = stream(tmp_path, documents[:2], documents[2:3], documents[3:])
    assert len(made) == 22
    for start in range(22):
        for stop in range(start + 1, 23):
            assert made[start:stop].tolist() == list(range(start, stop))
    assert made.ends.tolist() == [5, 8, 17, 18, 22]
    assert [made.place(token) for token in (0, 4, 5, 8, 17, 18, 21)] == [
        f"text.txt:{line}" for line in (0, 0, 10, 20, 30, 40, 40)
    ]


def test_a_corpus_of_many_shards_keeps_no_file_open(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    made = stream(tmp_path, *([document] for document in numbered(*[3] * 40)))
    assert made[0:120].tolist() == list(range(120))
    assert made.place(119) == "text.txt:390"
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("size", [1, 4, 7, 21, 50])
@pytest.mark.parametrize("budget", [1, 8, 1000])
def test_every_token_is_predicted_once_but_the_first_of_a_document(size: int, budget: int, tmp_path: Path) -> None:
    documents = numbered(5, 3, 9, 1, 4)
    rows = Windows(stream(tmp_path, documents[:3], documents[3:]), size, size)
    packs = rows.packs(range(len(rows)), budget)
    assert all(packed.tokens <= max(budget, size) for packed in packs)
    assert sum(packed.tokens for packed in packs) == rows.sizes.sum() == 21
    predicted = [target for packed in packs for target in packed.targets.tolist()]
    firsts = {document[0] for document in documents}
    assert predicted == [token for token in range(22) if token not in firsts]
    for packed in packs:
        assert sum(packed.documents) == packed.tokens
        assert (packed.ids[0, packed.predict] + 1 == packed.targets).all()
        starts = [0, *np.cumsum(packed.documents)[:-1].tolist()]
        heads = packed.ids[0, starts].tolist()
        assert firsts & set(packed.ids[0].tolist()) <= set(heads), "a document begins where one is masked to begin"


def test_a_smaller_stride_gives_the_text_at_other_offsets(tmp_path: Path) -> None:
    rows = Windows(stream(tmp_path, numbered(23)), size=8, stride=3)
    assert [int(packed.ids[0, 0]) for row in range(len(rows)) for packed in rows.packs([row], 8)] == [
        0,
        3,
        6,
        9,
        12,
        15,
    ]
    assert rows.sizes.tolist() == [8, 8, 8, 8, 8, 7]
    assert rows.place(2) == "text.txt:0 (tokens 6 to 14)"
    assert len(Windows(stream(tmp_path / "b", numbered(23)), 8, 8, limit=10)) == 2


def test_rows_of_other_text_or_at_other_places_have_another_fingerprint(tmp_path: Path) -> None:
    made = stream(tmp_path / "a", numbered(5, 3), numbered(9))
    others = [stream(tmp_path / "b", numbered(5, 3), numbered(8)), stream(tmp_path / "c", numbered(4, 4), numbered(9))]
    rows = [Windows(made, 4, 4), Windows(made, 4, 3), Windows(made, 5, 4), Windows(made, 4, 4, limit=6)]
    assert len({one.fingerprint for one in (*rows, *(Windows(other, 4, 4) for other in others))}) == 6
    assert Windows(made, 4, 4).fingerprint == rows[0].fingerprint


def test_a_window_has_the_losses_its_documents_have_alone(tmp_path: Path) -> None:
    decoder = tiny.decoder()
    generator = torch.Generator().manual_seed(0)
    documents = [torch.randint(0, 300, (n,), generator=generator).tolist() for n in (11, 4, 17)]
    (whole,) = Windows(stream(tmp_path / "all", documents), 31, 31).packs([0], 100)
    alone = []
    for number, document in enumerate(documents):
        rows = Windows(stream(tmp_path / str(number), [document]), 64, 64)
        alone.append(token_losses(decoder, rows.packs([0], 100)[0]))
    torch.testing.assert_close(token_losses(decoder, whole), torch.cat(alone), rtol=1e-5, atol=1e-5)


def test_windows_of_one_length_are_computed_as_a_batch_is(tmp_path: Path) -> None:
    decoder = tiny.decoder()
    rows = Windows(stream(tmp_path, numbered(97)), 16, 16)
    together, apart = rows.packs(range(6), 96), rows.packs(range(6), 16)
    assert (len(together), len(apart)) == (1, 6)
    losses = torch.cat([token_losses(decoder, packed) for packed in apart])
    torch.testing.assert_close(token_losses(decoder, together[0]), losses, rtol=1e-5, atol=1e-5)
