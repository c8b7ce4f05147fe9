"""Decoding: the fast way gives Pillow's bytes, and leaves to Pillow what it does not know or what is damaged."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from image_files import encode, picture
from numpy.typing import NDArray
from PIL import Image

from hpcai500.pipelines.decode import decode_any, decode_plain_jpeg, decode_window

SIZE = np.array([61, 83], dtype=np.int32)
PLAIN: dict[str, tuple[str, dict[str, Any]]] = {
    "colour": ("RGB", {}),
    "grey": ("L", {}),
    "no subsampling": ("RGB", {"subsampling": 0}),
    "subsampled one way": ("RGB", {"subsampling": 1}),
    "progressive": ("RGB", {"progressive": True}),
}
OTHER = {"CMYK": encode(picture(3, 61, 83).convert("CMYK")), "PNG": encode(picture(3, 61, 83), "PNG")}


@pytest.mark.parametrize("kind", PLAIN)
def test_the_fast_way_gives_the_bytes_of_pillow(kind: str) -> None:
    mode, options = PLAIN[kind]
    encoded = np.frombuffer(encode(picture(3, 61, 83).convert(mode), **options), dtype=np.uint8)
    pixels = decode_plain_jpeg(encoded, SIZE)
    assert pixels is not None
    assert np.array_equal(pixels, decode_any(encoded, SIZE))
    window = np.array([5, 7, 30, 41])
    assert np.array_equal(decode_window(encoded, SIZE, window), pixels[5:35, 7:48])


@pytest.mark.parametrize("kind", OTHER)
def test_other_pictures_are_left_to_pillow(kind: str) -> None:
    assert decode_plain_jpeg(OTHER[kind], SIZE) is None
    assert np.array_equal(decode_window(OTHER[kind], SIZE, np.array([0, 0, *SIZE])), decode_any(OTHER[kind], SIZE))


def outcome(decode: Callable[[], NDArray[np.uint8]]) -> bytes | None:
    """The pixels; None if the picture is refused."""
    try:
        return decode().tobytes()
    except ValueError:
        return None


def test_what_is_damaged_is_judged_by_pillow_alone() -> None:
    whole = encode(picture(3, 61, 83))
    rng = np.random.default_rng(1)
    outcomes = []
    for _ in range(200):
        damaged = bytearray(whole)
        for place in rng.integers(2, len(whole), 2):
            damaged[place] = rng.integers(256)
        encoded = bytes(damaged[: rng.integers(len(whole) // 2, 2 * len(whole))])
        outcomes.append(outcome(partial(decode_any, encoded, SIZE)))
        assert outcome(partial(decode_window, encoded, SIZE, np.array([0, 0, *SIZE]))) == outcomes[-1]
    assert 0 < outcomes.count(None) < 200


def test_another_size_than_announced_and_a_bomb_are_left_to_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = encode(picture(3, 61, 83))
    assert decode_plain_jpeg(encoded, SIZE + 1) is None
    with pytest.raises(ValueError, match="it is 61 x 83, but the file says 62 x 84"):
        decode_window(encoded, SIZE + 1, np.array([0, 0, 62, 84]))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert decode_plain_jpeg(encoded, SIZE) is None
