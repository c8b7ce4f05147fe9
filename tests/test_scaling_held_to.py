"""The plan's formula beside published systems that it was not fitted to, and beside a simulation of each message."""

from __future__ import annotations

import sys

import pytest
from doc_blocks import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
from scaling_published import (
    DEVELOPMENT,
    KEPT_ASIDE,
    LARGEST_FITTED,
    median_error,
    median_error_of_choices,
    outcomes,
    read_systems,
    start_up_per_doubling_s,
)
from scaling_simulation import CASES, NUM_RANKS, Case, formula_s, simulate_s

from hpcai500.scaling.prediction import MODEL_ERROR_OF_A_DOUBLING, START_UP_PER_DOUBLING_S


def test_large_published_systems_are_predicted_from_the_small_ones() -> None:
    found = outcomes(DEVELOPMENT)
    assert len(found) == 6
    assert all(one.system.num_accelerators > LARGEST_FITTED for one in found)
    assert median_error(found) < 0.25
    assert median_error(found) < 0.10  # what it was when this was written, with some room


def test_so_are_those_of_the_round_that_was_kept_aside() -> None:
    found = outcomes(KEPT_ASIDE, (*DEVELOPMENT, *KEPT_ASIDE))
    assert [one.system.num_accelerators for one in found] == [3584, 768, 512]
    assert median_error(found) < 0.25


def test_the_batch_size_of_a_plan_is_about_that_of_the_submitters() -> None:
    found = [*outcomes(DEVELOPMENT), *outcomes(KEPT_ASIDE, (*DEVELOPMENT, *KEPT_ASIDE))]
    assert median_error_of_choices(found) < 0.25
    ratios = [one.choice.global_batch / one.system.global_batch for one in found if one.system.num_accelerators > 256]
    assert all(0.5 < ratio < 2 for ratio in ratios)


def test_a_system_that_was_entered_again_counts_once() -> None:
    systems = read_systems((*DEVELOPMENT, *KEPT_ASIDE))
    assert len(systems) == len({(one.name.split("_ngc")[0], one.minutes, one.global_batch) for one in systems})
    assert not [one for one in read_systems(KEPT_ASIDE) if one.num_accelerators == 128]  # first entered in v2.0


def test_the_models_error_in_a_plan_is_what_it_was_found_to_be() -> None:
    found = [*outcomes(DEVELOPMENT), *outcomes(KEPT_ASIDE, (*DEVELOPMENT, *KEPT_ASIDE))]
    squares = [one.error**2 / one.doublings for one in found]
    assert (sum(squares) / len(squares)) ** 0.5 == pytest.approx(MODEL_ERROR_OF_A_DOUBLING, abs=0.01)


def test_the_start_up_in_a_plan_grows_as_that_of_published_systems() -> None:
    slow = start_up_per_doubling_s(("v2.1", "v3.0"), "NVIDIA H100-SXM5-80GB")
    quick = start_up_per_doubling_s(DEVELOPMENT, "NVIDIA A100-SXM4-80GB")
    assert quick < START_UP_PER_DOUBLING_S < slow


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_formula_agrees_with_the_simulation_where_its_assumptions_hold(case: Case) -> None:
    assert NUM_RANKS == 16_384
    error = formula_s(case) / simulate_s(case) - 1
    if case.holds:
        assert abs(error) < 0.05
    else:
        assert error < -0.05  # too fast: what is not in the formula only ever costs time
