"""The one exception for bad input: it says what is wrong, where, and what would be
right."""

from __future__ import annotations  # `make doctor` runs on Python 3.9 too

import sys
from collections.abc import Callable
from functools import wraps


class StudyError(Exception):
    """Bad input (a file, a record, a parameter), described in one line that names
    it."""

    def _render_traceback_(self) -> list[str]:
        """What notebooks show: the line, without the way to it."""
        return [f"{type(self).__name__}: {self}"]


def command(main: Callable[[list[str] | None], None]) -> Callable[..., int]:
    """`main` of a command line, made to return its exit status: bad input is one line
    on stderr and 1."""

    @wraps(main)
    def run(arguments: list[str] | None = None) -> int:
        try:
            main(arguments)
        except (StudyError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        return 0

    return run
