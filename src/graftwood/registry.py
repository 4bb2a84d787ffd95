"""A package folder is a registry: each module in it is an entry, named after its file.

An entry's module is imported only when the entry is asked for and must define exactly one object that `select` accepts.
Third parties add entries through the entry-point group `graftwood.<folder>`.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

from graftwood.errors import ConfigError, unknown

T = TypeVar("T")


class Registry(Generic[T]):
    """The entries below `package`.

    `select` maps an object of an entry's module to the entry it stands for, or to `None` when it is something else.
    """

    def __init__(self, package: str, kind: str, select: Callable[[object], T | None]) -> None:
        self.package = package
        self.kind = kind
        self._select = select
        self._loaded: dict[str, T] = {}

    def names(self) -> list[str]:
        """Every entry's name, sorted; imports none of them."""
        folder = importlib.import_module(self.package)
        own = {module.name for module in pkgutil.iter_modules(folder.__path__) if not module.name.startswith("_")}
        return sorted(own | {point.name for point in self._foreign()})

    def get(self, name: str) -> T:
        """The entry called `name`.

        Raises: ConfigError naming the near matches. An ImportError inside the entry is shown as itself.
        """
        if name not in self._loaded:
            self._loaded[name] = self._load(name)
        return self._loaded[name]

    def all(self) -> dict[str, T]:
        """Every entry by name; imports them all."""
        return {name: self.get(name) for name in self.names()}

    def _load(self, name: str) -> T:
        for point in self._foreign():
            if point.name == name:
                entry = self._select(point.load())
                if entry is None:
                    raise ConfigError(f"entry point {point.value!r} is not a {self.kind}; see docs/extending.md")
                return entry
        if name not in self.names():
            raise ConfigError(unknown(self.kind, name, self.names()))
        module = importlib.import_module(f"{self.package}.{name}")
        found = {id(entry): entry for value in vars(module).values() if (entry := self._own(value, module.__name__))}
        assert len(found) == 1, f"{module.__name__} must define exactly one {self.kind}, found {len(found)}"
        return next(iter(found.values()))

    def _own(self, value: object, module: str) -> T | None:
        """The entry `value` stands for, unless it is a class that the module only imported."""
        if inspect.isclass(value) and value.__module__ != module:
            return None
        return self._select(value)

    def _foreign(self) -> list[EntryPoint]:
        return list(entry_points(group=f"graftwood.{self.package.rpartition('.')[2]}"))
