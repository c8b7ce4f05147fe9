"""Which samples a rank trains on: the order of an epoch, its slices, and their digests."""

from __future__ import annotations

import numpy as np
import pytest

from hpcai500 import sample_order
from hpcai500.sample_order import EpochDigests


def test_splitmix64_draws_the_published_stream():
    # SplitMix64 seeded with 1234567: the first outputs, as in Vigna's reference code (prng.di.unimi.it/splitmix64.c).
    expected = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    states = np.uint64(1234567) + np.arange(1, 6, dtype=np.uint64) * np.uint64(sample_order.GOLDEN_GAMMA)
    assert sample_order.mix64(states).tolist() == expected


def test_order_is_a_permutation_that_depends_on_seed_and_epoch_only():
    order = sample_order.epoch_order(7, 3, 1000)
    assert sorted(order.tolist()) == list(range(1000))
    assert np.array_equal(order, sample_order.epoch_order(7, 3, 1000))
    assert not np.array_equal(order, sample_order.epoch_order(7, 4, 1000))
    assert not np.array_equal(order, sample_order.epoch_order(8, 3, 1000))


def test_order_never_changes_between_versions():
    assert sample_order.epoch_order(0, 0, 8).tolist() == [0, 2, 1, 5, 4, 3, 6, 7]


def test_every_position_of_the_order_is_equally_likely():
    firsts = [sample_order.epoch_order(seed, 0, 4)[0] for seed in range(2000)]
    assert np.bincount(firsts, minlength=4) == pytest.approx(500, abs=5 * 19.4)  # five standard deviations


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 8])
def test_ranks_together_use_each_sample_once_and_the_dropped_are_counted(num_ranks: int):
    num_samples, batch_size = 1003, 24 // num_ranks
    order = sample_order.epoch_order(5, 0, num_samples)
    steps = sample_order.num_steps(num_samples, batch_size, num_ranks)
    used = [
        sample_order.step_ids(order, step, batch_size, rank, num_ranks)
        for step in range(steps)
        for rank in range(num_ranks)
    ]
    assert np.array_equal(np.concatenate(used), order[: 1003 // 24 * 24])
    assert sample_order.num_dropped(num_samples, batch_size, num_ranks) == 1003 % 24


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 8])
def test_validation_shards_hold_each_sample_once(num_ranks: int):
    shards = [sample_order.validation_ids(21, rank, num_ranks) for rank in range(num_ranks)]
    assert sorted(np.concatenate(shards).tolist()) == list(range(21))


def test_digests_of_ranks_add_up_whatever_the_order():
    order = sample_order.epoch_order(1, 0, 100)
    whole = sample_order.sample_digest(order)
    parts = sample_order.sample_digest(order[:40][::-1]) + sample_order.sample_digest(order[40:])
    assert parts % 2**64 == whole
    assert sample_order.sample_digest(np.array([], dtype=np.int64)) == 0


@pytest.mark.parametrize("other", [[0, 1, 2, 2], [1, 2, 3], [0, 1, 2, 4], [0, 0, 1, 2, 3]])
def test_digest_tells_a_missing_a_doubled_and_a_swapped_sample(other: list[int]):
    assert sample_order.sample_digest(np.array(other)) != sample_order.sample_digest(np.arange(4))


def test_the_order_is_the_stable_argsort_of_the_draws_at_the_size_of_imagenet():
    num_samples = 1_281_167
    draws = np.random.Philox(key=np.array([0, 38], dtype=np.uint64)).random_raw(num_samples)
    upper = np.sort(draws >> np.uint64(32))
    assert (upper[1:] == upper[:-1]).any()
    assert np.array_equal(sample_order.epoch_order(0, 38, num_samples), np.argsort(draws, kind="stable"))


@pytest.mark.parametrize("bits", [0xFF000000FF, 0xF, 0xF << 60, 0])
def test_draws_that_agree_in_their_upper_half_are_sorted_by_all_bits(monkeypatch: pytest.MonkeyPatch, bits: int):
    draws = np.random.Philox(1).random_raw(10_000) & np.uint64(bits)  # some agree in all bits, too
    monkeypatch.setattr(sample_order, "_draws", lambda *_: draws)
    sample_order.epoch_order.cache_clear()
    assert np.array_equal(sample_order.epoch_order(0, 0, len(draws)), np.argsort(draws, kind="stable"))


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 8])
def test_the_digest_of_every_part_on_every_rank_is_that_of_its_ids(num_ranks: int):
    num_samples, global_batch = 1003, 24
    digests = EpochDigests(5, 2, num_samples=num_samples, global_batch=global_batch)
    order = sample_order.epoch_order(5, 2, num_samples)
    assert digests.whole == sample_order.sample_digest(order[: 1003 // 24 * 24])
    for first_step, steps in ((0, 41), (0, 1), (40, 1), (7, 30)):
        for rank in range(num_ranks):
            ids = [
                sample_order.step_ids(order, step, global_batch // num_ranks, rank, num_ranks)
                for step in range(first_step, first_step + steps)
            ]
            expected = sample_order.sample_digest(np.concatenate(ids))
            assert digests.of_part(rank, num_ranks, first_step=first_step, steps=steps) == expected


def test_an_epoch_without_a_whole_batch_has_no_digest():
    assert EpochDigests(5, 2, num_samples=10, global_batch=24).whole == 0
