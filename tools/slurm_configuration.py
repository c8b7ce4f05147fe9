"""The files that tools/slurm_cluster.py writes: Slurm's configuration and the commands outside of the nodes."""

from __future__ import annotations

import os
from pathlib import Path

COMMANDS = (
    "sacct",
    "sacctmgr",
    "salloc",
    "sattach",
    "sbatch",
    "scancel",
    "scontrol",
    "sdiag",
    "sinfo",
    "squeue",
    "srun",
)
# A file in every box's own /dev/shm by which the commands in FOLDER/bin know that they are inside.
INSIDE = "/dev/shm/.slurm-box"  # noqa: S108 - it is the box's own file system

SLURM_CONF = """\
ClusterName=lab
SlurmctldHost=ctl(10.77.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=10
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
TmpFS={folder}/local
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd.%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd.%n.log
# Nodes claim more cores than the machine may have, so nothing is pinned; no control groups.
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
# Short times.
SchedulerParameters=batch_sched_delay=0,sched_interval=5,bf_interval=1
SlurmdTimeout=10
KillWait=5
MinJobAge=3600
ReturnToService=2
JobRequeue=1
# A job of "low" that gives way gets the signal that it asked for with --signal, and GraceTime seconds.
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
NodeName=DEFAULT CPUs={cpus} Sockets=1 CoresPerSocket={cpus} ThreadsPerCore=1 RealMemory=4000{gres}
{node_lines}
PartitionName=main Nodes=ALL Default=YES PriorityTier=10 PreemptMode=OFF MaxTime=INFINITE State=UP
PartitionName=low Nodes=ALL PriorityTier=1 PreemptMode=REQUEUE GraceTime=20 MaxTime=INFINITE State=UP
"""

SLURMDBD_CONF = """\
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
DbdHost=ctl
DbdAddr=10.77.0.1
SlurmUser=root
PidFile={folder}/run/slurmdbd.pid
LogFile={folder}/log/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm
"""

ACCOUNTING_CONF = """\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=10.77.0.1
AccountingStoragePass={folder}/munge/socket
"""

# Outside the boxes the commands join the controller's network and host name; files, folder and environment are kept.
COMMAND = """\
#!/bin/sh
export SLURM_CONF={folder}/etc/slurm.conf
command=/usr/bin/$(basename "$0")
[ -e {inside} ] && exec "$command" "$@"
exec nsenter --target "$(cut -d' ' -f1 {folder}/boxes/ctl)" --net --uts -- "$command" "$@"
"""

ENV_SH = """\
export SLURM_CONF={folder}/etc/slurm.conf
case ":$PATH:" in *":{folder}/bin:"*) ;; *) export PATH="{folder}/bin:$PATH" ;; esac
"""


def write_configuration(folder: Path, settings: dict[str, int]) -> None:
    names = {number: f"node{number}" for number in range(1, settings["nodes"] + 1)}
    node_lines = [f"NodeName={name} NodeAddr=10.77.0.{10 + number} State=UNKNOWN" for number, name in names.items()]
    gres, extra = "", ""
    if settings["gpus"]:
        # Character devices like /dev/null stand for GPUs; Slurm only wants them to exist.
        for number in range(settings["gpus"]):
            os.mknod(folder / f"dev/gpu{number}", 0o20666, os.makedev(1, 3))
        line = f"NodeName=node[1-{len(names)}] Name=gpu File={folder}/dev/gpu[0-{settings['gpus'] - 1}]\n"
        (folder / "etc/gres.conf").write_text(line, encoding="utf-8")
        gres, extra = f" Gres=gpu:{settings['gpus']}", "GresTypes=gpu\n"
    if settings["accounting"]:
        extra += ACCOUNTING_CONF.format(folder=folder) + ("AccountingStorageTRES=gres/gpu\n" if gres else "")
    slurm_conf = SLURM_CONF.format(folder=folder, cpus=settings["cpus"], gres=gres, node_lines="\n".join(node_lines))
    (folder / "etc/slurm.conf").write_text(extra + slurm_conf, encoding="utf-8")
    (folder / "etc/slurmdbd.conf").write_text(SLURMDBD_CONF.format(folder=folder), encoding="utf-8")
    (folder / "etc/slurmdbd.conf").chmod(0o600)
    hosts = [
        "127.0.0.1 localhost",
        "10.77.0.1 ctl",
        *(f"10.77.0.{10 + number} {name}" for number, name in names.items()),
    ]
    (folder / "etc/hosts").write_text("\n".join(hosts) + "\n", encoding="utf-8")


def write_commands(folder: Path) -> None:
    script = folder / "bin/.command"
    script.write_text(COMMAND.format(folder=folder, inside=INSIDE), encoding="utf-8")
    script.chmod(0o755)
    for command in COMMANDS:
        (folder / "bin" / command).symlink_to(script.name)
    (folder / "env.sh").write_text(ENV_SH.format(folder=folder), encoding="utf-8")
