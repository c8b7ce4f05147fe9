"""How long a board of 10,000 made-up submissions takes for its pages, over HTTP, on SQLite and PostgreSQL.

All are on one board and of one edition; a tenth as many more are of an older one.

    python benchmarks/leaderboard.py [--submissions 10000] [--requests 40] [--quick]

`hpcai500 leaderboard serve` answers one request after the other over loopback; time is from the request to the last
byte, size is that of the answer's body as it goes over the wire. PostgreSQL is started in a temporary folder if it is
installed, and analyses the table before the first request, as it does by itself within a minute or two.
"""

from __future__ import annotations

import argparse
import http.client
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from report import figure, machine, spread

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from board_rows import OLD_EDITION, add_organisations, make_submission
from boards import ServedBoard
from postgresql import PostgresqlServer, find_programs
from sqlalchemy import text

from hpcai500.leaderboard.database import Database

BOARD = "/boards/resnet50/official/free"
PAGES = {
    "start": "/",
    "ranking": BOARD,
    "ranking, filtered": f"{BOARD}?precision=bf16&accelerator=NVIDIA+GH200+480GB&nodes_min=2",
    "ranking, by watt": f"{BOARD}?sort=per_watt",
    "ranking, by date": f"{BOARD}?sort=date",
    "filtered, by date": f"{BOARD}?precision=bf16&energy=1&sort=date",
    "ranking, worst first": f"{BOARD}?sort=-vflops",
    "ranking, last page": f"{BOARD}?page=999999",
    "by watt, last page": f"{BOARD}?sort=per_watt&page=999999",
    "ranking, all editions": f"{BOARD}?edition=all",
    "record progression": "/history/resnet50/official/free",
    "CSV": f"{BOARD}.csv",
}
BATCH = 500


def fill(url: str, number: int) -> None:
    database = Database(url)
    with database.writing() as session:
        add_organisations(session)
        for start in range(0, number, BATCH):
            numbers = range(start, min(start + BATCH, number))
            session.add_all(make_submission(one) for one in numbers)
            session.add_all(make_submission(number + one, edition=OLD_EDITION) for one in numbers if one % 10 == 0)
            session.flush()
            session.expunge_all()
    if database.is_postgresql:
        with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("VACUUM ANALYZE submission"))
    database.close()


def ask(url: str, path: str, requests: int) -> tuple[list[float], int]:
    """Milliseconds of each request but the first, and bytes of the answer."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port)
    times_ms, size_bytes = [], 0
    for _ in range(requests + 1):
        begin_s = time.perf_counter()
        connection.request("GET", path, headers={"Accept": "text/html", "Accept-Encoding": "gzip"})
        answer = connection.getresponse()
        size_bytes = len(answer.read())
        times_ms.append(1000 * (time.perf_counter() - begin_s))
        assert answer.status == 200, (path, answer.status)
    connection.close()
    return times_ms[1:], size_bytes


def measure(name: str, url: str, args: argparse.Namespace) -> None:
    fill(url, args.submissions)
    with tempfile.TemporaryDirectory() as folder:
        served = ServedBoard(Path(folder) / "board", url, workers=0)
        try:
            for page, path in PAGES.items():
                times_ms, size_bytes = ask(served.url, path, args.requests)
                print(f"{name:10} {page:22} {spread(times_ms, 'ms'):36} {size_bytes / 1000:8.1f} KB", flush=True)
                figure(f"{page} of {args.submissions:,} submissions, {name}", times_ms, "ms")
        finally:
            served.stop()


@contextmanager
def urls() -> Iterator[dict[str, str]]:
    with tempfile.TemporaryDirectory() as folder:
        found = {"SQLite": f"sqlite:///{folder}/board.db"}
        if find_programs() is None:
            print("there is no PostgreSQL here; SQLite alone")
            yield found
            return
        server = PostgresqlServer()
        try:
            yield found | {"PostgreSQL": server.fresh_url()}
        finally:
            server.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--submissions", type=int, default=10_000, help="rows (default: %(default)s)")
    parser.add_argument("--requests", type=int, default=40, help="of each page (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="200 submissions and 3 requests, to see that it works")
    args = parser.parse_args()
    if args.quick:
        args.submissions, args.requests = 200, 3
    print(f"{machine()}\n{args.submissions:,} submissions; median (least .. greatest) of {args.requests} requests")
    with urls() as found:
        for name, url in found.items():
            measure(name, url, args)


if __name__ == "__main__":
    main()
