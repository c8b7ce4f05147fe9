"""Reads height and width from the header of a JPEG or PNG, without decoding the picture.

JPEG: ITU-T T.81, annex B (markers, table B.1; frame header, B.2.2). PNG: RFC 2083, section 4.1.1 (IHDR). Knows nothing
of other formats, and does not say whether the rest of the picture can be decoded.
"""

from __future__ import annotations

from typing import NamedTuple

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# SOF0 to SOF15 begin a frame; 0xC4, 0xC8 and 0xCC among them are DHT, JPG and DAC (T.81, table B.1).
START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# TEM, RST0 to RST7 and SOI stand alone; all other markers are followed by a length.
STANDALONE = frozenset({0x01, *range(0xD0, 0xD9)})
START_OF_SCAN, END_OF_IMAGE = 0xDA, 0xD9
JPEG_KINDS = {1: "jpeg_grey", 3: "jpeg_colour", 4: "jpeg_cmyk"}


class ImageHeader(NamedTuple):
    """Size in pixels, and one of jpeg_grey, jpeg_colour, jpeg_cmyk (CMYK or YCCK) and png."""

    height: int
    width: int
    kind: str


def read_header(data: memoryview) -> ImageHeader:
    """The header of the picture ``data``; raises ValueError saying what is wrong with it."""
    if bytes(data[:2]) == b"\xff\xd8":
        header = _read_jpeg(data)
    elif bytes(data[:8]) == PNG_SIGNATURE:
        header = _read_png(data)
    else:
        raise ValueError(f"is neither a JPEG nor a PNG (it begins with {bytes(data[:4])!r})")
    if header.height == 0 or header.width == 0:
        raise ValueError(f"has a header that says {header.height} x {header.width} pixels")
    return header


def _read_jpeg(data: memoryview) -> ImageHeader:
    place = 2
    while place + 4 <= len(data):
        if data[place] != 0xFF:
            raise ValueError(f"is a damaged JPEG: no marker at byte {place}")
        marker = data[place + 1]
        if marker == 0xFF:  # fill byte before a marker (B.1.1.2)
            place += 1
            continue
        place += 2
        if marker in STANDALONE:
            continue
        if marker in (START_OF_SCAN, END_OF_IMAGE):
            raise ValueError("is a JPEG without a frame header")
        length = int.from_bytes(data[place : place + 2], "big")
        if marker in START_OF_FRAME:
            if place + 8 > len(data):
                break
            height = int.from_bytes(data[place + 3 : place + 5], "big")
            width = int.from_bytes(data[place + 5 : place + 7], "big")
            num_components = data[place + 7]
            return ImageHeader(height, width, JPEG_KINDS.get(num_components, "jpeg_other"))
        place += max(length, 2)
    raise ValueError(f"is a JPEG that ends within its header, at byte {len(data)}")


def _read_png(data: memoryview) -> ImageHeader:
    if len(data) < 24 or bytes(data[12:16]) != b"IHDR":
        raise ValueError("is a PNG without a header")
    if len(data) > 24 and data[24] > 8:  # decoders differ in how they make 8 bits of it
        raise ValueError(f"is a PNG of {data[24]} bits a channel, and 8 are the most; convert it to 8 bits first")
    return ImageHeader(int.from_bytes(data[20:24], "big"), int.from_bytes(data[16:20], "big"), "png")
