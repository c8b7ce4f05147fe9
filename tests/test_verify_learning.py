"""Losses, quality curves and lists of runs that no training leaves, in a submission that else is sound."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from forging import Forger, Mutation
from recording import record_submission

from hpcai500.checks import CONTENT_CHECKS, learning, seeds, statistics
from hpcai500.sample_order import EpochDigests
from hpcai500.verify import verify_submission

Value = dict[str, Any]
RUNS = (1, 2, 3, 4, 5)
CHECKS = {
    name: check
    for module in (learning, seeds, statistics)
    for name, check in vars(module).items()
    if name.startswith("check_")
}


@pytest.fixture(autouse=True)
def only_checks_of_learning(edition_of_recorded: None, monkeypatch: pytest.MonkeyPatch) -> None:
    # The other checks take their time with so many epochs, and are tested elsewhere.
    monkeypatch.setattr("hpcai500.verify.FORM_CHECKS", ())
    monkeypatch.setattr("hpcai500.verify.CONTENT_CHECKS", tuple(CHECKS.values()))


@pytest.fixture(scope="session")
def recorded_official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five runs on two ranks at hardware level, a window an epoch."""
    settings: dict[str, object] = {"report_steps": 25, "checkpoint_every_s": 0.0}
    digests = EpochDigests(0, 0, num_samples=12_811, global_batch=512)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("recording.epoch_digests", lambda *_, **__: digests)  # of many samples; nobody looks here
        folder = tmp_path_factory.mktemp("official")
        return record_submission(folder, size="official", level="hardware", settings=settings)


@pytest.fixture
def official(recorded_official: Path, tmp_path: Path) -> Forger:
    shutil.copytree(recorded_official.parent, tmp_path / "official")
    return Forger(tmp_path / "official" / recorded_official.name)


def every_run(forger: Forger, event: str, change: Callable[[Value], object], **which: int) -> None:
    for number in RUNS:
        forger.edit_events(event, change, number=number, **which)


def claim_quality(
    forger: Forger, quality_after: Callable[[int, float], float], *, numbers: tuple[int, ...] = RUNS, noisy: bool = True
) -> None:
    """Let all shards, and the evaluations that are their sums, say another quality after each epoch."""
    for number in numbers:
        correct: dict[int, int] = {}

        def change_shard(value: Value, number: int = number, correct: dict[int, int] = correct) -> None:
            [old] = value["counts"]["correct"]
            own = random.Random(f"{number} {value['epoch']}").randrange(3) if noisy else 0  # runs are not alike
            new = int(value["samples"] * quality_after(value["epoch"], old / value["samples"])) + own
            value["counts"]["correct"] = [new]
            correct[value["epoch"]] = correct.get(value["epoch"], 0) + new

        def change_whole(value: Value, correct: dict[int, int] = correct) -> None:
            value["counts"]["correct"] = [correct[value["epoch"]]]
            value["quality"] = correct[value["epoch"]] / value["samples"]

        forger.edit_events("evaluation_shard", change_shard, number=number)
        forger.edit_events("evaluation", change_whole, number=number, rank=0)


def scale_losses(forger: Forger, factor: float, *, number: int, rank: int | None = None) -> None:
    forger.edit_events(
        "window", lambda value: value.update(loss_sum=factor * value["loss_sum"]), number=number, rank=rank
    )


def set_losses(forger: Forger, loss_of: Callable[[Value], float]) -> None:
    every_run(forger, "window", lambda value: value.update(loss_sum=value["num_steps"] * loss_of(value)))


def window_losses(forger: Forger, number: int) -> Iterator[float]:
    lines = forger.lines(number)
    return (line["value"]["loss_sum"] / line["value"]["num_steps"] for line in lines if line["event"] == "window")


def copy_losses(forger: Forger, loss_of: Callable[[int, float], float]) -> None:
    """Give both ranks of run 2 the losses of run 1, changed window by window."""
    for rank in (0, 1):
        losses = enumerate(list(window_losses(forger, 1)))

        def change(value: Value, losses: Iterator[tuple[int, float]] = losses) -> None:
            value["loss_sum"] = value["num_steps"] * loss_of(*next(losses))

        forger.edit_events("window", change, number=2, rank=rank)


def copy_qualities(forger: Forger) -> None:
    lines = forger.lines()
    qualities = {line["value"]["epoch"]: line["value"]["quality"] for line in lines if line["event"] == "evaluation"}
    claim_quality(forger, lambda epoch, _: qualities[epoch] + 1e-9, numbers=(2,), noisy=False)


def forget_run_3(forger: Forger) -> None:
    forger.edit_submission(lambda submission: submission["runs"].pop(2))


MUTATIONS = (
    Mutation("check_epochs_to_quality", "learning.epochs", "0.765 after 20 epochs",
             lambda f: claim_quality(f, lambda epoch, old: max(old, 0.765 * min(1, epoch / 20)))),
    Mutation("check_epochs_to_quality", "learning.epochs", "0.765 after the first epoch of two runs",
             lambda f: claim_quality(f, lambda epoch, old: 0.765, numbers=(1, 2))),
    Mutation("check_highest_quality", "learning.quality", "0.79 at the end of one run", lambda f: claim_quality(
        f, lambda epoch, old: 0.79 if epoch == 90 else old, numbers=(4,))),
    Mutation("check_loss_bounds", "learning.loss", "less than smoothed labels allow",
             lambda f: f.edit_events("window", lambda v: v.update(loss_sum=0.5 * v["num_steps"]), number=3, rank=1)),
    Mutation("check_loss_bounds", "learning.loss", "right more often, and the loss of before left",
             lambda f: f.edit_events("evaluation_shard", lambda v: v.update(loss_sum=0.1 * v["samples"]), rank=1)),
    Mutation("check_start", "learning.start", "weights that were learnt before", lambda f: set_losses(
        f, lambda v: 2.0 - 0.005 * v["epoch"])),
    Mutation("check_trend", "learning.trend", "the curve of losses turned round", lambda f: set_losses(
        f, lambda v: 4 + v["epoch"] / 30)),
    Mutation("check_trend", "learning.trend", "losses that go up and down", lambda f: set_losses(
        f, lambda v: 6.9 - 2 * (v["epoch"] % 10) / 10)),
    Mutation("check_trend", "learning.trend", "evaluation loss that rises", lambda f: (
        every_run(f, "evaluation_shard", lambda v: v.update(loss_sum=(1 + v["epoch"] / 20) * v["samples"])),
        every_run(f, "evaluation", lambda v: v.update(loss=1 + v["epoch"] / 20), rank=0))),
    Mutation("check_noise", "learning.noise", "one loss for all windows", lambda f: set_losses(f, lambda v: 5.0)),
    Mutation("check_noise", "learning.noise", "a smooth curve", lambda f: set_losses(
        f, lambda v: 1.5 + 5 * 0.97 ** v["epoch"])),
    Mutation("check_ranks_alike", "learning.ranks", "a rank that learns something else",
             lambda f: scale_losses(f, 1.6, number=2, rank=1)),
    Mutation("check_copies", "learning.copies", "a run copied, every tenth loss changed", lambda f: copy_losses(
        f, lambda at, loss: loss if at % 10 else 1.001 * loss)),
    Mutation("check_copies", "learning.copies", "a run copied and scaled",
             lambda f: copy_losses(f, lambda at, loss: 1.01 * loss + 0.01)),
    Mutation("check_copies", "learning.copies", "the qualities of another run", copy_qualities),
    Mutation("check_related", "learning.related", "twice the loss with the same quality",
             lambda f: scale_losses(f, 2.0, number=5)),
    Mutation("check_order_of_runs", "runs.order", "runs in another order",
             lambda f: f.edit_submission(lambda s: s["runs"].reverse())),
    Mutation("check_runs_are_listed", "runs.listed", "a run of five left out", forget_run_3),
    Mutation("check_runs_are_listed", "runs.listed", "left out, and made in the year 9999", lambda f: (
        forget_run_3(f), f.edit_submission(lambda s: s.update(created="9999-99-99T99:99:99Z")))),
)  # fmt: skip


def rules_found(forger: Forger) -> set[str]:
    return {finding.rule for finding in verify_submission(forger.path).findings}


def test_what_a_correct_official_run_writes_is_valid(official: Forger) -> None:
    assert rules_found(official) == set()


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: f"{mutation.check}-{mutation.name}")
def test_what_no_training_leaves_is_rejected_and_the_rule_named(
    official: Forger, mutation: Mutation, monkeypatch: pytest.MonkeyPatch
) -> None:
    mutation.change(official)
    monkeypatch.setattr("hpcai500.verify.CONTENT_CHECKS", (CHECKS[mutation.check],))
    verdict = verify_submission(official.path)
    assert mutation.rule in {finding.rule for finding in verdict.findings}
    assert not verdict.valid


def test_every_check_of_learning_has_a_mutation() -> None:
    assert {mutation.check for mutation in MUTATIONS} == set(CHECKS)
    assert set(CHECKS.values()) <= set(CONTENT_CHECKS)


def test_unusually_few_epochs_are_a_warning(official: Forger) -> None:
    """32 epochs where 35 are usual: t = 3 / (1.75 sqrt(1/17 + 1/5)) = 3.4 of 16 degrees, a probability of 0.002."""
    claim_quality(official, lambda epoch, old: 0.765 if epoch >= 32 else min(old, 0.7))
    assert "learning.epochs_unusual" in rules_found(official)
    assert "learning.epochs" not in rules_found(official)


def test_a_run_that_never_reaches_the_quality_is_no_fault(official: Forger) -> None:
    claim_quality(official, lambda epoch, old: min(old, 0.74))
    assert rules_found(official) == set()


def test_other_levels_have_other_points(official: Forger) -> None:
    """27 epochs are beyond LARS tuned for MLPerf, and have been done with another recipe."""
    claim_quality(official, lambda epoch, old: 0.765 if epoch >= 27 else min(old, 0.7))
    official.edit_config(lambda config: config.update(level="free"), numbers=RUNS)
    official.edit_submission(lambda submission: submission.update(level="free"))
    assert rules_found(official) == set()


def test_what_was_not_judged_is_said(official: Forger) -> None:
    assert not any("reference" in note for note in verify_submission(official.path).notes)
    official.edit_submission(lambda submission: submission.update(data_source="generated"))
    assert any("how fast it learnt was not judged" in note for note in verify_submission(official.path).notes)


@pytest.mark.parametrize("huge", [1.7e308, 5e-324, 0.0])
def test_no_loss_makes_a_check_raise(official: Forger, huge: float) -> None:
    every_run(official, "window", lambda value: value.update(loss_sum=huge))
    every_run(official, "evaluation_shard", lambda value: value.update(loss_sum=huge), rank=1)
    assert rules_found(official)
