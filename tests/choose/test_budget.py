"""What a person writes as a budget, and what no budget is."""

from __future__ import annotations

import pytest

from graftwood.choose.budget import Budget, read_budget
from graftwood.errors import ConfigError


@pytest.mark.parametrize(
    ("given", "share"), [("95%", 0.95), ("0.95", 0.95), ("95", 0.95), (" 97.5% ", 0.975), ("1", 1.0), ("100%", 1.0)]
)
def test_a_share_in_any_spelling(given: str, share: float) -> None:
    assert read_budget(given) == Budget(share)
    assert read_budget(given, "90%") == Budget(share, 0.9)


def test_none_is_no_budget() -> None:
    assert read_budget("none") is None
    with pytest.raises(ConfigError, match=r"--keep-worst 90% needs a budget; give --keep 95%"):
        read_budget("none", "90%")


@pytest.mark.parametrize("given", ["much", "", "0", "-5%", "101%", "nan", "inf"])
def test_what_is_no_percentage_is_refused(given: str) -> None:
    with pytest.raises(ConfigError, match=rf"--keep {given} is no percentage between 0 and 100; write 95%"):
        read_budget(given)


def test_it_reads_as_it_was_meant() -> None:
    assert str(Budget(0.95)) == "95%"
    assert str(Budget(0.975, 0.9)) == "97.5%, 90% of the worst ability"
