"""Stored scores of a study, read back: what every table is computed from."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from ecgstudy import metrics
from ecgstudy.analysis import statistics as st
from ecgstudy.errors import StudyError
from ecgstudy.files import check_sum
from ecgstudy.study import Paths, Run

NEEDED = ("record", "patient", "split", "attack", "view", "epsilon_mv")
KNOWN = ["record", "patient", "age", "sex"]


class Place(NamedTuple):
    """Where scores of several arms are compared; `severity` is that of a corruption."""

    dataset: str
    protocol: str
    attack: str
    epsilon_mv: float
    severity: float | None


@dataclass(frozen=True, eq=False)
class Sample:
    """Scored records: `table` (record, patient, age, sex), `y` (records, classes)."""

    table: pd.DataFrame
    y: np.ndarray
    classes: tuple[str, ...]

    @cached_property
    def _coded(self) -> tuple[np.ndarray, np.ndarray]:
        codes, names = pd.factorize(self.table["patient"], sort=True)
        return codes, np.asarray(names)

    @property
    def patients(self) -> np.ndarray:
        """Each record's patient as a code 0…patients−1."""
        return self._coded[0]

    @property
    def names(self) -> np.ndarray:
        """Ids of the patients, by code."""
        return self._coded[1]

    @cached_property
    def labels(self) -> np.ndarray:
        """Classes with both values, bool (classes,): what the macro-average is over."""
        return metrics.defined_labels(self.y)

    @cached_property
    def df(self) -> float:
        """Degrees of freedom of the variance between patients."""
        return st.patient_df(self.y, self.patients)

    @cached_property
    def shares(self) -> np.ndarray:
        """Largest share of each class's positives in one patient, (classes,)."""
        return st.largest_share(self.y, self.patients)

    def equals(self, other: "Sample") -> bool:
        """Whether `other` holds the same records and labels, in the same order."""
        mine, others = (s.table["record"].to_numpy() for s in (self, other))
        return np.array_equal(mine, others) and np.array_equal(self.y, other.y)

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

    @property
    def run(self) -> tuple[str, str, int, str]:
        """Key of the run's evaluation."""
        return self.dataset, self.arm, self.seed, self.protocol

    @property
    def place(self) -> Place:
        """What sets of other arms must share to be compared with this one."""
        return Place(
            self.dataset, self.protocol, self.attack, self.epsilon_mv, self.severity
        )

    @cached_property
    def auroc(self) -> np.ndarray:
        """AUROC of each class, (classes,)."""
        return metrics.auroc(self.sample.y, self.scores)

    @cached_property
    def auprc(self) -> np.ndarray:
        """Average precision of each class, (classes,)."""
        return metrics.average_precision(self.sample.y, self.scores)

    @cached_property
    def macro(self) -> float:
        """Macro AUROC over the sample's labels."""
        return float(metrics.macro(self.auroc))

    @cached_property
    def left_out(self) -> np.ndarray:
        """Macro AUROC without each patient, (patients,)."""
        sample = self.sample
        each = st.leave_one_out(sample.y, self.scores, sample.patients)
        return st.macro_without_each(self.auroc, each)

    def of_records(self, mask: np.ndarray) -> "ScoreSet":
        """The part of it on these records."""
        sample = replace(
            self.sample, table=self.sample.table[mask], y=self.sample.y[mask]
        )
        return replace(self, sample=sample, scores=self.scores[mask])

    def of_labels(self, mask: np.ndarray) -> "ScoreSet":
        """The part of it on these classes."""
        classes = tuple(np.array(self.sample.classes)[mask])
        sample = replace(self.sample, y=self.sample.y[:, mask], classes=classes)
        return replace(self, sample=sample, scores=self.scores[:, mask])

    def joined(self, other: "ScoreSet") -> "ScoreSet":
        """Its records and those of `other`."""
        table = pd.concat([self.sample.table, other.sample.table])
        y = np.concatenate([self.sample.y, other.sample.y])
        sample = replace(self.sample, table=table, y=y)
        return replace(
            self, sample=sample, scores=np.concatenate([self.scores, other.scores])
        )


@dataclass(frozen=True)
class Scores:
    """Score sets, and each ``evaluation.json`` by data set, arm, seed, protocol."""

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

    Parameters
    ----------
    paths : Paths
        Where the study's outputs lie.
    runs : iterable of Run
        Runs of the study.
    protocols : iterable of str, optional
        Only these; by default all that each run is evaluated under.

    Raises
    ------
    StudyError
        Naming the file that is damaged or lacks a column.
    """
    scores, samples = Scores([], {}), {}
    protocols = protocols and tuple(protocols)
    for run in runs:
        for protocol in protocols or run.protocols:
            folder = paths.protocol(run.dataset, run.arm, run.seed, protocol)
            if not (folder / "scores.parquet").exists():
                continue
            key = (run.dataset, run.arm, run.seed, protocol)
            scores.evaluations[key] = evaluation = _read_json(
                folder / "evaluation.json"
            )
            frame = _read_frame(folder / "scores.parquet")
            known = samples.setdefault((run.dataset, protocol), [])
            scores.sets.extend(_split(frame, key, evaluation.get("masking_ok"), known))
    return scores


def _split(
    frame: pd.DataFrame, run: tuple, masking_ok: bool | None, known: list[Sample]
) -> Iterator[ScoreSet]:
    """The score sets of one file.

    Samples met before (`known`) are shared, so that paired sets are recognised.
    """
    classes = _classes(frame)
    kinds = ["split", "attack", "view", "epsilon_mv", "severity"]
    for kind, rows in frame.groupby(kinds, dropna=False, sort=True):
        split, attack, view, epsilon, severity = kind
        y = rows[[f"y_{name}" for name in classes]].to_numpy()
        sample = Sample(rows[KNOWN], y, classes)
        sample = next((s for s in known if s.equals(sample)), sample)
        if sample not in known:
            known.append(sample)
        yield ScoreSet(
            *run,
            split,
            attack,
            view,
            round(float(epsilon), 9),
            None if pd.isna(severity) else severity,
            masking_ok,
            sample,
            rows[[f"score_{name}" for name in classes]].to_numpy(),
        )


def _classes(frame: pd.DataFrame) -> tuple[str, ...]:
    return tuple(c.removeprefix("score_") for c in frame if c.startswith("score_"))


def _read_frame(path: Path) -> pd.DataFrame:
    """One ``scores.parquet``, checked; age and sex are missing if not stored."""
    try:
        frame = pd.read_parquet(check_sum(path))
    except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors
        raise StudyError(
            f"{path} is not a readable parquet file ({error}); evaluate this run again"
        ) from error
    classes = _classes(frame) or ("<class>",)
    scores = [f"score_{name}" for name in classes]
    needed = [*NEEDED, *scores, *(f"y_{name}" for name in classes)]
    if lacking := [column for column in needed if column not in frame]:
        raise StudyError(
            f"{path} lacks the column {lacking[0]!r}; evaluate this run again"
        )
    bad = ~np.isfinite(frame[scores].to_numpy()).all(axis=1)
    if bad.any():
        row = frame.iloc[int(bad.argmax())]
        raise StudyError(
            f"{path}: record {row['record']!r} has a score under {row['attack']!r} that"
            " is not finite; the model or attack diverged: train or evaluate it again"
        )
    return frame.reindex(
        columns=frame.columns.union(["age", "sex", "severity"], sort=False)
    )


def _read_json(path: Path) -> dict:
    if not path.exists():
        return {}
    try:
        return json.loads(check_sum(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise StudyError(
            f"{path} is not valid JSON ({error}); evaluate this run again"
        ) from error
