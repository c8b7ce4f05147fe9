"""Brings the software of the ranks to each node as one file, so that ranks import from the node's own storage.

An import of torch asks the file system some 14,000 times where a file is. Thousands of ranks that ask one shared file
system wait for its metadata server. With an archive that ``hpcai500 software`` made, a job asks for one file: Slurm's
``sbcast`` reads it once, on the job's first node, and hands it from node to node in a tree; each node unpacks it to
storage of its own, and ranks start from there. The job removes it at its end.

What is imported must be the same code: an archive is used only if it holds this very package, byte for byte, this
Python and the versions of all packages as they are installed now.
"""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import msgspec

from hpcai500.code_digest import PACKAGE_FOLDER, files_sha256
from hpcai500.errors import BackendUnavailableError, HpcAi500Error
from hpcai500.formats import read_record

TIME_LIMIT_S = 600.0  # of bringing it; a plain start of thousands of ranks takes minutes too
# Ranks must not look for modules anywhere else: not in the current folder, nor in the home folder, nor on PYTHONPATH.
ENVIRONMENT = {"PYTHONSAFEPATH": "1", "PYTHONNOUSERSITE": "1", "PYTHONPATH": ""}
NEEDED = ("hpcai500", "torch", "numpy", "h5py", "msgspec")
# On each node, in turn: a folder that nobody else can write to; the archive unpacked, if all of it arrived, and tried.
MAKE = """
set -e
umask 077
folder=$(dirname "$1")
free=$(($(stat -f -c '%a * %S' "$folder")))
if [ "$free" -lt "$2" ]; then
    echo "$2 bytes are needed for it in $folder of $(hostname) and $free are free; name another software_dir" >&2
    exit 1
fi
mkdir "$1"
"""
UNPACK = """
set -e
test "$(stat -c %s "$1/archive")" = "$2"
mkdir "$1/software"
tar -xf "$1/archive" -C "$1/software"
rm "$1/archive"
"$1/software/bin/python3" -c "$3"
"""
REMOVE = 'rm -rf "$1"'
TRY = f"""
import sys
from importlib.util import find_spec
found = {{name: str(spec.origin) for name in {NEEDED!r} if (spec := find_spec(name))}}
lost = [name for name in {NEEDED!r} if not found.get(name, "").startswith(sys.prefix)]
sys.exit(f"{{lost[0]}} is not found in {{sys.prefix}}" if lost else 0)
"""


class SoftwareError(BackendUnavailableError):
    """The software cannot be brought to the nodes; the sentence says why."""


class SoftwareArchive(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The record beside an archive.

    Attributes:
        num_bytes: of the archive.
        package_sha256: of this package, see ``package_sha256``.
        python: version.
        packages: versions of all installed packages by name.
    """

    format: int = 1
    num_bytes: int
    package_sha256: str
    python: str
    packages: dict[str, str]


def record_path(archive: Path) -> Path:
    """Where the record of an archive lies."""
    return archive.with_name(f"{archive.name}.json")


def package_sha256(folder: Path = PACKAGE_FOLDER) -> str:
    """sha256 over names, lengths and bytes of all files of the package, but those that Python compiled."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return files_sha256(folder, (path.relative_to(folder).as_posix() for path in paths))


def installed_packages() -> dict[str, str]:
    """Versions of the packages that this Python finds, by name."""
    return {name.lower(): one.version for one in metadata.distributions() if (name := one.metadata["Name"])}


def check_archive(archive: Path) -> SoftwareArchive:
    """Read an archive's record and compare it with what is installed here.

    Raises:
        SoftwareError: there is none, or it was made of other software; says of what.
    """
    again = f"make it anew with `hpcai500 software {archive}`"
    try:
        told, num_bytes = read_record(record_path(archive), SoftwareArchive), archive.stat().st_size
    except (OSError, HpcAi500Error) as error:
        raise SoftwareError(f"the software archive {str(archive)!r} cannot be read; {again}") from error
    if num_bytes != told.num_bytes:
        raise SoftwareError(f"{str(archive)!r} has {num_bytes:,} bytes and should have {told.num_bytes:,}; {again}")
    if told.package_sha256 != package_sha256():
        raise SoftwareError(f"{str(archive)!r} holds another hpcai500 than is installed here; {again}")
    installed = {"Python": platform.python_version(), **installed_packages()}
    held = {"Python": told.python, **told.packages}
    for name in sorted({*installed, *held}):
        if installed.get(name) != held.get(name):
            raise SoftwareError(
                f"{str(archive)!r} has {name} {held.get(name, 'not at all')} and installed is "
                f"{installed.get(name, 'none')}; {again}"
            )
    return told


class StagedSoftware:
    """The software on all nodes of a job.

    Args:
        archive: made by ``hpcai500 software``, on the shared file system.
        folder: on each node's own storage, such as /tmp.
        num_nodes: of the job.
        job: tells this start of the job from others on the same nodes.

    Attributes:
        root: the unpacked environment, on every node.
        python: its interpreter.
        leash: its hpcai500/launch/leash.py.
    """

    def __init__(self, archive: Path, folder: Path, *, num_nodes: int, job: str) -> None:
        self._archive, self._num_nodes = archive, num_nodes
        self._place = folder / f"hpcai500-{os.geteuid()}-{job}"
        self.root = self._place / "software"
        self.python = self.root / "bin/python3"
        self.leash = self.root / leash_in_archive()

    def bring(self) -> None:
        """Bring the archive to all nodes and unpack it there.

        Raises:
            SoftwareError: that is not possible; the nodes are left as they were.
        """
        told = check_archive(self._archive)
        try:
            self._on_each_node(MAKE, str(self._place), str(2 * told.num_bytes))  # packed and unpacked
            _call(["sbcast", "--force", str(self._archive), str(self._place / "archive")])
            self._on_each_node(UNPACK, str(self._place), str(told.num_bytes), TRY)
        except SoftwareError:
            self.remove()
            raise

    def remove(self) -> None:
        """Remove it from all nodes, as far as they can be reached."""
        try:
            self._on_each_node(REMOVE, str(self._place))
        except SoftwareError:
            return  # a node is gone, and what it has with it

    def _on_each_node(self, script: str, *words: str) -> None:
        nodes = [f"--nodes={self._num_nodes}", f"--ntasks={self._num_nodes}", "--ntasks-per-node=1"]
        srun = ["srun", "--mpi=none", "--input=none", "--kill-on-bad-exit=1", "--cpu-bind=none", *nodes]
        _call([*srun, "sh", "-c", script, "sh", *words])


def leash_in_archive() -> str:
    """Where an archive has hpcai500/launch/leash.py."""
    return f"{site_packages_in_archive()}/hpcai500/launch/leash.py"


def site_packages_in_archive() -> str:
    """Where an archive has the packages."""
    major, minor, _ = platform.python_version_tuple()
    return f"lib/python{major}.{minor}/site-packages"


def _call(command: Sequence[str]) -> None:
    """Run a command of Slurm to its end.

    Raises:
        SoftwareError: it is not there, fails or takes too long.
    """
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIME_LIMIT_S,
            check=False,
            env={**os.environ, **ENVIRONMENT},
        )
    except OSError as error:
        raise SoftwareError(f"cannot start {command[0]!r} ({error.strerror}); is Slurm here?") from error
    except subprocess.TimeoutExpired:
        raise SoftwareError(f"{command[0]} was not done after {TIME_LIMIT_S:.0f} s") from None
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        said.sort(key=lambda line: line.startswith(("srun: ", "slurmstepd")))  # what a node says goes before that
        raise SoftwareError(said[0].strip() if said else f"{command[0]} ended with exit code {done.returncode}")
