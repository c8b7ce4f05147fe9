"""Decides where ranks run: on which cluster, on how many nodes, how many a node, and on which device.

What was typed goes before the site file, and within a job before what the scheduler says of it.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hpcai500.errors import UsageError
from hpcai500.launch.launch_config import Cluster, LaunchConfig
from hpcai500.launch.site import Site
from hpcai500.launch.walltime import format_walltime, parse_walltime

AUTO = "auto"  # ranks a node as measured; see hpcai500/rank_trial.py


@dataclass(frozen=True)
class Layout:
    """Where the ranks of a run go.

    Attributes:
        device: "cpu" or "cuda"; with the latter each rank takes one GPU.
    """

    num_nodes: int
    ranks_per_node: int
    gpus_per_node: int
    device: str
    cpus_per_rank: int | None = None


def number_or_auto(text: str) -> int | str:
    """The word behind --ranks-per-node.

    Raises:
        argparse.ArgumentTypeError: it is neither a number nor "auto".
    """
    if text == AUTO:
        return AUTO
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number and not {AUTO!r}") from None


def check_auto(args: argparse.Namespace) -> None:
    """Refuse --ranks-per-node auto where nothing can be measured or is to be chosen.

    Raises:
        UsageError: says what to do instead.
    """
    if args.ranks is not None:
        raise UsageError(f"--ranks {args.ranks} and --ranks-per-node auto exclude each other; give one of them")
    cluster = args.cluster or ("slurm" if args.nodes is not None else "local")
    if cluster != "local":
        raise UsageError(
            f"--ranks-per-node auto measures on this machine, and with --cluster {cluster} the ranks run on others; "
            "measure once on a node of that kind, `srun --nodes=1 --exclusive hpcai500 submit ... --cluster local "
            "--ranks-per-node auto --dry-run`, and give the number that it picks"
        )


def make_launch(args: argparse.Namespace, site: Site) -> tuple[LaunchConfig, str]:
    """How the runs are started, and on which device ("cpu" or "cuda").

    Raises:
        UsageError: says which number or word cannot work and what would do.
    """
    cluster: Cluster = args.cluster or ("slurm" if args.nodes is not None else "local")
    if args.ranks_per_node == AUTO:
        raise UsageError("--ranks-per-node auto is for new submissions; give a number to change that of this one")
    layout = {"local": _local, "slurm": _slurm, "allocation": _allocation}[cluster](args, site)
    set_by_site = {key: value for key in _SAME_KEYS if (value := getattr(site, key, None)) is not None}
    if args.runs_at_once is not None:
        _check_positive("--runs-at-once", args.runs_at_once)
    typed = {key: value for key in _SAME_KEYS if (value := getattr(args, key, None)) is not None}
    selfcheck = "off" if args.no_selfcheck or cluster == "local" else args.selfcheck
    if selfcheck is not None:
        typed["selfcheck"] = selfcheck
    time_limit_s = _time_limit(args, site)
    launch = LaunchConfig(
        cluster=cluster,
        num_nodes=layout.num_nodes,
        ranks_per_node=layout.ranks_per_node,
        gpus_per_node=layout.gpus_per_node,
        cpus_per_rank=layout.cpus_per_rank,
        time_limit_s=time_limit_s,
        python=sys.executable,
        **{**set_by_site, **typed},
    )
    if cluster == "slurm":
        _check_signal(launch)
    _check_software(launch, typed=args.software_archive is not None)
    if cluster != "slurm" and launch.runs_at_once > 1:
        raise UsageError(
            f"--runs-at-once {launch.runs_at_once} needs a queue (--cluster slurm); with --cluster {cluster} "
            "runs follow each other"
        )
    return launch, layout.device


# Keys that site.toml, LaunchConfig and (where it has them) the command line have in common.
_SAME_KEYS = (
    "partition",
    "account",
    "qos",
    "constraint",
    "reservation",
    "exclusive",
    "mem",
    "signal_before_end_s",
    "requeue",
    "max_restarts",
    "launcher",
    "mpi_type",
    "modules",
    "setup",
    "container_image",
    "container_command",
    "network_interface",
    "software_archive",
    "software_dir",
    "stage_dir",
    "on_full_disk",
    "selfcheck",
    "ipmi_accuracy",
    "submitter",
    "runs_at_once",
)


def _local(args: argparse.Namespace, site: Site) -> Layout:
    """On this machine; its GPUs are looked at, the site's nodes are not."""
    if args.nodes not in (None, 1):
        raise UsageError(f"--nodes {args.nodes} with --cluster local is not possible; this machine is one node")
    device, num_gpus = choose_device(args.device)
    if args.gpus_per_node is not None and args.gpus_per_node > num_gpus:
        raise UsageError(f"--gpus-per-node {args.gpus_per_node} is more than the {num_gpus} GPUs of this machine")
    num_gpus = num_gpus if args.gpus_per_node is None else args.gpus_per_node
    ranks = args.ranks if args.ranks is not None else args.ranks_per_node
    ranks = ranks if ranks is not None else num_gpus or 1
    if ranks < 1:
        raise UsageError(f"--ranks {ranks} is not possible; give at least 1")
    if num_gpus and ranks > num_gpus:
        raise UsageError(f"--ranks {ranks} is more than the {num_gpus} GPUs here, and each rank takes one")
    return Layout(1, ranks, num_gpus if device == "cuda" else 0, device)


def _slurm(args: argparse.Namespace, site: Site) -> Layout:
    """In the queue; login nodes have no GPUs, so it is what is asked for that decides about the device."""
    num_nodes = 1 if args.nodes is None else args.nodes
    _check_positive("--nodes", num_nodes)
    gpus = _first(args.gpus_per_node, None if args.device == "cpu" else site.gpus_per_node, 0)
    ranks = _ranks_per_node(args, num_nodes)
    ranks = _first(ranks, site.ranks_per_node, gpus or 1)
    return _checked(Layout(num_nodes, ranks, gpus, _device(args.device, gpus), site.cpus_per_rank))


def _allocation(args: argparse.Namespace, site: Site, environ: Mapping[str, str] | None = None) -> Layout:
    """In a job that runs already: what the scheduler gave decides."""
    env = os.environ if environ is None else environ
    if "SLURM_JOB_ID" not in env:
        raise UsageError(
            "--cluster allocation is for job scripts and there is no Slurm job here (SLURM_JOB_ID is not set); "
            "submit one with `sbatch jobs/resnet50_free.sbatch`, or use --cluster slurm"
        )
    num_nodes = _number(env.get("SLURM_JOB_NUM_NODES")) or _number(env.get("SLURM_NNODES")) or 1
    if args.nodes not in (None, num_nodes):
        raise UsageError(
            f"--nodes {args.nodes} is not what this job has, which is {num_nodes}; "
            f"submit it with `sbatch --nodes={args.nodes}`"
        )
    given = _number(env.get("SLURM_GPUS_ON_NODE")) or _number(env.get("SLURM_GPUS_PER_NODE")) or 0
    gpus = _first(args.gpus_per_node, 0 if args.device == "cpu" else given)
    if gpus > given:
        raise UsageError(
            f"--gpus-per-node {gpus} is more than the {given} that this job has on a node; "
            f"submit it with `sbatch --gpus-per-node={gpus}`"
        )
    ranks = _ranks_per_node(args, num_nodes)
    ranks = _first(ranks, _number(env.get("SLURM_NTASKS_PER_NODE")), site.ranks_per_node, gpus or 1)
    cpus = _first(_number(env.get("SLURM_CPUS_PER_TASK")), site.cpus_per_rank, 0)
    return _checked(Layout(num_nodes, ranks, gpus, _device(args.device, gpus), cpus or None))


def check_partition(site: Site, args: argparse.Namespace, environ: Mapping[str, str] | None = None) -> None:
    """Refuse a job that runs in another partition than the site file wants.

    Raises:
        UsageError: says how to submit it, and how to mean it.
    """
    actual = (os.environ if environ is None else environ).get("SLURM_JOB_PARTITION", "")
    wanted = args.partition or site.partition
    if wanted and actual and actual not in wanted.split(","):
        raise UsageError(
            f"this job runs in partition {actual!r} and {'--partition' if args.partition else 'site.toml'} says "
            f'{wanted!r}; submit it after `eval "$(hpcai500 site --shell)"`, with `sbatch --partition={wanted}`, '
            f"or write `--partition {actual}` behind the job script's name if you mean it"
        )


def choose_device(wanted: str | None) -> tuple[str, int]:
    """Return the device of this machine, "cpu" or "cuda", and the number of GPUs that may be used (0 for "cpu").

    Raises:
        UsageError: "cuda" is wanted and there is none.
    """
    import torch

    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted == "cuda" and num_gpus == 0:
        raise UsageError("--device 'cuda' needs a CUDA device and this machine shows none; use --device cpu")
    device = wanted or ("cuda" if num_gpus else "cpu")
    return device, num_gpus if device == "cuda" else 0


def _device(wanted: str | None, gpus_per_node: int) -> str:
    if wanted == "cuda" and gpus_per_node == 0:
        raise UsageError("--device 'cuda' needs GPUs; say how many with --gpus-per-node or in site.toml")
    return wanted or ("cuda" if gpus_per_node else "cpu")


def _ranks_per_node(args: argparse.Namespace, num_nodes: int) -> int | None:
    """What was typed, as ranks of a node: --ranks counts those of all nodes."""
    if args.ranks is None:
        return None if args.ranks_per_node is None else int(args.ranks_per_node)
    _check_positive("--ranks", args.ranks)
    if args.ranks_per_node is not None and args.ranks_per_node * num_nodes != args.ranks:
        raise UsageError(
            f"--ranks {args.ranks} is not {num_nodes} nodes x --ranks-per-node {args.ranks_per_node}; give one of them"
        )
    if args.ranks % num_nodes:
        raise UsageError(
            f"--ranks {args.ranks} cannot be shared evenly by {num_nodes} nodes; "
            f"give a multiple of {num_nodes}, or --ranks-per-node"
        )
    return int(args.ranks // num_nodes)


def _checked(layout: Layout) -> Layout:
    if layout.gpus_per_node < 0:
        raise UsageError(f"--gpus-per-node {layout.gpus_per_node} is not possible; give at least 0")
    _check_positive("--ranks-per-node", layout.ranks_per_node)
    if layout.device == "cuda" and layout.ranks_per_node > layout.gpus_per_node:
        raise UsageError(
            f"--ranks-per-node {layout.ranks_per_node} is more than the {layout.gpus_per_node} GPUs of a node, and "
            "each rank takes one"
        )
    return layout


def _check_positive(word: str, number: int) -> None:
    if number < 1:
        raise UsageError(f"{word} {number} is not possible; give at least 1")


def _time_limit(args: argparse.Namespace, site: Site) -> int | None:
    if args.time is not None:
        try:
            return parse_walltime(args.time)
        except UsageError as error:
            raise UsageError("--time is not possible") from error
    return parse_walltime(site.time_limit) if site.time_limit else None


def _check_signal(launch: LaunchConfig) -> None:
    """A job that is told to stop as soon as it starts never gets anywhere."""
    if launch.time_limit_s is not None and launch.time_limit_s <= launch.signal_before_end_s:
        raise UsageError(
            f"--time {format_walltime(launch.time_limit_s)} is too short for a job that is told to stop "
            f"{launch.signal_before_end_s} s before its end; give it more, or lower signal_before_end_s in site.toml"
        )


def _check_software(launch: LaunchConfig, *, typed: bool) -> None:
    """A job goes on without an archive that does not fit; one that is not there at all is a slip of whoever submits."""
    archive = launch.software_archive
    if archive is None:
        return
    if launch.cluster == "local":
        if typed:
            raise UsageError(
                f"--software {archive!r} is for jobs of Slurm, and ranks of this machine need none; omit it"
            )
        return
    if launch.container_image is not None:
        raise UsageError(
            f"software_archive {archive!r} and container_image {launch.container_image!r} exclude each other, since "
            "an image brings its own software; keep one of them"
        )
    if not Path(archive).is_file():
        raise UsageError(f"software archive {archive!r} is no file; make it with `hpcai500 software {archive}`")


def _number(text: str | None) -> int | None:
    """The first number of what Slurm says: ``2(x3)`` on three nodes, ``gpu:2``."""
    match = re.search(r"(?:^|:)(\d+)", text or "")
    return int(match[1]) if match else None


def _first(*numbers: int | None) -> int:
    """The first that is known."""
    return next(number for number in numbers if number is not None)
