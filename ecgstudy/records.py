"""ECG records in memory and on disk: the one form that every other module reads."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd

from ecgstudy.errors import StudyError
from ecgstudy.files import json_text, whole_files

SEXES = ("female", "male")
AMPLITUDES_MV = (0.05, 20.0)
"""What ECGs span from peak to peak, with room on both sides."""
SPLITS = ("train", "validation", "test", "sensitivity")
"""`sensitivity` records are scored beside the test set but stay out of the primary analysis."""


@dataclass(frozen=True)
class EcgRecords:
    """ECGs of one data set, in mV, with labels, patients and splits.

    Attributes
    ----------
    name
        Data set name, for example ``"mitdb"``.
    signals
        float32 (records, leads, samples) in mV. May be a read-only memory map.
    fs
        Sampling rate in Hz.
    leads
        Lead names, in the order of `signals`.
    labels
        Class index int64 (records,), or multi-hot float32 (records, classes).
    classes
        Class names.
    table
        One row a record, index 0…n-1: `record` (unique id, str), `patient` (str), `split` (one of
        `SPLITS`), `attacked` (bool: belongs to the sample that is attacked), and metadata such as
        `age` (years) and `sex` (``"female"``, ``"male"``); missing values stay missing.
    card
        Where the data come from: source, version, licence, checksums, counts, adaptations.
        JSON-serialisable. ``card["synthetic"]`` is True for simulated ECGs.
        ``card["adc_mv"]`` is the amplitude of one ADC unit in mV (None if there is none).
    """

    name: str
    signals: np.ndarray
    fs: float
    leads: tuple[str, ...]
    labels: np.ndarray
    classes: tuple[str, ...]
    table: pd.DataFrame
    card: dict = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.signals)

    @property
    def multilabel(self) -> bool:
        """Whether a record may have several classes or none."""
        return self.labels.ndim == 2

    def multi_hot(self) -> np.ndarray:
        """Labels as float32 (records, classes), also for single-label data."""
        if self.multilabel:
            return self.labels
        return np.eye(len(self.classes), dtype=np.float32)[self.labels]

    def select(self, mask: np.ndarray) -> "EcgRecords":
        """The records where the boolean (records,) `mask` holds, order kept; neighbours are not copied."""
        rows = np.flatnonzero(np.asarray(mask))
        if len(rows) and rows[-1] - rows[0] + 1 == len(rows):
            rows = slice(rows[0], rows[-1] + 1)
        return replace(
            self,
            signals=self.signals[rows],
            labels=self.labels[rows],
            table=self.table.iloc[rows].reset_index(drop=True),
        )

    def split(self, *names: str) -> "EcgRecords":
        """The records whose split is one of `names`."""
        return self.select(self.table["split"].isin(names).to_numpy())


def count_classes(records: EcgRecords) -> pd.DataFrame:
    """Records of each class and split, as rows `class`, `split`, `records`."""
    labels, split = records.multi_hot(), records.table["split"].to_numpy()
    rows = [
        {
            "class": name,
            "split": part,
            "records": int(labels[split == part, column].sum()),
        }
        for part in SPLITS
        if (split == part).any()
        for column, name in enumerate(records.classes)
    ]
    return pd.DataFrame(rows)


def check_records(records: EcgRecords) -> EcgRecords:
    """Return `records` if they are fit for the study.

    Raises
    ------
    StudyError
        Naming the record, class or split: wrong shapes, non-finite samples, flat leads, amplitudes that
        cannot be mV, duplicate ids or leads, ages or sexes that are none, patients in two splits, a split or
        (in the training and test split) a class without records.
    """
    _check_shapes(records)
    _check_signals(records)
    _check_amplitude(records)
    _check_people(records)
    _check_splits(records)
    return records


def _check_shapes(records: EcgRecords) -> None:
    n = len(records)
    if records.signals.ndim != 3 or records.signals.dtype != np.float32:
        raise StudyError(
            f"{records.name}: signals are {records.signals.dtype} of shape {records.signals.shape};"
            " they must be float32 (records, leads, samples) in mV"
        )
    if records.signals.shape[1] != len(records.leads):
        raise StudyError(
            f"{records.name}: {records.signals.shape[1]} leads in the signals, "
            f"{len(records.leads)} lead names"
        )
    if len(set(records.leads)) < len(records.leads):
        raise StudyError(
            f"{records.name}: leads are {', '.join(records.leads)}; each must have its own name"
        )
    if not records.fs > 0:
        raise StudyError(
            f"{records.name}: sampling rate {records.fs!r}; it must be above 0 Hz"
        )
    if len(records.labels) != n or len(records.table) != n:
        raise StudyError(
            f"{records.name}: {n} signals, {len(records.labels)} labels and "
            f"{len(records.table)} table rows; they must be equal in number"
        )
    duplicate = records.table["record"][records.table["record"].duplicated()]
    if len(duplicate):
        raise StudyError(
            f"{records.name}: record {duplicate.iloc[0]!r} occurs twice; keep one"
        )


def _check_signals(records: EcgRecords, block: int = 4096) -> None:
    for start in range(0, len(records), block):
        signals = np.asarray(records.signals[start : start + block])
        bad = ~np.isfinite(signals).all(axis=2)
        if not bad.any():
            bad = np.ptp(signals, axis=2) == 0
        if bad.any():
            row, lead = np.argwhere(bad)[0]
            what = (
                "is flat"
                if np.isfinite(signals[row, lead]).all()
                else "has NaN or Inf samples"
            )
            record = records.table["record"].iloc[start + row]
            raise StudyError(
                f"{records.name}: record {record!r}, lead {records.leads[lead]!r} {what}; "
                "leave the record out or repair it"
            )


def _check_amplitude(records: EcgRecords, most: int = 500) -> None:
    """ECGs in µV or in units of a converter would make an ε in mV mean something else."""
    few = (
        np.linspace(0, len(records) - 1, min(most, len(records))).astype(int)
        if len(records)
        else []
    )
    typical = (
        float(np.median(np.ptp(records.signals[few], axis=2))) if len(few) else 1.0
    )
    low, high = AMPLITUDES_MV
    if not low <= typical <= high:
        raise StudyError(
            f"{records.name}: peak to peak, a lead spans {typical:g} mV (median); ECGs span {low:g} to"
            f" {high:g} mV: convert the signals to mV"
        )


def _check_people(records: EcgRecords) -> None:
    table = records.table
    for column, good, right in (
        ("sex", lambda values: values.isin(SEXES), "female or male"),
        (
            "age",
            lambda values: pd.to_numeric(values, errors="coerce").between(0, 130),
            "0 to 130 years",
        ),
    ):
        known = table[column].dropna() if column in table else table["record"][:0]
        if not (fine := good(known)).all():
            row = fine.index[~fine][0]
            record, value = table.loc[row, "record"], plain(known.loc[row])
            raise StudyError(
                f"{records.name}: record {record!r} has {column} {value!r}; it must be {right}, or missing"
            )


def plain(value: object) -> object:
    """A number of numpy as one of Python: errors then show it without its kind."""
    return value.item() if isinstance(value, np.generic) else value


def _check_splits(records: EcgRecords) -> None:
    table, labels = records.table, records.multi_hot()
    unknown = sorted(set(table["split"]) - set(SPLITS))
    if unknown:
        raise StudyError(
            f"{records.name}: unknown split {unknown[0]!r}; known: {', '.join(SPLITS)}"
        )
    for name in ("train", "validation", "test"):
        rows = (table["split"] == name).to_numpy()
        if not rows.any():
            raise StudyError(
                f"{records.name}: the {name} split has no records; every study needs some"
            )
        absent = [
            c
            for c, count in zip(records.classes, labels[rows].sum(0), strict=True)
            if not count
        ]
        if absent and name != "validation":
            raise StudyError(
                f"{records.name}: class {absent[0]!r} has no record in the {name} split; "
                "leave the class out or add records"
            )
    # `sensitivity` records may belong to a training patient: that is why they are set apart.
    parts = table[table["split"] != "sensitivity"].groupby("patient")["split"].nunique()
    if (parts > 1).any():
        patient = parts.index[parts > 1][0]
        where = sorted(table.loc[table["patient"] == patient, "split"].unique())
        raise StudyError(
            f"{records.name}: patient {patient!r} is in {' and '.join(where)}; splits must not share patients"
        )


def save_records(records: EcgRecords, folder: str | Path) -> None:
    """Write `records` to `folder`: all files or none; the presence of ``card.json`` means that all are there.

    Records of a split are put next to each other, in their order: then a split is a part of the memory map.

    Raises
    ------
    StudyError
        When a file cannot be written; what `folder` held before stays.
    """
    folder, form = Path(folder), {"name": records.name, "fs": records.fs}
    form |= {"leads": records.leads, "classes": records.classes}
    order = np.argsort(
        pd.Categorical(records.table["split"], SPLITS).codes, kind="stable"
    )
    with whole_files() as new:
        new(folder / "card.json").write_text(
            json_text({**form, **records.card}), encoding="utf-8"
        )
        records.table.iloc[order].reset_index(drop=True).to_parquet(
            new(folder / "table.parquet")
        )
        for name, values in (("labels", records.labels), ("signals", records.signals)):
            _write_rows(new(folder / f"{name}.npy"), values, order)
        (folder / "card.json").unlink(
            missing_ok=True
        )  # it must not stand beside other arrays


def _write_rows(
    path: Path, array: np.ndarray, order: np.ndarray, block: int = 4096
) -> None:
    """The rows of `array` in `order` as a .npy file, a block at a time: it may be larger than the memory.

    Not through a memory map: on a full disk that would end the process without an error.
    """
    form = {
        "descr": np.lib.format.dtype_to_descr(array.dtype),
        "fortran_order": False,
        "shape": array.shape,
    }
    with open(path, "wb") as stream:
        np.lib.format.write_array_header_1_0(stream, form)
        for start in range(0, len(order), block):
            stream.write(array[order[start : start + block]].tobytes())


def load_records(folder: str | Path) -> EcgRecords:
    """Read what `save_records` wrote; the signals stay on disk as a memory map.

    Raises
    ------
    StudyError
        When `folder` does not hold prepared records.
    """
    folder = Path(folder)
    try:
        card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
        return EcgRecords(
            name=card.pop("name"),
            signals=np.load(folder / "signals.npy", mmap_mode="r", allow_pickle=False),
            fs=card.pop("fs"),
            leads=tuple(card.pop("leads")),
            labels=np.load(folder / "labels.npy", allow_pickle=False),
            classes=tuple(card.pop("classes")),
            table=pd.read_parquet(folder / "table.parquet"),
            card=card,
        )
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise StudyError(
            f"{folder} holds no prepared records ({error}); run 01_prepare_data first"
        ) from error
