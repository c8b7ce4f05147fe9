"""Mirror, roll and normalisation of single samples and their boxes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from climate_files import HEIGHT, SHAPE, WIDTH, sample
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcai500.pipelines.climate_facts import CHANNELS, ChannelStatistics, Statistics
from hpcai500.pipelines.climate_transform import (
    MAX_BOXES,
    Transform,
    Turn,
    join_at_seam,
    pad_boxes,
    plan_turns,
    turn_boxes,
)


def boxes_of(*rows: list[float]) -> tuple[np.ndarray, np.ndarray]:
    table = np.array(rows, np.float32).reshape(-1, 5)
    return table[:, :4], table[:, 4].astype(np.int64)


def rows(boxes: np.ndarray, classes: np.ndarray) -> list[list[float]]:
    return sorted(np.column_stack([boxes, classes]).tolist())


def turned(*boxes: list[float], mirror: bool = False, roll: int = 0) -> list[list[float]]:
    return rows(*turn_boxes(*boxes_of(*boxes), Turn(mirror, roll), HEIGHT, WIDTH))


# Boxes


def test_a_mirrored_box_keeps_its_columns_and_its_size():
    assert turned([2, 10, 8, 20, 1], mirror=True) == [[2, 4, 8, 14, 1]]


def test_a_rolled_box_moves_to_the_east():
    assert turned([2, 10, 8, 20, 1], roll=5) == [[7, 10, 13, 20, 1]]
    assert turned([2, 10, 8, 20, 1], roll=28) == [[30, 10, 36, 20, 1]]
    assert turned([30, 10, 36, 20, 1], roll=6) == [[0, 10, 6, 20, 1]]


def test_a_box_across_the_seam_is_cut_in_two():
    assert turned([2, 10, 8, 20, 1], roll=31) == [[0, 10, 3, 20, 1], [33, 10, 36, 20, 1]]


@pytest.mark.parametrize(("roll", "expected"), [(29, [[31, 36]]), (30, [[0, 2], [32, 36]]), (33, [[0, 5]])])
def test_a_part_narrower_than_a_quarter_is_dropped(roll: int, expected: list[list[int]]):
    boxes = turned([2, 10, 8, 20, 1], roll=roll)  # 6 columns: 1 is less than a quarter, 2 is more
    assert [[x1, x2] for x1, _, x2, _, _ in boxes] == expected


def test_a_part_of_exactly_a_quarter_is_kept():
    assert turned([0, 10, 8, 20, 1], roll=30) == [[0, 10, 2, 20, 1], [30, 10, 36, 20, 1]]


def test_boxes_that_the_file_cut_are_joined_before_they_are_rolled():
    halves = [30, 3, 36, 9, 2], [0, 3, 4, 9, 2]
    assert turned(*halves, roll=10) == [[4, 3, 14, 9, 2]]
    assert turned(*halves, roll=10, mirror=True) == [[4, 15, 14, 21, 2]]
    assert turned(*halves) == sorted(halves)


@pytest.mark.parametrize("east", [[0, 3, 4, 9, 1], [0, 3, 4, 10, 2], [0, 4, 4, 9, 2], [1, 3, 4, 9, 2]])
def test_boxes_of_another_class_or_other_rows_are_not_joined(east: list[float]):
    boxes, classes = boxes_of([30, 3, 36, 9, 2], east)
    assert rows(*join_at_seam(boxes, classes, WIDTH)) == rows(boxes, classes)


def test_each_half_is_joined_to_one_other():
    boxes, classes = boxes_of([30, 3, 36, 9, 2], [33, 3, 36, 9, 2], [0, 3, 4, 9, 2])
    assert len(join_at_seam(boxes, classes, WIDTH)[0]) == 2


def test_a_box_round_the_globe_stays_one():
    assert turned([0, 3, 36, 9, 3], roll=10) == [[0, 3, 36, 9, 3]]
    assert turned([20, 3, 36, 9, 3], [0, 3, 20, 9, 3], roll=10) == [[0, 3, 36, 9, 3]]


def test_no_boxes_stay_none():
    assert turned(mirror=True, roll=3) == []


box_strategy = st.builds(
    lambda x1, y1, w, h, number: [x1, y1, min(x1 + w, WIDTH), min(y1 + h, HEIGHT), number],
    st.integers(0, WIDTH - 1),
    st.integers(0, HEIGHT - 1),
    st.integers(1, WIDTH),
    st.integers(1, HEIGHT),
    st.integers(0, 3),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(box_strategy, max_size=15), st.booleans(), st.integers(0, WIDTH - 1))
def test_boxes_cover_what_they_covered_less_narrow_parts(boxes: list[Any], mirror: bool, roll: int):
    def covered(some: list[Any]) -> np.ndarray:
        counts = np.zeros((4, HEIGHT, WIDTH), np.int64)
        for x1, y1, x2, y2, number in some:
            counts[int(number), int(y1) : int(y2), int(x1) : int(x2)] += 1
        return counts

    result = turned(*boxes, mirror=mirror, roll=roll)
    assert len(result) <= 2 * len(boxes) <= MAX_BOXES
    for x1, y1, x2, y2, _ in result:
        assert 0 <= x1 < x2 <= WIDTH
        assert 0 <= y1 < y2 <= HEIGHT
    before = np.roll(covered(boxes)[:, :: -1 if mirror else 1], roll, axis=2)
    lost = before - covered(result)
    # Joined boxes that overlap themselves, having gone round the globe, count once.
    if sum(x2 - x1 for x1, _, x2, _, _ in boxes if x1 == 0 or x2 == WIDTH) < WIDTH:
        assert lost.min() >= 0
        assert not lost[:, :, WIDTH // 4 : -WIDTH // 4].any()


def test_padding_holds_class_and_1_and_zeros():
    boxes, labels = pad_boxes([boxes_of([2, 10, 8, 20, 1], [0, 1, 2, 3, 0]), boxes_of()])
    assert boxes.shape == (2, MAX_BOXES, 4)
    assert labels[:, :3].tolist() == [[2, 1, 0], [0, 0, 0]]
    assert boxes[0, :3].tolist() == [[2, 10, 8, 20], [0, 1, 2, 3], [0, 0, 0, 0]]
    assert not boxes[1].any()
    assert not labels[:, 3:].any()


# Draws


def test_draws_depend_on_seed_epoch_and_sample_alone_and_are_even():
    ids = np.arange(4000)
    turns = plan_turns(1, 2, ids, WIDTH, mirror=True, roll=True)
    assert plan_turns(1, 2, ids[1000:1010], WIDTH, mirror=True, roll=True) == turns[1000:1010]
    assert plan_turns(1, 3, ids, WIDTH, mirror=True, roll=True) != turns
    assert plan_turns(2, 2, ids, WIDTH, mirror=True, roll=True) != turns
    assert abs(sum(turn.mirror for turn in turns) / 4000 - 0.5) < 0.04
    counts = np.bincount([turn.roll for turn in turns], minlength=WIDTH)
    assert len(counts) == WIDTH
    assert counts.min() > 70  # 111 expected
    assert plan_turns(1, 2, ids, WIDTH, mirror=False, roll=False) == [Turn()] * 4000
    only_rolled = plan_turns(1, 2, ids, WIDTH, mirror=False, roll=True)
    assert [turn.roll for turn in only_rolled] == [turn.roll for turn in turns]


# Fields


def statistics() -> Statistics:
    channels = tuple(
        ChannelStatistics(
            one.name,
            one.unit,
            *one.plausible,
            0.49 * sum(one.plausible) + 0.01 * one.plausible[1],
            0.05 * one.plausible[1],
        )
        for one in CHANNELS
    )
    return Statistics((), channels, (), "", {})


@pytest.mark.parametrize("turn", [Turn(), Turn(True, 0), Turn(False, 7), Turn(True, 35)])
def test_fields_are_normalised_mirrored_and_rolled(turn: Turn):
    transform = Transform(statistics(), SHAPE, torch.device("cpu"))
    raw = torch.from_numpy(sample(5))
    before, out = raw.clone(), torch.full(SHAPE, torch.nan)
    means = transform(raw, out, turn, transform.scratch())
    expected = np.empty(SHAPE)
    for k, (field, channel, facts) in enumerate(
        zip(raw.double().numpy(), CHANNELS, statistics().channels, strict=True)
    ):
        physical = field
        if turn.mirror:  # the same weather in the other hemisphere: what blew to the north blows to the south
            physical = -field[::-1] if channel.name in ("VBOT", "V850") else field[::-1]
        expected[k] = (np.roll(physical, turn.roll, axis=1) - facts.mean) / facts.std
    assert np.abs(out.double().numpy() - expected).max() < 2e-5
    assert np.allclose(means.numpy(), expected.mean((1, 2)), atol=2e-5)
    assert torch.equal(raw, before)
    assert torch.equal(transform(raw, raw, turn, transform.scratch()), means)
    assert torch.equal(raw, out)


def test_mirroring_twice_gives_the_field_again():
    """With mean 0 and std 1 the transform is the mirror alone."""
    plain = Statistics((), tuple(ChannelStatistics(c.name, c.unit, 0, 1, 0, 1) for c in CHANNELS), (), "", {})
    transform = Transform(plain, SHAPE, torch.device("cpu"))
    raw = torch.from_numpy(sample(5))
    once, twice, scratch = torch.empty(SHAPE), torch.empty(SHAPE), transform.scratch()
    transform(raw, once, Turn(True, 10), scratch)
    transform(once, twice, Turn(True, WIDTH - 10), scratch)
    assert torch.equal(raw, twice)
    assert not torch.equal(raw, once)


def test_divergence_and_vorticity_of_the_wind_mirror_as_in_nature():
    """A mirror keeps the divergence and turns the sign of the vorticity: a cyclone of the north is one of the south."""
    plain = Statistics((), tuple(ChannelStatistics(c.name, c.unit, 0, 1, 0, 1) for c in CHANNELS), (), "", {})
    transform = Transform(plain, SHAPE, torch.device("cpu"))
    raw, out = torch.from_numpy(sample(5)), torch.empty(SHAPE)
    transform(raw, out, Turn(True, 0), transform.scratch())

    def derivatives(fields: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Divergence and vorticity of U850 (9) and V850 (11), rows going north."""
        u, v = fields[9].double().numpy(), fields[11].double().numpy()
        (u_y, u_x), (v_y, v_x) = np.gradient(u), np.gradient(v)
        return u_x + v_y, v_x - u_y

    divergence, vorticity = derivatives(raw)
    mirrored_divergence, mirrored_vorticity = derivatives(out)
    assert np.allclose(mirrored_divergence, divergence[::-1])
    assert np.allclose(mirrored_vorticity, -vorticity[::-1])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_the_mean_of_a_channel_tells_of_a_value_that_is_not_finite(value: float):
    transform = Transform(statistics(), SHAPE, torch.device("cpu"))
    raw = torch.from_numpy(sample(5))
    raw[7, 3, 4] = value
    means = transform(raw, torch.empty(SHAPE), Turn(True, 3), transform.scratch())
    assert (~means.isfinite()).nonzero().flatten().tolist() == [7]
