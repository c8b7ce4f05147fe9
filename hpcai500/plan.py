"""Decides everything about a submission before anything starts, and refuses what is impossible or forbidden."""

from __future__ import annotations

import argparse
import importlib.util
import uuid
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from hpcai500.edition import SettingValue, Size, load_edition
from hpcai500.errors import BackendUnavailableError, UsageError
from hpcai500.formats import DataSource, RunConfig

# What a setting needs beyond the package's own dependencies: the module, and how to get it.
BACKENDS = {
    "mpi": ("mpi4py", "pip install 'hpcai500[mpi]'"),
    "horovod": ("horovod", "`make horovod` in a checkout of hpcai500, since pip cannot build it for a current torch"),
    "dali": ("nvidia.dali", "pip install 'hpcai500[dali]'"),
}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A submission that is about to be trained: everything decided, nothing started.

    Attributes:
        configs: one configuration a run, alike but for run_id and seed.
        folder: where the submission will lie; run N goes to ``run-N``.
        size: the rules of the size.
        steps_per_epoch: of each rank.
    """

    configs: list[RunConfig]
    folder: Path
    size: Size
    steps_per_epoch: int

    def describe(self) -> str:
        """The plan in a few lines, for people."""
        first = self.configs[0]
        seeds = ", ".join(str(config.seed) for config in self.configs)
        global_batch = first.settings["batch_size_per_rank"] * first.num_ranks
        lines = {
            "workload": f"{first.workload}, size {first.size}, {first.level} level, edition {first.edition}",
            "data": f"{first.data.path} ({first.data.source})",
            "runs": f"{len(self.configs)} (seeds {seeds})",
            "ranks": f"{first.num_ranks} on this machine, device {first.device}, "
            f"{first.settings['communicator']} communicator, {first.settings['pipeline']} pipeline",
            "a run": f"{self.size.epochs} epochs of {self.steps_per_epoch} steps of {global_batch} samples, "
            f"{first.settings['precision']}, target quality {self.size.target_quality}",
            "output": str(self.folder),
        }
        if len(self.configs) < self.size.num_runs:
            lines["note"] = f"size {first.size} demands {self.size.num_runs} runs; with fewer no submission is valid"
        return "\n".join(f"{name + ':':<10}{text}" for name, text in lines.items())


def make_plan(args: argparse.Namespace) -> Plan:
    """Decide everything a submission needs, so that what is impossible or forbidden fails before anything starts.

    Raises:
        UsageError: a word or number that is not possible.
        RulesError: the level forbids a setting; the message says which level would allow it.
        DataError: the data file is missing, damaged or not of the size.
    """
    edition = load_edition()
    rules = edition.workload(args.workload)
    size = rules.size(args.size)
    settings = rules.resolve(args.size, args.level, parse_overrides(args.overrides))
    device, num_gpus = choose_device(args.device)
    num_ranks = args.ranks if args.ranks is not None else num_gpus or 1
    check_counts(num_ranks=num_ranks, num_runs=args.runs, num_gpus=num_gpus, settings=settings)
    check_backends(settings)
    data = open_source(args.data, size, num_ranks=num_ranks)
    global_batch = int(settings["batch_size_per_rank"]) * num_ranks
    if global_batch > size.num_train_samples:
        raise UsageError(
            f"a global batch of {global_batch} ({settings['batch_size_per_rank']} on each of {num_ranks} ranks) is "
            f"more than the {size.num_train_samples} training samples; lower batch_size_per_rank or --ranks"
        )
    num_runs = args.runs if args.runs is not None else size.num_runs
    configs = [
        RunConfig(
            run_id=str(uuid.uuid4()),
            workload=args.workload,
            level=args.level,
            size=args.size,
            edition=edition.number,
            rules_sha256=edition.sha256,
            seed=args.seed + index,
            num_ranks=num_ranks,
            num_nodes=1,
            device=device,
            data=data,
            settings=settings,
        )
        for index in range(num_runs)
    ]
    name = f"{args.workload}-{args.size}-{args.level}-{datetime.now().astimezone():%Y%m%d-%H%M%S}"
    folder = (args.output or Path("runs") / name).absolute()
    return Plan(configs=configs, folder=folder, size=size, steps_per_epoch=size.num_train_samples // global_batch)


def parse_overrides(words: list[str]) -> dict[str, str]:
    """Split KEY=VALUE words.

    Raises:
        UsageError: a word without "=".
    """
    for word in words:
        if "=" not in word:
            raise UsageError(f"--set {word!r} is not KEY=VALUE; write for example --set batch_size_per_rank=64")
    return dict(word.split("=", 1) for word in words)


def choose_device(wanted: str | None) -> tuple[str, int]:
    """Return the device, "cpu" or "cuda", and the number of GPUs that may be used (0 for "cpu").

    Raises:
        UsageError: "cuda" is wanted and there is none.
    """
    import torch

    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted == "cuda" and num_gpus == 0:
        raise UsageError("--device 'cuda' needs a CUDA device and this machine shows none; use --device cpu")
    device = wanted or ("cuda" if num_gpus else "cpu")
    return device, num_gpus if device == "cuda" else 0


def check_counts(*, num_ranks: int, num_runs: int | None, num_gpus: int, settings: dict[str, SettingValue]) -> None:
    """Refuse numbers of ranks and runs that cannot work.

    Raises:
        UsageError: says which number and what would do.
    """
    if num_ranks < 1:
        raise UsageError(f"--ranks {num_ranks} is not possible; give at least 1")
    if num_runs is not None and num_runs < 1:
        raise UsageError(f"--runs {num_runs} is not possible; give at least 1")
    if num_gpus and num_ranks > num_gpus:
        raise UsageError(f"--ranks {num_ranks} is more than the {num_gpus} GPUs here, and each rank takes one")
    if num_ranks > 1 and settings["communicator"] == "serial":
        raise UsageError(
            f"--ranks {num_ranks} needs a communicator that joins ranks and 'serial' does not; "
            "use --set communicator=torchdist, mpi or horovod"
        )


def check_backends(settings: dict[str, SettingValue]) -> None:
    """Refuse settings whose library is not installed.

    Raises:
        BackendUnavailableError: says how to get it.
    """
    for key in ("communicator", "pipeline"):
        module, how_to_get = BACKENDS.get(str(settings[key]), ("torch", ""))
        try:
            is_installed = importlib.util.find_spec(module) is not None
        except ModuleNotFoundError:  # the package above it is missing
            is_installed = False
        if not is_installed:
            raise BackendUnavailableError(
                f"{key} {settings[key]!r} needs {module}, which is not installed here; get it with {how_to_get}"
            )


def open_source(path: Path, size: Size, *, num_ranks: int) -> DataSource:
    """Look at the data file: is it whole, and is it what the size asks for?

    Raises:
        DataError: it is missing, damaged or of another kind.
        UsageError: it holds too few samples or classes, or comes from a source that the size does not take.
    """
    from hpcai500.pipelines.hdf5 import open_images

    info = open_images(path)
    source = info.provenance["source"]
    if source not in size.data_sources:
        raise UsageError(
            f"{str(path)!r} comes from {source!r} and size {size.name!r} takes {', '.join(size.data_sources)}; "
            f"prepare the right file with `hpcai500 data prepare`, or choose another --size"
        )
    wanted = {"training samples": size.num_train_samples, "validation samples": size.num_validation_samples}
    found = {
        "training samples": info.splits["train"].num_samples,
        "validation samples": info.splits["validation"].num_samples,
    }
    for what, number in wanted.items():
        if found[what] < number:
            raise UsageError(
                f"{str(path)!r} holds {found[what]} {what} and size {size.name!r} needs {number}; prepare a larger file"
            )
    if len(info.class_names) != size.num_classes:
        raise UsageError(
            f"{str(path)!r} holds {len(info.class_names)} classes and size {size.name!r} has {size.num_classes}; "
            "prepare the right file with `hpcai500 data prepare`"
        )
    if num_ranks > size.num_validation_samples:
        raise UsageError(
            f"--ranks {num_ranks} is more than the {size.num_validation_samples} validation samples of size "
            f"{size.name!r}; give fewer ranks"
        )
    return DataSource(path=str(path.absolute()), dataset_sha256=info.dataset_sha256, source=source)
