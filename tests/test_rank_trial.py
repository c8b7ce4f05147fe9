"""--ranks-per-node auto: what is tried, what is picked, and that it really trains."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from hpcai500.edition import load_edition
from hpcai500.errors import RunError, UsageError
from hpcai500.launch.layout import make_launch
from hpcai500.launch.local import num_cores
from hpcai500.launch.site import Site
from hpcai500.plan import make_plan
from hpcai500.rank_trial import Trial, best_ranks, candidates, choose_ranks, run_trial
from hpcai500.submit import add_arguments

RULES = load_edition().workload("resnet50")
SMOKE = RULES.size("smoke")


def parse(*words: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_arguments(parser)
    return parser.parse_args([*map(str, words)])


def smoke_trial(data: Path, **overrides: object) -> Trial:
    settings = RULES.resolve("smoke", "free", overrides)
    return Trial(workload="resnet50", size="smoke", settings=settings, data_path=str(data))


@pytest.mark.parametrize(
    ("cores", "batch", "expected"),
    [
        (1, 8, [1]),
        (2, 8, [1, 2]),
        (6, 8, [1, 2, 6]),
        (96, 1, [1, 2, 4, 8, 16, 32]),
        (96, 16, [1, 2, 4, 8]),
        (2, 999, [1]),
    ],
)
def test_divisors_of_the_cores_are_tried_as_far_as_the_samples_go(cores: int, batch: int, expected: list[int]) -> None:
    assert candidates(cores, size=SMOKE, batch_size_per_rank=batch, joins_ranks=True) == expected


def test_a_communicator_that_joins_no_ranks_leaves_one(smoke_data: Path) -> None:
    ranks, words = choose_ranks(smoke_trial(smoke_data, communicator="serial"), size=SMOKE)
    assert (ranks, "the only number that is possible" in words) == (1, True)


def test_more_ranks_are_tried_until_they_are_slower() -> None:
    rates = {1: 10.0, 2: 30.0, 4: 20.0, 8: 90.0}
    assert best_ranks(list(rates), rates.__getitem__) == {1: 10.0, 2: 30.0, 4: 20.0}


@pytest.mark.mpi
def test_the_plan_says_what_was_measured_and_takes_the_fastest(
    smoke_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--size", "smoke", "--device", "cpu", "--data", smoke_data, "--output", tmp_path / "new")
    plan = make_plan(parse(*words, "--ranks-per-node", "auto"))
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("measured ")]
    assert len(told) == len(candidates(num_cores(), size=SMOKE, batch_size_per_rank=16, joins_ranks=True))
    rates = {int(line.split()[1]): float(line.split(": ")[1].split()[0]) for line in told}
    assert plan.launch.num_ranks == max(rates, key=rates.__getitem__)
    assert all(config.num_ranks == plan.launch.num_ranks for config in plan.configs)
    described = " ".join(plan.describe().split())
    assert f"chosen: {plan.launch.num_ranks} rank" in described
    assert plan.launch.ranks_choice is not None
    assert plan.launch.ranks_choice.startswith(f"{plan.launch.num_ranks} rank")  # launch.json keeps it
    assert all(f"{rate:.4g}" in described for rate in rates.values())


def test_a_trial_that_fails_says_what_to_do(smoke_data: Path, capfd: pytest.CaptureFixture[str]) -> None:
    trial = smoke_trial(smoke_data.with_name("missing.h5"), communicator="serial")
    with pytest.raises(RunError, match=r"a trial with 1 rank ended with exit code .*--ranks-per-node N"):
        run_trial(trial, 1)
    assert "missing.h5" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--nodes", 3), r"with --cluster slurm the ranks run on others; measure once on a node"),
        (("--cluster", "allocation"), r"with --cluster allocation the ranks run on others"),
        (("--ranks", 2), r"--ranks 2 and --ranks-per-node auto exclude each other"),
    ],
)
def test_where_nothing_can_be_measured_auto_is_refused(
    words: tuple[object, ...], message: str, smoke_data: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        make_plan(parse("--size", "smoke", "--data", smoke_data, "--ranks-per-node", "auto", *words))


def test_a_submission_that_is_gone_on_with_wants_a_number() -> None:
    with pytest.raises(UsageError, match="is for new submissions; give a number"):
        make_launch(parse("--ranks-per-node", "auto"), Site())


def test_a_word_that_is_neither_number_nor_auto_is_refused() -> None:
    with pytest.raises(argparse.ArgumentError, match="'two' is no whole number and not 'auto'"):
        parse("--ranks-per-node", "two")
