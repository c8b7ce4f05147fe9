"""The archive of the software that ranks start from: what is packed, when it is used, what is said when it is not."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
from pathlib import Path

import pytest
from environments import make_environment

from hpcai500 import submit
from hpcai500.errors import UsageError
from hpcai500.launch.launch_config import LaunchConfig
from hpcai500.launch.layout import make_launch
from hpcai500.launch.site import Site
from hpcai500.launch.software import ENVIRONMENT, StagedSoftware
from hpcai500.launch.step import rank_command

CHECK = "import sys; from pathlib import Path; from hpcai500.launch import software; "
CHECK += "software.check_archive(Path(sys.argv[1]))"


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_environment(tmp_path_factory.mktemp("environment") / "e")


@pytest.fixture(scope="module")
def archive(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("archive") / "software.tar"
    done = run(python, "-m", "hpcai500.software", path)
    assert done.returncode == 0, done.stderr
    assert f'software_archive = "{path}"' in done.stdout
    return path


@pytest.fixture(scope="module")
def root(archive: Path) -> Path:
    root = archive.parent / "unpacked"
    root.mkdir()
    subprocess.run(["tar", "-xf", archive, "-C", root], check=True)
    return root


def run(python: Path, *words: object) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **ENVIRONMENT}
    return subprocess.run([python, *map(str, words)], env=env, capture_output=True, text=True, check=False, cwd="/")


def test_what_is_unpacked_runs_the_same_code_and_asks_nothing_of_where_it_came_from(python: Path, root: Path) -> None:
    code = (
        "import json, sys, h5py, hpcai500, numpy\n"
        "from hpcai500.code_digest import code_sha256\nfrom hpcai500.launch import software\n"
        "print(json.dumps([sys.path, hpcai500.__file__, software.package_sha256(), code_sha256()]))"
    )
    there, here = (json.loads(run(which, "-c", code).stdout) for which in (root / "bin/python3", python))
    assert all(Path(path).is_relative_to(root) for path in [*there[0], there[1]])
    assert there[2:] == here[2:]


def test_compiled_modules_fit_their_sources(root: Path) -> None:
    code = "import importlib.util as u, sys; s = u.find_spec('argparse'); print(s.origin, s.cached)"
    source, compiled = map(Path, run(root / "bin/python3", "-c", code).stdout.split())
    assert int.from_bytes(compiled.read_bytes()[8:12], "little") == int(source.stat().st_mtime)


def test_ranks_start_from_the_copy(root: Path) -> None:
    staged = StagedSoftware(Path("software.tar"), Path("/local"), num_nodes=2, job="7-0-1")
    launch = LaunchConfig(cluster="slurm", num_nodes=2, ranks_per_node=2, gpus_per_node=0, python="/shared/bin/python")
    command = rank_command(launch, "hpcai500.train", "run-1", software=staged)
    assert "shared" not in " ".join(command)
    of_node = [word.replace(str(staged.root), str(root)) for word in command]
    assert all(Path(word).exists() for word in of_node if word.startswith("/"))
    done = run(Path(of_node[0]), *of_node[1:-1], "--help")
    assert "usage: python -m hpcai500.train" in done.stdout, done.stderr


def test_an_archive_of_other_software_is_refused(python: Path, archive: Path, tmp_path: Path) -> None:
    assert run(python, "-c", CHECK, archive).returncode == 0
    told = json.loads(archive.with_name("software.tar.json").read_text())
    other = tmp_path / "other.tar"

    def refusal(**changes: object) -> str:
        other.with_name("other.tar.json").write_text(json.dumps({**told, **changes}))
        return run(python, "-c", CHECK, other).stderr.splitlines()[-1]

    assert "cannot be read" in refusal()
    other.symlink_to(archive)
    assert "bytes and should have 5;" in refusal(num_bytes=5)
    assert "holds another hpcai500 than is installed here" in refusal(package_sha256="0")
    assert "has numpy 1.0 and installed is" in refusal(packages={**told["packages"], "numpy": "1.0"})
    assert "has Python 3.0.0 and installed is" in refusal(python="3.0.0")
    assert f"`hpcai500 software {other}`" in refusal(python="3.0.0")


def test_an_environment_without_what_ranks_need_is_not_packed(tmp_path: Path) -> None:
    python = make_environment(tmp_path / "e")
    next((tmp_path / "e").rglob("torch.py")).unlink()
    done = run(python, "-m", "hpcai500.software", tmp_path / "software.tar")
    assert done.returncode == 2
    assert (
        done.stderr.startswith("hpcai500 software: torch is not installed in")
        or "torch is not installed" in done.stderr
    )
    assert not list(tmp_path.glob("software.tar*"))


def parse(*words: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    submit.add_arguments(parser)
    return parser.parse_args([*map(str, words)])


def test_submit_takes_an_archive_only_where_it_can_be_used(archive: Path) -> None:
    launch, _ = make_launch(parse("--nodes", 2, "--software", archive), Site(software_dir="/local"))
    assert (launch.software_archive, launch.software_dir) == (str(archive), "/local")
    with pytest.raises(UsageError, match="is no file; make it with `hpcai500 software"):
        make_launch(parse("--nodes", 2), Site(software_archive="/none.tar"))
    with pytest.raises(UsageError, match="exclude each other"):
        make_launch(parse("--nodes", 2, "--software", archive), Site(container_image="image.sif"))
    with pytest.raises(UsageError, match="is for jobs of Slurm"):
        make_launch(parse("--ranks", 2, "--device", "cpu", "--software", archive), Site())
    make_launch(parse("--ranks", 2, "--device", "cpu"), Site(software_archive="/none.tar"))  # of the cluster
