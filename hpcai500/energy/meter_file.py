"""The file of a power meter: CSV with a time, a node and watts or joules, as loggers and databases write it.

::

    # accuracy: 1 %
    # instrument: rack PDUs, model and serial numbers
    time,node,meter,power_w
    2026-11-27T12:00:00.2+01:00,node1,psu1,402.5
    1795777200.3,node1,psu2,398.0

- ``time``: Unix time in s, or ISO 8601 with its zone. Times of one meter grow; meters may follow each other or mix.
- ``node``: host name. Several, between spaces, are behind one meter. May be left out for a run on one node.
- ``meter``: tells the meters of a node apart, which are added up. May be left out.
- ``power_w``, or instead of it ``energy_j``: a counter that never goes back.
- Lines with ``#`` before the names state the largest error as a part of the reading, and anything else.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from hpcai500.energy.integrate import NS_PER_S, Quantity
from hpcai500.errors import RecordError
from hpcai500.plain_files import open_plain

METER_NAME = "meter.csv"  # in the folder of a run
MAX_LINE_BYTES = 1 << 16
MAX_METERS = 100_000
UNIX_TIME = re.compile(r"(\d{1,10})(?:\.(\d{1,9})\d*)?")
ACCURACY = re.compile(r"#\s*accuracy\s*[:=]\s*(\d+(?:\.\d*)?)\s*(%?)\s*", re.IGNORECASE | re.ASCII)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class MeterReading(NamedTuple):
    """A line: Unix time in ns, the nodes behind the meter between spaces, its name, and W or J."""

    time_ns: int
    nodes: str
    meter: str
    value: float


@dataclass(frozen=True)
class MeterHeader:
    """What stands above the readings.

    Attributes:
        comments: its lines with "#", as they are.
        accuracy: the largest error stated, as a part of the reading; None if none is.
        quantity: of all readings.
        has_nodes: whether readings name their nodes.
    """

    comments: tuple[str, ...]
    accuracy: float | None
    quantity: Quantity
    has_nodes: bool


def read_meter(path: Path) -> tuple[MeterHeader, Iterator[MeterReading]]:
    """The header of a meter's file, and its readings one after the other, in little memory.

    Raises:
        RecordError: it cannot be read or is no such file; while readings are taken, a line is wrong. Names the line.
    """
    lines = _lines(path)
    comments: list[str] = []
    names: list[str] = []
    for _, line in lines:
        if not line.startswith("#"):
            names = [name.strip().lower() for name in line.split(",")]
            break
        comments.append(line)
    quantities: list[Quantity] = [name for name in ("power_w", "energy_j") if name in names]
    if "time" not in names or len(quantities) != 1 or len(set(names)) < len(names):
        raise RecordError(
            f"{str(path)!r} has the columns {','.join(names)[:200]!r}; a meter's file has time, node, meter and either "
            "power_w or energy_j"
        )
    stated = [match for comment in comments if (match := ACCURACY.fullmatch(comment))]
    accuracies = [float(match[1]) / (100 if match[2] else 1) for match in stated]
    if any(accuracy > 1 for accuracy in accuracies):
        raise RecordError(f"{str(path)!r} states an accuracy above 100 %; write for example '# accuracy: 1 %'")
    header = MeterHeader(tuple(comments), max(accuracies, default=None), quantities[0], "node" in names)
    return header, _readings(path, lines, names, quantities[0])


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    with open_plain(path) as file:
        number = 0
        while line := file.readline(MAX_LINE_BYTES):
            number += 1
            text = line.decode("utf-8-sig" if number == 1 else "utf-8", errors="replace").strip()
            if len(line) == MAX_LINE_BYTES:
                raise RecordError(f"line {number} of {str(path)!r} is longer than {MAX_LINE_BYTES} bytes")
            if text:
                yield number, text


def _readings(
    path: Path, lines: Iterator[tuple[int, str]], names: list[str], quantity: Quantity
) -> Iterator[MeterReading]:
    for number, line in lines:
        try:
            cells = next(csv.reader([line]))
            if len(cells) != len(names):
                raise ValueError(f"it has {len(cells)} cells, and the header {len(names)}")
            row = dict(zip(names, map(str.strip, cells), strict=True))
            nodes = " ".join(row.get("node", "").split())
            if "node" in row and not nodes:
                raise ValueError("it names no node")
            reading = MeterReading(parse_time_ns(row["time"]), nodes, row.get("meter", ""), float(row[quantity]))
        except (ValueError, csv.Error) as error:
            raise RecordError(f"line {number} of {str(path)!r} is no reading: {error}") from None
        yield reading


def parse_time_ns(text: str) -> int:
    """Unix time in ns of "1795777200.25" or "2026-11-27T12:00:00.25+01:00".

    Raises:
        ValueError: it is neither, or has no zone.
    """
    if unix := UNIX_TIME.fullmatch(text):
        return int(unix[1]) * NS_PER_S + int((unix[2] or "").ljust(9, "0"))
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text[:60]!r} is neither Unix time nor ISO 8601") from None
    if time.tzinfo is None:
        raise ValueError(f"{text!r} has no zone; write +00:00 or Z behind times in UTC")
    return (time - EPOCH) // timedelta(microseconds=1) * 1000
