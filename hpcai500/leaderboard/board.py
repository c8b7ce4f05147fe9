"""All that a running board is made of, by its configuration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from hpcai500.edition import load_edition
from hpcai500.errors import UsageError
from hpcai500.leaderboard import judge
from hpcai500.leaderboard.accounts import check_text
from hpcai500.leaderboard.admin import DEFAULT_NAME, REQUESTS_PER_MINUTE
from hpcai500.leaderboard.database import Database
from hpcai500.leaderboard.judge import Limits
from hpcai500.leaderboard.limits import Rate
from hpcai500.leaderboard.storage import Storage
from hpcai500.leaderboard.tickets import board_key
from hpcai500.leaderboard.worker import Worker
from hpcai500.register.keys import public_key
from hpcai500.register.ticket import SELF
from hpcai500.register.trusted import TrustedKeys, find_trusted_keys

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


@dataclass(frozen=True, kw_only=True)
class BoardConfig:
    """How a board is run.

    Attributes:
        folder: where its files lie.
        database_url: SQLite in the folder by default.
        name: of the board and of the register that it is.
        public_url: where people find it, without a slash at its end; as they asked by default.
        num_workers: archives that are verified at the same time; 0 leaves that to other servers.
        trusted_path: keys of other registers and of signers; this user's file by default.
        limits: of the verification of one archive.
        program: that judges archives.
        requests_per_minute: of an address and of a token, for long; so many seconds' worth may come at once.
        tickets_per_hour: of an organisation.
    """

    folder: Path
    database_url: str | None = None
    name: str = DEFAULT_NAME
    public_url: str | None = None
    num_workers: int = 1
    trusted_path: Path | None = None
    limits: Limits = field(default_factory=Limits)
    program: Sequence[str] = judge.PROGRAM
    requests_per_minute: int = REQUESTS_PER_MINUTE
    tickets_per_hour: int = 60

    def open_database(self) -> Database:
        """The board's database.

        Raises:
            UsageError: it cannot be used.
        """
        storage = Storage(self.folder)
        return Database(self.database_url or f"sqlite:///{storage.folder / 'board.db'}")


class Board:
    """A board that answers requests.

    Args:
        config: how it is run.

    Raises:
        UsageError: the folder, database, key or trusted keys cannot be used, or the name cannot be one.
    """

    def __init__(self, config: BoardConfig) -> None:
        if check_text("the name", config.name) == SELF:
            raise UsageError(f"{SELF!r} cannot be the name of a register; give the one that people know it by")
        self.config, self.edition = config, load_edition()
        self.storage = Storage(config.folder)
        self.key: Ed25519PrivateKey = board_key(self.storage.folder)
        self.public_key = public_key(self.key)
        trusted = find_trusted_keys(config.trusted_path)
        self.trusted = TrustedKeys(issuers={**trusted.issuers, self.public_key: config.name}, signers=trusted.signers)
        self.database = config.open_database()
        self.workers = [self.make_worker() for _ in range(config.num_workers)]
        burst = max(1, config.requests_per_minute // 4)
        self.token_rate = Rate(config.requests_per_minute, burst)
        self.address_rate = Rate(config.requests_per_minute, burst)
        self.failure_rate = Rate(20, 20)
        self.ticket_rate = Rate(config.tickets_per_hour / 60, config.tickets_per_hour)

    def make_worker(self) -> Worker:
        """A worker of this board, which is not started."""
        return Worker(
            self.database,
            self.storage,
            board=self.public_key,
            trusted=self.trusted,
            limits=self.config.limits,
            program=self.config.program,
        )

    def start(self) -> None:
        """Begin to verify."""
        for worker in self.workers:
            worker.start()

    def wake(self) -> None:
        """There is something to verify."""
        for worker in self.workers:
            worker.wake()

    def stop(self) -> None:
        """Verify no more, and give the database back."""
        for worker in self.workers:
            worker.stop()
        self.database.close()
