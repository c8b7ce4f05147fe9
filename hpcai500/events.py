"""The events of a ledger and what each carries: the one place that both the writer and the readers use.

A run writes them in the order in which they stand here. All ranks write all of them, except ``evaluation``, which only
rank 0 writes, and ``staging`` and ``energy``, which the first rank of a node writes. A run that was stopped and resumed
has several *segments*; each opens with ``run_open``, all but the first go on with ``resume``, and each starts the clock
anew (the earliest start counts). Durations are monotonic time; ``wall_ns`` is the wall clock (Unix time), so that the
two can be compared. Epochs count from 0; the ``epoch`` of an evaluation is the number of epochs completed.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import msgspec
from msgspec import Meta

MAX_INTEGER = 2**63 - 1
Count = Annotated[int, Meta(ge=0, le=MAX_INTEGER)]
Positive = Annotated[int, Meta(ge=1, le=MAX_INTEGER)]
Duration = Count  # in ns
UnixTime = Count  # in ns
NotNegative = Annotated[float, Meta(ge=0)]
Fraction = Annotated[float, Meta(ge=0, le=1)]
Counts = Annotated[dict[str, Annotated[list[Count], Meta(max_length=1000)]], Meta(max_length=16)]
Curves = Annotated[list[Annotated[list[Fraction], Meta(max_length=1000)]], Meta(max_length=1000)]
Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
Digest64 = Annotated[str, Meta(pattern="^[0-9]{1,20}$")]  # decimal text: JSON readers lose integers beyond 2**53
LedgerEnergySource = Literal["nvml", "rapl", "slurm", "ipmi"]
Text = Annotated[str, Meta(min_length=1, max_length=4096, pattern=r"\S")]


class Event(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, gc=False):
    """Base of all events; ``EVENT`` is the word that stands in the ledger."""

    EVENT: ClassVar[str]


class RunOpen(Event, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The rank is up, and bound to ``cores`` of its host (as "0-3,8").

    ``config_sha256`` is that of the bytes of config.json, ``job`` the scheduler's id or empty. ``code_sha256`` is the
    digest of the workload's code that runs (hpcai500/code_digest.py), ``ticket_sha256`` that of the ticket which
    announced the run (hpcai500/register/ticket.py); null where there is none.
    """

    EVENT: ClassVar[str] = "run_open"
    format: Literal[1]
    run_id: Text
    segment: Count
    job: str
    rank: Count
    num_ranks: Positive
    local_rank: Count
    host: Text
    pid: Count
    cores: Text
    config_sha256: Sha256
    wall_ns: UnixTime
    monotonic_ns: Count
    package_version: Text
    code_sha256: Sha256 | None = None
    ticket_sha256: Sha256 | None = None


class Resume(Event, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The rank goes on from where a checkpoint was made: ``epoch`` epochs and ``step`` steps are done.

    Without a checkpoint (an empty ``path``) the run begins again. ``ledgers_sha256`` binds the ledgers of all ranks of
    all earlier segments as this segment found them (hpcai500.record.ledgers_digest).
    """

    EVENT: ClassVar[str] = "resume"
    epoch: Count
    step: Count
    path: str
    sha256: Annotated[str, Meta(pattern="^([0-9a-f]{64})?$")]
    ledgers_sha256: Sha256


class Staging(Event, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The node has a copy of the data file of its own, made or found before the clock starts.

    ``fell_back`` says why the source is read all the same; null if it is not.
    """

    EVENT: ClassVar[str] = "staging"
    source: Text
    path: Text
    num_bytes: Count
    duration_ns: Duration
    verify_ns: Duration
    reused: bool
    fell_back: str | None


class DataOpen(Event, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The data is open; counts are those of both splits as used, steps and drops those of one epoch of all ranks.

    ``train_bytes`` are those of all training samples as they are stored; null where a run did not tell.
    """

    EVENT: ClassVar[str] = "data_open"
    dataset_sha256: Sha256
    source: Text
    num_train_samples: Positive
    num_validation_samples: Positive
    num_classes: Positive
    steps_per_epoch: Positive
    dropped_per_epoch: Count
    train_bytes: Count | None = None


class ModelBuilt(Event, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The model is built and its FLOP counted (convention in rules/workloads)."""

    EVENT: ClassVar[str] = "model_built"
    num_parameters: Positive
    flop_forward_per_sample: Positive
    flop_training_per_sample: Positive
    input_shape: Annotated[list[Positive], Meta(max_length=8)]
    num_classes: Positive


class StartUp(Event, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the time went before the clock started, none of it ranked.

    ``allocation_ns``: from the job's start to that of the launcher; ``launch_ns``: until this process ran (both 0 where
    no driver tells); ``import_ns``: loading the package and its libraries; ``rendezvous_ns``: until all ranks had found
    each other; ``data_open_ns``; ``model_ns``: building the model and preparing the exchange; ``wait_ns``: for the
    other ranks to get as far.
    """

    EVENT: ClassVar[str] = "start_up"
    allocation_ns: Duration
    launch_ns: Duration
    import_ns: Duration
    rendezvous_ns: Duration
    data_open_ns: Duration
    model_ns: Duration
    wait_ns: Duration


class ClockStart(Event, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The ranked clock starts: before the first training batch is read."""

    EVENT: ClassVar[str] = "clock_start"
    wall_ns: UnixTime


class Window(Event, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Some consecutive steps of one epoch. ``loss_sum`` adds the rank's mean loss of each step."""

    EVENT: ClassVar[str] = "window"
    epoch: Count
    first_step: Count
    num_steps: Positive
    samples: Count
    loss_sum: NotNegative
    learning_rate: NotNegative
    duration_ns: Duration
    data_wait_ns: Duration
    forward_backward_ns: Duration
    communication_ns: Duration
    optimizer_ns: Duration


class EpochPart(Event, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of an epoch is over: all of it, or the steps between two checkpoints.

    ``sample_digest`` is the sum of the mixed ids this rank trained on in these steps, modulo 2**64. With the last part
    of an epoch rank 0 adds ``epoch_digest``, the same over the whole epoch's order, which the sum over all ranks and
    parts must equal.
    """

    EVENT: ClassVar[str] = "epoch_part"
    epoch: Count
    first_step: Count
    steps: Positive
    samples: Count
    skipped: Count
    sample_digest: Digest64
    learning_rate_first: NotNegative
    learning_rate_last: NotNegative
    epoch_digest: Digest64 | msgspec.UnsetType = msgspec.UNSET


class EvaluationShard(Event, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The rank has evaluated its part of the validation set.

    ``counts`` are sums over samples that add up over ranks; which there are depends on the quality
    (hpcai500/qualities.py). ``loss_sum`` is over samples; null where the workload's evaluation computes no loss.
    """

    EVENT: ClassVar[str] = "evaluation_shard"
    epoch: Positive
    samples: Count
    counts: Counts
    loss_sum: NotNegative | None
    duration_ns: Duration


class Evaluation(Event, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole validation set is evaluated (rank 0); ``duration_ns`` is what that took beyond rank 0's shard.

    ``counts`` are those of all shards together. ``curves`` are what the quality follows from where counts alone do not
    tell it. ``loss`` is the mean over samples, or null.
    """

    EVENT: ClassVar[str] = "evaluation"
    epoch: Positive
    samples: Positive
    counts: Counts
    curves: Curves
    quality: Fraction
    loss: NotNegative | None
    duration_ns: Duration


class Checkpoint(Event, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A checkpoint is written; all ranks took part or waited for it, for ``duration_ns``.

    ``epoch`` epochs and ``step`` steps of the next one are done; ``path`` is relative to the run's checkpoints/.
    """

    EVENT: ClassVar[str] = "checkpoint"
    epoch: Count
    step: Count
    path: Text
    sha256: Sha256
    duration_ns: Duration


class ClockStop(Event, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The ranked clock stops: after the last evaluation."""

    EVENT: ClassVar[str] = "clock_stop"
    wall_ns: UnixTime


class Energy(Event, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What devices drew for ``duration_ns`` from ``wall_ns`` on, which encloses the ranked clock (hpcai500/energy).

    ``source``: "nvml" is that of all of the node's NVIDIA GPUs that the rank can see, "rapl" of the packages of its
    processors, without their memory, "ipmi" of the node's power supplies, "slurm" of all nodes of the job step, whose
    number then is ``num_devices``. ``plugin`` is what read for it, ``accuracy`` its largest error as a part of the
    reading, as stated; null where there is none. ``num_readings`` were taken, no two further apart than
    ``longest_gap_ns``.
    """

    EVENT: ClassVar[str] = "energy"
    source: LedgerEnergySource
    plugin: Text | None = None
    num_devices: Positive
    energy_j: NotNegative
    wall_ns: UnixTime
    duration_ns: Duration
    num_readings: Annotated[int, Meta(ge=2, le=MAX_INTEGER)]
    longest_gap_ns: Duration
    accuracy: Fraction | None = None


class RunClose(Event, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The last event of a segment; ``reason`` says in a sentence what ended it."""

    EVENT: ClassVar[str] = "run_close"
    status: Literal["completed", "failed", "interrupted"]
    reason: str
    wall_ns: UnixTime


EVENTS: dict[str, type[Event]] = {
    event.EVENT: event
    for event in (
        RunOpen,
        Resume,
        Staging,
        DataOpen,
        ModelBuilt,
        StartUp,
        ClockStart,
        Window,
        EpochPart,
        EvaluationShard,
        Evaluation,
        Checkpoint,
        ClockStop,
        Energy,
        RunClose,
    )
}
