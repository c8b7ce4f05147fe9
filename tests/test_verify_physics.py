"""Physics: runs that were faster, or drew more, than their machine can; just below each limit they pass.

Here are the ways to break a submission, and tests/test_verify.py runs them beside its own.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from forging import Forger, Mutation
from msgspec.structs import replace
from recording import EDITION, NS_PER_S

from hpcai500.checks.limits import SelfCheck, count_cores, network_bytes_per_s
from hpcai500.edition import load_edition
from hpcai500.flop_forms import evaluation_flop, flop_form
from hpcai500.formats import NetworkInterface, Node
from hpcai500.probes.alone import RankReport
from hpcai500.probes.report import as_dictionary
from hpcai500.probes.verdict import judge
from hpcai500.verify import verify_submission

RESNET50 = EDITION.workload("resnet50")
SMOKE = RESNET50.size("smoke")
FORM = flop_form("resnet50", RESNET50.resolve("smoke", "free", {}), SMOKE)
EVALUATION_FLOP = evaluation_flop("resnet50", RESNET50.resolve("smoke", "free", {}), SMOKE)
CPU_FLOPS = 2 * 6.2e9 * 32 * 1.6  # two cores with avx2 at the highest clock, and what Winograd's algorithm saves
T4_BUS = 16e9
SAMPLE_BYTES = 3 * 32 * 32
WINDOW_SAMPLES, SHARD_SAMPLES = 32, 25  # of a rank: two steps of 16 pictures, and half of the validation set
ETHERNET = 10**8  # bits/s


def every_rank(forger: Forger, event: str, change: Callable[[dict[str, Any]], object], *ranks: int) -> None:
    for number in (1, 2):
        for rank in ranks or (0, 1):
            forger.edit_events(event, change, number=number, rank=rank)


def take(forger: Forger, event: str, seconds: float, *ranks: int) -> None:
    """Let every event of a kind take so long, its parts too."""

    def change(value: dict[str, Any]) -> None:
        value.update({key: 0 for key in value if key.endswith("_ns")})
        value["duration_ns"] = round(seconds * NS_PER_S)

    every_rank(forger, event, change, *ranks)


def edit_node(forger: Forger, **changes: object) -> None:
    """Describe the node otherwise, in both runs and the submission."""
    for number in (1, 2):
        forger.edit_json(forger.run(number) / "system.json", lambda system: system["nodes"][0].update(changes))
    forger.edit_submission(lambda submission: submission["system"]["nodes"][0].update(changes))


def use_gpus(forger: Forger, *names: str) -> None:
    """Say that the runs were trained on accelerators."""
    forger.edit_config(lambda config: config.update(device="cuda"))
    edit_node(forger, accelerators=[{"name": name, "memory_bytes": 1 << 34} for name in names])


def train_at(forger: Forger, flops: float, *ranks: int) -> None:
    """Let each of the ranks train at such a rate."""
    take(forger, "window", WINDOW_SAMPLES * FORM.training / flops, *ranks)


def evaluate_at(forger: Forger, flops: float, *ranks: int) -> None:
    take(forger, "evaluation_shard", SHARD_SAMPLES * EVALUATION_FLOP / flops, *ranks)


def move_at(forger: Forger, bytes_per_s: float) -> None:
    """Train on two T4, to which samples come at such a rate together."""
    use_gpus(forger, "Tesla T4", "Tesla T4")
    take(forger, "window", 2 * WINDOW_SAMPLES * SAMPLE_BYTES / bytes_per_s)


def read_at(forger: Forger, bytes_per_s: float) -> None:
    """Both ranks together take 32 samples a second; let them be so large."""
    train_bytes = round(bytes_per_s / 32 * SMOKE.num_train_samples)
    every_rank(forger, "data_open", lambda value: value.update(train_bytes=train_bytes))


def exchange_at(forger: Forger, bytes_per_s: float, *, level: str = "system", speed: int | None = ETHERNET) -> None:
    """Train on two nodes with one interface each, over which gradients come at such a rate."""
    forger.edit_config(lambda config: config.update(level=level, num_nodes=2))
    forger.edit_submission(lambda submission: submission.update(level=level))
    network = [{"name": "eth0", "state": "up", "speed_bits_per_s": speed}]
    network.append({"name": "eth1", "state": "down", "speed_bits_per_s": None})
    edit_node(forger, network=network)

    def add_node(system: dict[str, Any]) -> None:
        system["nodes"].append(system["nodes"][0] | {"host": "node2"})

    for number in (1, 2):
        forger.edit_json(forger.run(number) / "system.json", add_node)
        forger.edit_events("run_open", lambda value: value.update(host="node2"), number=number, rank=1)
    forger.edit_submission(lambda submission: add_node(submission["system"]))
    take(forger, "window", 2 * 2 * SMOKE.num_parameters / bytes_per_s)


def draw(forger: Forger, watts: float, *, source: str = "rapl", num_devices: int = 1, seconds: int = 1000) -> None:
    """Say what devices drew in mean."""

    def change(lines: list[dict[str, Any]]) -> None:
        begin_ns = next(line["time_ns"] for line in lines if line["event"] == "clock_start")
        value = {"source": source, "num_devices": num_devices, "energy_j": watts * seconds, "wall_ns": begin_ns}
        value |= {"duration_ns": seconds * NS_PER_S, "num_readings": 9, "longest_gap_ns": seconds * NS_PER_S}
        lines.insert(-1, {**lines[-2], "event": "energy", "value": value})

    for number in (1, 2):
        forger.edit_lines(change, number=number)


MUTATIONS = (
    Mutation("check_devices", "physics.device", "accelerators that are not there",
             lambda f: f.edit_config(lambda c: c.update(device="cuda"))),
    Mutation("check_training_flops", "physics.flops", "a rank trains too fast",
             lambda f: train_at(f, 1.1 * CPU_FLOPS, 0)),
    Mutation("check_training_flops", "physics.flops", "two ranks train too fast together",
             lambda f: train_at(f, 0.6 * CPU_FLOPS)),
    Mutation("check_training_flops", "physics.flops", "training takes no time", lambda f: take(f, "window", 0)),
    Mutation("check_evaluation_flops", "physics.flops", "a rank evaluates too fast",
             lambda f: evaluate_at(f, 1.1 * CPU_FLOPS, 0)),
    Mutation("check_evaluation_flops", "physics.flops", "two ranks evaluate too fast together",
             lambda f: evaluate_at(f, 0.6 * CPU_FLOPS)),
    Mutation("check_bus", "physics.bus", "samples come too fast", lambda f: move_at(f, 2.2 * T4_BUS)),
    Mutation("check_storage", "physics.storage", "samples are read too fast", lambda f: read_at(f, 1.8e12)),
    Mutation("check_network", "physics.network", "gradients come too fast",
             lambda f: exchange_at(f, 1.1 * ETHERNET / 8)),
    Mutation("check_energy", "physics.energy", "a processor draws 2 kW", lambda f: draw(f, 2000)),
    Mutation("check_order", "chain.order", "the same energy twice", lambda f: (draw(f, 100), draw(f, 100))),
    Mutation("check_energy", "physics.energy", "a processor draws nothing", lambda f: draw(f, 0)),
    Mutation("check_energy", "physics.energy", "more processors than there are", lambda f: draw(f, 100, num_devices=2)),
    Mutation("check_energy", "physics.energy", "GPUs that are not there", lambda f: draw(f, 100, source="nvml")),
    Mutation("check_energy", "physics.energy", "one GPU of two", lambda f: (
        use_gpus(f, "Tesla T4", "Tesla T4"), draw(f, 50, source="nvml"))),
)  # fmt: skip

# The rule of each law, and what makes a run go at a share of its limit.
LIMITS: dict[str, tuple[str, Callable[[Forger, float], object]]] = {
    "training of a rank": ("physics.flops", lambda f, share: train_at(f, share * CPU_FLOPS, 0)),
    "training of a host": ("physics.flops", lambda f, share: train_at(f, share * CPU_FLOPS / 2)),
    "evaluation of a rank": ("physics.flops", lambda f, share: evaluate_at(f, share * CPU_FLOPS, 0)),
    "evaluation of a host": ("physics.flops", lambda f, share: evaluate_at(f, share * CPU_FLOPS / 2)),
    "bus": ("physics.bus", lambda f, share: move_at(f, share * 2 * T4_BUS)),
    "storage": ("physics.storage", lambda f, share: read_at(f, share * 1.7e12)),
    "network": ("physics.network", lambda f, share: exchange_at(f, share * ETHERNET / 8)),
    "processors": ("physics.energy", lambda f, share: draw(f, share * 1.1 * 1001)),
}


def physics_found(forger: Forger, *, rankable: bool = False) -> set[str]:
    """The rules of physics that the submission breaks, once a forger has mended the rest."""
    forger.forge()
    workload = replace(RESNET50, sizes={**RESNET50.sizes, "smoke": replace(SMOKE, rankable=rankable)})
    edition = replace(EDITION, workloads={**EDITION.workloads, "resnet50": workload})
    verdict = verify_submission(forger.path, edition)
    assert not any(finding.rule in ("form.schema", "ledger.value", "chain.order") for finding in verdict.findings)
    return {finding.rule for finding in verdict.findings if finding.rule.startswith("physics.")}


@pytest.mark.parametrize("law", LIMITS)
def test_just_below_a_limit_passes_and_just_above_does_not(forger: Forger, tmp_path: Path, law: str) -> None:
    rule, change = LIMITS[law]
    other = Forger(shutil.copytree(forger.path.parent, tmp_path / "other") / "submission.json")
    change(forger, 0.99)
    assert rule not in physics_found(forger)
    change(other, 1.01)
    assert rule in physics_found(other)


@pytest.mark.parametrize(
    ("watts", "is_possible"), [(1.1 * 2 * 700 * 1.002, False), (1.1 * 2 * 700 * 0.99, True), (61, True), (59, False)]
)
def test_gpus_draw_between_their_rest_and_their_limit(forger: Forger, watts: float, is_possible: bool) -> None:
    use_gpus(forger, "NVIDIA H100 80GB HBM3", "NVIDIA H100 80GB HBM3")
    draw(forger, watts, source="nvml", num_devices=2)
    assert physics_found(forger) == (set() if is_possible else {"physics.energy"})


def test_no_huge_number_of_a_machine_or_its_energy_makes_the_verifier_raise(forger: Forger) -> None:
    huge = 2**63 - 1
    edit_node(
        forger, num_cores=huge, num_sockets=huge, network=[{"name": "e", "state": "up", "speed_bits_per_s": huge}]
    )
    draw(forger, 1.7e308, num_devices=huge, seconds=1)
    every_rank(forger, "energy", lambda value: value.update(duration_ns=huge), 0)
    assert physics_found(forger) == {"physics.energy"}


def test_the_energy_of_unknown_gpus_is_not_bounded(forger: Forger) -> None:
    use_gpus(forger, "NVIDIA H300", "NVIDIA H300")
    draw(forger, 5000, source="nvml", num_devices=2)
    assert physics_found(forger) == {"physics.unknown_device"}


def test_ranks_that_share_a_gpu_share_its_peak(forger: Forger) -> None:
    peak = 8.1e12 * 1.6  # fp32 of a T4, which has no TF32
    for gpus, share, is_possible in ((2, 0.9, True), (2, 1.1, False), (1, 0.45, True), (1, 0.55, False)):
        use_gpus(forger, *["Tesla T4"] * gpus)
        train_at(forger, share * peak)
        assert physics_found(forger) == (set() if is_possible else {"physics.flops"})


def test_fp32_may_be_tf32_and_bf16_may_not_be_faster_than_its_peak(forger: Forger) -> None:
    use_gpus(forger, "NVIDIA A100-SXM4-80GB", "NVIDIA A100-SXM4-80GB")
    train_at(forger, 0.95 * 156e12)
    assert physics_found(forger) == set()
    train_at(forger, 1.05 * 156e12)
    assert physics_found(forger) == {"physics.flops"}
    forger.edit_config(lambda config: config["settings"].update(precision="bf16"))
    assert physics_found(forger) == set()


def test_traffic_is_not_bounded_where_gradients_may_be_compressed_or_a_speed_is_unknown(
    forger: Forger, tmp_path: Path
) -> None:
    other = Forger(shutil.copytree(forger.path.parent, tmp_path / "other") / "submission.json")
    exchange_at(forger, ETHERNET, level="free")
    assert "physics.network" not in physics_found(forger)
    exchange_at(other, ETHERNET, speed=None)
    assert "physics.network" not in physics_found(other)
    told = "run run-1: traffic is not checked, as node1 and 1 more does not tell all its speeds"
    assert told in verify_submission(other.path, EDITION).notes


# ---- accelerators that nobody knows ----------------------------------------------------------------------------------


def measured(**rates: float) -> dict[str, Any]:
    """What `hpcai500 selfcheck --json` writes of a node with one GPU."""
    report = RankReport(rank=0, local_rank=0, host="node1", boot_id="1")
    report.devices = {"cuda:0": "NVIDIA H300"}
    report.figures = {name: {"cuda:0": rate} for name, rate in rates.items()} | {"memory": {"cpu": 1e11}}
    return as_dictionary(judge([report], load_edition()))


def keep_selfcheck(forger: Forger, content: str) -> None:
    """Put a self-check into both runs and list it."""
    for number in (1, 2):
        (forger.run(number) / "selfcheck.json").write_text(content)
    digest = {"sha256": "0" * 64, "size_bytes": 1}  # forge mends it
    forger.edit_submission(lambda s: [run["files"].update({"selfcheck.json": digest}) for run in s["runs"]])


def test_an_unknown_gpu_is_a_warning_where_nothing_is_ranked_and_else_an_error(forger: Forger) -> None:
    use_gpus(forger, "NVIDIA H300", "NVIDIA H300")
    assert physics_found(forger) == {"physics.unknown_device"}
    verdict = verify_submission(forger.path, EDITION)
    assert verdict.valid
    assert [finding.found for finding in verdict.findings] == ["NVIDIA H300", "NVIDIA H300"]
    assert physics_found(forger, rankable=True) == {"physics.device"}


def test_an_unknown_gpu_is_as_fast_as_it_was_measured(forger: Forger) -> None:
    use_gpus(forger, "NVIDIA H300", "NVIDIA H300")
    keep_selfcheck(forger, json.dumps(measured(fp32=1e14, bf16=1e15)))
    train_at(forger, 0.99 * 1.25e15)
    assert physics_found(forger, rankable=True) == set()
    train_at(forger, 1.01 * 1.25e15)
    assert physics_found(forger, rankable=True) == {"physics.flops"}


@pytest.mark.parametrize("content", ["{", "[" * 100_000, "[]", '{"nodes": 1}', '{"nodes": [{"ranks": []}]}', "\udcff"])
def test_a_selfcheck_that_says_nothing_is_none(forger: Forger, content: str) -> None:
    use_gpus(forger, "NVIDIA H300", "NVIDIA H300")
    keep_selfcheck(forger, "{}")
    for number in (1, 2):
        (forger.run(number) / "selfcheck.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    assert physics_found(forger) == {"physics.unknown_device"}


def test_a_selfcheck_that_the_submission_does_not_list_does_not_count(forger: Forger) -> None:
    use_gpus(forger, "NVIDIA H300", "NVIDIA H300")
    for number in (1, 2):
        (forger.run(number) / "selfcheck.json").write_text(json.dumps(measured(fp32=1e14, bf16=1e15)))
    assert physics_found(forger) == {"physics.unknown_device"}


@pytest.mark.parametrize(
    ("rates", "precision", "bound"),
    [
        ({"fp32": 5e13, "bf16": 4e14}, "fp32", 5e14),
        ({"fp32": 5e13, "bf16": 4e14}, "fp16", 5e14),
        ({"fp32": 1e13}, "fp32", 2e13),
        ({"fp32": 1e13}, "fp16", 2e14),
        ({}, "bf16", 0.0),
    ],
)
def test_the_bound_of_a_measured_gpu(rates: dict[str, float], precision: str, bound: float) -> None:
    selfcheck = msgspec.convert(measured(**rates), SelfCheck)
    assert selfcheck.flops_bound(precision) == pytest.approx(bound)


# ---- limits themselves -----------------------------------------------------------------------------------------------

V15 = 24.299e9  # FLOP of a picture in training


@pytest.mark.parametrize(
    ("device", "precision", "flops", "margin"),
    [
        ("NVIDIA H200", "fp16", 7953 * V15, 5),  # MLPerf v4.0 result log, 8 GPUs: 63,620 pictures/s
        ("NVIDIA H100 80GB HBM3", "fp16", 7172 * V15, 5),  # same round
        ("NVIDIA A100-SXM4-80GB", "fp16", 3410 * V15, 3.5),  # NVIDIA DeepLearningExamples, MXNet, 22.10
        ("Tesla V100-SXM3-32GB", "fp16", 1492 * V15, 3),  # same, DGX-2
        ("Tesla V100-SXM2-16GB", "fp32", 325.8e15 / 27360, 1.3),  # Kurth et al., SC18: DeepLabv3+, whole machine
        ("Tesla P100-PCIE-16GB", "fp32", 21.0e15 / 5300, 2),  # same, Tiramisu
    ],
)
def test_the_best_that_is_known_of_a_device_is_below_its_bound(
    device: str, precision: str, flops: float, margin: float
) -> None:
    assert load_edition().device(device).flops_bound(precision) > margin * flops


def test_the_best_that_is_known_of_processors_is_below_their_bound() -> None:
    processors = load_edition().processors
    avx512 = ["avx2", "avx512f", "avx512_bf16"]
    assert 2 * processors.flops_bound(avx512, "fp32") > 4 * 170e9  # products on two cores of a Zen 4 EPYC
    assert 2 * processors.flops_bound(avx512, "bf16") > 4 * 340e9
    # MLPerf v3.0 result log: 268 pictures/s a socket of 56 cores, the Xeon 8480+; its nominal peak is 230 TFLOP/s.
    assert 56 * processors.flops_bound(["avx2", "avx512f", "amx_bf16"], "bf16") > max(230e12, 40 * 268 * V15)


@pytest.mark.parametrize(
    ("lists", "count"),
    [(["0-3,8"], 5), (["0-3", "2-5"], 6), (["0", "0"], 1), (["0-7", "2-3"], 8), ([], 0), (["all"], 0),
     (["0-999999999"], 10**9), (["5-2"], 0)],
)  # fmt: skip
def test_cores_are_counted_once(lists: list[str], count: int) -> None:
    assert count_cores(iter(lists)) == count


@pytest.mark.parametrize(
    ("interfaces", "speed"),
    [([("up", 8), ("unknown", 8)], 2), ([("up", 8), ("down", None)], 1), ([("up", 8), ("up", None)], None), ([], None)],
)
def test_a_network_is_as_fast_as_all_of_its_interfaces(interfaces: list[tuple[str, int]], speed: float | None) -> None:
    network = [NetworkInterface(name="eth", state=state, speed_bits_per_s=bits) for state, bits in interfaces]
    node = Node(
        host="h", processor="p", num_sockets=1, num_cores=1, memory_bytes=1, instruction_sets=[], accelerators=[],
        network=network,
    )  # fmt: skip
    assert network_bytes_per_s(node) == speed
