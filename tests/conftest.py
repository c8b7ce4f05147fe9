"""What all tests share: skips that say why, and that fail where the library is required (continuous integration)."""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from forging import Forger
    from playwright.sync_api import Browser
    from postgresql import PostgresqlServer
    from xdist.scheduler import LoadScopeScheduling

# One thread a process: tests run several processes on few cores, and threads that wait for a core spin.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Neither what this user has submitted, nor his keys, nor this site are the tests' affair.
_HOME = tempfile.TemporaryDirectory(prefix="hpcai500-tests-")
os.environ["XDG_STATE_HOME"] = f"{_HOME.name}/state"
os.environ["XDG_CONFIG_HOME"] = f"{_HOME.name}/config"
os.environ["HPCAI500_SITE"] = f"{_HOME.name}/site.toml"
Path(os.environ["HPCAI500_SITE"]).touch()

MODULES = {"mpi": "mpi4py", "horovod": "horovod", "dali": "nvidia.dali", "atheris": "atheris"}
SLURM_CLUSTER = Path(__file__).parents[1] / "tools/slurm_cluster.py"


def is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the parent package of a dotted name is missing
        return False


@functools.cache
def obstacle(word: str) -> str | None:
    """Why what ``word`` stands for cannot be used here; None if it can."""
    if word == "slurm":
        asked = subprocess.run([sys.executable, SLURM_CLUSTER, "check"], capture_output=True, text=True, check=False)
        return asked.stderr.strip() or None
    if word == "postgresql":
        return _obstacle_to_postgresql()
    if word == "browser":
        return _obstacle_to_browser()
    return None if is_installed(MODULES[word]) else f"{MODULES[word]} is not installed; `make test` installs it"


def _obstacle_to_postgresql() -> str | None:
    from postgresql import find_programs

    if find_programs() is None:
        return "there is no PostgreSQL in /usr/lib/postgresql; `tools/install_debian_packages.sh` installs it"
    return None if is_installed("psycopg") else "psycopg is not installed; `make test` installs it"


def _obstacle_to_browser() -> str | None:
    if shutil.which("chromium") is None:
        return "there is no chromium; `tools/install_debian_packages.sh` installs it"
    return None if is_installed("playwright") else "playwright is not installed; `make test` installs it"


def require(word: str) -> None:
    """Skip the test if what ``word`` stands for is missing; fail if HPCAI500_REQUIRE names it."""
    message = obstacle(word)
    if message is None:
        return
    if word in os.environ.get("HPCAI500_REQUIRE", "").split(","):
        pytest.fail(message)
    pytest.skip(message)


@pytest.fixture(name="require")
def require_fixture() -> Callable[[str], None]:
    return require


def is_on_cluster(nodeid: str) -> bool:
    return nodeid.startswith("tests/slurm/")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes long begins first, so that of several workers none has it all to itself at the end."""
    slow_files = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (not is_on_cluster(item.nodeid), item.path not in slow_files))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """Of several workers one has the tests of a file, since they share what they start; one has the Slurm cluster."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "tests/slurm" if is_on_cluster(nodeid) else nodeid.partition("::")[0]

    config.option.loadscopereorder = False
    return ByFile(config, log)


def pytest_runtest_setup(item: pytest.Item) -> None:
    for word in (*MODULES, "slurm", "postgresql", "browser"):
        if item.get_closest_marker(word):
            require(word)


@pytest.fixture(scope="session")
def smoke_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data file that the smoke size takes: 128 + 50 generated pictures of 10 classes."""
    from hpcai500.datasets.generated import Recipe, prepare

    recipe = Recipe(seed=0, num_classes=10, image_size=32, num_samples=(128, 50))
    return prepare(tmp_path_factory.mktemp("data") / "smoke.h5", recipe, num_workers=1)


@pytest.fixture(scope="session")
def smoke_weather(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the smoke size of fasterrcnn takes: 8 + 4 generated fields of 96 x 144."""
    from hpcai500.datasets.extreme_weather.generate import WeatherRecipe, generate
    from hpcai500.pipelines.climate_statistics import compute_statistics

    folder = tmp_path_factory.mktemp("weather") / "smoke-weather"
    generate(folder, WeatherRecipe(seed=0, height=96, width=144, samples_by_year={1979: 8, 1997: 4}), num_workers=1)
    compute_statistics(folder, ["climo_1979.h5"], num_workers=1)
    return folder


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[PostgresqlServer]:
    """A PostgreSQL server for all tests of a worker."""
    require("postgresql")
    from postgresql import PostgresqlServer

    server = PostgresqlServer()
    yield server
    server.stop()


@pytest.fixture
def postgresql_url(postgresql_server: PostgresqlServer) -> str:
    """The URL of an empty database."""
    return postgresql_server.fresh_url()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium without a window; not for all of a worker's tests, since its event loop would be in others' way."""
    require("browser")
    from playwright.sync_api import sync_playwright

    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=flags)
        yield browser
        browser.close()


@pytest.fixture
def edition_of_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recorded submissions are judged by the rules that they were recorded under; for modules that ask for it."""
    from recording import EDITION  # imports torch, which most tests need not

    monkeypatch.setattr("hpcai500.verify.load_edition", lambda: EDITION)


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A valid submission, which nobody may change."""
    from recording import record_submission

    return record_submission(tmp_path_factory.mktemp("recorded"))


@pytest.fixture(scope="session")
def recorded_resumed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Likewise one whose first run was killed in its second epoch and resumed."""
    from recording import record_submission

    return record_submission(tmp_path_factory.mktemp("resumed"), resumed_on=2)


@pytest.fixture
def forger(recorded: Path, tmp_path: Path) -> Forger:
    """A forger of a copy of the valid submission."""
    from forging import forger_of_copy

    return forger_of_copy(recorded, tmp_path / "copy")


@pytest.fixture
def resumed(recorded_resumed: Path, tmp_path: Path) -> Forger:
    """A forger of a copy of the resumed one."""
    from forging import forger_of_copy

    return forger_of_copy(recorded_resumed, tmp_path / "resumed")
