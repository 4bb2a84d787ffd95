"""From files to a corpus: read, find what repeats, choose what is held out, encode, write shard by shard.

Every piece of work leaves one folder that is whole or absent, so the same command given again goes on where the last
one ended. Pieces are independent and run in processes of their own.
"""

from __future__ import annotations

import json
import multiprocessing
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from graftwood.data.corpus import ARRAYS, CORPUS, SHARD, SHARDS, TOKENIZER, TRAIN, VALID, Corpus, open_corpus
from graftwood.data.documents import Document, Skipped, Span, read_span, spans
from graftwood.data.duplicates import HASHES, Repeat, digest, find_repeats, removed_lines, signature
from graftwood.data.tokenizers.bpe import BPETokenizer, from_folder
from graftwood.errors import ConfigError, DataError
from graftwood.files import atomic_folder, sha256_file, storage, write_json

SHARD_BYTES = 64_000_000
MAX_HELD_OUT_BYTES = 10_000_000
FEW = 20  # documents; of fewer, each is cut instead of some being held out whole
BEGUN, WORK = "prepare.json", "work"

Removal = Literal["near", "exact", "none"]
Advance = Callable[[int], None]


@dataclass(frozen=True)
class Recipe:
    """What makes a corpus out of files. `removal` says which repeats go."""

    files: tuple[str, ...]
    separator: str | None = None
    removal: Removal = "near"
    held_out: float = 0.1
    seed: int = 0
    shard_bytes: int = SHARD_BYTES

    def __post_init__(self) -> None:
        if not 0 <= self.held_out < 1:
            raise ConfigError(f"the held-out share is {self.held_out:g}; it must be at least 0 and below 1")

    @cached_property
    def pieces(self) -> list[list[Span]]:
        """The work, cut up: once, since the lines of large files are counted for it."""
        return spans([Path(file) for file in self.files], self.shard_bytes)


@dataclass(frozen=True)
class Survey:
    """Every document in order: digest, signature, characters and bytes, (piece, file, line); and what was skipped."""

    digests: NDArray[np.uint64]
    signatures: NDArray[np.uint32]
    sizes: NDArray[np.int64]
    places: NDArray[np.int64]
    skipped: tuple[Skipped, ...]


@dataclass(frozen=True)
class Choice:
    """What becomes of the documents, by number: removed, held out whole, or cut at `keep` of their characters."""

    repeats: tuple[Repeat, ...]
    fate: NDArray[np.int8] = field(repr=False)
    keep: float
    rule: str


_TRAINS, _HELD_OUT, _REMOVED = 0, 1, 2


def begin(folder: Path, recipe: Recipe, tokenizer: str) -> None:
    """Note what is prepared here. Raises: ConfigError when something else was begun in the folder."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file; give a new folder with --out")
    stats = [(file, Path(file).stat()) for file in recipe.files]
    note = asdict(recipe) | {
        "files": [[file, stat.st_size, stat.st_mtime_ns] for file, stat in stats],
        "tokenizer": tokenizer,
    }
    path = folder / BEGUN
    if path.exists():
        there = json.loads(path.read_text(encoding="utf-8"))
        odd = [key for key, value in note.items() if there.get(key) != json.loads(json.dumps(value))]
        if odd:
            raise ConfigError(
                f"{folder} holds a corpus made from other {' and '.join(odd)}; give another folder with --out, or "
                "delete it"
            )
    elif folder.exists() and any(entry.name != WORK for entry in folder.iterdir()):
        raise ConfigError(f"{folder} is not empty and holds no corpus; give a new folder with --out")
    with storage(f"write {folder}"):
        write_json(path, note)


def finished(folder: Path) -> Corpus | None:
    """The corpus when all of it is there."""
    if not (folder / CORPUS).exists():
        return None
    corpus = open_corpus(folder)
    return corpus if all((folder / SHARDS / name).is_dir() for name in corpus.pieces) else None


def survey(folder: Path, recipe: Recipe, workers: int, advance: Advance) -> Survey:
    """Read every document once. Raises: DataError when there is no text."""
    pieces = recipe.pieces
    if not pieces:
        raise DataError(f"there is no text in {_few(recipe.files)}: every file is empty")
    targets = [folder / WORK / f"survey-{number:05d}" for number in range(len(pieces))]
    near = recipe.removal == "near"
    jobs = [
        partial(_survey_piece, piece, recipe.separator, near, target)
        for piece, target in zip(pieces, targets, strict=True)
    ]
    _work(jobs, targets, [sum(s.stop - s.start for s in piece) for piece in pieces], workers, advance)
    numbers = {file: number for number, file in enumerate(recipe.files)}
    parts = [_surveyed(target) for target in targets]
    skipped = [Skipped(**s) for target in targets for s in json.loads((target / "skipped.json").read_text("utf-8"))]
    places = [
        np.stack([np.full(len(part["lines"]), number), _numbered(part["files"], piece, numbers), part["lines"]], axis=1)
        for number, (part, piece) in enumerate(zip(parts, pieces, strict=True))
    ]
    digests, signatures, counted = (
        np.concatenate([part[key] for part in parts]) for key in ("digests", "signatures", "sizes")
    )
    found = Survey(digests, signatures, counted, np.concatenate(places), tuple(skipped))
    if not len(found.digests):
        why = f": {skipped[0].place} {skipped[0].why}" if skipped else ""
        raise DataError(f"there is no text in {_few(recipe.files)}{why}")
    return found


def _surveyed(target: Path) -> dict[str, NDArray[Any]]:
    with np.load(target / "documents.npz") as stored:
        return dict(stored)


def _numbered(files: NDArray[np.int64], piece: list[Span], numbers: dict[str, int]) -> NDArray[np.int64]:
    return np.array([numbers[span.file] for span in piece], dtype=np.int64)[files]


def _survey_piece(piece: list[Span], separator: str | None, near: bool, target: Path) -> None:
    digests, signatures, sizes, files, lines = [], [], [], [], []
    skipped: list[Skipped] = []
    for number, span in enumerate(piece):
        for found in read_span(span, separator):
            if isinstance(found, Skipped):
                skipped.append(found)
                continue
            digests.append(digest(found.text))
            if near:
                signatures.append(signature(found.text))
            sizes.append((len(found.text), len(found.text.encode())))
            files.append(number)
            lines.append(found.line)
    with storage(f"write {target}"), atomic_folder(target) as work:
        np.savez(
            work / "documents.npz",
            digests=np.array(digests, dtype=np.uint64).reshape(-1, 2),
            signatures=np.array(signatures, dtype=np.uint32).reshape(-1, HASHES) if near else np.empty((0, HASHES)),
            sizes=np.array(sizes, dtype=np.int64).reshape(-1, 2),
            files=np.array(files, dtype=np.int64),
            lines=np.array(lines, dtype=np.int64),
        )
        write_json(work / "skipped.json", [asdict(s) for s in skipped])


def choose(recipe: Recipe, found: Survey) -> Choice:
    """Which documents go and which are held out, a function of their content and the seed alone."""
    fate = np.full(len(found.digests), _TRAINS, dtype=np.int8)
    repeats: list[Repeat] = []
    if recipe.removal != "none":
        repeats = find_repeats(found.digests, found.signatures if recipe.removal == "near" else None)
        fate[[repeat.later for repeat in repeats]] = _REMOVED
    kept = np.flatnonzero(fate == _TRAINS)
    total = int(found.sizes[kept, 1].sum())
    share = min(recipe.held_out, MAX_HELD_OUT_BYTES / total)
    if share == 0:
        return Choice(tuple(repeats), fate, 1.0, "nothing is held out")
    mixed = (found.digests[kept, 0] ^ np.uint64(recipe.seed * 0x9E3779B97F4A7C15 % 2**64)) * np.uint64(
        0xD6E8FEB86659FD93
    )
    order = kept[np.argsort(mixed >> np.uint64(11), kind="stable")]
    most = min(2 * recipe.held_out * total, MAX_HELD_OUT_BYTES)
    few = len(kept) < FEW
    chosen = [] if few else _first_within(order, found.sizes[:, 1], max(1, round(share * len(kept))), most)
    if not chosen:
        why = f"there are fewer than {FEW}" if few else "none is small enough to be held out whole"
        return Choice(tuple(repeats), fate, 1 - share, f"the last {share:.2%} of every document is held out: {why}")
    fate[chosen] = _HELD_OUT
    rule = f"{len(chosen):,} of {len(kept):,} documents are held out by hash of their text (seed {recipe.seed})"
    return Choice(tuple(repeats), fate, 1.0, rule)


def _first_within(order: NDArray[np.int64], sizes: NDArray[np.int64], count: int, most: float) -> list[int]:
    """The first documents, at most so many, that together have no more than `most` bytes: a giant is passed over."""
    chosen: list[int] = []
    for number, size in zip(order.tolist(), sizes[order].tolist(), strict=True):
        if size <= most:
            chosen.append(number)
            most -= size
        if len(chosen) == count:
            break
    return chosen


def texts(recipe: Recipe, choice: Choice, split: str, limit: int) -> Iterator[str]:
    """Texts of a split, in order, until `limit` bytes are reached."""
    number = 0
    for piece in recipe.pieces:
        for document in _documents(piece, recipe.separator):
            for name, text, _ in _parts(document.text, int(choice.fate[number]), choice.keep):
                if name == split:
                    yield text
                    limit -= len(text.encode())
            number += 1
            if limit <= 0:
                return


def _documents(piece: list[Span], separator: str | None) -> Iterator[Document]:
    for span in piece:
        for found in read_span(span, separator):
            if isinstance(found, Document):
                yield found


def _parts(text: str, fate: int, keep: float) -> list[tuple[str, str, tuple[bool, bool]]]:
    """(split, text, (begins, ends)) of a document; a cut document ends in what is held out."""
    if fate == _REMOVED:
        return []
    if fate == _HELD_OUT:
        return [(VALID, text, (True, True))]
    cut = int(len(text) * keep)
    if cut >= len(text):
        return [(TRAIN, text, (True, True))]
    return [(TRAIN, text[:cut], (True, False)), (VALID, text[cut:], (False, True))] if cut else []


def write_shards(folder: Path, recipe: Recipe, found: Survey, choice: Choice, workers: int, advance: Advance) -> None:
    """Encode every piece that has not been and write its shard. Raises: StorageError when the disk is full."""
    pieces = recipe.pieces
    if not pieces:
        raise DataError(f"there is no text in {_few(recipe.files)}: every file is empty")
    targets = [folder / SHARDS / f"{number:05d}" for number in range(len(pieces))]
    for left in (folder / SHARDS).glob(".*"):  # what a kill left half-written
        shutil.rmtree(left, ignore_errors=True)
    fates = [choice.fate[found.places[:, 0] == number] for number in range(len(pieces))]
    places = [found.places[found.places[:, 0] == number, 1:] for number in range(len(pieces))]
    jobs = [
        partial(_write_shard, piece, recipe.separator, fate, place, choice.keep, folder / TOKENIZER, target)
        for piece, fate, place, target in zip(pieces, fates, places, targets, strict=True)
    ]
    _work(jobs, targets, [sum(s.stop - s.start for s in piece) for piece in pieces], workers, advance)


def _write_shard(
    piece: list[Span],
    separator: str | None,
    fates: NDArray[np.int8],
    places: NDArray[np.int64],
    keep: float,
    tokenizer_folder: Path,
    target: Path,
) -> None:
    tokenizer = from_folder(tokenizer_folder)
    dtype = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32
    ids: dict[str, list[NDArray[Any]]] = {TRAIN: [], VALID: []}
    owners: dict[str, list[int]] = {TRAIN: [], VALID: []}
    size, unknowns = {TRAIN: 0, VALID: 0}, 0
    for number, document in enumerate(_documents(piece, separator)):
        for split, text, (begins, ends) in _parts(document.text, int(fates[number]), keep):
            encoded = _encoded(tokenizer, text, begins, ends)
            ids[split].append(np.array(encoded, dtype=dtype))
            owners[split].append(number)
            size[split] += len(text.encode())
            unknowns += encoded.count(tokenizer.unknown) if tokenizer.unknown is not None else 0
    told: dict[str, Any] = {"unknown": unknowns}
    with storage(f"write the shard {target}"), atomic_folder(target) as work:
        for split in (part for part in (TRAIN, VALID) if ids[part]):
            (work / split).mkdir()
            arrays = (
                np.concatenate(ids[split]),
                np.cumsum([len(part) for part in ids[split]], dtype=np.int64),
                places[owners[split]],
            )
            for name, array in zip(ARRAYS, arrays, strict=True):
                np.save(work / split / name, array)
            told[split] = {
                "tokens": len(arrays[0]),
                "documents": len(arrays[1]),
                "bytes": size[split],
                "sha256": {name: sha256_file(work / split / name) for name in ARRAYS},
            }
        write_json(work / SHARD, told)


def _encoded(tokenizer: BPETokenizer, text: str, begins: bool, ends: bool) -> list[int]:
    """A document as a `{"text"}` row is encoded for tuning: what begins a sequence, the text, the end."""
    start = [tokenizer.bos] if begins and tokenizer.begins and tokenizer.bos is not None else []
    return [*start, *tokenizer.encode(text), *(tokenizer.eos[:1] if ends else ())]


def finish(folder: Path, recipe: Recipe, found: Survey, choice: Choice) -> Corpus:
    """Count the shards, write what was left out and `corpus.json`, and clear the work away."""
    shards = sorted((folder / SHARDS).iterdir())
    told = [json.loads((shard / SHARD).read_text("utf-8")) for shard in shards]
    totals = {key: {split: _total(told, split, key) for split in (TRAIN, VALID)} for key in _COUNTS}
    if not totals["tokens"][TRAIN]:
        raise DataError(f"no text of {_few(recipe.files)} is left to train on; hold out less or add text")
    tokenizer = from_folder(folder / TOKENIZER)
    places = [f"{recipe.files[file]}:{line}" for _, file, line in found.places.tolist()]
    with storage(f"write {folder}"):
        lines = [*removed_lines(choice.repeats, places), *(asdict(s) for s in found.skipped)]
        (folder / "left_out.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        summary = {
            "fingerprint": tokenizer.fingerprint,
            "vocab_size": tokenizer.vocab_size,
            **totals,
            "rule": choice.rule,
            "files": list(recipe.files),
            "pieces": [shard.name for shard in shards],
            "removed": {
                "exact": sum(r.exact for r in choice.repeats),
                "near": sum(not r.exact for r in choice.repeats),
            },
            "skipped": len(found.skipped),
            "unknown": sum(part["unknown"] for part in told),
        }
        write_json(folder / CORPUS, summary)
        shutil.rmtree(folder / WORK, ignore_errors=True)
    return open_corpus(folder)


_COUNTS = ("tokens", "documents", "bytes")


def _total(told: Sequence[dict[str, Any]], split: str, key: str) -> int:
    return sum(part[split][key] for part in told if split in part)


def _few(files: Sequence[str]) -> str:
    more = f" and {len(files) - 3} more" if len(files) > 3 else ""
    return ", ".join(files[:3]) + more


def _work(
    jobs: Sequence[Callable[[], None]], targets: Sequence[Path], sizes: Sequence[int], workers: int, advance: Advance
) -> None:
    """Do every job whose target is not there, in `workers` processes, telling the bytes that are done."""
    left = [number for number, target in enumerate(targets) if not target.is_dir()]
    for number in set(range(len(jobs))) - set(left):
        advance(sizes[number])
    if workers == 1 or len(left) < 2:
        for number in left:
            jobs[number]()
            advance(sizes[number])
        return
    # Spawned, since a forked process would carry its parent's threads in whatever state they are.
    with ProcessPoolExecutor(min(workers, len(left)), multiprocessing.get_context("spawn")) as pool:
        futures = {pool.submit(jobs[number]): number for number in left}
        try:
            for done in as_completed(futures):
                done.result()
                advance(sizes[futures[done]])
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
