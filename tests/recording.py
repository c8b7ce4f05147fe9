"""A consistent small submission, written by the real ledger writer under a clock of its own.

``record_submission`` makes one; tests/forging.py breaks it.
"""

from __future__ import annotations

import functools
import hashlib
import math
import random
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from msgspec.structs import replace

from hpcai500.code_digest import code_sha256
from hpcai500.edition import Edition, Size, load_edition
from hpcai500.flop_forms import flop_form
from hpcai500.formats import SignedTicket
from hpcai500.learning_rate import learning_rate
from hpcai500.ledger import ChainHead, LedgerWriter, create_ledger
from hpcai500.qualities import RECALLS, quality_named
from hpcai500.record import Segment, ledger_path, ledgers_digest, list_ledgers, read_segments
from hpcai500.register.ticket import announced_run, run_seed
from hpcai500.resume import last_heads, read_ends
from hpcai500.sample_order import EpochDigests
from hpcai500.submission import (
    DataSource,
    RunConfig,
    assemble_submission,
    read_config,
    result_from_ledgers,
    write_json,
)
from hpcai500.version import __version__

NS_PER_S = 10**9
FIRST_START_S = 1_790_000_000  # Unix time; runs follow each other every 10,000 s


def make_edition() -> Edition:
    """The package's rules, with a size smoke whose figures these tests rely on, whatever the rules say later.

    The official size has a hundredth of its samples, so that writing and verifying one takes no seconds.
    """
    edition = load_edition()
    workload = edition.workload("resnet50")
    counts = {"epochs": 2, "num_runs": 2, "num_train_samples": 130, "num_validation_samples": 50, "num_classes": 10}
    rest = {"target_quality": 0.3, "evaluation_period_epochs": 1, "rankable": False}
    sizes = workload.sizes | {
        "smoke": replace(workload.size("smoke"), **counts, **rest),
        "official": replace(workload.size("official"), num_train_samples=12_811, num_validation_samples=500),
    }
    defaults = {"batch_size_per_rank": 16, "report_steps": 2, "train_image_size": 32}
    settings = workload.settings | {
        key: replace(workload.setting(key), default_by_size=workload.setting(key).default_by_size | {"smoke": value})
        for key, value in defaults.items()
    }
    resnet50 = replace(workload, sizes=sizes, settings=settings)
    return replace(edition, workloads={**edition.workloads, "resnet50": resnet50})


EDITION = make_edition()
DATASET = hashlib.sha256(b"data set").hexdigest()
SYSTEM = {
    "nodes": [
        {
            "host": "node1",
            "processor": "A processor",
            "num_sockets": 1,
            "num_cores": 2,
            "memory_bytes": 1 << 34,
            "instruction_sets": ["avx2"],
            "accelerators": [],
            "network": [{"name": "eth0", "state": "up", "speed_bits_per_s": None}],
        }
    ],
    "os": "An operating system",
    "kernel": "6.1",
    "python": "3.11.7",
    "libraries": {"torch": "2.13.0"},
    "environment": {"OMP_NUM_THREADS": "1"},
}


START_UP = {"allocation_ns": 0, "launch_ns": 10**9, "import_ns": 10**9, "rendezvous_ns": 10**8}
START_UP |= {"data_open_ns": 10**9, "model_ns": 10**9, "wait_ns": 9 * 10**8}


class Clock:
    """Stands in for the module ``time`` in hpcai500.ledger: passes only when told to."""

    def __init__(self, now_ns: int) -> None:
        self.now_ns = now_ns

    def time_ns(self) -> int:
        return self.now_ns

    def monotonic_ns(self) -> int:
        return self.now_ns - 1_000_000 * NS_PER_S

    def advance(self, duration_s: float) -> None:
        self.now_ns += round(duration_s * NS_PER_S)


def record_submission(
    folder: Path,
    *,
    size: str = "smoke",
    level: str = "free",
    num_ranks: int = 2,
    num_runs: int | None = None,
    num_failed: int = 0,
    settings: dict[str, object] | None = None,
    resumed_on: int = 0,
    workload: str = "resnet50",
    ticket: SignedTicket | None = None,
) -> Path:
    """Write run folders and submission.json as a correct run would; the last ``num_failed`` runs end half-way.

    With ``resumed_on`` the first run was killed in its last epoch and went on on so many ranks. With ``ticket`` the
    runs are those that it announced.
    """
    rules = EDITION.workload(workload)
    num_runs = (num_runs if num_runs is not None else rules.size(size).num_runs) + num_failed
    folders = [folder / f"run-{number}" for number in range(1, num_runs + 1)]
    for number, run_folder in enumerate(folders):
        config = RunConfig(
            run_id=f"run-id-{number}",
            workload=workload,
            level=level,
            size=size,
            edition=EDITION.number,
            rules_sha256=EDITION.sha256,
            seed=run_seed(ticket.ticket.challenge, number + 1) if ticket else 100 + number,
            num_ranks=num_ranks,
            num_nodes=1,
            device="cuda" if size == "official" else "cpu",
            data=DataSource(path="data.h5", dataset_sha256=DATASET, source=rules.size(size).data_sources[0]),
            settings=rules.resolve(size, level, settings or {}),
            announced=announced_run(ticket.ticket, number + 1) if ticket else None,
        )
        fails = number >= num_runs - num_failed
        record_run(run_folder, config, number=number, fails=fails, resumed_on=0 if number else resumed_on)
    if ticket is not None:
        write_json(folder / "ticket.json", ticket)
    created = SimpleNamespace(
        strftime=time.strftime, gmtime=lambda: time.gmtime(FIRST_START_S + 10_000 * (num_runs + 1))
    )
    with mock.patch("hpcai500.submission.time", created):
        assemble_submission(folders, folder / "submission.json", EDITION, submitter="somebody")
    return folder / "submission.json"


def system_of(config: RunConfig) -> dict[str, Any]:
    """What the run ran on; the official size takes an accelerator for each rank."""
    node: dict[str, Any] = SYSTEM["nodes"][0]  # type: ignore[assignment, index]
    card = {"name": "NVIDIA H100 80GB HBM3", "memory_bytes": 80 << 30}
    return SYSTEM | {"nodes": [node | {"accelerators": [card] * config.num_ranks * (config.device == "cuda")}]}


def record_run(folder: Path, config: RunConfig, *, number: int, fails: bool, resumed_on: int = 0) -> None:
    """Write one run folder; with ``resumed_on`` the run was killed in its last epoch and went on on so many ranks."""
    (folder / "ledger").mkdir(parents=True)
    write_json(folder / "config.json", config)
    write_json(folder / "system.json", system_of(config))
    (folder / "steps.h5").write_bytes(b"step times")
    start_ns = (FIRST_START_S + 10_000 * number) * NS_PER_S
    last_epoch = EDITION.workload(config.workload).size(config.size).epochs - 1
    record_segment(
        folder,
        config,
        0,
        config.num_ranks,
        start_ns,
        number=number,
        cut="killed" if resumed_on else "failed" if fails else "",
    )
    if resumed_on:
        write_json(folder / "system-001.json", system_of(config))
        begins = start_ns + 1000 * NS_PER_S
        record_segment(folder, config, 1, resumed_on, begins, number=number, first_epoch=last_epoch)
    if not fails:
        write_json(folder / "result.json", result_from_ledgers(folder, EDITION))


def record_segment(
    folder: Path,
    config: RunConfig,
    segment: int,
    num_ranks: int,
    start_ns: int,
    *,
    number: int,
    cut: str = "",
    first_epoch: int = 0,
) -> None:
    """Write the ledgers of all ranks of a segment; one that is "killed" or "failed" ends in the last epoch."""
    digest, heads = segments_digest(read_segments(folder, place="")), heads_before(folder, segment)
    for rank in range(num_ranks):
        clock = Clock(start_ns + rank)
        with mock.patch("hpcai500.ledger.time", clock), mock.patch("os.fsync"):  # no power fails here
            path = ledger_path(folder, segment, node=0)
            if rank == 0:
                create_ledger(path)
            ledger = LedgerWriter(path, rank, heads.get(rank))
            open_rank(ledger, clock, folder, config, segment=segment, rank=rank, num_ranks=num_ranks)
            if segment:
                ledger.write("resume", checkpoint_of(config, first_epoch) | {"ledgers_sha256": digest})
            adapted = replace(config, num_ranks=num_ranks, settings=adapt(config, num_ranks))
            record_rank(ledger, clock, adapted, rank, number=number, cut=cut, first_epoch=first_epoch)


def new_ledger(path: Path, rank: int = 0) -> LedgerWriter:
    """A new file to which one rank writes."""
    create_ledger(path)
    return LedgerWriter(path, rank)


def heads_before(folder: Path, segment: int) -> dict[int, ChainHead]:
    """By rank the end of its chain in the segments before."""
    return last_heads(read_ends({number: nodes for number, nodes in list_ledgers(folder).items() if number < segment}))


def segments_digest(segments: list[Segment]) -> str:
    return ledgers_digest(
        (ledger.segment, ledger.rank, ledger.head_sha256) for segment in segments for ledger in segment.ledgers
    )


def adapt(config: RunConfig, num_ranks: int) -> dict[str, Any]:
    """Settings with which another number of ranks keeps the global batch."""
    batch = int(config.settings["batch_size_per_rank"]) * config.num_ranks // num_ranks
    return {**config.settings, "batch_size_per_rank": batch}


def open_rank(
    ledger: LedgerWriter, clock: Clock, folder: Path, config: RunConfig, *, segment: int, rank: int, num_ranks: int
) -> None:
    opened = {"format": 1, "run_id": config.run_id, "rank": rank, "num_ranks": num_ranks, "local_rank": rank}
    opened |= {
        "segment": segment,
        "job": "",
        "host": "node1",
        "pid": 40 + rank,
        "cores": "0-1",
        "package_version": __version__,
        "code_sha256": code_sha256(),
    }
    opened |= {"config_sha256": read_config(folder)[1]}
    opened |= {"ticket_sha256": config.announced.ticket_sha256} if config.announced else {}
    ledger.write("run_open", opened | {"wall_ns": clock.time_ns(), "monotonic_ns": clock.monotonic_ns()})


def record_rank(
    ledger: LedgerWriter, clock: Clock, config: RunConfig, rank: int, *, number: int, cut: str, first_epoch: int
) -> None:
    """Write what a rank does: a step takes 1 s, an evaluation 2 s, a checkpoint 0.5 s."""
    size = EDITION.workload(config.workload).size(config.size)
    batch = int(config.settings["batch_size_per_rank"])
    steps = size.num_train_samples // (batch * config.num_ranks)
    form = flop_form(config.workload, config.settings, size)
    clock.advance(3)
    data = {"dataset_sha256": DATASET, "source": config.data.source, "num_train_samples": size.num_train_samples}
    data |= {"num_validation_samples": size.num_validation_samples, "num_classes": size.num_classes}
    dropped = size.num_train_samples % (batch * config.num_ranks)
    ledger.write("data_open", data | {"steps_per_epoch": steps, "dropped_per_epoch": dropped})
    model = {"num_parameters": size.num_parameters, "num_classes": size.num_classes}
    model |= {"flop_forward_per_sample": form.forward, "flop_training_per_sample": form.training}
    model |= {"input_shape": list(form.input_shape)}
    ledger.write("model_built", model)
    ledger.write("start_up", START_UP)
    ledger.write("clock_start", {"wall_ns": clock.time_ns()})
    for epoch in range(first_epoch, size.epochs):
        record_epoch(ledger, clock, epoch, steps=steps, batch=batch, rank=rank, config=config)
        if cut and epoch == size.epochs - 1:
            ledger.close("failed" if cut == "failed" else None, "the loss is nan")
            return
        record_evaluation(ledger, clock, epoch + 1, rank=rank, config=config, number=number)
        if epoch + 1 < size.epochs:
            clock.advance(0.51)
            ledger.write("checkpoint", checkpoint_of(config, epoch + 1) | {"duration_ns": NS_PER_S // 2})
    clock.advance(0.01)
    ledger.write("clock_stop", {"wall_ns": clock.time_ns()})
    ledger.close("completed", "all epochs done")


def record_epoch(
    ledger: LedgerWriter, clock: Clock, epoch: int, *, steps: int, batch: int, rank: int, config: RunConfig
) -> None:
    report_steps = int(config.settings["report_steps"])
    size = EDITION.workload(config.workload).size(config.size)
    digests = epoch_digests(config.seed, epoch, size.num_train_samples, batch * config.num_ranks)

    def rate(step: int) -> float:
        return learning_rate(
            config.workload,
            config.settings,
            epoch * steps + step,
            global_batch=batch * config.num_ranks,
            steps_per_epoch=steps,
            num_epochs=size.epochs,
        )

    for first in range(0, steps, report_steps):
        num_steps = min(report_steps, steps - first)
        clock.advance(num_steps + 0.01)
        window = {"epoch": epoch, "first_step": first, "num_steps": num_steps, "samples": num_steps * batch}
        losses = [training_loss(config, (epoch + (first + step) / steps) / size.epochs) for step in range(num_steps)]
        noise = random.Random(f"{config.seed} {rank} {epoch} {first}").gauss(1, 0.01)
        window |= {"loss_sum": sum(losses) * noise, "learning_rate": rate(first + num_steps - 1)}
        parts = {"data_wait": 0.1, "forward_backward": 0.7, "communication": 0.1, "optimizer": 0.1, "duration": 1}
        window |= {f"{name}_ns": round(part * num_steps * NS_PER_S) for name, part in parts.items()}
        ledger.write("window", window)
    digest = digests.of_part(rank, config.num_ranks, first_step=0, steps=steps)
    end = {"epoch": epoch, "first_step": 0, "steps": steps, "samples": steps * batch, "skipped": 0}
    end |= {"sample_digest": str(digest), "learning_rate_first": rate(0), "learning_rate_last": rate(steps - 1)}
    ledger.write("epoch_part", end | ({"epoch_digest": str(digests.whole)} if rank == 0 else {}))


@functools.cache
def epoch_digests(seed: int, epoch: int, num_samples: int, global_batch: int) -> EpochDigests:
    return EpochDigests(seed, epoch, num_samples=num_samples, global_batch=global_batch)


def training_loss(config: RunConfig, progress: float) -> float:
    """Mean loss of a step after such a part of the run: from that of a guess down to twice the least there is.

    Each seed has its own path there, a hundredth up or down.
    """
    num_classes = EDITION.workload(config.workload).size(config.size).num_classes
    if config.workload == "fasterrcnn":
        least, guess = 0.2, 2.0
    else:
        wrong = config.settings["label_smoothing"] / num_classes
        right = 1 - (num_classes - 1) * wrong
        least = -right * math.log(right) - (num_classes - 1) * wrong * math.log(wrong or 1.0)
        guess = math.log(num_classes)
    own = 1 + 0.01 * math.sin(config.seed * (1 + 20 * progress))
    return own * (min(2 * least, guess / 2) + (guess - min(2 * least, guess / 2)) * (1 - progress) ** 2)


def checkpoint_of(config: RunConfig, epoch: int) -> dict[str, Any]:
    """Which checkpoint was made after so many epochs; its content is the run's own."""
    sha256 = hashlib.sha256(f"{config.run_id} {epoch}".encode()).hexdigest()
    return {"epoch": epoch, "step": 0, "path": f"epoch-{epoch:04d}.pt", "sha256": sha256}


def record_evaluation(
    ledger: LedgerWriter, clock: Clock, epoch: int, *, rank: int, config: RunConfig, number: int
) -> None:
    size = EDITION.workload(config.workload).size(config.size)
    clock.advance(2.01)
    shards = [len(range(other, size.num_validation_samples, config.num_ranks)) for other in range(config.num_ranks)]
    is_detector = config.workload == "fasterrcnn"
    counts = [(detector_counts if is_detector else top_1_counts)(shard, epoch, size, number) for shard in shards]
    pairs = list(zip(shards, counts, strict=True))
    shard = {"epoch": epoch, "samples": shards[rank], "counts": counts[rank]}
    losses = [None if is_detector else evaluation_loss(part, one["correct"][0], size, config) for part, one in pairs]
    shard |= {"loss_sum": losses[rank]}
    ledger.write("evaluation_shard", shard | {"duration_ns": 2 * NS_PER_S})
    clock.advance(0.11)  # the other ranks wait for rank 0
    if rank == 0:
        whole = {key: list(map(sum, zip(*(part[key] for part in counts), strict=True))) for key in counts[0]}
        curves = detector_curves(whole) if is_detector else []
        quality = quality_named(EDITION.workload(config.workload).quality).compute(sum(shards), whole, curves)
        evaluation = {"epoch": epoch, "samples": sum(shards), "counts": whole, "curves": curves, "quality": quality}
        loss = None if is_detector else sum(loss for loss in losses if loss is not None) / sum(shards)
        evaluation |= {"loss": loss, "duration_ns": NS_PER_S // 10}
        ledger.write("evaluation", evaluation)


def top_1_counts(samples: int, epoch: int, size: Size, number: int) -> dict[str, list[int]]:
    if size.name == "smoke":
        return {"correct": [samples * (epoch + 1) // (size.epochs + 2) + number % 2]}
    best = samples * 1.005 * size.target_quality * (epoch + 1) / (size.epochs + 2)
    return {"correct": [int(best) + random.Random(f"{number} {epoch}").randrange(5)]}


def evaluation_loss(samples: int, correct: int, size: Size, config: RunConfig) -> float:
    """Sum over samples: little where the class is right, and where it is not, more than the ln 2 that it must be."""
    wobble = 1 + 0.001 * math.sin(config.seed + correct)
    return wobble * (0.1 * correct + (0.1 + 0.6 * math.log(size.num_classes)) * (samples - correct))


def detector_counts(samples: int, epoch: int, size: Size, number: int) -> dict[str, list[int]]:
    """Two boxes of each class a sample, of which some are hit; the last class does not occur."""
    boxes = [2 * samples] * (size.num_classes - 1) + [0]
    hits = [box * epoch // (size.epochs + 1) for box in boxes]
    return {"boxes": boxes, "detections": [box + 1 for box in boxes], "hits": hits}


def detector_curves(counts: dict[str, list[int]]) -> list[list[float]]:
    """Precisions that fall from 1 to 0.5 where the last box that was hit ends them."""
    curves = []
    for boxes, hits in zip(counts["boxes"], counts["hits"], strict=True):
        reached = sum(recall <= hits / boxes for recall in RECALLS) if hits else 0
        curves.append([1 - 0.5 * place / reached if place < reached else 0.0 for place in range(len(RECALLS))])
    return curves
