"""One suite for all picture pipelines: each shows the same samples, the same windows and nearly the same pixels."""

from __future__ import annotations

import io
import multiprocessing
import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_files import encode, picture, pictures, write
from PIL import Image

from hpcai500.errors import BackendUnavailableError, DataError, SampleError, UnknownNameError, UsageError
from hpcai500.pipelines.hdf5 import ImageSplit
from hpcai500.pipelines.image_pipeline import ImageBatch, ImagePipelineConfig, open_image_pipeline
from hpcai500.pipelines.pipeline import Pipeline

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NUM_TRAIN, NUM_VALIDATION = 53, 21
VARIANTS = [
    pytest.param(("torch", 0), id="torch"),
    pytest.param(("torch", 2), id="torch-2-workers"),
    pytest.param(("dali", 1), id="dali", marks=pytest.mark.dali),
]
Open = Callable[..., Pipeline]


@pytest.fixture(scope="module", name="data")
def data_fixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "pictures.h5"
    return write(path, pictures(NUM_TRAIN), pictures(NUM_VALIDATION, first_seed=1000))


def config_of(path: Path, **changes: Any) -> ImagePipelineConfig:
    settings: dict[str, Any] = {
        "path": path,
        "train_image_size": 32,
        "validation_image_size": 32,
        "validation_resize": 37,
        "mean": MEAN,
        "std": STD,
        "batch_size_per_rank": 4,
        "validation_batch_size": 4,
        "seed": 3,
    }
    return ImagePipelineConfig(**(settings | changes))


@pytest.fixture(name="opened")
def opened_fixture() -> Iterator[list[Pipeline]]:
    pipelines: list[Pipeline] = []
    yield pipelines
    for pipeline in pipelines:
        pipeline.close()


@pytest.fixture(params=VARIANTS, name="open_one")
def open_one_fixture(request: pytest.FixtureRequest, data: Path, opened: list[Pipeline]) -> Open:
    name, num_workers = request.param

    def open_one(path: Path = data, **changes: Any) -> Pipeline:
        opened.append(open_image_pipeline(name, config_of(path, **({"num_workers": num_workers} | changes))))
        return opened[-1]

    return open_one


def ids_of(batches: Iterator[ImageBatch]) -> list[int]:
    return [int(i) for batch in batches for i in batch.ids]


def pixels(batch: ImageBatch) -> np.ndarray:
    """Pictures with values 0..255, shape (n, side, side, 3)."""
    images = batch.images.permute(0, 2, 3, 1).double().numpy()
    return (images * STD + MEAN) * 255


# What a batch is


def test_batches_have_the_promised_shapes_types_and_labels(open_one: Open, data: Path):
    pipeline = open_one()
    batch = next(pipeline.train_batches(0))
    assert batch.images.shape == (4, 3, 32, 32)
    assert batch.images.dtype == torch.float32
    assert batch.labels.dtype == torch.int64
    assert batch.ids.dtype == np.int64
    assert batch.labels.tolist() == [int(i) % 10 for i in batch.ids]
    assert (pipeline.num_steps_per_epoch, pipeline.num_dropped_per_epoch) == (13, 1)
    assert (pipeline.num_train_samples, pipeline.num_validation_samples) == (NUM_TRAIN, NUM_VALIDATION)
    assert pipeline.num_classes == 10
    assert pipeline.dataset_sha256 == ImageSplit(data, "train").dataset_sha256
    assert pipeline.provenance["source"] == "generated"


@pytest.mark.parametrize("channels_last", [False, True])
def test_memory_format_is_as_asked_and_pixels_do_not_depend_on_it(open_one: Open, channels_last: bool):
    batch = next(open_one(channels_last=channels_last).train_batches(0))
    other = next(open_one(channels_last=not channels_last).train_batches(0))
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    assert batch.images.is_contiguous(memory_format=memory_format)
    assert torch.allclose(batch.images, other.images, atol=1e-5)


def test_batches_that_are_kept_do_not_change_while_later_ones_come(open_one: Open):
    pipeline = open_one()
    kept, copies = [], []
    for batch in pipeline.train_batches(0):
        kept.append(batch.images)
        copies.append(batch.images.clone())
    assert all(torch.equal(a, b) for a, b in zip(kept, copies, strict=True))


# Sharding, order, resuming


def open_rank(open_one: Open, rank: int, num_ranks: int, batch_size: int) -> Pipeline:
    """One of several ranks; without worker processes where there would be dozens."""
    few = {"num_workers": 0} if num_ranks > 3 else {}
    return open_one(rank=rank, num_ranks=num_ranks, batch_size_per_rank=batch_size, **few)


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 8])
def test_ranks_see_each_sample_once_in_the_order_of_one_rank(open_one: Open, num_ranks: int):
    def epoch(num_ranks: int) -> list[list[int]]:
        batch_size = 24 // num_ranks
        ranks = [open_rank(open_one, r, num_ranks, batch_size) for r in range(num_ranks)]
        assert all((rank.num_steps_per_epoch, rank.num_dropped_per_epoch) == (2, NUM_TRAIN - 48) for rank in ranks)
        steps = zip(*(rank.train_batches(1) for rank in ranks), strict=True)
        return [[int(i) for batch in step for i in batch.ids] for step in steps]

    used = epoch(num_ranks)
    assert used == epoch(1)
    assert len({i for step in used for i in step}) == 48


def test_pictures_do_not_depend_on_the_number_of_ranks(open_one: Open):
    whole = next(open_one(batch_size_per_rank=8).train_batches(0))
    halves = [next(open_one(rank=rank, num_ranks=2).train_batches(0)) for rank in range(2)]
    assert torch.equal(whole.images, torch.cat([half.images for half in halves]))


def test_order_and_crops_change_from_epoch_to_epoch_and_with_the_seed(open_one: Open):
    pipeline = open_one(batch_size_per_rank=NUM_TRAIN)
    first, second = next(pipeline.train_batches(0)), next(pipeline.train_batches(1))
    other = next(open_one(batch_size_per_rank=NUM_TRAIN, seed=4).train_batches(0))
    for batch in (second, other):
        assert batch.ids.tolist() != first.ids.tolist()
        same_order = batch.images[np.argsort(batch.ids)]
        assert not torch.equal(same_order, first.images[np.argsort(first.ids)])


@pytest.mark.parametrize("first_step", [0, 1, 9, 13])
def test_a_resumed_epoch_holds_exactly_the_rest_with_identical_pixels(open_one: Open, first_step: int):
    pipeline = open_one()
    whole = list(pipeline.train_batches(2))
    rest = list(open_one().train_batches(2, first_step))
    assert len(rest) == 13 - first_step
    for expected, batch in zip(whole[first_step:], rest, strict=True):
        assert batch.ids.tolist() == expected.ids.tolist()
        assert torch.equal(batch.images, expected.images)


def test_an_epoch_given_up_midway_leaves_nothing_behind(open_one: Open):
    pipeline = open_one()
    expected = [batch.images.clone() for batch in pipeline.train_batches(0)]
    abandoned = pipeline.train_batches(5)
    next(abandoned)
    again = [batch.images for batch in pipeline.train_batches(0)]
    assert all(torch.equal(a, b) for a, b in zip(expected, again, strict=True))
    assert list(abandoned) == []


def test_validation_may_happen_in_the_middle_of_an_epoch(open_one: Open):
    pipeline = open_one()
    whole = ids_of(pipeline.train_batches(0))
    batches = pipeline.train_batches(0)
    seen = ids_of(iter([next(batches)]))
    assert sorted(ids_of(pipeline.validation_batches())) == list(range(NUM_VALIDATION))
    assert seen + ids_of(batches) == whole


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 8, 30])
def test_validation_sees_each_sample_once_for_any_number_of_ranks(open_one: Open, num_ranks: int):
    ranks = [open_rank(open_one, rank, num_ranks, 1) for rank in range(num_ranks)]
    assert sorted(i for rank in ranks for i in ids_of(rank.validation_batches())) == list(range(NUM_VALIDATION))


def test_fewer_samples_may_be_asked_for(open_one: Open):
    pipeline = open_one(num_train_samples=8, num_validation_samples=5)
    assert sorted(ids_of(pipeline.train_batches(0))) == list(range(8))
    assert ids_of(pipeline.validation_batches()) == list(range(5))


# Pixels


def expected_validation(sample: bytes, resize: int, side: int) -> np.ndarray:
    """torchvision's Resize and CenterCrop, written down once more."""
    image = Image.open(io.BytesIO(sample)).convert("RGB")
    short = min(image.size)
    image = image.resize((resize * image.width // short, resize * image.height // short), Image.Resampling.BILINEAR)
    left, top = round((image.width - side) / 2), round((image.height - side) / 2)
    return np.asarray(image.crop((left, top, left + side, top + side)))


def test_validation_is_resize_and_centre_crop_of_pillow(open_one: Open):
    for batch in open_one(validation_resize=40).validation_batches():
        samples = pictures(NUM_VALIDATION, first_seed=1000)
        expected = np.stack([expected_validation(samples[i], 40, 32) for i in batch.ids])
        difference = np.abs(pixels(batch) - expected)
        assert difference.mean() < 0.5
        assert difference.max() < 4


def test_a_validation_picture_of_the_right_size_is_shown_as_it_is(open_one: Open, tmp_path: Path):
    sample = encode(picture(5, 32, 32))
    path = write(tmp_path / "one.h5", [sample] * 4, [sample])
    (batch,) = open_one(path, validation_resize=32).validation_batches()
    assert np.allclose(pixels(batch)[0], np.asarray(Image.open(io.BytesIO(sample))), atol=1e-3)


def gradient(height: int, width: int) -> Image.Image:
    """A picture whose red says the column and whose green says the row: it tells which window is shown."""
    rows, columns = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([columns, rows, 0 * rows], axis=2).astype(np.uint8))


def test_training_shows_the_windows_and_flips_of_sampling(open_one: Open, tmp_path: Path):
    from hpcai500.pipelines import sampling

    height, width = 120, 200
    path = write(tmp_path / "gradient.h5", [encode(gradient(height, width), "PNG")] * 24, pictures(1))
    batch = next(open_one(path, batch_size_per_rank=24).train_batches(7))
    sizes = np.tile(np.array([height, width]), (24, 1))
    crops = sampling.random_crops(3, 7, batch.ids, sizes)
    flips = sampling.random_flips(3, 7, batch.ids)
    assert 4 <= flips.sum() <= 20
    for shown, (top, left, crop_height, crop_width), flip in zip(pixels(batch), crops, flips, strict=True):
        columns = shown[16, :, 0][:: -1 if flip else 1]
        rows = shown[:, 16, 1]
        middles = np.arange(32) + 0.5
        inner = slice(2, -2)  # at the edges the filter is cut off
        assert np.allclose(columns[inner], (left + middles * crop_width / 32 - 0.5)[inner], atol=1.1)
        assert np.allclose(rows[inner], (top + middles * crop_height / 32 - 0.5)[inner], atol=1.1)


def test_flips_can_be_turned_off(open_one: Open, tmp_path: Path):
    path = write(tmp_path / "gradient.h5", [encode(gradient(120, 200), "PNG")] * 24, pictures(1))
    batch = next(open_one(path, batch_size_per_rank=24, horizontal_flip=False).train_batches(7))
    shown = pixels(batch)
    assert (shown[:, 16, 20, 0] > shown[:, 16, 10, 0]).all()


def strange_pictures() -> dict[str, bytes]:
    image = picture(9, 60, 80)
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn by 90 degrees", which ImageNet's sizes and windows ignore
    return {
        "grey": encode(image.convert("L")),
        "cmyk": encode(image.convert("CMYK")),
        "png": encode(image, "PNG"),
        "palette": encode(image.convert("P"), "PNG"),
        "progressive": encode(image, progressive=True),
        "444": encode(image, subsampling=0),
        "turned": encode(image, exif=exif),
    }


def test_grey_cmyk_png_and_other_kinds_become_rgb(open_one: Open, tmp_path: Path):
    samples = list(strange_pictures().values())
    path = write(tmp_path / "strange.h5", samples, samples)
    (batch,) = open_one(path, validation_batch_size=len(samples)).validation_batches()
    for shown, sample, kind in zip(pixels(batch), samples, strange_pictures(), strict=True):
        assert np.abs(shown - expected_validation(sample, 37, 32)).mean() < 0.5, kind


@pytest.mark.dali
def test_pipelines_agree_within_rounding(data: Path, tmp_path: Path, opened: list[Pipeline]):
    strange = write(tmp_path / "strange.h5", list(strange_pictures().values()), list(strange_pictures().values()))
    for path in (data, strange):
        ours, theirs = (open_image_pipeline(name, config_of(path, num_workers=1)) for name in ("torch", "dali"))
        opened += [ours, theirs]
        pairs = [
            *zip(ours.train_batches(0), theirs.train_batches(0), strict=True),
            *zip(ours.validation_batches(), theirs.validation_batches(), strict=True),
        ]
        for a, b in pairs:
            assert a.ids.tolist() == b.ids.tolist()
            difference = np.abs(pixels(a) - pixels(b))
            assert difference.mean() < 0.5  # of 255; both round to whole levels once or twice
            assert difference.max() < 4


# Pictures that do not decode


def damaged(tmp_path: Path, kind: str, split: str, index: int) -> Path:
    train, validation = pictures(12), pictures(6, first_seed=1000)
    samples = train if split == "train" else validation
    whole = samples[index]
    size = Image.open(io.BytesIO(whole)).size[::-1]
    samples[index] = {"half": whole[: len(whole) // 2], "rubbish": b"this is no picture" * 20, "header": whole[:100]}[
        kind
    ]
    return write(tmp_path / "damaged.h5", train, validation, {(split, index): size})


@pytest.mark.parametrize("kind", ["half", "rubbish", "header"])
def test_a_picture_that_does_not_decode_stops_and_is_named(open_one: Open, tmp_path: Path, kind: str):
    # A window of the upper half might not need what is missing, so the whole picture is the window.
    pipeline = open_one(damaged(tmp_path, kind, "train", 7), crop_area=(0.99, 1.0), crop_aspect=(0.4, 2.5))
    with pytest.raises(SampleError, match=r"damaged.h5: train sample 7 \(train-000007.JPEG\) does not decode"):
        list(pipeline.train_batches(0))


def test_a_damaged_validation_picture_stops_and_is_named(open_one: Open, tmp_path: Path):
    pipeline = open_one(damaged(tmp_path, "half", "validation", 4))
    with pytest.raises(SampleError, match=r"validation sample 4 \(validation-000004.JPEG\)"):
        list(pipeline.validation_batches())


@pytest.mark.parametrize("kind", ["rubbish", "header"])
def test_a_picture_that_does_not_decode_can_be_left_out_and_is_counted(open_one: Open, tmp_path: Path, kind: str):
    pipeline = open_one(damaged(tmp_path, kind, "train", 7), decode_errors="skip")
    batches = list(pipeline.train_batches(0))
    assert sorted(ids_of(iter(batches))) == [i for i in range(12) if i != 7]
    assert sorted(len(batch.images) for batch in batches) == [3, 4, 4]
    assert all(batch.labels.tolist() == (batch.ids % 10).tolist() for batch in batches)
    assert pipeline.num_skipped == 1
    whole = {
        int(i): image
        for batch in open_one(write(tmp_path / "whole.h5", pictures(12), pictures(6))).train_batches(0)
        for i, image in zip(batch.ids, batch.images, strict=True)
    }
    for batch in batches:
        for i, image in zip(batch.ids, batch.images, strict=True):
            assert (image - whole[int(i)]).abs().max() < 0.1
    list(pipeline.train_batches(1))
    assert pipeline.num_skipped == 2


def test_a_damaged_validation_picture_can_be_left_out(open_one: Open, tmp_path: Path):
    pipeline = open_one(damaged(tmp_path, "half", "validation", 4), decode_errors="skip", validation_batch_size=1)
    assert ids_of(pipeline.validation_batches()) == [0, 1, 2, 3, 5]
    assert pipeline.num_skipped == 1


def test_a_batch_without_any_picture_stops_even_when_skipping(open_one: Open, tmp_path: Path):
    pipeline = open_one(damaged(tmp_path, "rubbish", "train", 7), decode_errors="skip", batch_size_per_rank=1)
    with pytest.raises(SampleError, match=r"none of the 1 pictures of a batch decodes, the first being train sample 7"):
        list(pipeline.train_batches(0))


def test_a_picture_of_another_size_than_the_file_says_is_named(open_one: Open, tmp_path: Path):
    path = write(tmp_path / "sizes.h5", pictures(4), [encode(picture(1, 50, 60))], {("validation", 0): (70, 60)})
    with pytest.raises(SampleError, match=r"validation sample 0 .*it is 50 x 60, but the file says 70 x 60"):
        list(open_one(path).validation_batches())


def test_a_file_cut_short_while_training_is_a_data_error(open_one: Open, tmp_path: Path):
    path = write(tmp_path / "cut.h5", pictures(12), pictures(2))
    pipeline = open_one(path)
    with path.open("r+b") as file:
        file.truncate(9000)
    with pytest.raises(DataError, match=r"cut.h5"):
        list(pipeline.train_batches(0))


# Processes


def read_in_child(split: ImageSplit, connection: Any) -> None:
    connection.send([split.read(np.array([i]))[0].tobytes() for i in range(split.num_samples)])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_file_opened_before_a_process_starts_is_read_rightly_by_both(data: Path, method: str):
    split = ImageSplit(data, "train", 10)
    expected = pictures(NUM_TRAIN)[:10]
    split.read(np.array([3]))
    context = multiprocessing.get_context(method)
    ours, theirs = context.Pipe()
    child = context.Process(target=read_in_child, args=(split, theirs))
    child.start()
    here = [split.read(np.array([i]))[0].tobytes() for i in range(10)]
    assert ours.recv() == here == expected
    child.join()


def test_the_dataset_of_the_workers_can_be_pickled_for_other_start_methods(data: Path):
    from hpcai500.pipelines.torch_loader import Renderer, Request

    renderer = Renderer(config_of(data), ImageSplit(data, "train"), 1)
    request = Request(0, np.array([1, 2]), 0)
    expected = renderer[request]
    answer = pickle.loads(pickle.dumps(renderer))[request]
    assert answer.ids.tolist() == expected.ids.tolist() == [1, 2]


def test_closing_ends_the_workers(data: Path):
    before = set(multiprocessing.active_children())
    pipeline = open_image_pipeline("torch", config_of(data, num_workers=2))
    next(pipeline.train_batches(0))
    assert len(set(multiprocessing.active_children()) - before) == 2
    pipeline.close()
    assert not set(multiprocessing.active_children()) - before


# What is not possible


@pytest.mark.parametrize("name", ["torch", pytest.param("dali", marks=pytest.mark.dali)])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size_per_rank": 0}, "batch_size_per_rank = 0 is too small"),
        ({"validation_batch_size": 0}, "validation_batch_size = 0 is too small"),
        ({"num_workers": -1}, "num_workers = -1 is too small"),
        ({"prefetch": 0}, "prefetch = 0 is too small"),
        ({"train_image_size": 0}, "train_image_size = 0 is too small"),
        ({"validation_resize": 31}, "validation_resize = 31 is too small; give at least 32"),
        ({"num_ranks": 0}, "num_ranks = 0 is too small"),
        ({"rank": 2, "num_ranks": 2}, "rank = 2 does not exist among 2 ranks"),
        ({"num_ranks": 60}, "60 ranks are more than the 53 training samples"),
        ({"batch_size_per_rank": 54}, "a global batch of 54 .* is larger than the 53 training samples"),
        ({"num_ranks": 6, "batch_size_per_rank": 9}, "give a batch size per rank of at most 8"),
        ({"crop_area": (0.0, 1.0)}, "crop_area"),
        ({"crop_area": (0.5, 1.5)}, "crop_area"),
        ({"crop_aspect": (2.0, 1.0)}, "crop_aspect"),
        ({"std": (1.0, 0.0, 1.0)}, "std"),
        ({"decode_errors": "ignore"}, "unknown way to treat decode errors 'ignore'"),
        ({"num_train_samples": 54}, "54 train samples"),
    ],
)
def test_impossible_settings_are_refused(data: Path, name: str, changes: dict[str, Any], message: str):
    with pytest.raises(UsageError, match=message):
        open_image_pipeline(name, config_of(data, **changes))


def test_a_step_beyond_the_epoch_is_refused(open_one: Open):
    with pytest.raises(UsageError, match="first_step = 14"):
        open_one().train_batches(0, 14)


def test_an_unknown_pipeline_lists_those_that_exist(data: Path):
    with pytest.raises(UnknownNameError, match=r"'dalli' \(did you mean 'dali'\?\); known: dali, torch"):
        open_image_pipeline("dalli", config_of(data))


def test_an_empty_validation_set_is_refused(open_one: Open, tmp_path: Path):
    with pytest.raises(DataError, match="validation"):
        open_one(write(tmp_path / "empty.h5", pictures(8), []))


def test_a_missing_file_is_refused(open_one: Open, tmp_path: Path):
    with pytest.raises(DataError, match=r"nowhere\.h5"):
        open_one(tmp_path / "nowhere.h5")


def test_without_dali_the_error_says_how_to_get_it(data: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)  # what Python itself does for "does not import"
    with pytest.raises(BackendUnavailableError, match=r"pip install 'hpcai500\[dali\]'"):
        open_image_pipeline("dali", config_of(data))
