"""Statistics by simulation: intervals hold the truth as often as they say, budgets are rarely passed by luck."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))
coverage = importlib.import_module("bench.coverage")

SETS = 1000
NOISE = 0.015  # two standard errors of a share of 95% among so many data sets


@pytest.mark.parametrize("case", ["bundle, 5% lost", "right or wrong, 15% lost", "passages of 1 to 3 items"])
def test_the_interval_of_a_kept_share_holds_the_truth(case: str) -> None:
    assert 0.93 <= coverage.kept_coverage(coverage.CASES[case], SETS, seed=1) <= 0.97 + NOISE / 2


@pytest.mark.parametrize("case", ["bundle, 10% lost", "passages of 1 to 3 items", "one ability of 100 items"])
def test_the_interval_of_a_change_holds_the_truth(case: str) -> None:
    assert 0.93 <= coverage.change_coverage(coverage.CASES[case], SETS, seed=2) <= 0.97 + NOISE / 2


@pytest.mark.parametrize("case", ["requests alone", "passages of 1 to 3 items"])
def test_the_interval_of_a_mean_holds_the_truth(case: str) -> None:
    assert 0.93 - NOISE / 2 <= coverage.mean_coverage(coverage.CASES[case], SETS, seed=3) <= 0.97


@pytest.mark.parametrize("name", ["budget 95%, clustered, 2% won", "budget 95%, independent, 0% won"])
def test_a_model_at_the_edge_of_its_budget_rarely_passes(name: str) -> None:
    budget, alike, won = coverage.BUDGETS[name]
    case = coverage.at_budget(budget, alike, won)
    assert [left / had for left, had in (ability.truth for ability in case)] == pytest.approx([budget] * len(case))
    assert coverage.passes(case, budget, SETS, seed=4) <= 0.05
    assert coverage.passes_with_reserve(case, budget, SETS // 2, seed=5) <= 0.05


def test_a_model_well_within_its_budget_passes() -> None:
    """The rule is no wall: with 400 items an ability, most models that keep 99% pass a budget of 95%."""
    case = tuple(
        coverage.Ability(coverage.singles(400), a.chance, a.right, 0.01, 0.01) for a in coverage.bundle(0.0, 0.0, 0.0)
    )
    assert coverage.passes(case, 0.95, 60) > 0.8


def test_simulated_clusters_have_the_correlation_asked_for() -> None:
    ability = coverage.Ability((10,) * 4000, 0.0, 0.7, 0.1, 0.0, alike=0.2)
    before, after = ability.draw(np.random.default_rng(0))
    means = before.reshape(-1, 10).mean(axis=1)
    assert before.mean() == pytest.approx(0.7, abs=0.01)
    assert means.var() == pytest.approx(0.7 * 0.3 * (1 + 9 * 0.2) / 10, rel=0.06)
    assert (after.mean(), 0.0) == pytest.approx((ability.truth[0], 0.0), abs=0.01)
