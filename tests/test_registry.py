"""A folder of modules is a registry: lazy, exact about names, honest about errors inside an entry."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from graftwood import registry
from graftwood.errors import ConfigError
from graftwood.registry import Registry

Make = Callable[..., Registry[Any]]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """`make(name=source, ...)`: a registry over a package of those modules; an entry is a dict with a `says` key."""
    monkeypatch.syspath_prepend(tmp_path)

    def make(**modules: str) -> Registry[Any]:
        folder = tmp_path / "made_up_entries"
        folder.mkdir()
        (folder / "__init__.py").touch()
        for name, source in modules.items():
            (folder / f"{name}.py").write_text(source, encoding="utf-8")
        return Registry("made_up_entries", "thing", lambda v: v if isinstance(v, dict) and "says" in v else None)

    yield make
    for name in [name for name in sys.modules if name.startswith("made_up_entries")]:
        del sys.modules[name]


def imported() -> set[str]:
    return {name.rpartition(".")[2] for name in sys.modules if name.startswith("made_up_entries.")}


def test_names_import_nothing_and_get_imports_one(make: Make) -> None:
    things = make(lora="X = {'says': 1}", dora="X = {'says': 2}", _shared="X = {'says': 3}")
    assert things.names() == ["dora", "lora"]
    assert imported() == set()
    assert things.get("lora") == {"says": 1}
    assert imported() == {"lora"}
    assert things.get("lora") is things.get("lora")
    assert things.all() == {"dora": {"says": 2}, "lora": {"says": 1}}


def test_an_unknown_name_gets_its_near_names_and_imports_nothing(make: Make) -> None:
    things = make(lora="raise RuntimeError('imported')", full="X = {'says': 2}")
    with pytest.raises(ConfigError, match=r"^unknown thing 'lroa'\. Did you mean 'lora'\? Available: full, lora\.$"):
        things.get("lroa")
    with pytest.raises(ConfigError, match=r"^unknown thing 'zzz'\. Available: full, lora\.$"):
        things.get("zzz")
    with pytest.raises(ConfigError, match="unknown thing '_shared'"):
        things.get("_shared")
    assert imported() == set()


def test_an_error_inside_an_entry_is_shown_as_itself(make: Make) -> None:
    things = make(lora="import a_package_that_is_not_there", full="X = {'says': 2}")
    with pytest.raises(ModuleNotFoundError, match="a_package_that_is_not_there"):
        things.get("lora")
    assert things.get("full") == {"says": 2}


def test_an_entry_defines_exactly_one_object(make: Make) -> None:
    things = make(none="X = {}", two="X, Y = {'says': 1}, {'says': 2}", same="X = {'says': 1}\nY = X")
    for name in ("none", "two"):
        with pytest.raises(AssertionError, match="must define exactly one thing"):
            things.get(name)
    assert things.get("same") == {"says": 1}


def test_an_imported_class_is_not_an_entry_of_its_own(make: Make) -> None:
    make(base="class Base: says = 0", own="from made_up_entries.base import Base\nclass Own(Base): says = 1")
    classes = Registry("made_up_entries", "class", lambda v: v if isinstance(v, type) and hasattr(v, "says") else None)
    assert classes.get("own").__name__ == "Own"


@dataclass(frozen=True)
class Point:
    """Stands in for an installed package's entry point."""

    name: str
    value: str
    entry: object

    def load(self) -> object:
        return self.entry


def test_third_parties_add_entries(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    points = [Point("theirs", "a.b:c", {"says": 9}), Point("wrong", "a.b:d", SimpleNamespace())]
    asked = []
    monkeypatch.setattr(registry, "entry_points", lambda group: asked.append(group) or points)
    things = make(own="X = {'says': 1}")
    assert things.names() == ["own", "theirs", "wrong"]
    assert things.get("theirs") == {"says": 9}
    assert set(asked) == {"graftwood.made_up_entries"}
    with pytest.raises(ConfigError, match=r"entry point 'a\.b:d' is not a thing"):
        things.get("wrong")
