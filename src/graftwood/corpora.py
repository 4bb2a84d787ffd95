"""A corpus or a tokenizer from files, told as it goes: what is read, removed, held out and written."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from graftwood.base import convert
from graftwood.data import prepare
from graftwood.data.corpus import TOKENIZER, TRAIN, VALID, Corpus, is_corpus
from graftwood.data.documents import find_files
from graftwood.data.tokenizers import train as new
from graftwood.data.tokenizers.bpe import FILES, BPETokenizer, from_folder
from graftwood.errors import DataError
from graftwood.files import atomic_folder, check_new, storage
from graftwood.hub import fetch
from graftwood.progress import Display, size
from graftwood.runtime import cores

TRAINING_BYTES = 200_000_000  # of text that a new tokenizer is made from


def prepare_corpus(
    given: Sequence[str],
    out: Path,
    display: Display,
    tokenizer: str = "bpe",
    vocab: int | None = None,
    workers: int | None = None,
    run: Path | None = None,
    **recipe: Any,
) -> Corpus:
    """Files to a corpus folder. The same call again goes on where one ended, and finds a finished corpus.

    What stands below the corpus folder, or the `run` folder around it, is no text of it.

    Raises: DataError where there is no text, ConfigError when the folder holds another corpus, StorageError.
    """
    files = [os.path.abspath(path) for path in _text_files(given, out / prepare.WORK, run or out)]
    made = prepare.Recipe(tuple(files), **recipe)
    workers = workers or cores()
    prepare.begin(out, made, f"{tokenizer} {vocab or ''}".strip())
    if (there := prepare.finished(out)) is not None:
        display.say(f"{out} is prepared already")
        return there
    total = sum(os.path.getsize(file) for file in files)
    display.say(f"{len(files):,} files, {size(total)}")
    with display.bytes("reading", total) as advance:
        found = prepare.survey(out, made, workers, advance)
    choice = prepare.choose(made, found)
    _describe(display, found, choice)
    if not (out / TOKENIZER).is_dir():
        with display.stage("tokenizer"):
            _tokenizer(tokenizer, vocab, made, found, choice, out / TOKENIZER)
    with display.bytes("encoding", total) as advance:
        prepare.write_shards(out, made, found, choice, workers, advance)
    corpus = prepare.finish(out, made, found, choice)
    _summarise(display, corpus)
    return corpus


def train_tokenizer(
    given: Sequence[str], out: Path, display: Display, kind: str, vocab: int | None, **recipe: Any
) -> dict[str, Any]:
    """A tokenizer folder, and bytes a token on text that is not what it was made from.

    Raises: ConfigError for an unknown kind or a folder that is not empty, DataError where there is no text.
    """
    check_new(out)
    with tempfile.TemporaryDirectory(prefix="graftwood-") as name:
        work = Path(name)
        files = [os.path.abspath(path) for path in _text_files(given, work)]
        made = prepare.Recipe(tuple(files), removal="exact", **recipe)
        with display.bytes("reading", sum(os.path.getsize(file) for file in files)) as advance:
            found = prepare.survey(work, made, cores(), advance)
        choice = prepare.choose(made, found)
        _describe(display, found, choice)
        with display.stage("tokenizer"):
            tokenizer = _tokenizer(kind, vocab, made, found, choice, out)
    told: dict[str, Any] = {"folder": str(out), "kind": kind, "vocab_size": tokenizer.vocab_size}
    for split, key in ((TRAIN, "training"), (VALID, "held_out")):
        text = list(prepare.texts(made, choice, split, TRAINING_BYTES // 10))
        tokens = sum(len(ids) for ids in tokenizer.encode_batch(text))
        told[f"{key}_bytes"] = sum(len(part.encode()) for part in text)
        told[f"{key}_bytes_a_token"] = round(told[f"{key}_bytes"] / tokens, 4) if tokens else None
    return told


def _text_files(given: Sequence[str], spool: Path, written: Path | None = None) -> list[Path]:
    """The files named. Raises: DataError for what leads nowhere, or to a corpus instead of to text."""
    for name in given:
        if is_corpus(Path(name)):
            raise DataError(
                f"{name} is a prepared corpus, not text: give it to graft pretrain --data, or name the text it is from"
            )
    return find_files(given, spool, written)


def _tokenizer(
    kind: str, vocab: int | None, recipe: prepare.Recipe, found: prepare.Survey, choice: prepare.Choice, out: Path
) -> BPETokenizer:
    """A new tokenizer from the training text, or a copy of one that a folder or a model has."""
    if kind not in new.KINDS:
        path = fetch(kind).path
        source = convert(path) if path.is_file() else path
        from_folder(source)  # refused before it is copied
        with storage(f"write {out}"), atomic_folder(out) as work:
            for name in ("config.json", *FILES):
                if (source / name).exists():
                    shutil.copyfile(source / name, work / name)
        return from_folder(out)
    text = prepare.texts(recipe, choice, TRAIN, TRAINING_BYTES)
    size_ = vocab or new.usual_size(int(found.sizes[:, 1].sum()))
    return new.save(new.train(kind, text, size_), out)


def _describe(display: Display, found: prepare.Survey, choice: prepare.Choice) -> None:
    display.say(f"{len(found.digests):,} documents, {size(int(found.sizes[:, 1].sum()))} of text; {choice.rule}")
    exact = sum(repeat.exact for repeat in choice.repeats)
    if choice.repeats:
        display.say(f"removed: {exact:,} documents that repeat others, {len(choice.repeats) - exact:,} that nearly do")
    if found.skipped:
        listed = "; ".join(f"{s.place} {s.why}" for s in found.skipped[:3])
        more = f"; and {len(found.skipped) - 3:,} more" if len(found.skipped) > 3 else ""
        display.say(f"warning: {len(found.skipped):,} skipped: {listed}{more}")


def _summarise(display: Display, corpus: Corpus) -> None:
    for split in (TRAIN, VALID):
        if corpus.tokens[split]:
            ratio = corpus.bytes[split] / corpus.tokens[split]
            display.say(f"{split}: {corpus.tokens[split]:,} tokens, {ratio:.2f} bytes each")
    if corpus.unknown:
        display.say(f"warning: {corpus.unknown:,} tokens stand for characters that the tokenizer lacks")
    display.say(f"written: {corpus.folder}; what was left out is in {corpus.folder / 'left_out.jsonl'}")
