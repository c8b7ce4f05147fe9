"""The edition of the rules: ``rules/*.toml`` read into frozen objects, and what a level allows.

``load_edition()`` reads the files once. The launcher and the verifier ask the same function, ``check_level``, whether a
level allows a set of settings, so that what is refused before the start and what is refused afterwards cannot differ.

Does not know what a setting does; the workloads of the run half do.
"""

from __future__ import annotations

import fnmatch
import functools
import hashlib
import math
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from hpcai500.convergence import Convergence
from hpcai500.devices import Device, Processors
from hpcai500.errors import RulesError, UnknownNameError, UsageError
from hpcai500.finding import Finding

Named = TypeVar("Named")
SettingValue = bool | int | float | str
RULES_FOLDER = Path(__file__).parent / "rules"  # a symbolic link in a checkout, a sub-package in a wheel


class Level(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One level and the layers it leaves open (rules/levels.toml)."""

    name: str
    open_layers: tuple[int, ...]


class Setting(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One setting of a workload: its type and range, its default, and which levels may change it."""

    type: Literal["bool", "int", "float", "str"]
    default: SettingValue
    layer: int
    source: str
    note: str
    default_by_size: dict[str, SettingValue] = {}
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    open_at: tuple[str, ...] = ()

    def default_at(self, size: str) -> SettingValue:
        """Value of the setting where nobody changes it, at the size named."""
        return self.default_by_size.get(size, self.default)

    def is_open_at(self, level: Level) -> bool:
        """Whether the level may change this setting."""
        return self.layer in level.open_layers or level.name in self.open_at

    def problem(self, value: object) -> str | None:
        """What is wrong with a value, as "expected ..." text; None if it is possible."""
        wanted = {"bool": bool, "int": int, "float": float, "str": str}[self.type]
        if type(value) is not wanted:
            return f"a value of type {self.type}"
        if self.choices and value not in self.choices:
            return f"one of {', '.join(self.choices)}"
        if isinstance(value, float) and not math.isfinite(value):
            return "a finite number"
        if self.minimum is not None and isinstance(value, int | float) and value < self.minimum:
            return f"at least {self.minimum:g}"
        if self.maximum is not None and isinstance(value, int | float) and value > self.maximum:
            return f"at most {self.maximum:g}"
        return None

    def parse(self, key: str, value: object) -> SettingValue:
        """Turn the text of KEY=VALUE, or a value of a Python caller, into a value of the setting's type.

        Raises:
            UsageError: the text is not of the type, or out of range.
        """
        parsed = _from_text(self.type, value) if isinstance(value, str) else value
        if self.type == "float" and type(parsed) is int:
            parsed = float(parsed)
        problem = self.problem(parsed)
        if problem is not None:
            raise UsageError(f"setting {key} cannot be {value!r}: it takes {problem} ({self.note})")
        assert isinstance(parsed, bool | int | float | str)
        return parsed


def _from_text(kind: str, text: str) -> object:
    """The value a text stands for, or the text itself if it stands for none of that kind."""
    if kind == "bool":
        return {"true": True, "false": False}.get(text.lower(), text)
    try:
        return int(text) if kind == "int" else float(text) if kind == "float" else text
    except ValueError:
        return text


class Size(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One size of a workload: everything of layer 9, and what is derived from it (``rules/workloads/*.toml``).

    ``input`` says in pixels, and channels, what the model is evaluated on; the names are the workload's own.
    ``split_files`` names the data files of each split, where they are several. ``noise_limit`` is the largest
    half-width of the score's 95 % interval, as a part of the score, that is ranked; null where nothing is.
    """

    rankable: bool
    target_quality: float
    vflops_exponent: float
    epochs: int
    num_runs: int
    data_sources: tuple[str, ...]
    num_train_samples: int
    num_validation_samples: int
    num_classes: int
    input: dict[str, int]
    evaluation_period_epochs: int
    num_parameters: int
    flop_forward_per_sample: int
    flop_training_per_sample: int
    flop_per_sample_2020: int | None = None
    noise_limit: float | None = None
    split_files: dict[str, tuple[str, ...]] = {}
    name: str = ""


class Workload(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One workload: its sizes and its settings."""

    name: str
    title: str
    quality: str
    sizes: dict[str, Size]
    settings: dict[str, Setting]
    channel_mean: tuple[float, ...] = ()
    channel_std: tuple[float, ...] = ()
    levels: dict[str, Level] = {}

    def size(self, name: str) -> Size:
        """The size of that name.

        Raises:
            UnknownNameError: there is none.
        """
        return _look_up("size", name, self.sizes)

    def level(self, name: str) -> Level:
        """The level of that name.

        Raises:
            UnknownNameError: there is none.
        """
        return _look_up("level", name, self.levels)

    def setting(self, key: str) -> Setting:
        """The setting of that name.

        Raises:
            UnknownNameError: there is none.
        """
        return _look_up("setting", key, self.settings)

    def resolve(self, size: str, level: str, overrides: Mapping[str, object]) -> dict[str, SettingValue]:
        """All settings of a run: the defaults of the size, changed by the overrides (text as typed, or values).

        Raises:
            UnknownNameError: unknown size, level or setting.
            UsageError: a value of the wrong type or out of range.
            RulesError: the level forbids a change; says which level would allow it.
        """
        self.size(size)
        settings = {key: setting.default_at(size) for key, setting in self.settings.items()}
        settings |= {key: self.setting(key).parse(key, value) for key, value in overrides.items()}
        findings = check_level(self, size, level, settings)
        if findings:
            listing = "; ".join(f"{finding.place} = {finding.found}, {finding.expected}" for finding in findings)
            raise RulesError(f"{level} level forbids these settings: {listing}")
        return settings


class Edition(msgspec.Struct, frozen=True, kw_only=True):
    """The rules, whole. ``number`` is Major.Minor; results of the same number are comparable."""

    number: str
    sha256: str
    layers: dict[int, str]
    levels: dict[str, Level]
    workloads: dict[str, Workload]
    devices: tuple[Device, ...]
    processors: Processors
    convergence: Convergence
    releases: dict[str, str] = {}
    """Digest of the workload's code of each released version (hpcai500/code_digest.py)."""

    def workload(self, name: str) -> Workload:
        """The workload of that name.

        Raises:
            UnknownNameError: there is none.
        """
        return _look_up("workload", name, self.workloads)

    def level(self, name: str) -> Level:
        """The level of that name.

        Raises:
            UnknownNameError: there is none.
        """
        return _look_up("level", name, self.levels)

    def device(self, name: str) -> Device:
        """The accelerator of that name, as the framework prints it.

        Raises:
            UnknownNameError: it is not in rules/devices.toml.
        """
        for known in self.devices:
            if fnmatch.fnmatchcase(name, known.pattern):
                return known
        kind = "device (add it to rules/devices.toml with its dense peaks and their source)"
        raise UnknownNameError(kind, name, (known.pattern for known in self.devices))

    def peak_flops(self, device: str, precision: str) -> float:
        """Dense peak of one device in flop/s.

        Raises:
            UnknownNameError: the device, or its peak in that number format, is not in rules/devices.toml.
        """
        kind = f"peak of {device} (add it to rules/devices.toml with its source),"
        return _look_up(kind, precision, self.device(device).peak_flops)


def _look_up(kind: str, name: str, table: Mapping[str, Named]) -> Named:
    if name not in table:
        raise UnknownNameError(kind, name, table)
    return table[name]


def check_level(workload: Workload, size: str, level: str, settings: Mapping[str, object]) -> list[Finding]:
    """Whether a level allows these settings: a finding for each that is missing, unknown, impossible or closed.

    Raises:
        UnknownNameError: unknown size or level.
    """
    workload.size(size)
    rules = workload.level(level)
    findings = []
    for key in sorted(settings.keys() - workload.settings.keys()):
        known = ", ".join(sorted(workload.settings))
        findings.append(Finding(rule="level.unknown_setting", place=key, expected=f"one of {known}", found=repr(key)))
    for key, setting in workload.settings.items():
        if key not in settings:
            findings.append(Finding(rule="level.missing_setting", place=key, expected="a value", found="nothing"))
            continue
        value, default = settings[key], setting.default_at(size)
        problem = setting.problem(value)
        if problem is not None:
            findings.append(Finding(rule="level.setting_value", place=key, expected=problem, found=repr(value)))
        elif value != default and not setting.is_open_at(rules):
            lowest = next((name for name, other in workload.levels.items() if setting.is_open_at(other)), None)
            allowed = f"{lowest} level allows a change" if lowest else "no level allows a change"
            expected = f"{default!r} at {level} level (a setting of layer {setting.layer}; {allowed})"
            findings.append(Finding(rule="level.closed_setting", place=key, expected=expected, found=repr(value)))
    return findings


@functools.cache
def load_edition() -> Edition:
    """The rules this package comes with.

    Raises:
        RulesError: a rules file is missing or broken.
    """
    return read_edition(RULES_FOLDER)


def read_edition(folder: Path) -> Edition:
    """Read the rules of a folder that is laid out as ``rules/``.

    Raises:
        RulesError: a rules file is missing or broken.
    """
    head = _read_toml(folder / "levels.toml")
    try:
        levels = {level.name: level for level in msgspec.convert(head["levels"], list[Level])}
        layers = {int(number): str(name) for number, name in head["layers"].items()}
        machines = _read_toml(folder / "devices.toml")
        devices = msgspec.convert(machines["devices"], tuple[Device, ...])
        processors = msgspec.convert(machines["processors"], Processors)
        number = str(head["edition"])
    except (KeyError, ValueError, msgspec.ValidationError) as error:
        raise RulesError(f"{folder}/levels.toml or devices.toml is not a rules file") from error
    workloads = [_read_workload(path, levels) for path in sorted((folder / "workloads").glob("*.toml"))]
    return Edition(
        number=number,
        sha256=rules_digest(folder),
        layers=layers,
        levels=levels,
        workloads={workload.name: workload for workload in workloads},
        devices=devices,
        processors=processors,
        convergence=_read_convergence(folder / "convergence.toml"),
        releases=_read_releases(folder / "releases.toml"),
    )


def rules_digest(folder: Path) -> str:
    """sha256 over names, lengths and bytes of all TOML and JSON files of the rules, in the order of their names."""
    digest = hashlib.sha256()
    files = [*folder.rglob("*.toml"), *folder.rglob("*.json")]
    for path in sorted(files, key=lambda path: path.relative_to(folder).as_posix()):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(folder).as_posix()}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise RulesError(f"cannot read the rules file {path}") from error


def _read_convergence(path: Path) -> Convergence:
    try:
        return msgspec.convert(_read_toml(path), Convergence)
    except msgspec.ValidationError as error:
        raise RulesError(f"{path} does not hold reference convergence points: {error}") from error


def _read_releases(path: Path) -> dict[str, str]:
    try:
        return msgspec.convert(_read_toml(path).get("code_sha256"), dict[str, str])
    except msgspec.ValidationError as error:
        raise RulesError(f"{path} does not list the code of releases: {error}") from error


def _read_workload(path: Path, levels: dict[str, Level]) -> Workload:
    """Read and check one workload: a default that its own setting refuses would make every run invalid."""
    try:
        workload = msgspec.convert(_read_toml(path), Workload)
    except msgspec.ValidationError as error:
        raise RulesError(f"{path} is not a workload's rules file") from error
    sizes = {name: msgspec.structs.replace(size, name=name) for name, size in workload.sizes.items()}
    for key, setting in workload.settings.items():
        unknown = (setting.default_by_size.keys() - sizes.keys()) | (set(setting.open_at) - levels.keys())
        if unknown:
            raise RulesError(f"{path}: setting {key} names {sorted(unknown)}, which are neither sizes nor levels")
        for name in sizes:
            problem = setting.problem(setting.default_at(name))
            if problem is not None:
                raise RulesError(
                    f"{path}: the default of {key} at size {name} is {setting.default_at(name)!r}, "
                    f"but it takes {problem}"
                )
    return msgspec.structs.replace(workload, sizes=sizes, levels=levels)
