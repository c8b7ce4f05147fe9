"""What a launcher says of its ranks: which of them ended badly first. Its chatter about it is left out of the log.

srun names the task, the node and the exit code or signal; Open MPI names the rank and, when a signal ended it, the
node. All else, in particular what the ranks themselves write, passes through unchanged.
"""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass

# "srun: error: node2: tasks 2-3: Exited with exit code 75", "...: task 1: Killed", "...: Segmentation fault (core ..."
SRUN_TASK = re.compile(rb"^srun: error: (?P<host>[^:\s]+): tasks? (?P<ranks>[\d,-]+): (?P<end>.+)$")
SRUN_NODE = re.compile(rb"^srun: error: Node failure on (?P<host>\S+)")
SRUN_CHATTER = re.compile(
    rb"^srun: (launch/slurm: |launch/generic: |Terminating |Job step aborted|Force Terminated|forcing job termination"
    rb"|got SIGCONT|First task exited|StepId=|error: Timed out waiting for job step to complete"
    rb"|cluster configuration lacks support for cpu binding)"
    rb"|^slurmstepd-[^:]*: error: \*\*\* STEP \S+ ON \S+ CANCELLED AT \S+ \*\*\*$"
    rb"|^mpirun[^:]*: Forwarding signal \d+ to job$"
)
RULE = re.compile(rb"^-{70,}$")
MPI_SIGNAL = re.compile(
    rb"process\s+rank\s+(?P<rank>\d+)\s+with\s+PID\s+\d+\s+on\s+node\s+(?P<host>\S+)\s+exited\s+on\s+signal\s+(?P<signal>\d+)"
)
MPI_CODE = re.compile(rb"Process name:\s+\[.*,\s*(?P<rank>\d+)\]\s+Exit code:\s+(?P<code>\d+)")
MPI_DAEMON = re.compile(
    rb"lost communication with a remote daemon.*Remote daemon:.* on node (?P<host>[\w.-]+)", re.DOTALL
)
MPI_CHATTER = re.compile(rb"Primary job\s+terminated normally, but \d+ process(es)? returned")
MAX_BLOCK_BYTES = 8192  # a text between two rules that is longer is none of the launcher's


@dataclass(frozen=True)
class BadEnd:
    """What ended badly first.

    Attributes:
        ranks: the ranks as the launcher names them, as "3" or "2-3"; "" for a whole node.
        host: the node, "" where the launcher does not tell.
        exit_code: as of a shell, 128 + n for signal n; None for a node.
    """

    ranks: str
    host: str
    exit_code: int | None

    def describe(self) -> str:
        """As part of a sentence: "rank 3 on node2 was ended by SIGKILL"."""
        where = f" on {self.host}" if self.host else ""
        if self.exit_code is None:
            return f"node {self.host} failed"
        many = not self.ranks.isdigit()
        who = f"rank{'s' if many else ''} {self.ranks}{where}"
        if self.exit_code > 128:
            return f"{who} {'were' if many else 'was'} ended by {_signal_name(self.exit_code - 128)}"
        return f"{who} ended with exit code {self.exit_code}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


class LauncherOutput:
    """Takes the lines of a launcher's stderr and gives back those that shall be shown.

    Attributes:
        first: what ended badly first, None as long as nothing did.
    """

    def __init__(self) -> None:
        self.first: BadEnd | None = None
        self._block: list[bytes] = []

    def take(self, line: bytes) -> bytes:
        """Take in a line with its newline; returns what is to be shown now, which may be nothing or several lines."""
        text = line.rstrip(b"\n")
        if self._block:
            return self._take_block(line, ends=RULE.match(text) is not None)
        if RULE.match(text):
            self._block = [line]
            return b""
        return b"" if self._is_srun(text) else line

    def close(self) -> bytes:
        """What was held back and turned out to be nothing of the launcher's."""
        block, self._block = b"".join(self._block), []
        return block

    def _is_srun(self, text: bytes) -> bool:
        if match := SRUN_TASK.match(text):
            self._note(BadEnd(match["ranks"].decode(), match["host"].decode(), _exit_code(match["end"])))
            return True
        if match := SRUN_NODE.match(text):
            self._note(BadEnd("", match["host"].decode(), None))
            return True
        return SRUN_CHATTER.match(text) is not None

    def _take_block(self, line: bytes, *, ends: bool) -> bytes:
        """Collect a text between two rules, as Open MPI writes them, and judge it when it is whole."""
        self._block.append(line)
        block = b"".join(self._block)
        if not ends:
            return self.close() if len(block) > MAX_BLOCK_BYTES else b""
        self._block = []
        if match := MPI_SIGNAL.search(block):
            self._note(BadEnd(match["rank"].decode(), match["host"].decode(), 128 + int(match["signal"])))
        elif match := MPI_CODE.search(block):
            self._note(BadEnd(match["rank"].decode(), "", int(match["code"])))
        elif match := MPI_DAEMON.search(block):
            self._note(BadEnd("", match["host"].decode(), None))
        elif not MPI_CHATTER.search(block):
            return block
        return b""

    def _note(self, end: BadEnd) -> None:
        if end.exit_code != 0 and self.first is None:
            self.first = end


def _exit_code(words: bytes) -> int:
    """The exit code in srun's words: a number, or a signal as strsignal(3) names it."""
    if match := re.match(rb"Exited with exit code (\d+)", words):
        return int(match[1])
    name = words.decode(errors="replace").removesuffix("(core dumped)").strip()
    if name.startswith("Out Of Memory"):
        return 128 + signal.SIGKILL
    numbers = [number for number in signal.valid_signals() if signal.strsignal(number) == name]
    return 128 + numbers[0] if numbers else 1
