"""Which jobs of a study are at work on this machine, also when the run that started them was killed."""

import fcntl
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ecgstudy.files import unwritable

LOCK = "jobs.lock"
"""File among a study's logs that every process at work holds a shared lock of."""


@contextmanager
def at_work(logs: Path) -> Iterator[int]:
    """Count as at work, with all processes that inherit the file descriptor yielded.

    The kernel forgets a process when it ends, however it ends.

    Raises
    ------
    StudyError
        When the folder `logs` cannot be written.
    """
    try:
        logs.mkdir(parents=True, exist_ok=True)
        lock = open(logs / LOCK, "a")  # noqa: SIM115
    except OSError as error:
        raise unwritable(logs, error) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        yield lock.fileno()


def await_jobs(logs: Path) -> None:
    """Wait until nobody is at work, and say so where that is not at once.

    Raises
    ------
    StudyError
        When the folder `logs` cannot be written.
    """
    with at_work(logs) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(
                f"{logs.parent}: jobs of a run that was killed are still at work; waiting for them to end"
                " (`pgrep -fa ecgstudy.running` shows which)",
                file=sys.stderr,
            )
            fcntl.flock(lock, fcntl.LOCK_EX)
