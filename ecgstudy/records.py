"""ECG records in memory and on disk: the one form that every other module reads."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd

from ecgstudy.errors import StudyError
from ecgstudy.files import check_sum, json_text, write_result

SEXES = ("female", "male")
AMPLITUDES_MV = (0.05, 20.0)
"""What ECGs span from peak to peak, with room on both sides."""
SPLITS = ("train", "validation", "test", "sensitivity")
"""`sensitivity` records are scored, but are not part of the primary analysis."""
BLOCK = 4096
"""Records that are checked or written at a time: all may be more than the memory."""


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
        One row a record, index 0…n-1: `record` (unique id, str), `patient` (str),
        `split` (one of `SPLITS`), `attacked` (bool: in the sample that is attacked),
        and metadata such as `age` (years) and `sex` (``"female"``, ``"male"``);
        missing values stay missing.
    card
        Where the data come from: source, version, licence, checksums, counts,
        adaptations. JSON-serialisable. ``card["synthetic"]`` is True for simulated
        ECGs. ``card["adc_mv"]`` is the amplitude of one ADC unit in mV, or None.
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

    @property
    def centre(self) -> int | None:
        """Sample of the R peak in windows of beats; None: these are none."""
        window = self.card.get("window_samples")
        return window[0] if window else None

    def multi_hot(self) -> np.ndarray:
        """Labels as float32 (records, classes), also for single-label data."""
        if self.multilabel:
            return self.labels
        return np.eye(len(self.classes), dtype=np.float32)[self.labels]

    def select(self, mask: np.ndarray) -> "EcgRecords":
        """The records where the boolean (records,) `mask` holds, in their order.

        A run of consecutive records is a view, so that a memory map stays one.
        """
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


def count_by_split(
    splits: Sequence[str], labels: np.ndarray, classes: Sequence[str]
) -> dict[str, dict[str, int]]:
    """Number of records by split and class.

    Parameters
    ----------
    splits
        Split of each record, (records,).
    labels
        Multi-hot (records, classes).
    classes
        Class names.
    """
    table = pd.DataFrame(labels, columns=list(classes))
    return table.groupby(np.asarray(splits)).sum().astype(int).to_dict("index")


def count_classes(records: EcgRecords) -> pd.DataFrame:
    """Records of each class and split, as rows `class`, `split`, `records`."""
    hot, splits = records.multi_hot(), records.table["split"]
    counts = count_by_split(splits, hot, records.classes)
    rows = [
        (name, split, counts[split][name])
        for split in SPLITS
        if split in counts
        for name in records.classes
    ]
    return pd.DataFrame(rows, columns=["class", "split", "records"])


def check_records(records: EcgRecords) -> EcgRecords:
    """Return `records` if they are fit for the study.

    Raises
    ------
    StudyError
        Naming the record, class or split that is not as `EcgRecords` says.
    """
    for find_problems in (
        _shape_problems,
        _signal_problems,
        _metadata_problems,
        _split_problems,
    ):
        for problem in find_problems(records):
            raise StudyError(f"{records.name}: {problem}")
    return records


def _shape_problems(records: EcgRecords) -> Iterator[str]:
    signals, leads = records.signals, records.leads
    if signals.ndim != 3 or signals.dtype != np.float32:
        yield (
            f"signals are {signals.dtype} of shape {signals.shape};"
            " they must be float32 (records, leads, samples) in mV"
        )
    if signals.shape[1] != len(leads):
        yield f"{signals.shape[1]} leads in the signals, {len(leads)} lead names"
    if len(set(leads)) < len(leads):
        yield f"leads are {', '.join(leads)}; each must have its own name"
    if not records.fs > 0:
        yield f"sampling rate {records.fs!r}; it must be above 0 Hz"
    sizes = len(signals), len(records.labels), len(records.table)
    if len(set(sizes)) > 1:
        yield "{} signals, {} labels and {} table rows; they must be equal".format(
            *sizes
        )
    names = records.table["record"]
    for name in names[names.duplicated()]:
        yield f"record {name!r} occurs twice; keep one"


def _signal_problems(records: EcgRecords) -> Iterator[str]:
    # Peak to peak, (records, leads): NaN or infinite if a sample is, 0 of a flat lead.
    with np.errstate(invalid="ignore"):
        spans = [
            np.ptp(records.signals[start : start + BLOCK], axis=2)
            for start in range(0, len(records), BLOCK)
        ]
    span = np.concatenate([*spans, np.empty((0, len(records.leads)))])
    unfit = ~(np.isfinite(span) & (span > 0))
    names = records.table["record"][unfit.any(axis=1)]
    for row, lead in np.argwhere(unfit):
        fault = "has NaN or Inf samples" if span[row, lead] else "is flat"
        yield (
            f"record {names.iloc[0]!r}, lead {records.leads[lead]!r} {fault}; repair"
            f" or leave out {len(names)} records: {' '.join(names[:20])}"
        )
    # ECGs in µV or ADC units would make an ε in mV mean something else.
    low, high = AMPLITUDES_MV
    typical = np.median(span) if span.size else low
    if not low <= typical <= high:
        yield (
            f"peak to peak, a lead spans {typical:g} mV (median); ECGs span {low:g} to"
            f" {high:g} mV: convert the signals to mV"
        )


def _metadata_problems(records: EcgRecords) -> Iterator[str]:
    table = records.table
    for column, right in (("sex", "female or male"), ("age", "0 to 130 years")):
        known = table[column].dropna() if column in table else table["record"][:0]
        if column == "sex":
            fits = known.isin(SEXES)
        else:
            fits = pd.to_numeric(known, errors="coerce").between(0, 130)
        for row, value in known[~fits].items():
            yield (
                f"record {table['record'][row]!r} has {column} {str(value)!r};"
                f" it must be {right}, or missing"
            )


def _split_problems(records: EcgRecords) -> Iterator[str]:
    splits, labels = records.table["split"], records.multi_hot()
    for row, name in splits[~splits.isin(SPLITS)].items():
        yield (
            f"record {records.table['record'][row]!r} has split {name!r};"
            f" it must be one of {', '.join(SPLITS)}"
        )
    for name in ("train", "validation", "test"):
        rows = (splits == name).to_numpy()
        if not rows.any():
            yield f"the {name} split has no records; every study needs some"
        for absent in np.flatnonzero(~labels[rows].any(axis=0)):
            if name != "validation":
                yield (
                    f"class {records.classes[absent]!r} has no record in the {name}"
                    " split; leave the class out or add records"
                )
    # A training patient's records may be `sensitivity`: so they are no test records.
    compared = records.table[splits != "sensitivity"]
    for patient, found in compared.groupby("patient")["split"].unique().items():
        if len(found) > 1:
            yield (
                f"patient {patient!r} is in {' and '.join(sorted(found))};"
                " splits must not share patients"
            )


def save_records(records: EcgRecords, folder: str | Path) -> None:
    """Write `records` to `folder` with their SHA-256: all files or none.

    Records of a split are put next to each other, in their order: then a split is a
    part of the memory map.

    Raises
    ------
    StudyError
        When a file cannot be written; what `folder` held before stays.
    """
    splits = pd.Categorical(records.table["split"], SPLITS)
    order = np.argsort(splits.codes, kind="stable")
    form = {"name": records.name, "fs": records.fs}
    form |= {"leads": records.leads, "classes": records.classes}
    with write_result(folder) as new:
        text = json_text({**form, **records.card})
        new("card.json").write_text(text, encoding="utf-8")
        table = records.table.iloc[order].reset_index(drop=True)
        table.to_parquet(new("table.parquet"))
        _write_rows(new("labels.npy"), records.labels, order)
        _write_rows(new("signals.npy"), records.signals, order)


def _write_rows(path: Path, array: np.ndarray, order: np.ndarray) -> None:
    """The rows of `array` in `order` as a .npy file, a block at a time.

    Not through a memory map: on a full disk that would end the process without an
    error.
    """
    form = np.lib.format.header_data_from_array_1_0(array)
    with open(path, "wb") as stream:
        np.lib.format.write_array_header_1_0(stream, form | {"fortran_order": False})
        for start in range(0, len(order), BLOCK):
            stream.write(array[order[start : start + BLOCK]].tobytes())


def load_records(folder: str | Path) -> EcgRecords:
    """Read what `save_records` wrote; the signals stay on disk as a memory map.

    Raises
    ------
    StudyError
        When `folder` does not hold prepared records, or a file is damaged.
    """
    names = ("card.json", "signals.npy", "labels.npy", "table.parquet")
    card, signals, labels, table = (check_sum(Path(folder) / name) for name in names)
    try:
        known = json.loads(card.read_text(encoding="utf-8"))
        return EcgRecords(
            name=known.pop("name"),
            signals=np.load(signals, mmap_mode="r", allow_pickle=False),
            fs=known.pop("fs"),
            leads=tuple(known.pop("leads")),
            labels=np.load(labels, allow_pickle=False),
            classes=tuple(known.pop("classes")),
            table=pd.read_parquet(table),
            card=known,
        )
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise StudyError(
            f"{folder} holds no prepared records ({error}); run 01_prepare_data first"
        ) from error
