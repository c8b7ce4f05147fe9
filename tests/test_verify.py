"""Every check is broken by at least one submission of its own, mended as far as a clever forger could mend it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from forging import Forger, Mutation, chain_lines
from recording import NS_PER_S, record_submission
from test_verify_equivalence import MUTATIONS as EQUIVALENCE_MUTATIONS
from test_verify_learning import MUTATIONS as LEARNING_MUTATIONS
from test_verify_physics import MUTATIONS as PHYSICS_MUTATIONS
from test_verify_register import MUTATIONS as REGISTER_MUTATIONS
from test_verify_work import MUTATIONS as WORK_MUTATIONS
from test_verify_work import TRUTH_MUTATIONS

from hpcai500.checks import CONTENT_CHECKS, FORM_CHECKS
from hpcai500.verify import main, verify_submission

Lines = list[dict[str, Any]]
OTHER = "1" * 64


pytestmark = pytest.mark.usefixtures("edition_of_recorded")


def settings(forger: Forger, **changes: object) -> None:
    forger.edit_config(lambda config: config["settings"].update(changes))


def both_runs(forger: Forger, event: str, **changes: object) -> None:
    for number in (1, 2):
        forger.edit_events(event, lambda value: value.update(changes), number=number)


def drop_events(forger: Forger, *events: str) -> None:
    for number in (1, 2):
        for rank in (0, 1):
            forger.edit_lines(lambda lines: keep(lines, events), number=number, rank=rank)


def keep(lines: Lines, unwanted: tuple[str, ...]) -> None:
    lines[:] = [line for line in lines if line["event"] not in unwanted]


def move_clock_stop(forger: Forger, offset_s: float) -> None:
    """Set clock_stop, wall clock too, to so many seconds after clock_start."""

    def change(lines: Lines) -> None:
        start = next(line for line in lines if line["event"] == "clock_start")
        stop = next(line for line in lines if line["event"] == "clock_stop")
        stop["time_ns"] = start["time_ns"] + int(offset_s * NS_PER_S)
        stop["value"]["wall_ns"] = start["value"]["wall_ns"] + int(offset_s * NS_PER_S)
        lines[-1]["time_ns"] = max(stop["time_ns"], lines[-1]["time_ns"] if offset_s < 0 else stop["time_ns"])

    for rank in (0, 1):
        forger.edit_lines(change, rank=rank)


def compress_times(forger: Forger, factor: int, *, walls: bool) -> None:
    def change(lines: Lines) -> None:
        first = lines[0]["time_ns"]
        for line in lines:
            line["time_ns"] = first + (line["time_ns"] - first) // factor
            if walls and "wall_ns" in line["value"]:
                line["value"]["wall_ns"] = first + (line["value"]["wall_ns"] - first) // factor

    for number in (1, 2):
        for rank in (0, 1):
            forger.edit_lines(change, number=number, rank=rank)


def edit_resume(forger: Forger, **changes: object) -> None:
    for rank in (0, 1):
        forger.edit_lines(
            lambda lines: [line["value"].update(changes) for line in lines if line["event"] == "resume"],
            rank=rank,
            segment=1,
        )


def leave_first_window_out(lines: Lines) -> None:
    window = next(line for line in lines if line["event"] == "window")
    part = next(line for line in lines if line["event"] == "epoch_part")["value"]
    lines.remove(window)
    part["first_step"] += window["value"]["num_steps"]
    part["steps"] -= window["value"]["num_steps"]
    part["samples"] -= window["value"]["samples"]


def both_runs_later(forger: Forger, event: str, delay_s: int) -> None:
    """Let an event and all that follow it come later, on both clocks."""

    def change(lines: Lines) -> None:
        first = next(index for index, line in enumerate(lines) if line["event"] == event)
        for line in lines[first:]:
            line["time_ns"] += delay_s * NS_PER_S
            if "wall_ns" in line["value"]:
                line["value"]["wall_ns"] += delay_s * NS_PER_S

    for number in (1, 2):
        for rank in (0, 1):
            forger.edit_lines(change, number=number, rank=rank)


def repeat_line(forger: Forger, event: str) -> None:
    def change(lines: Lines) -> None:
        position = next(index for index, line in enumerate(lines) if line["event"] == event)
        lines.insert(position, json.loads(json.dumps(lines[position])))

    forger.edit_lines(change)


def copy_losses(forger: Forger, lines: Lines) -> None:
    """Give a rank the losses of rank 0."""
    windows = [line["value"] for line in lines if line["event"] == "window"]
    others = [line["value"] for line in forger.lines() if line["event"] == "window"]
    for mine, other in zip(windows, others, strict=True):
        mine["loss_sum"] = other["loss_sum"]


def swap_first_lines(lines: Lines) -> None:
    lines[1], lines[2] = lines[2], lines[1]


def copy_rank(forger: Forger, of: int, to: int) -> None:
    """Give a rank the lines of another."""
    lines = forger.lines(rank=of)
    forger.edit_lines(lambda mine: mine.__setitem__(slice(None), [line | {"rank": to} for line in lines]), rank=to)


def split_node(forger: Forger, *, number: int = 1, host: str = "node1") -> None:
    """Put the lines of rank 1 into a ledger of their own."""
    of_1 = forger.lines(rank=1)
    of_1[0]["value"]["host"] = host
    forger.edit_lines(list.clear, rank=1)
    path = forger.ledger(node=number)
    chain_lines(path, of_1)
    name = path.relative_to(forger.run()).as_posix()
    forger.edit_submission(lambda submission: submission["runs"][0]["files"].update({name: {}}))


def rank_in_two_ledgers(forger: Forger) -> None:
    of_1 = forger.lines(rank=1)
    split_node(forger)
    forger.edit_lines(lambda lines: lines.extend(of_1), rank=1)


def copy_run_1_over_run_2(forger: Forger) -> None:
    """Pass one run off as two: other run id, other seed, the rest the same."""
    old = json.loads((forger.run(2) / "config.json").read_bytes())
    shutil.rmtree(forger.run(2))
    shutil.copytree(forger.run(1), forger.run(2))
    forger.edit_config(lambda config: config.update(run_id=old["run_id"], seed=old["seed"]), numbers=(2,))
    forger.edit_events("run_open", lambda value: value.update(run_id=old["run_id"]), number=2)


def fail_run_2(forger: Forger) -> None:
    both = {"status": "failed", "reason": "it was slow"}
    forger.edit_events("run_close", lambda value: value.update(both), number=2)
    forger.edit_submission(lambda submission: submission["runs"][1].update(status="failed"))


def change_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    position = content.index(b'"duration_ns":') + len(b'"duration_ns":')
    content[position] = ord("9") if content[position] != ord("9") else ord("8")
    path.write_bytes(bytes(content))


def set_quality_everywhere(forger: Forger, correct_per_sample: float) -> None:
    def change(value: dict[str, Any]) -> None:
        value["counts"] = {"correct": [int(value["samples"] * correct_per_sample)]}

    forger.edit_events("evaluation_shard", change)


MUTATIONS = (
    # form
    Mutation("check_edition", "form.edition", "another edition",
             lambda f: f.edit_submission(lambda s: s.update(edition="9.9"))),
    Mutation("check_edition", "form.rules", "changed rules",
             lambda f: f.edit_submission(lambda s: s.update(rules_sha256=OTHER))),
    Mutation("check_files", "form.files", "steps.h5 altered", lambda f: (f.run() / "steps.h5").write_bytes(b"x"), "no"),
    Mutation("check_files", "form.files", "steps.h5 deleted", lambda f: (f.run() / "steps.h5").unlink(), "no"),
    Mutation("check_files", "form.files", "ledger not listed",
             lambda f: f.edit_submission(lambda s: s["runs"][0]["files"].pop("ledger/node-00000.jsonl")), "no"),
    Mutation("check_files", "form.files", "file outside",
             lambda f: f.edit_submission(lambda s: s["runs"][0]["files"].update({"../submission.json": {
                 "sha256": OTHER, "size_bytes": 1}})), "no"),
    Mutation("check_configs", "form.config", "settings differ between runs",
             lambda f: f.edit_config(lambda c: c["settings"].update(num_workers=7), numbers=(2,))),
    Mutation("check_configs", "form.config", "another level in the config",
             lambda f: f.edit_config(lambda c: c.update(level="hardware"))),
    Mutation("check_configs", "form.config", "a larger data set in one run",
             lambda f: f.edit_events("data_open", lambda v: v.update(train_bytes=10**6), number=2)),
    Mutation("check_configs", "form.config", "a device that nobody knows",
             lambda f: f.edit_config(lambda c: c.update(device="quantum"))),
    Mutation("check_configs", "form.config", "seed differs from the submission's",
             lambda f: f.edit_submission(lambda s: s["runs"][0].update(seed=7))),
    Mutation("check_system", "form.system", "another processor in the submission",
             lambda f: f.edit_submission(lambda s: s["system"]["nodes"][0].update(processor="A faster one"))),
    Mutation("check_system", "form.system", "runs on different machines",
             lambda f: f.edit_json(f.run(2) / "system.json", lambda s: s["nodes"][0].update(num_cores=64))),
    Mutation("check_system", "form.system", "a node more",
             lambda f: f.edit_json(f.run() / "system.json", lambda s: s["nodes"].append(s["nodes"][0]))),
    # chain
    Mutation("check_ledgers", "ledger.chain", "a byte changed", lambda f: change_byte(f.ledger()), "digests"),
    Mutation("check_ledgers", "ledger.torn", "last line cut",
             lambda f: f.ledger().write_bytes(f.ledger().read_bytes()[:-5]), "digests"),
    Mutation("check_ledgers", "ledger.line", "not JSON",
             lambda f: f.ledger().write_bytes(f.ledger().read_bytes() + b"{\n"), "digests"),
    Mutation("check_ledgers", "ledger.event", "unknown event",
             lambda f: f.edit_lines(lambda lines: lines[3].update(event="pause")), "digests"),
    Mutation("check_ledgers", "ledger.value", "status aborted",
             lambda f: f.edit_events("run_close", lambda v: v.update(status="aborted")), "digests"),
    Mutation("check_ledgers", "ledger.value", "samples -7",
             lambda f: f.edit_events("window", lambda v: v.update(samples=-7)), "digests"),
    Mutation("check_ledgers", "ledger.value", "accuracy over 1",
             lambda f: f.edit_events("evaluation", lambda v: v.update(quality=1.01), rank=0), "digests"),
    Mutation("check_ledgers", "ledger.empty", "an empty ledger",
             lambda f: f.ledger().write_bytes(b""), "digests"),
    Mutation("check_ranks", "chain.ranks", "a rank's lines deleted", lambda f: f.edit_lines(list.clear, rank=1)),
    Mutation("check_ranks", "chain.ranks", "a rank too many", lambda f: copy_rank(f, 1, 2)),
    Mutation("check_ranks", "chain.ranks", "a rank in two ledgers", rank_in_two_ledgers),
    Mutation("check_nodes", "chain.nodes", "a host with two ledgers", split_node),
    Mutation("check_nodes", "chain.nodes", "a ledger left out", lambda f: split_node(f, number=2, host="node2")),
    Mutation("check_nodes", "chain.nodes", "two hosts in a ledger",
             lambda f: f.edit_events("run_open", lambda v: v.update(host="node2"), rank=1)),
    Mutation("check_identity", "chain.identity", "the ledger of another rank",
             lambda f: f.edit_events("run_open", lambda v: v.update(rank=0), rank=1)),
    Mutation("check_identity", "chain.identity", "the ledger of another run",
             lambda f: f.edit_events("run_open", lambda v: v.update(run_id="another"))),
    Mutation("check_identity", "chain.identity", "another configuration",
             lambda f: f.edit_events("run_open", lambda v: v.update(config_sha256=OTHER)), "figures"),
    Mutation("check_identity", "chain.identity", "two versions",
             lambda f: f.edit_events("run_open", lambda v: v.update(package_version="0.2.0"), rank=1)),
    Mutation("check_identity", "chain.identity", "two hosts, one node",
             lambda f: f.edit_events("run_open", lambda v: v.update(host="node2"), rank=1)),
    Mutation("check_cores", "chain.hosts", "more cores than the node has",
             lambda f: f.edit_events("run_open", lambda v: v.update(cores="0-63"), rank=1)),
    Mutation("check_copies_of_ranks", "chain.identity", "the losses of another rank", lambda f: f.edit_lines(
        lambda lines: copy_losses(f, lines), rank=1)),
    Mutation("check_data_alike", "chain.identity", "another data set on one rank",
             lambda f: f.edit_events("data_open", lambda v: v.update(train_bytes=10**6), rank=1)),
    Mutation("check_order", "chain.order", "data after model", lambda f: f.edit_lines(swap_first_lines)),
    Mutation("check_order", "chain.order", "two clock starts", lambda f: repeat_line(f, "clock_start")),
    Mutation("check_order", "chain.order", "events after the close",
             lambda f: f.edit_lines(lambda lines: lines.append(lines[-3]))),
    Mutation("check_order", "chain.order", "no clock stop", lambda f: drop_events(f, "clock_stop")),
    Mutation("check_order", "chain.order", "no close", lambda f: drop_events(f, "run_close")),
    Mutation("check_order", "chain.order", "epoch markers deleted", lambda f: drop_events(f, "epoch_part")),
    Mutation("check_order", "chain.order", "an evaluation by rank 1",
             lambda f: copy_rank(f, 0, 1)),
    Mutation("check_status", "chain.status", "a failed run passed off as completed",
             lambda f: f.edit_events("run_close", lambda v: v.update(status="failed"), number=2)),
    # level
    Mutation("check_settings", "level.closed_setting", "momentum at system level", lambda f: (
        settings(f, momentum=0.123), f.edit_config(lambda c: c.update(level="system")),
        f.edit_submission(lambda s: s.update(level="system")))),
    Mutation("check_settings", "level.missing_setting", "a setting left out",
             lambda f: f.edit_config(lambda c: c["settings"].pop("momentum"))),
    Mutation("check_settings", "level.unknown_setting", "a setting invented", lambda f: settings(f, boost=True)),
    Mutation("check_settings", "level.setting_value", "batch size 0", lambda f: settings(f, batch_size_per_rank=0)),
    Mutation("check_number_of_runs", "runs.number", "one run of two failed", fail_run_2),
    Mutation("check_number_of_runs", "runs.number", "one run of two left out",
             lambda f: f.edit_submission(lambda s: s["runs"].pop())),
    Mutation("check_seeds", "runs.seeds", "one seed for two runs", lambda f: (
        f.edit_config(lambda c: c.update(seed=5)),
        f.edit_submission(lambda s: [run.update(seed=5) for run in s["runs"]]))),
    Mutation("check_seeds", "runs.seeds", "one run passed off as two", copy_run_1_over_run_2),
    Mutation("check_seeds", "runs.seeds", "one run listed twice",
             lambda f: f.edit_submission(lambda s: s["runs"].append(s["runs"][0]))),
    Mutation("check_learning_rates", "runs.learning_rates", "ranks differ",
             lambda f: f.edit_events("window", lambda v: v.update(learning_rate=0.05), rank=1)),
    Mutation("check_learning_rates", "runs.learning_rates", "nothing learnt", lambda f: (
        f.edit_events("window", lambda v: v.update(learning_rate=0.0)),
        f.edit_events("epoch_part", lambda v: v.update(learning_rate_first=0.0, learning_rate_last=0.0)))),
    Mutation("check_learning_rates", "runs.learning_rates", "an epoch ends at another rate",
             lambda f: f.edit_events("epoch_part", lambda v: v.update(learning_rate_last=0.5))),
    # counts
    Mutation("check_data", "counts.data", "7 training samples",
             lambda f: both_runs(f, "data_open", num_train_samples=7)),
    Mutation("check_data", "counts.data", "1 validation sample",
             lambda f: both_runs(f, "data_open", num_validation_samples=1)),
    Mutation("check_data", "counts.data", "two data sets",
             lambda f: f.edit_events("data_open", lambda v: v.update(dataset_sha256=OTHER), rank=1)),
    Mutation("check_data", "counts.data", "batch size 1", lambda f: settings(f, batch_size_per_rank=1)),
    Mutation("check_data", "counts.data", "unknown source", lambda f: (
        both_runs(f, "data_open", source="noise"), f.edit_config(lambda c: c["data"].update(source="noise")),
        f.edit_submission(lambda s: s.update(data_source="noise")))),
    Mutation("check_model", "counts.model", "twice the flop", lambda f: f.edit_events(
        "model_built", lambda v: v.update(flop_training_per_sample=2 * v["flop_training_per_sample"]))),
    Mutation("check_model", "counts.model", "fewer parameters",
             lambda f: both_runs(f, "model_built", num_parameters=9)),
    Mutation("check_model", "counts.model", "smaller pictures", lambda f: settings(f, train_image_size=64)),
    Mutation("check_epochs", "counts.epochs", "samples left out",
             lambda f: f.edit_events("epoch_part", lambda v: v.update(samples=v["samples"] - 16, skipped=16))),
    Mutation("check_epochs", "counts.epochs", "an epoch counted twice",
             lambda f: f.edit_events("epoch_part", lambda v: v.update(epoch=0))),
    Mutation("check_windows", "counts.windows", "a window lost",
             lambda f: f.edit_lines(lambda lines: lines.pop(5))),
    Mutation("check_windows", "counts.windows", "a window twice", lambda f: repeat_line(f, "window")),
    Mutation("check_windows", "counts.windows", "more samples than steps",
             lambda f: f.edit_events("window", lambda v: v.update(samples=v["samples"] * 100))),
    Mutation("check_digests", "counts.digests", "a sample seen twice",
             lambda f: f.edit_events("epoch_part", lambda v: v.update(sample_digest="12345"), rank=1)),
    Mutation("check_digests", "counts.digests", "no digest of the epoch",
             lambda f: f.edit_events("epoch_part", lambda v: v.pop("epoch_digest"), rank=0)),
    Mutation("check_evaluations", "counts.evaluations", "all evaluations deleted",
             lambda f: drop_events(f, "evaluation", "evaluation_shard")),
    Mutation("check_evaluations", "counts.evaluations", "all evaluations but the last deleted", lambda f: [
        f.edit_lines(lambda lines: lines.__setitem__(slice(None), [
            line for line in lines if not (line["event"].startswith("evaluation") and line["value"]["epoch"] == 1)]),
            number=number, rank=rank) for number in (1, 2) for rank in (0, 1)]),
    Mutation("check_evaluations", "counts.evaluations", "an easier validation set", lambda f: (
        f.edit_events("evaluation_shard", lambda v: v.update(samples=v["counts"]["correct"][0])),
        f.edit_events("evaluation", lambda v: v.update(samples=v["counts"]["correct"][0], quality=1.0), rank=0))),
    Mutation("check_evaluations", "counts.evaluations", "more correct than samples",
             lambda f: f.edit_events(
                 "evaluation_shard", lambda v: v["counts"].update(correct=[v["samples"] + 1]), rank=1)),
    # resumed runs
    Mutation("check_segments", "chain.segments", "resumed from what was never saved", lambda f: edit_resume(
        f, path="epoch-0002.pt", epoch=2), resumed=True),
    Mutation("check_segments", "chain.segments", "resumed further than the checkpoint was", lambda f: edit_resume(
        f, step=3), resumed=True),
    Mutation("check_segments", "chain.segments", "a ledger of the first segment exchanged", lambda f: f.edit_lines(
        lambda lines: lines[-1]["value"].update(loss_sum=1.0), rank=1), resumed=True, mends="figures"),
    Mutation("check_epochs", "counts.epochs", "work of the killed segment left out later", lambda f: [f.edit_lines(
        leave_first_window_out, rank=rank, segment=1) for rank in (0, 1)], resumed=True),
    Mutation("check_order", "chain.order", "a second start without resuming", lambda f: [f.edit_lines(
        lambda lines: keep(lines, ("resume",)), rank=rank, segment=1) for rank in (0, 1)], resumed=True),
    Mutation("check_order_of_times", "times.order", "resumed before it was killed", lambda f: [f.edit_lines(
        lambda lines: [line.update(time_ns=line["time_ns"] - 995 * NS_PER_S) for line in lines], rank=rank, segment=1)
        for rank in (0, 1)], resumed=True),
    Mutation("check_checkpoints", "times.checkpoints", "no checkpoint for an hour", lambda f: [both_runs_later(
        f, "clock_stop", 3600)]),
    # figures
    Mutation("check_quality", "figures.quality", "accuracy 0.9999",
             lambda f: f.edit_events("evaluation", lambda v: v.update(quality=0.9999), rank=0)),
    Mutation("check_quality", "figures.quality", "more correct in sum", lambda f: f.edit_events(
        "evaluation", lambda v: v.update(counts={"correct": [v["samples"]]}, quality=1.0), rank=0)),
    Mutation("check_quality", "figures.quality", "a loss of one rank alone", lambda f: (
        f.edit_events("evaluation_shard", lambda v: v.update(loss_sum=None), rank=1),
        f.edit_events("evaluation", lambda v: v.update(loss=None), rank=0))),
    Mutation("check_quality", "figures.quality", "a lower loss",
             lambda f: f.edit_events("evaluation", lambda v: v.update(loss=0.01), rank=0)),
    Mutation("check_quality", "figures.quality", "accuracy 0.99 in the shards alone",
             lambda f: set_quality_everywhere(f, 0.99)),
    Mutation("check_quality", "figures.quality", "a curve that top-1 has not",
             lambda f: f.edit_events("evaluation", lambda v: v.update(curves=[[1.0]]), rank=0)),
    Mutation("check_result", "figures.result", "a faster result",
             lambda f: f.edit_json(f.run() / "result.json", lambda r: r.update(wall_s=r["wall_s"] / 2)), "digests"),
    Mutation("check_result", "figures.result", "a part of the time hidden", lambda f: f.edit_json(
        f.run() / "result.json", lambda r: r["parts"].update(data_wait_s=0.0)), "digests"),
    Mutation("check_summary", "figures.summary", "a better score",
             lambda f: f.edit_submission(lambda s: s["summary"].update(vflops=9e9)), "digests"),
    Mutation("check_summary", "figures.summary", "mini passed off as rankable",
             lambda f: f.edit_submission(lambda s: s["summary"].update(rankable=True, why_not=[])), "digests"),
    Mutation("check_summary", "figures.summary", "a narrower interval", lambda f: f.edit_submission(
        lambda s: s["summary"].update(vflops_interval=[s["summary"]["vflops"]] * 2)), "digests"),
    # times
    Mutation("check_order_of_times", "times.order", "ends 60 s before it starts", lambda f: move_clock_stop(f, -60)),
    Mutation("check_clock", "times.clock", "ends 60 s before it starts", lambda f: move_clock_stop(f, -60)),
    Mutation("check_clock", "times.clock", "a rank's day later", lambda f: f.edit_lines(
        lambda lines: [line.update(time_ns=line["time_ns"] + 86400 * NS_PER_S) for line in lines], rank=1)),
    Mutation("check_order_of_times", "times.order", "ends 1 s after it starts", lambda f: move_clock_stop(f, 1)),
    Mutation("check_durations", "times.durations", "all times compressed 100 times",
             lambda f: compress_times(f, 100, walls=True)),
    Mutation("check_durations", "times.durations", "one long evaluation",
             lambda f: f.edit_events("evaluation_shard", lambda v: v.update(duration_ns=10**15), rank=1)),
    Mutation("check_parts", "times.parts", "training steps shorter than their parts",
             lambda f: f.edit_events("window", lambda v: v.update(duration_ns=v["duration_ns"] // 100))),
    Mutation("check_wall", "times.wall", "all times but the wall clock compressed 100 times",
             lambda f: compress_times(f, 100, walls=False)),
    Mutation("check_wall", "times.wall", "a wall clock of another year",
             lambda f: f.edit_events("clock_stop", lambda v: v.update(wall_ns=v["wall_ns"] + 10**18))),
    *EQUIVALENCE_MUTATIONS,
    *PHYSICS_MUTATIONS,
    *REGISTER_MUTATIONS,
    *WORK_MUTATIONS,
)  # fmt: skip


def rules_found(forger: Forger) -> set[str]:
    return {finding.rule for finding in verify_submission(forger.path).findings}


def test_what_a_correct_run_writes_is_valid(recorded: Path) -> None:
    verdict = verify_submission(recorded)
    assert verdict.findings == []
    assert verdict.valid


def test_forging_without_a_change_leaves_a_valid_submission(forger: Forger, resumed: Forger) -> None:
    for one in (forger, resumed):
        one.forge()
        assert verify_submission(one.path).findings == []


@pytest.mark.parametrize("num_ranks", [1, 2, 4])
def test_a_resumed_run_is_valid_and_its_lost_work_costs_time(tmp_path: Path, num_ranks: int) -> None:
    verdict = verify_submission(record_submission(tmp_path, resumed_on=num_ranks))
    assert verdict.findings == []
    assert verdict.notes == ["run run-1 was resumed once; its clock ran on all the while"]
    changed = [reason for reason in verdict.why_not if "a machine that changes" in reason]
    assert len(changed) == (num_ranks != 2)
    resumed, straight = verdict.results
    assert resumed.samples == straight.samples
    assert resumed.parts is not None
    assert resumed.parts.lost_s > 0
    assert resumed.parts.restart_s > 900
    assert (resumed.wall_s or 0) > (straight.wall_s or 0) + resumed.parts.restart_s


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: f"{mutation.check}-{mutation.name}")
def test_a_broken_submission_is_rejected_and_the_rule_named(
    forger: Forger, resumed: Forger, mutation: Mutation, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_rejected(resumed if mutation.resumed else forger, mutation, monkeypatch)


def assert_rejected(forger: Forger, mutation: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rule is named, also where no check but that of the mutation looks."""
    mutation.change(forger)
    if mutation.mends != "no":
        forger.forge(configs=mutation.mends == "all", figures=mutation.mends in ("all", "figures"))
    assert mutation.rule in rules_found(forger)
    assert main([str(forger.path), "--quiet"]) == 1
    for table, checks in (("FORM_CHECKS", FORM_CHECKS), ("CONTENT_CHECKS", CONTENT_CHECKS)):
        mine = tuple(check for check in checks if check.__name__ == mutation.check)
        monkeypatch.setattr(f"hpcai500.verify.{table}", mine)
    assert mutation.rule in rules_found(forger), "another check found it"


def test_every_check_has_a_mutation_of_its_own() -> None:
    names = [check.__name__ for check in (*FORM_CHECKS, *CONTENT_CHECKS)]
    assert len(set(names)) == len(names)
    assert {mutation.check for mutation in (*MUTATIONS, *TRUTH_MUTATIONS, *LEARNING_MUTATIONS)} == set(names)
