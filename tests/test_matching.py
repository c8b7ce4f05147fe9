"""Which boxes are examples of which objects, and which of them are sampled."""

from __future__ import annotations

import torch

from hpcai500.models.matching import IGNORED, NEGATIVE, POSITIVE, Matches, match_boxes, sample_boxes, take


def match(iou: list[list[float]], *, keep_best: bool, is_object: list[bool] | None = None) -> Matches:
    """Matches of one image; rows are objects, columns boxes."""
    there = [True] * len(iou) if is_object is None else is_object
    return match_boxes(
        torch.tensor([iou]),
        torch.tensor([there]),
        positive_iou=0.7,
        negative_iou=0.3,
        keep_best_of_object=keep_best,
    )


def test_thresholds_separate_positive_ignored_and_negative() -> None:
    matches = match([[0.8, 0.7, 0.69, 0.3, 0.29, 0.0]], keep_best=False)
    assert matches.kinds[0].tolist() == [POSITIVE, POSITIVE, IGNORED, IGNORED, NEGATIVE, NEGATIVE]


def test_a_box_belongs_to_the_object_it_overlaps_most() -> None:
    matches = match([[0.8, 0.1], [0.75, 0.9]], keep_best=False)
    assert matches.objects[0].tolist() == [0, 1]


def test_the_nearest_boxes_of_an_object_are_positive_however_far() -> None:
    matches = match([[0.2, 0.1, 0.2]], keep_best=True)
    assert matches.kinds[0].tolist() == [POSITIVE, NEGATIVE, POSITIVE]  # ties count
    assert match([[0.2, 0.1, 0.2]], keep_best=False).kinds[0].tolist() == [NEGATIVE] * 3


def test_the_nearest_box_of_an_object_may_belong_to_another_one() -> None:
    # Box 0 is the nearest to object 1, but overlaps object 0 more.
    matches = match([[0.6, 0.9], [0.5, 0.1]], keep_best=True)
    assert matches.kinds[0].tolist() == [POSITIVE, POSITIVE]
    assert matches.objects[0].tolist() == [0, 0]


def test_an_object_that_no_box_overlaps_matches_none() -> None:
    assert match([[0.0, 0.0]], keep_best=True).kinds[0].tolist() == [NEGATIVE, NEGATIVE]


def test_padding_matches_nothing() -> None:
    matches = match([[0.9, 0.9], [0.4, 0.2]], keep_best=True, is_object=[False, True])
    assert matches.kinds[0].tolist() == [POSITIVE, NEGATIVE]
    assert matches.objects[0].tolist() == [1, 1]
    nothing = match([[0.9, 0.9]], keep_best=True, is_object=[False])
    assert nothing.kinds[0].tolist() == [NEGATIVE, NEGATIVE]


def kinds_of(num_positives: int, num_negatives: int, num_ignored: int) -> torch.Tensor:
    row = [POSITIVE] * num_positives + [NEGATIVE] * num_negatives + [IGNORED] * num_ignored
    shuffled = torch.tensor(row)[torch.randperm(len(row), generator=torch.Generator().manual_seed(0))]
    return shuffled.unsqueeze(0)


def test_positives_are_at_most_their_fraction_and_negatives_fill_up() -> None:
    sample = sample_boxes(kinds_of(30, 100, 20), num_samples=16, positive_fraction=0.25)
    assert sample.is_sampled.all()
    assert sample.is_positive[0].tolist() == [True] * 4 + [False] * 12


def test_few_positives_leave_room_for_more_negatives() -> None:
    kinds = kinds_of(2, 100, 20)
    sample = sample_boxes(kinds, num_samples=16, positive_fraction=0.5)
    assert int(sample.is_positive.sum()) == 2
    assert int(sample.is_sampled.sum()) == 16
    chosen = kinds.gather(1, sample.indices)
    assert torch.equal(chosen == POSITIVE, sample.is_positive)
    assert (chosen != IGNORED).all()


def test_an_image_with_fewer_examples_than_samples_gets_them_all_once() -> None:
    kinds = kinds_of(5, 4, 3)
    sample = sample_boxes(kinds, num_samples=100, positive_fraction=0.5)
    assert sample.indices.shape == (1, 12)
    chosen = sample.indices[sample.is_sampled]
    assert sorted(chosen.tolist()) == [i for i, kind in enumerate(kinds[0].tolist()) if kind != IGNORED]


def test_without_positives_only_negatives_are_sampled_and_without_either_nothing() -> None:
    sample = sample_boxes(kinds_of(0, 50, 0), num_samples=8, positive_fraction=0.5)
    assert not sample.is_positive.any()
    assert sample.is_sampled.all()
    assert not sample_boxes(kinds_of(0, 0, 50), num_samples=8, positive_fraction=0.5).is_sampled.any()


def test_every_box_is_sampled_equally_often() -> None:
    torch.manual_seed(11)
    kinds = kinds_of(10, 30, 10).expand(2000, -1)
    sample = sample_boxes(kinds, num_samples=12, positive_fraction=0.5)
    counts = torch.zeros(2000, 50).scatter_add_(1, sample.indices, sample.is_sampled.float()).mean(dim=0)
    share = {POSITIVE: 6 / 10, NEGATIVE: 6 / 30, IGNORED: 0.0}
    expected = torch.tensor([share[kind] for kind in kinds[0].tolist()])
    assert (counts - expected).abs().max() < 0.05  # a deviation is at most 0.011


def test_samples_follow_the_seed() -> None:
    kinds = kinds_of(30, 100, 20)
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(sample_boxes(kinds, num_samples=16, positive_fraction=0.25).indices.tolist())
    assert drawn[0] == drawn[1] != drawn[2]


def test_rows_are_taken_from_their_own_batch() -> None:
    values = torch.arange(12).view(2, 3, 2)
    assert take(values, torch.tensor([[2, 0], [1, 1]])).tolist() == [[[4, 5], [0, 1]], [[8, 9], [8, 9]]]
