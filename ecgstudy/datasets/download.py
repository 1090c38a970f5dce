"""Fetch PhysioNet data sets: resumable, checked against the official checksums, file by file."""

import os
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import requests
from tqdm import tqdm

from ecgstudy.datasets.wfdb_io import SUMS
from ecgstudy.errors import StudyError
from ecgstudy.files import lock, lock_file, read_sums, sha256

ADDRESSES = ("https://physionet.org/",)
"""Data come from here, over TLS, and from nowhere else: redirects are not followed."""
MAX_FILE_BYTES = 32 * 2**20
"""The largest file needed has 6 MB; a server that sends more than this is stopped."""
GIVE_UP_AFTER = 25
"""With so many failed files it is the server or the network, and the rest is not tried."""
ATTEMPTS = 3
PAUSE_S = 1.0
TIMEOUT_S = 30
CHUNK = 2**16


@dataclass(frozen=True)
class Source:
    """Where a data set is, and which of its files (a regular expression of the whole name) are needed."""

    base: str
    needed: str
    most: int = 2**30
    """Bytes in all, after which the download is stopped."""


SOURCES = {
    "mitdb": Source(
        "https://physionet.org/files/mitdb/1.0.0/", r"\d{3}\.(hea|dat|atr)"
    ),
    "ptbxl": Source(
        "https://physionet.org/files/ptb-xl/1.0.3/",
        r"records100/\d{5}/\d{5}_lr\.(hea|dat)|ptbxl_database\.csv|scp_statements\.csv|LICENSE\.txt",
    ),
}


def fetch_dataset(
    name: str, folder: str | Path, source: Source | None = None, workers: int = 8
) -> Path:
    """Complete the files of a data set in `folder`, and return it; whole files there are not fetched again.

    An interrupted file stays there as ``<file>.part`` and is resumed. `source`: instead of that in `SOURCES`.

    Raises
    ------
    StudyError
        Naming the files that could not be fetched, after all others have been, or an address that is none
        of `ADDRESSES`.
    """
    folder, source = Path(folder), source or SOURCES[name]
    if not source.base.startswith(ADDRESSES):
        raise StudyError(
            f"{name}: {source.base} is refused; data come from {' or '.join(ADDRESSES)}"
        )
    with lock_file(folder / ".lock") as file:
        lock(file)  # another study may be fetching the same: wait for it
        _complete(name, folder, source, workers)
    return folder


def _complete(name: str, folder: Path, source: Source, workers: int) -> None:
    if not (folder / SUMS).exists():
        with requests.Session() as session:
            problem = _fetch(session, source.base, SUMS, None, folder)
        if problem:
            raise StudyError(
                f"{name}: {source.base}{SUMS} {problem}; run again, or set data_root"
            )
    sums = read_sums(folder / SUMS)
    needed = {
        file: digest
        for file, digest in sums.items()
        if re.fullmatch(source.needed, file)
    }
    if not needed:
        raise StudyError(
            f"{folder / SUMS} lists none of the files of {name}; delete it and run again"
        )
    failed = _fetch_all(source, needed, folder, workers, name)
    if failed:
        shown = "; ".join(
            f"{file} {problem}" for file, problem in sorted(failed.items())[:5]
        )
        raise StudyError(
            f"{name}: {len(failed)} of {len(needed)} files failed: {shown}{'; …' * (len(failed) > 5)}; "
            f"run again to fetch what is missing in {folder}"
        )


def _fetch_all(
    source: Source, needed: dict[str, str], folder: Path, workers: int, name: str
) -> dict[str, str]:
    """Fetch every file; return file → problem of those that failed."""
    failed: dict[str, str] = {}
    sizes: list[int] = [0]
    local = threading.local()

    def fetch(item: tuple[str, str]) -> None:
        file, digest = item
        if not hasattr(local, "session"):
            local.session = (
                requests.Session()
            )  # one connection a thread, kept alive: files are small
        if len(failed) >= GIVE_UP_AFTER:
            problem = "was not tried"
        elif sizes[0] > source.most:
            problem = f"was not tried (over {source.most} bytes in all)"
        else:
            problem = _fetch(local.session, source.base, file, digest, folder)
        if problem:
            failed[file] = problem
        else:
            sizes[0] += (folder / file).stat().st_size

    pool = ThreadPoolExecutor(workers)
    try:
        for _ in tqdm(pool.map(fetch, needed.items()), name, len(needed), unit="file"):
            pass
    finally:
        pool.shutdown(
            cancel_futures=True
        )  # after Ctrl-C only the files under way are finished
    return failed


def fetch_file(url: str, digest: str, target: Path, most: int) -> str | None:
    """Fetch one file of at most `most` bytes with the SHA-256 `digest`; return what went wrong, or None."""
    with requests.Session() as session:
        return _fetch_to(session, url, digest, target, most)


def _fetch(
    session: requests.Session, base: str, file: str, digest: str | None, folder: Path
) -> str | None:
    """Complete one file of a data set; return what went wrong, or None."""
    return _fetch_to(session, base + file, digest, folder / file, MAX_FILE_BYTES)


def _fetch_to(
    session: requests.Session, url: str, digest: str | None, target: Path, most: int
) -> str | None:
    """Complete one file, in several attempts; return what went wrong, or None."""
    if target.exists() and digest == sha256(target):
        return None
    part, problem = target.with_name(f"{target.name}.part"), None
    for attempt in range(ATTEMPTS):
        time.sleep(attempt * PAUSE_S)
        try:
            part.parent.mkdir(parents=True, exist_ok=True)
            if digest is None:
                part.unlink(missing_ok=True)  # nothing to check a resumed file against
            _transfer(session, url, part, most)
            if digest in (None, sha256(part)):
                os.replace(part, target)
                return None
            part.unlink()
            problem = "has a wrong checksum"
        except OSError as error:  # those of requests are OSErrors too
            problem = f"could not be fetched ({str(error)[:120]})"
    return problem


def _transfer(session: requests.Session, url: str, part: Path, most: int) -> None:
    """Append what is missing to `part`; start over if the server does not resume."""
    have = part.stat().st_size if part.exists() else 0
    headers = {"Accept-Encoding": "identity"} | (
        {"Range": f"bytes={have}-"} if have else {}
    )
    # No redirects: the data come from the named host or not at all.
    with session.get(
        url, headers=headers, stream=True, timeout=TIMEOUT_S, allow_redirects=False
    ) as answer:
        status, span = answer.status_code, answer.headers.get("Content-Range", "")
        resumes = status == 206 and span.startswith(f"bytes {have}-")
        if (
            status == 416
        ):  # `part` is as long as the file or longer, and yet was not taken
            part.unlink()
        if status != 200 and not resumes:
            raise OSError(f"HTTP status {status}")
        size = have if resumes else 0
        with open(part, "ab" if resumes else "wb") as stream:
            for chunk in answer.iter_content(CHUNK):
                size += len(chunk)
                if size > most:
                    raise OSError(f"over {most} bytes")
                stream.write(chunk)
