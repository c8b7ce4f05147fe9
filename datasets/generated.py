"""Generates pictures that a network can learn to tell apart, for a machine that has no real ones.

    hpcai500 data generate --classes 10 --train 60000 --validation 10000 --image-size 64 --seed 0 --output generated.h5

A class is a shape, the orientation of the stripes that fill it, and their fineness. Place, scale, tilt, phase, colours,
brightness, background and noise are drawn for each picture and say nothing of the class; neither does the mean colour.
Each picture depends on (seed, split, index) alone, so any number of processes makes the same bytes.
"""

from __future__ import annotations

import functools
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hpcai500.errors import UsageError
from hpcai500.pipelines.hdf5 import SPLITS
from hpcai500.pipelines.hdf5_writer import Report, report_nothing
from hpcai500.pipelines.spool import write_encoded_images
from hpcai500.version import __version__

SHAPES = ("disc", "square", "triangle", "cross", "ring")
JPEG_QUALITY = 90
MIN_IMAGE_SIZE, MAX_IMAGE_SIZE = 16, 4096
LABEL_STREAM = 2**63  # keys the order of the classes apart from the pictures, which use indices below it

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Recipe:
    """What to generate: everything that decides the bytes.

    ``image_size`` is the side in pixels; ``num_samples`` those of train and validation.
    """

    seed: int
    num_classes: int
    image_size: int
    num_samples: tuple[int, ...]

    def __post_init__(self) -> None:
        if not 1 <= self.num_classes <= min(self.num_samples):
            raise UsageError(
                f"{self.num_classes} classes do not fit {min(self.num_samples)} pictures; there must be 1 or more, and "
                "a picture of each in either split"
            )
        if not MIN_IMAGE_SIZE <= self.image_size <= MAX_IMAGE_SIZE:
            raise UsageError(
                f"image size {self.image_size} is not possible; valid are {MIN_IMAGE_SIZE} to {MAX_IMAGE_SIZE} pixels"
            )
        if not 0 <= self.seed < 2**64:
            raise UsageError(f"seed {self.seed} is not possible; valid are 0 to 2**64 - 1")

    def class_names(self) -> tuple[str, ...]:
        """The shape, orientation and fineness of each class, in words."""
        return tuple(
            f"{SHAPES[shape]} with {waves:.1f} stripes to the side at {np.degrees(angle):.0f} degrees"
            for shape, angle, waves in (self.traits(label) for label in range(self.num_classes))
        )

    def traits(self, label: int) -> tuple[int, float, float]:
        """Number of the shape, orientation in radians and stripes to the picture's side of class ``label``.

        Shapes differ first; then orientations, as many as needed up to 4; then the fineness, from 4 to 10 stripes.
        Orientations are within a right angle, so that a picture and its mirror image are of one class.
        """
        num_textures = -(-self.num_classes // len(SHAPES))
        num_angles = min(num_textures, 4)
        num_waves = -(-num_textures // num_angles)
        texture, shape = divmod(label, len(SHAPES))
        wave, angle = divmod(texture, num_angles)
        waves = 4.0 * (10.0 / 4.0) ** (wave / max(num_waves - 1, 1))
        return shape, np.pi / 2 * angle / max(num_angles - 1, 1), waves

    def labels(self, split: str) -> npt.NDArray[np.int32]:
        """The classes of a split's pictures in random order, as equal in number as they can be."""
        number = self.num_samples[SPLITS.index(split)]
        generator = _generator(self.seed, split, LABEL_STREAM)
        return generator.permutation(np.arange(number) % self.num_classes).astype(np.int32)


def _generator(seed: int, split: str, index: int) -> np.random.Generator:
    """Random numbers that depend on the arguments alone (Philox: a counter-based generator, keyed)."""
    counter = [0, 0, SPLITS.index(split), index]
    return np.random.Generator(np.random.Philox(key=seed, counter=counter))


def picture(recipe: Recipe, split: str, index: int, label: int) -> npt.NDArray[np.uint8]:
    """Pixels uint8 (size, size, 3) of one picture."""
    random = _generator(recipe.seed, split, index)
    shape, angle, waves = recipe.traits(label)
    size = recipe.image_size
    axis = (np.arange(size, dtype=np.float32) + np.float32(0.5)) / size - np.float32(0.5)  # -0.5 to 0.5 over the side
    scale = random.uniform(0.30, 0.48)  # half the extent of the shape, in sides of the picture
    centre = random.uniform(-0.5 + scale, 0.5 - scale, 2).astype(np.float32)
    x, y = (axis - centre[0])[None, :], (axis - centre[1])[:, None]
    angle += random.uniform(-0.12, 0.12)  # radians; less than half the distance of two orientations
    pace = 2 * np.pi * waves * random.uniform(0.95, 1.05)
    phase = x * np.float32(pace * np.cos(angle)) + (y * np.float32(pace * np.sin(angle)) + random.uniform(0, 2 * np.pi))
    stripes = (0.5 + 0.5 * np.sin(phase, dtype=np.float32))[..., None]
    # Every colour is drawn without regard to the class; the background is a slope of one colour.
    light, dark = random.uniform(0.55, 1.0, 3), random.uniform(0.0, 0.45, 3)
    if random.uniform() < 0.5:
        light, dark = dark, light
    inside = _mask(SHAPES[shape], x / np.float32(scale), y / np.float32(scale), 1.5 / (size * scale))[..., None]
    slope = random.uniform(-0.4, 0.4, (2, 3)).astype(np.float32)
    background = (random.uniform(0.2, 0.8, 3) + x[..., None] * slope[0] + y[..., None] * slope[1]).astype(np.float32)
    fill = dark.astype(np.float32) + stripes * (light - dark).astype(np.float32)
    values = background + inside * (fill - background)
    noise = random.integers(-128, 128, values.shape, dtype=np.int8)  # uniform: cheaper than normal, as good here
    values += noise * np.float32(random.uniform(0.02, 0.14) / 128)
    return np.asarray(np.clip(values * 255, 0, 255), dtype=np.uint8)


def _mask(shape: str, x: FloatArray, y: FloatArray, edge: float) -> FloatArray:
    """1 inside the shape of about unit extent, 0 outside, with a soft edge of width ``edge``; (size, size)."""
    if shape == "disc":
        distance = np.hypot(x, y) - 0.9
    elif shape == "ring":
        distance = np.abs(np.hypot(x, y) - 0.7) - 0.25
    elif shape == "square":
        distance = np.maximum(np.abs(x), np.abs(y)) - 0.8
    elif shape == "triangle":
        distance = np.maximum(y - 0.6, 0.866 * np.abs(x) - 0.5 * y - 0.45)
    else:
        assert shape == "cross"
        bar = np.maximum(np.abs(x) - 0.3, np.abs(y) - 0.95)
        distance = np.minimum(bar, np.maximum(np.abs(y) - 0.3, np.abs(x) - 0.95))
    return np.clip(0.5 - distance / edge, 0, 1).astype(np.float32)


def encode(recipe: Recipe, split: str, first: int, last: int) -> list[bytes]:
    """The pictures [first, last) of a split as JPEG."""
    from PIL import Image

    labels, pictures = recipe.labels(split), []
    for index in range(first, last):
        buffer = io.BytesIO()
        Image.fromarray(picture(recipe, split, index, int(labels[index]))).save(buffer, "JPEG", quality=JPEG_QUALITY)
        pictures.append(buffer.getvalue())
    return pictures


def prepare(output: Path, recipe: Recipe, *, num_workers: int | None = None, report: Report = report_nothing) -> Path:
    """Generate the pictures of ``recipe`` into the new file ``output``; raises as hdf5_writer.write_images does."""
    provenance = {
        "source": "generated",
        "description": (
            f"{recipe.num_classes} classes of striped shapes, {recipe.image_size} x {recipe.image_size}, "
            f"JPEG of quality {JPEG_QUALITY}; made by a program, not photographs"
        ),
        "origin": "generated by hpcai500 data generate",
        "seed": recipe.seed,
        "image_size": recipe.image_size,
        "created_by": f"hpcai500 {__version__}",
    }
    return write_encoded_images(
        output,
        functools.partial(encode, recipe),
        {split: recipe.labels(split) for split in SPLITS},
        recipe.class_names(),
        provenance,
        num_workers=num_workers,
        report=report,
    )
