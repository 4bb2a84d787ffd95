"""Options from a published `adapter_config.json`: each field is read, or over with training, or refused by name."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from graftwood.errors import ConfigError

PREFIX = "base_model.model."
# What every type has and what changes nothing once an adapter is trained.
_COMMON = frozenset(
    ("peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode")
)
_OFF: tuple[Any, ...] = (None, False, "none", {}, [])


def off(value: object) -> bool:
    """Whether a field says that what it is of is not used; the number 0 says something."""
    return any(type(value) is type(one) and value == one for one in _OFF)


def options_from(
    title: str,
    config: Mapping[str, Any],
    read: Mapping[str, str],
    past: Collection[str] = (),
    odd: Collection[str] = (),
) -> dict[str, Any]:
    """Options by the names in `read`; fields in `past` only mattered while training.

    Any other field, known or not, must be off. Raises: ConfigError naming those that are not, and those of `odd`.
    """
    known = _COMMON | set(read) | set(past)
    wrong = [f"{key}={value!r}" for key, value in config.items() if key not in known and not off(value)]
    wrong += [f"{key}={config[key]!r}" if key in config else f"no {key}" for key in odd]
    if wrong:
        raise ConfigError(f"this {title} adapter uses {', '.join(wrong)}, which this version does not read")
    return {option: config[key] for key, option in read.items() if config.get(key) is not None}
