"""Binding ranks to cores: on pretended machines what is decided, on this one that it happens."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from machines import bus_id, make_nvidia_smi, make_sysfs

from hpcai500.comm.communicator import own_gpu
from hpcai500.launch.binding import Binding, bind_rank, device_index, plan_binding, visible_gpus
from hpcai500.launch.topology import format_cpu_list, parse_cpu_list

BIND = (
    "import json, os, sys; from hpcai500.launch.binding import bind_rank;"
    "binding = bind_rank(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]);"
    "print(json.dumps([vars(binding), sorted(os.sched_getaffinity(0)), os.environ['OMP_NUM_THREADS']]))"
)


def plan_all(sysfs: Path, num_ranks: int, num_cpus: int, **options: object) -> list[Binding]:
    given = {"allowed": range(num_cpus), "available": num_cpus, "sysfs": sysfs, **options}
    return [plan_binding(rank, num_ranks, **given) for rank in range(num_ranks)]  # type: ignore[arg-type]


def uuid(number: int) -> str:
    return f"GPU-{number:08x}-aaaa"


def smi_rows(num_gpus: int) -> list[dict[str, str]]:
    return [
        {"index": str(number), "uuid": uuid(number), "pci.bus_id": f"0000{bus_id(number).upper()}"}
        for number in range(num_gpus)
    ]


def test_lists_of_cpus_are_read_and_written_as_the_kernel_has_them() -> None:
    assert parse_cpu_list("0-2,8,10-11\n") == {0, 1, 2, 8, 10, 11}
    assert parse_cpu_list("\n") == set()
    assert format_cpu_list([11, 10, 8, 0, 1, 2]) == "0-2,8,10-11"


def test_two_sockets_with_four_gpus_each_give_each_rank_a_quarter_of_the_cores_of_its_socket(tmp_path: Path) -> None:
    sysfs = make_sysfs(tmp_path, nodes=[16, 16], gpus=[0, 0, 0, 0, 1, 1, 1, 1])
    gpus = [bus_id(number) for number in range(8)]
    bindings = plan_all(sysfs, 8, 64, gpus=gpus)
    assert [binding.numa_node for binding in bindings] == [0, 0, 0, 0, 1, 1, 1, 1]
    assert bindings[0].cores == (0, 1, 2, 3, 32, 33, 34, 35)  # both threads of four cores
    assert bindings[5].cores == (20, 21, 22, 23, 52, 53, 54, 55)
    assert [binding.gpu for binding in bindings] == gpus
    assert {binding.num_threads for binding in bindings} == {4}
    assert sorted(cpu for binding in bindings for cpu in binding.cores) == list(range(64))


def test_gpus_that_are_numbered_across_sockets_are_followed(tmp_path: Path) -> None:
    sysfs = make_sysfs(tmp_path, nodes=[4, 4], threads=1, gpus=[1, 0, 1, 0])
    bindings = plan_all(sysfs, 4, 8, gpus=[bus_id(number) for number in range(4)])
    assert [binding.cores for binding in bindings] == [(4, 5), (0, 1), (6, 7), (2, 3)]


def test_eight_gpus_on_four_numa_nodes_where_each_task_sees_only_its_own(tmp_path: Path) -> None:
    sysfs = make_sysfs(tmp_path, nodes=[8, 8, 8, 8], gpus=[3, 3, 1, 1, 0, 0, 2, 2])  # as on boards with EPYC
    bindings = [
        plan_binding(rank, 8, allowed=range(64), available=64, gpus=[bus_id(rank)], sysfs=sysfs) for rank in range(8)
    ]
    assert [binding.numa_node for binding in bindings] == [3, 3, 1, 1, 0, 0, 2, 2]
    assert sorted(cpu for binding in bindings for cpu in binding.cores) == list(range(64))


def test_fewer_ranks_than_gpus_share_the_cores_beside_them(tmp_path: Path) -> None:
    sysfs = make_sysfs(tmp_path, nodes=[8, 8], threads=1, gpus=[0, 0, 0, 0])
    bindings = [
        plan_binding(rank, 2, allowed=range(16), available=16, gpus=[bus_id(2 + rank)], sysfs=sysfs)
        for rank in range(2)
    ]
    assert [binding.cores for binding in bindings] == [(0, 1, 2, 3), (4, 5, 6, 7)]


def test_a_single_rank_stays_next_to_its_gpu(tmp_path: Path) -> None:
    sysfs = make_sysfs(tmp_path, nodes=[4, 4], threads=1, gpus=[0, 1])
    binding = plan_binding(0, 1, allowed=range(8), available=8, gpus=[bus_id(1)], sysfs=sysfs)
    assert binding.bound
    assert binding.cores == (4, 5, 6, 7)


def test_firmware_that_does_not_say_where_gpus_are_leads_to_an_even_split(tmp_path: Path) -> None:
    sysfs = make_sysfs(tmp_path, nodes=[4, 4], threads=1, gpus=[-1, -1])
    bindings = plan_all(sysfs, 2, 8, gpus=[bus_id(0), bus_id(1)])
    assert [binding.cores for binding in bindings] == [(0, 1, 2, 3), (4, 5, 6, 7)]
    assert bindings[0].gpu == bus_id(0)
    assert "even share" in bindings[0].reason


def test_a_gpu_that_sysfs_does_not_know_is_told(tmp_path: Path) -> None:
    sysfs = make_sysfs(tmp_path, nodes=[4], threads=1)
    binding = plan_binding(0, 2, allowed=range(4), available=4, gpus=[bus_id(7)], sysfs=sysfs)
    assert binding.cores == (0, 1)
    assert f"cores next to GPU {bus_id(7)} are not known" in binding.reason


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4, 5, 6, 8])
def test_ranks_on_processors_share_all_cores_evenly_and_no_two_share_a_core(num_ranks: int, tmp_path: Path) -> None:
    sysfs = make_sysfs(tmp_path, nodes=[4, 4])
    bindings = plan_all(sysfs, num_ranks, 16)
    used = [cpu for binding in bindings for cpu in binding.cores]
    assert sorted(used) == list(range(16))
    sizes = [len(binding.cores) // 2 for binding in bindings]
    assert max(sizes) - min(sizes) <= 8 // num_ranks  # three ranks: one has a whole node, two halve the other
    for binding in bindings:
        cores = {cpu % 8 for cpu in binding.cores}
        assert len(binding.cores) == 2 * len(cores), "a core's two threads went to two ranks"
        if num_ranks > 1:
            assert len({core // 4 for core in cores}) == 1, "a rank reaches over two NUMA nodes"


def test_only_allowed_threads_are_used(tmp_path: Path) -> None:
    sysfs = make_sysfs(tmp_path, nodes=[4, 4])
    bindings = plan_all(
        sysfs, 2, 0, allowed=[2, 3, 4, 5], available=4
    )  # one thread a core, Slurm's --hint=nomultithread
    assert [binding.cores for binding in bindings] == [(2, 3), (4, 5)]
    assert [binding.numa_node for binding in bindings] == [0, 1]


def test_what_the_launcher_has_bound_is_kept(tmp_path: Path) -> None:
    sysfs = make_sysfs(tmp_path, nodes=[4, 4], threads=1, gpus=[1, 1])
    binding = plan_binding(1, 2, allowed=[2, 3], available=8, gpus=[bus_id(0), bus_id(1)], sysfs=sysfs)
    assert not binding.bound
    assert binding.cores == (2, 3)
    assert "to none next to its GPU; let the launcher bind by GPU" in binding.reason
    masks = plan_binding(1, 2, allowed=[2, 3], available=2, bound_apart=True, sysfs=sysfs)
    assert not masks.bound
    assert masks.num_threads == 1  # two ranks of this node were given two CPUs in all


def test_more_ranks_than_cores_are_left_alone_with_one_thread_each(tmp_path: Path) -> None:
    sysfs = make_sysfs(tmp_path, nodes=[2])
    binding = plan_binding(3, 4, allowed=range(4), available=4, sysfs=sysfs)
    assert not binding.bound
    assert binding.num_threads == 1
    assert "4 ranks share 2 cores" in binding.reason


def test_a_job_that_has_some_of_the_cores_but_no_cpuset_is_not_bound_onto_those_of_another_job(tmp_path: Path) -> None:
    sysfs = make_sysfs(tmp_path, nodes=[8], threads=1)
    binding = plan_binding(0, 2, allowed=range(8), available=4, sysfs=sysfs)
    assert not binding.bound
    assert binding.num_threads == 2
    assert "4 of 8 cores" in binding.reason


def test_a_machine_without_sysfs_still_runs(tmp_path: Path) -> None:
    binding = plan_binding(1, 2, allowed=range(4), available=4, sysfs=tmp_path / "nothing")
    assert binding.cores == (2, 3)


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        (None, [0, 1, 2, 3]),
        ("2", [2]),
        ("3,1", [3, 1]),
        (uuid(2), [2]),
        ("1,9,0", [1]),  # CUDA stops at what it does not know
    ],
)
def test_cuda_visible_devices_is_respected(
    chosen: str | None, expected: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_nvidia_smi(tmp_path, smi_rows(4))
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    environ = {} if chosen is None else {"CUDA_VISIBLE_DEVICES": chosen}
    gpus, problem = visible_gpus(environ)
    assert [gpu.lower()[4:] for gpu in gpus] == [bus_id(number) for number in expected]
    assert problem == ""


def test_a_task_that_sees_one_gpu_uses_that_one() -> None:
    assert [device_index(rank, 4) for rank in range(4)] == [0, 1, 2, 3]
    assert [device_index(rank, 1) for rank in range(4)] == [0, 0, 0, 0]


@pytest.mark.parametrize(("num_visible", "expected"), [(4, "cuda:2"), (1, "cuda:0")])
def test_a_communicator_takes_the_gpu_that_is_the_ranks_own(
    num_visible: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_visible)
    assert own_gpu(2) == expected


@pytest.mark.parametrize("how", ["missing", "fails", "chosen away"])
def test_a_gpu_that_cannot_be_found_is_a_reason_and_no_failure(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    if how != "missing":
        make_nvidia_smi(tmp_path, smi_rows(1), exit_code=9 if how == "fails" else 0)
    if how == "chosen away":
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    before = os.sched_getaffinity(0)
    try:
        binding = bind_rank(0, 1, "cuda")
    finally:
        os.sched_setaffinity(0, before)
    assert binding.gpu is None
    words = {"missing": "no nvidia-smi", "fails": "could not communicate", "chosen away": "CUDA_VISIBLE_DEVICES='5'"}
    assert words[how] in binding.reason


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
@pytest.mark.parametrize(("told", "expected"), [(None, "1"), ("64", "1"), ("1", "1")])
def test_a_rank_of_this_machine_is_bound_and_its_threads_fit(told: str | None, expected: str) -> None:
    allowed = sorted(os.sched_getaffinity(0))[:2]
    env = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    if told:
        env["OMP_NUM_THREADS"] = told
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, allowed)
    try:
        command = [sys.executable, "-c", BIND, "1", "2", "cpu"]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    finally:
        os.sched_setaffinity(0, before)
    binding, affinity, threads = json.loads(done.stdout)
    assert binding["bound"], binding["reason"]
    assert affinity == binding["cores"] == [allowed[1]]
    assert threads == expected
