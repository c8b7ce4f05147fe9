"""Runs one function over many tasks in worker processes, for converting and checking data files.

Unlike multiprocessing's pools it never holds more than one task a worker (so memory stays constant however many tasks
there are), notices a worker that the system killed, and leaves none behind when the parent itself is killed: a worker
ends when its pipe does. It does not keep the order of the tasks.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import TypeVar

from hpcai500.errors import DataError, HpcAi500Error, UsageError

Task = TypeVar("Task")
Result = TypeVar("Result")


def usable_cores() -> int:
    """How many cores this process may run on."""
    return len(os.sched_getaffinity(0))


def run_tasks(
    function: Callable[[Task], Result], tasks: Iterable[Task], num_workers: int | None = None
) -> Iterator[tuple[Task, Result]]:
    """Yield (task, function(task)) for all ``tasks``, as they finish.

    Args:
        function: importable from its module (it is pickled); tasks and results are pickled too.
        tasks: taken one by one, as workers become free.
        num_workers: processes; by default one for each usable core.

    Raises:
        UsageError: ``num_workers`` is below 1.
        DataError: a worker was killed.
        HpcAi500Error: of the class that ``function`` raised.
    """
    num_workers = usable_cores() if num_workers is None else num_workers
    if num_workers < 1:
        raise UsageError(
            f"{num_workers} workers cannot work; give at least 1 (this machine has {usable_cores()} cores)"
        )
    yield from _run_in_processes(function, iter(tasks), num_workers)


def _run_in_processes(
    function: Callable[[Task], Result], tasks: Iterator[Task], num_workers: int
) -> Iterator[tuple[Task, Result]]:
    processes: dict[Connection, BaseProcess] = {}
    result: Result
    in_work: dict[Connection, Task] = {}
    try:
        for task in tasks:
            if len(processes) < num_workers:
                connection, process = _start(function)
                processes[connection] = process
            else:
                connection, result = _next_result(processes, in_work)
                yield in_work.pop(connection), result
            in_work[connection] = task
            try:
                connection.send(task)
            except (BrokenPipeError, ConnectionResetError):
                raise _death_of(processes[connection]) from None
        while in_work:
            connection, result = _next_result(processes, in_work)
            yield in_work.pop(connection), result
    except BaseException:
        for process in processes.values():
            process.terminate()
        raise
    finally:
        for connection in processes:
            connection.close()
        for process in processes.values():
            process.join()


def _start(function: Callable[[Task], Result]) -> tuple[Connection, BaseProcess]:
    # spawn: the parent may have threads (progress display, libraries), with which a fork can deadlock
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, function), daemon=True)
    process.start()
    theirs.close()
    return ours, process


def _next_result(
    processes: dict[Connection, BaseProcess], in_work: dict[Connection, Task]
) -> tuple[Connection, Result]:
    connection = wait(list(in_work))[0]
    assert isinstance(connection, Connection)
    try:
        result, error = connection.recv()
    except (EOFError, ConnectionResetError):
        raise _death_of(processes[connection]) from None
    if error is not None:
        raise error
    return connection, result


def _death_of(process: BaseProcess) -> DataError:
    process.join()
    return DataError(
        f"a worker process ended with exit code {process.exitcode}, perhaps for lack of memory; "
        "run the same command again, with fewer --workers if it recurs"
    )


def _serve(connection: Connection, function: Callable[[Task], Result]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    while True:
        try:
            task = connection.recv()
        except (EOFError, ConnectionResetError):
            return
        try:
            reply: tuple[Result | None, Exception | None] = (function(task), None)
        except HpcAi500Error as error:
            reply = (None, type(error)(str(error)))  # pickling would lose the cause
        except Exception:
            reply = (None, RuntimeError(f"in a worker process:\n{traceback.format_exc()}"))
        try:
            connection.send(reply)
        except (BrokenPipeError, ConnectionResetError):
            return
