"""MIT-BIH Arrhythmia Database: beats of four AAMI classes, split between patients.

Moody & Mark 2001 (doi 10.13026/C2F305). Classes of ANSI/AAMI EC57, DS1/DS2 of
de Chazal et al. 2004, table I. The unclassifiable beats (Q) are dropped, and so are
the four paced records.
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
from numpy.lib.stride_tricks import sliding_window_view
from pydantic import Field, NonNegativeInt

from ecgstudy.datasets.sources import read_card, verify_checksums
from ecgstudy.datasets.wfdb_io import read_annotations, read_leads
from ecgstudy.errors import StudyError
from ecgstudy.records import EcgRecords, count_by_split
from ecgstudy.registry import DATASETS

Seconds = Annotated[float, Field(ge=0.05, le=10)]

FS = 360.0
LEAD = "MLII"
CLASSES = ("N", "S", "V", "F")
AAMI = dict(zip("NLRejAaJSVEF", "NNNNNSSSSVVF", strict=True))
"""Beat symbol of the annotators → class."""
UNCLASSIFIABLE = "/fQ"
NOT_BEATS = "[!]x()ptu`'^|~+sT*D=\"@"
"""Rhythm, quality and waveform annotations of WFDB; they are passed over."""
# Neither has the paced records 102, 104, 107 and 217.
DS1 = (
    "101 106 108 109 112 114 115 116 118 119 122 124 201 203 205 207 208 209 215 220"
    " 223 230"
).split()
DS2 = (
    "100 103 105 111 113 117 121 123 200 202 210 212 213 214 219 221 222 228 231 232"
    " 233 234"
).split()
VALIDATION = ("124", "203", "220", "223")
SENSITIVITY = ("202",)
"""Same patient as 201, a training record: not in the test set, but scored."""


@DATASETS.register("mitdb")
def load(
    root: Path,
    *,
    before_s: Seconds = 0.9,
    after_s: Seconds = 0.9,
    attacked_per_class_and_record: NonNegativeInt = 50,
) -> EcgRecords:
    """Cut one window of lead MLII around each beat.

    Parameters
    ----------
    root
        Folder with the .hea, .dat and .atr files.
    before_s, after_s
        Window around the annotated sample in s; the preceding RR interval should fit.
    attacked_per_class_and_record
        At most so many validation, test and sensitivity beats are marked `attacked`
        (a fixed draw).

    Raises
    ------
    StudyError
        Naming the record or file that is missing, damaged or not as it should be.
    """
    records = sorted(DS1 + DS2)
    files = [f"{name}.{end}" for name in records for end in ("hea", "dat", "atr")]
    checksums = verify_checksums(root, files)
    window = [round(before_s * FS), round(after_s * FS)]
    signals, tables = [], []
    for name in records:
        (lead,), comments = read_leads(root / name, [LEAD], FS)
        beats = _read_beats(root / f"{name}.atr").assign(**_read_person(comments))
        _select(beats, len(lead), window, attacked_per_class_and_record)
        starts = beats.loc[beats["kept"], "sample"].to_numpy() - window[0]
        signals.append(sliding_window_view(lead, sum(window))[starts])
        tables.append(beats)
    annotated = pd.concat(tables, ignore_index=True)
    table = annotated[annotated["kept"]].reset_index(drop=True)
    return EcgRecords(
        name="mitdb",
        signals=np.concatenate(signals)[:, None],
        fs=FS,
        leads=(LEAD,),
        labels=table["label"].to_numpy(np.int64),
        classes=CLASSES,
        table=table.drop(columns=["label", "rank", "inside", "kept"]),
        card=_make_card(annotated, window) | {"checksums": checksums},
    )


def _read_person(comments: list[str]) -> dict[str, object]:
    """Age in years and sex from a first comment such as ``69 M 1085 1629 x1``.

    An unknown age is −1 there.
    """
    words = comments[0].split() if comments else []
    age, sex = [*words, "", ""][:2]
    return {
        "age": float(age) if age.isdecimal() else np.nan,
        "sex": {"M": "male", "F": "female"}.get(sex),
    }


def _read_beats(path: Path) -> pd.DataFrame:
    """One row a beat of a recording; label −1 is unclassifiable (Q)."""
    symbols, samples = read_annotations(path)
    beat = ~np.isin(symbols, list(NOT_BEATS))
    symbols, samples = symbols[beat], samples[beat]
    for symbol in symbols:
        if symbol not in AAMI and symbol not in UNCLASSIFIABLE:
            known = " ".join([*AAMI, *UNCLASSIFIABLE])
            raise StudyError(
                f"{path}: unknown beat symbol {str(symbol)!r}; known beats: {known}"
            )
    record, rr_s = path.stem, np.diff(samples) / FS
    labels = [CLASSES.index(AAMI[s]) if s in AAMI else -1 for s in symbols]
    return pd.DataFrame(
        {
            "record": [f"{record}/{sample}" for sample in samples],
            "patient": "201" if record == "202" else record,
            "split": _choose_split(record),
            "recording": record,
            "symbol": symbols,
            "sample": samples,
            # Beats of class Q are dropped later, but count in RR intervals.
            "rr_before_s": np.r_[np.nan, rr_s],
            "rr_after_s": np.r_[rr_s, np.nan],
            "label": labels,
            "rank": _rank(int(record), np.array(labels)),
        }
    )


def _choose_split(record: str) -> str:
    if record in SENSITIVITY:
        return "sensitivity"
    if record in VALIDATION:
        return "validation"
    return "train" if record in DS1 else "test"


def _rank(record: int, labels: np.ndarray) -> np.ndarray:
    """Order in which a recording's beats of each class are drawn.

    It is the same for every window and limit.
    """
    ranks = np.zeros(len(labels), dtype=np.int64)
    for label in range(len(CLASSES)):
        rng = np.random.default_rng([record, label])
        ranks[labels == label] = rng.permutation((labels == label).sum())
    return ranks


def _select(
    beats: pd.DataFrame, samples: int, window: list[int], attacked: int
) -> None:
    """Add `inside`, `kept` and `attacked`.

    `inside`: whether the window is within the recording of so many samples.
    `attacked`: the first of each class by `rank`.
    """
    before, after = window
    first, stop = beats["sample"] - before, beats["sample"] + after
    beats["inside"] = (first >= 0) & (stop <= samples)
    beats["kept"] = beats["inside"] & (beats["label"] >= 0)
    place = beats["rank"].where(beats["kept"]).groupby(beats["label"]).rank()
    test = beats["split"] != "train"
    beats["attacked"] = beats["kept"] & test & (place <= attacked)


def _make_card(annotated: pd.DataFrame, window: list[int]) -> dict:
    classified = annotated[annotated["label"] >= 0]
    unclassified = annotated[annotated["label"] < 0]

    def count(rows: pd.Series | slice) -> dict:
        beats = classified[rows]
        hot = np.eye(len(CLASSES), dtype=int)[beats["label"]]
        return count_by_split(beats["split"], hot, CLASSES)

    return {
        **read_card("mitdb"),
        "window_samples": window,
        "annotations": count(slice(None)),
        "lost_at_record_ends": count(~classified["inside"]),
        "counts": count(classified["kept"]),
        "attacked": count(classified["attacked"]),
        "dropped_q": unclassified["split"].value_counts().to_dict(),
    }
