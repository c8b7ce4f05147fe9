"""Add the readings of power meters to runs that are complete: cut out what lies in each run's clock, and figure it in.

Run as ``hpcai500 meter runs/NAME pdu.csv`` or ``python -m hpcai500.energy.command runs/NAME pdu.csv``.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TextIO

import msgspec

from hpcai500.command import run_command
from hpcai500.durable import write_whole
from hpcai500.edition import Edition, load_edition
from hpcai500.energy.integrate import NS_PER_S
from hpcai500.energy.meter_file import METER_NAME, MeterHeader, MeterReading, read_meter
from hpcai500.energy.told import alone_host, short_name, stretches_of
from hpcai500.errors import RecordError, UsageError
from hpcai500.formats import SUBMISSION_NAME, Submission, read_config, read_record
from hpcai500.over import REPORT_NAME, run_folders, show_verdict, submitted_folders
from hpcai500.record import read_run
from hpcai500.signature import signature_path
from hpcai500.submission import assemble_submission, result_from_ledgers

EPILOG = """examples:
  hpcai500 meter runs/NAME pdu.csv                      one meter, or all nodes in one file
  hpcai500 meter runs/NAME rack1.csv rack2.csv          several

A file is CSV with the columns time (Unix time, or ISO 8601 with its zone), node, meter (may be left out) and power_w or
energy_j. A line "# accuracy: 1 %" above states the largest error. One reading a second on all nodes, at 5 % or better,
makes the energy "measured"; see docs/energy.rst."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's words."""
    parser.add_argument("submission", type=Path, metavar="FOLDER", help="the submission's folder, with its runs")
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="what the meters read, as CSV")


def run(args: argparse.Namespace) -> int:
    """Add the readings, and assemble the submission anew if there was one. Returns 0 if all runs have a figure."""
    folder, submission = args.submission, args.submission / SUBMISSION_NAME
    folders = [one for one in run_folders(folder) if (one / "result.json").exists()]
    if not folders:
        raise UsageError(f"{str(folder)!r} has no run that is complete; name the folder that `hpcai500 submit` made")
    if signature_path(submission).exists():
        raise UsageError(f"{str(submission)!r} is signed, so it can no longer change; add meters first, and then sign")
    have = [one / METER_NAME for one in folders if (one / METER_NAME).exists()]
    if have:
        raise UsageError(f"{str(have[0])!r} exists and is never overwritten; remove it to add other readings")
    cuts = [Cut(one) for one in folders]
    with ExitStack() as undo:
        for cut in cuts:
            undo.callback(cut.path.unlink, missing_ok=True)
        cut_meters(args.files, cuts)
        undo.pop_all()
    edition = load_edition()
    told = [_take_in(cut, edition) for cut in cuts]
    if any(told) and submission.exists():
        submitter = read_record(submission, Submission).submitter
        for name in (SUBMISSION_NAME, REPORT_NAME):
            _put_aside(folder / name)
        assemble_submission(submitted_folders(folder), submission, edition, submitter=submitter)
        return 0 if show_verdict(submission) and all(told) else 1
    return 0 if all(told) else 1


class Cut:
    """What is cut out for a run: the readings of its nodes that lie in its clock or enclose it."""

    def __init__(self, run_folder: Path) -> None:
        config, _ = read_config(run_folder)
        self.path = run_folder / METER_NAME
        self._stretches = stretches_of(read_run(run_folder, config))
        self._hosts = {short_name(host) for stretch in self._stretches for host in stretch.clocks}
        self._alone = alone_host(self._stretches)
        self._written_ns: dict[tuple[str, str], int] = {}

    @property
    def wanted(self) -> str:
        """What readings it takes, in a sentence."""
        clocks = [(one.begin_ns / NS_PER_S, one.end_ns / NS_PER_S) for one in self._stretches]
        spans = " and ".join(" to ".join(_utc(time_s) for time_s in clock) for clock in clocks)
        hosts = sorted(self._hosts)
        more = f" and {len(hosts) - 3} more" if len(hosts) > 3 else ""
        return f"It takes readings of {', '.join(hosts[:3])}{more} from before to after {spans}"

    def lines(self, last: MeterReading | None, reading: MeterReading) -> Iterator[str]:
        """What of a meter's reading, and of its last one before, is to be written now."""
        nodes = " ".join(map(short_name, reading.nodes.split())) or self._alone
        if not self._hosts.intersection(nodes.split()):
            return
        is_wanted = any(one.begin_ns <= reading.time_ns <= one.end_ns for one in self._stretches)
        if last is not None and any(
            last.time_ns < one.end_ns and reading.time_ns > one.begin_ns for one in self._stretches
        ):
            is_wanted = True
            yield from self._line(last, nodes)
        if is_wanted:
            yield from self._line(reading, nodes)

    def _line(self, reading: MeterReading, nodes: str) -> Iterator[str]:
        key = (nodes, reading.meter)
        if self._written_ns.get(key) == reading.time_ns:
            return
        self._written_ns[key] = reading.time_ns
        seconds, rest_ns = divmod(reading.time_ns, NS_PER_S)
        meter = '"' + reading.meter.replace('"', '""') + '"' if reading.meter else ""
        yield f"{seconds}.{rest_ns:09d},{nodes},{meter},{reading.value!r}\n"


def cut_meters(files: Sequence[Path], cuts: Sequence[Cut]) -> None:
    """Write each run's meter.csv from the files of all meters, in one pass and little memory.

    Args:
        files: to read; of a logger that starts new ones, the earlier first.
        cuts: of the runs.

    Raises:
        RecordError: a file cannot be read or a line of it is wrong, files hold different quantities, or one cannot be
            written.
    """
    headers = [read_meter(file)[0] for file in files]
    if len({header.quantity for header in headers}) > 1:
        raise RecordError("some files have power_w and others energy_j; give files of one kind")
    last: dict[tuple[str, str], MeterReading] = {}
    with ExitStack() as opened:
        outputs = [opened.enter_context(_create(cut.path)) for cut in cuts]
        for output in outputs:
            output.writelines(_heading(headers))
        for file in files:
            for reading in read_meter(file)[1]:
                key = (reading.nodes, reading.meter)
                before = last.get(key)
                if before is not None and reading.time_ns <= before.time_ns:
                    raise RecordError(
                        f"{str(file)!r}: the readings of {' '.join(key).strip() or 'the meter'} are not in the order "
                        "of their time; sort them, and tell meters apart by the columns node and meter"
                    )
                last[key] = reading
                for cut, output in zip(cuts, outputs, strict=True):
                    output.writelines(cut.lines(before, reading))


def _utc(time_s: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time_s))


def _create(path: Path) -> TextIO:
    try:
        return path.open("x", encoding="utf-8")
    except OSError as error:
        raise RecordError(f"cannot write {str(path)!r} ({error.strerror})") from None


def _heading(headers: Sequence[MeterHeader]) -> Iterator[str]:
    """Comments of all files, and the accuracy of the worst: none if one does not state it."""
    accuracies = [header.accuracy for header in headers]
    for comment in dict.fromkeys(comment for header in headers for comment in header.comments):
        if "accuracy" not in comment.lower():
            yield f"{comment}\n"
    known = [accuracy for accuracy in accuracies if accuracy is not None]
    if len(known) == len(accuracies):
        yield f"# accuracy: {max(known)}\n"
    yield f"time,node,meter,{headers[0].quantity}\n"


def _take_in(cut: Cut, edition: Edition) -> bool:
    """Write result.json anew with the figures of the meter, if there are; whether there are, and it says which or why.

    Everything else in it stays, since the ledgers do.
    """
    folder = cut.path.parent
    result = result_from_ledgers(folder, edition)
    (told,) = [one for one in result.energy or () if one.source == "meter"]
    if told.energy_j is None or told.power_w is None:
        cut.path.unlink()
        print(f"{folder.name}: no figure, and nothing is changed: {'; '.join(told.lacks)}. {cut.wanted}")
        return False
    content = msgspec.json.format(msgspec.json.encode(result), indent=2) + b"\n"
    write_whole(folder / "result.json", content)
    accuracy = "not stated" if told.accuracy is None else f"{100 * told.accuracy:g} %"
    print(
        f"{folder.name}: {told.label}, {told.energy_j:.6g} J, {told.power_w:.5g} W in the mean, on "
        f"{told.num_nodes} node{'' if told.num_nodes == 1 else 's'}; {told.num_readings} readings, at most "
        f"{told.longest_gap_s:.3g} s apart; accuracy {accuracy}"
    )
    if told.label != "measured":
        print(f"{folder.name}: measured energy needs one reading a second and a stated accuracy of 5 % or better")
    return True


def _put_aside(path: Path) -> None:
    """Keep what was made before the readings came under another name."""
    if not path.exists():
        return
    number = 1
    while (aside := path.with_name(f"{path.stem}-before-{number}{path.suffix}")).exists():
        number += 1
    path.rename(aside)


def main(argv: list[str] | None = None) -> int:
    """Entry point of ``python -m hpcai500.energy.command``."""
    return run_command("python -m hpcai500.energy.command", sys.modules[__name__], argv)


if __name__ == "__main__":
    sys.exit(main())
