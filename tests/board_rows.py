"""Made-up but plausible submissions of a board, for tests of its pages."""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from hpcai500.leaderboard.database import Database
from hpcai500.leaderboard.storage import Storage
from hpcai500.leaderboard.tables import Audit, Challenge, Organisation, Submission

ORGANISATIONS = {
    "northern-lights": "Northern Lights Supercomputing Centre",
    "alpine": "Alpine Computing Institute",
    "delta-lab": "Delta National Laboratory",
    "harbour": "Harbour University",
}
# Name of a system, its organisation, accelerator, devices of a node, vflops and watts of a device
SYSTEMS = (
    ("Aurora Borealis", "northern-lights", "NVIDIA H100 80GB HBM3", 4, 71e12, 640.0),
    ("Matterhorn", "alpine", "NVIDIA GH200 480GB", 4, 77e12, 690.0),
    ("Delta-2", "delta-lab", "AMD Instinct MI300X", 8, 64e12, 720.0),
    ("Delta-1", "delta-lab", "NVIDIA A100-SXM4-80GB", 8, 33e12, 390.0),
    ("Lighthouse", "harbour", "NVIDIA H200", 8, 74e12, 660.0),
    ("Breakwater", "harbour", "Tesla V100-SXM2-32GB", 4, 9.4e12, 290.0),
)


EDITION, OLD_EDITION = "0.10", "0.9"
"""Of the rules; as text the newer one would come first."""


def size_class_of(num_devices: int) -> str:
    bounds = ((1, "1"), (8, "2-8"), (64, "9-64"), (512, "65-512"))
    return next((name for most, name in bounds if num_devices <= most), "513+")


def make_run(source: random.Random, vflops: float, quality: float, wall_s: float) -> dict[str, Any]:
    figures = {"wall_s": wall_s, "train_s": wall_s * 0.91, "achieved_quality": quality, "flops": vflops * 0.99}
    return {
        "seed": source.randrange(10**6),
        "status": "completed",
        "segments": 1,
        "epochs": 90,
        "vflops": vflops,
    } | figures


def make_submission(number: int, **changes: Any) -> Submission:
    """One submission, the same for the same number."""
    source = random.Random(number)
    name, organisation, accelerator, per_node, speed, watts = SYSTEMS[number % len(SYSTEMS)]
    num_nodes = source.choice((1, 1, 2, 4, 8, 16, 32, 64, 128))
    num_devices = num_nodes * per_node
    vflops = num_devices * speed * (0.98 - 0.03 * num_nodes**0.3) * source.uniform(0.9, 1.05)
    quality = 0.763 + source.uniform(-0.001, 0.004)
    spread = source.uniform(0.004, 0.03)
    wall_s = 90 * 1_281_167 * 24.3e9 / vflops * (quality / 0.763) ** 5
    has_energy = number % 3 != 0
    month = number * 11 // 20 % 23  # of 2025 and 2026
    published = f"{2025 + month // 12}-{1 + month % 12:02d}-{1 + number * 7 % 28:02d}T{number % 24:02d}:15:00Z"
    libraries = {"torch": f"2.{9 + number % 3}.0", "nccl": "2.28.3", "dali": "2.0.0"}
    columns: dict[str, Any] = {
        "sha256": hashlib.sha256(f"submission {number}".encode()).hexdigest(),
        "archive_sha256": hashlib.sha256(f"archive {number}".encode()).hexdigest(),
        "size_bytes": 3_400_000 + number,
        "organisation_slug": organisation,
        "system_name": name,
        "system_slug": name.lower().replace(" ", "-"),
        "state": "published",
        "publish": True,
        "uploaded_at": published,
        "verified_at": published,
        "published_at": published,
        "attempts": 1,
        "workload": "resnet50",
        "level": "free",
        "size": "official",
        "edition": EDITION,
        "precision": ("bf16", "bf16", "fp16", "fp32")[number % 4],
        "size_class": size_class_of(num_devices),
        "rankable": True,
        "registered": number % 2 == 0,
        "registration": "registered by Example register" if number % 2 == 0 else "unregistered",
        "submitter": f"{ORGANISATIONS[organisation]}, benchmarking team",
        "created": published,
        "accelerator": accelerator,
        "num_accelerators": num_devices,
        "num_devices": num_devices,
        "num_nodes": num_nodes,
        "num_ranks": num_devices,
        "communicator": "horovod",
        "num_runs": 5,
        "num_completed": 5,
        "vflops": vflops,
        "vflops_low": vflops * (1 - spread),
        "vflops_high": vflops * (1 + spread),
        "vflops_per_device": vflops / num_devices,
        "vflops_per_w": vflops / (num_devices * watts) if has_energy else None,
        "flops": vflops * (0.763 / quality) ** 5,
        "achieved_quality": quality,
        "target_quality": 0.763,
        "wall_s": wall_s,
        "train_s": wall_s * 0.91,
        "energy_j": num_devices * watts * wall_s if has_energy else None,
        "energy_label": ("informative" if number % 4 else "measured") if has_energy else None,
        "facts": {
            "energy_of": "power meters" if has_energy else None,
            "os": "Rocky Linux 9.5",
            "kernel": "5.14.0",
            "python": "3.12.7",
            "libraries": libraries,
            "processor": "AMD EPYC 9454 48-Core Processor",
            "num_cores": 96 * num_nodes,
            "memory_bytes": num_nodes * 2**40,
            "data_source": "imagenet",
            "settings": {"batch_size_per_rank": 256 >> number % 3, "label_smoothing": 0.1, "compile": number % 2 == 0},
            "deviations": [] if number % 5 else ["learning-rate policy: warm-up of 5 epochs"],
            "notes": [],
            "warnings": [],
            "runs": [make_run(source, vflops * (1 + spread * part), quality, wall_s) for part in (-1, -0.5, 0, 0.5, 1)],
        },
    }
    return Submission(**(columns | changes))


def add_organisations(session: Session) -> None:
    for slug, name in ORGANISATIONS.items():
        session.add(Organisation(slug=slug, name=name, created_at="2025-01-01T00:00:00Z"))
    session.flush()


def add_plausible_board(session: Session, count: int = 40) -> list[str]:
    """A board with ``count`` submissions, one withdrawn and one challenged among them; returns their digests.

    Eight more are of an older edition, and one of them is better than all others.
    """
    add_organisations(session)
    submissions = [make_submission(number) for number in range(count)]
    submissions[3].state = "withdrawn"
    submissions[7].state = "challenged"
    submissions += [make_submission(number + 1000, size="mini", rankable=False) for number in range(5)]
    submissions += [make_submission(number + 2000, level="hardware") for number in range(6)]
    submissions += [make_submission(number + 3000, workload="fasterrcnn", target_quality=0.35) for number in range(4)]
    submissions += [make_submission(number + 4000, edition=OLD_EDITION) for number in range(7)]
    submissions += [make_submission(4007, edition=OLD_EDITION, vflops=1e17, vflops_low=0.98e17, vflops_high=1.02e17)]
    submissions += [make_submission(5000, state="verified"), make_submission(5001, rankable=False)]
    session.add_all(submissions)
    session.flush()
    doubt = "The energy of three nodes is missing from the ledgers."
    challenge = Challenge(id="c" * 32, claim=doubt, evidence="See ledger/node-00012.jsonl, events 40 to 44.")
    challenge.organisation_slug, challenge.submission_sha256 = "alpine", submissions[7].sha256
    challenge.opened_at, challenge.state = "2026-11-20T09:00:00Z", "open"
    session.add(challenge)
    for submission in submissions:
        for action, at in (("uploaded", submission.uploaded_at), ("verified", submission.verified_at)):
            session.add(audit(submission, action, at))
        if submission.state != "verified":
            session.add(audit(submission, "published", submission.published_at))
    session.add(audit(submissions[3], "withdrawn", "2026-11-21T10:00:00Z", "A faulty clock on node 3."))
    session.flush()
    return [submission.sha256 for submission in submissions]


def audit(submission: Submission, action: str, at: str | None, detail: str = "") -> Audit:
    actor = "server" if action == "verified" else submission.organisation_slug
    return Audit(at=at or "", actor=actor, action=action, subject=submission.sha256, detail=detail)


def write_files(folder: Path, sha256: str) -> None:
    """What the storage keeps of a submission, in place of real ones."""
    place = folder / "submissions" / sha256
    place.mkdir(parents=True, exist_ok=True)
    (place / "archive.tar.gz").write_bytes(b"archive " + sha256.encode())
    (place / "verdict.json").write_text('{"valid": true}\n', encoding="utf-8")
    report = "<!DOCTYPE html>\n<html lang='en'><title>Report</title><h1>Report</h1></html>\n"
    (place / "report.html").write_text(report, encoding="utf-8")


@contextlib.contextmanager
def opened_board(folder: Path) -> Iterator[tuple[Database, Storage]]:
    """The plausible board, closed at the end."""
    database, storage = make_board(folder)
    try:
        yield database, storage
    finally:
        database.close()


def make_board(folder: Path, *submissions: Submission, url: str = "") -> tuple[Database, Storage]:
    """A board with these submissions, or the plausible one if none are given."""
    database, storage = Database(url or f"sqlite:///{folder / 'board.db'}"), Storage(folder)
    with database.writing() as session:
        if submissions:
            add_organisations(session)
            session.add_all(submissions)
            digests = [submission.sha256 for submission in submissions]
        else:
            digests = add_plausible_board(session)
    for sha256 in digests:
        write_files(folder, sha256)
    return database, storage
