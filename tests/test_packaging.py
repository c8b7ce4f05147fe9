"""The wheel: complete, and usable from any folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from hpcai500.code_digest import code_sha256
from hpcai500.edition import load_edition

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    # From a copy, so that no build folder of an earlier time can add files to the wheel or stay in the checkout.
    tracked = subprocess.run(["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True, check=True).stdout
    packed = subprocess.run(["tar", "-C", str(ROOT), "-c", *tracked.split()], capture_output=True, check=True).stdout
    subprocess.run(["tar", "-C", str(source), "-x"], input=packed, check=True)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(folder)]
    subprocess.run([*command, str(source)], check=True, capture_output=True)
    (path,) = folder.glob("hpcai500-*.whl")
    return path


def test_every_module_and_rule_is_in_the_wheel(wheel: Path) -> None:
    packed = set(zipfile.ZipFile(wheel).namelist())
    wanted = {path.relative_to(ROOT).as_posix() for path in (ROOT / "hpcai500").rglob("*.py")}
    for folder in ("rules", "datasets"):
        kinds = (".py", ".toml", ".json", ".csv", ".rst")
        files = [path for path in (ROOT / folder).rglob("*") if path.suffix in kinds]
        wanted |= {f"hpcai500/{path.relative_to(ROOT).as_posix()}" for path in files}
    for kind in ("*.json", "templates/*.*", "static/*.*"):
        wanted |= {path.relative_to(ROOT).as_posix() for path in (ROOT / "hpcai500").rglob(kind)}
    assert wanted - packed == set()
    assert "hpcai500/py.typed" in packed


def test_nothing_else_is_in_the_wheel(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert all(name.startswith(("hpcai500/", "hpcai500-")) for name in names)


def test_an_installed_copy_has_the_same_rules_and_code_and_works_from_any_folder(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    program = (
        "import json, hpcai500; from hpcai500.edition import load_edition\n"
        "from hpcai500.code_digest import code_sha256\n"
        "print(json.dumps([hpcai500.__file__, load_edition().sha256, code_sha256()]))"
    )
    command = [sys.executable, "-P", "-c", program]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    place, *digests = json.loads(done.stdout)
    assert place.startswith(str(tmp_path))
    assert digests == [load_edition().sha256, code_sha256()]
