"""What the loaders share: WFDB records in mV, official checksums, counts for the card."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from ecgstudy.errors import StudyError
from ecgstudy.files import sha256

SUMS = "SHA256SUMS.txt"
DAMAGE = (OSError, ValueError, LookupError, TypeError, AttributeError)
"""What wfdb raises, depending on where a file is cut or garbled."""


def read_leads(stem: Path, leads: Sequence[str], fs: float) -> tuple[np.ndarray, list[str]]:
    """Read leads by name from the WFDB record `stem` (.hea and .dat).

    Parameters
    ----------
    stem
        Path of the record without suffix.
    leads
        Names, compared without regard to case.
    fs
        Sampling rate in Hz that the record must have.

    Returns
    -------
    signals, comments
        float32 (leads, samples) in mV, from the header's gain and baseline; the header's comments.
        Invalid samples are NaN.

    Raises
    ------
    StudyError
        Naming the file: missing, truncated or damaged, another rate, a lead absent or not in mV.
    """
    import wfdb  # slow to import, and training does not need it

    try:
        record = wfdb.rdrecord(str(stem))
    except FileNotFoundError as error:
        raise StudyError(f"{error.filename}: no such file; download the record again") from error
    except DAMAGE as error:
        raise StudyError(
            f"{stem}: the .hea is damaged or the .dat truncated ({error}); download the record again"
        ) from error
    if record.fs != fs:
        raise StudyError(f"{stem}.hea: sampling rate {record.fs:g} Hz; it must be {fs:g} Hz")
    names = [name.upper() for name in record.sig_name]
    absent = [lead for lead in leads if lead.upper() not in names]
    if absent:
        raise StudyError(f"{stem}.hea: lead {absent[0]!r} is missing; it has {', '.join(record.sig_name)}")
    channels = [names.index(lead.upper()) for lead in leads]
    units = {record.units[channel] for channel in channels} - {"mV"}
    if units:
        raise StudyError(f"{stem}.hea: unit {units.pop()!r}; signals must be in mV")
    return record.p_signal[:, channels].T.astype(np.float32), record.comments


def read_sums(path: Path) -> dict[str, str]:
    """File name → SHA-256 from a ``SHA256SUMS.txt``.

    Raises
    ------
    StudyError
        Naming the file and the line that is no checksum.
    """
    sums = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        digest, _, name = line.strip().partition(" ")
        if len(digest) != 64 or not name:
            raise StudyError(f"{path}: {line[:80]!r} is not '<sha256> <file>'; delete it and run again")
        sums[name.strip().removeprefix("*")] = digest
    return sums


def verify_checksums(root: Path, names: Iterable[str]) -> dict[str, object]:
    """Compare the files `names` with ``SHA256SUMS.txt`` in `root`, where that exists and lists them.

    Returns
    -------
    dict
        For the card: ``files``, ``files_verified`` and the SHA-256 of the list itself (or None).

    Raises
    ------
    StudyError
        Naming the file that is missing or differs.
    """
    listed = root / SUMS
    sums = read_sums(listed) if listed.exists() else {}
    names, verified = list(names), 0
    for name in names:
        if not (root / name).is_file():
            raise StudyError(f"{root / name}: no such file; download the data set again or complete it")
        if name not in sums:
            continue
        if sha256(root / name) != sums[name]:
            raise StudyError(
                f"{root / name}: checksum differs from {SUMS}; delete the file and download it again"
            )
        verified += 1
    return {
        "files": len(names),
        "files_verified": verified,
        "sha256sums": sha256(listed) if sums else None,
    }


def count_classes(
    splits: Iterable[str], labels: np.ndarray, classes: Sequence[str]
) -> dict[str, dict[str, int]]:
    """Split → class → number of records, from multi-hot `labels` (records, classes)."""
    splits = np.asarray(list(splits))
    return {
        str(split): {name: int(n) for name, n in zip(classes, labels[splits == split].sum(0), strict=True)}
        for split in np.unique(splits)
    }
