"""What every communicator must do, run by all ranks of one launch: python conformance.py COMMUNICATOR FOLDER.

Each rank appends a JSON line per check to FOLDER/rank-N.jsonl; tests/test_comm.py starts the ranks and reads them.
One launch runs all checks, since importing torch takes longer than the checks.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

warnings.simplefilter("error")  # a rank that warns fails its test

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from hpcai500.comm.communicator import (  # noqa: E402
    Communicator,
    Compression,
    GradientExchange,
    end_process,
    open_communicator,
)
from hpcai500.comm.launchers import find_place  # noqa: E402
from hpcai500.comm.nodes import find_node  # noqa: E402

FOLDER = Path(sys.argv[2])
# float32 keeps 24 bits; the sum over shards and over ranks is taken in another order than over one batch, and five
# steps carry the differences on. Observed: under 1e-6.
FLOAT32_ROUNDING = 1e-5
BFLOAT16_ROUNDING = 2.0**-8  # of a number to the nearest of 8 bits, relative


def model(seed: int, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Two channels_last convolutions and a linear layer, no normalisation: a mean of gradients is all that couples."""
    torch.manual_seed(seed)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(16 * 9, 5)).to(dtype=dtype, memory_format=torch.channels_last)


def batch(seed: int, num_samples: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(num_samples, 3, 8, 8, generator=generator, dtype=dtype)
    labels = torch.randint(5, (num_samples,), generator=generator)
    return images.contiguous(memory_format=torch.channels_last), labels


def loss(module: nn.Module, data: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(module(data[0]), data[1])


def prepare(
    comm: Communicator, module: nn.Module, compression: Compression = "none"
) -> tuple[GradientExchange, torch.optim.SGD]:
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9)
    return comm.exchange(module, optimizer, compression=compression), optimizer


def digest(tensors: list[Tensor]) -> str:
    return hashlib.sha256(b"".join(tensor.detach().contiguous().numpy().tobytes() for tensor in tensors)).hexdigest()


def assert_same_on_all_ranks(comm: Communicator, tensors: list[Tensor]) -> None:
    digests = comm.allgather(digest(tensors))
    assert len(set(digests)) == 1, f"ranks differ: {digests}"


def grads(module: nn.Module) -> list[Tensor]:
    return [parameter.grad for parameter in module.parameters() if parameter.grad is not None]


def check_place_is_that_of_the_launcher(comm: Communicator) -> None:
    place = find_place()
    assert (comm.rank, comm.size) == (place.rank, place.size)
    assert (comm.local_rank, comm.local_size) == (place.local_rank, place.local_size)
    assert comm.allgather(comm.rank) == list(range(comm.size))


def check_nodes_are_numbered_by_their_lowest_rank(comm: Communicator) -> None:
    place = find_node(comm, f"host{(comm.rank + 1) % 2}")  # ranks dealt to two hosts in turn
    assert place == (comm.rank % 2, comm.rank % 2)
    assert find_node(comm, "one host") == (0, 0)
    assert find_node(comm, f"host{comm.rank}") == (comm.rank, comm.rank)


def check_allreduce_sums_and_finds_extremes(comm: Communicator) -> None:
    ranks = np.arange(comm.size)
    for dtype in (np.int64, np.float64):
        values = np.array([[comm.rank, -comm.rank], [1, 2**40 + comm.rank]], dtype=dtype)
        before = values.copy()
        for op, combine in (("sum", np.sum), ("min", np.min), ("max", np.max)):
            got = comm.allreduce(values, op)
            expected = [[combine(ranks), combine(-ranks)], [combine(0 * ranks + 1), combine(2**40 + ranks)]]
            assert got.dtype == dtype
            assert np.array_equal(got, np.array(expected, dtype=dtype)), (op, got, expected)
        assert np.array_equal(values, before)
    assert comm.allreduce(np.array(1.5)) == 1.5 * comm.size
    assert comm.allreduce(np.array(1.5)).shape == ()


def check_allgather_keeps_rank_order_and_any_size(comm: Communicator) -> None:
    got = comm.allgather({"rank": comm.rank, "text": "x" * (1 + 100_000 * comm.rank)})
    assert [entry["rank"] for entry in got] == list(range(comm.size))
    assert [len(entry["text"]) for entry in got] == [1 + 100_000 * rank for rank in range(comm.size)]


def check_gather_reaches_only_the_root(comm: Communicator) -> None:
    for root in (0, comm.size - 1):
        got = comm.gather((comm.rank, "word"), root=root)
        assert got == ([(rank, "word") for rank in range(comm.size)] if comm.rank == root else None)


def check_gather_array_stacks_arrays_on_rank_0(comm: Communicator) -> None:
    for own in (np.full((2, 3), comm.rank, dtype=np.int64), np.full(5, comm.rank, dtype=np.uint8), np.array(1.5)):
        transposed = own.T  # not contiguous
        got = comm.gather_array(transposed)
        if comm.rank != 0:
            assert got is None
            continue
        assert got.dtype == own.dtype
        assert got.shape == (comm.size, *transposed.shape)
        expected = [np.full_like(transposed, 1.5 if own.ndim == 0 else rank) for rank in range(comm.size)]
        assert np.array_equal(got, np.stack(expected))


def check_a_gather_that_was_started_ends_after_other_calls(comm: Communicator) -> None:
    own = np.array([comm.rank, 7])
    end = comm.start_gather(own)
    own[:] = -1  # what was sent is what it was then
    assert comm.allreduce(np.array(1.0)) == comm.size
    got = end()
    assert (got is None) == (comm.rank != 0)
    assert got is None or np.array_equal(got, [[rank, 7] for rank in range(comm.size)])


def check_broadcast_takes_the_object_of_the_root(comm: Communicator) -> None:
    for root in (0, comm.size - 1):
        assert comm.broadcast(["from", comm.rank, None], root=root) == ["from", root, None]
    assert comm.broadcast(None) is None


def check_nobody_leaves_a_barrier_before_all_have_come(comm: Communicator) -> None:
    if comm.rank == comm.size - 1:
        time.sleep(0.3)
    (FOLDER / f"came-{comm.rank}").touch()
    comm.barrier()
    assert all((FOLDER / f"came-{rank}").exists() for rank in range(comm.size))


def check_broadcast_module_copies_rank_0_in_every_type_and_layout(comm: Communicator) -> None:
    def build(seed: int) -> nn.Module:
        module = nn.Sequential(model(seed), nn.BatchNorm1d(5), nn.Linear(5, 2).double())
        module[1].num_batches_tracked.fill_(seed)
        return module

    module, expected = build(comm.rank), build(0)
    comm.broadcast_module(module)
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, expected.state_dict()[name]), name
    assert module[0][0].weight.is_contiguous(memory_format=torch.channels_last)


def check_average_buffers_takes_the_mean_of_running_statistics(comm: Communicator) -> None:
    module = nn.BatchNorm2d(3)
    module.running_mean.fill_(float(comm.rank))
    module.running_var.copy_(torch.tensor([1.0, 2.0, 3.0]) * (comm.rank + 1))
    module.num_batches_tracked.fill_(7)
    comm.average_buffers(module)
    mean = (comm.size - 1) / 2
    assert torch.allclose(module.running_mean, torch.full((3,), mean))
    assert torch.allclose(module.running_var, torch.tensor([1.0, 2.0, 3.0]) * (mean + 1))
    assert module.num_batches_tracked == 7
    assert_same_on_all_ranks(comm, [module.running_mean, module.running_var])


def check_gradients_are_the_mean_and_the_same_bits_on_all_ranks(comm: Communicator) -> None:
    module = model(seed=0)
    alone = copy.deepcopy(module)
    exchange, optimizer = prepare(comm, module)
    for step in range(4):
        data = batch(seed=100 * step + comm.rank, num_samples=3)
        alone.load_state_dict(module.state_dict())
        alone.zero_grad()
        loss(alone, data).backward()
        gathered = comm.allgather([grad.numpy() for grad in grads(alone)])
        # Both ways to clear gradients: None, and zeros that keep the tensors.
        optimizer.zero_grad(set_to_none=step != 2)
        loss(exchange.module, data).backward()
        exchange.finish()
        for position, grad in enumerate(grads(module)):
            expected = torch.from_numpy(
                np.mean([rank[position] for rank in gathered], axis=0, dtype=np.float64)
            ).float()
            torch.testing.assert_close(grad, expected, rtol=1e-5, atol=1e-7)
        assert_same_on_all_ranks(comm, grads(module))
        optimizer.step()
    assert_same_on_all_ranks(comm, list(module.parameters()))


def check_compressed_gradients_are_the_mean_within_two_roundings_and_the_same_bits(comm: Communicator) -> None:
    module = model(seed=4)
    alone = copy.deepcopy(module)
    exchange, optimizer = prepare(comm, module, "bf16")
    sent, received = [0 if comm.name == "serial" else BFLOAT16_ROUNDING] * 2  # one rank alone sends nothing
    for step in range(3):
        data = batch(seed=100 * step + comm.rank, num_samples=3)
        alone.load_state_dict(module.state_dict())
        alone.zero_grad()
        loss(alone, data).backward()
        gathered = comm.allgather([grad.double().numpy() for grad in grads(alone)])
        optimizer.zero_grad()
        loss(exchange.module, data).backward()
        exchange.finish()
        for position, grad in enumerate(grads(module)):
            parts = np.array([rank[position] for rank in gathered])
            mean, magnitude = parts.mean(axis=0), np.abs(parts).mean(axis=0)
            limit = sent * magnitude + received * (np.abs(mean) + sent * magnitude) + 1e-6 * magnitude
            assert np.all(np.abs(grad.double().numpy() - mean) <= limit)
            assert comm.name == "serial" or torch.equal(grad, grad.bfloat16().float())
        assert_same_on_all_ranks(comm, grads(module))
        optimizer.step()
    assert_same_on_all_ranks(comm, list(module.parameters()))


def check_many_ranks_train_like_one_with_the_same_global_batch(comm: Communicator) -> None:
    for dtype, rounding in ((torch.float32, FLOAT32_ROUNDING), (torch.float64, 1e-13)):
        module = model(seed=1, dtype=dtype)
        alone = copy.deepcopy(module)
        exchange, optimizer = prepare(comm, module)
        optimizer_alone = torch.optim.SGD(alone.parameters(), lr=0.05, momentum=0.9)
        for step in range(5):
            images, labels = batch(seed=step, num_samples=4 * comm.size, dtype=dtype)
            mine = slice(4 * comm.rank, 4 * (comm.rank + 1))
            for stepper, net, data in (
                (optimizer, exchange.module, (images[mine], labels[mine])),
                (optimizer_alone, alone, (images, labels)),
            ):
                stepper.zero_grad()
                loss(net, data).backward()
                if net is exchange.module:
                    exchange.finish()
                stepper.step()
        for parameter, expected in zip(module.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(parameter, expected, rtol=rounding, atol=rounding)


class Forked(nn.Module):
    """A layer that only some calls use, between two that all use."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.first, self.optional, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor, use: bool) -> Tensor:
        x = self.first(x)
        return self.last(self.optional(x) if use else x)


def check_a_parameter_may_stay_unused_on_some_or_all_ranks(comm: Communicator) -> None:
    assert_unused_parameters_are_left_alone(comm, "none", rounding=1e-5)


def check_compressed_a_parameter_may_stay_unused_on_some_or_all_ranks(comm: Communicator) -> None:
    assert_unused_parameters_are_left_alone(comm, "bf16", rounding=2.01 * BFLOAT16_ROUNDING)


def assert_unused_parameters_are_left_alone(comm: Communicator, compression: Compression, *, rounding: float) -> None:
    module = Forked()
    exchange, optimizer = prepare(comm, module, compression)
    users: list[set[int]] = [set(range(comm.size)), {0}, set(), {comm.size - 1}, set(range(comm.size))]
    for step, using in enumerate(users):
        optimizer.zero_grad()
        alone = copy.deepcopy(module)
        x = torch.full((2, 4), 1.0 + comm.rank + step)
        alone(x, comm.rank in using).sum().backward()
        gathered = comm.allgather([None if p.grad is None else p.grad.numpy() for p in alone.parameters()])
        exchange.module(x, comm.rank in using).sum().backward()
        exchange.finish()
        for position, parameter in enumerate(module.parameters()):
            parts = [rank[position] for rank in gathered if rank[position] is not None]
            if parts:
                error = np.abs(parameter.grad.numpy() - np.sum(parts, axis=0) / comm.size)
                assert np.all(error <= rounding * np.sum(np.abs(parts), axis=0) / comm.size + 1e-6)
            else:
                assert parameter.grad is None, "nobody used it, so the optimizer must leave it alone"
        assert_same_on_all_ranks(comm, grads(module))
        optimizer.step()


def check_the_exchange_starts_before_backward_has_ended(comm: Communicator) -> None:
    assert_exchange_starts_early(comm, "none")


def check_a_compressed_exchange_starts_before_backward_has_ended(comm: Communicator) -> None:
    assert_exchange_starts_early(comm, "bf16")


def assert_exchange_starts_early(comm: Communicator, compression: Compression) -> None:
    torch.manual_seed(3)
    module = nn.Sequential(*[nn.Linear(600, 600) for _ in range(4)])  # 1.4 MB each: more than one bucket
    exchange, optimizer = prepare(comm, module, compression)
    events: list[str] = []
    if comm.name == "serial":
        return  # nothing is exchanged
    hand_over = exchange._start

    def noting(bucket: object) -> object:
        events.append("handed over")
        return hand_over(bucket)

    exchange._start = noting
    module[0].weight.register_hook(lambda _: events.append("last gradient computed"))
    optimizer.zero_grad()
    exchange.module(torch.ones(2, 600)).sum().backward()
    exchange.finish()
    assert events.count("handed over") >= 2
    assert events.index("handed over") < events.index("last gradient computed"), events


def main() -> None:
    comm = open_communicator(sys.argv[1], timeout_s=60)
    checks: dict[str, Callable[[Communicator], None]] = {
        name.removeprefix("check_"): function for name, function in globals().items() if name.startswith("check_")
    }
    with (FOLDER / f"rank-{comm.rank}.jsonl").open("w", encoding="utf-8", buffering=1) as report:
        for name, check in checks.items():
            problem = ""
            try:
                check(comm)
            except Exception:
                problem = traceback.format_exc()
            report.write(json.dumps({"check": name, "problem": problem}) + "\n")
            if any(comm.allgather(problem)):
                comm.abort(os.EX_SOFTWARE)  # ranks may no longer be in step, so later checks would tell nothing
        comm.close()
        comm.close()
        report.write(json.dumps({"check": "closes_without_a_word", "problem": ""}) + "\n")


if __name__ == "__main__":
    main()
    end_process()
