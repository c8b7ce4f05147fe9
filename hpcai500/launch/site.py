"""What is particular about a site: partition, account, modules, container, where data lies; kept in one ``site.toml``.

Read alike by ``hpcai500 submit`` and by the job templates. ``jobs/site.toml.example`` shows every key.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from hpcai500.edition import load_edition
from hpcai500.errors import UnknownNameError, UsageError
from hpcai500.events import Count, Fraction, Positive, Text
from hpcai500.launch.launch_config import Launcher, OnFullDisk, SelfCheck
from hpcai500.launch.walltime import FORMS, parse_walltime

SITE_VARIABLE = "HPCAI500_SITE"
SITE_NAME = "site.toml"
CHECKOUT_JOBS = Path(__file__).parents[2] / "jobs"  # only in a checkout; an installed package has no such folder


class Site(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The keys of site.toml; None where the file does not say. TAKES says what each is."""

    partition: Text | None = None
    account: Text | None = None
    qos: Text | None = None
    constraint: Text | None = None
    reservation: Text | None = None
    exclusive: bool | None = None
    mem: Text | None = None
    time_limit: Text | None = None
    signal_before_end_s: Positive | None = None
    requeue: bool | None = None
    max_restarts: Count | None = None
    ranks_per_node: Positive | None = None
    gpus_per_node: Count | None = None
    cpus_per_rank: Positive | None = None
    launcher: Launcher | None = None
    mpi_type: Text | None = None
    modules: list[Text] | None = None
    setup: list[Text] | None = None
    container_image: Text | None = None
    container_command: Text | None = None
    network_interface: Text | None = None
    software_archive: Text | None = None
    software_dir: Text | None = None
    stage_dir: Text | None = None
    on_full_disk: OnFullDisk | None = None
    selfcheck: SelfCheck | None = None
    output: Text | None = None
    ipmi_accuracy: Fraction | None = None
    submitter: Text | None = None
    data: dict[str, Text] = {}


# What each key takes, in the words of an error: "partition cannot be 5; it takes the name of a partition".
TAKES = {
    "partition": "the name of a partition",
    "account": "the name of an account",
    "qos": "the name of a quality of service",
    "constraint": "features that nodes must have, as `sbatch --constraint` does",
    "reservation": "the name of a reservation",
    "exclusive": "true or false: whether jobs get whole nodes",
    "mem": 'memory of a node in quotes, as `sbatch --mem` does; "0" is all of it',
    "time_limit": f"a time limit in quotes, for example {FORMS}",
    "signal_before_end_s": "whole seconds, at least 1: how long before its end a job is told to write a checkpoint",
    "requeue": "true or false: whether a job that was stopped queues again",
    "max_restarts": "a number from 0: how often a job may queue again",
    "ranks_per_node": "a number from 1",
    "gpus_per_node": "a number from 0",
    "cpus_per_rank": "a number from 1: cores of a rank",
    "launcher": '"srun" or "mpirun"',
    "mpi_type": "a word of `srun --mpi=list`, mostly pmix",
    "modules": "a list of environment modules",
    "setup": "a list of shell lines",
    "container_image": "the path or address of an image",
    "container_command": "the program that runs images, mostly apptainer",
    "network_interface": "the name of a network interface, for example ib0",
    "software_archive": "the path of an archive that `hpcai500 software` made",
    "software_dir": "a folder on each node's own storage",
    "stage_dir": "a folder on each node's own disk",
    "on_full_disk": '"fallback" or "stop"',
    "selfcheck": '"require", "warn" or "off"',
    "output": "a folder that all nodes can write to",
    "ipmi_accuracy": "a number from 0 to 1: largest error of the nodes' power readings by IPMI, as a part of them",
    "submitter": "who submits, as the ranking shall show it",
    "data": 'a table of WORKLOAD = "PATH" or WORKLOAD-SIZE = "PATH"',
}
NAMING = ("--site", SITE_VARIABLE)
PATH_KEYS = ("container_image", "software_archive", "output")  # relative ones count from the file's folder


@dataclass(frozen=True)
class FoundSite:
    """The site file in use.

    Attributes:
        site: its values; all None if there is no file.
        path: the file.
        found_by: why this one.
        looked_at: what was looked at, in order, up to the one that was found.
    """

    site: Site = field(default_factory=Site)
    path: Path | None = None
    found_by: str = "no file"
    looked_at: tuple[str, ...] = ()

    @property
    def is_named(self) -> bool:
        """Whether somebody named this very file."""
        return self.found_by in NAMING

    def data_path(self, workload: str, size: str) -> Path | None:
        """Where the data of a workload at a size lies, if the file says."""
        text = self.site.data.get(f"{workload}-{size}") or self.site.data.get(workload)
        return Path(text) if text else None


def find_site(
    wanted: Path | None = None, environ: Mapping[str, str] | None = None, *, checkout_jobs: Path = CHECKOUT_JOBS
) -> FoundSite:
    """Read the first site file there is: the one wanted, $HPCAI500_SITE, ./site.toml, the checkout's, the user's.

    Raises:
        UsageError: the file that was named is not there, or holds what is not possible.
    """
    env = os.environ if environ is None else environ
    config_home = Path(env.get("XDG_CONFIG_HOME") or Path(env.get("HOME") or Path.home()) / ".config")
    from_environment = Path(env[SITE_VARIABLE]) if env.get(SITE_VARIABLE) else None
    for name, path in zip(NAMING, (wanted, from_environment), strict=True):
        if path is not None:
            if not path.is_file():
                raise UsageError(
                    f"{name} names {str(path)!r}, which is no file; copy jobs/site.toml.example there and fill it in"
                )
            return FoundSite(read_site(path), path.absolute(), name, (f"{name} {path}",))
    usual = [
        ("the current folder", Path(SITE_NAME)),
        ("the checkout's jobs folder", checkout_jobs / SITE_NAME),
        ("your configuration folder", config_home / "hpcai500" / SITE_NAME),
    ]
    looked_at: list[str] = []
    for name, path in usual:
        looked_at.append(str(path))
        if path.is_file():
            return FoundSite(read_site(path), path.absolute(), name, tuple(looked_at))
    return FoundSite(looked_at=tuple(looked_at))


def read_site(path: Path) -> Site:
    """Read a site file strictly.

    Raises:
        UnknownNameError: a key or a workload that does not exist.
        UsageError: it cannot be read, is not TOML or holds a value that is not possible.
    """
    try:
        with path.open("rb") as file:
            content = tomllib.load(file)
    except OSError as error:
        raise UsageError(f"site file {str(path)!r} cannot be read ({error.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"site file {str(path)!r} is not TOML; jobs/site.toml.example shows its form") from error
    values = {key: _convert(path, key, value) for key, value in content.items()}
    _check_data(path, values.get("data", {}))
    for key in PATH_KEYS:
        if key in values and not _is_address(values[key]):
            values[key] = str(path.absolute().parent / Path(values[key]).expanduser())
    folder = path.absolute().parent
    values["data"] = {key: str(folder / Path(text).expanduser()) for key, text in values.get("data", {}).items()}
    return Site(**values)


def _convert(path: Path, key: str, value: object) -> Any:
    """The value of one key, checked."""
    fields = {known.name: known for known in msgspec.structs.fields(Site)}
    if key not in fields:
        raise UnknownNameError(f"key of site file {str(path)!r}:", key, fields)
    try:
        converted = msgspec.convert(value, fields[key].type)
        if key == "time_limit":
            parse_walltime(converted)
    except (msgspec.ValidationError, UsageError):
        raise UsageError(f"site file {str(path)!r}: {key} cannot be {value!r}; it takes {TAKES[key]}") from None
    return converted


def _check_data(path: Path, table: Mapping[str, str]) -> None:
    workloads = load_edition().workloads
    known = [*workloads, *(f"{name}-{size}" for name, workload in workloads.items() for size in workload.sizes)]
    for name in table:
        if name not in known:
            raise UnknownNameError(f"workload in [data] of site file {str(path)!r}:", name, known)


def _is_address(text: str) -> bool:
    """Whether an image is not a file but an address, such as ``docker://`` or ``oras://``."""
    return "://" in text
