"""Records from WFDB files to arrays in mV, beside a plain loop over wfdb: needs the real data on disk."""

import os
from pathlib import Path

import numpy as np
import torch

from benchmarks.timing import Row, compared, side_by_side
from ecgstudy.datasets.wfdb_io import read_records

MOST = 2000
FORMS = {
    "mitdb": ("*.hea", ["MLII"], 360.0),
    "ptbxl": ("records100/*/*.hea", None, 100.0),
}
"""Data set → where its headers are, leads to read (None: all twelve), rate in Hz."""
TWELVE = ["I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6"]
OTHER_LEADS = ("102", "104")
"""MIT-BIH records without MLII."""


def reading(device: torch.device, repeats: int) -> list[Row]:
    """Milliseconds a record; no rows where the data are not on disk."""
    root, rows = os.environ.get("ECGSTUDY_DATA"), []
    for name in FORMS if root else ():
        if (Path(root) / name).is_dir():
            rows += _of(name, Path(root) / name, max(3, repeats // 3))
    if not rows:
        print(
            "reading: left out; ECGSTUDY_DATA does not name a folder with mitdb/ or ptbxl/"
        )
    return rows


def _of(name: str, folder: Path, repeats: int) -> list[Row]:
    pattern, leads, fs = FORMS[name]
    stems = [
        path.with_suffix("")
        for path in sorted(folder.glob(pattern))
        if path.stem not in OTHER_LEADS
    ][:MOST]
    leads = leads or TWELVE
    calls = {
        "plain wfdb loop": lambda: plain(stems, leads),
        "ours": lambda: list(read_records(stems, leads, fs)),
    }
    for ours, theirs in zip(
        list(read_records(stems[:20], leads, fs)), plain(stems[:20], leads), strict=True
    ):
        np.testing.assert_array_equal(ours[0], theirs)
    seconds = side_by_side(calls, repeats, torch.device("cpu"))
    what = f"{name}, {len(stems)} records, {len(os.sched_getaffinity(0))} cores"
    return compared(
        "reading",
        what,
        seconds,
        dict.fromkeys(calls, len(stems)),
        "plain wfdb loop",
        "record",
    )


def plain(stems: list[Path], leads: list[str]) -> list[np.ndarray]:
    """As a user of wfdb would write it: float32 (leads, samples) of each record."""
    import wfdb

    found = []
    for stem in stems:
        record = wfdb.rdrecord(str(stem))
        names = [lead.upper() for lead in record.sig_name]
        channels = [names.index(lead.upper()) for lead in leads]
        found.append(record.p_signal[:, channels].T.astype(np.float32))
    return found
