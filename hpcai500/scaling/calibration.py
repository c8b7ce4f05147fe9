"""The machine as short runs and a self-check show it: what the model's figures are, and how far they are known.

A run on processors tells apart what a rank does itself and what it waits for in the exchange of gradients. A run on
GPUs does not: phases are those of the host, which runs ahead of the device, so that only whole steps count, and what
the all-reduce exposes on the measured nodes counts as computation.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from hpcai500.errors import UsageError
from hpcai500.scaling.job import Job
from hpcai500.scaling.measured import MeasuredRun, MeasuredSelfcheck
from hpcai500.scaling.model import Link, Machine, expected_maximum

# Of a step of ResNet-50 on A100 and H100 that does not depend on the batch size, as fitted to the systems of MLPerf of
# at most 64 of them (benchmarks/scaling.rst); for a GPU of which only one batch size was measured.
GPU_FIXED_S = 0.004
# Part of the rate of a large matrix product that training reaches, where only a self-check was made: 0.61 to 0.95 on
# processors (benchmarks/training_step.rst); MLPerf's H100 trains at 174 TFLOP/s, of the some 700 that products reach.
EFFICIENCY = {"cpu": 0.75, "cuda": 0.25}
EFFICIENCY_STD = 0.2
NOISE = 0.02  # of a machine on which nothing was trained, as with published systems (benchmarks/scaling_published.py)
MUCH_WAITING = 0.2  # of a step for data, from which it is said
FREE = Link(0.0, math.inf)


@dataclass(frozen=True)
class Spread:
    """How far what was measured is known: relative standard deviations."""

    computation: float
    network: float = 0.1
    noise: float = 0.3


@dataclass(frozen=True)
class Calibration:
    """A machine, how far it is known, and what a reader must know of how it was measured.

    Attributes:
        cores_per_rank, cores_per_node: as measured; None of ranks on GPUs.
    """

    machine: Machine
    spread: Spread
    cores_per_rank: float | None = None
    cores_per_node: float | None = None
    notes: tuple[str, ...] = ()


def calibrate(runs: Sequence[MeasuredRun], job: Job) -> Calibration:
    """The machine that some runs show, all on the same ranks, perhaps with several batch sizes.

    Raises:
        UsageError: the runs are of different numbers of ranks or nodes, or devices.
    """
    first = runs[0]
    for other in runs[1:]:
        if (other.num_ranks, other.num_nodes, other.on_cuda) != (first.num_ranks, first.num_nodes, first.on_cuda):
            raise UsageError(
                f"{other.name!r} is of {other.num_ranks} ranks on {other.num_nodes} nodes, {first.name!r} of "
                f"{first.num_ranks} on {first.num_nodes}; name runs that differ in their batch size only"
            )
    fixed_s, per_sample_s = _computation(runs)
    within, between = _links(runs, job)
    evaluation = [run.evaluation_per_sample_s for run in runs if run.evaluation_per_sample_s is not None]
    power = [run.power_w / run.num_nodes for run in runs if run.power_w is not None]
    machine = Machine(
        ranks_per_node=first.num_ranks // first.num_nodes,
        fixed_s=fixed_s,
        per_sample_s=per_sample_s,
        noise=statistics.fmean(run.noise for run in runs),
        within=within,
        between=between,
        overlap=1.0 if first.on_cuda else 0.0,
        evaluation_per_sample_s=statistics.fmean(evaluation or [(1 - job.backward_share) * per_sample_s]),
        evaluation_fixed_s=statistics.fmean(run.evaluation_fixed_s for run in runs),
        epoch_fixed_s=statistics.fmean(run.epoch_fixed_s for run in runs),
        checkpoint_s=max(run.checkpoint_s for run in runs),
        start_up_s=statistics.fmean(run.start_up_s for run in runs),
        measured_nodes=first.num_nodes,
        power_w=statistics.fmean(power) if power else None,
    )
    return Calibration(
        machine,
        Spread(_computation_spread(runs)),
        cores_per_rank=None if first.on_cuda else first.cores_per_rank,
        cores_per_node=None if first.on_cuda else first.cores_per_node,
        notes=tuple(_notes(runs)),
    )


def _computation(runs: Sequence[MeasuredRun]) -> tuple[float, float]:
    """Fixed and per-sample time of a step: the straight line of least squares through runs of several batch sizes.

    Of a single batch size the fixed part is what the optimizer takes, or on GPUs that of published systems.
    """
    sizes = [run.batch_size for run in runs]
    if len(set(sizes)) > 1:
        line = statistics.linear_regression(sizes, [run.own_s for run in runs])
        fixed_s = max(0.0, line.intercept)
        return fixed_s, statistics.fmean((run.own_s - fixed_s) / run.batch_size for run in runs)
    own_s = statistics.fmean(run.own_s for run in runs)
    fixed_s = GPU_FIXED_S if runs[0].on_cuda else statistics.fmean(run.optimizer_s for run in runs)
    fixed_s = min(fixed_s, own_s / 2)
    return fixed_s, (own_s - fixed_s) / sizes[0]


def _links(runs: Sequence[MeasuredRun], job: Job) -> tuple[Link | None, Link | None]:
    """Links within and between nodes as exchanges by processors show them, of which nothing is hidden.

    What a rank waits for besides the slowest other one is the exchange; its latencies count as bytes.
    """
    first = runs[0]
    if first.on_cuda:
        return FREE, FREE if first.num_nodes > 1 else None
    if first.num_ranks == 1:
        return None, None
    most = expected_maximum(first.num_ranks)
    exposed_s = max(0.0, statistics.fmean(run.step_s - run.own_s * (1 + run.noise * most) for run in runs))
    moved_bytes = 2 * (first.num_ranks - 1) / first.num_ranks * job.gradient_bytes
    link = Link(0.0, moved_bytes / exposed_s if exposed_s > 0 else math.inf)
    return (link, None) if first.num_nodes == 1 else (FREE, link)


def _computation_spread(runs: Sequence[MeasuredRun]) -> float:
    """Relative standard error of the time of a step: from run to run, or within a run from window to window."""
    within = math.sqrt(sum(run.own_error**2 for run in runs)) / len(runs)
    sizes = {run.batch_size for run in runs}
    means = {size: statistics.fmean(run.own_s for run in runs if run.batch_size == size) for size in sizes}
    ratios = [run.own_s / means[run.batch_size] for run in runs]
    between = statistics.stdev(ratios) / math.sqrt(len(runs)) if len(runs) > len(sizes) else 0.0
    return max(within, between)


def _notes(runs: Sequence[MeasuredRun]) -> list[str]:
    """What was not measured, and what stands in for it."""
    found = []
    first = runs[0]
    if len({run.batch_size for run in runs}) == 1:
        what = "that of published GPU systems" if first.on_cuda else "the optimizer's time"
        found.append(
            f"only batch size {first.batch_size} was measured, so that the part of a step that does not depend on it "
            f"is {what}; a run with --set batch_size_per_rank={max(1, first.batch_size // 2)} beside it measures it"
        )
    waiting = max(run.data_wait_s / run.step_s for run in runs)
    if waiting > MUCH_WAITING:
        found.append(f"{waiting:.0%} of a step was waiting for data; it counts as computation, whatever the storage")
    if all(run.evaluation_per_sample_s is None for run in runs):
        found.append("no evaluation was measured; its time follows from the FLOP of the forward pass")
    return found


def calibrate_selfcheck(check: MeasuredSelfcheck, job: Job, *, precision: str) -> Calibration:
    """The machine that a self-check alone shows: compute rate and links, but no training.

    Raises:
        UsageError: it has no product in that number format.
    """
    rate_flops = check.product_flops.get(precision)
    if rate_flops is None:
        known = ", ".join(sorted(check.product_flops)) or "none"
        raise UsageError(
            f"the self-check has no {precision} product (it has: {known}), so nothing tells how fast a rank trains; "
            "name the folder of a short run too, made by `hpcai500 submit`"
        )
    efficiency = EFFICIENCY["cuda" if check.on_gpus else "cpu"]
    per_sample_s = job.flop_training_per_sample / (rate_flops * efficiency)
    note = (
        f"no training was measured: it is taken to reach {efficiency:.0%} of the rate of a {precision} matrix product; "
        f"that ranks differ by {NOISE:.0%} and that a start takes no time are assumed as well; a run of a few minutes, "
        "made by `hpcai500 submit`, tells all that"
    )
    machine = Machine(
        ranks_per_node=check.ranks_per_node,
        fixed_s=GPU_FIXED_S if check.on_gpus else 0.0,
        per_sample_s=per_sample_s,
        noise=NOISE,
        evaluation_per_sample_s=(1 - job.backward_share) * per_sample_s,
        overlap=1.0 if check.on_gpus else 0.0,
    )
    calibration = Calibration(
        machine,
        Spread(EFFICIENCY_STD),
        cores_per_rank=None if check.on_gpus else 1.0,
        cores_per_node=None if check.on_gpus else float(check.ranks_per_node),
        notes=(note,),
    )
    return with_selfcheck(calibration, check)


def with_selfcheck(calibration: Calibration, check: MeasuredSelfcheck) -> Calibration:
    """The same with the links of a self-check, where it has any."""
    if check.link is None:
        return calibration
    machine = calibration.machine
    if check.num_nodes > 1:
        return replace(calibration, machine=replace(machine, within=machine.within or FREE, between=check.link))
    return replace(calibration, machine=replace(machine, within=check.link))


def with_ranks_per_node(calibration: Calibration, ranks_per_node: int) -> Calibration:
    """The same with another number of ranks on each node; those on processors share its cores.

    A rank's time goes in proportion with its cores: right where ranks share a core, too slow where a rank of several
    cores gets fewer, since it never made full use of them.
    """
    machine, before, notes = calibration.machine, calibration.cores_per_rank, calibration.notes
    slowdown = sharing = 1.0
    if before is not None and calibration.cores_per_node is not None:
        cores = min(before, calibration.cores_per_node / ranks_per_node)
        slowdown, sharing = before / cores, max(1.0, 1 / cores) / max(1.0, 1 / before)
        if before > 1 and cores < before:
            notes += (
                f"a rank was measured with {before:g} cores and gets {cores:g}, which is taken to slow it down in "
                "proportion, at most; a run of as many ranks a node tells",
            )
    changed = replace(machine, ranks_per_node=ranks_per_node, slowdown=slowdown, sharing=sharing)
    return replace(calibration, machine=changed, notes=notes)


def complete(calibration: Calibration, sizes: Sequence[int]) -> Calibration:
    """The same, after a look whether it knows the network that those numbers of nodes need.

    Raises:
        UsageError: it does not; the message says what would measure it.
    """
    machine = calibration.machine
    if machine.ranks_per_node > 1 and machine.within is None:
        raise UsageError(
            f"nothing tells how fast {machine.ranks_per_node} ranks of a node exchange gradients; plan from a run of "
            "that many, or name the file of `mpiexec -n 2 hpcai500 selfcheck --json FILE` too"
        )
    if max(sizes) > 1 and machine.between is None:
        raise UsageError(
            f"nothing tells how fast {max(sizes):,} nodes exchange gradients; name the file of `srun --nodes=2 "
            "--ntasks-per-node=1 hpcai500 selfcheck --json FILE` too, or say what the network does, as --latency-us 20 "
            "--bandwidth-gb-s 25 (InfiniBand of 200 Gbit/s), or plan --nodes 1"
        )
    return calibration
