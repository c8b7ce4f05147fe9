"""Counts: samples, steps, epochs and evaluations are those that the rules and the configuration demand.

Only completed runs are looked at. Not covered: that the sample ids of an epoch are those that its seed implies; the
digests of the ranks only have to add up to the one that rank 0 wrote down.
"""

from __future__ import annotations

from collections.abc import Iterator

from hpcai500.checks.case import Case
from hpcai500.events import Checkpoint, DataOpen, EpochEnd, Evaluation, EvaluationShard, ModelBuilt, Window
from hpcai500.finding import Finding
from hpcai500.metrics import resnet50_flop


def _differences(rule: str, place: str, pairs: dict[str, tuple[object, object]]) -> Iterator[Finding]:
    """A finding for each name whose expected and found value differ."""
    for name, (expected, found) in pairs.items():
        if expected != found:
            yield Finding(rule, f"{place}:{name}", f"{expected!r}", f"{found!r}")


def check_data(case: Case) -> list[Finding]:
    """The data set is of the size's source, counts and classes, the same on all ranks, and cut into steps correctly."""
    findings: list[Finding] = []
    size = case.size
    for run, ledger in case.completed_ledgers:
        data = ledger.value(DataOpen)
        assert data is not None
        global_batch = int(run.config.settings["batch_size_per_rank"]) * run.config.num_ranks
        pairs: dict[str, tuple[object, object]] = {
            "num_train_samples": (size.num_train_samples, data.num_train_samples),
            "num_validation_samples": (size.num_validation_samples, data.num_validation_samples),
            "num_classes": (size.num_classes, data.num_classes),
            "dataset_sha256": (case.submission.dataset_sha256, data.dataset_sha256),
            "source": (case.submission.data_source, data.source),
            "steps_per_epoch": (size.num_train_samples // global_batch, data.steps_per_epoch),
            "dropped_per_epoch": (size.num_train_samples % global_batch, data.dropped_per_epoch),
        }
        findings += _differences("counts.data", f"{ledger.place}:data_open", pairs)
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
        assert model is not None
        image_size, variant = int(run.config.settings["train_image_size"]), str(run.config.settings["model_variant"])
        forward, training = resnet50_flop(image_size, case.size.num_classes, variant=variant)
        pairs: dict[str, tuple[object, object]] = {
            "num_parameters": (case.size.num_parameters, model.num_parameters),
            "num_classes": (case.size.num_classes, model.num_classes),
            "image_size": (image_size, model.image_size),
            "flop_forward_per_sample": (forward, model.flop_forward_per_sample),
            "flop_training_per_sample": (training, model.flop_training_per_sample),
        }
        findings += _differences("counts.model", f"{ledger.place}:model_built", pairs)
    return findings


def check_epochs(case: Case) -> list[Finding]:
    """Every rank trained every epoch of the size once, in order, over all of its steps and samples.

    At official size no sample may be skipped: the data set is layer 9 and open at no level.
    """
    findings: list[Finding] = []
    for run, ledger in case.completed_ledgers:
        ends = ledger.values(EpochEnd)
        epochs = [end.epoch for end in ends]
        if epochs != list(range(case.size.epochs)):
            expected = f"epochs 0 to {case.size.epochs - 1}, each once"
            findings.append(Finding("counts.epochs", f"{ledger.place}:epoch_end", expected, f"{epochs[:100]}"))
        batch = int(run.config.settings["batch_size_per_rank"])
        steps = case.size.num_train_samples // (batch * run.config.num_ranks)
        for end in ends:
            pairs: dict[str, tuple[object, object]] = {
                "steps": (steps, end.steps),
                "samples + skipped": (steps * batch, end.samples + end.skipped),
            }
            if case.size.rankable or run.config.settings["decode_errors"] == "stop":
                pairs["skipped"] = (0, end.skipped)
            findings += _differences("counts.epochs", f"{ledger.place}:epoch_end[{end.epoch}]", pairs)
    return findings


def check_windows(case: Case) -> list[Finding]:
    """The windows of an epoch cover its steps without gap or overlap, none too long, and add up to its samples."""
    findings: list[Finding] = []
    for run, ledger in case.completed_ledgers:
        batch = int(run.config.settings["batch_size_per_rank"])
        report_steps = int(run.config.settings["report_steps"])
        steps = samples = epoch = 0
        for entry in ledger.entries:
            if isinstance(entry.value, Window):
                window = entry.value
                place = f"{ledger.place}:{entry.seq + 1}"
                pairs: dict[str, tuple[object, object]] = {
                    "epoch": (epoch, window.epoch),
                    "first_step": (steps, window.first_step),
                    "num_steps": (min(window.num_steps, report_steps), window.num_steps),
                    "samples": (min(window.samples, window.num_steps * batch), window.samples),
                }
                findings += _differences("counts.windows", place, pairs)
                steps += window.num_steps
                samples += window.samples
            elif isinstance(entry.value, EpochEnd):
                place = f"{ledger.place}:{entry.seq + 1}"
                sums: dict[str, tuple[object, object]] = {
                    "epoch": (epoch, entry.value.epoch),
                    "steps": (steps, entry.value.steps),
                    "samples": (samples, entry.value.samples),
                }
                findings += _differences("counts.windows", place, sums)
                steps, samples, epoch = 0, 0, epoch + 1
    return findings


def check_digests(case: Case) -> list[Finding]:
    """In each epoch the digests of all ranks add up to that of the whole epoch, where nothing was skipped."""
    findings = []
    for run in case.completed:
        by_epoch: dict[int, list[EpochEnd]] = {}
        for ledger in run.record.ledgers:
            for end in ledger.values(EpochEnd):
                by_epoch.setdefault(end.epoch, []).append(end)
        for epoch, ends in by_epoch.items():
            if any(end.skipped for end in ends):
                continue
            place = f"{run.place}/ledger:epoch_end[{epoch}].sample_digest"
            whole = [end.epoch_digest for end in ends if isinstance(end.epoch_digest, str)]
            found = str(sum(int(end.sample_digest) for end in ends) % 2**64)
            if whole != [found]:
                expected = f"ranks that add up to the epoch_digest of rank 0, {whole}"
                findings.append(Finding("counts.digests", place, expected, found))
    return findings


def check_evaluations(case: Case) -> list[Finding]:
    """Every rank evaluates its shard after each period of the rules and after the last epoch, and rank 0 the whole."""
    size = case.size
    expected = [
        epoch
        for epoch in range(1, size.epochs + 1)
        if epoch % size.evaluation_period_epochs == 0 or epoch == size.epochs
    ]
    findings = []
    for run, ledger in case.completed_ledgers:
        found = [shard.epoch for shard in ledger.values(EvaluationShard)]
        if found != expected:
            place = f"{ledger.place}:evaluation_shard"
            findings.append(Finding("counts.evaluations", place, f"after epochs {expected}", f"{found[:100]}"))
        whole = [evaluation.epoch for evaluation in ledger.values(Evaluation)]
        if ledger.rank == 0 and whole != expected:
            place = f"{ledger.place}:evaluation"
            findings.append(Finding("counts.evaluations", place, f"after epochs {expected}", f"{whole[:100]}"))
        num_samples = len(range(ledger.rank, size.num_validation_samples, run.config.num_ranks))
        for shard in ledger.values(EvaluationShard):
            place = f"{ledger.place}:evaluation_shard[{shard.epoch}]"
            pairs: dict[str, tuple[object, object]] = {
                "samples": (num_samples, shard.samples),
                "correct": (min(shard.correct, shard.samples), shard.correct),
            }
            findings += _differences("counts.evaluations", place, pairs)
    return findings


def check_checkpoints(case: Case) -> list[Finding]:
    """Rank 0 wrote a checkpoint after every period of the configuration: their time is part of the ranked clock."""
    findings = []
    for run in case.completed:
        period = int(run.config.settings["checkpoint_every_epochs"])
        expected = list(range(period, case.size.epochs + 1, period)) if period else []
        root = run.record.ledgers[0]
        found = [checkpoint.epoch for checkpoint in root.values(Checkpoint)]
        if found != expected:
            place = f"{root.place}:checkpoint"
            findings.append(Finding("counts.checkpoints", place, f"after epochs {expected}", f"{found[:100]}"))
    return findings
