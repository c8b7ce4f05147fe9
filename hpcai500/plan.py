"""Decides everything about a submission before anything starts, and refuses what is impossible or forbidden."""

from __future__ import annotations

import argparse
import os
import textwrap
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import msgspec

from hpcai500.announced import check_unused, take_ticket
from hpcai500.edition import SettingValue, Size, Workload, load_edition
from hpcai500.errors import UsageError
from hpcai500.formats import DataSource, RunConfig, SignedTicket
from hpcai500.launch.launch_config import LaunchConfig
from hpcai500.launch.layout import AUTO, check_auto, check_partition, choose_device, make_launch
from hpcai500.launch.site import FoundSite, find_site
from hpcai500.launch.walltime import HOUR_S, format_walltime
from hpcai500.register.ticket import announced_run, describe_ticket, run_seed
from hpcai500.setting_needs import check_backends, check_device

DEFAULT_WORKLOAD, DEFAULT_LEVEL, DEFAULT_SIZE, DEFAULT_SEED = "resnet50", "free", "official", 1
INDENT, WIDTH = 10, 110


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A submission that is about to be trained: everything decided, nothing started.

    Attributes:
        configs: one configuration a run, alike but for run_id and seed.
        folder: where the submission will lie; run N goes to ``run-N``.
        size: the rules of the size.
        launch: where and how the ranks are started.
        runs: numbers of the runs that are to be trained; fewer than all if a submission is gone on with.
        site: the site file in use.
        ticket: that announced the runs of a new submission.
        is_new: the folder is yet to be made.
        queue_limit_s: the time limit the partition gives to a job that asks for none; None if unknown.
    """

    configs: list[RunConfig]
    folder: Path
    size: Size
    launch: LaunchConfig
    runs: list[int]
    site: FoundSite
    ticket: SignedTicket | None = None
    is_new: bool = True
    queue_limit_s: int | None = None

    @property
    def name(self) -> str:
        """What is trained, as one word."""
        first = self.configs[0]
        return f"{first.workload}-{first.size}-{first.level}"

    @property
    def job_name(self) -> str:
        """The name of its jobs in the queue."""
        return f"hpcai500-{self.name}"

    def describe(self) -> str:
        """The plan in a few lines, for people."""
        first = self.configs[0]
        seeds = ", ".join(str(config.seed) for config in self.configs)
        global_batch = first.settings["batch_size_per_rank"] * first.num_ranks
        steps = self.size.num_train_samples // global_batch
        lines = {
            "workload": f"{first.workload}, size {first.size}, {first.level} level, edition {first.edition}",
            "level": describe_level(load_edition().workload(first.workload), first),
            "data": f"{first.data.path} ({first.data.source}){self._describe_staging()}",
            "ticket": describe_ticket(self.ticket.ticket) if self.ticket else "",
            "runs": f"{len(self.configs)} (seeds {seeds}){self._describe_order()}",
            "ranks": f"{self._describe_place()}, device {first.device}, "
            f"{first.settings['communicator']} communicator, {first.settings['pipeline']} pipeline",
            "chosen": self.launch.ranks_choice or "",
            "a run": f"{self.size.epochs} epochs of {steps} steps of {global_batch} samples, "
            f"{first.settings['precision']}, target quality {self.size.target_quality}",
            "time": self._describe_time(),
            "site": str(self.site.path) if self.site.path else "",
            "output": str(self.folder),
            "note": self._describe_notes(),
        }
        return "\n".join(
            textwrap.fill(
                text,
                width=WIDTH,
                initial_indent=f"{name + ':':<{INDENT}}",
                subsequent_indent=" " * INDENT,
                break_long_words=False,
                break_on_hyphens=False,
            )
            for name, text in lines.items()
            if text
        )

    def _describe_place(self) -> str:
        launch = self.launch
        if launch.cluster == "local":
            return f"{launch.num_ranks} on this machine"
        nodes = f"{launch.num_nodes} node{'s' if launch.num_nodes > 1 else ''} x {launch.ranks_per_node}"
        where = f"partition {launch.partition}" if launch.partition else "the default partition"
        if launch.cluster == "allocation":
            where = f"job {os.environ.get('SLURM_JOB_ID', '?')}"
        gpus = f", {launch.gpus_per_node} GPUs a node" if launch.gpus_per_node else ""
        return f"{launch.num_ranks} ({nodes}{gpus}) in {where}, started with {launch.launcher}"

    def _describe_order(self) -> str:
        some = "" if len(self.runs) == len(self.configs) else f"; left to train: {', '.join(map(str, self.runs))}"
        if self.launch.cluster != "slurm" or len(self.runs) < 2:
            return some
        at_once = min(self.launch.runs_at_once, len(self.runs))
        return some + (f", {at_once} at a time" if at_once > 1 else ", one after the other")

    def _describe_staging(self) -> str:
        if self.launch.stage_dir is None:
            return "" if self.launch.cluster == "local" else ", read there by all nodes"
        full = {"fallback": "it is read there", "stop": "the run stops"}[self.launch.on_full_disk]
        return f", copied to {self.launch.stage_dir} of each node (if that is full, {full})"

    def _describe_time(self) -> str:
        """Time limit and what it can cost; nothing for this machine, where nobody pays by the hour."""
        if self.launch.cluster != "slurm":
            return ""
        limit_s = self.launch.time_limit_s or self.queue_limit_s
        requeue = "; a job that needs longer queues again and goes on" if self.launch.requeue else ""
        if limit_s is None:
            return f"no limit{requeue}"
        whose = "" if self.launch.time_limit_s else ", the partition's own limit"
        node_hours = self.launch.num_nodes * len(self.runs) * limit_s / HOUR_S
        return (
            f"at most {format_walltime(limit_s)} a run{whose}, so at most {node_hours:,.1f} node-hours in all{requeue}"
        )

    def _describe_notes(self) -> str:
        notes = []
        if len(self.configs) < self.size.num_runs:
            size = self.configs[0].size
            notes.append(f"size {size} demands {self.size.num_runs} runs; with fewer no submission is valid")
        if 0 < self.launch.ranks_per_node < self.launch.gpus_per_node and self.configs[0].device == "cuda":
            notes.append(f"only {self.launch.ranks_per_node} of {self.launch.gpus_per_node} GPUs of each node are used")
        if self.launch.num_ranks != self.configs[0].num_ranks:
            notes.append(
                f"the runs began with {self.configs[0].num_ranks} ranks and go on with {self.launch.num_ranks}; that "
                "is recorded, and they are not bit-identical with undisturbed ones"
            )
        return "; ".join(notes)


def describe_level(rules: Workload, config: RunConfig) -> str:
    """What was changed, that the level allows it, and what else it would allow."""
    level = rules.level(config.level)
    defaults = {key: setting.default_at(config.size) for key, setting in rules.settings.items()}
    changed = [key for key in rules.settings if config.settings[key] != defaults[key]]
    words = [f"{key} = {config.settings[key]} (not {defaults[key]})" for key in changed]
    begin = (
        f"{config.level} allows what was changed, {', '.join(words)}" if words else "all settings have their defaults"
    )
    more = [key for key, setting in rules.settings.items() if setting.is_open_at(level) and key not in changed]
    closed = [key for key, setting in rules.settings.items() if not setting.is_open_at(level)]
    if not closed:
        return f"{begin}; at {config.level} level any setting may be changed"
    return f"{begin}; at {config.level} level these may be changed{' too' if words else ''}: {', '.join(more)}"


def make_plan(args: argparse.Namespace) -> Plan:
    """Decide everything a submission needs, so that what is impossible or forbidden fails before anything starts.

    Raises:
        UsageError: a word or number that is not possible.
        RulesError: the level forbids a setting; the message says which level would allow it.
        RecordError: the ticket cannot be read.
        DataError: the data file is missing, damaged or not of the size.
    """
    args, signed = take_ticket(args)
    edition = load_edition()
    workload, level = args.workload or DEFAULT_WORKLOAD, args.level or DEFAULT_LEVEL
    rules = edition.workload(workload)
    size = rules.size(args.size or DEFAULT_SIZE)
    settings = rules.resolve(size.name, level, parse_overrides(args.overrides))
    found = find_site(args.site)
    args, choice = with_chosen_ranks(args, found, size, workload=workload, settings=settings)
    launch, device = make_launch(args, found.site)
    launch = msgspec.structs.replace(launch, ranks_choice=choice)
    if launch.cluster == "allocation":
        check_partition(found.site, args)
    queue_limit_s = check_queue(launch)
    check_counts(launch, num_runs=args.runs, settings=settings)
    check_device(settings, device)
    if launch.container_image is None:
        check_backends(settings)
    data = open_source(workload, choose_data(args.data, found, workload, size.name), size, num_ranks=launch.num_ranks)
    check_batch(settings, size, launch.num_ranks)
    num_runs = args.runs if args.runs is not None else size.num_runs
    first_seed = args.seed if args.seed is not None else DEFAULT_SEED
    ticket = signed.ticket if signed else None
    configs = [
        RunConfig(
            run_id=str(uuid.uuid4()),
            workload=workload,
            level=level,
            size=size.name,
            edition=edition.number,
            rules_sha256=edition.sha256,
            seed=run_seed(ticket.challenge, number) if ticket else first_seed + number - 1,
            num_ranks=launch.num_ranks,
            num_nodes=launch.num_nodes,
            device=device,
            data=data,
            settings=settings,
            announced=announced_run(ticket, number) if ticket else None,
        )
        for number in range(1, num_runs + 1)
    ]
    name = f"{workload}-{size.name}-{level}"
    folder = args.output.absolute() if args.output else new_folder(found, name, launch)
    if signed is not None:
        check_unused(signed, folder)
    return Plan(
        configs=configs,
        folder=folder,
        size=size,
        launch=launch,
        runs=list(range(1, num_runs + 1)),
        site=found,
        ticket=signed,
        queue_limit_s=queue_limit_s,
    )


def with_chosen_ranks(
    args: argparse.Namespace, found: FoundSite, size: Size, *, workload: str, settings: dict[str, SettingValue]
) -> tuple[argparse.Namespace, str | None]:
    """The words with a number for --ranks-per-node auto, and why it is that; any other words as they are, and None.

    Raises:
        UsageError: nothing can be measured, or the data is not what the size asks for.
        RunError: the ranks of a trial failed.
    """
    if args.ranks_per_node != AUTO:
        return args, None
    check_auto(args)
    chosen = argparse.Namespace(**vars(args))
    if choose_device(args.device)[0] == "cuda":
        chosen.ranks_per_node = None
        return chosen, "one rank a GPU, as always on GPUs"
    from hpcai500.rank_trial import Trial, choose_ranks

    check_backends(settings)
    path = choose_data(args.data, found, workload, size.name)
    data = open_source(workload, path, size, num_ranks=1)
    check_batch(settings, size, 1)
    trial = Trial(workload=workload, size=size.name, settings=settings, data_path=data.path)
    chosen.ranks_per_node, choice = choose_ranks(trial, size=size)
    return chosen, choice


def new_folder(found: FoundSite, name: str, launch: LaunchConfig, environ: Mapping[str, str] | None = None) -> Path:
    """Where a submission goes if nobody says; a job finds its own again when it is started a second time."""
    env = os.environ if environ is None else environ
    when = f"{datetime.now().astimezone():%Y%m%d-%H%M%S}"
    suffix = f"job{env['SLURM_JOB_ID']}" if launch.cluster == "allocation" else when
    return (Path(found.site.output or "runs") / f"{name}-{suffix}").absolute()


def choose_data(typed: Path | None, found: FoundSite, workload: str, size: str) -> Path:
    """The data file: the one typed, else the site's.

    Raises:
        UsageError: nobody says.
    """
    path = typed or found.data_path(workload, size)
    if path is None:
        where = f"site file {str(found.path)!r} names none" if found.path else "there is no site file that names one"
        raise UsageError(
            f"no data file for {workload}, size {size}: --data is not given and {where}; give --data FILE, "
            f'made by `hpcai500 data prepare`, or write {workload}-{size} = "FILE" under [data] of a site.toml'
        )
    return path


def check_queue(launch: LaunchConfig) -> int | None:
    """Whether Slurm has what is asked for; returns the time limit that a job without one would get, in seconds.

    Raises:
        BackendUnavailableError: there is no Slurm here.
        UsageError: it has not so much.
    """
    if launch.cluster != "slurm":
        return None
    from hpcai500.launch.slurm import check_request, read_partitions

    return check_request(launch, read_partitions()).default_time_s


def parse_overrides(words: list[str]) -> dict[str, str]:
    """Split KEY=VALUE words.

    Raises:
        UsageError: a word without "=".
    """
    for word in words:
        if "=" not in word:
            raise UsageError(f"--set {word!r} is not KEY=VALUE; write for example --set batch_size_per_rank=64")
    return dict(word.split("=", 1) for word in words)


def check_counts(launch: LaunchConfig, *, num_runs: int | None, settings: Mapping[str, SettingValue]) -> None:
    """Refuse numbers of ranks and runs that cannot work.

    Raises:
        UsageError: says which number and what would do.
    """
    if num_runs is not None and num_runs < 1:
        raise UsageError(f"--runs {num_runs} is not possible; give at least 1")
    if launch.num_ranks > 1 and settings["communicator"] == "serial":
        raise UsageError(
            f"--ranks {launch.num_ranks} needs a communicator that joins ranks and 'serial' does not; "
            "use --set communicator=torchdist, mpi or horovod"
        )


def check_batch(settings: Mapping[str, SettingValue], size: Size, num_ranks: int) -> None:
    """Refuse a step that is larger than the epoch.

    Raises:
        UsageError: says how large it is.
    """
    global_batch = int(settings["batch_size_per_rank"]) * num_ranks
    if global_batch > size.num_train_samples:
        raise UsageError(
            f"a global batch of {global_batch} ({settings['batch_size_per_rank']} on each of {num_ranks} ranks) is "
            f"more than the {size.num_train_samples} training samples; lower batch_size_per_rank or --ranks"
        )


def open_source(workload: str, path: Path, size: Size, *, num_ranks: int) -> DataSource:
    """Look at the data: is it whole, and is it what the size asks for?

    Raises:
        DataError: it is missing, damaged or of another kind.
        UsageError: it holds too few samples or classes, or comes from a source that the size does not take.
    """
    from hpcai500.workloads import data_module

    facts = data_module(workload).describe_data(path, size)
    if facts.source not in size.data_sources:
        raise UsageError(
            f"{str(path)!r} comes from {facts.source!r} and size {size.name!r} takes {', '.join(size.data_sources)}; "
            f"prepare the right data with `hpcai500 data prepare`, or choose another --size"
        )
    wanted = {"training samples": size.num_train_samples, "validation samples": size.num_validation_samples}
    found = {"training samples": facts.num_train_samples, "validation samples": facts.num_validation_samples}
    for what, number in wanted.items():
        if found[what] < number:
            raise UsageError(
                f"{str(path)!r} holds {found[what]} {what} and size {size.name!r} needs {number}; prepare more data"
            )
    if facts.num_classes != size.num_classes:
        raise UsageError(
            f"{str(path)!r} holds {facts.num_classes} classes and size {size.name!r} has {size.num_classes}; "
            "prepare the right data with `hpcai500 data prepare`"
        )
    if num_ranks > size.num_validation_samples:
        raise UsageError(
            f"--ranks {num_ranks} is more than the {size.num_validation_samples} validation samples of size "
            f"{size.name!r}; give fewer ranks"
        )
    absolute = os.path.abspath(path)  # noqa: PTH100, since a symbolic link is a name of the file worth keeping
    return DataSource(path=absolute, dataset_sha256=facts.dataset_sha256, source=facts.source)
