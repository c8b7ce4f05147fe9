"""What runs and self-checks measured of a machine, read from their files; nothing is assumed here."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from hpcai500.checks.limits import count_cores
from hpcai500.edition import Edition
from hpcai500.errors import RecordError, UsageError
from hpcai500.events import Checkpoint, DataOpen, Evaluation, EvaluationShard, StartUp, Window
from hpcai500.formats import SUBMISSION_NAME, RunConfig, RunResult, Submission, System, read_config, read_record
from hpcai500.record import RunRecord, read_run
from hpcai500.scaling.model import Link
from hpcai500.submission import NS_PER_S, compute_result

WHOLE_NODES = ("meter", "ipmi", "slurm")  # sources of energy, the best first
MAX_SELFCHECK_BYTES = 256 << 20  # of 10,000 nodes some 30 MB


@dataclass(frozen=True, kw_only=True)
class MeasuredRun:
    """What a run tells of the machine it ran on.

    Attributes:
        config: its configuration.
        batch_size: of a rank.
        cores_per_rank: that the ranks are bound to, or share.
        cores_per_node: that there are.
        own_s: of a step, without the exchange of gradients; of the whole step on GPUs.
        own_error: relative standard error of that, from window to window.
        step_s: a whole step, mean over ranks and steps.
        optimizer_s, data_wait_s: parts of ``own_s``.
        noise: relative standard deviation of a rank's own time of one step about the mean of all ranks in that step.
        evaluation_per_sample_s: of one rank; None where none was made.
        evaluation_fixed_s: of an evaluation besides.
        epoch_fixed_s: of an epoch besides steps, evaluation and checkpoints; 0 where the run did not end.
        checkpoint_s: of a checkpoint; 0 where none was made.
        start_up_s: before the clock, without waiting for the job's allocation.
        power_w: of all nodes, None where nothing measured it.
        train_bytes: of the training samples as stored; None where the run did not tell.
        epochs_to_quality: that the run took; None if it did not reach it.
    """

    name: str
    config: RunConfig
    num_ranks: int
    num_nodes: int
    on_cuda: bool
    cores_per_rank: float
    cores_per_node: float
    batch_size: int
    own_s: float
    own_error: float
    step_s: float
    optimizer_s: float
    data_wait_s: float
    noise: float
    evaluation_per_sample_s: float | None
    evaluation_fixed_s: float
    epoch_fixed_s: float
    checkpoint_s: float
    start_up_s: float
    power_w: float | None
    train_bytes: int | None
    epochs_to_quality: float | None


@dataclass(frozen=True)
class MeasuredSelfcheck:
    """What a self-check tells of the machine: rates in flop/s of a rank by number format, and the link of the ranks.

    Attributes:
        link: latency and bandwidth of an all-reduce over all its ranks; None of a single rank.
    """

    num_nodes: int
    ranks_per_node: int
    on_gpus: bool
    product_flops: dict[str, float]
    link: Link | None


def run_folders(path: Path) -> list[Path]:
    """The folders of the runs at a path: a run's folder, a submission's, or submission.json.

    Raises:
        UsageError: there are none.
        RecordError: submission.json cannot be read.
    """
    file = path if path.name == SUBMISSION_NAME else path / SUBMISSION_NAME
    if file.is_file():
        submission = read_record(file, Submission)
        folders = [file.parent / run.folder for run in submission.runs if run.status == "completed"]
    elif (path / "config.json").is_file():
        folders = [path]
    else:
        folders = sorted(one.parent for one in path.glob("run-*/config.json"))
    if not folders:
        raise UsageError(
            f"{str(path)!r} has nothing to plan from; name a run's folder, a submission.json, or what "
            "`hpcai500 selfcheck --json FILE` wrote"
        )
    return folders


def measure_run(folder: Path, edition: Edition) -> MeasuredRun:
    """What a run tells; it may have been stopped early.

    Raises:
        RecordError: it cannot be read.
        UsageError: it has trained too few steps to tell anything.
    """
    config, _ = read_config(folder)
    run = read_run(folder, config)
    size = edition.workload(config.workload).size(config.size)
    windows = _Windows.of(run)
    if not windows.rows:
        raise UsageError(
            f"run {str(folder)!r} has no finished window of steps, so it tells nothing; let it train for some minutes"
        )
    result = compute_result(run, size)
    on_cuda = config.device.startswith("cuda")
    own = [[_own_s(window, on_cuda=on_cuda) for window in row] for row in windows.rows]
    own_s, step_s = windows.mean_over_steps(own), windows.mean_of("duration_ns")
    checkpoints = [one.duration_ns / NS_PER_S for root in run.roots for one in root.values(Checkpoint)]
    opened = next((one for ledger in run.ledgers if (one := ledger.value(DataOpen))), None)
    per_sample_s, fixed_s = _evaluation(run)
    num_cores = _num_cores(run)
    return MeasuredRun(
        name=str(folder),
        config=config,
        num_ranks=config.num_ranks,
        num_nodes=config.num_nodes,
        on_cuda=on_cuda,
        cores_per_rank=num_cores / config.num_ranks,
        cores_per_node=max(num_cores / config.num_nodes, _cores_of_system(folder)),
        batch_size=int(config.settings["batch_size_per_rank"]),
        own_s=own_s,
        own_error=_relative_error([statistics.fmean(row) for row in own]),
        step_s=step_s,
        optimizer_s=windows.mean_of("optimizer_ns"),
        data_wait_s=windows.mean_of("data_wait_ns"),
        noise=step_noise(own, windows.num_steps) / own_s,
        evaluation_per_sample_s=per_sample_s,
        evaluation_fixed_s=fixed_s,
        epoch_fixed_s=_epoch_fixed_s(result, opened.steps_per_epoch * step_s if opened else 0.0),
        checkpoint_s=statistics.fmean(checkpoints) if checkpoints else 0.0,
        start_up_s=_start_up_s(run),
        power_w=_power_w(result),
        train_bytes=opened.train_bytes if opened else None,
        epochs_to_quality=result.epochs_to_quality,
    )


def _evaluation(run: RunRecord) -> tuple[float | None, float]:
    """Seconds of a rank for a sample of an evaluation, and for an evaluation besides."""
    shards = [shard for ledger in run.ledgers for shard in ledger.values(EvaluationShard) if shard.samples]
    besides = [one.duration_ns / NS_PER_S for root in run.roots for one in root.values(Evaluation)]
    spent_s = sum(shard.duration_ns for shard in shards) / NS_PER_S
    per_sample_s = spent_s / sum(shard.samples for shard in shards) if shards else None
    return per_sample_s, statistics.fmean(besides) if besides else 0.0


def _epoch_fixed_s(result: RunResult, steps_s: float) -> float:
    """What an epoch took besides its steps, evaluations and checkpoints, the first steps' warming up among it."""
    parts = result.parts
    if parts is None or result.wall_s is None or not steps_s:
        return 0.0
    others_s = parts.evaluation_s + parts.checkpoint_s + parts.lost_s + parts.restart_s
    return max(0.0, result.wall_s - others_s - result.epochs * steps_s) / result.epochs


def _start_up_s(run: RunRecord) -> float:
    """From the start of a rank's process to the clock, mean over the ranks; the wait for the job is not in it."""
    spent_ns = [
        one.launch_ns + one.import_ns + one.rendezvous_ns + one.data_open_ns + one.model_ns + one.wait_ns
        for ledger in run.ledgers
        if ledger.segment == 0
        for one in ledger.values(StartUp)
    ]
    return statistics.fmean(spent_ns) / NS_PER_S if spent_ns else 0.0


def _power_w(result: RunResult) -> float | None:
    """What all nodes drew in the mean: as a source of whole nodes has it, else GPUs and processors together."""
    power_w = {one.source: one.power_w for one in result.energy or [] if one.power_w is not None}
    whole = [power_w[source] for source in WHOLE_NODES if source in power_w]
    return whole[0] if whole else sum(power_w.values()) or None


def _num_cores(run: RunRecord) -> int:
    """Cores of all hosts that a rank of the run is bound to, each counted once."""
    lists: dict[str, list[str]] = {}
    for ledger in run.segments[-1].ledgers:
        if ledger.opened is not None:
            lists.setdefault(ledger.opened.host, []).append(ledger.opened.cores)
    return max(1, sum(map(count_cores, lists.values())))


def _cores_of_system(folder: Path) -> int:
    """Cores of a node as the run describes its machine; a run that was stopped early may not have got to that."""
    path = folder / "system.json"
    return min(node.num_cores for node in read_record(path, System).nodes) if path.is_file() else 1


@dataclass(frozen=True)
class _Windows:
    """The windows of a run that count: a row of all ranks' for each stretch of steps, without the first stretch."""

    rows: list[list[Window]]

    @classmethod
    def of(cls, run: RunRecord) -> _Windows:
        """The first stretch of each segment warms up, and is left out where there are others.

        So are stretches that not all ranks of the run's configuration have: one ended, or a resumed run has others.
        """
        table: dict[tuple[int, int, int], list[Window]] = {}
        for ledger in run.ledgers:
            for window in ledger.values(Window):
                table.setdefault((ledger.segment, window.epoch, window.first_step), []).append(window)
        whole = {key: row for key, row in sorted(table.items()) if len(row) == run.config.num_ranks}
        firsts: dict[int, tuple[int, int, int]] = {}
        for key in sorted(table):
            firsts.setdefault(key[0], key)
        return cls([row for key, row in whole.items() if firsts[key[0]] != key] or list(whole.values()))

    @property
    def num_steps(self) -> list[int]:
        return [row[0].num_steps for row in self.rows]

    def mean_over_steps(self, values: Sequence[Sequence[float]]) -> float:
        """Mean over ranks and steps of a value that each window has of one step."""
        means = [statistics.fmean(row) for row in values]
        return sum(mean * steps for mean, steps in zip(means, self.num_steps, strict=True)) / sum(self.num_steps)

    def mean_of(self, field: str) -> float:
        """Mean over ranks and steps of a duration, in seconds."""
        return self.mean_over_steps(
            [[getattr(window, field) / window.num_steps / NS_PER_S for window in row] for row in self.rows]
        )


def _own_s(window: Window, *, on_cuda: bool) -> float:
    own_ns = window.duration_ns - (0 if on_cuda else window.communication_ns)
    return max(0, own_ns) / window.num_steps / NS_PER_S


def _relative_error(values: Sequence[float]) -> float:
    """Relative standard error of the mean."""
    if len(values) < 2:
        return 0.2
    return statistics.stdev(values) / math.sqrt(len(values)) / statistics.fmean(values)


def step_noise(own: Sequence[Sequence[float]], num_steps: Sequence[int]) -> float:
    """Standard deviation of a rank's own time of one step, in seconds, about the mean of the ranks.

    A window is the mean of its steps. Of the variance between ranks in a window, that of the ranks' means over the run
    belongs to the ranks and is the same in each step; the rest is of steps, independent of each other, and so many
    times as large for one of them. Of a single rank it is from window to window, half the mean square of the difference
    of neighbours (von Neumann, Annals of Mathematical Statistics 12, 1941), so that slow changes do not count.
    """
    steps = statistics.fmean(num_steps)
    if min(map(len, own)) < 2:
        alone = [row[0] for row in own]
        squares = [(right - left) ** 2 / 2 for left, right in pairwise(alone)]
        return math.sqrt(steps * statistics.fmean(squares)) if squares else 0.0
    in_windows = statistics.fmean(statistics.variance(row) for row in own)
    of_ranks = statistics.variance([statistics.fmean(column) for column in zip(*own, strict=True)])
    of_ranks = max(0.0, (of_ranks - in_windows / len(own)) / (1 - 1 / len(own))) if len(own) > 1 else in_windows
    return math.sqrt(of_ranks + steps * max(0.0, in_windows - of_ranks))


def is_selfcheck(path: Path) -> bool:
    """Whether a file looks like what `hpcai500 selfcheck --json` writes."""
    if not path.is_file() or path.name == SUBMISSION_NAME:
        return False
    with path.open("rb") as file:
        return b'"passed"' in file.read(200)


def measure_selfcheck(path: Path) -> MeasuredSelfcheck:
    """What a self-check tells.

    Raises:
        RecordError: the file is none that `hpcai500 selfcheck --json` wrote.
    """
    try:
        if path.stat().st_size > MAX_SELFCHECK_BYTES:
            raise ValueError
        content = json.loads(path.read_bytes())
        nodes = content["nodes"]
        ranks = [len(node["ranks"]) for node in nodes]
        figures = [node["figures"] for node in nodes]
        on_gpus = bool(nodes[0]["gpus"])
        products = {
            name: statistics.median(_per_rank(node["figures"][name], node, on_gpus=on_gpus) for node in nodes)
            for name in ("fp32", "bf16")
            if all(name in one for one in figures)
        }
        latencies = [float(one["link_latency"]) for one in figures if "link_latency" in one]
        bandwidth = content["sum_bandwidth_bytes_per_s"]
        link = Link(statistics.median(latencies), float(bandwidth)) if latencies and bandwidth else None
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        raise RecordError(
            f"{str(path)!r} is not what `hpcai500 selfcheck --json FILE` writes; make it anew with that command"
        ) from None
    devices = max(ranks[0], len(nodes[0]["gpus"]))
    return MeasuredSelfcheck(len(nodes), devices if on_gpus else ranks[0], on_gpus, products, link)


def _per_rank(flops: float, node: dict[str, Any], *, on_gpus: bool) -> float:
    """Of a node's processors the sum is known, of its GPUs the slowest."""
    return float(flops) if on_gpus else float(flops) / len(node["ranks"])


def common_job(runs: Iterable[MeasuredRun]) -> tuple[str, str]:
    """Workload and size of some runs.

    Raises:
        UsageError: they are of several.
    """
    found = {(run.config.workload, run.config.size) for run in runs}
    if len(found) > 1:
        names = "; ".join(f"{workload} {size}" for workload, size in sorted(found))
        raise UsageError(f"the runs are of different jobs ({names}); plan for one at a time")
    return next(iter(found))
