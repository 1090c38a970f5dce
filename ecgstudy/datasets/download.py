"""Fetch PhysioNet data sets, each file checked against the official checksums."""

import os
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import requests
from tqdm import tqdm

from ecgstudy.datasets.sources import SUMS
from ecgstudy.errors import StudyError
from ecgstudy.files import lock, lock_file, read_sums, sha256

BASE = "https://physionet.org/files/"
SOURCES = {
    "mitdb": ("mitdb/1.0.0/", r"\d{3}\.(hea|dat|atr)"),
    "ptbxl": (
        "ptb-xl/1.0.3/",
        r"records100/.*_lr\.(hea|dat)|ptbxl_database\.csv|scp_statements\.csv"
        r"|LICENSE\.txt",
    ),
}
"""Data set → folder below `BASE`, and a regular expression of the files needed."""
GIVE_UP_AFTER = 25
"""With so many failed files it is the server or the network: the rest is not tried."""
ATTEMPTS = 3
PAUSE_S = 1.0
TIMEOUT_S = 30


def fetch_dataset(name: str, folder: str | Path, base: str = BASE) -> Path:
    """Complete the files of a data set in `folder`, and return it.

    Whole files that are there are not fetched again.

    Parameters
    ----------
    name
        One of `SOURCES`.
    folder
        Where the files go, in PhysioNet's own layout.
    base
        Address of a mirror of PhysioNet's files.

    Raises
    ------
    StudyError
        Naming the files that could not be fetched, after all others have been.
    """
    folder, (place, pattern) = Path(folder), SOURCES[name]
    address = base + place
    with lock_file(folder / ".lock") as file, requests.Session() as session:
        lock(file)  # another study may be fetching the same: wait for it
        if not (folder / SUMS).exists():
            problem = fetch_file(session, address + SUMS, folder / SUMS)
            if problem:
                raise StudyError(f"{name}: {address}{SUMS} {problem}; set data_root")
        sums = read_sums(folder / SUMS)
        needed = [file for file in sums if re.fullmatch(pattern, file)]
        if not needed:
            raise StudyError(
                f"{folder / SUMS} lists no files of {name}; delete it and run again"
            )
        failed = _fetch_all(session, address, folder, {f: sums[f] for f in needed})
    if failed:
        shown = "; ".join(failed[file] for file in sorted(failed)[:5])
        raise StudyError(
            f"{name}: {len(failed)} of {len(needed)} files failed: {shown}, …;"
            f" run again to fetch what is missing in {folder}"
        )
    return folder


def _fetch_all(
    session: requests.Session, address: str, folder: Path, sums: dict[str, str]
) -> dict[str, str]:
    """Fetch every file; return file → problem of those that failed."""
    failed = {}

    def fetch(file: str) -> None:
        problem = "was not tried"
        if len(failed) < GIVE_UP_AFTER:
            problem = fetch_file(session, address + file, folder / file, sums[file])
        if problem:
            failed[file] = f"{file} {problem}"

    pool = ThreadPoolExecutor(max_workers=8)
    try:
        for _ in tqdm(pool.map(fetch, sums), folder.name, len(sums), unit="file"):
            pass
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C: only those under way are finished
    return failed


def fetch_file(
    session: requests.Session, url: str, target: Path, digest: str | None = None
) -> str | None:
    """Fetch one file, unless it is there whole, in several attempts.

    Parameters
    ----------
    session
        Keeps connections open from file to file.
    url
        Redirects are not followed: the file comes from the named host or not at all.
    target
        Where the file goes.
    digest
        SHA-256 that it must have; None: none is known.

    Returns
    -------
    str or None
        What went wrong, or None.
    """
    if target.exists() and digest == sha256(target):
        return None
    part, problem = target.with_name(f"{target.name}.part"), None
    for attempt in range(ATTEMPTS):
        time.sleep(attempt * PAUSE_S)
        try:
            part.parent.mkdir(parents=True, exist_ok=True)
            _transfer(session, url, part)
            if digest in (None, sha256(part)):
                os.replace(part, target)
                return None
            problem = "has a wrong checksum"
        except OSError as error:  # those of requests are OSErrors too
            problem = f"could not be fetched ({str(error)[:120]})"
    return problem


def _transfer(session: requests.Session, url: str, part: Path) -> None:
    request = session.get(url, stream=True, timeout=TIMEOUT_S, allow_redirects=False)
    with request as answer, open(part, "wb") as stream:
        if answer.status_code != requests.codes.ok:
            raise OSError(f"HTTP status {answer.status_code}")
        for chunk in answer.iter_content(2**16):
            stream.write(chunk)
