"""From run folders to a submission: the figures of a run from its ledgers, and the submission of several runs.

The record types are in hpcai500.formats and can be imported from here. The verifier computes the same figures with the
same functions, so a figure can only be wrong together with the ledgers it comes from.
"""

from __future__ import annotations

import hashlib
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from hpcai500 import metrics
from hpcai500.edition import Edition, Size, load_edition
from hpcai500.energy.figures import energy_results
from hpcai500.equivalence.proof import PROOF_NAME
from hpcai500.errors import RecordError, UsageError
from hpcai500.events import (
    Checkpoint,
    ClockStart,
    ClockStop,
    DataOpen,
    EpochPart,
    Evaluation,
    EvaluationShard,
    ModelBuilt,
    Window,
)
from hpcai500.formats import (
    DataSource,
    FileDigest,
    RunConfig,
    RunResult,
    SignedTicket,
    Submission,
    SubmittedRun,
    Summary,
    System,
    TimeParts,
    json_schema,
    read_config,
    read_record,
    write_json,
)
from hpcai500.plain_files import open_plain
from hpcai500.record import RankLedger, RunRecord, Segment, list_ledgers, read_run
from hpcai500.register.ticket import TICKET_NAME

__all__ = [
    "DataSource",
    "RunConfig",
    "RunResult",
    "Submission",
    "System",
    "assemble_submission",
    "compute_result",
    "json_schema",
    "read_config",
    "read_record",
    "result_from_ledgers",
    "summarise",
    "write_json",
]

NS_PER_S = 10**9
Timed = Window | EvaluationShard | Evaluation | Checkpoint


def result_from_ledgers(run_folder: Path, edition: Edition) -> RunResult:
    """The figures of a run, computed from config.json and the ledgers only.

    Raises:
        RecordError: the folder cannot be read or is damaged.
        UnknownNameError: its workload or size is not in the edition.
    """
    config, _ = read_config(run_folder)
    size = edition.workload(config.workload).size(config.size)
    return compute_result(read_run(run_folder, config), size)


def compute_result(run: RunRecord, size: Size) -> RunResult:
    """The figures of a run; those it did not get far enough for are None, all of them if it never started."""
    ledgers = run.ledgers
    last = run.segments[-1] if run.segments else Segment(0, [])
    samples = skipped = 0
    for part in (part for ledger in ledgers for part in ledger.values(EpochPart)):
        samples, skipped = samples + part.samples, skipped + part.skipped
    wall_s = _wall_s(run, last)
    built = next((built for ledger in ledgers if (built := ledger.value(ModelBuilt))), None)
    flop_training = built.flop_training_per_sample if built else None
    evaluations = [entry for root in run.roots for entry in root.entries_of(Evaluation)]
    curve = [entry.value for entry in evaluations if isinstance(entry.value, Evaluation)]
    qualities = [evaluation.quality for evaluation in curve]
    epochs = [float(evaluation.epoch) for evaluation in curve]
    start_ns = earliest_start_ns(ledgers)
    times_s = [(entry.time_ns - start_ns) / NS_PER_S for entry in evaluations] if start_ns is not None else []
    quality = qualities[-1] if qualities else None
    target = size.target_quality
    flops = metrics.flops(samples * flop_training, wall_s) if flop_training and wall_s else None
    vflops = _vflops(flops, quality, target, size.vflops_exponent)
    old = _flops_2020(size, wall_s)
    return RunResult(
        run_id=run.config.run_id,
        seed=run.config.seed,
        status=run.status,
        segments=len(run.segments),
        num_ranks=run.config.num_ranks,
        epochs=_completed_epochs(last),
        samples=samples,
        skipped=skipped,
        wall_s=wall_s,
        train_s=_train_s(run) if wall_s else None,
        parts=time_parts(run, wall_s) if wall_s else None,
        samples_per_s=samples / wall_s if wall_s else None,
        flop_training_per_sample=flop_training,
        flop_total=samples * flop_training if flop_training else None,
        flops=flops,
        target_quality=target,
        achieved_quality=quality,
        vflops_exponent=size.vflops_exponent,
        vflops=vflops,
        flops_2020=old,
        vflops_2020=_vflops(old, quality, target, size.vflops_exponent),
        vflops_2020_n10=_vflops(old, quality, target, 10),
        time_to_quality_s=metrics.time_to_quality(times_s, qualities, target) if times_s else None,
        time_to_quality_interpolated_s=(
            metrics.interpolated_time_to_quality(times_s, qualities, target) if times_s else None
        ),
        epochs_to_quality=metrics.time_to_quality(epochs, qualities, target),
        epochs_to_quality_interpolated=metrics.interpolated_time_to_quality(epochs, qualities, target),
        loss_last=_last_loss(run),
        energy=energy_results(run, samples=samples, vflops=vflops) if wall_s else [],
    )


def _vflops(flops: float | None, quality: float | None, target: float, exponent: float) -> float | None:
    return None if flops is None or quality is None else metrics.vflops(flops, quality, target, exponent)


def _flops_2020(size: Size, wall_s: float | None) -> float | None:
    if size.flop_per_sample_2020 is None or wall_s is None:
        return None
    return metrics.flops_2020(size.flop_per_sample_2020, size.epochs, size.num_train_samples, wall_s)


def earliest_start_ns(ledgers: Sequence[RankLedger]) -> int | None:
    """When the clock of the first of some ranks started; None if none has."""
    starts = [start for ledger in ledgers if (start := ledger.time_ns(ClockStart)) is not None]
    return min(starts, default=None)


def _completed_epochs(last: Segment) -> int:
    """Epochs that all ranks of the last segment, and thereby those of the segments before, have behind them."""
    completed = []
    for ledger in last.ledgers:
        data, start = ledger.value(DataOpen), ledger.start
        ends = [
            part for part in ledger.values(EpochPart) if data and part.first_step + part.steps >= data.steps_per_epoch
        ]
        completed.append((start.epoch if start else 0) + len(ends))
    return min(completed, default=0)


def _wall_s(run: RunRecord, last: Segment) -> float | None:
    """The ranked clock: earliest start to latest stop; None unless every rank of the last segment stopped after it."""
    start_ns = earliest_start_ns(run.ledgers)
    stops = [ledger.time_ns(ClockStop) for ledger in last.ledgers]
    if start_ns is None or any(stop is None for stop in stops):
        return None
    wall_ns = max(stop for stop in stops if stop is not None) - start_ns
    return wall_ns / NS_PER_S if wall_ns > 0 else None


def _train_s(run: RunRecord) -> float:
    """Training steps that count, on the rank of each segment with most of them."""
    return sum(max((_sum_s(ledger, Window) for ledger in one.ledgers), default=0.0) for one in run.segments)


def _sum_s(ledger: RankLedger, kind: type[Timed]) -> float:
    """Sum of the durations of all events of a kind that count, in seconds; summed as integers, so exact."""
    return sum(value.duration_ns for value in ledger.values(kind)) / NS_PER_S


def _lost_s(ledger: RankLedger) -> float:
    """Time of the steps, evaluations and checkpoints that a later segment did again."""
    if ledger.until is None:
        return 0.0
    lost = (entry.value for entry in ledger.entries if not ledger.counts(entry))
    return sum(value.duration_ns for value in lost if isinstance(value, Timed)) / NS_PER_S


def _restart_s(run: RunRecord) -> float:
    """Sum over resumed segments: from the last line of those before to the clock's start."""
    total_ns, last_ns = 0, None
    for segment in run.segments:
        start_ns = earliest_start_ns(segment.ledgers)
        if start_ns is None:
            continue  # it ended before it trained, so the next one's restart takes in its time
        total_ns += max(0, start_ns - last_ns) if last_ns is not None else 0
        last_ns = max(ledger.entries[-1].time_ns for ledger in segment.ledgers)
    return total_ns / NS_PER_S


def time_parts(run: RunRecord, wall_s: float) -> TimeParts:
    """Mean over the ranks of each segment; what no part accounts for is other_s, so that all add up to wall_s."""
    names = ("data_wait_s", "forward_backward_s", "communication_s", "optimizer_s", "evaluation_s", "checkpoint_s")
    of_segments = [zip(*map(_rank_parts, one.ledgers), strict=True) for one in run.segments if one.ledgers]
    means = [[statistics.fmean(of_ranks) for of_ranks in of_parts] for of_parts in of_segments]
    sums = (sum(of_part) for of_part in zip(*means, strict=True))
    parts: dict[str, float] = dict(zip((*names, "lost_s"), sums, strict=True))
    parts["restart_s"] = _restart_s(run)
    return TimeParts(**parts, other_s=wall_s - sum(parts.values()))


def _rank_parts(ledger: RankLedger) -> tuple[float, ...]:
    """The parts of time_parts in its order, on one rank."""
    windows = ledger.values(Window)
    sums_ns = (
        sum(window.data_wait_ns for window in windows),
        sum(window.forward_backward_ns for window in windows),
        sum(window.communication_ns for window in windows),
        sum(window.optimizer_ns for window in windows),
    )
    evaluation_s = _sum_s(ledger, EvaluationShard) + _sum_s(ledger, Evaluation)
    return (*(sum_ns / NS_PER_S for sum_ns in sums_ns), evaluation_s, _sum_s(ledger, Checkpoint), _lost_s(ledger))


def _last_loss(run: RunRecord) -> float | None:
    for segment in reversed(run.segments):
        windows = [ledger.values(Window)[-1] for ledger in segment.ledgers if ledger.values(Window)]
        if windows:
            return statistics.fmean(window.loss_sum / window.num_steps for window in windows)
    return None


def summarise(results: Sequence[RunResult], size: Size) -> Summary:
    """The figures of a submission from all of its runs, in the order in which they were started.

    The score takes in the runs that did not complete: nobody could otherwise be kept from making many and losing the
    slow ones. It is the median over all windows of as many consecutive runs as the size demands, of each window's
    median, with 0 for a run that did not complete. All other figures are medians over the completed runs: of what did
    not end there is no rate, and none is ranked.

    Raises:
        RecordError: no run completed.
    """
    completed = [result for result in results if result.status == "completed"]
    scores = [result.vflops for result in completed if result.vflops is not None]
    if not completed or len(scores) < len(completed):
        raise RecordError("no figures can be given: no run completed with an evaluation; a submission needs one")
    of_all = [(result.vflops or 0.0) if result.status == "completed" else 0.0 for result in results]
    vflops = metrics.window_median(of_all, size.num_runs)
    low, high = metrics.bootstrap_interval(of_all, window=size.num_runs)
    noise = (high - low) / 2 / vflops if len(results) > 1 and vflops > 0 else None
    limit = size.noise_limit
    more = None if noise is None or limit is None else metrics.more_runs_needed(noise, limit, len(results))
    why_not = reasons_not_to_rank(size, noise, more)
    return Summary(
        num_runs=len(results),
        num_completed=len(completed),
        vflops=vflops,
        vflops_interval=(low, high),
        vflops_noise=noise,
        more_runs_needed=more,
        vflops_variation=metrics.variation(scores),
        flops=_median_of(completed, "flops") or 0.0,
        achieved_quality=_median_of(completed, "achieved_quality") or 0.0,
        target_quality=size.target_quality,
        vflops_exponent=size.vflops_exponent,
        wall_s=_median_of(completed, "wall_s") or 0.0,
        train_s=_median_of(completed, "train_s") or 0.0,
        epochs_to_quality_variation=_variation_of_epochs(completed),
        flops_2020=_median_of(completed, "flops_2020"),
        vflops_2020=_median_of(completed, "vflops_2020"),
        vflops_2020_n10=_median_of(completed, "vflops_2020_n10"),
        rankable=not why_not,
        why_not=why_not,
    )


def reasons_not_to_rank(size: Size, noise: float | None = None, more_runs: int | None = None) -> list[str]:
    """Why the figures of a submission are not ranked; what its files and machines add is the verifier's to say.

    Args:
        size: of the submission.
        noise: half-width of the score's interval, as a part of the score; None for one run, whose noise is not known.
        more_runs: how many more would bring it below the size's limit.
    """
    if not size.rankable:
        return [f"size {size.name} is never ranked; only official size is"]
    if size.noise_limit is None:
        return []
    limit = f"at most {100 * size.noise_limit:g} % is ranked"
    if noise is None:
        return [f"how noisy the score is cannot be told from one run or from runs without a score; {limit}"]
    if noise > size.noise_limit:
        number = f"{more_runs} more run{'' if more_runs == 1 else 's'}"
        return [f"too noisy: the score's 95 % interval is +-{100 * noise:.1f} % of it, and {limit}; {number} would do"]
    return []


def _median_of(results: Sequence[RunResult], field: str) -> float | None:
    values = [getattr(result, field) for result in results]
    return None if any(value is None for value in values) else metrics.median(values)


def _variation_of_epochs(results: Sequence[RunResult]) -> float | None:
    epochs = [result.epochs_to_quality_interpolated for result in results]
    reached = [value for value in epochs if value is not None]
    return metrics.variation(reached) if len(reached) == len(epochs) else None


def assemble_submission(
    run_folders: Sequence[Path], output: Path, edition: Edition | None = None, *, submitter: str | None = None
) -> Submission:
    """Write submission.json over all started runs, failed ones too.

    The ticket.json and the equivalence.json beside it belong to it, if they are there.

    A run that the ticket announced is listed also if it never started.

    Args:
        run_folders: the folders of the runs, beneath the folder of ``output``.
        output: where the submission goes; must not exist.
        edition: the rules; those of this package by default.
        submitter: who submits, if that shall be said.

    Raises:
        UsageError: no run, or a folder that is not beneath the output's.
        RecordError: a run folder or the ticket cannot be read, no run completed, or the output exists.
    """
    if not run_folders:
        raise UsageError("a submission needs at least one run folder, and none was given")
    runs = sorted(map(_read_submitted, run_folders), key=place_in_order)
    first = next((run for run in runs if run.status == "completed"), runs[0])
    config = first.config
    size = (edition or load_edition()).workload(config.workload).size(config.size)
    ticket, proof = output.with_name(TICKET_NAME), output.with_name(PROOF_NAME)
    submission = Submission(
        edition=config.edition,
        rules_sha256=config.rules_sha256,
        workload=config.workload,
        level=config.level,
        size=config.size,
        submitter=submitter,
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        data_source=config.data.source,
        dataset_sha256=config.data.dataset_sha256,
        system=read_record(first.folder / "system.json", System),
        runs=[_submitted_run(run, output.parent) for run in runs],
        summary=summarise([compute_result(run, size) for run in runs], size),
        ticket=read_record(ticket, SignedTicket) if ticket.exists() else None,
        equivalence=file_digest(proof) if proof.exists() else None,
    )
    write_json(output, submission)
    return submission


def _read_submitted(folder: Path) -> RunRecord:
    config, _ = read_config(folder)
    never_started = config.announced is not None and not list_ledgers(folder)
    return RunRecord(folder, config) if never_started else read_run(folder, config)


def place_in_order(run: RunRecord) -> tuple[int, bool, int]:
    """Sorts runs as they were announced, or else as rank 0 wrote its first line; where it wrote none, last."""
    if run.config.announced is not None:
        return run.config.announced.number, False, 0
    start_ns = next((root.entries[0].time_ns for root in run.roots if root.entries), None)
    return 0, start_ns is None, start_ns or 0


def _submitted_run(run: RunRecord, base: Path) -> SubmittedRun:
    try:
        folder = run.folder.resolve().relative_to(base.resolve())
    except ValueError:
        message = f"run folder {str(run.folder)!r} is not beneath {str(base)!r}; write the submission above its runs"
        raise UsageError(message) from None
    return SubmittedRun(
        folder=folder.as_posix(),
        run_id=run.config.run_id,
        seed=run.config.seed,
        status=run.status,
        files={path.relative_to(run.folder).as_posix(): file_digest(path) for path in _submitted_files(run.folder)},
    )


def _submitted_files(folder: Path) -> list[Path]:
    """All files of a run but its checkpoints: those are large, and the ledger carries their digests."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return [path for path in files if path.relative_to(folder).parts[0] != "checkpoints"]


def file_digest(path: Path) -> FileDigest:
    """Length and sha256 of a file, in constant memory.

    Raises:
        RecordError: it cannot be read.
    """
    try:
        with open_plain(path) as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            return FileDigest(sha256=digest, size_bytes=file.tell())
    except OSError as error:
        raise RecordError(f"cannot read {str(path)!r} ({error.strerror})") from None
