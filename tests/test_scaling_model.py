"""The formula of a step: each part alone against what must hold of it, and epochs over batch sizes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hpcai500.convergence import Point
from hpcai500.edition import load_edition
from hpcai500.scaling.job import Job, expected_epochs, make_job
from hpcai500.scaling.model import (
    Link,
    Machine,
    StepTime,
    all_reduce_s,
    expected_maximum,
    exposed_s,
    num_buckets,
    step_time,
)

LINK = Link(10e-6, 1e9)
MACHINE = Machine(ranks_per_node=4, fixed_s=0.01, per_sample_s=0.002, within=LINK, between=Link(20e-6, 2e9))


def step(machine: Machine = MACHINE, num_nodes: int = 1, batch_size: int = 16, gradient_bytes: float = 1e8) -> StepTime:
    return step_time(
        machine,
        num_nodes=num_nodes,
        batch_size=batch_size,
        gradient_bytes=gradient_bytes,
        backward_share=2 / 3,
        sample_bytes=1e5,
    )


@pytest.mark.parametrize("num_ranks", [2, 8, 1000])
def test_the_expected_maximum_is_that_of_many_draws(num_ranks: int) -> None:
    draws = np.random.default_rng(1).standard_normal((4000, num_ranks)).max(axis=1)
    assert expected_maximum(num_ranks) == pytest.approx(draws.mean(), abs=0.04)


def test_one_rank_waits_for_nobody_and_talks_to_nobody() -> None:
    alone = step(replace(MACHINE, ranks_per_node=1, noise=0.1))
    assert alone == StepTime(samples_s=0.032, fixed_s=0.01, stragglers_s=0.0, network_s=0.0, input_s=0.0)


def test_an_all_reduce_moves_twice_what_all_but_one_place_have() -> None:
    assert all_reduce_s(1e9, 2, Link(0.0, 1e9)) == 1.0
    assert all_reduce_s(1e9, 1_000_000, Link(0.0, 1e9)) == pytest.approx(2.0, rel=1e-5)
    assert all_reduce_s(0, 1024, Link(1e-6, 1e9), num_messages=3) == pytest.approx(3 * 20e-6)
    assert all_reduce_s(1e9, 1, LINK) == 0.0


def test_what_the_backward_pass_hides_is_all_but_the_last_message() -> None:
    assert exposed_s(0.4, 10.0, messages=4, overlap=1.0) == pytest.approx(0.1)
    assert exposed_s(4.0, 1.0, messages=4, overlap=1.0) == pytest.approx(4.0 - 0.75)
    assert exposed_s(0.4, 10.0, messages=4, overlap=0.0) == 0.4
    assert exposed_s(0.4, 10.0, messages=1, overlap=1.0) == 0.4
    assert num_buckets(102_228_128) == 4


def test_two_levels_of_the_network_add_up() -> None:
    slow = replace(MACHINE, overlap=0.0)
    within, both = step(slow).network_s, step(slow, num_nodes=8).network_s
    assert within == pytest.approx(all_reduce_s(1e8, 4, LINK, 4))
    assert both - within == pytest.approx(all_reduce_s(1e8, 8, Link(20e-6, 2e9), 4))


def test_stragglers_cost_more_the_more_ranks_there_are() -> None:
    noisy = replace(MACHINE, noise=0.05)
    assert step(noisy).stragglers_s == pytest.approx(0.05 * expected_maximum(4) * 0.042)
    assert step(noisy, num_nodes=1000).stragglers_s > 3 * step(noisy).stragglers_s


def test_ranks_that_share_a_core_take_longer_together() -> None:
    shared = step(replace(MACHINE, noise=0.05, overlap=0.0, slowdown=2.0, sharing=2.0))
    own = step(replace(MACHINE, noise=0.05, overlap=0.0))
    assert shared.samples_s + shared.fixed_s == 2 * (own.samples_s + own.fixed_s)
    assert shared.network_s == pytest.approx(2 * own.network_s)
    assert shared.stragglers_s == pytest.approx(own.stragglers_s)  # who waits leaves the core to the slowest


def test_a_storage_that_is_too_slow_sets_the_pace_of_the_step() -> None:
    assert step(replace(MACHINE, storage_bytes_per_s=1e6)).total_s == pytest.approx(4 * 16 * 1e5 / 1e6)
    assert step(replace(MACHINE, storage_bytes_per_s=1e12)).input_s == 0.0


def point(batch_size: int, epochs: float) -> Point:
    return Point(quality=0.7, batch_size=batch_size, num_runs=5, mean_epochs=epochs, std_epochs=0.5)


def test_epochs_follow_the_points_and_grow_with_the_batch_beyond_them() -> None:
    points = (point(1000, 40.0), point(2000, 44.0), point(4000, 60.0))
    assert [expected_epochs(points, batch) for batch in (500, 1000, 1500, 3000, 4000)] == [40, 40, 42, 52, 60]
    assert expected_epochs(points, 8000) == 120
    assert expected_epochs(points, 500, "steps") == 20


def official_job(**changes: object) -> Job:
    edition = load_edition()
    settings = edition.workload("resnet50").resolve("official", "free", {})
    return replace(make_job(edition, "resnet50", "official", settings), **changes)  # type: ignore[arg-type]


def test_the_official_job_is_that_of_the_rules() -> None:
    job = official_job()
    assert (job.num_epochs, job.num_train_samples, job.largest_batch) == (90, 1_281_167, 256)
    assert job.gradient_bytes == 4 * 25_557_032
    assert job.epochs_to_quality(32_768) == 56.0
    assert job.is_reached(65_536)
    assert not job.is_reached(100_000)
    assert official_job(observed_epochs=80.0).epochs_to_quality(32_768) == 80.0


def test_compressed_gradients_are_half_as_large() -> None:
    edition = load_edition()
    settings = edition.workload("resnet50").resolve("official", "free", {}) | {"gradient_compression": "bf16"}
    assert 2 * make_job(edition, "resnet50", "official", settings).gradient_bytes == official_job().gradient_bytes
