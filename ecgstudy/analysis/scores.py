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

Mask = np.ndarray | slice
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
    classes: np.ndarray

    @cached_property
    def records(self) -> np.ndarray:
        """Ids of the records."""
        return self.table["record"].to_numpy()

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
        same = np.array_equal(self.records, other.records)
        return same and np.array_equal(self.y, other.y)

    def named(self, mask: np.ndarray) -> str:
        """Names of the classes where `mask` holds."""
        return ", ".join(self.classes[mask])


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
        each = metrics.leave_one_out(sample.y, self.scores, sample.patients)
        return st.macro_without_each(self.auroc, each)

    def part(
        self, records: Mask = slice(None), labels: Mask = slice(None)
    ) -> "ScoreSet":
        """Of these records and labels only."""
        whole = self.sample
        y, classes = whole.y[records][:, labels], whole.classes[labels]
        sample = Sample(whole.table[records], y, classes)
        return replace(self, sample=sample, scores=self.scores[records][:, labels])

    def joined(self, other: "ScoreSet") -> "ScoreSet":
        """Its records and those of `other`."""
        a, b = self.sample, other.sample
        table, y = pd.concat([a.table, b.table]), np.concatenate([a.y, b.y])
        sample = Sample(table, y, a.classes)
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
        Naming the file that is damaged or holds scores that are not finite.
    """
    scores = Scores([], {})
    wanted = None if protocols is None else list(protocols)
    for run in runs:
        for protocol in wanted or run.protocols:
            folder = paths.protocol(run.dataset, run.arm, run.seed, protocol)
            file = folder / "scores.parquet"
            if not file.exists():
                continue
            key = (run.dataset, run.arm, run.seed, protocol)
            evaluation = {}
            if (folder / "evaluation.json").exists():
                text = check_sum(folder / "evaluation.json").read_text("utf-8")
                evaluation = json.loads(text)
            scores.evaluations[key] = evaluation
            scores.sets.extend(_read_sets(file, key, evaluation.get("masking_ok")))
    return scores


def _read_sets(file: Path, run: tuple, masking_ok: bool | None) -> Iterator[ScoreSet]:
    """The score sets of one file, by split, attack, view, ε and severity."""
    frame = pd.read_parquet(check_sum(file))
    # Not every data set has ages and sexes, not every evaluation corruptions.
    optional = ["age", "sex", "severity"]
    frame = frame.reindex(columns=frame.columns.union(optional, sort=False))
    scored = [name for name in frame if name.startswith("score_")]
    classes = np.array([name.removeprefix("score_") for name in scored])
    finite = np.isfinite(frame[scored]).all(axis=1)
    if not finite.all():
        row = frame[~finite].iloc[0]
        raise StudyError(
            f"{file}: record {row['record']!r} has a score under {row['attack']!r} that"
            " is not finite; the model or attack diverged: train or evaluate it again"
        )
    kinds = ["split", "attack", "view", "epsilon_mv", "severity"]
    for kind, rows in frame.groupby(kinds, dropna=False, sort=True):
        split, attack, view, epsilon, severity = kind
        y = rows[[f"y_{name}" for name in classes]].to_numpy()
        yield ScoreSet(
            *run,
            split,
            attack,
            view,
            epsilon_mv=round(float(epsilon), 9),
            severity=None if pd.isna(severity) else severity,
            masking_ok=masking_ok,
            sample=Sample(rows[KNOWN], y, classes),
            scores=rows[scored].to_numpy(),
        )
