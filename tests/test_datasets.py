"""The converters: ImageNet in miniature, Fashion-MNIST's idx files, class folders, and the generator."""

from __future__ import annotations

import gzip
import hashlib
import io
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from pictures import make_class_folders, picture_bytes
from PIL import Image

from hpcai500.datasets import folder, generated
from hpcai500.datasets.fashion_mnist import prepare as fashion_mnist
from hpcai500.datasets.imagenet import prepare as imagenet
from hpcai500.errors import DataError, UsageError
from hpcai500.pipelines.hdf5 import ImageSplit, open_images

# ------------------------------------------------------------------------------------------------------------- ImageNet

WORDNET_IDS = ("n01440764", "n01443537", "n02119789")
VALIDATION_CLASSES = (2, 0, 1, 1, 0, 2)  # of the flat pictures in order
DEVKIT_ORDER = ("n02119789", "n01440764", "n01443537")  # not sorted, as in the real kit
STEMS = [f"ILSVRC2012_val_{number:08d}" for number in range(1, 7)]


def make_imagenet(root: Path, train: str = "train", validation: str = "val") -> Path:
    make_class_folders(root / train, WORDNET_IDS, 3)
    (root / validation).mkdir(parents=True)
    for number, stem in enumerate(STEMS):
        (root / validation / f"{stem}.JPEG").write_bytes(picture_bytes(500 + number))
    return root


def wordnet_ids() -> list[str]:
    return [WORDNET_IDS[label] for label in VALIDATION_CLASSES]


def kaggle_csv(root: Path) -> None:
    rows = [f"{stem},{name} 10 20 30 40 {name} 1 2 3 4" for stem, name in zip(STEMS, wordnet_ids(), strict=True)]
    (root / "LOC_val_solution.csv").write_text("\n".join(["ImageId,PredictionString", *reversed(rows)]) + "\n")


def name_and_id(root: Path) -> None:
    rows = [f"{stem}.JPEG {name}" for stem, name in zip(STEMS, wordnet_ids(), strict=True)]
    (root / "val.txt").write_text("\n".join(rows))


def name_comma_id(root: Path) -> None:
    rows = [f"{stem}.JPEG,{name}" for stem, name in zip(STEMS, wordnet_ids(), strict=True)]
    (root / "val_labels.txt").write_text("file,class\n" + "\n".join(rows))


def one_id_a_line(root: Path) -> None:
    (root / "imagenet_2012_validation_synset_labels.txt").write_text("\n".join(wordnet_ids()) + "\n")


def ground_truth(root: Path) -> Path:
    kit = root / "ILSVRC2012_devkit_t12" / "data"
    kit.mkdir(parents=True)
    numbers = [str(DEVKIT_ORDER.index(name) + 1) for name in wordnet_ids()]
    (kit / "ILSVRC2012_validation_ground_truth.txt").write_text("\n".join(numbers) + "\n")
    return kit


def ground_truth_and_map(root: Path) -> None:
    lines = [f"{name} {number} some_animal" for number, name in enumerate(DEVKIT_ORDER, 1)]
    (ground_truth(root) / "map_clsloc.txt").write_text("\n".join(lines))


def ground_truth_and_mat(root: Path) -> None:
    """A MAT-file of version 5 as MATLAB writes it: text has two bytes a letter, elements are compressed."""
    cells = b"".join(
        bytes([number, 0, 0, 0]) + name.encode("utf-16-le") + "fox, n. 7".encode("utf-16-le")
        for number, name in enumerate(DEVKIT_ORDER, 1)
    )
    packed = zlib.compress(cells)
    element = (15).to_bytes(4, "little") + len(packed).to_bytes(4, "little") + packed
    (ground_truth(root) / "meta.mat").write_bytes(b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM" + element)


@pytest.mark.parametrize(
    "mapping",
    [kaggle_csv, name_and_id, name_comma_id, one_id_a_line, ground_truth_and_map, ground_truth_and_mat],
)
def test_imagenet_with_flat_validation_and_each_form_of_mapping(
    tmp_path: Path, mapping: Callable[[Path], None]
) -> None:
    root = make_imagenet(tmp_path / "ILSVRC2012")
    mapping(root)
    path = imagenet.prepare(tmp_path / "imagenet.h5", root, num_workers=1)
    train, validation = ImageSplit(path, "train"), ImageSplit(path, "validation")
    assert train.class_names == WORDNET_IDS
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert train.name(4) == "n01443537/n01443537_0001.JPEG"
    assert train.read_one(4) == (root / "train" / train.name(4)).read_bytes()
    assert validation.labels.tolist() == list(VALIDATION_CLASSES)
    assert validation.read_one(5) == (root / "val" / "ILSVRC2012_val_00000006.JPEG").read_bytes()
    assert validation.provenance["source"] == "imagenet"
    assert validation.provenance["is_whole"] is False


def test_imagenet_with_validation_in_class_folders_below_kaggles(tmp_path: Path) -> None:
    below = tmp_path / "ILSVRC" / "Data" / "CLS-LOC"
    make_class_folders(below / "train", WORDNET_IDS, 2)
    make_class_folders(below / "val", WORDNET_IDS[1:], 2)
    (below / "train" / "lists").mkdir()  # not a class
    path = imagenet.prepare(tmp_path / "imagenet.h5", tmp_path, num_workers=1)
    assert open_images(path).class_names == WORDNET_IDS
    assert ImageSplit(path, "validation").labels.tolist() == [1, 1, 2, 2]


def refused(tmp_path: Path, root: Path, message: str) -> None:
    with pytest.raises(DataError, match=message):
        imagenet.prepare(tmp_path / "imagenet.h5", root, num_workers=1)
    assert not (tmp_path / "imagenet.h5").exists()


def test_imagenet_without_its_parts_says_which_is_missing(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refused(tmp_path, tmp_path / "empty", "has no train or ILSVRC2012_img_train in it")
    make_class_folders(tmp_path / "only" / "train", WORDNET_IDS, 1)
    refused(tmp_path, tmp_path / "only", "has no val or validation")
    make_class_folders(tmp_path / "cats" / "train", ["cat", "dog"], 1)
    make_class_folders(tmp_path / "cats" / "val", ["cat", "dog"], 1)
    refused(tmp_path, tmp_path / "cats", "has no folders like n01440764")
    refused(
        tmp_path, make_imagenet(tmp_path / "flat"), "no file with their classes .* give one with --validation-labels"
    )


def test_a_mapping_that_does_not_fit_is_refused_with_the_place(tmp_path: Path) -> None:
    root = make_imagenet(tmp_path / "ILSVRC2012")
    labels = root / "val.txt"
    lines = [f"{stem}.JPEG {name}" for stem, name in zip(STEMS, wordnet_ids(), strict=True)]
    for text, message in [
        ("", "is empty"),
        ("\n".join(lines[:-1]), r"'ILSVRC2012_val_00000006.JPEG' has no label in .* \(1 such pictures\)"),
        ("\n".join([*lines, "ILSVRC2012_val_00000007.JPEG n01440764"]), "'ILSVRC2012_val_00000007' of .* is missing"),
        ("\n".join([*lines[:2], "ILSVRC2012_val_00000003.JPEG fish"]), "line 3 of .* has 'fish' where a WordNet id"),
        ("\n".join([*lines[:-1], lines[-1][:-9] + "n09999999"]), "class 'n09999999' of .* has no training pictures"),
        ("\n".join(wordnet_ids()[:-1]), "has 5 lines for 6 pictures"),
        ("\n".join("123123"), "numbers of .* need the development kit's meta.mat"),
    ]:
        labels.write_text(text)
        refused(tmp_path, root, message)
    (root / "synsets.txt").write_text("\n".join(DEVKIT_ORDER[:2]))
    refused(tmp_path, root, "line 3 of .* is '3'; expected a number that .* explains")


def test_a_damaged_meta_mat_is_refused(tmp_path: Path) -> None:
    root = make_imagenet(tmp_path / "ILSVRC2012")
    ground_truth_and_mat(root)
    mat = root / "ILSVRC2012_devkit_t12" / "data" / "meta.mat"
    mat.write_bytes(mat.read_bytes()[:140] + b"????" + mat.read_bytes()[144:])
    refused(tmp_path, root, "meta.mat' is damaged")
    mat.write_bytes(bytes(200))
    refused(tmp_path, root, "does not hold each WordNet id once")


# -------------------------------------------------------------------------------------------------------- Fashion-MNIST


def write_idx(path: Path, values: npt.NDArray[np.uint8], *, packed: bool = False) -> None:
    header = np.array([0x0800 + values.ndim, *values.shape], dtype=">u4").tobytes()
    data = header + values.tobytes()
    (path.with_name(path.name + ".gz") if packed else path).write_bytes(gzip.compress(data) if packed else data)


def make_idx_files(root: Path, num_train: int = 20, num_validation: int = 10) -> Path:
    root.mkdir(parents=True)
    rng = np.random.default_rng(1)
    for (images, labels), number in zip(fashion_mnist.FILES.values(), (num_train, num_validation), strict=True):
        smooth = rng.integers(0, 256, (number, 4, 4), dtype=np.uint8).repeat(7, axis=1).repeat(7, axis=2)
        write_idx(root / images, smooth, packed=True)
        write_idx(root / labels, (np.arange(number) % 10).astype(np.uint8))
    return root


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without Fashion-MNIST and without apt, whose mini size is small."""
    monkeypatch.setattr(fashion_mnist, "INSTALLED", Path("/none/fashion-mnist"))
    monkeypatch.setattr(fashion_mnist, "NUM_GENERATED", {"train": 20, "validation": 10})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))


def test_fashion_mnist_is_enlarged_and_stored_as_grey_jpeg(tmp_path: Path) -> None:
    source = make_idx_files(tmp_path / "idx")
    found = fashion_mnist.find_or_fail(source)
    path = fashion_mnist.prepare(tmp_path / "f.h5", found, num_workers=1)
    split = ImageSplit(path, "train")
    assert (split.num_samples, ImageSplit(path, "validation").num_samples) == (20, 10)
    assert split.class_names[9] == "Ankle boots"
    assert split.labels.tolist() == [*range(10), *range(10)]
    assert np.all(split.sizes == 64)
    assert split.provenance["formats"] == {"jpeg_grey": 30}
    assert "28 x 28" in split.provenance["description"]
    assert "bicubic" in split.provenance["description"]
    assert "quality 95" in split.provenance["description"]
    original = fashion_mnist.read_idx(source, fashion_mnist.FILES["train"][0], fashion_mnist.IMAGES_MAGIC)[7]
    expected = np.asarray(Image.fromarray(original).resize((64, 64), Image.Resampling.BICUBIC), dtype=float)
    with Image.open(io.BytesIO(split.read_one(7))) as picture:
        assert picture.mode == "L"
        assert np.abs(np.asarray(picture, dtype=float) - expected).mean() < 2.0


def test_broken_idx_files_are_refused(tmp_path: Path) -> None:
    source = make_idx_files(tmp_path / "idx")
    images, labels = fashion_mnist.FILES["train"]
    with pytest.raises(DataError, match="is not an idx file of magic number 2049"):
        fashion_mnist.read_idx(source, images, fashion_mnist.LABELS_MAGIC)
    (source / labels).write_bytes((source / labels).read_bytes()[:-1])
    with pytest.raises(DataError, match=r"holds 19 values, its header says \(20,\)"):
        fashion_mnist.read_idx(source, labels, fashion_mnist.LABELS_MAGIC)
    write_idx(source / labels, np.arange(19, dtype=np.uint8))
    with pytest.raises(DataError, match="has 20 pictures, train-labels-idx1-ubyte 19 labels up to 18"):
        fashion_mnist.prepare(tmp_path / "f.h5", fashion_mnist.Found(source, "given"), num_workers=1)
    packed = source / (images + ".gz")
    packed.write_bytes(packed.read_bytes()[:200])
    with pytest.raises(DataError, match="cannot be read"):
        fashion_mnist.read_idx(source, images, fashion_mnist.IMAGES_MAGIC)


@pytest.mark.usefixtures("nowhere")
def test_fashion_mnist_is_looked_for_where_given_then_installed_then_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fashion_mnist.find_or_fetch() is None
    with pytest.raises(DataError, match="give its folder with --source"):
        fashion_mnist.find_or_fail()
    cached = tmp_path / "cache" / "hpcai500" / "dataset-fashion-mnist" / "none" / "fashion-mnist"
    make_idx_files(cached)
    found = fashion_mnist.find_or_fetch()
    assert found is not None
    assert found.folder == cached
    assert found.origin.startswith("fetched")
    installed = make_idx_files(tmp_path / "installed")
    monkeypatch.setattr(fashion_mnist, "INSTALLED", installed)
    found = fashion_mnist.find_or_fetch()
    assert found is not None
    assert (found.folder, found.origin) == (installed, "installed: Debian's dataset-fashion-mnist")
    with pytest.raises(DataError, match="lacks train-images-idx3-ubyte, train-labels-idx1-ubyte"):
        fashion_mnist.find_or_fetch(tmp_path)


@pytest.mark.usefixtures("nowhere")
def test_fashion_mnist_is_fetched_and_unpacked_without_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """apt-get and dpkg are stood in for by scripts that do the same with files of the test."""
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    make_idx_files(tmp_path / "package" / "none" / "fashion-mnist")
    (tmp_path / "bin").mkdir()
    # The first download fails, as where the machine has no package lists; the one after `update` works.
    apt = f'cd "$PWD"; case "$*" in *download*) [ -e {tmp_path}/updated ] && touch dataset-fashion-mnist_1_all.deb;; '
    apt += f"*State::Lists*update) touch {tmp_path}/updated;; *) exit 9;; esac"
    dpkg = f'[ "$1" = -x ] && cp -r {tmp_path}/package/* "$3"'
    for name, body in (("apt-get", apt), ("dpkg", dpkg)):
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    found = fashion_mnist.find_or_fetch()
    assert found is not None
    assert found.origin == "fetched: Debian's dataset-fashion-mnist, with apt-get download"
    path = fashion_mnist.prepare_mini(tmp_path / "data" / "mini.h5", num_workers=1)
    assert open_images(path).provenance["source"] == "fashion_mnist"


@pytest.mark.usefixtures("nowhere")
def test_mini_is_generated_where_nothing_real_is_to_be_had_and_says_so(tmp_path: Path) -> None:
    path = fashion_mnist.prepare_mini(tmp_path / "mini.h5", num_workers=1)
    info = open_images(path)
    assert info.provenance["source"] == "generated"
    assert len(info.class_names) == 10
    modified_ns = path.stat().st_mtime_ns
    assert fashion_mnist.prepare_mini(path) == path
    assert path.stat().st_mtime_ns == modified_ns


@pytest.mark.usefixtures("nowhere")
def test_mini_refuses_a_file_that_holds_something_else(tmp_path: Path) -> None:
    path = generated.prepare(tmp_path / "other.h5", generated.Recipe(0, 3, 64, (20, 10)), num_workers=1)
    with pytest.raises(UsageError, match="exists and holds other pictures"):
        fashion_mnist.prepare_mini(path)


# --------------------------------------------------------------------------------------------------------------- folder


def test_a_folder_of_classes_is_split_by_seed(tmp_path: Path) -> None:
    root = make_class_folders(tmp_path / "source", ["a", "b"], 10)
    (root / "a" / "notes.txt").write_text("no picture")
    names = {}
    for seed, output in ((0, "0.h5"), (0, "again.h5"), (1, "1.h5")):
        path = folder.prepare(tmp_path / output, root, validation_share=0.3, seed=seed, num_workers=1)
        train, validation = ImageSplit(path, "train"), ImageSplit(path, "validation")
        assert validation.labels.tolist() == [0] * 3 + [1] * 3
        names[output] = [validation.name(index) for index in range(6)]
        every = [*names[output], *(train.name(index) for index in range(14))]
        assert len(set(every)) == 20
    assert names["0.h5"] == names["again.h5"]
    assert names["0.h5"] != names["1.h5"]


def test_a_folder_with_train_and_validation_is_taken_as_it_is(tmp_path: Path) -> None:
    make_class_folders(tmp_path / "s" / "train", ["a", "b"], 2)
    make_class_folders(tmp_path / "s" / "validation", ["b"], 1)
    path = folder.prepare(tmp_path / "out.h5", tmp_path / "s", num_workers=1)
    assert ImageSplit(path, "train").labels.tolist() == [0, 0, 1, 1]
    assert ImageSplit(path, "validation").labels.tolist() == [1]


def test_folders_that_cannot_be_packed_are_refused(tmp_path: Path) -> None:
    def refuse(source: Path, message: str, share: float = 0.1) -> None:
        with pytest.raises((DataError, UsageError), match=message):
            folder.prepare(tmp_path / "out.h5", source, validation_share=share, num_workers=1)

    refuse(tmp_path / "none", r"cannot be listed \(No such file")
    (tmp_path / "empty").mkdir()
    refuse(tmp_path / "empty", "has no class folders")
    refuse(make_class_folders(tmp_path / "one", ["a"], 1), "has 1 pictures .* splitting needs two or more")
    two = make_class_folders(tmp_path / "two", ["a"], 2)
    refuse(two, "validation share 1.5 is not possible", share=1.5)
    (two / "a" / "a_0000.JPEG").write_bytes(b"")
    refuse(two, "a_0000.JPEG' is empty")
    make_class_folders(tmp_path / "t" / "train", ["a"], 1)
    refuse(tmp_path / "t", "has train but neither validation nor val")
    make_class_folders(tmp_path / "t" / "val", ["z"], 1)
    refuse(tmp_path / "t", "class 'z' of .* has no training pictures")
    (tmp_path / "t" / "train" / "z").mkdir()
    refuse(tmp_path / "t", "class 'z' of .* has no JPEG or PNG pictures")


# ------------------------------------------------------------------------------------------------------------ generator


def test_a_seed_gives_the_same_bytes_on_any_number_of_processes(tmp_path: Path) -> None:
    digests = []
    for seed, workers in ((7, 1), (7, 3), (8, 1)):
        path = tmp_path / f"{seed}-{workers}.h5"
        generated.prepare(path, generated.Recipe(seed, 4, 32, (510, 40)), num_workers=workers)
        digests.append(hashlib.sha256(path.read_bytes()).hexdigest())
    assert digests[0] == digests[1]
    assert digests[0] != digests[2]


def test_generated_classes_are_equal_in_number_and_in_random_order() -> None:
    labels = generated.Recipe(0, 7, 32, (700, 70)).labels("train")
    assert np.bincount(labels).tolist() == [100] * 7
    assert set(labels[:60].tolist()) == set(range(7))


@pytest.mark.parametrize("num_classes", [1, 10, 37, 1000])
def test_generated_classes_all_differ(num_classes: int) -> None:
    recipe = generated.Recipe(0, num_classes, 32, (num_classes, num_classes))
    assert len({recipe.traits(label) for label in range(num_classes)}) == num_classes


def nearest_mean_accuracy(features: npt.NDArray[np.float64], labels: npt.NDArray[np.int32]) -> float:
    """Share of the second half whose nearest class mean of the first half is their own."""
    half = len(labels) // 2
    means = np.stack([features[:half][labels[:half] == label].mean(axis=0) for label in range(labels.max() + 1)])
    distances = ((features[half:, None] - means[None]) ** 2).sum(axis=2)
    return float((distances.argmin(axis=1) == labels[half:]).mean())


def test_generated_classes_differ_in_form_and_not_in_mean_colour() -> None:
    recipe = generated.Recipe(0, 10, 32, (1000, 10))
    labels = recipe.labels("train")
    pixels = np.stack([generated.picture(recipe, "train", index, int(labels[index])) for index in range(1000)]) / 255.0
    assert nearest_mean_accuracy(pixels.mean(axis=(1, 2)), labels) < 0.17  # chance is 0.1
    waves = np.abs(np.fft.rfft2(pixels.mean(axis=3)))[:, :, 1:]
    waves /= np.linalg.norm(waves, axis=(1, 2), keepdims=True)
    assert nearest_mean_accuracy(waves.reshape(1000, -1), labels) > 0.35
