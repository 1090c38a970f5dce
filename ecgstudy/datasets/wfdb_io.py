"""WFDB records: leads in mV and beat annotations, read with the wfdb package."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ecgstudy.errors import StudyError


def read_leads(
    stem: Path, leads: Sequence[str], fs: float
) -> tuple[np.ndarray, list[str]]:
    """Read leads by name from the WFDB record `stem` (.hea and signal file).

    Parameters
    ----------
    stem
        Path of the record without suffix.
    leads
        Names, compared without regard to case.
    fs
        Sampling rate in Hz that the leads must have.

    Returns
    -------
    signals
        float32 (leads, samples) in mV; invalid samples are NaN.
    comments
        The header's comment lines.

    Raises
    ------
    StudyError
        Naming the file that is missing, damaged or truncated, or the lead that is
        missing, of another rate, not in mV, or without the header's checksum.
    """
    record = _read_record(stem)
    names = [(name or "").upper() for name in record.sig_name]
    signals = []
    for lead in leads:
        if lead.upper() not in names:
            known = ", ".join(filter(None, record.sig_name))
            raise StudyError(f"{stem}.hea: lead {lead!r} is missing; it has {known}")
        channel = names.index(lead.upper())
        _check_channel(stem, record, channel, fs)
        signals.append(record.e_p_signal[channel])
    return np.array(signals, dtype=np.float32), record.comments


def _read_record(stem: Path) -> "wfdb.Record":  # noqa: F821 (imported when needed)
    import wfdb  # slow to import, and training does not need it

    try:
        # A lead may have several samples a frame: averaged, they lose the checksum.
        record = wfdb.rdrecord(str(stem), physical=False, smooth_frames=False)
        record.e_p_signal = record.dac(expanded=True)
    except FileNotFoundError as error:
        raise StudyError(
            f"{error.filename}: no such file; download the record again"
        ) from error
    except Exception as error:  # many kinds, depending on where a file is damaged
        raise StudyError(
            f"{stem}: the .hea is damaged or the .dat truncated ({error}); "
            "download the record again"
        ) from error
    return record


def _check_channel(
    stem: Path,
    record: "wfdb.Record",  # noqa: F821
    channel: int,
    fs: float,
) -> None:
    rate = record.fs * record.samps_per_frame[channel]
    if rate != fs:
        raise StudyError(f"{stem}.hea: sampling rate {rate:g} Hz; it must be {fs:g} Hz")
    unit = record.units[channel]
    if unit != "mV":
        raise StudyError(f"{stem}.hea: unit {unit!r}; signals must be in mV")
    checksum = record.checksum[channel]
    total = int(record.e_d_signal[channel].sum(dtype=np.int64))
    # 0 or None: not given (some data sets write 0 in every header).
    if checksum and (total - checksum) % 2**16:
        raise StudyError(
            f"{stem}: lead {record.sig_name[channel]!r} does not have the checksum"
            " in the .hea; download the record again"
        )


def read_annotations(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Symbols (str) and sample numbers of the annotations in a WFDB file.

    Raises
    ------
    StudyError
        Naming the file that is missing, truncated or damaged.
    """
    import wfdb  # slow to import, and training does not need it

    try:
        # wfdb reads a file that is cut at an even byte without complaint.
        if path.read_bytes()[-2:] != b"\0\0":
            raise ValueError("no end mark")
        found = wfdb.rdann(str(path.with_suffix("")), path.suffix[1:])
        if not found.symbol:
            raise ValueError("none in the file")
    except Exception as error:  # as above
        raise StudyError(
            f"{path}: missing or truncated annotations ({error}); download it again"
        ) from error
    return np.array(found.symbol, dtype=str), found.sample.astype(np.int64)
