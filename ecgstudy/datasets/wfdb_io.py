"""What the loaders share: WFDB records in mV, official checksums, counts for the card."""

import multiprocessing
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from ecgstudy.errors import StudyError
from ecgstudy.files import read_sums, sha256

SUMS = "SHA256SUMS.txt"
DAMAGE = (
    OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, MemoryError, RecursionError,
)  # fmt: skip
"""What wfdb raises, depending on where a file is cut or garbled."""
LARGE = re.compile(r"^[ \t]*[^#\s]\S*[ \t]+\d+\S*[x:+]\d{5}", re.MULTILINE)
"""Samples a frame, skew or offset of a signal for which wfdb would fill the memory with zeros."""


def read_leads(
    stem: Path, leads: Sequence[str], fs: float
) -> tuple[np.ndarray, list[str]]:
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
        Naming the file: missing, truncated, damaged, or of samples that do not have the header's checksum;
        another rate; a lead absent or not in mV.
    """
    try:
        return _read_leads(stem, leads, fs)
    except FileNotFoundError as error:
        raise StudyError(
            f"{error.filename}: no such file; download the record again"
        ) from error
    except DAMAGE as error:
        raise StudyError(
            f"{stem}: the .hea is damaged or the .dat truncated ({error}); download the record again"
        ) from error


def _read_leads(
    stem: Path, leads: Sequence[str], fs: float
) -> tuple[np.ndarray, list[str]]:
    record = _read_record(stem)
    names = [name.upper() for name in record.sig_name]
    if record.fs != fs:
        raise StudyError(
            f"{stem}.hea: sampling rate {record.fs:g} Hz; it must be {fs:g} Hz"
        )
    absent = [lead for lead in leads if lead.upper() not in names]
    if absent:
        raise StudyError(
            f"{stem}.hea: lead {absent[0]!r} is missing; it has {', '.join(record.sig_name)}"
        )
    channels = [names.index(lead.upper()) for lead in leads]
    units = {record.units[channel] for channel in channels} - {"mV"}
    if units:
        raise StudyError(f"{stem}.hea: unit {units.pop()!r}; signals must be in mV")
    for per_channel in ("fmt", "adc_gain", "baseline", "checksum"):
        setattr(
            record,
            per_channel,
            [getattr(record, per_channel)[channel] for channel in channels],
        )
    record.d_signal = record.d_signal[
        :, channels
    ]  # turning only these into mV takes half the time of all
    for lead, adc, told in zip(leads, record.d_signal.T, record.checksum, strict=True):
        if told is not None and (int(adc.sum(dtype=np.int64)) - told) % 65536:
            raise StudyError(
                f"{stem}: lead {lead!r} has not the checksum that the .hea gives; download the record again"
            )
    return record.dac().T.astype(np.float32), record.comments


def _read_record(stem: Path) -> "wfdb.Record":  # noqa: F821 (imported when needed)
    """The record in ADC units; one of the errors `DAMAGE` if there is no making sense of its files."""
    import wfdb  # slow to import, and training does not need it

    if LARGE.search(
        stem.with_name(f"{stem.name}.hea").read_text(encoding="utf-8", errors="replace")
    ):
        raise ValueError("samples a frame, skew or offset of 10000 and more")
    record = wfdb.rdrecord(str(stem), physical=False)
    if not isinstance(record, wfdb.Record):
        raise ValueError("several segments")
    scale = np.array([record.adc_gain, record.baseline], dtype=float)
    if (
        not np.isfinite(scale).all()
        or not scale[0].all()
        or np.abs(scale[1]).max() > 2**31
    ):
        raise ValueError("a gain or baseline that no converter has")
    return record


def read_records(
    stems: Iterable[Path], leads: Sequence[str], fs: float
) -> Iterator[tuple[np.ndarray, list[str]]]:
    """`read_leads` of each record, in order, on all cores."""
    return on_cores(partial(read_leads, leads=leads, fs=fs), stems)


def on_cores(function: Callable[[Path], object], stems: Iterable[Path]) -> Iterator:
    """`function` of each record that wfdb reads, in order; on Linux on all cores.

    Parsing headers takes most of the time and holds the interpreter, so that threads would not help. Forked
    processes have wfdb in memory: starting them takes 0.1 s, where a new interpreter imports it for a second.
    """
    import wfdb  # noqa: F401  (before the fork, once for all)

    stems = list(stems)
    cores = (
        min(len(os.sched_getaffinity(0)), len(stems)) if sys.platform == "linux" else 1
    )
    if cores < 2:
        yield from map(function, stems)
        return
    with (
        warnings.catch_warnings()
    ):  # Python 3.12 warns of forks beside threads; the children start none
        warnings.simplefilter("ignore", DeprecationWarning)
        pool = ProcessPoolExecutor(
            cores, multiprocessing.get_context("fork"), _quick_headers
        )
    with pool:
        yield from pool.map(
            function, stems, chunksize=max(1, min(32, len(stems) // (4 * cores)))
        )


def _quick_headers() -> None:
    """Let wfdb look up its tables of header fields in dicts: pandas' `.loc` takes most of a read otherwise.

    For processes that read and nothing else. Tables that a later wfdb may not have are left as they are.
    """
    from wfdb.io import _header

    for name in ("RECORD_SPECS", "SIGNAL_SPECS"):
        if (table := getattr(_header, name, None)) is not None:
            cells = {
                (row, column): table.loc[row, column]
                for row in table.index
                for column in table.columns
            }
            setattr(_header, name, SimpleNamespace(index=list(table.index), loc=cells))


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
    sums = read_sums(listed)
    names, verified = list(names), 0
    for name in names:
        if not (root / name).is_file():
            raise StudyError(
                f"{root / name}: no such file; download the data set again or complete it"
            )
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
        str(split): {
            name: int(n)
            for name, n in zip(classes, labels[splits == split].sum(0), strict=True)
        }
        for split in np.unique(splits)
    }
