"""Measure how long the verifier takes: one small submission, one of 2,048 ranks, ten thousand ledgers.

    python benchmarks/verification.py [--folder DIR] [--quick]

The submissions are written by the recorder of the verifier's tests, so they are what correct runs would write, with
true digests of samples and true learning rates. Times are of fresh processes, memory is the sum over all of them.
"""

from __future__ import annotations

import argparse
import json
import math
import pickle
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import msgspec
from msgspec.structs import replace

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import recording
from forging import chain_lines
from report import figure, spread

from hpcai500.edition import Edition
from hpcai500.formats import RunConfig
from hpcai500.ledger import ChainHead, LedgerWriter, create_ledger
from hpcai500.record import ledger_path
from hpcai500.submission import DataSource, assemble_submission, result_from_ledgers, write_json

RANKS_PER_NODE = 8
GPU = {"name": "NVIDIA H100 80GB HBM3", "memory_bytes": 80 << 30}


plain_counts = recording.top_1_counts


def counts_of_run(samples: int, epoch: int, size: Any, number: int) -> dict[str, list[int]]:
    """Counts that differ between all runs, where those of the tests differ between two."""
    correct = plain_counts(samples, epoch, size, 0)["correct"][0]
    return {"correct": [min(samples, correct + (7 * epoch + 3) * number % 11)]}


def edition_with(**changes: Any) -> Edition:
    """The rules of the tests, with a size smoke of other counts."""
    edition = recording.make_edition()
    workload = edition.workload("resnet50")
    size = replace(workload.size("smoke"), **changes)
    changed = replace(workload, sizes=workload.sizes | {"smoke": size})
    return replace(edition, workloads={**edition.workloads, "resnet50": changed})


def write_large(folder: Path, *, num_runs: int, num_ranks: int, batch_size: int = 16) -> None:
    """Write a submission on nodes of eight GPUs, with ImageNet's counts."""
    rules = recording.EDITION.workload("resnet50")
    for number in range(num_runs):
        config = RunConfig(
            run_id=f"run-{number}",
            workload="resnet50",
            level="free",
            size="smoke",
            edition=recording.EDITION.number,
            rules_sha256=recording.EDITION.sha256,
            seed=100 + number,
            num_ranks=num_ranks,
            num_nodes=num_ranks // RANKS_PER_NODE,
            device="cuda",
            data=DataSource(path="data.h5", dataset_sha256=recording.DATASET, source="generated"),
            settings=rules.resolve("smoke", "free", {"report_steps": 50, "batch_size_per_rank": batch_size}),
        )
        write_run(folder / f"run-{number}", config, number)
    folders = [folder / f"run-{number}" for number in range(num_runs)]
    assemble_submission(folders, folder / "submission.json", recording.EDITION)


def write_run(folder: Path, config: RunConfig, number: int) -> None:
    """Write a run folder: ranks 0 and 1 by the recorder, the others after the pattern of rank 1."""
    (folder / "ledger").mkdir(parents=True)
    write_json(folder / "config.json", config)
    node = recording.SYSTEM["nodes"][0] | {"accelerators": [GPU] * RANKS_PER_NODE}
    nodes = [node | {"host": f"node{index}"} for index in range(config.num_nodes)]
    write_json(folder / "system.json", {**recording.SYSTEM, "nodes": nodes})
    start_ns = (1_790_000_000 + 10_000 * number) * recording.NS_PER_S
    for rank in (0, 1):
        clock = recording.Clock(start_ns + rank)
        with mock.patch("hpcai500.ledger.time", clock):
            if rank == 0:
                create_ledger(ledger_path(folder, 0, node=0))
            ledger = LedgerWriter(ledger_path(folder, 0, node=0), rank)
            recording.open_rank(ledger, clock, folder, config, segment=0, rank=rank, num_ranks=config.num_ranks)
            recording.record_rank(ledger, clock, config, rank, number=number, cut="", first_epoch=0)
    lines = [json.loads(line) for line in ledger_path(folder, 0, node=0).read_bytes().splitlines()]
    pattern = [line for line in lines if line["rank"] == 1]
    for line in lines:
        if line["event"] == "run_open":
            line["value"] |= {"host": "node0", "local_rank": line["rank"]}
    chain_lines(ledger_path(folder, 0, node=0), lines)
    for rank in range(2, config.num_ranks):
        write_rank(folder, config, rank, pattern, number)
    write_json(folder / "result.json", result_from_ledgers(folder, recording.EDITION))


def write_rank(folder: Path, config: RunConfig, rank: int, pattern: list[dict[str, Any]], number: int) -> None:
    """Write the lines of a rank: what rank 1 did, with its own samples, losses and shard."""
    size = recording.EDITION.workload("resnet50").size("smoke")
    batch = int(config.settings["batch_size_per_rank"])
    shard = len(range(rank, size.num_validation_samples, config.num_ranks))
    head, content = ChainHead(), []
    for line in pattern:
        event, value = line["event"], dict(line["value"])
        if event == "run_open":
            value |= {"rank": rank, "local_rank": rank % RANKS_PER_NODE, "host": f"node{rank // RANKS_PER_NODE}"}
            value |= {"pid": 40 + rank}
        elif event == "window":
            value["loss_sum"] *= 1 + 0.01 * math.sin(rank + value["epoch"])
        elif event == "epoch_part":
            digests = recording.epoch_digests(
                config.seed, value["epoch"], size.num_train_samples, batch * config.num_ranks
            )
            of_part = digests.of_part(rank, config.num_ranks, first_step=0, steps=value["steps"])
            value["sample_digest"] = str(of_part)
        elif event == "evaluation_shard":
            counts = recording.top_1_counts(shard, value["epoch"], size, number)
            value |= {"samples": shard, "counts": counts}
            value["loss_sum"] = recording.evaluation_loss(shard, counts["correct"][0], size, config)
        raw = msgspec.json.encode(line | {"rank": rank, "value": value, "seq": head.seq, "prev": head.sha256})
        head.advance(raw)
        content.append(raw)
    with ledger_path(folder, 0, node=rank // RANKS_PER_NODE).open("ab") as file:
        file.write(b"\n".join(content) + b"\n")


VERIFY = """
import pickle, resource, sys, time
from pathlib import Path
from unittest import mock
from hpcai500 import verify
edition = pickle.loads(Path(sys.argv[1]).read_bytes())
paths = [Path(word) for word in sys.stdin.read().split()]
begin = time.perf_counter()
with mock.patch("hpcai500.verify.load_edition", lambda: edition):
    judged = list(verify.judge_all(paths, jobs=2))
seconds = time.perf_counter() - begin
child = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
own = int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
print(seconds, (own + 2 * child) / 1e3, sum(one.exit_code == 0 for one in judged))
for one in judged[:1]:
    print(one.error or [str(finding) for finding in one.verdict.findings][:3])
"""


def verify_afresh(folder: Path, paths: list[Path]) -> tuple[float, float, int, str]:
    """Verify in a new process, which uses two.

    Returns: seconds; MB of the process and twice its largest child; the number of valid ones; the first one's findings.
    """
    (folder / "edition.pickle").write_bytes(pickle.dumps(recording.EDITION))
    words = [sys.executable, "-c", VERIFY, str(folder / "edition.pickle")]
    done = subprocess.run(words, input=" ".join(map(str, paths)), capture_output=True, text=True, check=True)
    figures, findings = done.stdout.splitlines()
    seconds, peak_mb, num_valid = figures.split()
    return float(seconds), float(peak_mb), int(num_valid), findings


def start_small_s(path: Path) -> float:
    """Seconds to verify a small submission as a user would, start of Python included."""
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-m", "hpcai500.verify", "--quiet", str(path)], check=False)
    return time.perf_counter() - begin


IMAGENET = {"num_train_samples": 1281167, "num_validation_samples": 50000, "num_classes": 1000}
LARGE = {"epochs": 26, **IMAGENET}
HUGE = {"epochs": 90, **IMAGENET}
MANY = {"epochs": 69, "num_train_samples": 1152, "num_validation_samples": 600, "num_runs": 5, "num_classes": 10}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--folder", type=Path, help="where the submissions are written (default: a temporary folder)")
    parser.add_argument("--quick", action="store_true", help="a tenth of the ranks and ledgers")
    args = parser.parse_args()
    folder = args.folder or Path(tempfile.mkdtemp(prefix="hpcai500-"))
    num_ranks, num_copies = (200, 200) if args.quick else (2048, 2000)
    mock.patch.object(recording, "top_1_counts", counts_of_run).start()
    mock.patch("os.fsync").start()  # tens of thousands of files that nobody will miss
    small = folder / "small" / "submission.json"
    if not small.exists():
        recording.record_submission(small.parent)
    times = [start_small_s(small) for _ in range(7)]
    print(f"one small submission, start of Python included: {spread(times, 's')}")
    figure("one small submission, start of Python included", times, "s")

    recording.EDITION = edition_with(**LARGE, num_runs=5)
    if not (folder / "large" / "submission.json").exists():
        write_large(folder / "large", num_runs=5, num_ranks=num_ranks)
    seconds, peak_mb, _, findings = verify_afresh(folder, [folder / "large" / "submission.json"])
    print(f"5 runs x {num_ranks} ranks x 1,014 steps: {seconds:.1f} s, {peak_mb:.0f} MB, findings: {findings}")
    figure(f"5 runs x {num_ranks} ranks x 1,014 steps", [seconds], "s")
    figure(f"5 runs x {num_ranks} ranks x 1,014 steps: peak memory", [peak_mb], "MB")

    recording.EDITION = edition_with(**HUGE, num_runs=1)
    huge = folder / "huge" / "submission.json"
    if not huge.exists():
        write_large(huge.parent, num_runs=1, num_ranks=8 * num_ranks, batch_size=4)
    num_bytes = sum(path.stat().st_size for path in huge.parent.rglob("*.jsonl"))
    seconds, peak_mb, _, findings = verify_afresh(folder, [huge])
    what = f"1 run x {8 * num_ranks:,} ranks x 90 epochs ({num_bytes / 1e9:.2f} GB of ledgers)"
    print(f"{what}: {seconds:.1f} s, {peak_mb:.0f} MB, findings: {findings}")
    figure(f"1 run x {8 * num_ranks:,} ranks x 90 epochs", [seconds], "s")
    figure(f"1 run x {8 * num_ranks:,} ranks x 90 epochs: peak memory", [peak_mb], "MB")

    recording.EDITION = edition_with(**MANY)
    origin = folder / "many" / "0"
    if not (origin / "submission.json").exists():
        recording.record_submission(origin, num_ranks=1, settings={"report_steps": 100})
    num_events = len((origin / "run-1" / "ledger" / "node-00000.jsonl").read_bytes().splitlines())
    for copy in range(1, num_copies):
        if not (folder / "many" / str(copy)).exists():
            shutil.copytree(origin, folder / "many" / str(copy), copy_function=shutil.copyfile)
    paths = [folder / "many" / str(copy) / "submission.json" for copy in range(num_copies)]
    seconds, peak_mb, num_valid, findings = verify_afresh(folder, paths)
    print(
        f"{5 * num_copies:,} ledgers of {num_events} events ({num_copies:,} submissions of 5 runs): {seconds:.1f} s, "
        f"{peak_mb:.0f} MB, {num_valid:,} valid; findings of the first: {findings}"
    )
    figure(f"{5 * num_copies:,} ledgers, {num_copies:,} submissions", [seconds], "s")
    if args.folder is None:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
