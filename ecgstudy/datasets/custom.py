"""Records of one's own: a folder of WFDB records, or arrays, and a table that says whose and what they are.

The table has one row a record: `record` (unique), `patient`, the labels, and whatever else is known: `split`
and `attacked` (made here if absent), `age` in years, `sex` (``female``, ``male``), `height` in
cm, `weight` in kg.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
import pandas as pd

from ecgstudy.datasets.wfdb_io import count_classes, read_records, verify_checksums
from ecgstudy.errors import StudyError
from ecgstudy.records import EcgRecords, plain

FOLDS = 5
"""Where the table has no splits: one fold is for testing, one for validation, the others for training."""


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
    """Records from `signals` (records, leads, samples) in mV, in the order of the table's rows.

    Parameters
    ----------
    name
        Of the data set.
    table
        At least `record`, `patient` and `labels`. Without `split`, patients are dealt to training, validation
        and test, 3 : 1 : 1, with classes as even as can be; without `attacked`, all records outside training
        may be attacked.
    fs
        Sampling rate in Hz.
    leads
        Lead names.
    labels
        One column that names the class of each record, or several columns of 0 and 1, one a class.
    card
        What the report shall say of the data: ``source="…"``, ``licence="…"``, ``adc_mv=0.001``, ….

    Returns
    -------
    EcgRecords
        Not yet checked; `ecgstudy.datasets.prepare.prepare` does that.

    Raises
    ------
    StudyError
        Naming the column that is missing or the label that is none.
    """
    table = table.reset_index(drop=True)
    wanted = ["record", "patient", *([labels] if isinstance(labels, str) else labels)]
    if absent := [column for column in wanted if column not in table]:
        raise StudyError(
            f"{name}: the table has no column {absent[0]!r}; it has {', '.join(table)}"
        )
    hot, classes = _labels(name, table, labels)
    table = table.astype({"record": str, "patient": str}).drop(columns=wanted[2:])
    if "split" not in table:
        table["split"] = _splits(name, hot, table["patient"])
    if "attacked" not in table:
        table["attacked"] = table["split"] != "train"
    facts = {
        "synthetic": False,
        "adc_mv": None,
        **card,
        "counts": count_classes(table["split"], hot, classes),
    }
    given = hot if not isinstance(labels, str) else hot.argmax(1)
    signals = np.asarray(signals, dtype=np.float32)
    return EcgRecords(
        name, signals, float(fs), tuple(leads), given, tuple(classes), table, facts
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
    """Records from WFDB files ``folder/<record>.hea`` and ``.dat``: their first `seconds`.

    `fs` is the rate that all have (``datasets.<name>.fs`` in the params file resamples them); the others are
    those of `from_arrays`. Files listed in a ``SHA256SUMS.txt`` in `folder` are compared with it. Signals
    wait in a temporary file (in ``TMPDIR``), so that they may be more than the memory holds.

    Raises
    ------
    StudyError
        Naming the file that is missing, damaged, too short, of another rate, or without a lead.
    """
    if "record" not in table:
        raise StudyError(
            f"{name}: the table has no column 'record'; it has {', '.join(table)}"
        )
    if table.empty:
        raise StudyError(f"{name}: the table has no rows; it must have one a record")
    stems = [Path(folder) / str(record) for record in table["record"]]
    samples = round(seconds * fs)
    with TemporaryFile(
        prefix="ecgstudy-"
    ) as file:  # signals may be more than the memory holds
        for stem, (found, _) in zip(stems, read_records(stems, leads, fs), strict=True):
            if found.shape[1] < samples:
                length = found.shape[1] / fs
                raise StudyError(
                    f"{stem}.hea: {length:g} s long; it must be {seconds:g} s or longer"
                )
            file.write(np.ascontiguousarray(found[:, :samples]))
        file.flush()
        signals = np.memmap(
            file, np.float32, "r", shape=(len(stems), len(leads), samples)
        )
    names = [
        f"{record}{suffix}" for record in table["record"] for suffix in (".hea", ".dat")
    ]
    there = [
        name for name in names if (Path(folder) / name).exists()
    ]  # a header may name its files freely
    card = {**card, "checksums": verify_checksums(Path(folder), there)}
    return from_arrays(name, signals, table, fs=fs, leads=leads, labels=labels, **card)


def _labels(
    name: str, table: pd.DataFrame, labels: str | Sequence[str]
) -> tuple[np.ndarray, list[str]]:
    """Multi-hot labels, float32 (records, classes), and the classes' names."""
    if isinstance(labels, str):
        if table[labels].isna().any():
            record = table["record"][table[labels].isna()].iloc[0]
            raise StudyError(
                f"{name}: record {str(record)!r} has no {labels}; leave it out or label it"
            )
        codes, classes = pd.factorize(table[labels].astype(str), sort=True)
        return np.eye(len(classes), dtype=np.float32)[codes], list(classes)
    for column in labels:
        if not (good := table[column].isin([0, 1])).all():
            record, value = table.loc[~good, ["record", column]].iloc[0]
            raise StudyError(
                f"{name}: record {str(record)!r} has {column} {plain(value)!r}; it must be 0 or 1"
            )
    return table[list(labels)].to_numpy(np.float32), list(labels)


def _splits(name: str, hot: np.ndarray, patients: pd.Series) -> np.ndarray:
    """A split for each record, by patient; the rarest class of a record stands for it."""
    from sklearn.model_selection import (
        StratifiedGroupKFold,  # slow to import, and rarely needed
    )

    if patients.nunique() < FOLDS:
        raise StudyError(
            f"{name}: {patients.nunique()} patients are too few to split; give a column 'split'"
        )
    rarest = np.where(hot.any(1), np.where(hot > 0, hot.sum(0), np.inf).argmin(1), -1)
    dealer = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0)
    with (
        warnings.catch_warnings()
    ):  # of rare classes; a split that lacks one is refused when all is checked
        warnings.simplefilter("ignore", UserWarning)
        try:
            folds = [held for _, held in dealer.split(hot, rarest, patients)]
        except ValueError as error:
            raise StudyError(
                f"{name}: too few records to split ({error}); give a column 'split'"
            ) from error
    split = np.full(len(hot), "train", dtype=object)
    split[folds[0]], split[folds[1]] = "test", "validation"
    return split
