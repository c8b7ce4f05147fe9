"""Counts: samples, steps, epochs and evaluations are those that the rules and the configuration demand.

Only completed runs are looked at, and of resumed ones what counts (hpcai500/record.py). A run keeps its global batch
when it goes on with another number of ranks, so steps are the same ones in all segments. Which samples
they were is the affair of hpcai500/checks/work.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from hpcai500.checks.case import Case, RunCase
from hpcai500.events import DataOpen, EpochPart, Evaluation, EvaluationShard, ModelBuilt, Window
from hpcai500.finding import Finding
from hpcai500.flop_forms import flop_form
from hpcai500.qualities import quality_named
from hpcai500.record import Position, RankLedger, Segment


def _differences(rule: str, place: str, pairs: Mapping[str, tuple[object, object]]) -> Iterator[Finding]:
    """A finding for each name whose expected and found value differ."""
    for name, (expected, found) in pairs.items():
        if expected != found:
            yield Finding(rule, f"{place}:{name}", f"{expected!r}", f"{found!r}")


def _segment_ledgers(case: Case) -> Iterator[tuple[RunCase, Segment, RankLedger, Position, Position]]:
    """Every ledger of the completed runs that did work which counts, with how far the run was before and after."""
    for run in case.completed:
        for segment in run.record.segments:
            start, until = segment.start, segment.until or Position(case.size.epochs, 0)
            for ledger in segment.ledgers if start is not None and start < until else []:
                assert start is not None
                yield run, segment, ledger, start, until


def check_data(case: Case) -> list[Finding]:
    """The data set is of the size's source, counts and classes, the same on all ranks, and cut into steps correctly."""
    findings: list[Finding] = []
    size = case.size
    for run, ledger in case.completed_ledgers:
        data = ledger.value(DataOpen)
        if data is None:  # a segment that ended before; check_order looks at the last
            continue
        global_batch = run.global_batch
        pairs: dict[str, tuple[object, object]] = {
            "num_train_samples": (size.num_train_samples, data.num_train_samples),
            "num_validation_samples": (size.num_validation_samples, data.num_validation_samples),
            "num_classes": (size.num_classes, data.num_classes),
            "dataset_sha256": (case.submission.dataset_sha256, data.dataset_sha256),
            "source": (case.submission.data_source, data.source),
            "steps_per_epoch": (size.num_train_samples // global_batch, data.steps_per_epoch),
            "dropped_per_epoch": (size.num_train_samples % global_batch, data.dropped_per_epoch),
        }
        findings += _differences("counts.data", f"{ledger.rank_place}.data_open", pairs)
    if case.submission.data_source not in size.data_sources:
        expected = f"one of {', '.join(size.data_sources)}"
        place = f"{case.place}:data_source"
        findings.append(Finding("counts.data", place, expected, repr(case.submission.data_source)))
    return findings


def check_model(case: Case) -> list[Finding]:
    """Parameters and FLOP of the model are those of the workload at the resolution and classes of the run."""
    findings: list[Finding] = []
    for run, ledger in case.completed_ledgers:
        model = ledger.value(ModelBuilt)
        if model is None:
            continue
        form = flop_form(case.submission.workload, run.config.settings, case.size)
        pairs: dict[str, tuple[object, object]] = {
            "num_parameters": (case.size.num_parameters, model.num_parameters),
            "num_classes": (case.size.num_classes, model.num_classes),
            "input_shape": (list(form.input_shape), model.input_shape),
            "flop_forward_per_sample": (form.forward, model.flop_forward_per_sample),
            "flop_training_per_sample": (form.training, model.flop_training_per_sample),
        }
        findings += _differences("counts.model", f"{ledger.rank_place}.model_built", pairs)
    return findings


def check_epochs(case: Case) -> list[Finding]:
    """Every rank of a segment trained every step between its start and that of the next segment once, in order.

    At official size no sample may be skipped: the data set is layer 9 and open at no level.
    """
    findings: list[Finding] = []
    for run, segment, ledger, start, until in _segment_ledgers(case):
        steps_per_epoch = case.size.num_train_samples // run.global_batch
        batch = run.global_batch // segment.num_ranks
        position = start
        for part in ledger.values(EpochPart):
            pairs: dict[str, tuple[object, object]] = {
                "epoch": (position.epoch, part.epoch),
                "first_step": (position.step, part.first_step),
                "samples + skipped": (part.steps * batch, part.samples + part.skipped),
            }
            if case.size.rankable or run.config.settings.get("decode_errors", "stop") == "stop":
                pairs["skipped"] = (0, part.skipped)
            findings += _differences("counts.epochs", f"{ledger.rank_place}.epoch_part[{part.epoch}]", pairs)
            done = part.first_step + part.steps
            position = Position(part.epoch + 1, 0) if done == steps_per_epoch else Position(part.epoch, done)
        if position != until:
            expected = f"training up to epoch {until.epoch}, step {until.step} (of {steps_per_epoch} an epoch)"
            found = f"up to epoch {position.epoch}, step {position.step}"
            findings.append(Finding("counts.epochs", f"{ledger.rank_place}.epoch_part", expected, found))
    return findings


def check_windows(case: Case) -> list[Finding]:
    """The windows of a part of an epoch cover its steps without gap or overlap, none too long, and add up to it."""
    findings: list[Finding] = []
    for run, segment, ledger, start, _ in _segment_ledgers(case):
        batch = run.global_batch // segment.num_ranks
        report_steps = int(run.config.settings["report_steps"])
        steps_per_epoch = case.size.num_train_samples // run.global_batch
        epoch, first_step = start
        steps = samples = 0
        for entry in filter(ledger.counts, ledger.all_entries_of(Window, EpochPart)):
            value = entry.value
            if isinstance(value, Window):
                found = (value.epoch, value.first_step, value.num_steps, value.samples)
                most = min(value.num_steps, report_steps), min(value.samples, value.num_steps * batch)
                wanted = (epoch, first_step + steps, *most)
                if found != wanted:
                    names = ("epoch", "first_step", "num_steps", "samples")
                    pairs = dict(zip(names, zip(wanted, found, strict=True), strict=True))
                    findings += _differences("counts.windows", f"{ledger.place}:{entry.line}", pairs)
                steps += value.num_steps
                samples += value.samples
            elif isinstance(value, EpochPart):
                sums = {
                    "epoch": (epoch, value.epoch),
                    "steps": (steps, value.steps),
                    "samples": (samples, value.samples),
                }
                findings += _differences("counts.windows", f"{ledger.place}:{entry.line}", sums)
                first_step += steps
                if first_step >= steps_per_epoch:
                    epoch, first_step = epoch + 1, 0
                steps = samples = 0
    return findings


def check_evaluations(case: Case) -> list[Finding]:
    """Every rank evaluates its shard after each period of the rules and after the last epoch, and rank 0 the whole."""
    size, quality = case.size, quality_named(case.workload.quality)
    findings = []
    for _, segment, ledger, start, until in _segment_ledgers(case):
        expected = [
            epoch
            for epoch in range(start.epoch + 1, min(until.epoch, size.epochs) + 1)  # a resumed epoch may be huge
            if epoch % size.evaluation_period_epochs == 0 or epoch == size.epochs
        ]
        found = [shard.epoch for shard in ledger.values(EvaluationShard)]
        if found != expected:
            place = f"{ledger.rank_place}.evaluation_shard"
            findings.append(Finding("counts.evaluations", place, f"after epochs {expected}", f"{found[:100]}"))
        whole = [evaluation.epoch for evaluation in ledger.values(Evaluation)]
        if ledger.rank == 0 and whole != expected:
            place = f"{ledger.rank_place}.evaluation"
            findings.append(Finding("counts.evaluations", place, f"after epochs {expected}", f"{whole[:100]}"))
        num_samples = len(range(ledger.rank, size.num_validation_samples, segment.num_ranks))
        for shard in ledger.values(EvaluationShard):
            place = f"{ledger.rank_place}.evaluation_shard[{shard.epoch}]"
            findings += _differences("counts.evaluations", place, {"samples": (num_samples, shard.samples)})
            for wanted, there in quality.problems(shard.samples, shard.counts, None, size.num_classes):
                findings.append(Finding("counts.evaluations", f"{place}:counts", wanted, there))
    return findings
