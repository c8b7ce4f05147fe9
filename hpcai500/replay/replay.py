"""Trains some steps of a submitted run again, on as many ranks as then, and compares what they lose.

The ranks go on from one of the run's own checkpoints, or from its seed, exactly as those of a resumed run would
(hpcai500/train.py), in a folder of their own that is removed afterwards. Only a submission whose files, ledgers and
settings are in order is replayed: its settings are then such as the level allows, and none of them names code.

Needs the run half: torch, and the communicator and pipeline of the run.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from msgspec.structs import replace

from hpcai500.command import INTERRUPTED_EXIT_CODE
from hpcai500.edition import load_edition
from hpcai500.errors import BackendUnavailableError, ReplayError, UsageError
from hpcai500.finding import Finding
from hpcai500.formats import RunConfig, Submission, System, read_config, read_record, write_json
from hpcai500.record import RunRecord, read_run
from hpcai500.replay.checkpoint_file import container_problem, content_problem, copy_checkpoint, largest_bytes
from hpcai500.replay.compare import Envelope, WindowPair, compare_losses, compare_samples, pair_windows, step_losses
from hpcai500.replay.machine import check_memory, count_need, differences, estimate_s, threads_of
from hpcai500.replay.order import ORDER_NAME, ReplayOrder
from hpcai500.replay.stretch import Origin, Stretch, checkpoint_file, choose_stretch
from hpcai500.verdict import Verdict, errors_of

# Groups of rules without which nobody knows what to replay, or whether it is safe to.
RELIES_ON = {"form", "ledger", "chain", "level", "counts"}
PROG = "hpcai500-verify"
CHECKPOINT_NAME = "checkpoint.pt"
MOST = {"num_workers": len(os.sched_getaffinity(0)), "prefetch": 4}
DRAW_ON_DEVICE = {"fasterrcnn"}  # workloads whose training draws random numbers there
OTHER_FORMAT = {"channels_last": "contiguous", "contiguous": "channels_last"}


@dataclass(frozen=True, kw_only=True)
class ReplayRequest:
    """What the verifier's user asks for.

    Attributes:
        num_steps: at least so many are replayed; more where the ledger has no window that ends there.
        run: which run of the submission, from 1; the first that completed by default.
        data: where its data lies here; where it lay then by default.
        origin: where to begin; by default at a checkpoint, and at the beginning where none is at hand.
        quiet: show no progress.
    """

    num_steps: int
    run: int | None = None
    data: Path | None = None
    origin: Origin | None = None
    quiet: bool = False


class Replayed(NamedTuple):
    """What a replay found: what is wrong, and what was done, in sentences."""

    findings: list[Finding]
    notes: list[str]


def replay_verdict(path: Path, verdict: Verdict, request: ReplayRequest) -> Verdict:
    """A verdict with what a replay finds; a submission that does not say soundly what to replay is not replayed.

    Raises: as ``replay_submission``.
    """
    rules = sorted({finding.rule for finding in errors_of(verdict.findings)})
    broken = [rule for rule in rules if rule.partition(".")[0] in RELIES_ON]
    if broken:
        return replace(verdict, notes=[*verdict.notes, f"nothing was replayed, since it breaks {', '.join(broken)}"])
    findings, notes = replay_submission(path, request)
    return replace(
        verdict,
        valid=verdict.valid and not findings,
        rankable=verdict.rankable and not findings,
        why_not=[*verdict.why_not, "it is not valid"] if findings and verdict.valid else verdict.why_not,
        findings=[*verdict.findings, *findings],
        notes=[*verdict.notes, *notes],
        checks=[*verdict.checks, "replay"],
    )


def replay_submission(path: Path, request: ReplayRequest) -> Replayed:
    """Replay steps of one run of a submission whose files, ledgers and settings the verifier has found in order.

    Raises:
        UsageError: the request is not possible.
        ReplayError: the steps cannot be replayed here; says nothing about the submission.
        BackendUnavailableError: a library is missing.
        DataError: the data is damaged, or another.
        KeyboardInterrupt: the user has ended it.
    """
    if request.num_steps < 1:
        raise UsageError(f"--replay {request.num_steps} is not possible; give at least 1 step, for example --replay 20")
    if importlib.util.find_spec("torch") is None:
        raise BackendUnavailableError(
            "a replay needs torch, which is not installed here; get it with `pip install hpcai500`, or verify without "
            "--replay"
        )
    run, place = _choose_run(path, request.run)
    stretch = choose_stretch(run, place, num_steps=request.num_steps, origin=request.origin)
    return _Replay(stretch, request).replay()


def _choose_run(path: Path, number: int | None) -> tuple[RunRecord, str]:
    """The run that is asked for, and its folder's name.

    Raises:
        UsageError: there is no such run.
    """
    submission = read_record(path, Submission)
    completed = [index for index, run in enumerate(submission.runs, start=1) if run.status == "completed"]
    chosen = completed[0] if number is None else number
    if chosen not in completed:
        raise UsageError(
            f"--replay-run {chosen} is no completed run of {str(path)!r}; choose of {', '.join(map(str, completed))}"
        )
    place = submission.runs[chosen - 1].folder
    folder = path.parent / place
    return read_run(folder, read_config(folder)[0]), place


class _Replay:
    """One replay of a stretch."""

    def __init__(self, stretch: Stretch, request: ReplayRequest) -> None:
        self._stretch, self._request = stretch, request
        self._size = load_edition().workload(stretch.run.config.workload).size(stretch.run.config.size)
        system = stretch.run.folder / f"system-{stretch.segment.number:03d}.json"
        self._system = read_record(system if system.exists() else stretch.run.folder / "system.json", System)

    def replay(self) -> Replayed:
        """Train the steps, and a second time as a control where the first does not decide."""
        stretch = self._stretch
        config = self._configure()
        with tempfile.TemporaryDirectory(prefix="hpcai500-replay-") as folder:
            problem = self._take_checkpoint(Path(folder) / CHECKPOINT_NAME)
            if problem is not None:
                return Replayed([problem], [])
            self._announce(config, f"replaying {stretch.describe()}")
            replayed, here = self._train(Path(folder) / "replay", config, "replay")
            pairs = pair_windows(stretch, replayed)
            reasons = differences(stretch, config, self._system, here)
            envelope = None
            if reasons and not all(pair.is_equal for rank in pairs for pair in rank):
                again = self._control(config)
                self._announce(again, "as this machine is another, once more with sums in another order")
                control, _ = self._train(Path(folder) / "control", again, "control")
                envelope = Envelope(step_losses(replayed), step_losses(control))
        findings = compare_losses(pairs, envelope) + compare_samples(pairs)
        return Replayed(findings, self._notes(pairs, reasons, envelope))

    def _configure(self) -> RunConfig:
        """The run's configuration, with what this machine has: data, device, and precision where it has no GPU.

        Raises:
            ReplayError: its data is not here.
            DataError: the data that is here is another.
            BackendUnavailableError: a library is missing.
        """
        from hpcai500.setting_needs import check_backends
        from hpcai500.workloads import data_module

        config, num_ranks = self._stretch.run.config, self._stretch.segment.num_ranks
        path = self._request.data or Path(config.data.path)
        if not (path.is_file() or path.is_dir()):
            raise ReplayError(
                f"the data of {self._stretch.place} is not at {str(path)!r} on this machine; name it with --data: data "
                f"set {config.data.dataset_sha256} from {config.data.source}"
            )
        found = data_module(config.workload).describe_data(path, self._size).dataset_sha256
        if found != config.data.dataset_sha256:
            raise ReplayError(
                f"{str(path)!r} holds data set {found} and {self._stretch.place} was trained on "
                f"{config.data.dataset_sha256}; name that with --data"
            )
        # None of these changes a loss. A window a step tells all; pictures are decoded as fast as it goes here.
        changes: dict[str, object] = {"report_steps": 1, "checkpoint_every_s": 0.0}
        changes |= {key: min(int(config.settings[key]), MOST[key]) for key in MOST if key in config.settings}
        device = "cuda" if config.device == "cuda" and _num_gpus() >= num_ranks else "cpu"
        if device != config.device and config.workload in DRAW_ON_DEVICE:
            raise ReplayError(
                f"{config.workload} draws random numbers on its device, so {self._stretch.place} can be replayed on "
                f"GPUs only; it needs {num_ranks} and this machine shows {_num_gpus()}"
            )
        if device != config.device:
            changes |= {"precision": "fp32", "torch_compile": False, "cuda_graphs": False}
        settings = {**config.settings, **changes}
        check_backends(settings)
        data = replace(config.data, path=str(path.absolute()))
        return replace(config, device=device, data=data, settings=settings)

    def _control(self, config: RunConfig) -> RunConfig:
        """The same steps with sums in another order; where the run was on GPUs and this is not, also in bf16.

        That is as coarse as most such runs are (no processor has fp16, which is finer), and about as coarse as pictures
        decoded by other libraries: late in a mini run either made losses differ by a thousandth from the first step on.
        """
        changes = {"memory_format": OTHER_FORMAT[str(config.settings["memory_format"])]}
        if config.device != self._stretch.run.config.device:
            changes["precision"] = "bf16"
        return replace(config, settings={**config.settings, **changes})

    def _take_checkpoint(self, target: Path) -> Finding | None:
        """Copy the checkpoint out of the submission if there is one to begin at; what is wrong with it otherwise."""
        event, run = self._stretch.checkpoint, self._stretch.run
        if event is None:
            return None
        num_ranks = max(run.config.num_ranks, *(segment.num_ranks for segment in run.segments))
        problem = copy_checkpoint(
            checkpoint_file(run, event),
            target,
            sha256=event.sha256,
            max_bytes=largest_bytes(self._size.num_parameters, num_ranks),
        )
        expected = f"the file with sha256 {event.sha256}, as the ledgers say"
        if problem is None:
            expected = "a checkpoint as torch.save writes it"
            problem = container_problem(target, num_ranks=num_ranks) or content_problem(target)
        place = f"{self._stretch.place}/checkpoints/{event.path}"
        return None if problem is None else Finding("replay.checkpoint", place, expected, problem)

    def _announce(self, config: RunConfig, what: str) -> None:
        """Say what is going to be done and about how long it takes, before it begins.

        Raises:
            ReplayError: this machine has not the memory for it.
        """
        need = count_need(self._stretch, self._size)
        check_memory(need, num_ranks=self._stretch.segment.num_ranks)
        if self._request.quiet:
            return
        duration_s = estimate_s(need, config)
        took = f"{duration_s:.0f} s" if duration_s < 600 else f"{duration_s / 3600:.1f} h; Ctrl-C ends it"
        self._say(f"{what}: {need.num_samples:,} samples, {need.flop / 1e12:,.3g} TFLOP, on this machine about {took}")

    def _train(self, folder: Path, config: RunConfig, title: str) -> tuple[RunRecord, System]:
        """Have ranks train the steps in a folder of their own; what they recorded, and on what.

        Raises:
            ReplayError: they did not get to the end; says why.
        """
        from hpcai500.failure import read_failure
        from hpcai500.launch.local import run_ranks

        start, checkpoint, num_ranks = self._stretch.start, self._stretch.checkpoint, self._stretch.segment.num_ranks
        (folder / "checkpoints").mkdir(parents=True)
        write_json(folder / "config.json", config)
        if checkpoint is not None:
            (folder / "checkpoints" / CHECKPOINT_NAME).hardlink_to(folder.parent / CHECKPOINT_NAME)
        order = ReplayOrder(
            epoch=start.epoch,
            step=start.step,
            path=CHECKPOINT_NAME if checkpoint else "",
            sha256=checkpoint.sha256 if checkpoint else "",
            num_steps=self._stretch.num_steps + 1,  # the envelope looks one step ahead
        )
        write_json(folder / ORDER_NAME, order)
        with self._progress(folder, f"{title} of {self._stretch.place}"):
            command = [sys.executable, "-m", "hpcai500.train", str(folder), "--replay"]
            exit_code = run_ranks(str(config.settings["communicator"]), num_ranks, command, threads_of(self._system))
        if exit_code == INTERRUPTED_EXIT_CODE:
            raise KeyboardInterrupt
        if exit_code != 0:
            failure = read_failure(folder, 0)
            reason = failure.reason if failure else f"its ranks ended with exit code {exit_code}"
            raise ReplayError(f"the {title} of {self._stretch.place} did not get to its end: {reason}")
        return read_run(folder, config), read_record(folder / "system.json", System)

    def _notes(self, pairs: Sequence[Sequence[WindowPair]], reasons: list[str], envelope: Envelope | None) -> list[str]:
        """What was replayed and how well it agrees, in sentences."""
        every = [pair for rank in pairs for pair in rank]
        num_equal = sum(pair.is_equal for pair in every)
        agreement = f"{num_equal} of {len(every)} windows are equal to the bit"
        if envelope is not None:
            worst = max(every, key=lambda pair: pair.difference / envelope.of(pair.steps))
            allowed = envelope.of(worst.steps)
            agreement += f", and the losses differ by at most {worst.difference:.1e} where {allowed:.1e} is allowed"
        notes = [f"replayed {self._stretch.describe()}: {agreement}"]
        if envelope is not None:
            notes.append(f"the replay could not be equal to the bit: {'; '.join(reasons)}")
        asked, num_steps = self._request.num_steps, self._stretch.num_steps
        if num_steps > asked:
            notes.append(
                f"the ledgers tell losses of whole windows only, so {num_steps} steps were replayed, not {asked}"
            )
        if num_steps < asked:
            notes.append(f"there are no more than {num_steps} steps to the end of the epoch or of its segment")
        return notes

    def _progress(self, folder: Path, title: str) -> AbstractContextManager[object]:
        """Show how far the ranks are."""
        from hpcai500.progress import ProgressDisplay
        from hpcai500.replay.follow import ReplayFollower

        if self._request.quiet:
            return nullcontext()
        return ProgressDisplay(ReplayFollower(folder, self._stretch), title=title)

    def _say(self, text: str) -> None:
        sys.stderr.write(f"{PROG}: {text}\n")
        sys.stderr.flush()


def _num_gpus() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0
