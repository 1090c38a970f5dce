"""Which processes work on a study, and what those that it starts are given."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ecgstudy.errors import StudyError
from ecgstudy.files import ROOT, lock, lock_file


def use_this_checkout() -> None:
    """Let all processes that are started from here run the code of this checkout.

    Another one may be installed in the environment that they share.
    """
    others = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    places = dict.fromkeys([str(ROOT), *filter(None, others)])
    os.environ["PYTHONPATH"] = os.pathsep.join(places)


@contextmanager
def study_lock(home: Path) -> Iterator[bool]:
    """Hold the study in `home` for this process.

    The kernel releases it when the process ends, however it ends. Yields whether the
    process that held it before was killed or interrupted.

    Raises
    ------
    StudyError
        When another process runs the study, or its folder cannot be written.
    """
    with lock_file(home / ".lock") as file:
        free = lock(file, wait=False)
        file.seek(0)
        holder = file.read()
        if not free:
            raise StudyError(
                f"study {home.name!r} is being run by process {holder}; "
                "wait for it or stop it"
            )
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield bool(holder)
        file.truncate(0)  # not after an interruption: jobs on a cluster may be left


@contextmanager
def at_work(logs: Path) -> Iterator[int]:
    """Count as at work on the study with these `logs`.

    So do all processes that inherit the file descriptor yielded.

    Raises
    ------
    StudyError
        When the folder cannot be written, or its file system has no locks.
    """
    with lock_file(logs / "jobs.lock") as file:
        lock(file, shared=True)
        yield file.fileno()


def await_jobs(logs: Path) -> None:
    """Wait until no job is running: what a killed run left would write the same files.

    Raises
    ------
    StudyError
        When the folder cannot be written, or its file system has no locks.
    """
    with lock_file(logs / "jobs.lock") as file:
        if not lock(file, wait=False):
            print(
                f"{logs.parent}: jobs of a run that was killed are still running; "
                "waiting for them to end (`pgrep -fa 'ecgstudy job'` shows which)",
                file=sys.stderr,
            )
            lock(file)
