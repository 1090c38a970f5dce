"""PTB-XL 1.0.3 at 100 Hz: 12-lead ECGs of 10 s with several diagnostic labels each.

Wagner et al. 2020 (doi 10.13026/kfzx-aw45); folds 1–8 train, 9 validate, 10 test, as recommended there.
"""

import ast
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from ecgstudy.datasets.wfdb_io import count_classes, read_records, verify_checksums
from ecgstudy.errors import StudyError
from ecgstudy.records import EcgRecords

FS = 100.0
LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
SUPERCLASSES = ("NORM", "MI", "STTC", "CD", "HYP")
SAMPLES = slice(5, 985)
"""Both ends of a record are edge effects of the resampling to 100 Hz."""
COMPLETE = 21_799
PUBLISHED = {"train": 17_084, "validation": 2_146, "test": 2_158}
"""Records with a superclass in the complete data set, per split."""
DATABASE, STATEMENTS, SUBSET = "ptbxl_database.csv", "scp_statements.csv", "subset.csv"


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
        The five diagnostic superclasses, or each statement that occurs in training and test.
    exclude
        ECG ids to leave out, separated by spaces; they are named in the card.

    Raises
    ------
    StudyError
        Naming the file or record that is missing, damaged or not as it should be.
    """
    verify_checksums(root, [DATABASE, STATEMENTS])
    database, classes, labels = _read_tables(root, task)
    labelled = labels.any(axis=1)
    _check_published(root, database["split"][labelled], len(database), task)
    kept = labelled & ~database["record"].isin(exclude.split()).to_numpy()
    table, labels = database[kept].reset_index(drop=True), labels[kept]
    if task == "statements":
        present = np.all(
            [labels[table["split"] == s].any(axis=0) for s in ("train", "test")], axis=0
        )
        labels, classes, unused = (
            labels[:, present],
            classes[present],
            classes[~present],
        )
    names = [f"{stem}.{suffix}" for stem in table["stem"] for suffix in ("hea", "dat")]
    card = {
        **_origin(root, table),
        "task": task,
        "counts": count_classes(table["split"], labels, classes),
        "without_label": int((~labelled).sum()),
        "excluded": sorted(set(exclude.split()) & set(database["record"])),
        "statements_absent_from_training_or_test": unused.tolist()
        if task == "statements"
        else [],
        "checksums": verify_checksums(root, [DATABASE, STATEMENTS, *names]),
    }
    return EcgRecords(
        name="ptbxl",
        signals=_read_signals(root, table),
        fs=FS,
        leads=LEADS,
        labels=labels,
        classes=tuple(classes.tolist()),
        table=table.drop(columns="stem"),
        card=card,
    )


def _read_tables(root: Path, task: str) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """Table (with the file `stem` of each record), class names, multi-hot labels (records, classes)."""
    try:
        rows = pd.read_csv(root / DATABASE)
        statements = pd.read_csv(root / STATEMENTS, index_col=0)
        table = _table(root, rows)
        if task == "statements":
            class_of = {code: code for code in statements.index}
        else:
            class_of = (
                statements["diagnostic_class"]
                .where(statements["diagnostic"] == 1)
                .to_dict()
            )
        scp_codes = rows["scp_codes"]
    except (KeyError, ValueError) as error:
        raise StudyError(
            f"{root}: {DATABASE} or {STATEMENTS} is damaged ({error}); download them again"
        ) from error
    classes = np.array(SUPERCLASSES if task == "superclass" else list(class_of))
    labels = np.zeros((len(rows), len(classes)), dtype=np.float32)
    for row, (record, text) in enumerate(zip(table["record"], scp_codes, strict=True)):
        # Likelihood 0 means "unknown" in PTB-XL, so every listed code counts (as in its own example).
        labels[row] = np.isin(
            classes, _classes_of(text, class_of, f"{root / DATABASE}: record {record}")
        )
    return table, classes, labels


def _table(root: Path, rows: pd.DataFrame) -> pd.DataFrame:
    """The columns of the study, from the official ones."""
    where = root / DATABASE
    repeated = rows["ecg_id"][rows["ecg_id"].duplicated()]
    if len(repeated):
        raise StudyError(
            f"{where}: record {repeated.iloc[0]} occurs twice; keep one row"
        )
    outside = rows[~rows["strat_fold"].isin(range(1, 11))]
    if len(outside):
        record, fold = outside[["ecg_id", "strat_fold"]].iloc[0]
        raise StudyError(
            f"{where}: record {record} has strat_fold {fold}; folds are 1 to 10"
        )
    strange = rows[~rows["filename_lr"].astype(str).str.fullmatch(r"[\w-]+(/[\w-]+)*")]
    if len(strange):
        record, name = strange[["ecg_id", "filename_lr"]].iloc[0]
        raise StudyError(
            f"{where}: record {record} has filename_lr {name!r}; it must be inside the data set"
        )
    records = rows["ecg_id"].astype(str)
    split = rows["strat_fold"].map({9: "validation", 10: "test"}).fillna("train")
    return pd.DataFrame(
        {
            "record": records,
            "patient": rows["patient_id"]
            .astype("Int64")
            .astype("string")
            .fillna("record-" + records)
            .astype(object),
            "split": split,
            "attacked": split != "train",
            "age": rows["age"]
            .astype(float)
            .replace(300.0, 90.0),  # 300 stands for "over 89"
            "sex": rows["sex"].map({0: "male", 1: "female"}),
            "height": rows["height"].astype(float),
            "weight": rows["weight"].astype(float),
            "fold": rows["strat_fold"].astype(int),
            "stem": rows["filename_lr"],
        }
    )


def _classes_of(text: str, class_of: dict, where: str) -> list[str]:
    """Classes of the codes in `text`, a dictionary code → likelihood written in Python."""
    try:
        codes = list(ast.literal_eval(text))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise StudyError(
            f"{where}: scp_codes {str(text)[:80]!r} is not a dictionary code → likelihood"
        ) from error
    unknown = [code for code in codes if code not in class_of]
    if unknown:
        raise StudyError(
            f"{where}: unknown SCP code {unknown[0]!r}; {STATEMENTS} lists the known ones"
        )
    return [class_of[code] for code in codes]


def _check_published(root: Path, splits: pd.Series, n_records: int, task: str) -> None:
    found = splits.value_counts().to_dict()
    if n_records == COMPLETE and task == "superclass" and found != PUBLISHED:
        raise StudyError(
            f"{root}: {found} records with a superclass; PTB-XL 1.0.3 has {PUBLISHED}: "
            "download the tables again"
        )


def _read_signals(root: Path, table: pd.DataFrame) -> np.ndarray:
    """float32 (records, leads, samples) in mV."""
    signals = np.empty(
        (len(table), len(LEADS), SAMPLES.stop - SAMPLES.start), dtype=np.float32
    )
    unfit = []
    stems = [root / stem for stem in table["stem"]]
    for row, (leads, _) in enumerate(read_records(stems, LEADS, FS)):
        if leads.shape[1] < SAMPLES.stop:
            raise StudyError(
                f"{stems[row]}.hea: {leads.shape[1]} samples a lead; it must be 1000"
            )
        signals[row] = leads[:, SAMPLES]
        if not (np.ptp(signals[row], axis=1) > 0).all():  # NaN compares false, too
            unfit.append(table["record"].iloc[row])
    if unfit:
        raise StudyError(
            f"{root}: flat leads or invalid samples in {' '.join(unfit[:20])}"
            f"{' …' * (len(unfit) > 20)}; repair them or leave them out, option exclude: {unfit[0]!r}"
        )
    return signals


def _origin(root: Path, table: pd.DataFrame) -> dict:
    """The part of the card that says where the records come from."""
    card = {
        "synthetic": False,
        "source": "PTB-XL, https://physionet.org/content/ptb-xl/1.0.3/",
        "version": "1.0.3",
        "doi": "10.13026/kfzx-aw45",
        "licence": "Creative Commons Attribution 4.0",
        "citation": "Wagner P, et al. PTB-XL, a large publicly available electrocardiography dataset. 2020",
        "adc_mv": 0.001,
        "complete": len(table) >= sum(PUBLISHED.values()),
        "unknown_patients": int(table["patient"].str.startswith("record-").sum()),
        "adaptations": [
            f"Samples {SAMPLES.start} to {SAMPLES.stop - 1} of each record: the ends are edge effects.",
            "Age 300 (over 89) is set to 90.",
            "A record of an unknown patient is a patient of its own.",
        ],
    }
    if not (root / SUBSET).exists():
        return card
    subset = (
        pd.read_csv(root / SUBSET, dtype=str)
        .set_index("ecg_id")
        .reindex(table["record"])
    )
    part = {
        "resampled_from_500_hz": int((subset["signal"] == "resampled").sum()),
        "metadata_codes_only": int((subset["metadata"] == "codes-only").sum()),
    }
    return card | {"subset": part}
