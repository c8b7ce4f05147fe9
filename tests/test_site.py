"""site.toml: where it is found, what it may say, and what a shell makes of it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from hpcai500.errors import HpcAi500Error, UsageError
from hpcai500.launch.site import TAKES, FoundSite, Site, find_site, read_site
from hpcai500.launch.walltime import format_walltime, parse_walltime
from hpcai500.site import SBATCH_VARIABLES, main, shell_lines

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "jobs/site.toml.example"


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def example_filled_in() -> str:
    """The example with the comment signs removed as it says: before keys, tables and lines of a list."""
    lines = []
    for line in EXAMPLE.read_text(encoding="utf-8").splitlines():
        bare = line.removeprefix("# ")
        is_key = " = " in bare and bare.split(" = ")[0].replace("_", "").replace("-", "").isalnum()
        lines.append(bare if is_key or bare.startswith(("[", "]", '    "')) else line)
    return "\n".join(lines)


def test_every_key_is_in_the_example_and_described(tmp_path: Path) -> None:
    text = example_filled_in()
    assert set(tomllib.loads(text)) == set(Site.__struct_fields__) == set(TAKES)
    site = read_site(write(tmp_path / "site.toml", text))
    assert all(getattr(site, key) not in (None, {}) for key in TAKES)


def test_the_example_as_it_is_says_nothing(tmp_path: Path) -> None:
    assert read_site(write(tmp_path / "site.toml", EXAMPLE.read_text(encoding="utf-8"))) == Site()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('partitoin = "main"', "'partitoin' (did you mean 'partition'?); known: account, "),
        ('[data]\nresnet51 = "x.h5"', "'resnet51' (did you mean 'resnet50'?)"),
        ('[data]\nresnet50-maxi = "x.h5"', "'resnet50-maxi' (did you mean 'resnet50-mini'?)"),
        ("partition = 5", "partition cannot be 5; it takes the name of a partition"),
        ('partition = ""', "partition cannot be ''; it takes the name of a partition"),
        ('launcher = "mpiexec"', 'launcher cannot be \'mpiexec\'; it takes "srun" or "mpirun"'),
        ("ranks_per_node = 0", "ranks_per_node cannot be 0; it takes a number from 1"),
        ("requeue = 1", "requeue cannot be 1; it takes true or false"),
        ('modules = "openmpi"', "modules cannot be 'openmpi'; it takes a list of environment modules"),
        (
            'time_limit = "soon"',
            "time_limit cannot be 'soon'; it takes a time limit in quotes, for example 90 (minutes)",
        ),
        ("[data]\nresnet50 = 5", "data cannot be {'resnet50': 5}; it takes a table of WORKLOAD"),
        ("partition = main", "is not TOML; jobs/site.toml.example shows its form"),
    ],
)
def test_what_is_not_possible_is_refused_in_a_sentence(text: str, message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "site.toml", text)
    with pytest.raises(HpcAi500Error) as caught:
        read_site(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert caught.value.exit_code == 2


def test_the_first_file_there_is_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    jobs, home = tmp_path / "checkout/jobs", tmp_path / "home"
    environ = {"HOME": str(home)}

    def found() -> tuple[str | None, str]:
        site = find_site(None, environ, checkout_jobs=jobs)
        return site.site.partition, site.found_by

    assert found() == (None, "no file")
    write(home / ".config/hpcai500/site.toml", 'partition = "user"')
    assert found() == ("user", "your configuration folder")
    environ["XDG_CONFIG_HOME"] = str(tmp_path / "config")
    write(tmp_path / "config/hpcai500/site.toml", 'partition = "xdg"')
    assert found() == ("xdg", "your configuration folder")
    write(jobs / "site.toml", 'partition = "checkout"')
    assert found() == ("checkout", "the checkout's jobs folder")
    write(tmp_path / "site.toml", 'partition = "here"')
    assert found() == ("here", "the current folder")
    environ["HPCAI500_SITE"] = str(write(tmp_path / "named.toml", 'partition = "named"'))
    assert found() == ("named", "HPCAI500_SITE")
    typed = find_site(write(tmp_path / "typed.toml", 'partition = "typed"'), environ, checkout_jobs=jobs)
    assert (typed.site.partition, typed.path) == ("typed", tmp_path / "typed.toml")


def test_a_file_that_was_named_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--site names '.*gone.toml', which is no file; copy jobs/site.toml.example"):
        find_site(tmp_path / "gone.toml", {})
    with pytest.raises(UsageError, match="HPCAI500_SITE names"):
        find_site(None, {"HPCAI500_SITE": str(tmp_path / "gone.toml")})


def test_relative_paths_count_from_the_file_and_addresses_stay(tmp_path: Path) -> None:
    text = 'output = "runs"\ncontainer_image = "docker://x/y"\n[data]\nresnet50 = "d/all.h5"\nresnet50-mini = "/m.h5"'
    found = FoundSite(read_site(write(tmp_path / "a/site.toml", text)))
    assert found.site.output == str(tmp_path / "a/runs")
    assert found.site.container_image == "docker://x/y"
    assert found.data_path("resnet50", "official") == tmp_path / "a/d/all.h5"
    assert found.data_path("resnet50", "mini") == Path("/m.h5")
    assert FoundSite().data_path("resnet50", "mini") is None


def test_the_shell_learns_what_sbatch_reads(tmp_path: Path) -> None:
    path = write(tmp_path / "my site.toml", example_filled_in())
    command = [sys.executable, "-m", "hpcai500", "site", "--site", str(path), "--shell"]
    script = f'eval "$({" ".join(command[:-2])} "$SITE" --shell)" && env'
    environ = {"PATH": os.environ["PATH"], "SITE": str(path)}
    done = subprocess.run(["bash", "-c", script], env=environ, capture_output=True, text=True, check=True)
    variables = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    assert variables["HPCAI500_SITE"] == str(path)
    assert variables["SBATCH_PARTITION"] == "main"
    assert variables["SBATCH_TIMELIMIT"] == "12:00:00"
    assert variables["SBATCH_SIGNAL"] == "B:USR2@120"
    assert set(SBATCH_VARIABLES.values()) <= variables.keys()


def test_what_the_site_leaves_open_stays_as_it_is() -> None:
    assert shell_lines(FoundSite()) == []
    assert shell_lines(FoundSite(Site(exclusive=False, gpus_per_node=0, requeue=False))) == [
        "export SBATCH_NO_REQUEUE=yes"
    ]


def test_job_scripts_get_modules_and_setup(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "site.toml", 'modules = ["a/1", "b c"]\nsetup = ["export X=1"]')
    assert main(["--site", str(path), "--setup"]) == 0
    assert capsys.readouterr().out == "module load a/1\nmodule load 'b c'\nexport X=1\n"


def test_the_command_shows_file_and_values(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "site.toml", 'partition = "main"\n[data]\nresnet50 = "/x.h5"')
    monkeypatch.setenv("HPCAI500_SITE", str(path))
    assert main([]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{path} (named by HPCAI500_SITE)",
        'partition = "main"',
        'data.resnet50 = "/x.h5"',
    ]
    assert main(["--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["path"], shown["site"]["partition"]) == (str(path), "main")


def test_the_command_says_where_it_looked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HPCAI500_SITE")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hpcai500.site.find_site", lambda wanted: find_site(wanted, checkout_jobs=tmp_path))
    assert main([]) == 0
    output = capsys.readouterr().out
    assert "no site file; looked at site.toml, " in output
    assert str(tmp_path / "hpcai500/site.toml") in output


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 5400),
        ("2:30", 150),
        ("1:30:00", 5400),
        ("0:00:45", 45),
        ("1-12", 129600),
        ("1-12:30", 131400),
        ("2-01:02:03", 176523),
    ],
)
def test_time_limits_are_read_as_slurm_does(text: str, seconds: int) -> None:
    assert parse_walltime(text) == seconds
    assert parse_walltime(format_walltime(seconds)) == seconds


@pytest.mark.parametrize("text", ["", "soon", "1:2:3:4", "-5", "0", "1.5", "infinite"])
def test_what_is_no_time_limit_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"for example 90 \(minutes\), 1:30:00 or 1-12:00:00"):
        parse_walltime(text)


def test_the_documentation_lists_every_key_and_no_other() -> None:
    page = (ROOT / "docs/slurm.rst").read_text(encoding="utf-8")
    listed = re.findall(r"^``\[?(\w+)\]?`` {2,}", page, re.MULTILINE)
    assert sorted(listed) == sorted(TAKES)


def test_the_container_definition_copies_files_that_exist() -> None:
    text = (ROOT / "jobs/hpcai500.def").read_text(encoding="utf-8")
    files = text.split("%files\n")[1].split("\n\n")[0].split("\n")
    assert len(files) > 5
    for line in files:
        source, target = line.split()
        assert (ROOT / source).exists(), source
        assert target == f"/opt/hpcai500/source/{source}"
