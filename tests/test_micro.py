"""hpcai500 micro: what a training step calls is recorded completely, and each call can be measured alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import climate_files
import image_files
import pytest
import torch

from hpcai500.comm.serial import SerialCommunicator
from hpcai500.edition import load_edition
from hpcai500.micro import command, rates, timing
from hpcai500.micro.kinds import kind_of
from hpcai500.micro.recorder import Call, Recorder, formed
from hpcai500.micro.steps import LiveStep, Repeats, StepChoice, measure_step, open_step, record_calls
from hpcai500.micro.timing import Timer
from hpcai500.micro_record import TrainingStep, read_micro
from hpcai500.models import operators
from hpcai500.probes.alone import new_report

CPU = torch.device("cpu")
PROGRAMS = Path(__file__).with_name("mpi")
ONCE = Repeats(rounds=1, steps=1, calls=1, budget_s=0.0)
SMALL = rates.RateSizes(2, {"cpu": 64}, {"cpu": 2**16}, 2**10, (2**10,), 8, 2)


def open_smoke(workload: str, precision: str = "fp32") -> LiveStep:
    return open_step(StepChoice(workload, "smoke", precision, 2), load_edition(), CPU)


@pytest.fixture(scope="module")
def detector_calls() -> list[Call]:
    return record_calls(open_smoke("fasterrcnn"))


@pytest.fixture(scope="module")
def measured() -> TrainingStep:
    choice = StepChoice("resnet50", "smoke", "fp32", 2)
    return measure_step(choice, load_edition(), CPU, ONCE, Timer(CPU))


def calls_named(calls: list[Call], name: str) -> int:
    return sum(call.num_calls for call in calls if call.name == name)


# ----------------------------------------------------------------------------------------------------- what is recorded


def test_the_recorded_flop_of_a_step_are_those_of_the_rules(measured: TrainingStep) -> None:
    flop = sum(kernel.num_calls * kernel.flop for kernel in measured.kernels)
    size = load_edition().workload("resnet50").size("smoke")
    assert flop == 2 * size.flop_training_per_sample
    assert measured.gradient_bytes == 4 * size.num_parameters
    assert (measured.batch_size, measured.input_shape) == (2, [3, 32, 32])


def test_the_recorded_flop_of_the_detector_are_those_of_the_rules(detector_calls: list[Call]) -> None:
    flop = sum(call.num_calls * call.flop for call in detector_calls)
    assert flop == 2 * load_edition().workload("fasterrcnn").size("smoke").flop_training_per_sample


def test_each_layer_is_called_once_forward_and_once_backward(measured: TrainingStep) -> None:
    counts: dict[tuple[str, str], int] = {}
    for kernel in measured.kernels:
        key = (kernel.kind, kernel.phase)
        counts[key] = counts.get(key, 0) + kernel.num_calls
    assert counts["convolution", "forward"] == counts["convolution", "backward"] == 53
    assert counts["batch norm", "forward"] == counts["batch norm", "backward"] == 53
    assert counts["ReLU", "forward"] == counts["ReLU", "backward"] == 49
    # Fused or one by one: weight, gradient and momentum are read, weight and momentum written; 161 have a gradient.
    optimizer = [kernel for kernel in measured.kernels if kernel.phase == "optimizer"]
    moved = sum(kernel.num_calls * kernel.num_bytes for kernel in optimizer)
    assert moved >= 5 * measured.gradient_bytes


def test_each_kernel_was_measured_with_its_shape(measured: TrainingStep) -> None:
    first = next(kernel for kernel in measured.kernels if kernel.name == "aten.convolution")
    assert first.operands == "float32 2x3x32x32, float32 64x3x7x7"
    assert first.flop == 2 * 2 * 16 * 16 * 64 * 3 * 49
    assert first.num_bytes == 4 * (2 * 3 * 32 * 32 + 64 * 3 * 7 * 7 + 2 * 64 * 16 * 16)
    assert all(kernel.seconds.least > 0 for kernel in measured.kernels)


def test_in_bf16_the_products_are_bf16_and_the_copies_between_formats_are_seen() -> None:
    calls = record_calls(open_smoke("resnet50", "bf16"))
    assert {call.dtype for call in calls if call.flop} == {torch.bfloat16}
    assert calls_named(calls, "aten._to_copy") >= 2 * 54  # the weights of each product, and their gradients
    assert calls_named(record_calls(open_smoke("resnet50")), "aten._to_copy") == 0


def test_memory_order_is_that_of_the_workload() -> None:
    convolution = next(call for call in record_calls(open_smoke("resnet50")) if call.name == "aten.convolution")
    image = convolution.operands[0][0]
    assert image.is_contiguous(memory_format=torch.channels_last)


def test_the_detectors_operators_are_one_operation_each(detector_calls: list[Call]) -> None:
    assert calls_named(detector_calls, "align_regions") == 1
    assert calls_named(detector_calls, "suppress_boxes") == 5  # levels
    assert operators.align_regions is operators.align_regions_fastest
    assert not calls_named(detector_calls, "aten.embedding_bag")
    assert {kind_of(call.name, call.phase) for call in detector_calls} >= {"RoIAlign", "NMS", "softmax", "pooling"}


def test_every_call_of_the_detector_can_be_made_again(detector_calls: list[Call]) -> None:
    timer = Timer(CPU)
    for call in detector_calls:
        assert len(timer.times_s(call, num_repeats=1, budget_s=0.0)) == 1, call.name


def recorded(work: Any) -> list[Call]:
    recorder = Recorder()
    with recorder:
        work()
    return list(recorder.calls.values())


def test_bytes_are_operands_read_and_results_written_once() -> None:
    left, right = torch.zeros(4, 5), torch.zeros(5)
    (added,) = recorded(lambda: left + right)
    assert added.num_bytes == 4 * (20 + 5 + 20)
    (in_place,) = recorded(lambda: left.add_(left))
    assert in_place.num_bytes == 4 * (20 + 20 + 20)
    weights, gradients = [torch.zeros(7), torch.zeros(3)], [torch.zeros(7), torch.zeros(3)]
    (listed,) = recorded(lambda: torch._foreach_add_(weights, gradients))
    assert listed.num_bytes == 4 * (10 + 10 + 10)
    wide = right.expand(1000, 5)
    (repeated,) = recorded(lambda: wide + 1)
    assert repeated.num_bytes == 4 * (5 + 5000)


def test_views_compute_nothing_and_equal_calls_are_one() -> None:
    matrix = torch.zeros(4, 6)
    assert recorded(lambda: matrix.view(24).unsqueeze(1).expand(24, 2).t().detach()) == []
    (product,) = recorded(lambda: [matrix @ matrix.t() for _ in range(3)])
    assert (product.num_calls, product.flop) == (3, 2 * 4 * 4 * 6)


def test_what_decides_the_work_keeps_its_values_and_features_do_not() -> None:
    boxes, mask = torch.ones(3, 4), torch.tensor([True, False])
    features = torch.ones(2**20)
    (kept, kept_mask, formless), _ = formed((boxes, mask, features), {}, keep_floats=True)
    assert torch.equal(kept, boxes)
    assert torch.equal(kept_mask, mask)
    assert formless.is_meta
    (form,), _ = formed((boxes,), {}, keep_floats=False)
    assert form.is_meta


# ------------------------------------------------------------------------------------------------------ how it is timed


def call_of(function: Any, *operands: Any) -> Call:
    return Call("a", function, formed(operands, {}, keep_floats=False), "", "forward", 0, 0)


def test_operands_come_from_a_ring_that_no_cache_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "last_cache_bytes", lambda device: 1000)
    places: list[int] = []
    call = call_of(lambda one: places.append(one.data_ptr()), torch.zeros(100))
    Timer(CPU).times_s(call, num_repeats=12, budget_s=9.0)
    assert len(set(places)) == 5  # of 400 bytes each: twice the cache
    assert places[1:6] == places[6:11]
    assert all(places[k] not in places[k + 1 : k + 5] for k in range(8))


def test_results_are_kept_for_as_long_as_operands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "last_cache_bytes", lambda device: 1000)
    places: list[int] = []

    def double(one: torch.Tensor) -> torch.Tensor:
        result = one * 2
        places.append(result.data_ptr())
        return result

    Timer(CPU).times_s(call_of(double, torch.zeros(100)), num_repeats=8, budget_s=9.0)
    assert len(set(places[:5])) == 5


def test_the_budget_ends_the_repeats_but_one_is_always_made() -> None:
    call = call_of(lambda one: one, torch.zeros(1))
    assert len(Timer(CPU).times_s(call, num_repeats=9, budget_s=0.0)) == 1
    assert len(Timer(CPU).times_s(call, num_repeats=9, budget_s=9.0)) == 9


def test_operands_have_the_form_and_values_that_cannot_overflow() -> None:
    image = torch.zeros(2, 3, 8, 8, dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    made: list[torch.Tensor] = []
    Timer(CPU).times_s(call_of(made.append, image), num_repeats=1, budget_s=0.0)
    assert (made[0].shape, made[0].stride(), made[0].dtype) == (image.shape, image.stride(), image.dtype)
    assert 0.3 < float(made[0].abs().mean()) < 0.7
    assert float(made[0].abs().max()) <= 1


# ---------------------------------------------------------------------------------------------------------------- rates


def test_rates_of_a_processor_are_products_and_the_triad() -> None:
    found = list(rates.device_rates(CPU, SMALL))
    assert [one.name for one in found] in (["matrix product", "triad"], ["matrix product", "matrix product", "triad"])
    assert found[0].subject == "fp32, 64 x 64"
    assert all(one.value.num_repeats == 2 for one in found)
    assert rates.rate_of("a", "", "bytes/s", 10.0, [2.0, 5.0]).value.most == 5.0


def test_pictures_and_fields_are_read_by_the_projects_own_readers(tmp_path: Path) -> None:
    pictures = image_files.pictures(20)
    path = image_files.write(tmp_path / "pictures.h5", pictures, pictures[:2])
    found, mean_bytes = rates.picture_rates(path, SMALL, place=0)
    assert [(one.name, one.subject) for one in found] == [("HDF5 read", "pictures"), ("JPEG decode", "pictures")]
    assert mean_bytes == sum(map(len, pictures)) / 20
    folder = climate_files.write_folder(tmp_path / "fields")
    (read,) = rates.field_rates(folder, (), SMALL, place=1)
    assert (read.name, read.subject) == ("HDF5 read", "fields")


def test_without_data_files_are_made_and_named_so() -> None:
    found, mean_bytes = rates.picture_rates(None, SMALL, place=0)
    assert {one.subject for one in found} == {"generated pictures"}
    assert mean_bytes is None
    (read,) = rates.field_rates(None, (16, 64, 96), SMALL, place=0)
    assert read.subject == "generated fields"


# ---------------------------------------------------------------------------------------------------------- the command


def test_two_ranks_measure_at_once_and_rank_0_writes(tmp_path: Path) -> None:
    words = ["--quick", "--workload", "resnet50", "--precision", "fp32", "--batch", "2"]
    launch = (
        "import sys; from hpcai500.launch.local import run_ranks;"
        "sys.exit(run_ranks('torchdist', 2, [sys.executable, *sys.argv[1:]]))"
    )
    path = tmp_path / "micro.json"
    ran = [sys.executable, "-c", launch, str(PROGRAMS / "micro.py"), *words, "--output", str(path)]
    done = subprocess.run(ran, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "where a training step goes" in done.stdout
    record = read_micro(path)
    assert [one.rank for one in record.ranks] == [0, 1]
    assert {one.name for one in record.ranks[1].rates} >= {"all-reduce", "broadcast", "HDF5 read", "JPEG decode"}
    assert record.steps[0].seconds.num_repeats == 2 * 2
    assert all(one.step_s[0] > 0 for one in record.ranks)


def test_a_step_that_fails_on_a_rank_is_an_error_and_not_the_end() -> None:
    report = new_report(0, 0)
    choice = StepChoice("resnet50", "mini", "fp16")
    assert command._step(SerialCommunicator(), CPU, choice, report, quick=True) is None
    assert "fp16" in report.errors["resnet50, mini, fp16"]


def test_mistakes_are_told_before_anything_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "micro.json").touch()
    assert command.main(["--output", str(tmp_path / "micro.json")]) == 2
    assert "exists and is not written over" in capsys.readouterr().err
    assert command.main(["--batch", "0", "--output", str(tmp_path / "new.json")]) == 2
    assert "a batch of 0 is not possible" in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine shows no CUDA device")
def test_a_gpu_is_measured_in_every_format_with_its_copies(tmp_path: Path) -> None:
    path = tmp_path / "micro.json"
    assert command.main(["--quick", "--workload", "resnet50", "--output", str(path)]) == 0
    record = read_micro(path)
    assert {step.precision for step in record.steps} == {"fp32", "bf16", "fp16"}
    assert {one.name for one in record.ranks[0].rates} >= {"host to device", "device to host", "triad"}
