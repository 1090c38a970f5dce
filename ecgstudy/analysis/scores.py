"""Stored scores of a study, read back: what every table is computed from."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from ecgstudy.analysis import statistics as st
from ecgstudy.errors import StudyError
from ecgstudy.params import target
from ecgstudy.study import Paths, Run

Mask = np.ndarray | slice
NEEDED = ("record", "patient", "split", "attack", "view", "epsilon_mv")


@dataclass(frozen=True, eq=False)
class Sample:
    """Scored records: ids, patients (names and codes), `y` (records, classes), age and sex where known."""

    records: np.ndarray
    names: np.ndarray
    patients: np.ndarray
    y: np.ndarray
    classes: tuple[str, ...]
    age: np.ndarray
    sex: np.ndarray

    @cached_property
    def labels(self) -> np.ndarray:
        """The label set of the macro-average, bool (classes,)."""
        return st.defined_labels(self.y)

    @cached_property
    def df(self) -> float:
        """Degrees of freedom of the patient variance."""
        return st.patient_df(self.y, self.patients)

    @cached_property
    def shares(self) -> np.ndarray:
        """Largest share of each class's positives in one patient, (classes,)."""
        return st.largest_share(self.y, self.patients)

    def holds(self, records: np.ndarray, y: np.ndarray) -> bool:
        """Whether these are exactly the records `records`, in this order, with the labels `y`."""
        return np.array_equal(self.records, records) and np.array_equal(self.y, y)

    def subgroups(
        self, bands: dict[str, tuple[float, float]]
    ) -> Iterator[tuple[str, str, np.ndarray]]:
        """(kind, name, records of it) of every age band (years, upper bound excluded) and sex that occurs."""
        kinds = [
            ("age", name, (self.age >= low) & (self.age < high))
            for name, (low, high) in bands.items()
        ]
        kinds += [("sex", sex, self.sex == sex) for sex in ("female", "male")]
        yield from (kind for kind in kinds if kind[2].any())

    def named(self, mask: np.ndarray) -> str:
        """Names of the classes where `mask` holds."""
        return ", ".join(np.array(self.classes)[mask])


@dataclass(frozen=True, eq=False)
class ScoreSet:
    """Scores (records, classes) of one run under one attack at one ε (mV)."""

    dataset: str
    arm: str
    seed: int
    protocol: str
    split: str
    attack: str
    view: str
    epsilon_mv: float
    severity: float | None
    masking_ok: bool | None
    sample: Sample
    scores: np.ndarray

    @cached_property
    def auroc(self) -> np.ndarray:
        """AUROC of each class, (classes,)."""
        return st.auroc(self.sample.y, self.scores)

    @cached_property
    def auprc(self) -> np.ndarray:
        """Average precision of each class, (classes,)."""
        return st.average_precision(self.sample.y, self.scores)

    @cached_property
    def macro(self) -> float:
        """Macro AUROC over the sample's label set."""
        return float(st.macro(self.auroc))

    @cached_property
    def left_out(self) -> np.ndarray:
        """Macro AUROC without each patient, (patients,)."""
        each = st.leave_one_out(self.sample.y, self.scores, self.sample.patients)
        return st.macro_without_each(self.auroc, each)

    @property
    def run(self) -> tuple[str, str, int, str]:
        """Key of the run's evaluation."""
        return self.dataset, self.arm, self.seed, self.protocol

    def macro_of(self, mask: np.ndarray) -> float:
        """Macro AUROC of the records in `mask`, over the labels that they define."""
        return float(st.macro(st.auroc(self.sample.y[mask], self.scores[mask])))

    def part(
        self, records: Mask = slice(None), labels: Mask = slice(None)
    ) -> "ScoreSet":
        """Of these records and labels only."""
        a = self.sample
        codes, patients = np.unique(a.patients[records], return_inverse=True)
        columns = {k: getattr(a, k)[records] for k in ("records", "age", "sex")}
        classes, y = tuple(np.array(a.classes)[labels]), a.y[records][:, labels]
        sample = replace(
            a, names=a.names[codes], patients=patients, y=y, classes=classes, **columns
        )
        return replace(self, sample=sample, scores=self.scores[records][:, labels])

    def joined(self, other: "ScoreSet") -> "ScoreSet":
        """These records and those of `other` together."""
        a, b = self.sample, other.sample
        names, patients = np.unique(
            np.r_[a.names[a.patients], b.names[b.patients]], return_inverse=True
        )
        columns = {
            k: np.concatenate([getattr(a, k), getattr(b, k)])
            for k in ("records", "y", "age", "sex")
        }
        sample = replace(a, names=names, patients=patients, **columns)
        return replace(
            self, sample=sample, scores=np.concatenate([self.scores, other.scores])
        )


@dataclass(frozen=True)
class Scores:
    """All score sets of a study, and each ``evaluation.json`` by (data set, arm, seed, protocol)."""

    sets: list[ScoreSet]
    evaluations: dict[tuple[str, str, int, str], dict]

    def select(
        self, split: str = "test", view: str = "shared", **wanted: object
    ) -> list[ScoreSet]:
        """The sets of one split and view whose attributes equal `wanted`."""
        wanted |= {"split": split, "view": view}
        return [
            s for s in self.sets if all(getattr(s, k) == v for k, v in wanted.items())
        ]


def read_scores(
    paths: Paths, runs: Iterable[Run], protocols: Iterable[str] | None = None
) -> Scores:
    """Read what the evaluations of `runs` stored; runs without scores are left out.

    Of each run all its protocols, or the given ones.

    Raises
    ------
    StudyError
        Naming the file that is damaged or lacks a column.
    """
    scores, samples, protocols = Scores([], {}), {}, protocols and tuple(protocols)
    for run in runs:
        for protocol in protocols or run.protocols:
            folder = paths.protocol(run.dataset, run.arm, run.seed, protocol)
            if (folder / "scores.parquet").exists():
                key = (run.dataset, run.arm, run.seed, protocol)
                scores.evaluations[key] = _evaluation(folder / "evaluation.json")
                table = paths.data(target(run.dataset, protocol)) / "table.parquet"
                frame = _frame(folder / "scores.parquet", table)
                known = samples.setdefault((run.dataset, protocol), [])
                masking_ok = scores.evaluations[key].get("masking_ok")
                scores.sets.extend(_sets(frame, key, masking_ok, known))
    return scores


def _sets(
    frame: pd.DataFrame, run: tuple, masking_ok: bool | None, known: list[Sample]
) -> Iterator[ScoreSet]:
    """The score sets of one file; samples met before are shared, so that paired sets are recognised."""
    names = [f"score_{name}" for name in _classes(frame)]
    kinds = frame.groupby(
        ["split", "attack", "view", "epsilon_mv", "severity"], dropna=False, sort=True
    )
    for (split, attack, view, epsilon, severity), rows in kinds:
        y = rows[[f"y_{name}" for name in _classes(frame)]].to_numpy()
        sample = next((s for s in known if s.holds(rows["record"].to_numpy(), y)), None)
        if sample is None:
            sample = _sample(rows, y)
            known.append(sample)
        how = (
            split,
            attack,
            view,
            round(float(epsilon), 9),
            None if pd.isna(severity) else severity,
        )
        yield ScoreSet(*run, *how, masking_ok, sample, rows[names].to_numpy())


def _sample(rows: pd.DataFrame, y: np.ndarray) -> Sample:
    codes, names = pd.factorize(rows["patient"], sort=True)
    age, sex = rows["age"].to_numpy(float), rows["sex"].to_numpy(object)
    return Sample(
        rows["record"].to_numpy(), np.asarray(names), codes, y, _classes(rows), age, sex
    )


def _classes(frame: pd.DataFrame) -> tuple[str, ...]:
    return tuple(c.removeprefix("score_") for c in frame if c.startswith("score_"))


def _frame(path: Path, table: Path) -> pd.DataFrame:
    """One ``scores.parquet``, checked; `age` and `sex` come from the prepared `table` if need be."""
    try:
        frame = pd.read_parquet(path)
    except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors
        raise StudyError(
            f"{path} is not a readable parquet file ({error}); evaluate this run again"
        ) from error
    lacking = [
        c for c in (*NEEDED, *(f"y_{c}" for c in _classes(frame))) if c not in frame
    ]
    if lacking or not _classes(frame):
        raise StudyError(
            f"{path} lacks the column {(lacking or ['score_<class>'])[0]!r}; evaluate this run again"
        )
    names = [f"score_{name}" for name in _classes(frame)]
    bad = ~np.isfinite(frame[names].to_numpy()).all(axis=1)
    if bad.any():
        row = frame.iloc[int(bad.argmax())]
        raise StudyError(
            f"{path}: record {row['record']!r} has a score under {row['attack']!r} that is not finite;"
            " the model or the attack diverged, so train or evaluate this run again"
        )
    missing = [c for c in ("age", "sex") if c not in frame]
    if missing and table.exists():
        known = pd.read_parquet(table).set_index("record")
        frame = frame.assign(
            **{c: frame["record"].map(known[c]) for c in missing if c in known}
        )
    return frame.assign(
        **{c: np.nan for c in ("age", "sex", "severity") if c not in frame}
    )


def _evaluation(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except ValueError as error:
        raise StudyError(
            f"{path} is not valid JSON ({error}); evaluate this run again"
        ) from error
