"""The flags of the command line: their types, the names other tools use for them, and those made from `RunConfig`."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Optional, get_args, get_origin

import typer
from pydantic import BaseModel, BeforeValidator

from graftwood.config import ALIASES
from graftwood.errors import ConfigError

# Flags after which several values may stand.
SEVERAL = {
    "tune": ("--data", "-d"),
    "merge": ("--adapters", "--models", "--weights", "--how", "--data", "-d"),
}
# Flags after which any text may stand, also one that begins as a flag does.
TEXTS = ("--separator", "--stop", "--system", "--sample-prompt")
_NUMBER = re.compile(r"-[\d.]")

ModelFlag = Annotated[str, typer.Option("--model", "-m", help="short name, folder, .gguf, package, hub id or run")]
AdapterFlag = Annotated[Optional[Path], typer.Option("--adapter", "-a", help="adapter or run folder")]  # noqa: UP045
JsonFlag = Annotated[bool, typer.Option("--json", help="JSON on stdout, for programs")]
DeviceFlag = Annotated[str, typer.Option("--device", help="auto, cpu or cuda")]
DtypeFlag = Annotated[str, typer.Option("--dtype", help="auto, float32, bfloat16 or float16")]


def seed_option(help_: str) -> Any:
    """The flag of a seed, in the range that every generator takes."""
    return typer.Option("--seed", min=0, max=2**32 - 1, help=help_)


Temperature = Annotated[float, typer.Option("--temperature", "-t", help="0 is greedy")]
TopK = Annotated[int, typer.Option("--top-k", help="only the k likeliest tokens; 0 for all")]
TopP = Annotated[float, typer.Option("--top-p", help="only the likeliest tokens that make up this share")]
MinP = Annotated[float, typer.Option("--min-p", help="only tokens this likely, relative to the likeliest")]
Penalty = Annotated[float, typer.Option("--repetition-penalty", help="above 1 discourages tokens seen before")]
Stop = Annotated[
    list[str] | None,
    typer.Option("--stop", help="end before this text, in it \\n for a line break, \\t for a tab; may be given again"),
]
Seed = Annotated[int, seed_option("seed of the sampling")]
MaxTokens = Annotated[int, typer.Option("--max-tokens", "-n", help="longest answer in tokens")]


TECHNIQUE_FLAGS: dict[str, tuple[Any, str]] = {
    "rank": (int, "rank of the update: LoRA, DoRA, SHiRA, VeRA"),
    "alpha": (float, "LoRA, DoRA: the update is scaled by alpha / rank"),
    "dropout": (float, "LoRA, DoRA, VeRA: dropout before the update"),
    "rslora": (bool, "LoRA, DoRA: scale by alpha / sqrt(rank) instead"),
    "targets": (str, "what is changed: names, comma-separated, one regular expression, or all-linear"),
}


def _flag(name: str, kind: Any, help_: str, default: Any = None, names: tuple[str, ...] = ()) -> inspect.Parameter:
    option = typer.Option(*(names or (f"--{name.strip('_').replace('_', '-')}",)), help=help_)
    annotation: Any = Annotated[kind | None if default is None else kind, option]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _config_flags(config: type[BaseModel]) -> list[inspect.Parameter]:
    """The run file as an argument and a flag for every field, so that files and flags cannot drift apart."""
    run_file = Annotated[Path | None, typer.Argument(help="run file (TOML) with the same keys as the flags")]
    parameters = [inspect.Parameter("file", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=run_file)]
    short = {"data": "-d", "model": "-m", "out": "-o"}
    for name, info in config.model_fields.items():
        if name in ("options", "anchors"):
            continue
        silent = info.is_required() or info.default is None or info.default is False
        default = "" if silent else f" [default: {info.default}]"
        long = f"--{name.replace('_', '-')}"
        names = (long, short[name]) if name in short else (long,)
        counted = any(isinstance(part, BeforeValidator) for part in info.metadata)
        kind = list[str] if _several(info.annotation) else str if counted else _plain_kind(info.annotation)
        parameters.append(_flag(name, kind, f"{info.description}{default}", names=names))
    return parameters


def _several(annotation: Any) -> bool:
    """Whether a value may be a list."""
    return get_origin(annotation) is tuple or any(map(_several, get_args(annotation)))


def _plain_kind(annotation: Any) -> Any:
    """What a flag is read as: a number or text, whose bounds the configuration checks. A count may be `10M`."""
    while not inspect.isclass(annotation):
        inner = [kind for kind in get_args(annotation) if kind is not type(None)]
        if not inner or (not isinstance(inner[0], type) and get_origin(inner[0]) is None):
            return str  # the words of a Literal
        if get_origin(annotation) is Annotated and any(isinstance(m, BeforeValidator) for m in inner[1:]):
            return str
        annotation = inner[0]
    return annotation


def tune_signature() -> inspect.Signature:
    """The flags of `graft tune`."""
    from graftwood.config import RunConfig

    more = [_flag(name, kind, help_) for name, (kind, help_) in TECHNIQUE_FLAGS.items()] + [
        _flag("anchor", list[str], "what holds to the base: NAME or NAME:key=value,key=value; may be given again"),
        _flag("set_", list[str], "any other option of the technique, as key=value", names=("--set",)),
        _flag("resume", bool, "go on from the last checkpoint of the run folder", False, ("--resume",)),
        _flag("dry_run", bool, "only say what would run and what it would take", False, ("--dry-run",)),
        _flag("json_", bool, "print the report as JSON instead of the card", False, ("--json",)),
    ]
    return inspect.Signature([*_config_flags(RunConfig), *more])


def pretrain_signature() -> inspect.Signature:
    """The flags of `graft pretrain`."""
    from graftwood.config import PretrainConfig

    more = [
        _flag("resume", bool, "go on from the last checkpoint of the run folder", False, ("--resume",)),
        _flag("dry_run", bool, "only say what would run and what it would take", False, ("--dry-run",)),
        _flag("json_", bool, "print the result as JSON", False, ("--json",)),
    ]
    return inspect.Signature([*_config_flags(PretrainConfig), *more])


def check_dry(dry_run: bool, resume: bool) -> None:
    """Raises: ConfigError for a dry run of what has begun."""
    if dry_run and resume:
        raise ConfigError("--dry-run says what a new run would take, --resume goes on with one; leave one out")


def assignments(given: list[str] | None) -> dict[str, Any]:
    """`key=value` flags; a value is read as JSON where it is JSON, else as text."""
    options: dict[str, Any] = {}
    for assignment in given or []:
        key, equals, value = assignment.partition("=")
        if not equals or not key:
            raise ConfigError(f"{assignment!r} is not key=value")
        if key in options:
            raise ConfigError(f"{key} is given twice; give it once")
        try:
            options[key] = json.loads(value)
        except ValueError:
            options[key] = value
    return options


def anchors(given: list[str] | None) -> dict[str, dict[str, Any]]:
    """`NAME:key=value,key=value` flags as a table of options for each anchor."""
    found: dict[str, dict[str, Any]] = {}
    for anchor in given or []:
        name, _, options = anchor.partition(":")
        if name in found:
            raise ConfigError(f"--anchor {name} is given twice; give it once, with all its options")
        found[name] = assignments(options.split(",") if options else [])
    return found


def unescaped(given: str) -> str:
    """A text in which `\\n` and `\\t` stand for what they stand for."""
    return given.replace("\\n", "\n").replace("\\t", "\t")


def spelled(words: Sequence[str]) -> list[str]:
    """A command in the one spelling there is: every flag by our name, `--data A B` as `--data A --data B`.

    What stands after `--` is no flag and stays as it is.
    """
    if "--" in words:
        end = words.index("--")
        return [*spelled(words[:end]), *words[end:]]
    several = SEVERAL.get(words[0], ()) if words else ()
    said: list[str] = []
    flag, filled = "", False
    for given in words:
        if said and said[-1] in TEXTS:
            said.append(given)
            continue
        word = normal(given)
        if word.startswith("-") and not _NUMBER.match(word):
            name, equals, _ = word.partition("=")
            flag, filled = (name, bool(equals)) if name in several else ("", False)
        elif flag and filled and not word.endswith(".toml"):  # which is a run file
            said.append(flag)
        said.append(word)
        filled = filled or word != flag
    return said


def normal(argument: str) -> str:
    """`--max_seq_length=8` and its like as the one spelling there is."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    name = name.replace("_", "-")
    return ALIASES.get(name, name) + equals + value
