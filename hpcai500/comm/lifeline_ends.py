"""The two ends of a lifeline: rank 0 holds a line to every other rank, every other rank holds one to rank 0.

Both are threads that wait for messages, send heartbeats, and judge who is gone; ``lifeline.py`` says by which signs.
"""

from __future__ import annotations

import os
import resource
import selectors
import socket
import threading
import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from hpcai500.comm.calls import CallState
from hpcai500.comm.communicator import Communicator
from hpcai500.comm.line import Line, LineEndedError, Message, introduced, is_proof, welcome
from hpcai500.comm.network import INTERFACE_VARIABLE, address_of

GO_ON = "the run can be resumed"
MAX_NAMED = 8  # ranks in one message


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How long what may take.

    Attributes:
        heartbeat_s: period of heartbeats, up to 1000 ranks; longer beyond, so that rank 0 has at most 500 a second.
        silence_s: a rank that is not heard for so long is lost.
        node_silence_s: a node whose kernel does not answer for so long is lost.
        leave_s: a rank that said it leaves, because of an error or Ctrl-C, takes the others down by its launcher; if
            they are still there after so long, they end by themselves.
        connect_s: for a rank to reach rank 0.
    """

    heartbeat_s: float = 2.0
    silence_s: float = 45.0
    node_silence_s: float = 20.0
    leave_s: float = 10.0
    connect_s: float = 60.0


@dataclass(kw_only=True)
class Peer:
    """The other end of a line, as far as it is known.

    Attributes:
        rank: None until it has proved that it belongs to the run.
        heard_s: when it was last heard, in seconds of the monotonic clock.
        state: where it was in the order of collective calls, then.
        leaves: why and when it said that it leaves.
        goodbye: it has left in peace.
        ended: how its line ended; "" while it stands.
    """

    line: Line
    heard_s: float
    rank: int | None = None
    state: CallState = field(default_factory=lambda: CallState(0))
    leaves: tuple[str, float] | None = None
    goodbye: bool = False
    ended: str = ""


class _End(ABC):
    """What both ends have: a thread that waits for messages, sends heartbeats and judges."""

    def __init__(self, comm: Communicator, hosts: Sequence[str], lose: Callable[[str], None], limits: Limits) -> None:
        self._comm, self._hosts, self._lose, self._limits = comm, hosts, lose, limits
        self._heartbeat_s = max(limits.heartbeat_s, limits.heartbeat_s * comm.size / 1000)
        self._peers: dict[int, Peer] = {}
        self._selector = selectors.DefaultSelector()
        self._done = self._closing = self._urgent = False
        self._thread = threading.Thread(target=self._serve, name="hpcai500-lifeline", daemon=True)
        # A forked child would hold the connection open when this process is killed.
        close_in_child = weakref.WeakMethod(self._close_lines)
        os.register_at_fork(after_in_child=lambda: (close := close_in_child()) and close())

    @abstractmethod
    def _take(self, peer: Peer, message: Message) -> None:
        """Take a message of a peer."""

    @abstractmethod
    def _judge(self, now_s: float) -> str | None:
        """What is wrong with the other ranks; None if nothing."""

    def leave(self, reason: str) -> None:
        """Say that this rank ends, and why."""
        for peer in list(self._peers.values()):
            peer.line.send({"leaves": reason})

    def close(self) -> None:
        """Leave in peace."""
        self._thread.join(self._limits.leave_s)
        self._done = True
        for peer in list(self._peers.values()):
            peer.line.send({"goodbye": True})
        self._close_lines()
        self._selector.close()

    def _serve(self) -> None:
        beat_s = time.monotonic()
        while not self._done:
            # All that has come is read before anybody is judged: it may be this thread that slept.
            for key, _ in self._selector.select(timeout=max(0.0, beat_s - time.monotonic())):
                self._look_at(key)
            now_s = time.monotonic()
            if now_s < beat_s and not self._urgent:
                continue
            if now_s >= beat_s:
                beat_s = now_s + self._heartbeat_s
                self._beat()
            self._urgent = False
            if not self._closing and (message := self._judge(now_s)):
                self._declare(message)
                return

    def _look_at(self, key: selectors.SelectorKey) -> None:
        self._read(key.data)

    def _read(self, peer: Peer) -> None:
        try:
            for message in peer.line.receive():
                peer.heard_s = time.monotonic()
                self._take(peer, message)
        except LineEndedError as error:
            self._ended(peer, str(error))

    def _ended(self, peer: Peer, how: str) -> None:
        self._selector.unregister(peer.line)
        peer.line.close()
        if peer.rank is None:
            return
        if peer.goodbye:
            del self._peers[peer.rank]
        peer.ended, self._urgent = how, True

    def _hear(self, peer: Peer, message: Message) -> None:
        if "leaves" in message:
            peer.leaves = (str(message["leaves"]), time.monotonic())
        elif "goodbye" in message:
            peer.goodbye = True

    def _judge_peer(self, peer: Peer, now_s: float) -> str | None:
        assert peer.rank is not None
        who = f"rank {peer.rank} on {self._hosts[peer.rank]}"
        if peer.goodbye:
            return None
        if peer.leaves is not None:
            why, since_s = peer.leaves
            return f"{who} is gone: {why}; {GO_ON}" if now_s - since_s >= self._limits.leave_s else None
        if peer.ended:
            return f"{who} is gone: {peer.ended}; {GO_ON}"
        if now_s - peer.heard_s > self._limits.silence_s:
            return f"{who} is gone: nothing was heard of it for {self._limits.silence_s:g} s; {GO_ON}"
        return None

    def _beat(self) -> None:
        state = self._comm.calls.state()
        for peer in list(self._peers.values()):
            peer.line.send({"entered": state.num_entered, "call": state.name, "waited_s": state.waited_s})

    def _declare(self, message: str) -> None:
        self._lose(message)

    def _close_lines(self) -> None:
        for peer in list(self._peers.values()):
            peer.line.close()


class Hub(_End):
    """The lifeline's end on rank 0."""

    def __init__(
        self, comm: Communicator, hosts: Sequence[str], lose: Callable[[str], None], limits: Limits, *, secret: bytes
    ) -> None:
        super().__init__(comm, hosts, lose, limits)
        self._secret = secret
        _allow_open_files(comm.size)
        offered = offered_addresses(local=comm.local_size == comm.size)
        self._listener = socket.create_server(
            (offered[0] if len(offered) == 1 else "", 0), backlog=comm.size + 16, reuse_port=False
        )
        self._listener.setblocking(False)
        port = self._listener.getsockname()[1]
        self.addresses = [(host, port) for host in offered]
        self._strangers: list[Peer] = []
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._thread.start()

    def _look_at(self, key: selectors.SelectorKey) -> None:
        if key.data is None:
            self._accept()
        else:
            self._read(key.data)

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError:
            return
        except OSError:  # close has shut it down, or there are too many open files
            time.sleep(0.01)
            return
        peer = Peer(line=Line(connection, node_silence_s=self._limits.node_silence_s), heard_s=time.monotonic())
        self._strangers.append(peer)
        self._selector.register(peer.line, selectors.EVENT_READ, peer)

    def _take(self, peer: Peer, message: Message) -> None:
        if peer.rank is not None:
            self._hear(peer, message)
            if "entered" in message:
                peer.state = CallState(int(message["entered"]), str(message["call"]), float(message["waited_s"]))
            return
        rank = message.get("rank")
        if not isinstance(rank, int) or not 0 < rank < self._comm.size or rank in self._peers:
            raise LineEndedError("there is no such rank")
        if not is_proof(message.get("proof"), self._secret, f"rank {rank}"):
            raise LineEndedError("it does not belong to this run")
        peer.rank = rank
        peer.line.send(welcome(self._secret, rank))
        self._peers[rank] = peer

    def _ended(self, peer: Peer, how: str) -> None:
        super()._ended(peer, how)
        if self._closing and not self._peers:
            self._done = True

    def _judge(self, now_s: float) -> str | None:
        for stranger in self._strangers:
            if (
                stranger.rank is None
                and now_s - stranger.heard_s > self._limits.leave_s
                and stranger.line.fileno() >= 0
            ):
                self._ended(stranger, "")
        self._strangers = [peer for peer in self._strangers if peer.rank is None and peer.line.fileno() >= 0]
        for peer in self._peers.values():
            if message := self._judge_peer(peer, now_s):
                return message
        states = {0: self._comm.calls.state()}
        for rank, peer in self._peers.items():
            num_entered, name, waited_s = peer.state
            states[rank] = CallState(num_entered, name, waited_s + now_s - peer.heard_s if name else 0.0)
        return overdue(states, self._hosts, self._comm.timeout_s)

    def _declare(self, message: str) -> None:
        """Tell the others, and wait until they have gone: to end with their words unread would reset the lines."""
        for peer in self._peers.values():
            peer.line.send({"lost": message})
            peer.line.end_sending()
        end_s = time.monotonic() + 1.0
        while time.monotonic() < end_s and any(peer.line.fileno() >= 0 for peer in self._peers.values()):
            for key, _ in self._selector.select(timeout=0.1):
                self._look_at(key)
        self._lose(message)

    def close(self) -> None:
        self._closing = True
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread
        if not self._peers:
            self._done = True
        super().close()
        self._listener.close()


class Spoke(_End):
    """The lifeline's end on every other rank.

    Raises:
        ConnectionError: rank 0 cannot be reached.
    """

    def __init__(
        self,
        comm: Communicator,
        hosts: Sequence[str],
        lose: Callable[[str], None],
        limits: Limits,
        *,
        secret: bytes,
        addresses: Sequence[tuple[str, int]],
    ) -> None:
        super().__init__(comm, hosts, lose, limits)
        line = self._connect(secret, addresses)
        self._rank_0 = self._peers[0] = Peer(line=line, heard_s=time.monotonic(), rank=0)
        self._message = ""
        self._selector.register(line, selectors.EVENT_READ, self._rank_0)
        self._thread.start()

    def _connect(self, secret: bytes, addresses: Sequence[tuple[str, int]]) -> Line:
        """Try all addresses in turn until one answers as only rank 0 can: others may have the same address here."""
        rank = self._comm.rank
        end_s = time.monotonic() + self._limits.connect_s
        problems: dict[tuple[str, int], str] = {}
        while time.monotonic() < end_s:
            for address in addresses:
                try:
                    connection = socket.create_connection(address, timeout=min(5.0, self._limits.connect_s))
                except OSError as error:
                    problems[address] = error.strerror or str(error)
                    continue
                if introduced(connection, rank, secret):
                    return Line(connection, node_silence_s=self._limits.node_silence_s)
                connection.close()
                problems[address] = "somebody else answers, or nobody"
            time.sleep(0.2)
        tried = ", ".join(f"{host}:{port} ({problem})" for (host, port), problem in problems.items())
        raise ConnectionError(
            f"rank {rank} on {self._hosts[rank]} cannot reach rank 0 on {self._hosts[0]} at {tried}; "
            f"name the network that joins the nodes, in site.toml (network_interface) or in {INTERFACE_VARIABLE}"
        )

    def _take(self, peer: Peer, message: Message) -> None:
        self._hear(peer, message)
        if "lost" in message:
            self._message, self._urgent = str(message["lost"]), True

    def _judge(self, now_s: float) -> str | None:
        return self._message or self._judge_peer(self._rank_0, now_s)

    def _ended(self, peer: Peer, how: str) -> None:
        super()._ended(peer, how)
        self._done = self._closing or peer.goodbye

    def close(self) -> None:
        """Say goodbye and wait until rank 0 has heard it, which then closes the line."""
        self._closing = True
        self._rank_0.line.send({"goodbye": True})
        self._rank_0.line.end_sending()
        super().close()


def overdue(states: Mapping[int, CallState], hosts: Sequence[str], timeout_s: float) -> str | None:
    """Who is waited for in a collective call for longer than ``timeout_s``; None if nobody.

    Args:
        states: of each rank.
        hosts: the node of each rank.
        timeout_s: the deadline of a call.
    """
    late = [state for state in states.values() if state.name and state.waited_s > timeout_s]
    if not late:
        return None
    first = min(late)  # the call that others may be waiting behind
    missing = [rank for rank, state in sorted(states.items()) if state.num_entered < first.num_entered]
    what = f"the {first.name} has not ended within {timeout_s:g} s"
    if not missing:
        return f"{what} although all ranks have entered it, so the network between them may be at fault; {GO_ON}"
    named = ", ".join(f"rank {rank} on {hosts[rank]}" for rank in missing[:MAX_NAMED])
    more = f" and {len(missing) - MAX_NAMED} more" if len(missing) > MAX_NAMED else ""
    return f"{what}: {named}{more} did not enter it; {GO_ON}"


def offered_addresses(*, local: bool) -> list[str]:
    """Where rank 0 can be reached: on the chosen network, else on any of the host's, by address or by name.

    Args:
        local: all ranks are on this machine.
    """
    if local:
        return ["127.0.0.1"]
    chosen = os.environ.get(INTERFACE_VARIABLE)
    names = [chosen] if chosen else [name for _, name in socket.if_nameindex()]
    addresses = [address for name in names if (address := address_of(name))]
    if chosen and addresses:
        return addresses
    return [*(address for address in addresses if not address.startswith("127.")), socket.gethostname()]


def _allow_open_files(num_ranks: int) -> None:
    """Make room for a connection of each rank, as far as the hard limit goes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY:
        wanted = soft + num_ranks
        allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
