"""Plans the rest of a submission that was begun before: which of its runs are left, and where they go on."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from hpcai500.edition import load_edition
from hpcai500.errors import HpcAi500Error, UsageError
from hpcai500.formats import SUBMISSION_NAME, RunConfig, read_config
from hpcai500.launch.launch_config import LaunchConfig, read_launch_config
from hpcai500.launch.layout import make_launch
from hpcai500.launch.site import FoundSite, Site, find_site
from hpcai500.launch.walltime import format_walltime
from hpcai500.launches import queued_jobs, read_launches
from hpcai500.lease import RunLease
from hpcai500.plan import Plan, check_queue
from hpcai500.record import list_ledgers

# What a submission was made with, and cannot be changed any more; the name in ``args`` and the word typed.
FIXED_WORDS = {
    "workload": "--workload",
    "level": "--level",
    "size": "--size",
    "data": "--data",
    "ranks": "--ranks",
    "runs": "--runs",
    "seed": "--seed",
    "device": "--device",
    "output": "--output",
    "submitter": "--submitter",
    "ticket": "--ticket",
    "overrides": "--set",
}


def plan_rest(args: argparse.Namespace) -> Plan:
    """What is left of the submission in ``args.resume``, started as before except for what was typed.

    Raises:
        UsageError: there is nothing left, it is still being worked on, or a word says what cannot be changed.
        RecordError: the folder is no submission.
    """
    folder = args.resume.absolute()
    for name, word in FIXED_WORDS.items():
        if getattr(args, name) not in (None, []):
            raise UsageError(f"{word} cannot be given with --resume, which goes on with what {str(folder)!r} says")
    configs, left = read_runs(folder)
    before = read_launch_config(folder)
    check_idle(folder, left)
    found = find_site(args.site) if args.site else FoundSite(found_by="the submission")
    launch = _new_launch(args, before, configs[0], site_of(before, found.site))
    queue_limit_s = check_queue(launch)
    check_ranks(folder, configs, left, launch)
    return _plan(folder, configs, left, launch, found, queue_limit_s=queue_limit_s)


def end_unfinished(folder: Path) -> None:
    """Make sure that nobody works on the runs of a submission which are not complete.

    Raises:
        UsageError: somebody does, or the submission is over.
        RecordError: the folder is no submission, or cannot be written.
    """
    _, left = read_runs(folder)
    check_idle(folder, left)
    for number in left:
        RunLease(folder / f"run-{number}", job=os.environ.get("SLURM_JOB_ID", "")).close()


def plan_restart(folder: Path) -> Plan:
    """What is left of the submission of this very job, which the scheduler has started again.

    Raises:
        RecordError: the folder is no submission.
    """
    configs, left = read_runs(folder)
    return _plan(folder, configs, left, read_launch_config(folder), FoundSite(found_by="the submission"))


def is_own(folder: Path, environ: Mapping[str, str] | None = None) -> bool:
    """Whether an existing folder was made by this very job before it was started again."""
    env = os.environ if environ is None else environ
    job = env.get("SLURM_JOB_ID", "")
    was_restarted = env.get("SLURM_RESTART_COUNT", "0") not in ("", "0")
    return folder.exists() and (was_restarted or any(launch.job == job for launch in read_launches(folder)))


def read_runs(folder: Path) -> tuple[list[RunConfig], list[int]]:
    """The configurations of all runs of a submission, and the numbers of those that are not complete.

    Raises:
        UsageError: it has no runs.
        RecordError: a configuration cannot be read.
    """
    configs: list[RunConfig] = []
    while (folder / f"run-{len(configs) + 1}" / "config.json").exists():
        configs.append(read_config(folder / f"run-{len(configs) + 1}")[0])
    if not configs:
        raise UsageError(
            f"--resume {str(folder)!r} is no folder of a submission (it has no run-1/config.json); "
            "`hpcai500 status` lists yours"
        )
    left = [number for number in range(1, len(configs) + 1) if not (folder / f"run-{number}" / "result.json").exists()]
    return configs, left


def check_idle(folder: Path, left: Sequence[int]) -> None:
    """Refuse a submission that is over, or whose jobs are still in the queue.

    Raises:
        UsageError: says which job, and what to do.
    """
    if (folder / SUBMISSION_NAME).exists():
        raise UsageError(
            f"--resume {str(folder)!r} is not possible: the submission is assembled and over; make a new one"
        )
    jobs = {run: job for run, job in queued_jobs(read_launches(folder)).items() if run in left and job}
    if not jobs:
        return
    from hpcai500.launch.queue import Queue

    try:
        told = Queue().ask(jobs.values())
    except HpcAi500Error:  # no Slurm here any more; the lease of a run still keeps two jobs from working on it
        return
    for run, job in jobs.items():
        if told[job].is_active and job.split("_")[0] != os.environ.get("SLURM_JOB_ID"):
            raise UsageError(
                f"run {run} of {str(folder)!r} is still with job {job} ({told[job].describe()}); "
                f"follow it with `hpcai500 watch {folder}`, or end it first with `scancel {job}`"
            )


def check_ranks(folder: Path, configs: Sequence[RunConfig], left: Sequence[int], launch: LaunchConfig) -> None:
    """Refuse a number of ranks with which the runs that are left cannot go on.

    Raises:
        UsageError: says which run, and which number is possible.
    """
    for number in left:
        config = configs[number - 1]
        if launch.num_ranks == config.num_ranks:
            continue
        if not list_ledgers(folder / f"run-{number}"):
            raise UsageError(
                f"run {number} has not begun yet, and begins with the {config.num_ranks} ranks it was planned for and "
                f"not with {launch.num_ranks}; give --nodes and --ranks-per-node that make {config.num_ranks}"
            )
        global_batch = int(config.settings["batch_size_per_rank"]) * config.num_ranks
        if global_batch % launch.num_ranks:
            raise UsageError(
                f"run {number} has a global batch of {global_batch}, which {launch.num_ranks} ranks cannot share "
                "evenly; give --nodes and --ranks-per-node whose product divides it"
            )


def site_of(launch: LaunchConfig, site: Site) -> Site:
    """What was decided before, as if a site file said it; what ``site`` says goes before that."""
    values = {key: getattr(launch, key) for key in Site.__struct_fields__ if hasattr(launch, key)}
    values["time_limit"] = format_walltime(launch.time_limit_s) if launch.time_limit_s else None
    values |= {key: value for key in Site.__struct_fields__ if (value := getattr(site, key)) is not None}
    return Site(**values)


def _new_launch(args: argparse.Namespace, before: LaunchConfig, config: RunConfig, site: Site) -> LaunchConfig:
    """As before, except for what was typed."""
    given = argparse.Namespace(**vars(args))
    given.device = config.device  # another one would not be the same run
    given.cluster = args.cluster or ("slurm" if args.nodes is not None else before.cluster)
    if args.cluster is None and given.cluster == "allocation" and "SLURM_JOB_ID" not in os.environ:
        given.cluster = "slurm"
    if given.cluster == "local":
        given.ranks = before.num_ranks if args.ranks_per_node is None else None
    elif given.cluster == "slurm":
        given.nodes = before.num_nodes if args.nodes is None else args.nodes
        given.runs_at_once = args.runs_at_once or before.runs_at_once
    given.submitter = before.submitter
    return make_launch(given, site)[0]


def _plan(
    folder: Path,
    configs: list[RunConfig],
    left: list[int],
    launch: LaunchConfig,
    found: FoundSite,
    *,
    queue_limit_s: int | None = None,
) -> Plan:
    first = configs[0]
    edition = load_edition()
    if first.edition != edition.number or first.rules_sha256 != edition.sha256:
        raise UsageError(
            f"{str(folder)!r} was begun under other rules (edition {first.edition}, {first.rules_sha256[:12]}...) than "
            f"those of this package ({edition.number}, {edition.sha256[:12]}...); go on with the package it was begun "
            "with, or make a new submission"
        )
    return Plan(
        configs=configs,
        folder=folder,
        size=edition.workload(first.workload).size(first.size),
        launch=launch,
        runs=left,
        site=found,
        is_new=False,
        queue_limit_s=queue_limit_s,
    )
