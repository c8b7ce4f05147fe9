"""The formula of ``hpcai500 plan`` beside a simulation of the same job at 16,384 ranks, message by message.

    python benchmarks/scaling_simulation.py

The simulation knows no expected maximum, no exposed part and no mean: each rank draws the time of its passes anew in
each step; its gradients are ready bucket by bucket; a bucket travels when the one before it has, through log2(nodes)
rounds of halving and as many of doubling, in each of which a node waits for its partner; storage reads ahead by two
batches. So it says where the formula's assumptions matter. Times are simulated: the same on every machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from hpcai500.edition import load_edition
from hpcai500.scaling.job import Job, make_job
from hpcai500.scaling.model import Link, Machine, num_buckets
from hpcai500.scaling.prediction import predict

NUM_NODES, PER_NODE = 2048, 8
NUM_RANKS = NUM_NODES * PER_NODE
READ_AHEAD = 2  # batches
Draw = Callable[[np.random.Generator, int], np.ndarray]

# H100 as fitted to published systems (scaling_published.py), 200 Gbit/s of network each.
MACHINE = Machine(
    ranks_per_node=PER_NODE,
    fixed_s=4e-3,
    per_sample_s=0.13e-3,
    noise=0.02,
    within=Link(5e-6, 230e9),
    between=Link(20e-6, 200e9),
    evaluation_per_sample_s=0.04e-3,
    evaluation_fixed_s=4e-3,
    measured_nodes=NUM_NODES,
)


def normal(generator: np.random.Generator, num_ranks: int) -> np.ndarray:
    """Of each rank a standard normal number."""
    return generator.standard_normal(num_ranks)


def heavy_tailed(generator: np.random.Generator, num_ranks: int) -> np.ndarray:
    """Student's t with 3 degrees of freedom, scaled to a standard deviation of 1."""
    return generator.standard_t(3, num_ranks) / math.sqrt(3)


def node_by_node(generator: np.random.Generator, num_ranks: int) -> np.ndarray:
    """The ranks of a node are slow together."""
    return np.repeat(generator.standard_normal(num_ranks // PER_NODE), PER_NODE)


@dataclass(frozen=True)
class Case:
    """One job to simulate.

    Attributes:
        holds: whether the formula's assumptions hold.
        draw: how ranks differ in a step, in standard deviations.
        slow_node: how many times as long the ranks of one node take, in all steps.
        has_jitter: whether latencies are exponentially distributed about their mean.
        read_jitter: of reading a batch, lognormally distributed: its standard deviation over its mean.
        sample_bytes: of a stored sample, a JPEG of ImageNet.
    """

    name: str
    holds: bool
    machine: Machine = MACHINE
    batch_size: int = 4
    draw: Draw = normal
    slow_node: float = 1.0
    has_jitter: bool = False
    read_jitter: float = 0.0
    num_epochs: int = 10
    sample_bytes: float = 115e3


def storage_for(batch_size: int, read_s: float, sample_bytes: float = 115e3) -> float:
    """Bandwidth with which a batch of all ranks is read in so many seconds."""
    return NUM_RANKS * batch_size * sample_bytes / read_s


CASES = (
    Case("4 samples a rank", holds=True),
    Case("32 samples a rank", holds=True, batch_size=32, num_epochs=30),
    Case("network of an eighth", holds=True, machine=replace(MACHINE, between=Link(20e-6, 25e9))),
    Case("latency of 200 us", holds=True, machine=replace(MACHINE, between=Link(200e-6, 200e9))),
    Case("ranks differ by 10 %", holds=True, batch_size=32, num_epochs=30, machine=replace(MACHINE, noise=0.1)),
    Case("no overlap", holds=True, machine=replace(MACHINE, overlap=0.0)),
    Case(
        "storage takes 20 ms a batch", holds=True, machine=replace(MACHINE, storage_bytes_per_s=storage_for(4, 20e-3))
    ),
    Case("ranks of a node are slow together", holds=True, draw=node_by_node),
    Case("heavy tail, the same deviation", holds=False, draw=heavy_tailed, batch_size=32, num_epochs=30),
    Case("one node takes 1.5 times as long", holds=False, slow_node=1.5, batch_size=32, num_epochs=30),
    Case("latencies vary, exponentially", holds=False, has_jitter=True),
    Case(
        "storage as fast as the step, in bursts",
        holds=False,
        machine=replace(MACHINE, storage_bytes_per_s=storage_for(4, 7.4e-3)),
        read_jitter=1.0,
    ),
)


def the_job(case: Case) -> Job:
    """ResNet-50 of official size, of fewer epochs."""
    edition = load_edition()
    settings = edition.workload("resnet50").resolve("official", "free", {"checkpoint_every_s": 0.0})
    return replace(
        make_job(edition, "resnet50", "official", settings), num_epochs=case.num_epochs, sample_bytes=case.sample_bytes
    )


def formula_s(case: Case) -> float:
    """The whole run, as the plan has it."""
    return predict(case.machine, the_job(case), num_nodes=NUM_NODES, batch_size=case.batch_size).clock_s


def simulate_s(case: Case, seed: int = 1) -> float:
    """The whole run, simulated."""
    return _Simulation(case, seed).run()


class _Simulation:
    def __init__(self, case: Case, seed: int) -> None:
        self.case, self.job, self.machine = case, the_job(case), case.machine
        self.generator = np.random.default_rng(seed)
        self.pace = np.ones(NUM_RANKS)
        self.pace[:PER_NODE] = case.slow_node
        self.consumed_s = [0.0] * READ_AHEAD  # when the last batches were taken out of the reader's hands
        self.read_s = 0.0

    def run(self) -> float:
        steps = self.job.num_train_samples // (NUM_RANKS * self.case.batch_size)
        now = np.zeros(NUM_RANKS)
        for _ in range(self.job.num_epochs):
            for _ in range(steps):
                now = self._step(np.maximum(now, self._next_batch_s()))
            now = self._evaluation(now)
        return float(now.max())

    def _factors(self) -> np.ndarray:
        """How many times as long as in the mean each rank takes now."""
        drawn = self.case.draw(self.generator, NUM_RANKS)
        return self.pace * np.maximum(0.1, 1 + self.machine.noise * drawn)

    def _next_batch_s(self) -> float:
        """When the storage has read the next batch of all ranks: one after the other, so far ahead as there is room."""
        if self.machine.storage_bytes_per_s is None:
            return 0.0
        duration_s = NUM_RANKS * self.case.batch_size * self.case.sample_bytes / self.machine.storage_bytes_per_s
        if self.case.read_jitter:
            sigma = math.sqrt(math.log1p(self.case.read_jitter**2))
            duration_s *= self.generator.lognormal(-(sigma**2) / 2, sigma)
        self.read_s = max(self.read_s, self.consumed_s[-READ_AHEAD]) + duration_s
        return self.read_s

    def _step(self, start: np.ndarray) -> np.ndarray:
        """When each rank has done a step that it began at ``start``; both (ranks,)."""
        self.consumed_s = [*self.consumed_s[-READ_AHEAD:], float(start.max())]
        machine, job, factors = self.machine, self.job, self._factors()
        passes_s = machine.per_sample_s * self.case.batch_size * factors
        backward_s = job.backward_share * passes_s
        begin_s = start + machine.fixed_s * factors + passes_s - backward_s
        count = num_buckets(job.gradient_bytes)
        free = np.zeros(NUM_NODES)
        for bucket in range(1, count + 1):
            part = bucket / count if machine.overlap else 1.0
            ready = (begin_s + backward_s * part).reshape(NUM_NODES, PER_NODE).max(axis=1)
            free = self._all_reduce(np.maximum(free, ready), job.gradient_bytes / count)
        return np.repeat(free, PER_NODE)

    def _all_reduce(self, ready: np.ndarray, num_bytes: float) -> np.ndarray:
        """When each node has the sum of an array that it had at ``ready``; both (nodes,)."""
        within, between = self.machine.within, self.machine.between
        assert within is not None
        assert between is not None
        rounds = int(math.log2(PER_NODE))
        now = ready + 2 * rounds * within.latency_s
        now = now + 2 * (PER_NODE - 1) / PER_NODE * num_bytes / within.bandwidth_bytes_per_s
        distances = [2**level for level in range(int(math.log2(NUM_NODES)))]
        for order in (distances, distances[::-1]):
            for distance in order:
                partner = now.reshape(-1, 2, distance)[:, ::-1].reshape(-1)
                # The halves that are exchanged get smaller round by round, and larger again.
                share = num_bytes / (2 * distance)
                now = np.maximum(now, partner) + self._latency_s(between) + share / between.bandwidth_bytes_per_s
        return now

    def _latency_s(self, link: Link) -> np.ndarray | float:
        return self.generator.exponential(link.latency_s, NUM_NODES) if self.case.has_jitter else link.latency_s

    def _evaluation(self, start: np.ndarray) -> np.ndarray:
        share = math.ceil(self.job.num_validation_samples / NUM_RANKS)
        own_s = (share * self.machine.evaluation_per_sample_s + self.machine.evaluation_fixed_s) * self.pace
        return np.full(NUM_RANKS, (start + own_s).max())


def errors(cases: Sequence[Case] = CASES) -> dict[str, float]:
    """Of each case how far the formula is from the simulation, as a part of the simulation."""
    return {case.name: formula_s(case) / simulate_s(case) - 1 for case in cases}


def main() -> None:
    """Print the table."""
    for case in CASES:
        formula, simulated = formula_s(case), simulate_s(case)
        print(
            f"{case.name:40} {'yes' if case.holds else 'no':4} simulated {simulated:7.3f} s  formula {formula:7.3f} s  "
            f"{100 * (formula / simulated - 1):+6.1f} %"
        )


if __name__ == "__main__":
    main()
