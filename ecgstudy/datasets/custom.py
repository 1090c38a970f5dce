"""Records of your own: a folder of WFDB records or arrays, and a table.

The table has one row a record: `record` (unique), `patient`, the labels, and whatever
else is known: `split` and `attacked` (made here if absent), `age` in years, `sex`
(``female``, ``male``), `height` in cm, `weight` in kg.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
import pandas as pd

from ecgstudy.datasets.sources import SUMS, verify_checksums
from ecgstudy.datasets.wfdb_io import read_leads
from ecgstudy.errors import StudyError
from ecgstudy.files import read_sums
from ecgstudy.records import EcgRecords, count_by_split

FOLDS = 5
"""Without a column `split`, one fold tests, one validates and the others train."""


def from_arrays(
    name: str,
    signals: np.ndarray,
    table: pd.DataFrame,
    *,
    fs: float,
    leads: Sequence[str],
    labels: str | Sequence[str],
    **card: object,
) -> EcgRecords:
    """Records from signals in mV, in the order of the table's rows.

    Parameters
    ----------
    name
        Of the data set.
    signals
        (records, leads, samples) in mV.
    table
        At least `record`, `patient` and `labels`. Without `split`, patients are split
        60/20/20 into training, validation and test, stratified by class; without
        `attacked`, all records outside training may be attacked. A record without
        patient is a patient of its own.
    fs
        Sampling rate in Hz.
    leads
        Lead names.
    labels
        One column that names the class of each record, or several columns of 0 and
        1, one per class.
    card
        What the report should say of the data: ``source="…"``, ``licence="…"``,
        ``adc_mv=0.001``, ….

    Returns
    -------
    EcgRecords
        Not yet checked; `ecgstudy.datasets.prepare.prepare` does that.

    Raises
    ------
    StudyError
        Naming the column that is missing or the label that is none.
    """
    columns = [labels] if isinstance(labels, str) else list(labels)
    _check_columns(name, table, ["record", "patient", *columns])
    table = table.reset_index(drop=True).astype({"record": str})
    patients = table["patient"].astype("string").fillna("record-" + table["record"])
    table["patient"] = patients.astype(object)
    hot, classes = _read_labels(name, table, labels)
    table = table.drop(columns=columns)
    if "split" not in table:
        table["split"] = _split_patients(name, hot, table["patient"])
    if "attacked" not in table:
        table["attacked"] = table["split"] != "train"
    counts = count_by_split(table["split"], hot, classes)
    return EcgRecords(
        name=name,
        signals=np.asarray(signals, dtype=np.float32),
        fs=float(fs),
        leads=tuple(leads),
        labels=hot.argmax(1) if isinstance(labels, str) else hot,
        classes=tuple(classes),
        table=table,
        card={"synthetic": False, "adc_mv": None, **card, "counts": counts},
    )


def from_wfdb(
    name: str,
    folder: Path,
    table: pd.DataFrame,
    *,
    fs: float,
    leads: Sequence[str],
    seconds: float,
    labels: str | Sequence[str],
    **card: object,
) -> EcgRecords:
    """Records from WFDB files ``folder/<record>.hea`` and ``.dat``.

    Signals wait in a temporary file (in ``TMPDIR``), so that they may be more than the
    memory holds.

    Parameters
    ----------
    name, table, labels, card
        As for `from_arrays`.
    folder
        Files of these records that a ``SHA256SUMS.txt`` there lists are compared with
        it.
    fs
        Rate in Hz that all have (``datasets.<name>.fs`` in the params file resamples
        them).
    leads
        Names of the leads to read.
    seconds
        Length in s, from the start of each record.

    Raises
    ------
    StudyError
        Naming the file that is missing, damaged, too short, of another rate, or
        without a lead.
    """
    _check_columns(name, table, ["record"])
    if table.empty:
        raise StudyError(f"{name}: the table has no rows; it must have one per record")
    folder, records = Path(folder), [str(record) for record in table["record"]]
    shape = len(records), len(leads), round(seconds * fs)
    with TemporaryFile(prefix="ecgstudy-") as file:
        for record in records:
            found, _ = read_leads(folder / record, leads, fs)
            if found.shape[1] < shape[2]:
                raise StudyError(
                    f"{folder / record}.hea: {found.shape[1] / fs:g} s long;"
                    f" it must be {seconds:g} s or longer"
                )
            file.write(np.ascontiguousarray(found[:, : shape[2]]))
        file.flush()
        signals = np.memmap(file, np.float32, "r", shape=shape)
    # A header may name its signal files freely: whatever is listed of a record counts.
    known = set(records)
    listed = [
        file for file in read_sums(folder / SUMS) if file.rpartition(".")[0] in known
    ]
    card["checksums"] = verify_checksums(folder, listed)
    return from_arrays(name, signals, table, fs=fs, leads=leads, labels=labels, **card)


def _check_columns(name: str, table: pd.DataFrame, columns: Sequence[str]) -> None:
    for column in columns:
        if column not in table:
            raise StudyError(
                f"{name}: the table has no column {column!r}; it has {', '.join(table)}"
            )


def _read_labels(
    name: str, table: pd.DataFrame, labels: str | Sequence[str]
) -> tuple[np.ndarray, list[str]]:
    """Multi-hot labels, float32 (records, classes), and the classes' names."""
    if isinstance(labels, str):
        for record in table["record"][table[labels].isna()]:
            raise StudyError(
                f"{name}: record {record!r} has no {labels}; leave it out or label it"
            )
        hot = pd.get_dummies(table[labels].astype(str), dtype=np.float32)
        return hot.to_numpy(), list(hot)
    for column in labels:
        bad = ~table[column].isin([0, 1])
        for record, value in table.loc[bad, ["record", column]].to_numpy():
            raise StudyError(
                f"{name}: record {record!r} has {column} {str(value)!r};"
                " it must be 0 or 1"
            )
    return table[list(labels)].to_numpy(np.float32), list(labels)


def _split_patients(name: str, hot: np.ndarray, patients: pd.Series) -> np.ndarray:
    """A split for each record, by patient, stratified by a record's rarest class."""
    # Slow to import, and rarely needed.
    from sklearn.model_selection import StratifiedGroupKFold

    if patients.nunique() < FOLDS:
        raise StudyError(
            f"{name}: {patients.nunique()} patients are too few to split;"
            " give a column 'split'"
        )
    rarest = np.where(hot > 0, hot.sum(axis=0), np.inf).argmin(axis=1)
    rarest[~hot.any(axis=1)] = -1
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0)
    with warnings.catch_warnings():
        # Of rare classes: a split that lacks one is refused when all is checked.
        warnings.simplefilter("ignore", UserWarning)
        try:
            parts = [rows for _, rows in folds.split(hot, rarest, patients)]
        except ValueError as error:
            raise StudyError(
                f"{name}: too few records to split ({error}); give a column 'split'"
            ) from error
    split = np.full(len(hot), "train", dtype=object)
    split[parts[0]] = "test"
    split[parts[1]] = "validation"
    return split
