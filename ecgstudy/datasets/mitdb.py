"""MIT-BIH Arrhythmia Database: beats of four AAMI classes, split between patients.

Moody & Mark 2001 (doi 10.13026/C2F305). Classes of ANSI/AAMI EC57, DS1/DS2 of de Chazal et al. 2004,
table I. The unclassifiable beats (Q) are dropped, and so are the four paced records.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
from numpy.lib.stride_tricks import sliding_window_view
from pydantic import Field, NonNegativeInt, PositiveInt

from ecgstudy.datasets.wfdb_io import (
    DAMAGE,
    count_classes,
    on_cores,
    read_leads,
    verify_checksums,
)
from ecgstudy.errors import StudyError
from ecgstudy.records import EcgRecords

Seconds = Annotated[float, Field(ge=0.05, le=10)]

FS = 360.0
LEAD = "MLII"
CLASSES = ("N", "S", "V", "F")
AAMI = dict(zip("NLRejAaJSVEF", "NNNNNSSSSVVF", strict=True))
"""Beat symbol of the annotators → class."""
UNCLASSIFIABLE = frozenset("/fQ")
NOT_BEATS = frozenset("[!]x()ptu`'^|~+sT*D=\"@")
"""Rhythm, quality and waveform annotations of WFDB; they are passed over."""
DS1 = tuple(
    "101 106 108 109 112 114 115 116 118 119 122 124 201 203 205 207 208 209 215 220 223 230".split()
)
DS2 = tuple(
    "100 103 105 111 113 117 121 123 200 202 210 212 213 214 219 221 222 228 231 232 233 234".split()
)
PACED = ("102", "104", "107", "217")
VALIDATION = ("124", "203", "220", "223")
SENSITIVITY = ("202",)
"""Same patient as 201, a training record; kept out of the test set, scored beside it."""


def load(
    root: Path,
    *,
    before_s: Seconds = 0.9,
    after_s: Seconds = 0.9,
    max_train_per_class_and_record: PositiveInt | None = None,
    attacked_per_class_and_record: NonNegativeInt = 50,
) -> EcgRecords:
    """Cut one window of lead MLII around each beat.

    Parameters
    ----------
    root
        Folder with the .hea, .dat and .atr files.
    before_s, after_s
        Window around the annotated sample in s; the preceding RR interval should fit in.
    max_train_per_class_and_record
        Keep at most so many training beats (a fixed draw); None keeps all.
    attacked_per_class_and_record
        At most so many validation, test and sensitivity beats are marked `attacked` (a fixed draw).

    Raises
    ------
    StudyError
        Naming the record or file that is missing, damaged or not as it should be.
    """
    records = sorted(DS1 + DS2)
    checksums = verify_checksums(
        root, (f"{r}.{suffix}" for r in records for suffix in ("hea", "dat", "atr"))
    )
    window = round(before_s * FS), round(after_s * FS)
    limits = max_train_per_class_and_record, attacked_per_class_and_record
    read = on_cores(
        partial(_read_beats, window=window, limits=limits),
        [root / record for record in records],
    )
    signals, annotated = zip(*read, strict=True)
    annotated = pd.concat(annotated, ignore_index=True)
    table = annotated[annotated["kept"]].reset_index(drop=True)
    return EcgRecords(
        name="mitdb",
        signals=np.concatenate(signals)[:, None],
        fs=FS,
        leads=(LEAD,),
        labels=table["label"].to_numpy(np.int64),
        classes=CLASSES,
        table=table.drop(columns=["label", "rank", "inside", "kept"]),
        card=_card(annotated, window) | {"checksums": checksums},
    )


def _read_beats(
    stem: Path, window: tuple[int, int], limits: tuple[int | None, int]
) -> tuple[np.ndarray, pd.DataFrame]:
    """Windows of the beats that are kept, and the table of all annotated beats, of one recording."""
    (lead,), comments = read_leads(stem, [LEAD], FS)
    beats = _beats(stem.name, *_read_annotations(stem.with_suffix(".atr"))).assign(
        **_person(comments)
    )
    beats = _mark(beats, len(lead), window, *limits)
    return _cut(lead, beats.loc[beats["kept"], "sample"].to_numpy(), window), beats


def _split(record: str) -> str:
    if record in SENSITIVITY:
        return "sensitivity"
    if record in VALIDATION:
        return "validation"
    return "train" if record in DS1 else "test"


def _person(comments: Sequence[str]) -> dict[str, object]:
    """Age in years and sex from the first header comment, such as ``69 M 1085 1629 x1``; −1 is unknown."""
    age, sex, *_ = (*(comments[0].split() if comments else ()), "", "")
    return {
        "age": float(age) if age.isdecimal() else np.nan,
        "sex": {"M": "male", "F": "female"}.get(sex),
    }


def _read_annotations(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Symbols and samples of all beats in an .atr file."""
    import wfdb  # slow to import, and training does not need it

    try:
        if path.read_bytes()[-2:] != b"\0\0":
            raise ValueError(
                "no end mark"
            )  # wfdb reads a file cut at an even byte without complaint
        annotation = wfdb.rdann(str(path.with_suffix("")), path.suffix[1:])
        symbols = np.asarray(annotation.symbol, dtype=str)
        beat = ~np.isin(symbols, list(NOT_BEATS))
        if not beat.any():
            raise ValueError("no beats")
    except DAMAGE as error:
        raise StudyError(
            f"{path}: missing or truncated annotations ({error}); download it again"
        ) from error
    unknown = set(symbols[beat]) - set(AAMI) - UNCLASSIFIABLE
    if unknown:
        known = " ".join([*AAMI, *sorted(UNCLASSIFIABLE)])
        raise StudyError(
            f"{path}: unknown beat symbol {str(min(unknown))!r}; known beats: {known}"
        )
    return symbols[beat], annotation.sample[beat].astype(np.int64)


def _beats(record: str, symbols: np.ndarray, samples: np.ndarray) -> pd.DataFrame:
    """One row a beat; unclassifiable beats have label −1 but count in RR intervals."""
    labels = np.array([CLASSES.index(AAMI[s]) if s in AAMI else -1 for s in symbols])
    rr_s = np.diff(samples) / FS
    return pd.DataFrame(
        {
            "record": [f"{record}/{sample}" for sample in samples],
            "patient": "201" if record == "202" else record,
            "split": _split(record),
            "recording": record,
            "symbol": symbols,
            "sample": samples,
            "rr_before_s": np.r_[np.nan, rr_s],
            "rr_after_s": np.r_[rr_s, np.nan],
            "label": labels,
            "rank": _ranks(record, labels),
        }
    )


def _ranks(record: str, labels: np.ndarray) -> np.ndarray:
    """Order in which beats are drawn: per record and class, the same for every window and limit."""
    ranks = np.zeros(len(labels), dtype=np.int64)
    for label in np.unique(labels[labels >= 0]):
        rows = np.flatnonzero(labels == label)
        ranks[rows] = np.random.default_rng([int(record), int(label)]).permutation(
            len(rows)
        )
    return ranks


def _mark(
    beats: pd.DataFrame,
    length: int,
    window: tuple[int, int],
    max_train: int | None,
    attacked: int,
) -> pd.DataFrame:
    """Add `inside` (window within the recording of `length` samples), `kept` and `attacked`."""
    before, after = window
    inside = (beats["sample"] >= before) & (beats["sample"] + after <= length)
    usable = inside & (beats["label"] >= 0)
    place = beats["rank"].where(usable).groupby(beats["label"]).rank()
    training = beats["split"] == "train"
    kept = usable & ~(training & (place > (max_train or len(beats))))
    return beats.assign(
        inside=inside, kept=kept, attacked=usable & ~training & (place <= attacked)
    )


def _cut(lead: np.ndarray, samples: np.ndarray, window: tuple[int, int]) -> np.ndarray:
    """Windows float32 (beats, samples) of `lead` (samples,) around `samples`."""
    before, after = window
    if not len(samples):
        return np.empty((0, before + after), dtype=np.float32)
    return sliding_window_view(lead, before + after)[samples - before]


def _card(annotated: pd.DataFrame, window: tuple[int, int]) -> dict:
    def count(rows: pd.Series) -> dict:
        beats = annotated[rows & (annotated["label"] >= 0)]
        return count_classes(
            beats["split"], np.eye(len(CLASSES), dtype=int)[beats["label"]], CLASSES
        )

    q = annotated.loc[annotated["label"] < 0, "split"].value_counts()
    return {
        "synthetic": False,
        "source": "MIT-BIH Arrhythmia Database, https://physionet.org/content/mitdb/1.0.0/",
        "version": "1.0.0",
        "doi": "10.13026/C2F305",
        "licence": "Open Data Commons Attribution License 1.0",
        "citation": "Moody GB, Mark RG. The impact of the MIT-BIH Arrhythmia Database. 2001",
        "adc_mv": 0.005,
        "window_samples": list(window),
        "annotations": count(annotated["label"] >= 0),
        "lost_at_record_ends": count(~annotated["inside"]),
        "counts": count(annotated["kept"]),
        "attacked": count(annotated["attacked"]),
        "dropped_q": {split: int(n) for split, n in q.items()},
        "adaptations": [
            f"Paced records {', '.join(PACED)} are left out.",
            f"Validation: records {', '.join(VALIDATION)} of DS1.",
            "202 is the patient of 201 (training): split 'sensitivity' instead of test.",
            "Beats of AAMI class Q are dropped; they count in RR intervals.",
            "Lead MLII by name (the second channel of 114).",
        ],
    }
