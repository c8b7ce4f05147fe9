"""The roofline of a training step: each limit is what its formula says, and nothing of it needs torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
from micro_records import KERNELS, MEMORY, NETWORK, PEAK, kernel, rank, record, spread, step

from hpcai500.errors import RecordError
from hpcai500.formats import write_json
from hpcai500.micro.table import as_text
from hpcai500.micro_record import joined, read_micro, spread_of
from hpcai500.roofline import kind_shares, matching_step, median_rate, roofline_of, sent_bytes
from hpcai500.schemas import schemas


def limits_of(**changes: Any) -> dict[str, float]:
    machine = record(**changes)
    return dict(roofline_of(machine, machine.steps[0]).limits)


def test_each_limit_is_what_its_formula_says() -> None:
    limits = limits_of(num_ranks=4)
    assert limits["device"] == pytest.approx(50 * 1e9 / PEAK + 10 * 1e8 / MEMORY)
    assert limits["network"] == pytest.approx(2 * 3 / 4 * 1e8 / NETWORK)
    assert limits["storage"] == pytest.approx(16 * 1e5 / 4e6)
    assert limits["decoding"] == pytest.approx(16 * 1e5 / 8e6)


def test_the_longest_limit_comes_first_and_decides() -> None:
    machine = record(num_ranks=2)
    roofline = roofline_of(machine, machine.steps[0])
    assert [limit.name for limit in roofline.limits] == ["storage", "decoding", "network", "device"]
    assert roofline.allowed_samples_per_s == pytest.approx(16 / 0.4)
    assert roofline.allowed_flops == pytest.approx(50e9 / 0.4)
    alone = record(has_input=False, has_network=False)
    assert roofline_of(alone, alone.steps[0]).allowed_flops == pytest.approx(50e9 / 0.06)


def test_one_rank_sends_nothing_and_two_send_each_gradient_once() -> None:
    assert [sent_bytes(1000, ranks) for ranks in (1, 2, 4)] == [0, 1000, 1500]
    assert set(limits_of(num_ranks=1)) == {"device", "storage", "decoding"}


def test_what_was_not_measured_is_no_limit() -> None:
    assert set(limits_of(has_network=False, has_input=False)) == {"device"}
    assert "storage" not in limits_of(steps=[step(sample_bytes=None)])


def test_files_made_for_the_measurement_are_no_limit_of_a_run() -> None:
    machine = record()
    made = [msgspec.structs.replace(one, subject=f"generated {one.subject}") for one in machine.ranks[0].rates]
    ranks = [msgspec.structs.replace(one, rates=[*one.rates[:2], *made]) for one in machine.ranks]
    found = dict(roofline_of(msgspec.structs.replace(machine, ranks=ranks), machine.steps[0]).limits)
    assert not {"storage", "decoding"} & set(found)


def test_the_peak_is_the_best_that_was_seen() -> None:
    fast = kernel("aten.mm", "matrix product", flop=10**9, num_bytes=8, seconds=spread(1e-4))
    machine = record(steps=[step(kernels=[*KERNELS, fast])])
    assert roofline_of(machine, machine.steps[0]).peak_flops == {"fp32": pytest.approx(1e13)}


def test_an_operation_that_is_faster_than_the_roof_is_taken_as_measured() -> None:
    cached = kernel("aten.mul_", "optimizer", num_bytes=10**9, seconds=spread(1e-3))  # 10^12 bytes/s
    machine = record(steps=[step(kernels=[*KERNELS, cached])], has_input=False, has_network=False)
    assert dict(roofline_of(machine, machine.steps[0]).limits)["device"] == pytest.approx(0.061)


def test_the_prediction_is_the_sum_over_all_calls() -> None:
    machine = record()
    roofline = roofline_of(machine, machine.steps[0])
    assert roofline.predicted_s == pytest.approx(50 * 2e-3 + 10 * 2e-3)
    assert roofline.agreement == pytest.approx(0.12 / 0.125)


def test_kinds_add_up_to_the_step_with_the_longest_first() -> None:
    machine = record()
    kinds = kind_shares(roofline_of(machine, machine.steps[0]))
    assert [(one.kind, one.num_calls) for one in kinds] == [("convolution", 50), ("elementwise", 10)]
    assert sum(one.share for one in kinds) == pytest.approx(1)
    assert kinds[0].flops == pytest.approx(5e11)
    assert kinds[1].bytes_per_s == pytest.approx(5e10)
    assert [one.bound_s for one in kinds] == pytest.approx([0.05, 0.01])


def test_of_several_ranks_the_median_counts() -> None:
    slow = rank(2)
    slow = msgspec.structs.replace(slow, rates=[msgspec.structs.replace(one, value=spread(1)) for one in slow.rates])
    ranks = [rank(0), rank(1), slow]
    assert median_rate(ranks, "triad") == MEMORY
    assert median_rate(ranks, "all-reduce") == NETWORK  # of the best size of message
    assert median_rate(ranks, "host to device") is None


def test_the_step_of_a_run_is_that_of_its_shape_with_the_nearest_batch() -> None:
    steps = [step(batch_size=size) for size in (2, 16, 64)] + [step(precision="bf16"), step(input_shape=[3, 64, 64])]
    machine = record(steps=steps)
    words: dict[str, Any] = {"workload": "resnet50", "precision": "fp32", "input_shape": (3, 32, 32)}
    assert matching_step(machine, **words, batch_size=24) is steps[1]
    assert matching_step(machine, **words | {"precision": "fp16"}, batch_size=24) is None


def test_spreads_are_of_their_values_and_join() -> None:
    one, other = spread_of([1.0, 2.0, 6.0]), spread_of([4.0])
    assert (one.median, one.mean, one.least, one.most, one.num_repeats) == (2, 3, 1, 6, 3)
    both = joined([one, other])
    assert (both.median, both.mean, both.least, both.most, both.num_repeats) == (3, 3.5, 1, 6, 4)


def test_a_record_is_read_as_it_was_written_and_fits_its_schema(tmp_path: Path) -> None:
    machine = record()
    write_json(tmp_path / "micro.json", machine)
    assert read_micro(tmp_path / "micro.json") == machine
    jsonschema.Draft202012Validator(schemas()["micro"]).validate(json.loads((tmp_path / "micro.json").read_bytes()))


def test_a_record_that_says_nothing_is_refused_in_a_sentence(tmp_path: Path) -> None:
    machine = record()
    bare = [msgspec.structs.replace(one, rates=one.rates[:1]) for one in machine.ranks]
    wrong = {
        "memory's rate": msgspec.structs.replace(machine, ranks=bare),
        "step of resnet50 without work": record(steps=[step(kernels=[])]),
        "micro.json": {"format": 2},
    }
    for text, content in wrong.items():
        (tmp_path / "micro.json").write_bytes(msgspec.json.encode(content))
        with pytest.raises(RecordError, match=text):
            read_micro(tmp_path / "micro.json")


def test_the_table_says_how_far_the_step_is_from_the_roof() -> None:
    text = as_text(record())
    assert "2 ranks on 2 nodes, 1 thread a rank: A processor" in text
    assert (
        "sum of kernels 120 ms; whole steps 125 ms in the mean (62.5 ms .. 250 ms): predicted / measured 0.96" in text
    )
    assert "the roofline allows 125 GFLOPS a rank (storage); the step reaches 400 GFLOPS" in text
    assert "storage 400 ms, decoding 200 ms, network 100 ms, device 60 ms" in text
    assert "25 flop a byte sent" not in text
    assert "500 flop a byte sent" in text


def test_of_many_nodes_the_slowest_are_shown() -> None:
    machine = record(num_ranks=40)
    ranks = [msgspec.structs.replace(one, step_s=[0.1 + (one.rank == 33)]) for one in machine.ranks]
    text = as_text(msgspec.structs.replace(machine, ranks=ranks))
    assert "the 16 slowest nodes" in text
    (line,) = [line.split() for line in text.splitlines() if "node34" in line]
    assert line == ["node34", "1", "1", "TFLOPS", "100", "GB/s", "4", "MB/s", "8", "MB/s", "1.1", "s"]


def test_the_ranks_of_a_node_add_up() -> None:
    text = as_text(record(num_ranks=3, host="one"))
    (line,) = [line.split() for line in text.splitlines() if line.startswith("  one ")]
    assert line[:6] == ["one", "3", "3", "TFLOPS", "300", "GB/s"]


def test_what_could_not_be_measured_is_told() -> None:
    assert "FAIL  node1, rank 0, fields: no place" in as_text(record(num_ranks=1, errors={"fields": "no place"}))
