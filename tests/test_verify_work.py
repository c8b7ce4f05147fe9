"""Work and time: runs that did other work than they say, or did it at other times, each mended by a clever forger.

Here are the ways to break a submission, and tests/test_verify.py runs them beside its own; what needs another one than
its two runs of two ranks has a test here.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from forging import Forger, Mutation
from recording import EDITION, NS_PER_S, epoch_digests, record_submission

from hpcai500.checks import counts, gaps, times, together, work
from hpcai500.verify import verify_submission

Lines = list[dict[str, Any]]
SIZE = EDITION.workload("resnet50").size("smoke")
GLOBAL_BATCH = 32


def every_ledger(forger: Forger, change: Callable[[Lines], object], *, ranks: tuple[int, ...] = (0, 1)) -> None:
    for number in (1, 2):
        for rank in ranks:
            forger.edit_lines(change, number=number, rank=rank)


def swap_digests_of_ranks(forger: Forger) -> None:
    """What each rank used is as it must be in sum."""
    told: dict[tuple[int, int], str] = {}
    for rank in (0, 1):

        def note(value: dict[str, Any], rank: int = rank) -> None:
            told[rank, value["epoch"]] = value["sample_digest"]

        forger.edit_events("epoch_part", note, rank=rank)
    for rank in (0, 1):

        def swap(value: dict[str, Any], rank: int = rank) -> None:
            value["sample_digest"] = told[1 - rank, value["epoch"]]

        forger.edit_events("epoch_part", swap, rank=rank)


def take_order(forger: Forger, seed: int, epoch_of: Callable[[int], int]) -> None:
    """Train on the samples of another seed or epoch, with digests that add up."""
    for rank in (0, 1):

        def change(value: dict[str, Any], rank: int = rank) -> None:
            digests = epoch_digests(seed, epoch_of(value["epoch"]), SIZE.num_train_samples, GLOBAL_BATCH)
            value["sample_digest"] = str(digests.of_part(rank, 2, first_step=0, steps=digests.num_steps))
            if "epoch_digest" in value:
                value["epoch_digest"] = str(digests.whole)

        forger.edit_events("epoch_part", change, rank=rank)


def scale_rates(forger: Forger, factor: float) -> None:
    """Another policy, alike on all ranks and in windows and parts."""
    for event in ("window", "epoch_part"):
        forger.edit_events(
            event, lambda value: value.update({key: value[key] * factor for key in value if "learning_rate" in key})
        )


def move_rank_1(forger: Forger, offset_s: float, *, monotonic: bool = True) -> None:
    """Let a rank do everything so much later on all of its clocks; its own order and durations stay."""
    offset_ns = int(offset_s * NS_PER_S)

    def change(lines: Lines) -> None:
        for line in lines:
            line["time_ns"] += offset_ns
            if "wall_ns" in line["value"]:
                line["value"]["wall_ns"] += offset_ns
            if "monotonic_ns" in line["value"] and monotonic:
                line["value"]["monotonic_ns"] += offset_ns

    forger.edit_lines(change, rank=1)


def pause_from(lines: Lines, event: str, delay_s: int) -> None:
    first = next(index for index, line in enumerate(lines) if line["event"] == event)
    for line in lines[first:]:
        line["time_ns"] += delay_s * NS_PER_S
        if "wall_ns" in line["value"]:
            line["value"]["wall_ns"] += delay_s * NS_PER_S


def scale_durations(lines: Lines, divisor: int) -> None:
    for line in lines:
        if line["event"] == "start_up":
            continue
        value = line["value"]
        parts = [key for key in value if key.endswith("_ns") and key not in ("wall_ns", "monotonic_ns", "duration_ns")]
        value.update({key: value[key] // divisor for key in parts})
        if "duration_ns" in value:
            value["duration_ns"] = sum(value[key] for key in parts) if parts else value["duration_ns"] // divisor


def lengthen(forger: Forger, event: str, duration_s: float, *, epoch: int = 1) -> None:
    """Let what is done last take longer than the time since what was done before; there is room for it before that."""

    def change(value: dict[str, Any]) -> None:
        if value["epoch"] == epoch:
            rest_ns = int(duration_s * NS_PER_S) - value["duration_ns"]
            value["duration_ns"] += rest_ns
            if "optimizer_ns" in value:
                value["optimizer_ns"] += rest_ns

    forger.edit_events(event, change)


def stage(forger: Forger, rank: int, **changes: object) -> None:
    staging = {"source": "/data.h5", "path": "/local/data.h5", "num_bytes": 1000, "duration_ns": 10**8}
    staging |= {"verify_ns": 10**8, "reused": False, "fell_back": None, **changes}

    def change(lines: Lines) -> None:
        lines.insert(1, json.loads(json.dumps(lines[0])) | {"event": "staging", "value": staging})

    forger.edit_lines(change, rank=rank)


def save_twice(lines: Lines) -> None:
    """Tell of a second checkpoint, after the last epoch, that is the file of the first."""
    first = next(line for line in lines if line["event"] == "checkpoint")
    stop = next(index for index, line in enumerate(lines) if line["event"] == "clock_stop")
    value = first["value"] | {"epoch": 2, "duration_ns": 0}
    lines.insert(stop, first | {"value": value, "time_ns": lines[stop]["time_ns"]})


def one_line(event: str, **changes: object) -> Callable[[Forger], object]:
    return lambda forger: forger.edit_events(event, lambda value: value.update(changes), rank=1)


MUTATIONS = (
    Mutation("check_digests", "counts.digests", "digests swapped between ranks", swap_digests_of_ranks),
    Mutation("check_digests", "counts.digests", "the order of another seed", lambda f: take_order(f, 7, lambda e: e)),
    Mutation("check_digests", "counts.digests", "the first epoch again", lambda f: take_order(f, 100, lambda e: 0)),
    Mutation("check_digests", "counts.digests", "another seed in all files", lambda f: (
        f.edit_config(lambda c: c.update(seed=7), numbers=(1,)),
        f.edit_submission(lambda s: s["runs"][0].update(seed=7)))),
    Mutation("check_digests", "counts.digests", "a resumed epoch's digest of another", lambda f: f.edit_lines(
        lambda lines: [line["value"].update(sample_digest="1") for line in lines if line["event"] == "epoch_part"],
        rank=1, segment=1), resumed=True),
    Mutation("check_learning_rates", "runs.learning_rates", "half of the rates", lambda f: scale_rates(f, 0.5)),
    Mutation("check_learning_rates", "runs.learning_rates", "no warm-up, says the configuration",
             lambda f: f.edit_config(lambda c: c["settings"].update(warmup_epochs=0.0))),
    Mutation("check_learning_rates", "runs.learning_rates", "another peak, says the configuration",
             lambda f: f.edit_config(lambda c: c["settings"].update(learning_rate_per_256=1e300))),
    Mutation("check_durations", "times.durations", "an evaluation during training",
             lambda f: lengthen(f, "evaluation_shard", 2.1, epoch=2)),
    Mutation("check_durations", "times.durations", "a checkpoint during the evaluation",
             lambda f: lengthen(f, "checkpoint", 0.7)),
    Mutation("check_durations", "times.durations", "windows that overlap", lambda f: lengthen(f, "window", 2.05)),
    Mutation("check_parts", "times.parts", "a nanosecond of a window that no part has",
             lambda f: f.edit_events("window", lambda v: v.update(duration_ns=v["duration_ns"] + 1), rank=1)),
    Mutation("check_parts", "times.parts", "waiting for data left out",
             lambda f: f.edit_events("window", lambda v: v.update(data_wait_ns=0))),
    Mutation("check_gaps", "times.gaps", "a pause of 10 s", lambda f: every_ledger(
        f, lambda lines: pause_from(lines, "checkpoint", 10))),
    Mutation("check_gaps", "times.gaps", "a rank that rests", lambda f: f.edit_lines(
        lambda lines: pause_from(lines, "clock_stop", 10), rank=1)),
    Mutation("check_gaps", "times.gaps", "all durations a tenth", lambda f: every_ledger(
        f, lambda lines: scale_durations(lines, 10))),
    Mutation("check_skew", "times.skew", "a rank ten minutes later", lambda f: move_rank_1(f, 600)),
    Mutation("check_skew", "times.skew", "a rank four seconds earlier", lambda f: move_rank_1(f, -4)),
    Mutation("check_skew", "times.skew", "a rank that evaluates before the others have trained", lambda f: f.edit_lines(
        lambda lines: [line.update(time_ns=line["time_ns"] - 4 * NS_PER_S) for line in lines
                       if line["event"] == "evaluation_shard"], rank=1)),
    Mutation("check_skew", "times.skew", "judged before the shards were there", lambda f: f.edit_events(
        "evaluation", lambda v: v.update(duration_ns=v["duration_ns"] + 3 * NS_PER_S), rank=0)),
    Mutation("check_boot", "times.boot", "a rank's monotonic clock moved",
             lambda f: f.edit_events("run_open", lambda v: v.update(monotonic_ns=v["monotonic_ns"] - 10**12), rank=1)),
    Mutation("check_boot", "times.boot", "a rank's clocks moved, but not the monotonic one",
             lambda f: move_rank_1(f, 600, monotonic=False)),
    Mutation("check_hosts", "chain.hosts", "ranks on a host that nobody describes",
             lambda f: f.edit_events("run_open", lambda v: v.update(host="node7"))),
    Mutation("check_hosts", "chain.hosts", "a description of another host", lambda f: (
        f.edit_json(f.run(1) / "system.json", lambda s: s["nodes"][0].update(host="a better one")),
        f.edit_submission(lambda s: s["system"]["nodes"][0].update(host="a better one")))),
    Mutation("check_local_ranks", "chain.local_ranks", "two ranks in one place", one_line("run_open", local_rank=0)),
    Mutation("check_local_ranks", "chain.local_ranks", "a place left out", one_line("run_open", local_rank=7)),
    Mutation("check_start_up", "times.start_up", "ten seconds for the data", one_line("start_up", data_open_ns=10**10)),
    Mutation("check_start_up", "times.start_up", "a start in no time", one_line(
        "start_up", import_ns=0, rendezvous_ns=0, data_open_ns=0, model_ns=0, wait_ns=0)),
    Mutation("check_staging", "times.staging", "an hour to copy", lambda f: stage(f, 0, duration_ns=3600 * NS_PER_S)),
    Mutation("check_staging", "times.staging", "copied by the second rank", lambda f: stage(f, 1)),
    Mutation("check_staging", "times.staging", "a copy that was there took time", lambda f: stage(f, 0, reused=True)),
    Mutation("check_staging", "times.staging", "used and not to be had", lambda f: stage(
        f, 0, reused=True, duration_ns=0, verify_ns=0, fell_back="the disk is full")),
    Mutation("check_staging", "times.staging", "two sizes of one source",
             lambda f: (stage(f, 0), stage(f, 1, num_bytes=999))),
    Mutation("check_created", "times.created", "made before its runs",
             lambda f: f.edit_submission(lambda s: s.update(created="2001-01-01T00:00:00Z"))),
    Mutation("check_created", "times.created", "made on no day",
             lambda f: f.edit_submission(lambda s: s.update(created="2026-13-01T00:00:00Z"))),
    Mutation("check_wall", "times.wall", "opened after its first line", lambda f: f.edit_events(
        "run_open", lambda v: v.update(wall_ns=v["wall_ns"] + NS_PER_S // 2), rank=1)),
    Mutation("check_positions", "chain.checkpoints", "a checkpoint of what is not trained yet",
             lambda f: f.edit_events("checkpoint", lambda v: v.update(epoch=2))),
    Mutation("check_positions", "chain.checkpoints", "a checkpoint within the next epoch",
             lambda f: f.edit_events("checkpoint", lambda v: v.update(step=3))),
    Mutation("check_saved", "chain.checkpoints", "ranks that saved others",
             one_line("checkpoint", sha256="1" * 64)),
    Mutation("check_saved", "chain.checkpoints", "a rank without the checkpoint", lambda f: f.edit_lines(
        lambda lines: lines.remove(next(line for line in lines if line["event"] == "checkpoint")), rank=1)),
    Mutation("check_saved", "chain.checkpoints", "one file for two checkpoints", lambda f: every_ledger(f, save_twice)),
)  # fmt: skip


@pytest.fixture
def detector(tmp_path: Path) -> Forger:
    return Forger(record_submission(tmp_path, workload="fasterrcnn"))


def fewer_boxes(value: dict[str, Any]) -> None:
    if value["epoch"] == 2:
        value["counts"]["boxes"] = [max(0, boxes - 1) for boxes in value["counts"]["boxes"]]


TRUTH_MUTATIONS = (
    Mutation("check_shards_truth", "counts.truth", "fewer boxes in a shard",
             lambda f: f.edit_events("evaluation_shard", fewer_boxes, rank=0)),
    Mutation("check_truth", "counts.truth", "fewer boxes in an evaluation",
             lambda f: f.edit_events("evaluation", fewer_boxes, rank=0)),
)  # fmt: skip


@pytest.mark.parametrize("mutation", TRUTH_MUTATIONS, ids=lambda mutation: mutation.name)
def test_an_easier_validation_set_in_the_last_epoch_is_found(
    detector: Forger, mutation: Mutation, monkeypatch: pytest.MonkeyPatch
) -> None:
    mutation.change(detector)
    detector.forge()
    monkeypatch.setattr("hpcai500.verify.CONTENT_CHECKS", (getattr(work, mutation.check),))
    assert {finding.rule for finding in verify_submission(detector.path).findings} == {mutation.rule}


def test_samples_that_do_not_decode_may_be_skipped_only_where_the_settings_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpcai500.verify.load_edition", lambda: EDITION)
    monkeypatch.setattr("hpcai500.verify.CONTENT_CHECKS", (work.check_digests, counts.check_epochs))

    def skip(value: dict[str, Any]) -> None:
        value.update(sample_digest="5", samples=value["samples"] - 3, skipped=3)

    for decode_errors, expected in (("skip", set()), ("stop", {"counts.digests", "counts.epochs"})):
        forger = Forger(record_submission(tmp_path / decode_errors, settings={"decode_errors": decode_errors}))
        forger.edit_events("epoch_part", skip, rank=1)
        forger.forge()
        assert {finding.rule for finding in verify_submission(forger.path).findings} == expected


def test_waiting_for_the_slowest_shard_and_for_rank_0_is_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 1 evaluates for 100 s and rank 0 judges for 200 s, while the others wait."""
    monkeypatch.setattr("hpcai500.verify.load_edition", lambda: EDITION)
    checks = (gaps.check_gaps, times.check_durations, together.check_skew)
    monkeypatch.setattr("hpcai500.verify.CONTENT_CHECKS", checks)
    forger = Forger(record_submission(tmp_path))

    def change(lines: Lines, rank: int) -> None:
        evaluated = False
        delay_ns = 0
        for line in lines:
            if line["event"] == "evaluation_shard":
                delay_ns += 100 * NS_PER_S * rank
                line["value"]["duration_ns"] += 100 * NS_PER_S * rank
            elif evaluated:
                delay_ns += (300 - 100 * rank) * NS_PER_S
            if line["event"] == "evaluation":
                line["value"]["duration_ns"] += 200 * NS_PER_S
            evaluated = line["event"] == "evaluation_shard"
            line["time_ns"] += delay_ns
            if "wall_ns" in line["value"]:
                line["value"]["wall_ns"] += delay_ns

    for rank in (0, 1):
        forger.edit_lines(lambda lines, rank=rank: change(lines, rank), rank=rank)
    forger.forge()
    assert verify_submission(forger.path).findings == []
    forger.edit_events("evaluation", lambda value: value.update(duration_ns=0), rank=0)
    forger.forge()
    assert {finding.rule for finding in verify_submission(forger.path).findings} == {"times.gaps"}
