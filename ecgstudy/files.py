"""Files that appear whole or not at all."""

from __future__ import annotations  # `make doctor` runs on Python 3.9 too

import fcntl
import glob
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TextIO

from ecgstudy.errors import StudyError

ROOT = Path(__file__).resolve().parent.parent
"""The checkout: it holds params, notebooks and outputs."""


def in_checkout(path: str | Path) -> Path:
    """`path`, or if nothing is there, the same from the checkout: JupyterLab starts in
    ``notebooks/``."""
    here, there = Path(path), ROOT / path
    return there if there.exists() and not here.exists() else here


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is synced and renamed to
    `path`.

    A crash, a full disk or an exception leaves any earlier `path` untouched. What
    killed processes left half-written beside it is removed first, and its folder is
    made when missing.

    Raises
    ------
    StudyError
        When the file system refuses: full, read-only, or not ours.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_left_over(path)
        try:
            yield partial
            with open(partial, "rb") as written:
                os.fsync(written.fileno())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise unwritable(path, error) from error


def unwritable(path: str | Path, error: OSError) -> StudyError:
    """What to raise when the file system refused to write `path`."""
    why = error.strerror or error
    return StudyError(
        f"{path} cannot be written ({why}); free some space or use a folder that you"
        " may write to"
    )


def lock_file(path: Path) -> TextIO:
    """Open `path` to `lock` it; it and its folder are made when missing.

    Raises
    ------
    StudyError
        When the file system refuses.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return open(path, "a+")
    except OSError as error:
        raise unwritable(path.parent, error) from error


def lock(file: TextIO, *, shared: bool = False, wait: bool = True) -> bool:
    """Lock an open file until it is closed, here and in the programs that inherit it.

    The kernel releases a process's locks when it ends, however it ends.

    Parameters
    ----------
    shared
        With others that lock it `shared`, instead of alone.
    wait
        Until others release it.

    Returns
    -------
    bool
        Whether it is locked: only without `wait` it may not be.

    Raises
    ------
    StudyError
        Naming the file, on a file system without locks.
    """
    try:
        fcntl.flock(
            file,
            (fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
            | (0 if wait else fcntl.LOCK_NB),
        )
    except BlockingIOError:
        return False
    except OSError as error:
        raise StudyError(
            f"{file.name} cannot be locked ({error.strerror}), but locks keep runs off"
            " each other's files;"
            " use a folder on a file system that has them (Lustre: mounted with flock)"
        ) from error
    return True


def _remove_left_over(path: Path) -> None:
    """Delete what processes that were killed while they wrote `path` left beside it."""
    for part in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        writer = part.name.removeprefix(f".{path.name}.").removesuffix(".part")
        if writer.isdecimal() and not _is_alive(int(writer)):
            part.unlink(missing_ok=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's
        return True
    return True


def write_text(path: str | Path, text: str) -> None:
    """Write `text` to `path`, whole."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def json_text(content: object) -> str:
    """`content` as indented JSON; NaN is refused (it is not JSON)."""
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write_json(path: str | Path, content: object) -> None:
    """Write `json_text` of `content` to `path`, whole."""
    write_text(path, json_text(content))


def sha256(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file's content."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


SUMS = "SHA256SUMS"
"""File in a result's folder: SHA-256 and name of each of its files, as `sha256sum`
writes and checks them (``sha256sum -c SHA256SUMS``)."""


@contextmanager
def write_result(folder: str | Path) -> Iterator[Callable[[str], Path]]:
    """Write the files of one result: all appear, with their SHA-256, or none does.

    Yields a function from a file's name to the path to write it to. Files of other
    results in `folder` keep their lines in `SUMS`, which is placed last: as long as it
    is missing, the result is not there.

    Raises
    ------
    StudyError
        When the file system refuses.
    """
    folder, partials = Path(folder), {}
    with ExitStack() as files:
        sums = files.enter_context(whole_file(folder / SUMS))  # entered first: last out

        def new(name: str) -> Path:
            partials[name] = files.enter_context(whole_file(folder / name))
            return partials[name]

        yield new
        known = read_sums(folder / SUMS)
        known |= {name: sha256(path) for name, path in partials.items()}
        lines = [f"{digest}  {name}\n" for name, digest in sorted(known.items())]
        sums.write_text("".join(lines), encoding="utf-8")
        (folder / SUMS).unlink(missing_ok=True)


def read_sums(path: Path) -> dict[str, str]:
    """File name → SHA-256 of a file such as `SUMS`; empty when there is none.

    Raises
    ------
    StudyError
        Naming the file and the line that is no checksum.
    """
    if not path.exists():
        return {}
    sums = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        digest, _, name = line.strip().partition(" ")
        if len(digest) != 64 or not name:
            raise StudyError(
                f"{path}: {line[:80]!r} is not '<sha256> <file>'; delete it and run"
                " again"
            )
        sums[name.strip().removeprefix("*")] = digest
    return sums


def check_sum(path: Path) -> Path:
    """`path`, if its content has the SHA-256 that `SUMS` beside it says, if any.

    Raises
    ------
    StudyError
        When the file is damaged.
    """
    expected = read_sums(path.parent / SUMS).get(path.name)
    if expected is not None and path.exists() and sha256(path) != expected:
        raise StudyError(
            f"{path}: damaged, its SHA-256 is not the one in {SUMS}; "
            "`ecgstudy study` makes it again"
        )
    return path


def short_hash(content: object) -> str:
    """Sixteen hexadecimal digits of the SHA-256 of JSON-serialisable `content`."""
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_json(path: Path) -> dict:
    """Content of a JSON file; empty when it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


STATUS = "ECGSTUDY_STATUS"
"""Environment variable of a job with the file for `note_progress`."""


def note_progress(text: str) -> None:
    """Say how far this process is, to whoever waits for the job that it belongs to."""
    if path := os.environ.get(STATUS):
        Path(path).write_text(text, encoding="utf-8")


FAILED = "failed: "
"""What the status of a failed job begins with."""
BEFORE = "provenance.before.json"
"""``provenance.json`` of what was done before with another key, until a step starts."""

HELD = "ECGSTUDY_GPUS"
"""Environment variable with the GPUs that a job holds; `ecgstudy.devices.pick_device`
insists on them."""
