"""How long a synchronous training step takes on any number of ranks: pure functions, each with its source.

A step is the computation of a rank, the wait for the slowest rank, and the part of the all-reduce that the backward
pass does not hide; where samples come in slower than that, it is the time of the input::

    step = max(compute x (1 + noise x e(n) / sharing) + exposed(all_reduce(n), backward), input)
    compute = (fixed_s + per_sample_s x batch size) x slowdown

It is assumed that ranks differ from each other by independent, normally distributed parts, that all have the same
batch size, that messages do not meet other jobs' on their way, and that gradients become ready evenly over the backward
pass. docs/planning.rst says where that fails.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

BUCKET_BYTES = 25 * 2**20  # in which gradients are sent (hpcai500/comm/buckets.py)
NORMAL = NormalDist()


@dataclass(frozen=True)
class Link:
    """What a message between two places costs.

    Attributes:
        latency_s: of a small message.
        bandwidth_bytes_per_s: of a large one, in each direction; of all links of a place together.
    """

    latency_s: float
    bandwidth_bytes_per_s: float


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A machine as far as the model knows it. Times are those of one rank with the cores it was measured with.

    Attributes:
        ranks_per_node: ranks, that is devices, of a node.
        fixed_s: of a step, whatever its batch size: the optimizer, starting kernels.
        per_sample_s: forward and backward pass of one sample, and what its input costs the rank.
        noise: standard deviation of a rank's computation about the mean of all ranks, as a part of it.
        within: between ranks of a node; bandwidth of one rank. None where it was not measured.
        between: between nodes; bandwidth of a whole node. None where it was not measured.
        overlap: part of the backward pass behind which messages hide: 1 on devices that compute while messages travel,
            0 on processors, which do both themselves.
        slowdown: cores a rank was measured with, over those it has: 2 where there are twice as many ranks a node.
        sharing: ranks that share a core, over those that did when it was measured; at least 1.
        evaluation_per_sample_s: of one rank.
        evaluation_fixed_s: of an evaluation besides, whatever the number of ranks.
        epoch_fixed_s: of an epoch besides its steps and evaluation: filling the pipeline.
        checkpoint_s: of one checkpoint.
        start_up_s: before the clock, on ``measured_nodes`` nodes.
        measured_nodes: for which all this was measured.
        storage_bytes_per_s: that the data set can be read with, by all nodes together; None if it is no limit.
        power_w: of a node while it trains; None if nothing measured it.
    """

    ranks_per_node: int
    fixed_s: float
    per_sample_s: float
    noise: float = 0.0
    within: Link | None = None
    between: Link | None = None
    overlap: float = 1.0
    slowdown: float = 1.0
    sharing: float = 1.0
    evaluation_per_sample_s: float = 0.0
    evaluation_fixed_s: float = 0.0
    epoch_fixed_s: float = 0.0
    checkpoint_s: float = 0.0
    start_up_s: float = 0.0
    measured_nodes: int = 1
    storage_bytes_per_s: float | None = None
    power_w: float | None = None


@dataclass(frozen=True)
class StepTime:
    """Where the time of one step goes, in seconds.

    Attributes:
        samples_s: what the samples themselves cost.
        fixed_s: what a step costs whatever its batch size.
        stragglers_s: wait for the slowest rank.
        network_s: of the all-reduce, what the backward pass does not hide.
        input_s: wait for the storage, beyond all that.
    """

    samples_s: float
    fixed_s: float
    stragglers_s: float
    network_s: float
    input_s: float

    @property
    def total_s(self) -> float:
        """The whole step."""
        return self.samples_s + self.fixed_s + self.stragglers_s + self.network_s + self.input_s


def expected_maximum(num_ranks: int) -> float:
    """Expected largest of so many independent standard normal numbers.

    Blom's approximation, the quantile of (n - 3/8) / (n + 1/4) (G. Blom, "Statistical Estimates and Transformed
    Beta-Variables", 1958, equation 6.10.3); within 1 % from 2 numbers to 10^5.
    """
    return NORMAL.inv_cdf((num_ranks - 0.375) / (num_ranks + 0.25))


def all_reduce_s(num_bytes: float, num_places: int, link: Link, num_messages: int = 1) -> float:
    """Time to sum arrays over some places: Rabenseifner's reduce-scatter and all-gather.

    2 log2(p) latencies a message and 2 (p - 1) / p of the bytes (Thakur, Rabenseifner and Gropp, "Optimization of
    Collective Communication Operations in MPICH", IJHPCA 19, 2005, section 4.5); a ring has the same bytes, which are
    the least possible, and a tree the same latencies. The sum itself is not counted apart.

    Args:
        num_bytes: of all arrays together.
        num_places: that have an array each.
        link: between any two of them.
        num_messages: arrays, one after the other.
    """
    if num_places == 1:
        return 0.0
    latencies_s = num_messages * 2 * math.ceil(math.log2(num_places)) * link.latency_s
    return latencies_s + 2 * (num_places - 1) / num_places * num_bytes / link.bandwidth_bytes_per_s


def num_buckets(gradient_bytes: float) -> int:
    """Messages in which gradients travel."""
    return max(1, math.ceil(gradient_bytes / BUCKET_BYTES))


def exchange_s(machine: Machine, num_nodes: int, gradient_bytes: float) -> float:
    """Time of the whole all-reduce: within each node, and between the nodes, one after the other.

    Ranks that share cores share what moves and adds the bytes as well.
    """
    messages = num_buckets(gradient_bytes)
    time_s = 0.0
    for link, places in ((machine.within, machine.ranks_per_node), (machine.between, num_nodes)):
        if places > 1:
            assert link is not None, "hpcai500.scaling.calibration.complete sees to that"
            sharing = machine.sharing if link is machine.within else 1.0
            time_s += sharing * all_reduce_s(gradient_bytes, places, link, messages)
    return time_s


def exposed_s(exchange_s: float, backward_s: float, messages: int, overlap: float) -> float:
    """The part of an all-reduce that the step waits for.

    Gradients are ready evenly over the backward pass, in K messages that are sent one after the other. The first can
    be sent after 1 / K of the pass, the last only after all of it: so at least T / K is left, and T less what is hidden
    behind the other (K - 1) / K of the pass (Li et al., "PyTorch Distributed", VLDB 13, 2020, section 3.2.3, in the
    form of two bounds).
    """
    hidden_s = overlap * backward_s * (1 - 1 / messages)
    return max(exchange_s / messages if overlap else exchange_s, exchange_s - hidden_s)


def step_time(
    machine: Machine,
    *,
    num_nodes: int,
    batch_size: float,
    gradient_bytes: float,
    backward_share: float,
    sample_bytes: float = 0.0,
) -> StepTime:
    """Time of one step.

    Args:
        machine: as measured.
        num_nodes: of ``machine.ranks_per_node`` ranks each.
        batch_size: samples of one rank.
        gradient_bytes: that each rank has to sum.
        backward_share: part of the passes over a sample that is the backward one.
        sample_bytes: of a stored sample.
    """
    num_ranks = num_nodes * machine.ranks_per_node
    samples_s = machine.per_sample_s * batch_size * machine.slowdown
    fixed_s = machine.fixed_s * machine.slowdown
    # Ranks that wait leave their core to those they wait for
    delay = machine.noise * expected_maximum(num_ranks) / machine.sharing
    stragglers_s = delay * (samples_s + fixed_s)
    network_s = exposed_s(
        exchange_s(machine, num_nodes, gradient_bytes),
        backward_share * samples_s * (1 + delay),
        num_buckets(gradient_bytes),
        machine.overlap,
    )
    waited_s = 0.0
    if machine.storage_bytes_per_s is not None:
        read_s = num_ranks * batch_size * sample_bytes / machine.storage_bytes_per_s
        waited_s = max(0.0, read_s - (samples_s + fixed_s + stragglers_s + network_s))
    return StepTime(samples_s, fixed_s, stragglers_s, network_s, waited_s)
