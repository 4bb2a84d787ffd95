"""Where rows come from: a file, a folder of splits or memory, and which rows are held out when the user names none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graftwood.data.corpus import is_corpus
from graftwood.data.rows import Parsed, Row, read_file, rows_from
from graftwood.errors import ConfigError, DataError, nearest
from graftwood.files import sha256_text

Source = Path | str | Sequence[Mapping[str, Any]]

MAX_HELD_OUT = 200
_NAMES = {"train": ("train",), "valid": ("valid", "validation", "val", "dev"), "test": ("test",)}


@dataclass(frozen=True)
class Splits:
    """Rows by what they are for. `rule` is the sentence that tells a user how the validation rows came to be."""

    train: tuple[Row, ...]
    valid: tuple[Row, ...]
    test: tuple[Row, ...]
    rule: str
    shape: str
    extras: tuple[str, ...]
    files: tuple[Path, ...]


def load_splits(
    data: Source, valid: Source | None = None, test: Source | None = None, held_out: float = 0.1, seed: int = 0
) -> Splits:
    """Rows of a file, of a folder (`train.jsonl`, `valid.jsonl`, `test.jsonl`), of `folder/prefix` or of a list.

    `valid` and `test` replace what a folder holds. Without validation rows, a share `held_out` of the training rows is
    held out by `hold_out`; 0 holds none out.

    Raises: DataError with every bad row of every file, or when a path leads nowhere or too few prompts are there to
    split; ConfigError for a share that is not one.
    """
    if not 0 <= held_out < 1:
        raise ConfigError(f"the held-out share is {held_out}; it must be at least 0 and below 1")
    sources = _resolve(data) | {name: given for name, given in (("valid", valid), ("test", test)) if given is not None}
    parsed = _parse(sources)
    train = parsed["train"].rows
    if "valid" in parsed:
        chosen = parsed["valid"].rows
        rule = f"{_rows(len(chosen))} for validation from {chosen[0].file}"
    elif held_out == 0:
        chosen, rule = (), "no rows held out"
    else:
        total = len(train)
        train, chosen = hold_out(train, held_out, seed)
        side = "text" if chosen[0].kind == "text" else "prompt"
        rule = f"{len(chosen)} of {_rows(total)} held out by hash of their {side} (seed {seed})"
    return Splits(
        train=train,
        valid=chosen,
        test=parsed["test"].rows if "test" in parsed else (),
        rule=rule,
        shape=parsed["train"].shape,
        extras=tuple(sorted({extra for part in parsed.values() for extra in part.extras})),
        files=tuple(Path(source) for source in sources.values() if isinstance(source, (str, Path))),
    )


def hold_out(rows: Sequence[Row], share: float, seed: int) -> tuple[tuple[Row, ...], tuple[Row, ...]]:
    """`rows` as (kept, held out): whole prompts in the order of their hash, until `share` of the rows is reached.

    Rows with the same prompt stay together, case and white space aside. A prompt's rank depends on nothing but the
    seed and itself, so neither order nor repetition moves it, and rows added later move only prompts at the threshold.
    At least one prompt and at most `MAX_HELD_OUT` rows are held out; where every prompt has too many rows for that, the
    prompt with the fewest is.

    Raises: DataError when all rows have the same prompt.
    """
    groups: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        key = [" ".join(part.casefold().split()) for part in row.asked or row.parts]
        groups.setdefault(sha256_text(str(seed), *key), []).append(index)
    if len(groups) < 2:
        raise DataError(
            f"{rows[0].file}: {_rows(len(rows))} with 1 distinct prompt cannot be split; holding rows out needs at "
            "least 2 distinct prompts. Add rows, give a validation file (--valid) or train without one (--held-out 0)"
        )
    ranked = [groups[key] for key in sorted(groups)]
    target = min(MAX_HELD_OUT, max(1, round(share * len(rows))))
    chosen: set[int] = set()
    left = len(ranked)
    for group in ranked:
        if len(chosen) + len(group) <= target and left > 1:
            chosen.update(group)
            left -= 1
    if not chosen:
        _, smallest = min((len(group), rank) for rank, group in enumerate(ranked))
        chosen.update(ranked[smallest])
    kept = tuple(row for index, row in enumerate(rows) if index not in chosen)
    return kept, tuple(row for index, row in enumerate(rows) if index in chosen)


def _resolve(data: Source) -> dict[str, Source]:
    if not isinstance(data, (str, Path)):
        return {"train": data}
    path = Path(data)
    if path.is_dir():
        return _splits_in(path, "")
    if not path.exists() and path.with_name(f"{path.name}.train.jsonl").exists():
        return _splits_in(path.parent, f"{path.name}.")
    return {"train": path}


def _splits_in(folder: Path, prefix: str) -> dict[str, Source]:
    found: dict[str, Source] = {}
    for part, names in _NAMES.items():
        there = [path for name in names if (path := folder / f"{prefix}{name}.jsonl").exists()]
        if len(there) > 1:
            raise DataError(f"{folder} has {' and '.join(path.name for path in there)}; keep one of them")
        if there:
            found[part] = there[0]
    if "train" not in found and is_corpus(folder):
        raise DataError(f"{folder} is a prepared corpus, which graft pretrain reads; graft tune reads rows (JSONL)")
    if "train" not in found:
        raise DataError(f"{folder} has no {prefix}train.jsonl; give a file or a prefix instead{_offer(folder)}")
    return found


def _offer(folder: Path) -> str:
    """What `folder` holds that could be meant."""
    names = sorted(path.name for path in folder.glob("*.jsonl"))
    prefixes = [name.removesuffix(".train.jsonl") for name in names if name.endswith(".train.jsonl")]
    offers = [str(folder / name) for name in prefixes or names]
    more = f" and {len(offers) - 5} more" if len(offers) > 5 else ""
    return f": {', '.join(offers[:5])}{more}" if offers else "; it has no .jsonl file"


def _parse(sources: Mapping[str, Source]) -> dict[str, Parsed]:
    """Every part, or every problem of every part."""
    parsed: dict[str, Parsed] = {}
    errors: list[DataError] = []
    for part, source in sources.items():
        try:
            if isinstance(source, (str, Path)):
                parsed[part] = _read(Path(source))
            else:
                parsed[part] = rows_from(source, "data" if part == "train" else part)
        except DataError as error:
            errors.append(error)
    if len(errors) == 1:
        raise errors[0]
    if errors:
        summaries = [str(error).partition("\n")[0] for error in errors]
        raise DataError("; ".join(summaries), [problem for error in errors for problem in error.problems])
    shapes = {part.rows[0].file: part.shape for part in parsed.values()}
    if len(set(shapes.values())) > 1:
        told = " but ".join(f"{file} is {shape}" for file, shape in shapes.items())
        raise DataError(f"{told}; write all parts in one shape")
    return parsed


def _read(path: Path) -> Parsed:
    if path.exists():
        return read_file(path)
    folder = path.parent
    if not folder.is_dir():
        raise DataError(f"no such folder: {folder}")
    names = {entry.name for entry in folder.iterdir()}
    names |= {name.removesuffix(".train.jsonl") for name in names if name.endswith(".train.jsonl")}
    raise DataError(f"no such file or folder: {path}.{nearest(path.name, names)}")


def _rows(count: int) -> str:
    return f"{count} row" if count == 1 else f"{count} rows"
