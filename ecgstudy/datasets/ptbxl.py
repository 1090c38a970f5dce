"""PTB-XL 1.0.3 at 100 Hz: 12-lead ECGs of 10 s with several diagnostic labels each.

Wagner et al. 2020 (doi 10.13026/kfzx-aw45); folds 1–8 train, 9 validate, 10 test, as
recommended there.
"""

import ast
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from ecgstudy.datasets.leads import STANDARD
from ecgstudy.datasets.sources import read_card, verify_checksums
from ecgstudy.datasets.wfdb_io import read_leads
from ecgstudy.errors import StudyError
from ecgstudy.records import EcgRecords, count_by_split
from ecgstudy.registry import DATASETS

FS = 100.0
SUPERCLASSES = ("NORM", "MI", "STTC", "CD", "HYP")
SAMPLES = slice(5, 985)
"""Both ends of a record are edge effects of the resampling to 100 Hz."""
COMPLETE = 21_799
PUBLISHED = {"train": 17_084, "validation": 2_146, "test": 2_158}
"""Records with a superclass in the complete data set, per split."""
DATABASE, STATEMENTS, SUBSET = "ptbxl_database.csv", "scp_statements.csv", "subset.csv"


@DATASETS.register("ptbxl")
def load(
    root: Path,
    *,
    task: Literal["superclass", "statements"] = "superclass",
    exclude: str = "",
) -> EcgRecords:
    """Read the records listed in ``ptbxl_database.csv``, which may be a part of PTB-XL.

    Parameters
    ----------
    root
        Folder with ``ptbxl_database.csv``, ``scp_statements.csv`` and ``records100``.
    task
        The five diagnostic superclasses, or each statement that occurs in training
        and test.
    exclude
        ECG ids to leave out (flat leads, say), separated by spaces; the card names
        them.

    Raises
    ------
    StudyError
        Naming the file or record that is missing, damaged or not as it should be.
    """
    verify_checksums(root, [DATABASE, STATEMENTS])
    database, labels = _read_tables(root, task)
    labelled = labels.any(axis=1)
    found = database["split"][labelled].value_counts().to_dict()
    if task == "superclass" and len(database) == COMPLETE and found != PUBLISHED:
        raise StudyError(
            f"{root}: {found} records with a superclass; PTB-XL 1.0.3 has {PUBLISHED}:"
            " download the tables again"
        )
    excluded = database["record"].isin(exclude.split())
    kept = labelled & ~excluded
    table, labels = database[kept].reset_index(drop=True), labels[kept]
    absent = []
    if task == "statements":
        by_split = labels.groupby(table["split"]).any()
        present = by_split.loc[["train", "test"]].all()
        absent = labels.columns[~present].tolist()
        labels = labels.loc[:, present]
    files = [f"{stem}.{end}" for stem in table["stem"] for end in ("hea", "dat")]
    card = {
        **_describe_origin(root, table),
        "task": task,
        "counts": count_by_split(table["split"], labels.to_numpy(), labels.columns),
        "without_label": int((~labelled).sum()),
        "excluded": sorted(database["record"][excluded]),
        "statements_absent_from_training_or_test": absent,
        "checksums": verify_checksums(root, [DATABASE, STATEMENTS, *files]),
    }
    return EcgRecords(
        name="ptbxl",
        signals=_read_signals(root, table),
        fs=FS,
        leads=STANDARD,
        labels=labels.to_numpy(np.float32),
        classes=tuple(labels.columns),
        table=table.drop(columns="stem"),
        card=card,
    )


def _read_tables(root: Path, task: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The table, with the file `stem` of each record, and the labels by class."""
    try:
        rows = pd.read_csv(root / DATABASE)
        statements = pd.read_csv(root / STATEMENTS, index_col=0)
        table = _make_table(rows)
        superclass = statements["diagnostic_class"].where(statements["diagnostic"] == 1)
        codes = rows["scp_codes"]
    except (KeyError, ValueError) as error:
        raise StudyError(
            f"{root}: {DATABASE} or {STATEMENTS} is damaged ({error}); "
            "download them again"
        ) from error
    if task == "superclass":
        class_of, classes = superclass.to_dict(), SUPERCLASSES
    else:
        class_of, classes = {code: code for code in statements.index}, statements.index
    labels = pd.DataFrame(False, table.index, list(classes))
    for row, text in enumerate(codes):
        where = f"{root / DATABASE}: record {table['record'][row]}"
        try:
            listed = list(ast.literal_eval(text))
        except (ValueError, SyntaxError, TypeError) as error:
            raise StudyError(
                f"{where}: scp_codes {str(text)[:80]!r} is not a dictionary"
                " code → likelihood"
            ) from error
        # Likelihood 0 means "unknown" in PTB-XL: every listed code counts.
        for code in listed:
            if code not in class_of:
                raise StudyError(
                    f"{where}: unknown SCP code {code!r}; {STATEMENTS} lists the known"
                    " ones"
                )
            if class_of[code] in labels:
                labels.at[row, class_of[code]] = True
    return table, labels


def _make_table(rows: pd.DataFrame) -> pd.DataFrame:
    """The columns of the study, from the official ones."""
    records, folds = rows["ecg_id"].astype(str), rows["strat_fold"].astype(int)
    splits = {**dict.fromkeys(range(1, 9), "train"), 9: "validation", 10: "test"}
    split = folds.map(splits)
    # A record of an unknown patient is a patient of its own.
    patients = rows["patient_id"].astype("Int64").astype("string")
    return pd.DataFrame(
        {
            "record": records,
            "patient": patients.fillna("record-" + records).astype(object),
            "split": split,
            "attacked": split != "train",
            # 300 stands for "over 89".
            "age": rows["age"].astype(float).replace(300.0, 90.0),
            "sex": rows["sex"].map({0: "male", 1: "female"}),
            "height": rows["height"].astype(float),
            "weight": rows["weight"].astype(float),
            "fold": folds,
            "stem": rows["filename_lr"],
        }
    )


def _read_signals(root: Path, table: pd.DataFrame) -> np.ndarray:
    """float32 (records, leads, samples) in mV."""
    samples = SAMPLES.stop - SAMPLES.start
    signals = np.empty((len(table), len(STANDARD), samples), dtype=np.float32)
    for row, stem in enumerate(table["stem"]):
        leads, _ = read_leads(root / stem, STANDARD, FS)
        if leads.shape[1] < SAMPLES.stop:
            raise StudyError(
                f"{root / stem}.hea: {leads.shape[1]} samples a lead; it must be 1000"
            )
        signals[row] = leads[:, SAMPLES]
    return signals


def _describe_origin(root: Path, table: pd.DataFrame) -> dict:
    """The part of the card that says where the records come from."""
    unknown = table["patient"].str.startswith("record-")
    card = {
        **read_card("ptbxl"),
        "complete": len(table) >= sum(PUBLISHED.values()),
        "unknown_patients": int(unknown.sum()),
    }
    if (root / SUBSET).exists():
        subset = pd.read_csv(root / SUBSET, dtype=str).set_index("ecg_id")
        subset = subset.reindex(table["record"])
        card["subset"] = {
            "resampled_from_500_hz": int((subset["signal"] == "resampled").sum()),
            "metadata_codes_only": int((subset["metadata"] == "codes-only").sum()),
        }
    return card
