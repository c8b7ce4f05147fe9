"""The files of a submission as typed records: config.json, result.json, system.json and submission.json.

They are decoded strictly: an unknown, missing or blank field is an error. JSON Schema is derived from these types
(``json_schema``), so there is no second description to keep in step.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from hpcai500.errors import RecordError
from hpcai500.events import (
    Count,
    Fraction,
    LedgerEnergySource,
    NotNegative,
    Positive,
    Sha256,
    Text,
    UnixTime,
)
from hpcai500.plain_files import open_plain

SUBMISSION_NAME = "submission.json"
SELFCHECK_NAME = "selfcheck.json"  # what `hpcai500 selfcheck --json` found, in a run's folder; may be missing
Status = Literal["completed", "failed", "interrupted"]
EnergySource = LedgerEnergySource | Literal["meter"]
EnergyLabel = Literal["measured", "informative"]  # hpcai500.energy.label says what earns which
PublicKey = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]  # of Ed25519, in hexadecimal
SignatureHex = Annotated[str, Meta(pattern="^[0-9a-f]{128}$")]
PositiveNumber = Annotated[float, Meta(gt=0)]
MAX_RECORD_BYTES = 32 << 20  # a submission of 5 runs on 10,000 ranks takes 10 MB; objects take up to 16 times as much
MAX_RUNS = 1000
SMALL_RECORD_BYTES = 1 << 20  # a configuration or a result, however many ranks there are
Form = TypeVar("Form")


class DataSource(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The data set of a run: where it lay, what it is and its content's digest."""

    path: Text
    dataset_sha256: Sha256
    source: Text


class AnnouncedRun(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which run of a ticket (hpcai500/register/ticket.py) this is, counted from 1."""

    ticket_sha256: Sha256
    number: Positive


class RunConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """config.json: everything that was decided before the run started.

    ``announced`` is null for a run that no ticket announced; else ``seed`` follows from the ticket.
    """

    format: Literal[1] = 1
    run_id: Text
    workload: Text
    level: Text
    size: Text
    edition: Text
    rules_sha256: Sha256
    seed: Count
    num_ranks: Positive
    num_nodes: Positive
    device: Text
    data: DataSource
    settings: dict[str, Any]
    announced: AnnouncedRun | None = None


class TimeParts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the ranked clock's seconds went, mean over ranks (a rank that did not do a thing counts with 0 s).

    Attributes:
        lost_s: work that a later segment did again, since it was done after the last checkpoint.
        restart_s: from the last line of a segment to the clock's start in the next: the queue and the start-up.
    """

    data_wait_s: NotNegative
    forward_backward_s: NotNegative
    communication_s: NotNegative
    optimizer_s: NotNegative
    evaluation_s: NotNegative
    checkpoint_s: NotNegative
    lost_s: NotNegative
    restart_s: NotNegative
    other_s: float


class EnergyResult(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one source tells of a run's energy inside the ranked clock.

    Attributes:
        source: "meter" is the file of a meter (meter.csv in the run's folder); the others stand in the ledgers.
        plugin: what read for it; null where it reads itself.
        label: null where there is no figure.
        energy_j: of all nodes; null unless all of them tell all of it.
        power_w: mean over the ranked clock, without the time between a stop and going on.
        joules_per_sample: of training samples; evaluations and checkpoints are within the energy.
        vflops_per_w: the run's VFLOPS over power_w.
        num_nodes: that tell all of it.
        num_devices: of those nodes, GPUs or packages of processors; nodes or meters for the other sources.
        node_j: least, median and most energy of a node; null where nodes are not told apart.
        num_readings: the fewest of a node.
        longest_gap_s: between two readings of a node.
        accuracy: the worst that was stated; null where one was not.
        lacks: which node lacks what, in words; empty if there is a figure.
    """

    source: EnergySource
    plugin: Text | None
    label: EnergyLabel | None
    energy_j: NotNegative | None
    power_w: NotNegative | None
    joules_per_sample: NotNegative | None
    vflops_per_w: NotNegative | None
    num_nodes: Count
    num_devices: Count
    node_j: tuple[NotNegative, NotNegative, NotNegative] | None
    num_readings: Count
    longest_gap_s: NotNegative
    accuracy: Fraction | None
    lacks: list[Text]


class RunResult(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """result.json: the figures of a run, all computed from its ledgers; null where the run did not get that far.

    Only those of energy are also from meter.csv, if that is there.

    Attributes:
        segments: 1, and one more for each time the run was resumed; 0 of a run that was announced and never started.
        num_ranks: as configured; a resumed run may have gone on with others, which its ledgers tell.
        epochs: epochs that all ranks completed.
        samples: training samples processed, all ranks and epochs together.
        wall_s: the ranked clock, from the earliest clock_start of a rank to the latest clock_stop.
        train_s: the second clock, never ranked: training steps alone, on the rank with most of it.
        parts: where wall_s went.
        flop_total: samples x flop_training_per_sample.
        flops: flop_total / wall_s.
        achieved_quality: that of the last evaluation.
        vflops: flops x (achieved / target quality) ^ vflops_exponent.
        flops_2020: official size only, 23e9 x 90 x 1,281,167 / wall_s.
        vflops_2020: flops_2020 with the quality to the power of the rules' exponent.
        vflops_2020_n10: the same to the power of 10, with which the published ranking reproduces.
        time_to_quality_s: clock time of the first evaluation at or above the target.
        time_to_quality_interpolated_s: where the line through the evaluations meets the target.
        loss_last: mean training loss of the last window, mean over ranks.
        energy: what each source tells that any node has; null in records of earlier versions.
    """

    format: Literal[1] = 1
    run_id: Text
    seed: Count
    status: Status
    segments: Count
    num_ranks: Positive
    epochs: Count
    samples: Count
    skipped: Count
    wall_s: PositiveNumber | None
    train_s: NotNegative | None
    parts: TimeParts | None
    samples_per_s: NotNegative | None
    flop_training_per_sample: Positive | None
    flop_total: Count | None
    flops: NotNegative | None
    target_quality: PositiveNumber
    achieved_quality: Fraction | None
    vflops_exponent: NotNegative
    vflops: NotNegative | None
    flops_2020: NotNegative | None
    vflops_2020: NotNegative | None
    vflops_2020_n10: NotNegative | None
    time_to_quality_s: NotNegative | None
    time_to_quality_interpolated_s: NotNegative | None
    epochs_to_quality: PositiveNumber | None
    epochs_to_quality_interpolated: PositiveNumber | None
    loss_last: NotNegative | None
    energy: list[EnergyResult] | None = None


class Accelerator(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One accelerator of a node."""

    name: Text
    memory_bytes: Positive


class NetworkInterface(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One network interface of a node; the speed is null where the system does not tell."""

    name: Text
    state: Text
    speed_bits_per_s: Positive | None


class Node(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One node of the machine."""

    host: Text
    processor: Text
    num_sockets: Positive
    num_cores: Positive
    memory_bytes: Positive
    instruction_sets: list[Text]
    accelerators: list[Accelerator]
    network: list[NetworkInterface]


class System(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """system.json: the machine and its software, collected by the run itself; no field may be blank."""

    nodes: Annotated[list[Node], Meta(min_length=1)]
    os: Text
    kernel: Text
    python: Text
    libraries: Annotated[dict[Text, Text], Meta(min_length=1)]
    environment: dict[Text, str]


class Ticket(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an issuer promises to have seen before the first run: who announced how many runs of what, and when.

    Attributes:
        issuer: name of the register; "self" where the submitter issued it to himself.
        issuer_key: Ed25519 public key of the issuer, in hexadecimal.
        issued_ns: Unix time of the issuer's clock.
        challenge: random; the seeds of all announced runs follow from it.
        num_runs: that will be started, all of which must be in the submission.
    """

    format: Literal[1] = 1
    issuer: Text
    issuer_key: PublicKey
    issued_ns: UnixTime
    challenge: Sha256
    num_runs: Annotated[int, Meta(ge=1, le=MAX_RUNS)]
    workload: Text
    level: Text
    size: Text
    submitter: Text


class SignedTicket(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A ticket with the issuer's Ed25519 signature over its canonical bytes (hpcai500/register/ticket.py)."""

    ticket: Ticket
    signature: SignatureHex


class FileDigest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a file must be."""

    sha256: Sha256
    size_bytes: Count


class SubmittedRun(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One started run; paths of files are relative to its folder, the folder to the submission's file."""

    folder: Text
    run_id: Text
    seed: Count
    status: Status
    files: dict[Text, FileDigest]


class Summary(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The figures of a submission: medians over its completed runs, but for the score, which is of all started runs.

    Attributes:
        vflops: the score: the median over all windows of consecutive runs of each window's median, with 0 for a run
            that did not complete (hpcai500.submission.summarise).
        vflops_interval: 95 % bootstrap interval of the score (hpcai500.metrics.bootstrap_interval).
        vflops_noise: half the width of that interval, as a part of the score; null for one run.
        more_runs_needed: how many more runs would bring vflops_noise below the size's limit; null where it has none, or
            the noise is not known.
        vflops_variation: sample standard deviation / mean over runs; null for one run.
        epochs_to_quality_variation: the same of the interpolated epochs to quality; null unless all runs reached it.
        why_not: why it is not rankable; empty if it is.
    """

    num_runs: Positive
    num_completed: Positive
    vflops: NotNegative
    vflops_interval: tuple[NotNegative, NotNegative]
    vflops_variation: NotNegative | None
    flops: NotNegative
    achieved_quality: Fraction
    target_quality: PositiveNumber
    vflops_exponent: NotNegative
    wall_s: PositiveNumber
    train_s: NotNegative
    epochs_to_quality_variation: NotNegative | None
    flops_2020: NotNegative | None
    vflops_2020: NotNegative | None
    vflops_2020_n10: NotNegative | None
    rankable: bool
    why_not: list[Text]
    vflops_noise: NotNegative | None = None
    more_runs_needed: Count | None = None


class Submission(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """submission.json: all started runs of one machine, its description and the score.

    ``ticket`` announced the runs; null where nobody did. ``equivalence`` is the digest of equivalence.json beside it,
    the proof that another implementation is the reference's (hpcai500/equivalence); null where there is none.
    """

    format: Literal[1] = 1
    edition: Text
    rules_sha256: Sha256
    workload: Text
    level: Text
    size: Text
    submitter: Text | None = None
    created: Annotated[str, Meta(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")]
    data_source: Text
    dataset_sha256: Sha256
    system: System
    runs: Annotated[list[SubmittedRun], Meta(min_length=1, max_length=MAX_RUNS)]
    summary: Summary
    ticket: SignedTicket | None = None
    equivalence: FileDigest | None = None


def json_schema(form: type[Any] = Submission) -> dict[str, Any]:
    """JSON Schema (2020-12) of a record: Submission, RunResult, RunConfig or System."""
    return msgspec.json.schema(form)


def read_bytes(path: Path, form: type[Any] = Submission) -> bytes:
    """The bytes of a record's file.

    Args:
        path: the file.
        form: of the record; a configuration is never as large as a submission.

    Raises:
        RecordError: it cannot be read, or is too large to be one.
    """
    limit = SMALL_RECORD_BYTES if form in (RunConfig, RunResult) else MAX_RECORD_BYTES
    try:
        with open_plain(path) as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise RecordError(f"cannot read {str(path)!r} ({error.strerror})") from None
    if len(content) > limit:
        raise RecordError(f"{str(path)!r} is larger than {limit} bytes and no record of hpcai500")
    return content


def decode(content: bytes, form: type[Form]) -> Form | list[str]:
    """The record in ``content``, or all that is wrong with its form, each with the place in the file.

    Raises:
        RecordError: the content is not JSON at all.
    """
    try:
        try:
            return msgspec.json.decode(content, type=form)
        except msgspec.ValidationError as error:
            msgspec.json.decode(content, type=msgspec.Raw)  # what comes after it may be no JSON at all
            return _list_schema_errors(content, form) or [str(error)]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RecordError(f"it is not JSON: {error}") from None


def _list_schema_errors(content: bytes, form: type[Any]) -> list[str]:
    """All schema errors, where msgspec stops at the first; jsonschema is slow to import, so only here."""
    if len(content) > SMALL_RECORD_BYTES:  # as Python objects it could take a gigabyte
        return []
    import jsonschema  # type: ignore[import-untyped]

    validator = jsonschema.Draft202012Validator(json_schema(form))
    try:
        errors = sorted(validator.iter_errors(json.loads(content)), key=lambda error: error.json_path)
    except (ValueError, RecursionError):  # deeper or odder than the library takes; what msgspec said must do
        return []
    return [f"{error.json_path}: {error.message[:300]}" for error in errors]


def read_record(path: Path, form: type[Form]) -> Form:
    """Read a record strictly.

    Raises:
        RecordError: it cannot be read or is not of that form; lists all that is wrong with it.
    """
    content = read_bytes(path, form)
    try:
        record = decode(content, form)
    except RecordError as error:
        raise RecordError(f"cannot read {str(path)!r}") from error
    if isinstance(record, list):
        raise RecordError(f"{str(path)!r} is not a record of hpcai500: {'; '.join(record)}")
    return record


def read_config(run_folder: Path) -> tuple[RunConfig, str]:
    """The configuration of a run and the sha256 of its file.

    Raises:
        RecordError: it cannot be read or is not of that form.
    """
    path = run_folder / "config.json"
    return read_record(path, RunConfig), hashlib.sha256(read_bytes(path, RunConfig)).hexdigest()


def write_json(path: Path, record: object) -> str:
    """Write a record, never over an existing file; return the sha256 of the file.

    Raises:
        RecordError: the file exists or cannot be written.
    """
    content = msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n"
    try:
        with path.open("xb") as file:
            file.write(content)
    except FileExistsError:
        raise RecordError(f"{str(path)!r} exists and is never overwritten; choose another place") from None
    except OSError as error:
        raise RecordError(f"cannot write {str(path)!r} ({error.strerror})") from None
    return hashlib.sha256(content).hexdigest()
