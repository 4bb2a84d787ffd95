"""What is said to torch's libraries is said once, and never over what the user has set."""

from __future__ import annotations

import os

import pytest

from graftwood import preparation

KEY = "GOMP_SPINCOUNT"


@pytest.mark.parametrize(("briefly", "free", "said"), [(True, 2.0, None), (True, 1.0, "1000"), (False, 2.0, "1000")])
def test_threads_spin_only_where_a_short_task_has_every_core(
    briefly: bool, free: float, said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(preparation, "_free_cores", lambda: free)
    monkeypatch.setenv(KEY, "")
    monkeypatch.delenv(KEY)
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "0")
    preparation.prepare(briefly)
    assert os.environ.get(KEY) == said
    assert os.environ["THP_MEM_ALLOC_ENABLE"] == "0"


def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, "7")
    preparation.prepare(briefly=False)
    assert os.environ[KEY] == "7"


def test_free_cores_are_between_none_and_all() -> None:
    assert 0 <= preparation._free_cores() <= (os.cpu_count() or 1) * 1.5
