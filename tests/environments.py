"""A small virtual environment that can be packed: what starting a rank needs, and an empty module in place of torch."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path
from shutil import copytree, ignore_patterns

import hpcai500

LINKED = ("numpy", "h5py", "msgspec")


def make_environment(folder: Path) -> Path:
    """Make it; returns its interpreter."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if path.name.startswith(LINKED):  # their libraries and their records too
            (packages / path.name).symlink_to(path)
    (packages / "torch.py").touch()
    own = Path(hpcai500.__file__).parent
    copytree(own, packages / "hpcai500", ignore=ignore_patterns("__pycache__"))
    return folder / "bin/python"
