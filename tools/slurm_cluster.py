#!/usr/bin/env python3
"""A real Slurm cluster of virtual nodes on one machine, for tests and for trying things out.

    tools/slurm_cluster.py up --nodes 3 --cpus 2 --gpus 2     # ready in some seconds
    . ~/.cache/hpcai500/slurm/env.sh                          # sbatch, srun, squeue ... of this cluster on PATH
    tools/slurm_cluster.py status
    tools/slurm_cluster.py on node1 hostname                  # run a command in a node, or in "ctl"
    tools/slurm_cluster.py kill node2                         # power failure
    tools/slurm_cluster.py revive                             # start what does not run
    tools/slurm_cluster.py down                               # end all of it and remove its files

Each node, and the controller "ctl", is a box: a process that is PID 1 of its own PID, mount, host name, IPC and network
namespaces. A node so has its own host name, addresses, /dev/shm and a "local disk" (a tmpfs at FOLDER/local), sees only
its own processes, and dies as a whole with its PID 1. All other files are shared, as on a cluster's common file system.
Nodes have two networks, eth0 (10.77.0.0/24, to which their names resolve) and fast0 (10.78.0.0/24), and no way out.

Everything lies in one folder (--folder), so several clusters can be up at once. Nothing is installed as a service and
nothing outlives `down`. Times are short, so that tests need not wait: a dead node is noticed in 10 s, a requeued job
waits 10 s, and jobs of partition "low" give way to those of "main" after 20 s.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from slurm_configuration import INSIDE, write_commands, write_configuration

DEFAULT_FOLDER = Path.home() / ".cache/hpcai500/slurm"
MAX_FOLDER_LENGTH = 60  # a UNIX socket's path has at most 107 characters, and Slurm makes long ones below the folder
PROGRAMS = ("slurmctld", "slurmd", "srun", "munged", "ip", "nsenter", "mount")
ACCOUNTING_PROGRAMS = ("slurmdbd", "mariadbd")
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# CLONE_NEW*: mount, host name, IPC, PID, network
NAMESPACES = 0x00020000 | 0x04000000 | 0x08000000 | 0x20000000 | 0x40000000
WAIT_S = 60


class ClusterError(Exception):
    """What is wrong, and what to do."""


def obstacle(*, accounting: bool = True) -> str | None:
    """Why this machine cannot hold a cluster, in one sentence; None if it can."""
    programs = PROGRAMS + (ACCOUNTING_PROGRAMS if accounting else ())
    missing = [program for program in programs if shutil.which(program, path=SYSTEM_PATH) is None]
    if missing:
        return f"{', '.join(missing)} not installed; tools/install_debian_packages.sh installs what the cluster needs"
    if os.geteuid() != 0:
        return "a cluster of virtual nodes needs root, which makes the namespaces; run it as root or in a container"
    flags = ["--mount", "--uts", "--ipc", "--pid", "--net", "--fork", "--mount-proc"]
    if subprocess.run(["unshare", *flags, "true"], capture_output=True, check=False).returncode != 0:
        return "this machine does not let root make namespaces; in a container allow it with --privileged"
    return None


# --- boxes ------------------------------------------------------------------------------------------------------------


def become_box(folder: Path, name: str, *, tethered: bool) -> None:
    """Fork a child into new namespaces, print its PID when it is ready, and leave it behind as the box's PID 1."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(NAMESPACES) != 0:
        raise ClusterError(f"namespaces of box {name} cannot be made: {os.strerror(ctypes.get_errno())}")
    ready, tell_ready = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setsid()
        prepare_box(folder, name)
        os.write(tell_ready, b"!")
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 1)
        os.dup2(null, 2)
        os.close(tell_ready)
        os.close(ready)
        run_box(tethered=tethered)
    os.close(tell_ready)
    if os.read(ready, 1) != b"!":
        raise ClusterError(f"box {name} did not start")
    print(pid)


def prepare_box(folder: Path, name: str) -> None:
    socket.sethostname(name)
    for command in (
        "mount --make-rprivate /",
        "mount -t proc proc /proc",
        "mount -t tmpfs -o size=1g,mode=1777 tmpfs /dev/shm",
        f"mount -t tmpfs -o size=256m,mode=1777 tmpfs {folder}/local",
        f"mount --bind {folder}/etc/hosts /etc/hosts",
        "ip link set lo up",
    ):
        subprocess.run(command.split(), check=True)
    Path(INSIDE).touch()


def run_box(*, tethered: bool) -> None:
    """Collect orphans for ever; if tethered, until the other end of standard input is closed. Then all here dies."""

    def collect(*_: object) -> None:
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass

    signal.signal(signal.SIGCHLD, collect)
    while not tethered or os.read(0, 4096):
        if not tethered:
            signal.pause()
    os._exit(0)


def start_time(pid: int) -> str | None:
    """When a process started, which tells it from a later one of the same number; None if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


class Cluster:
    """A cluster in a folder, running or not."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.settings: dict[str, int] = {}
        with contextlib.suppress(FileNotFoundError):
            self.settings = json.loads((self.folder / "cluster.json").read_text(encoding="utf-8"))

    # --- up ---

    def up(self, settings: dict[str, int], *, tethered: bool = False) -> None:
        """Start what does not run, and return when jobs can be submitted."""
        if self.alive("ctl"):
            if settings != self.settings:
                raise ClusterError(f"{self.folder} is up with {self.settings}, not {settings}; take it down first")
        else:
            self.prepare_folder(settings)
        try:
            if not self.alive("ctl"):
                self.start_controller(tethered=tethered)
            self.revive(tethered=tethered)
        except BaseException:
            self.stop()  # also after Ctrl-C: a half-started cluster would be nobody's; its logs stay
            raise

    def prepare_folder(self, settings: dict[str, int]) -> None:
        why = obstacle(accounting=bool(settings["accounting"]))
        if why:
            raise ClusterError(why)
        path = str(self.folder)
        if len(path) > MAX_FOLDER_LENGTH or not re.fullmatch(r"[A-Za-z0-9/._-]+", path):
            raise ClusterError(
                f"the folder {path!r} does not do: Slurm's sockets lie in it and their paths are short, so at most "
                f"{MAX_FOLDER_LENGTH} letters, digits and ./_- are possible; choose another with --folder"
            )
        if self.folder.exists() and not self.settings and any(self.folder.iterdir()):
            raise ClusterError(f"{path} holds other files; choose an empty or new folder with --folder")
        self.down()
        for name in ("bin", "boxes", "db", "dev", "etc", "local", "log", "munge", "run", "spool", "state"):
            (self.folder / name).mkdir(parents=True)
        (self.folder / "db").chmod(0o700)
        self.folder.chmod(0o755)
        self.settings = settings
        (self.folder / "cluster.json").write_text(json.dumps(settings), encoding="utf-8")
        write_configuration(self.folder, settings)
        write_commands(self.folder)

    def start_controller(self, *, tethered: bool) -> None:
        self.start_box("ctl", tethered=tethered)
        for network in (0, 1):
            bridge, address = f"br{network}", f"10.{77 + network}.0.1/24"
            self.ip(
                "ctl", f"link add {bridge} type bridge", f"addr add {address} dev {bridge}", f"link set {bridge} up"
            )
        munge = self.folder / "munge"
        (munge / "key").touch(0o600)
        (munge / "key").write_bytes(secrets.token_bytes(128))
        files = [f"--{file}-file={munge}/{file}" for file in ("key", "pid", "log", "seed")]
        self.inside("ctl", ["munged", "--force", f"--socket={munge}/socket", *files])
        if self.settings["accounting"]:
            self.start_database()
            self.inside("ctl", ["slurmdbd"])
            wait_until("slurmdbd", lambda: self.answers("sacctmgr", "-n", "list", "cluster") is not None)
            self.inside("ctl", ["sacctmgr", "-iQ", "add", "cluster", "lab"])
        self.inside("ctl", ["slurmctld"])
        wait_until("slurmctld", lambda: self.answers("scontrol", "ping") is not None)

    def start_database(self) -> None:
        """MariaDB for slurmdbd alone, reached through a socket in a folder closed to others, so without passwords."""
        db = self.folder / "db"
        options = f"--no-defaults --user=root --datadir={db}/data --tmpdir={db} --innodb-log-file-size=16M"
        options += " --innodb-doublewrite=0 --innodb-flush-log-at-trx-commit=0 --innodb-flush-method=nosync"
        options += " --innodb-buffer-pool-size=32M"
        (db / "data").mkdir()
        tables = "CREATE DATABASE mysql;\nUSE mysql;\n"  # one statement a line
        tables += Path("/usr/share/mysql/mysql_system_tables.sql").read_text(encoding="utf-8")
        self.inside("ctl", ["mariadbd", *options.split(), "--bootstrap"], stdin=tables)
        options += f" --innodb-lock-wait-timeout=900 --skip-grant-tables --skip-networking --socket={db}/socket"
        log = self.folder / "log/mariadbd.log"
        self.inside("ctl", ["sh", "-c", f"setsid mariadbd {options} </dev/null >>{log} 2>&1 &"])
        wait_until("MariaDB", (db / "socket").exists)

    def revive(self, *, tethered: bool = False) -> None:
        """Start the nodes that do not run, and return when Slurm would use all."""
        if not self.alive("ctl"):
            raise ClusterError(f"no cluster is up in {self.folder}; start one with `up`")
        for number in range(1, self.settings["nodes"] + 1):
            node = f"node{number}"
            if self.alive(node):
                continue
            self.start_box(node, tethered=tethered)
            for network, interface in enumerate(("eth0", "fast0")):
                self.connect(node, interface, network=network, address=f"10.{77 + network}.0.{10 + number}/24")
            (self.folder / "spool" / node).mkdir(exist_ok=True)
            self.inside(node, ["slurmd", "-N", node])
        wait_until("the nodes", self.all_nodes_ready)

    def connect(self, node: str, interface: str, *, network: int, address: str) -> None:
        """A cable from a node's interface to the controller's bridge of a network."""
        port = f"{node}-{network}"
        with contextlib.suppress(ClusterError):
            self.ip("ctl", f"link del {port}")  # of a node that was killed
        enter = ["nsenter", "--target", str(self.pid("ctl")), "--net", "--"]  # not its PID namespace: see `netns`
        add = ["ip", "link", "add", port, "type", "veth", "peer", "name", interface, "netns", str(self.pid(node))]
        subprocess.run([*enter, *add], check=True)
        self.ip("ctl", f"link set {port} master br{network} up")
        self.ip(node, f"addr add {address} dev {interface}", f"link set {interface} up")

    def all_nodes_ready(self) -> bool:
        states = (self.answers("sinfo", "-hN", "-p", "main", "-o", "%t") or "").split()
        return sum(state in ("idle", "alloc", "mix") for state in states) == self.settings["nodes"]

    # --- down ---

    def stop(self) -> None:
        """End every process of the cluster. Only processes are touched that surely are its boxes."""
        for path in list(self.folder.glob("boxes/*")):
            self.kill(path.name)

    def down(self) -> None:
        """End the cluster and remove its files; nothing if there is none."""
        if not self.settings:
            return
        self.stop()
        shutil.rmtree(self.folder)
        self.settings = {}

    # --- boxes ---

    def start_box(self, name: str, *, tethered: bool) -> None:
        command = [sys.executable, "-E", "-S", __file__, "--folder", str(self.folder), "box", name]
        command += ["--tether"] if tethered else []
        stdin = None if tethered else subprocess.DEVNULL
        started = subprocess.run(command, stdin=stdin, capture_output=True, text=True, check=False)
        if started.returncode != 0:
            raise ClusterError(f"box {name} did not start: {started.stderr.strip()}")
        pid = int(started.stdout)
        (self.folder / "boxes" / name).write_text(f"{pid} {start_time(pid)}", encoding="ascii")

    def _recorded(self, name: str) -> tuple[int, str]:
        try:
            pid, started = (self.folder / "boxes" / name).read_text(encoding="ascii").split()
        except (FileNotFoundError, ValueError):
            return 0, ""
        return int(pid), started

    def alive(self, name: str) -> bool:
        pid, started = self._recorded(name)
        return pid > 0 and start_time(pid) == started

    def pid(self, name: str) -> int:
        """The PID of a box's PID 1, as seen from outside."""
        if not self.alive(name):
            known = ", ".join(box.name for box in sorted(self.folder.glob("boxes/*"))) or "none"
            raise ClusterError(f"no node {name!r} is up in {self.folder}; boxes are: {known}")
        return self._recorded(name)[0]

    def kill(self, name: str) -> None:
        """End a box as a power failure does: the kernel ends all its processes with its PID 1."""
        if self.alive(name):
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._recorded(name)[0], signal.SIGKILL)
            wait_until(f"the end of {name}", lambda: not self.alive(name))
        (self.folder / "boxes" / name).unlink(missing_ok=True)

    def enter(self, name: str) -> list[str]:
        """The command line before a command that shall run in a box, in the caller's folder."""
        namespaces = ["--mount", "--uts", "--ipc", "--net", "--pid"]
        return ["nsenter", "--target", str(self.pid(name)), *namespaces, f"--wdns={Path.cwd()}", "--"]

    def inside(self, name: str, argv: Sequence[str], *, stdin: str = "") -> str:
        """Run a command in a box in a clean environment."""
        env = {"PATH": SYSTEM_PATH, "HOME": "/root", "LANG": "C.UTF-8", "SLURM_CONF": f"{self.folder}/etc/slurm.conf"}
        env["MYSQL_UNIX_PORT"] = f"{self.folder}/db/socket"  # where slurmdbd finds MariaDB
        done = subprocess.run(
            [*self.enter(name), *argv],
            env=env,
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            words = (done.stderr or done.stdout).strip()[-300:]
            raise ClusterError(f"{argv[0]} in {name} ended with {done.returncode} ({words}); see {self.folder}/log")
        return done.stdout

    def answers(self, *argv: str) -> str | None:
        """What a command says in the controller's box; None while it fails."""
        try:
            return self.inside("ctl", argv)
        except ClusterError:
            return None

    def ip(self, name: str, *commands: str) -> None:
        """Change network settings of a box."""
        self.inside(name, ["ip", "-batch", "-"], stdin="\n".join([*commands, ""]))


def wait_until(what: str, condition: Callable[[], object]) -> None:
    end_s = time.monotonic() + WAIT_S
    while not condition():
        if time.monotonic() > end_s:
            raise ClusterError(f"{what} did not come within {WAIT_S} s; see the folder's log/")
        time.sleep(0.05)


# --- command line -----------------------------------------------------------------------------------------------------


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=DEFAULT_FOLDER, help="all of the cluster (default: %(default)s)")
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="start a cluster, or what lacks of it")
    up.add_argument("--nodes", type=int, default=3, choices=range(1, 101), metavar="N", help="(default: %(default)s)")
    up.add_argument("--cpus", type=int, default=2, help="each node claims (default: %(default)s)")
    up.add_argument("--gpus", type=int, default=0, help="pretended ones in each node (default: %(default)s)")
    up.add_argument("--no-accounting", dest="accounting", action="store_false", help="quicker, but without sacct")
    revive = commands.add_parser("revive", help="start the nodes that do not run")
    box = commands.add_parser("box")
    for command in (up, revive, box):
        command.add_argument("--tether", action="store_true", help="the boxes end when standard input is closed")
    commands.add_parser("check", help="say whether this machine can hold a cluster")
    commands.add_parser("down", help="end it and remove its files")
    commands.add_parser("status", help="say which nodes run, and Slurm's view of them")
    on = commands.add_parser("on", help="run a command in a node")
    for command in (on, box, commands.add_parser("kill", help="power failure of a node")):
        command.add_argument("node")
    on.add_argument("argv", nargs=argparse.REMAINDER)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    cluster = Cluster(args.folder)
    if args.command == "box":
        become_box(cluster.folder, args.node, tethered=args.tether)
    elif args.command == "check":
        why = obstacle()
        if why:
            raise ClusterError(why)
    elif args.command == "up":
        settings = {"nodes": args.nodes, "cpus": args.cpus, "gpus": args.gpus, "accounting": int(args.accounting)}
        cluster.up(settings, tethered=args.tether)
        print(f"up: {args.nodes} nodes. Next: . {cluster.folder}/env.sh")
    elif args.command == "revive":
        cluster.revive(tethered=args.tether)
    elif args.command == "down":
        cluster.down()
    elif args.command == "kill":
        cluster.pid(args.node)
        cluster.kill(args.node)
    elif args.command == "on":
        command = cluster.enter(args.node) + (args.argv or ["bash"])
        os.execvpe(command[0], command, {**os.environ, "SLURM_CONF": f"{cluster.folder}/etc/slurm.conf"})
    elif not cluster.alive("ctl"):
        print(f"no cluster is up in {cluster.folder}")
    else:
        print(cluster.inside("ctl", ["sinfo", "--Node", "--long"]), end="")


if __name__ == "__main__":
    try:
        main()
    except ClusterError as error:
        sys.exit(f"slurm_cluster.py: {error}")
