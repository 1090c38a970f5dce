"""Which jobs of a study are at work on this machine, also when the run that started them was killed."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ecgstudy.files import lock, lock_file

LOCK = "jobs.lock"
"""File among a study's logs that every process at work holds a shared lock of."""


@contextmanager
def at_work(logs: Path) -> Iterator[int]:
    """Count as at work, with all processes that inherit the file descriptor yielded.

    Raises
    ------
    StudyError
        When the folder `logs` cannot be written, or its file system has no locks.
    """
    with lock_file(logs / LOCK) as file:
        lock(file, shared=True)
        yield file.fileno()


def await_jobs(logs: Path) -> None:
    """Wait until nobody is at work, and say so where that is not at once.

    Raises
    ------
    StudyError
        When the folder `logs` cannot be written, or its file system has no locks.
    """
    with lock_file(logs / LOCK) as file:
        if not lock(file, wait=False):
            print(
                f"{logs.parent}: jobs of a run that was killed are still at work; waiting for them to end"
                " (`pgrep -fa ecgstudy.running` shows which)",
                file=sys.stderr,
            )
            lock(file)
