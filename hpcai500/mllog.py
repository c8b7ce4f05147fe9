"""Runs as MLPerf's logs: the lines ``:::MLLOG {...}`` that its compliance checker reads (package mlperf-logging).

Keys and checks are those of ruleset training 4.0.0, benchmark resnet, the last that had it (mlperf_logging 4.1.68:
compliance_checker/training_4.0.0/{common,closed_common,closed_resnet}.yaml, training_3.1.0/closed_resnet_sgd.yaml).
Every value is the run's own, with the file and line it was read from; none is made to please a check. What the checks
of the division demand and the run has otherwise stands at the end of the file in lines with ``#``, which readers of
such logs skip.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from hpcai500.checks.form import is_inside
from hpcai500.edition import Edition, check_level
from hpcai500.errors import RecordError, UsageError
from hpcai500.events import ClockStart, ClockStop, DataOpen, EpochPart, Evaluation, EvaluationShard, RunOpen, Window
from hpcai500.formats import RunConfig, Submission, SubmittedRun, System, read_bytes, read_config, read_record
from hpcai500.learning_rate import learning_rate, peak_learning_rate
from hpcai500.ledger_reader import Entry
from hpcai500.record import RankLedger, RunRecord, read_run

RULESET = "4.0.0"
BENCHMARKS = {"resnet50": "resnet"}
EXPORTER = "hpcai500/export.py"  # the place of what the user of the command says
NS_PER_MS = 10**6
INIT_LIMIT_MS = {"closed": 30 * 60 * 1000, "open": 240 * 60 * 1000}
POINT, START, END = "POINT_IN_TIME", "INTERVAL_START", "INTERVAL_END"

Division = Literal["closed", "open"]
Values = dict[str, list[Any]]


class LogLine(NamedTuple):
    """One line: an event of the log at a time, with the place that its value was read from."""

    time_ns: int
    event_type: str
    key: str
    value: object
    file: str
    line: int
    metadata: dict[str, object]

    def text(self) -> str:
        """The line as it stands in the log."""
        content = {
            "namespace": "",
            "time_ms": self.time_ns // NS_PER_MS,
            "event_type": self.event_type,
            "key": self.key,
            "value": self.value,
            "metadata": {"file": self.file, "lineno": self.line, **self.metadata},
        }
        return f":::MLLOG {msgspec.json.encode(content).decode()}"


class Demand(NamedTuple):
    """What MLPerf's checks demand of a key and a run of this benchmark may have otherwise.

    Attributes:
        divisions: whose checks demand it.
        rule: what they demand, in words.
        why: why a run may not have it.
        is_met: whether the values of the key, in the order of the log, are what they demand.
    """

    divisions: tuple[Division, ...]
    rule: str
    why: str
    is_met: Callable[[list[Any]], bool]


DEMANDS = {
    "sgd_opt_end_learning_rate": Demand(
        ("closed",),
        "0.0001",
        "the learning rate falls along half a cosine to 0",
        lambda values: values == [0.0001],
    ),
    "sgd_opt_learning_rate_decay_poly_power": Demand(
        ("closed",),
        "a number",
        "a cosine has no power, so the key is left out",
        lambda values: len(values) == 1,
    ),
    "sgd_opt_weight_decay": Demand(
        ("closed",),
        "0.0001 x 2^N for a whole N",
        "the reference has 1/32768; free level may set weight_decay=0.00005",
        lambda values: all(value > 0 and _is_whole(math.log2(value / 0.0001)) for value in values),
    ),
    "sgd_opt_base_learning_rate": Demand(
        ("closed",),
        "a multiple of 0.001",
        "it is learning_rate_per_256 x global batch / 256",
        lambda values: all(_is_whole(value / 0.001) for value in values),
    ),
    "eval_accuracy": Demand(
        ("closed",),
        "once at least 0.759 and below 1",
        "a run trains its epochs, whatever quality it reaches; sizes mini and smoke have other data",
        lambda values: any(0.759 <= value < 1 for value in values),
    ),
    "init_stop": Demand(
        ("closed", "open"),
        "less than 30 minutes (open division: 240) after init_start",
        "start-up is not limited here",
        lambda values: True,  # told by times, not by values: see unmet_demands
    ),
}


def _is_whole(number: float) -> bool:
    """As the checker rounds (mlp_compliance.py, is_integer)."""
    return abs(round(number) - number) < 0.00001


def unmet_demands(lines: list[LogLine], division: Division) -> dict[str, Demand]:
    """The demands of a division that a log does not meet, by key."""
    values: Values = {}
    times_ns: dict[str, int] = {}
    for line in lines:
        values.setdefault(line.key, []).append(line.value)
        times_ns.setdefault(line.key, line.time_ns)
    init_ms = times_ns["init_stop"] // NS_PER_MS - times_ns["init_start"] // NS_PER_MS
    return {
        key: demand
        for key, demand in DEMANDS.items()
        if division in demand.divisions
        and not (init_ms < INIT_LIMIT_MS[division] if key == "init_stop" else demand.is_met(values.get(key, [])))
    }


def log_of_run(
    base: Path, submission: Submission, submitted: SubmittedRun, edition: Edition, *, division: Division, status: str
) -> str:
    """The log of a completed run.

    Args:
        base: the folder of submission.json.
        submission: what it says.
        submitted: the run in it.
        edition: the rules.
        division: the division whose checks the log asks for.
        status: as MLPerf has it: "cloud", "onprem", "preview" or "research".

    Raises:
        UsageError: the workload is none of MLPerf's.
        RecordError: the run cannot be read, or did not complete.
    """
    if submission.workload not in BENCHMARKS:
        raise UsageError(
            f"workload {submission.workload!r} is none of MLPerf Training's benchmarks, so there is no log to write; "
            f"those that are: {', '.join(BENCHMARKS)}"
        )
    if not is_inside(base, submitted.folder):
        raise RecordError(f"run folder {submitted.folder!r} does not lie beneath the submission's folder")
    folder = base / submitted.folder
    config, _ = read_config(folder)
    wrong = check_level(edition.workload(config.workload), config.size, config.level, config.settings)
    if wrong:
        raise RecordError(f"{str(folder / 'config.json')!r} is not one of this edition: {wrong[0]}")
    run = read_run(folder, config)
    if run.status != "completed":
        raise RecordError(f"run {submitted.folder!r} {run.status}, and only completed runs have a log")
    lines = _Log(submitted.folder, run).lines(submission, edition, division=division, status=status)
    tail = [
        f"# hpcai500: {key} should be {demand.rule} in the {division} division; {demand.why}"
        for key, demand in unmet_demands(lines, division).items()
    ]
    return "\n".join([*(line.text() for line in lines), *tail, ""])


class _Log:
    """The lines of one run's log."""

    def __init__(self, place: str, run: RunRecord) -> None:
        self._place = place
        self._run = run
        self._config = run.config

    def lines(self, submission: Submission, edition: Edition, *, division: Division, status: str) -> list[LogLine]:
        """All lines, by time.

        Raises:
            RecordError: the run completed without a clock or an evaluation.
        """
        for kind in (DataOpen, ClockStart, ClockStop, Evaluation):
            if not self._entries(kind):
                raise RecordError(f"run {self._place!r} has no {kind.EVENT} in its ledgers, so it has no log")
        opened = min(self._entries(RunOpen), key=lambda pair: pair[1].time_ns)
        start = min(self._entries(ClockStart), key=lambda pair: pair[1].time_ns)
        stop = max(self._entries(ClockStop), key=lambda pair: pair[1].time_ns)
        size = edition.workload(submission.workload).size(submission.size)
        last = self._entries(Evaluation)[-1][1].value
        assert isinstance(last, Evaluation)
        status_of_run = "success" if last.quality >= size.target_quality else "aborted"
        lines = list(self._head(opened[1].time_ns, submission, division, status))
        lines.append(self._line(*opened, START, "init_start", None))
        lines += self._constants(opened[1].time_ns, size.epochs)
        lines.append(self._line(*start, END, "init_stop", None))
        lines.append(self._line(*start, START, "run_start", None))
        lines += sorted([*self._epochs(), *self._evaluations()], key=lambda line: line.time_ns)
        lines.append(self._line(*stop, END, "run_stop", None, status=status_of_run))
        return lines

    def _head(self, time_ns: int, submission: Submission, division: Division, status: str) -> Iterator[LogLine]:
        """Whose run it is. Caches of the operating system are not cleared before a run, and no log says so."""
        config, system = f"{self._place}/config.json", f"{self._place}/system.json"
        platform = _platform(read_record(self._run.folder / "system.json", System))
        rows = (
            ("submission_benchmark", BENCHMARKS[submission.workload], config, self._line_of("config.json", "workload")),
            ("submission_org", submission.submitter or "not stated", "submission.json", 1),
            ("submission_division", division, EXPORTER, 1),
            ("submission_status", status, EXPORTER, 1),
            ("submission_platform", platform, system, self._line_of("system.json", "nodes")),
            ("cache_clear", False, EXPORTER, 1),
        )
        for key, value, file, line in rows:
            yield LogLine(time_ns, POINT, key, value, file, line, {})

    def _line_of(self, name: str, field: str) -> int:
        """The number of the first line of a file of the run that has a field; 1 where the file has no lines."""
        lines = read_bytes(self._run.folder / name).decode().splitlines()
        return next((number for number, text in enumerate(lines, 1) if f'"{field}"' in text), 1)

    def _entries(self, kind: type[Any]) -> list[tuple[RankLedger, Entry]]:
        return [(ledger, entry) for ledger in self._run.ledgers for entry in ledger.entries_of(kind)]

    def _line(
        self, ledger: RankLedger, entry: Entry, event_type: str, key: str, value: object, **metadata: object
    ) -> LogLine:
        return LogLine(entry.time_ns, event_type, key, value, f"{self._place}/{ledger.place}", entry.line, metadata)

    def _constants(self, time_ns: int, epochs: int) -> Iterator[LogLine]:
        """What was decided before the run started, with the line of config.json that says so."""
        ledger, entry = self._entries(DataOpen)[0]
        data, config = entry.value, self._config
        assert isinstance(data, DataOpen)
        counts = {"train_samples": data.num_train_samples, "eval_samples": data.num_validation_samples}
        for key, number in counts.items():
            yield self._line(ledger, entry, POINT, key, number)._replace(time_ns=time_ns)
        for key, (value, setting) in _constants_of(config, data.steps_per_epoch, epochs).items():
            line = self._line_of("config.json", setting)
            yield LogLine(time_ns, POINT, key, value, f"{self._place}/config.json", line, {})

    def _epochs(self) -> Iterator[LogLine]:
        """First and last step of every epoch, as rank 0 saw them; the last one counts where a part was done again."""
        steps = next(entry.value.steps_per_epoch for _, entry in self._entries(DataOpen))  # type: ignore[attr-defined]
        for ledger in self._run.roots:
            for entry in ledger.entries_of(Window):
                window = entry.value
                assert isinstance(window, Window)
                if window.first_step == 0:
                    line = self._line(ledger, entry, START, "epoch_start", None, epoch_num=window.epoch + 1)
                    yield line._replace(time_ns=entry.time_ns - window.duration_ns)
            for entry in ledger.entries_of(EpochPart):
                part = entry.value
                assert isinstance(part, EpochPart)
                if part.first_step + part.steps == steps:
                    yield self._line(ledger, entry, END, "epoch_stop", None, epoch_num=part.epoch + 1)

    def _evaluations(self) -> Iterator[LogLine]:
        """Evaluations as rank 0 saw them; an evaluation's ``epoch`` is the number of the epoch before it."""
        for ledger in self._run.roots:
            for entry in ledger.entries_of(EvaluationShard):
                shard = entry.value
                assert isinstance(shard, EvaluationShard)
                line = self._line(ledger, entry, START, "eval_start", None, epoch_num=shard.epoch)
                yield line._replace(time_ns=entry.time_ns - shard.duration_ns)
            for entry in ledger.entries_of(Evaluation):
                evaluation = entry.value
                assert isinstance(evaluation, Evaluation)
                number = evaluation.epoch
                yield self._line(ledger, entry, POINT, "eval_accuracy", evaluation.quality, epoch_num=number)
                yield self._line(ledger, entry, END, "eval_stop", None, epoch_num=number)


def _constants_of(config: RunConfig, steps_per_epoch: int, epochs: int) -> dict[str, tuple[object, str]]:
    """Value of every constant of the log, and the field of config.json that it stands in or follows from.

    ``model_bn_span`` is the number of samples over which batch normalisation takes its statistics: those of one rank.
    """
    settings = config.settings
    global_batch = settings["batch_size_per_rank"] * config.num_ranks
    num_steps = epochs * steps_per_epoch
    end = learning_rate(
        config.workload,
        settings,
        num_steps,
        global_batch=global_batch,
        steps_per_epoch=steps_per_epoch,
        num_epochs=epochs,
    )
    peak = peak_learning_rate(config.workload, settings, global_batch=global_batch)
    decay_steps = num_steps - round(settings["warmup_epochs"] * steps_per_epoch)
    return {
        "seed": (config.seed, "seed"),
        "global_batch_size": (global_batch, "batch_size_per_rank"),
        "gradient_accumulation_steps": (1, "batch_size_per_rank"),
        "model_bn_span": (settings["batch_size_per_rank"], "batch_size_per_rank"),
        "opt_name": (settings["optimizer"], "optimizer"),
        "opt_learning_rate_warmup_epochs": (settings["warmup_epochs"], "warmup_epochs"),
        "sgd_opt_base_learning_rate": (peak, "learning_rate_per_256"),
        "sgd_opt_end_learning_rate": (end, "learning_rate_schedule"),
        "sgd_opt_learning_rate_decay_steps": (decay_steps, "learning_rate_schedule"),
        "sgd_opt_momentum": (settings["momentum"], "momentum"),
        "sgd_opt_weight_decay": (settings["weight_decay"], "weight_decay"),
    }


def _platform(system: System) -> str:
    """The machine in a few words, as "4x node with 8x NVIDIA H100"."""
    node = system.nodes[0]
    names = [accelerator.name for accelerator in node.accelerators]
    inside = f"{len(names)}x {names[0]}" if names else f"{node.num_sockets}x {node.processor}"
    return f"{len(system.nodes)}x node with {inside}"
