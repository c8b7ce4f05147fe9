from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from hpcai500.edition import RULES_FOLDER, check_level, load_edition, read_edition, rules_digest
from hpcai500.errors import RulesError, UnknownNameError, UsageError
from hpcai500.flop_forms import resnet50_flop

RESNET50 = load_edition().workload("resnet50")


@pytest.fixture
def rules_copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(RULES_FOLDER, tmp_path / "rules"))


def test_the_official_size_is_what_the_benchmark_states() -> None:
    size = RESNET50.size("official")
    assert (size.num_train_samples, size.num_validation_samples, size.num_classes) == (1_281_167, 50_000, 1000)
    assert (size.target_quality, size.epochs, size.vflops_exponent, size.num_runs) == (0.763, 90, 5, 5)
    assert size.rankable


@pytest.mark.parametrize("name", list(RESNET50.sizes))
def test_the_flop_of_every_size_is_that_of_the_closed_form(name: str) -> None:
    size = RESNET50.size(name)
    image_size = RESNET50.setting("train_image_size").default_at(name)
    assert isinstance(image_size, int)
    counted = resnet50_flop(image_size, size.num_classes)
    assert (size.flop_forward_per_sample, size.flop_training_per_sample) == counted
    assert size.num_parameters == 25_557_032 - (1000 - size.num_classes) * 2049
    assert size.rankable == (name == "official")


def test_defaults_are_those_of_the_size() -> None:
    assert RESNET50.resolve("official", "hardware", {})["batch_size_per_rank"] == 256
    assert RESNET50.resolve("mini", "hardware", {})["train_image_size"] == 64


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("batch_size_per_rank=64", 64),
        ("momentum=0.9", 0.9),
        ("momentum=1e-3", 0.001),
        ("warmup_epochs=1", 1.0),
        ("torch_compile=true", True),
        ("communicator=mpi", "mpi"),
    ],
)
def test_text_is_read_as_the_type_of_its_setting(text: str, value: object) -> None:
    key, word = text.split("=")
    found = RESNET50.resolve("mini", "free", {key: word})[key]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    "text",
    [
        "batch_size_per_rank=0",
        "batch_size_per_rank=64.5",
        "batch_size_per_rank=many",
        "momentum=1.5",
        "momentum=nan",
        "learning_rate_per_256=inf",
        "torch_compile=1",
        "communicator=nccl",
        "precision=fp8",
    ],
)
def test_an_impossible_value_is_refused_with_what_would_be_possible(text: str) -> None:
    key, word = text.split("=")
    with pytest.raises(UsageError, match=f"setting {key} cannot be '{word}': it takes "):
        RESNET50.resolve("mini", "free", {key: word})


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown setting 'momentun' \(did you mean 'momentum'\?\)"):
        RESNET50.resolve("mini", "free", {"momentun": "0.9"})
    with pytest.raises(UnknownNameError, match="known: free, hardware, system"):
        RESNET50.resolve("mini", "open", {})
    with pytest.raises(UnknownNameError, match="known: mini, official"):
        RESNET50.resolve("huge", "free", {})
    with pytest.raises(UnknownNameError, match="known: fasterrcnn, resnet50"):
        load_edition().workload("bert")


# Hardware opens layers 1-4, system 5 and 7 too, free all but 9; of 8 only batch size and learning-rate policy before.
@pytest.mark.parametrize(
    ("key", "value", "lowest"),
    [
        ("batch_size_per_rank", 64, "hardware"),
        ("learning_rate_per_256", 0.1, "hardware"),
        ("warmup_epochs", 0.1, "hardware"),
        ("precision", "bf16", "hardware"),
        ("communicator", "mpi", "hardware"),
        ("pipeline", "dali", "hardware"),
        ("torch_compile", True, "system"),
        ("cuda_graphs", True, "system"),
        ("momentum", 0.9, "free"),
        ("weight_decay", 0.0, "free"),
        ("label_smoothing", 0.0, "free"),
        ("crop_area_min", 0.25, "free"),
        ("train_image_size", 128, "free"),
        ("model_variant", "v1", "free"),
    ],
)
def test_a_change_is_allowed_from_its_lowest_level_on_and_refused_below(key: str, value: object, lowest: str) -> None:
    levels = list(RESNET50.levels)
    assert levels == ["hardware", "system", "free"]
    for level in levels:
        if levels.index(level) >= levels.index(lowest):
            assert RESNET50.resolve("mini", level, {key: value})[key] == value
            continue
        with pytest.raises(RulesError, match=f"{key} = .* layer [0-9]; {lowest} level allows a change"):
            RESNET50.resolve("mini", level, {key: value})


def test_the_launcher_and_the_verifier_get_the_same_answer() -> None:
    settings = RESNET50.resolve("mini", "free", {"momentum": 0.9})
    [finding] = check_level(RESNET50, "mini", "system", settings)
    assert (finding.rule, finding.place, finding.found) == ("level.closed_setting", "momentum", "0.9")
    with pytest.raises(RulesError) as refused:
        RESNET50.resolve("mini", "system", {"momentum": 0.9})
    assert finding.expected in str(refused.value)


def test_a_default_that_is_no_default_of_another_size_counts_as_a_change() -> None:
    settings = RESNET50.resolve("mini", "free", {})
    assert {finding.place for finding in check_level(RESNET50, "official", "system", settings)} == {
        "crop_area_min",
        "train_image_size",
    }


def test_known_devices_have_a_dense_peak() -> None:
    edition = load_edition()
    assert edition.peak_flops("NVIDIA H100 80GB HBM3", "bf16") == 989.4e12
    assert edition.peak_flops("NVIDIA H200", "bf16") == 989.4e12
    assert edition.peak_flops("NVIDIA A100-SXM4-80GB", "bf16") == 311.9e12
    assert edition.peak_flops("Tesla V100-SXM2-16GB", "fp16") == 125e12


@pytest.mark.parametrize(
    ("name", "bf16", "fp32"),
    [
        ("NVIDIA H100 PCIe", 756e12, 378e12),  # fp32 may be tf32
        ("NVIDIA H100 NVL", 835.5e12, 417.5e12),
        ("NVIDIA H100 80GB HBM3", 989.4e12, 494.7e12),
        ("NVIDIA A100-SXM-64GB", 358e12, 179e12),
        ("NVIDIA A100 80GB PCIe", 311.9e12, 156e12),
        ("NVIDIA A10", 125e12, 62.5e12),
        ("NVIDIA L40S", 366.4e12, 183.2e12),
        ("NVIDIA L40", 181e12, 90.5e12),
        ("NVIDIA L4", 121e12, 60e12),
        ("Tesla V100-SXM2-16GB", 125e12, 15.7e12),  # no bf16: computed in whatever it has
        ("Tesla T4", 65e12, 8.1e12),
        ("GeForce RTX 3090", 71.2e12, 35.6e12),
        ("NVIDIA GeForce RTX 3090 Ti", 80e12, 40e12),
        ("AMD Instinct MI250X", 191.5e12, 47.9e12),
    ],
)
def test_a_device_is_found_by_its_name_and_its_board_before_its_family(name: str, bf16: float, fp32: float) -> None:
    device = load_edition().device(name)
    assert device.flops_bound("bf16") == bf16
    assert device.flops_bound("fp32") == fp32


def test_the_figures_of_every_device_make_sense_and_have_a_source() -> None:
    devices = load_edition().devices
    assert len({device.pattern for device in devices}) == len(devices)
    for device in devices:
        assert {"fp32"} <= device.peak_flops.keys() <= {"fp32", "tf32", "bf16", "fp16"}
        assert min(device.peak_flops.values()) == device.peak_flops["fp32"]
        assert 1 <= device.idle_w < device.power_limit_w / 10
        assert 15e9 < device.bus_bytes_per_s <= device.memory_bytes_per_s
        assert device.source.startswith("[")


@pytest.mark.parametrize(
    ("instruction_sets", "precision", "flop_per_cycle"),
    [
        (["avx2"], "fp32", 32),
        (["avx2"], "bf16", 32),  # computed in fp32
        (["avx2", "avx512f", "avx512_bf16"], "fp32", 64),
        (["avx2", "avx512f", "avx512_bf16"], "bf16", 128),
        (["avx2", "avx512f", "avx512_bf16", "amx_bf16"], "bf16", 2048),
        (["asimd", "sve", "bf16"], "bf16", 256),
        ([], "fp32", 2048),  # nobody knows what it can do
        (["of next year"], "bf16", 2048),
    ],
)
def test_any_processor_has_a_bound(instruction_sets: list[str], precision: str, flop_per_cycle: int) -> None:
    assert load_edition().processors.flops_bound(instruction_sets, precision) == 6.2e9 * flop_per_cycle


@pytest.mark.parametrize("line", ["idle_w = 30.0", "bus_bytes_per_s = 64e9", "max_clock_hz = 6.2e9"])
@pytest.mark.parametrize("value", ["-1.0", '"fast"', ""])
def test_a_device_that_lacks_a_figure_is_no_rules_file(rules_copy: Path, line: str, value: str) -> None:
    path = rules_copy / "devices.toml"
    name = line.partition(" ")[0]
    path.write_text(path.read_text().replace(line, f"{name} = {value}" if value else "", 1))
    with pytest.raises(RulesError, match="not a rules file"):
        read_edition(rules_copy)


@pytest.mark.parametrize(("device", "precision"), [("NVIDIA H300", "bf16"), ("Tesla V100-SXM2-16GB", "bf16")])
def test_an_unknown_device_or_format_is_an_error_and_never_a_default(device: str, precision: str) -> None:
    with pytest.raises(UnknownNameError, match=r"add it to rules/devices\.toml"):
        load_edition().peak_flops(device, precision)


def test_a_changed_byte_or_name_of_the_rules_changes_their_digest(rules_copy: Path) -> None:
    digest = rules_digest(rules_copy)
    assert digest == load_edition().sha256
    path = rules_copy / "workloads" / "resnet50.toml"
    path.rename(rules_copy / "workloads" / "resnet51.toml")
    assert rules_digest(rules_copy) != digest
    (rules_copy / "workloads" / "resnet51.toml").rename(path)
    assert rules_digest(rules_copy) == digest
    path.write_bytes(path.read_bytes() + b"\n")
    assert rules_digest(rules_copy) != digest


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("momentum]\n", "momentum\n", "cannot read the rules file"),
        ("default = 0.875", "default = 8.75", "the default of momentum at size .* is 8.75, but it takes at most 1"),
        ("default = 0.875", 'default = "fast"', "the default of momentum .* takes a value of type float"),
        ("default_by_size = { mini = 64", "default_by_size = { tiny = 64", "names .*tiny"),
        ("num_classes = 1000", "num_clases = 1000", "is not a workload's rules file"),
    ],
)
def test_a_broken_rules_file_is_named(rules_copy: Path, old: str, new: str, message: str) -> None:
    path = rules_copy / "workloads" / "resnet50.toml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(RulesError, match=message) as error:
        read_edition(rules_copy)
    assert "resnet50.toml" in str(error.value)


def test_a_missing_rules_file_is_named(rules_copy: Path) -> None:
    (rules_copy / "devices.toml").unlink()
    with pytest.raises(RulesError, match=r"devices\.toml"):
        read_edition(rules_copy)
