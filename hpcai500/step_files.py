"""The step times of a run: ``steps/node-00000.h5``, a file a node; those of a resumed run in ``steps/segment-001/``.

While a run trains, each rank appends its epoch to ``node-00000.raw``, the file of its node, by one ``write`` to a file
opened for appending: as in hpcai500/ledger.py, ranks that share a kernel cannot mix, and nobody waits for anybody. A
record is MAGIC, then int64 numbers: rank, epoch, num_steps, num_phases, and the times (num_steps, num_phases) in ns.
When the ledgers are closed, the first rank of the node turns the records into columns; after a crash they stay what
they are, and are read as they are.

A column file holds a group an epoch (``epoch-0000``): ``ranks`` (num_ranks of the node), and for each phase a table of
int64 (num_ranks of the node, num_steps) in ns. It is a record for people and plots; nothing that is verified rests on
it.
"""

from __future__ import annotations

import mmap
import os
import re
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar, cast

import h5py
import numpy as np
from numpy.typing import NDArray

from hpcai500.durable import sync_path, write_all
from hpcai500.errors import RecordError
from hpcai500.metrics import STRAGGLER_RATIO
from hpcai500.plain_files import open_plain

STEP_PHASES = ("data_wait", "forward_backward", "communication", "optimizer")
MAGIC = b"\x93STEPNS\xff"  # as an int64 negative, so that it is no time
HEADER = struct.Struct("<8s4q")
MAX_RECORDS = 1 << 20  # of a node with 1,024 ranks, 1,024 epochs; the places of as many take 200 MB
RAW_NAME = re.compile(r"node-\d{5}\.raw")
NODE_NAME = re.compile(r"node-\d{5}\.(h5|raw)")

StepTable = dict[str, NDArray[np.int64]]
Named = TypeVar("Named", h5py.Group, h5py.Dataset)


def raw_path(run_folder: Path, segment: int, node: int) -> Path:
    """Where the ranks of a node append their step times while they train."""
    folder = run_folder / "steps" / f"segment-{segment:03d}" if segment else run_folder / "steps"
    return folder / f"node-{node:05d}.raw"


def create_raw(path: Path) -> None:
    """Make the empty file of a node, and its folder; one rank of the node does so before any of them appends.

    Raises:
        RecordError: it cannot be created.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o644))
    except OSError as error:
        raise _unwritten(path, error) from None


def append_epoch(path: Path, rank: int, epoch: int, times_ns: NDArray[np.int64]) -> None:
    """Append a rank's times (num_steps, num_phases) of an epoch.

    Raises:
        RecordError: the file cannot be written, or the disk is full; what was written before stays whole.
    """
    record = HEADER.pack(MAGIC, rank, epoch, *times_ns.shape) + times_ns.astype("<i8").tobytes()
    try:
        file = os.open(path, os.O_WRONLY | os.O_APPEND)
        try:
            write_all(file, record)
        finally:
            os.close(file)
    except OSError as error:
        raise _unwritten(path, error) from None


def _unwritten(path: Path, error: OSError) -> RecordError:
    return RecordError(
        f"step times cannot be written to {str(path)!r} ({error.strerror}); free some space there and start again"
    )


class _Record(NamedTuple):
    """Where the times of one rank and epoch lie."""

    rank: int
    epoch: int
    num_steps: int
    begin: int

    @property
    def end(self) -> int:
        return self.begin + 8 * self.num_steps * len(STEP_PHASES)


def _find_records(raw: mmap.mmap) -> Iterator[_Record]:
    """The whole records; of one that was cut off, what is left is passed over."""
    at = raw.find(MAGIC)
    while at >= 0:
        after = at + len(MAGIC)
        if at + HEADER.size <= len(raw):
            _, rank, epoch, num_steps, num_phases = HEADER.unpack_from(raw, at)
            record = _Record(rank, epoch, num_steps, begin=at + HEADER.size)
            is_sane = rank >= 0 and epoch >= 0 and num_steps > 0 and num_phases == len(STEP_PHASES)
            if is_sane and (record.end == len(raw) or raw[record.end : record.end + len(MAGIC)] == MAGIC):
                yield record
                after = record.end
        at = raw.find(MAGIC, after)


def _read_raw(path: Path) -> Iterator[tuple[int, StepTable]]:
    """The epochs of a node's records, in order, as columns.

    Raises:
        ValueError: ranks differ in the number of steps of an epoch, one has an epoch twice, or there are too many.
    """
    with open_plain(path) as file:
        if not os.fstat(file.fileno()).st_size:
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as raw:
            epochs: dict[int, list[_Record]] = {}
            for number, record in enumerate(_find_records(raw)):
                if number == MAX_RECORDS:
                    raise ValueError(f"it has more than {MAX_RECORDS} records, which no node's file has")
                epochs.setdefault(record.epoch, []).append(record)
            for epoch, records in sorted(epochs.items()):
                records.sort()
                ranks = np.array([record.rank for record in records], dtype=np.int64)
                if len({record.num_steps for record in records}) > 1 or len(np.unique(ranks)) < len(ranks):
                    raise ValueError(f"the ranks of epoch {epoch} differ in their steps, or one is there twice")
                times = [np.frombuffer(raw[one.begin : one.end], dtype="<i8") for one in records]
                table = np.stack(times).reshape(len(records), -1, len(STEP_PHASES))
                yield epoch, {"ranks": ranks} | {f"{phase}_ns": table[:, :, at] for at, phase in enumerate(STEP_PHASES)}


def turn_into_columns(path: Path) -> None:
    """Turn the records of a node into the HDF5 file beside them, and remove them once that is whole and on the disk.

    Args:
        path: of the records; nothing is done if they are not there, or none was written.

    Raises:
        RecordError: that did not work; the records are still there.
    """
    columns, new = path.with_suffix(".h5"), path.with_name(f".{path.stem}.h5")
    try:
        if not path.exists() or not path.stat().st_size:
            path.unlink(missing_ok=True)
            return
        try:
            with h5py.File(new, "w") as file:
                for epoch, table in _read_raw(path):
                    group = file.create_group(f"epoch-{epoch:04d}")
                    for name, values in table.items():
                        group.create_dataset(name, data=values, dtype=np.int64)
            sync_path(new)
            new.replace(columns)
        finally:
            new.unlink(missing_ok=True)
        sync_path(path.parent)
        path.unlink()
    except (OSError, RuntimeError, ValueError) as error:
        raise RecordError(
            f"step times in {str(path)!r} cannot be turned into HDF5 ({error}); they stay there as they are"
        ) from error


@dataclass(frozen=True)
class RankTimes:
    """How one rank spent its steps.

    Attributes:
        median_step_s: median time of a step.
        median_own_s: median time of a step without communication, which is where a slow rank shows: the others wait
            for it in their communication.
        is_straggler: its own time is over STRAGGLER_RATIO times the median of all ranks.
    """

    rank: int
    median_step_s: float
    median_own_s: float
    is_straggler: bool


def read_rank_times(folder: Path) -> list[RankTimes]:
    """Read the step times of a segment into a table of ranks, one node after the other.

    The files may be a stranger's: what is read is no larger than they are.

    Args:
        folder: ``steps`` of a run folder, or ``steps/segment-001`` and so on.

    Raises:
        RecordError: there is no file of step times, or one of them is none.
    """
    names = sorted(path.name for path in folder.glob("node-*") if NODE_NAME.fullmatch(path.name))
    # Where both are, the end came between writing the columns and removing the records.
    names = [name for name in names if not (RAW_NAME.fullmatch(name) and name.replace(".raw", ".h5") in names)]
    medians: dict[int, tuple[float, float]] = {}
    for name in names:
        path = folder / name
        try:
            of_node = _medians(_read_columns(path) if path.suffix == ".h5" else (table for _, table in _read_raw(path)))
            if medians.keys() & of_node.keys():
                raise ValueError("another node has one of its ranks")
        except (OSError, RuntimeError, KeyError, ValueError) as error:
            raise RecordError(f"step times cannot be read from {str(path)!r}; is it a run's?") from error
        medians |= of_node
    if not medians:
        raise RecordError(
            f"step times cannot be read from {str(folder)!r}, which has none; is it a run's steps folder?"
        )
    limit_s = STRAGGLER_RATIO * float(np.median([own_s for _, own_s in medians.values()]))
    return [RankTimes(rank, step_s, own_s, own_s > limit_s) for rank, (step_s, own_s) in sorted(medians.items())]


def _medians(epochs: Iterable[StepTable]) -> dict[int, tuple[float, float]]:
    """By rank the medians over the steps of all epochs of whole and own time, in seconds.

    Raises:
        ValueError: the epochs are not of the same ranks.
    """
    ranks: NDArray[np.int64] | None = None
    totals, owns = [], []
    for table in epochs:
        if ranks is not None and not np.array_equal(ranks, table["ranks"]):
            raise ValueError("its epochs are not of the same ranks")
        ranks = table["ranks"]
        totals.append(sum(times for name, times in table.items() if name != "ranks"))
        owns.append(totals[-1] - table["communication_ns"])
    if ranks is None:
        raise ValueError("it has no steps")
    medians = (np.median(np.concatenate(parts, axis=1), axis=1) / 1e9 for parts in (totals, owns))
    return {int(rank): (float(step_s), float(own_s)) for rank, step_s, own_s in zip(ranks, *medians, strict=True)}


def _read_columns(path: Path) -> Iterator[StepTable]:
    """The tables of all epochs of a node's column file.

    Raises:
        ValueError: a data set is not one that is written here: plain int64 in this very file.
    """
    if not path.is_file():  # a pipe would block
        raise ValueError("it is no file")
    size_bytes = path.stat().st_size
    num_bytes = 0
    with h5py.File(path, "r") as file:
        for epoch in file:
            table: StepTable = {}
            for name in _own(file, epoch, h5py.Group):
                times = _own(file[epoch], name, h5py.Dataset)
                layout = times.id.get_create_plist()
                is_plain = layout.get_layout() == h5py.h5d.CONTIGUOUS and layout.get_external_count() == 0
                num_bytes += times.nbytes
                # A contiguous data set takes its whole place in the file, so that reading it takes no more than that.
                if not is_plain or times.id.get_storage_size() != times.nbytes or num_bytes > size_bytes:
                    raise ValueError(f"{epoch}/{name} is compressed, lies elsewhere or is larger than the file")
                if times.dtype != np.int64 or times.ndim != (1 if name == "ranks" else 2):
                    raise ValueError(f"{epoch}/{name} is no table of int64")
                table[name] = times[:]
            _check_table(epoch, table)
            yield table


def _check_table(epoch: str, table: StepTable) -> None:
    if "communication_ns" not in table or "ranks" not in table:
        raise ValueError(f"{epoch} lacks ranks or communication_ns")
    ranks, shape = table["ranks"], table["communication_ns"].shape
    if any(times.shape != shape for name, times in table.items() if name != "ranks") or shape[0] != len(ranks):
        raise ValueError(f"the tables of {epoch} are not all of (ranks, steps)")
    if not table["communication_ns"].size or len(np.unique(ranks)) < len(ranks) or ranks.min() < 0:
        raise ValueError(f"{epoch} has no steps, or a rank twice")


def _own(group: h5py.Group, name: str, kind: type[Named]) -> Named:
    """What a group holds itself under a name; links to elsewhere are not followed."""
    if not isinstance(group.get(name, getlink=True), h5py.HardLink) or group.get(name, getclass=True) is not kind:
        raise ValueError(f"{name} is a link, or no {kind.__name__}")
    return cast("Named", group[name])
