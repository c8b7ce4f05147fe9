"""How long many ranks take to import and to find each other: from a shared file system, and from an archive of it.

    python benchmarks/start_up_at_scale.py [--ranks 64] [--repeats 3] [--archive FILE] [--folder /var/tmp]

All ranks run on this machine, oversubscribed, and do what hpcai500.train does until all have met: import, open the
communicator, wait for all. The software is that of an archive by ``hpcai500 software``, three times: "local", unpacked
to the local disk; "shared", the same files through sshfs on this machine; "staged", the archive read once through
sshfs, unpacked, and ranks started from the copy, all of which counts. sshfs stands for a shared file system: each
question about a file goes through one server, and no answer is kept in the kernel, as if each rank were on a node of
its own; the content of files is kept, so what many nodes read from one storage is not in the figures. Without sshfs,
which needs /dev/fuse and root, only the other two are measured.

The number of questions is counted with strace, for one rank: it is what a metadata server is asked by each rank whose
node has not asked before.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from report import figure, machine, spread

from hpcai500.launch.local import run_ranks
from hpcai500.launch.software import ENVIRONMENT
from hpcai500.software import pack

SFTP_SERVERS = ("/usr/lib/openssh/sftp-server", "/usr/libexec/openssh/sftp-server", "/usr/lib/ssh/sftp-server")
CALLS = "openat,open,stat,lstat,newfstatat,statx,access,faccessat2,readlink,getdents64"
# What is told, and the parts of StartUpTimer that hold it here; ranks wait for the last one to import in the second.
PARTS = {"import": "import", "import of others, mpi": "rendezvous", "torchdist": "wait"}
RANK = """
import json, sys, time
from hpcai500.start_up import StartUpTimer
timer = StartUpTimer()
import hpcai500.train
from hpcai500.deferred_dynamo import defer_dynamo
defer_dynamo()
import h5py, hpcai500.checkpoint, hpcai500.engine, hpcai500.workloads.resnet50, hpcai500.pipelines.image_pipeline
timer.lap("import")
if len(sys.argv) == 1:
    sys.exit()
from hpcai500.comm.communicator import end_process, open_communicator
with open_communicator("mpi", timeout_s=300) as comm:
    comm.barrier()
    timer.lap("rendezvous")
    with open_communicator("torchdist", timeout_s=300) as other:
        other.barrier()
        timer.lap("wait")
        events = comm.gather(timer.event())
        if comm.rank == 0:
            with open(sys.argv[1], "w") as file:
                json.dump(events, file)
        other.barrier()
    comm.barrier()
end_process()
"""


def start(python: Path, num_ranks: int) -> dict[str, float]:
    """Seconds of PARTS, of the rank that was slowest at it; the whole from the launcher's start to the ranks' end."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        script, result = Path(folder, "rank.py"), Path(folder, "events.json")
        script.write_text(RANK, encoding="utf-8")
        # As between nodes: rank 0 serves torch's store over TCP.
        env = ENVIRONMENT | {"HPCAI500_RENDEZVOUS": f"tcp://127.0.0.1:{port}", "OMP_NUM_THREADS": "1"}
        begin_s = time.perf_counter()
        if run_ranks("mpi", num_ranks, [str(python), str(script), str(result)], env) != 0:
            sys.exit(f"the ranks of {python} failed")
        seconds = time.perf_counter() - begin_s
        events = json.loads(result.read_text(encoding="utf-8"))
    parts = {what: max(event[f"{part}_ns"] for event in events) / 1e9 for what, part in PARTS.items()}
    return {"whole": seconds, **parts}


def unpack(archive: Path, folder: Path) -> Path:
    """What each node does with the archive; returns the interpreter."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    subprocess.run(["tar", "-xf", archive, "-C", folder], check=True)
    return folder / "bin/python3"


@contextmanager
def mounted(source: Path, target: Path) -> Iterator[bool]:
    """Show a folder through sshfs over its own server, without keeping names and attributes; tells whether it could."""
    server = next((path for path in SFTP_SERVERS if Path(path).exists()), None)
    if server is None or shutil.which("sshfs") is None or not os.access("/dev/fuse", os.W_OK):
        yield False
        return
    target.mkdir()
    ends = socket.socketpair()
    serving = subprocess.Popen([server], stdin=ends[0], stdout=ends[0])
    kept = ["dir_cache=no", "entry_timeout=0", "attr_timeout=0", "negative_timeout=0", "auto_cache", "passive"]
    client = subprocess.Popen(
        ["sshfs", "-f", "-o", ",".join(kept), f"localhost:{source}", target], stdin=ends[1], stdout=ends[1]
    )
    try:
        while not target.is_mount():
            if client.poll() is not None:
                sys.exit("sshfs could not mount")
            time.sleep(0.1)
        yield True
    finally:
        subprocess.run(["umount", target], check=False)
        client.wait(10)
        serving.kill()
        serving.wait()
        for end in ends:
            end.close()


def questions(python: Path, beneath: Path) -> int:
    """How often one rank asks about files beneath a folder while it imports."""
    with tempfile.TemporaryDirectory() as folder:
        script, trace = Path(folder, "rank.py"), Path(folder, "trace")
        script.write_text(RANK, encoding="utf-8")
        command = ["strace", "-f", "-qq", "-e", f"trace={CALLS}", "-o", trace, python, script]
        subprocess.run(command, check=True, env={**os.environ, **ENVIRONMENT}, cwd=folder)
        return sum(f'"{beneath}/' in line for line in trace.read_text(errors="replace").splitlines())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--archive", type=Path, help="of this environment (default: made for this, and removed)")
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp"), help="needs 4 times the archive's size")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        shared, copy = folder / "shared", folder / "copy"
        local = unpack(args.archive or made_archive(folder), shared)
        archive = shared / "archive"
        shutil.copyfile(args.archive or folder / "made.tar", archive)
        print(f"{machine()}\n{args.ranks} ranks, archive of {archive.stat().st_size / 1e9:.2f} GB", flush=True)
        with mounted(shared, folder / "mount") as is_mounted:
            source = folder / "mount" if is_mounted else shared
            measure(args, local, source, copy)


def made_archive(folder: Path) -> Path:
    pack(folder / "made.tar")
    return folder / "made.tar"


def measure(args: argparse.Namespace, local: Path, source: Path, copy: Path) -> None:
    ways = {"local": local} | ({"shared": source / "bin/python3"} if source != local.parents[1] else {})
    times: dict[str, list[dict[str, float]]] = {}
    for _ in range(args.repeats):
        for way, python in ways.items():
            times.setdefault(way, []).append(start(python, args.ranks))
            print(f"{way}: {times[way][-1]}", flush=True)
        begin_s = time.perf_counter()
        shutil.copyfile(source / "archive", copy.with_suffix(".tar"))
        python = unpack(copy.with_suffix(".tar"), copy)
        copy.with_suffix(".tar").unlink()
        staging_s = time.perf_counter() - begin_s
        parts = start(python, args.ranks)
        parts["whole"] += staging_s
        times.setdefault("staged", []).append({"staging": staging_s, **parts})
        print(f"staged: {times['staged'][-1]}", flush=True)
    for way, rows in times.items():
        figure(f"{args.ranks} ranks, {way}: until all have met and ended", [row["whole"] for row in rows], "s")
        print(f"{way:<8}" + ", ".join(f"{what} {spread([row[what] for row in rows], 's')}" for what in rows[0]))
    if shutil.which("strace"):
        asked = {
            "where it is installed": questions(local, local.parents[1]),
            "staged": questions(copy / "bin/python3", local.parents[1]),
        }
        for what, number in asked.items():
            print(f"questions of a rank to the shared file system, {what}: {number:,}")


if __name__ == "__main__":
    main()
