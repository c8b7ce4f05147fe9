"""Plan a submission, train its runs on this machine, assemble it and verify it.

Run as ``hpcai500 submit ...`` or ``python -m hpcai500.submit ...``.
"""

from __future__ import annotations

import argparse
import os
import sys
import uuid
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from hpcai500.command import INTERRUPTED_EXIT_CODE, run_command
from hpcai500.edition import SettingValue, Size, load_edition
from hpcai500.errors import RunError, UsageError
from hpcai500.submission import DataSource, RunConfig, assemble_submission, write_json
from hpcai500.verify import print_verdict, verify_submission

EPILOG = """examples:
  hpcai500 submit --size mini --data data/mini.h5 --ranks 2
  hpcai500 submit --data imagenet.h5 --ranks 8 --set batch_size_per_rank=128 --dry-run

Every setting, its default and the levels that may change it stand in rules/workloads/resnet50.toml."""


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
        return "\n".join(f"{name + ':':<10}{text}" for name, text in lines.items())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's words."""
    parser.add_argument("--workload", default="resnet50", help="what to train (default: %(default)s)")
    parser.add_argument("--level", default="free", help="hardware, system or free (default: %(default)s)")
    parser.add_argument("--size", default="official", help="official or mini (default: %(default)s)")
    parser.add_argument("--data", type=Path, required=True, help="HDF5 file, made by `hpcai500 data prepare`")
    parser.add_argument("--ranks", type=int, help="processes to train with (default: one a GPU, else one)")
    parser.add_argument("--runs", type=int, help="runs, each with a seed of its own (default: as the size demands)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the first run; the next count up (default: 1)")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="where to train (default: cuda if there is any)")
    parser.add_argument("--output", type=Path, help="new folder of the submission (default: runs/NAME-DATE)")
    parser.add_argument("--submitter", help="who submits, as the ranking shall show it")
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a setting of the workload, as far as the level allows; may be repeated",
    )
    parser.add_argument("--dry-run", action="store_true", help="show the plan and stop")


def run(args: argparse.Namespace) -> int:
    """Plan, train, assemble, verify; returns 0 if the submission is valid."""
    plan = make_plan(args)
    print(plan.describe(), flush=True)
    if args.dry_run:
        return 0
    make_folders(plan)
    for number, config in enumerate(plan.configs, start=1):
        train_run(
            config, run_folder(plan, number), title=f"run {number}/{len(plan.configs)}", num_epochs=plan.size.epochs
        )
    return judge(plan, submitter=args.submitter)


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


def run_folder(plan: Plan, number: int) -> Path:
    return plan.folder / f"run-{number}"


def make_folders(plan: Plan) -> None:
    """Make the submission's folder with a configured folder a run.

    Raises:
        UsageError: it exists already, or cannot be made; nothing is overwritten.
    """
    try:
        plan.folder.mkdir(parents=True)
        for number, config in enumerate(plan.configs, start=1):
            (run_folder(plan, number) / "ledger").mkdir(parents=True)
            write_json(run_folder(plan, number) / "config.json", config)
    except FileExistsError:
        raise UsageError(
            f"--output {str(plan.folder)!r} exists already and nothing is ever overwritten; name a new folder"
        ) from None
    except OSError as error:
        raise UsageError(f"--output {str(plan.folder)!r} cannot be written; name another folder") from error


def train_run(config: RunConfig, folder: Path, *, title: str, num_epochs: int) -> None:
    """Train one run on local ranks, showing how far it is.

    Raises:
        RunError: the run failed; its folder keeps what it recorded.
        KeyboardInterrupt: the run was interrupted; likewise.
    """
    from hpcai500.launch.local import run_ranks
    from hpcai500.progress import ProgressDisplay, RunFollower

    follower = RunFollower(folder, num_epochs=num_epochs, num_ranks=config.num_ranks)
    with ProgressDisplay(follower, title=title):
        exit_code = run_ranks(
            str(config.settings["communicator"]),
            config.num_ranks,
            [sys.executable, "-m", "hpcai500.train", str(folder)],
        )
    if exit_code == INTERRUPTED_EXIT_CODE:
        raise KeyboardInterrupt
    if exit_code != 0:
        raise RunError(
            f"{title} ended with exit code {exit_code}; the reason stands above, "
            f"and what it recorded lies in {str(folder)!r}"
        )


def judge(plan: Plan, *, submitter: str | None) -> int:
    """Assemble the submission from its runs, verify it and say where everything lies."""
    path = plan.folder / "submission.json"
    folders = [run_folder(plan, number) for number in range(1, len(plan.configs) + 1)]
    assemble_submission(folders, path, submitter=submitter)
    verdict = verify_submission(path)
    print()
    print_verdict(verdict)
    shown = os.path.relpath(path)
    print(f"\nsubmission: {shown}\nverify it: hpcai500-verify {shown}")
    return 0 if verdict.valid else 1


def main(argv: list[str] | None = None) -> int:
    """Entry point of ``python -m hpcai500.submit``."""
    return run_command("python -m hpcai500.submit", sys.modules[__name__], argv)


if __name__ == "__main__":
    sys.exit(main())
