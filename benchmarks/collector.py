"""What step records and the watch for stragglers cost: on two ranks, and on rank 0 of 16,384.

    python benchmarks/collector.py [--quick] [--ranks 2]

First, ranks of this machine do steps of fixed work that end in a barrier, in turn with and without the recorder; beside
that the recorder's calls are timed by themselves, after a barrier, so that no rank's lateness is in them. Then two
processes stand for 16,384 ranks: the real recorder, each with the generated times of 8,192 ranks, over real MPI. At
last the records of a node become columns. Bars: 0.5 % of a step; under 1 s a window of 16,384 ranks with memory flat
over 1,000 windows.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from report import figure, machine, spread

from hpcai500.collector import StepRecorder
from hpcai500.comm.communicator import Communicator, end_process, open_communicator
from hpcai500.launch.local import run_ranks
from hpcai500.record import Position
from hpcai500.step_files import STEP_PHASES, append_epoch, create_raw, raw_path, turn_into_columns
from hpcai500.straggler_record import read_notes
from hpcai500.stragglers import HOST_BYTES

STEP_S = 0.030  # the shortest steps of ResNet-50 at scale are about that long, so a share is largest there
WINDOW_STEPS = 50  # report_steps of the rules
MANY_RANKS, RANKS_A_NODE = 16_384, 8
SLOW_NODE, SLOW_WINDOWS = 700, (0.3, 0.6)  # of all windows
PHASE_NS = dict.fromkeys(STEP_PHASES, int(STEP_S / len(STEP_PHASES) * 1e9))


class ManyRanks:
    """Stands for many ranks: what this process contributes to a gathered array are rows of generated ranks.

    Attributes:
        rows: of the next window, (ranks of this process, num_phases).
    """

    def __init__(self, comm: Communicator) -> None:
        self._comm = comm
        self.rank, self.size = comm.rank, MANY_RANKS
        self.num_own = MANY_RANKS // comm.size
        self.first = comm.rank * self.num_own
        self.rows: np.ndarray = np.empty(0)

    def gather_array(self, values: np.ndarray) -> np.ndarray | None:
        rows = self._hosts() if values.dtype == np.uint8 else self.rows
        gathered = self._comm.gather_array(rows)
        return None if gathered is None else gathered.reshape(MANY_RANKS, *values.shape)

    start_gather = Communicator.start_gather

    def _hosts(self) -> np.ndarray:
        names = [f"nid{(self.first + at) // RANKS_A_NODE:05d}".encode() for at in range(self.num_own)]
        return np.frombuffer(b"".join(name.ljust(HOST_BYTES, b"\0") for name in names), np.uint8).reshape(
            -1, HOST_BYTES
        )


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * 4096


def many_ranks(comm: Communicator, num_windows: int, folder: Path) -> dict[str, Any]:
    """Windows of 16,384 ranks; times in s, memory in bytes, and what rank 0 told."""
    ranks = ManyRanks(comm)
    recorder = StepRecorder(folder, ranks)  # type: ignore[arg-type]
    random = np.random.default_rng(comm.rank)
    usual_ns = np.array([[2e6, 20e6, 6e6, 2e6]]) * WINDOW_STEPS
    noise = [1 + 0.03 * random.random((ranks.num_own, len(STEP_PHASES))) for _ in range(16)]
    slow = (ranks.first + np.arange(ranks.num_own)) // RANKS_A_NODE == SLOW_NODE
    times_s, memory = [], {}
    with contextlib.redirect_stderr(io.StringIO()):
        for number in range(num_windows):
            ranks.rows = (usual_ns * noise[number % len(noise)]).astype(np.int64)
            if SLOW_WINDOWS[0] <= number / num_windows < SLOW_WINDOWS[1]:
                ranks.rows[slow, STEP_PHASES.index("data_wait")] += int(8e6 * WINDOW_STEPS)
            comm.barrier()
            begin_s = time.perf_counter()
            recorder.close_window(PHASE_NS, WINDOW_STEPS, Position(0, number * WINDOW_STEPS))
            times_s.append(time.perf_counter() - begin_s)
            if number in (num_windows // 10, num_windows - 1):
                memory[number] = resident_bytes()
    begin_bytes, end_bytes = memory.values()
    path = folder / "stragglers.jsonl"
    notes = [note.describe() for note in read_notes(path.read_bytes())] if comm.rank == 0 else []
    return {"window_s": times_s, "bytes": [begin_bytes, end_bytes], "notes": notes}


def step_costs(comm: Communicator, rounds: int, folder: Path) -> dict[str, Any]:
    """Steps of fixed work with and without the recorder, and its calls by themselves; times of a step, in s."""
    recorder = StepRecorder(folder, comm)
    matrix = np.ones((256, 256), dtype=np.float32)
    begin_s = time.perf_counter()
    for _ in range(100):
        matrix @ matrix
    num_products = max(1, int(STEP_S * 100 / (time.perf_counter() - begin_s)))
    num_products = int(comm.allreduce(np.array(num_products), "min"))

    def steps(record: bool) -> float:
        comm.barrier()
        begin_s = time.perf_counter()
        for _ in range(WINDOW_STEPS):
            for _ in range(num_products):
                matrix @ matrix
            comm.barrier()
            if record:
                recorder.add(PHASE_NS)
        if record:
            recorder.close_window(PHASE_NS, WINDOW_STEPS, Position(0, WINDOW_STEPS))
        comm.barrier()
        return (time.perf_counter() - begin_s) / WINDOW_STEPS

    pairs = []
    for number in range(rounds + 1):
        order = (True, False) if number % 2 else (False, True)
        times = {record: steps(record) for record in order}
        if number:
            pairs.append((times[False], times[True]))
    recorder.close_epoch(0)

    def cost(call: Callable[[], None]) -> float:
        comm.barrier()
        begin_s = time.perf_counter()
        call()
        return float(comm.allreduce(np.array(time.perf_counter() - begin_s), "max"))

    def add() -> None:
        for _ in range(WINDOW_STEPS):
            recorder.add(PHASE_NS)

    def close() -> None:
        recorder.close_window(PHASE_NS, WINDOW_STEPS, Position(0, WINDOW_STEPS))

    calls = [tuple(cost(call) for call in (add, close, lambda: recorder.close_epoch(1))) for _ in range(200)]
    return {"pairs": pairs, "calls": calls}


def columns_s(folder: Path) -> tuple[float, int]:
    """Time to turn the records of a node of 8 ranks, 90 epochs of 500 steps, into columns, and their bytes."""
    path = raw_path(folder, 0, 0)
    create_raw(path)
    times_ns = np.full((500, len(STEP_PHASES)), 10**7, dtype=np.int64)
    for epoch in range(90):
        for rank in range(RANKS_A_NODE):
            append_epoch(path, rank, epoch, times_ns)
    num_bytes, begin_s = path.stat().st_size, time.perf_counter()
    turn_into_columns(path)
    return time.perf_counter() - begin_s, num_bytes


def rank_main(what: str, number: int, name: str, folder: Path) -> None:
    comm = open_communicator(name)
    told = step_costs(comm, number, folder) if what == "steps" else many_ranks(comm, number, folder)
    if comm.rank == 0:
        (folder / "told.json").write_text(json.dumps(told), encoding="utf-8")
    comm.close()
    end_process()


def start(what: str, number: int, name: str, num_ranks: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        argv = [sys.executable, __file__, "--rank", what, "--number", str(number), "--comm", name, "--folder", folder]
        if run_ranks(name, num_ranks, argv) != 0:
            sys.exit(f"the ranks of {name} failed")
        told: dict[str, Any] = json.loads((Path(folder) / "told.json").read_text(encoding="utf-8"))
        return told


def show_steps(name: str, told: dict[str, Any]) -> None:
    bare, recorded = zip(*told["pairs"], strict=True)
    shares = [100 * (ours - theirs) / theirs for theirs, ours in told["pairs"]]
    print(f"{name}: step without {spread([1000 * s for s in bare])}, with {spread([1000 * s for s in recorded])} ms")
    print(f"  the difference, pair by pair: {spread(shares, '%')} of the step")
    add, window, epoch = ([1e6 * s for s in calls] for calls in zip(*told["calls"], strict=True))
    step_us = [sum(calls) / WINDOW_STEPS for calls in zip(add, window, epoch, strict=True)]
    print(
        f"  {WINDOW_STEPS} steps added {spread(add, 'us')}, window {spread(window, 'us')}, epoch {spread(epoch, 'us')}"
    )
    shares = [100 * us / 1e6 / statistics.median(bare) for us in step_us]
    print(f"  these calls together {spread(step_us, 'us')} a step, {spread(shares, '%')} of it; bar 0.5 %")
    figure(f"collector with {name}, share of the shortest step", shares, "%", bar=0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds and windows")
    parser.add_argument("--ranks", type=int, default=2, help="ranks of the first part (default: %(default)s)")
    parser.add_argument("--rank", choices=("steps", "many"), help=argparse.SUPPRESS)
    parser.add_argument("--number", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--comm", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rank:
        rank_main(args.rank, args.number, args.comm, args.folder)
    print(machine())
    for name in ("mpi", "torchdist", "horovod"):
        show_steps(name, start("steps", 3 if args.quick else 11, name, args.ranks))
    told = start("many", 200 if args.quick else 1000, "mpi", 2)
    window_ms = [1000 * s for s in told["window_s"]]
    begin, end = (num_bytes / 2**20 for num_bytes in told["bytes"])
    print(f"{MANY_RANKS:,} ranks over MPI: a window {spread(window_ms, 'ms')}; bar 1000 ms")
    print(f"  rank 0's memory after a tenth of {len(window_ms)} windows {begin:.1f} MiB, at their end {end:.1f} MiB")
    print("".join(f"  {note}\n" for note in told["notes"]), end="")
    figure("window of 16,384 ranks", window_ms, "ms", bar=1000)
    with tempfile.TemporaryDirectory() as folder:
        times_s = [columns_s(Path(folder) / str(number))[0] for number in range(3)]
        num_bytes = columns_s(Path(folder) / "size")[1]
    print(f"records of a node, {num_bytes / 2**20:.0f} MiB, into columns: {spread(times_s, 's')}")
    assert statistics.median(window_ms) < 1000


if __name__ == "__main__":
    main()
