"""Stored scores of a study, read back: what every table is computed from."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from operator import attrgetter
from typing import NamedTuple

import numpy as np
import pandas as pd

from ecgstudy import metrics
from ecgstudy.analysis import statistics as st
from ecgstudy.errors import StudyError
from ecgstudy.files import check_sum
from ecgstudy.study import ENSEMBLE, Paths, Run

Mask = np.ndarray | slice
Key = tuple[str, str, int, str]
"""A run's evaluation: data set, arm, seed, protocol."""


class Place(NamedTuple):
    """Where scores of several arms are compared.

    `severity` is that of a corruption, `headline_mv` the headline ε (mV) of the data
    set tested on.
    """

    dataset: str
    protocol: str
    attack: str
    epsilon_mv: float
    severity: float | None
    headline_mv: float

    @property
    def is_headline(self) -> bool:
        """Whether it is the ensemble at the headline ε."""
        return self.attack == ENSEMBLE and self.epsilon_mv == self.headline_mv


@dataclass(frozen=True, eq=False)
class ScoreSet:
    """Scores of one run under one attack at one ε (mV).

    `table` has a row per record: `record`, `patient`, `age`, `sex`, and of each of
    `classes` the label `y_<class>` and the score `score_<class>`.
    """

    dataset: str
    arm: str
    seed: int
    protocol: str
    split: str
    attack: str
    view: str
    epsilon_mv: float
    severity: float | None
    headline_mv: float
    masking_ok: bool | None
    table: pd.DataFrame
    classes: np.ndarray

    @property
    def run(self) -> Key:
        """Key of the run's evaluation."""
        return self.dataset, self.arm, self.seed, self.protocol

    @property
    def place(self) -> Place:
        """What sets of other arms must share to be compared with this one."""
        return Place(*(getattr(self, name) for name in Place._fields))

    @cached_property
    def y(self) -> np.ndarray:
        """Labels, 0 or 1, (records, classes)."""
        return self.table[[f"y_{name}" for name in self.classes]].to_numpy()

    @cached_property
    def scores(self) -> np.ndarray:
        """Scores, (records, classes)."""
        return self.table[[f"score_{name}" for name in self.classes]].to_numpy()

    @cached_property
    def patients(self) -> np.ndarray:
        """Each record's patient as a code 0…patients−1."""
        return pd.factorize(self.table["patient"], sort=True)[0]

    @property
    def names(self) -> np.ndarray:
        """Ids of the patients, by code."""
        return np.unique(self.table["patient"])

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

    @cached_property
    def auroc(self) -> np.ndarray:
        """AUROC of each class, (classes,)."""
        return metrics.auroc(self.y, self.scores)

    @cached_property
    def auprc(self) -> np.ndarray:
        """Average precision of each class, (classes,)."""
        return metrics.average_precision(self.y, self.scores)

    @cached_property
    def macro(self) -> float:
        """Macro AUROC over the sample's labels."""
        return float(metrics.macro(self.auroc))

    @cached_property
    def left_out(self) -> np.ndarray:
        """Macro AUROC without each patient, (patients,)."""
        each = metrics.leave_one_out(self.y, self.scores, self.patients)
        return st.macro_without_each(self.auroc, each)

    def named(self, mask: np.ndarray) -> str:
        """Names of the classes where `mask` holds."""
        return ", ".join(self.classes[mask])

    def part(
        self, records: Mask = slice(None), labels: Mask = slice(None)
    ) -> "ScoreSet":
        """Of these records and labels only."""
        return replace(self, table=self.table[records], classes=self.classes[labels])

    def joined(self, other: "ScoreSet") -> "ScoreSet":
        """Its records and those of `other`."""
        return replace(self, table=pd.concat([self.table, other.table]))


_WHICH = attrgetter(*Place._fields, "arm", "seed", "split", "view")


@dataclass(frozen=True)
class Scores:
    """Score sets, and each ``evaluation.json`` by data set, arm, seed, protocol."""

    sets: list[ScoreSet]
    evaluations: dict[Key, dict]

    def select(
        self, split: str = "test", view: str = "shared", **wanted: object
    ) -> list[ScoreSet]:
        """The sets of one split and view whose attributes equal `wanted`."""
        wanted |= {"split": split, "view": view}
        return [
            s for s in self.sets if all(getattr(s, k) == v for k, v in wanted.items())
        ]

    @cached_property
    def _known(self):
        return {_WHICH(s): s for s in self.sets}

    def other(self, like: ScoreSet, **changed: object) -> ScoreSet | None:
        """The set that differs from `like` in the attributes `changed`, if stored."""
        return self._known.get(_WHICH(replace(like, **changed)))


def read_scores(
    paths: Paths, runs: Iterable[Run], protocols: Iterable[str] | None = None
) -> Scores:
    """Read what the evaluations of `runs` stored; runs without scores are left out.

    Parameters
    ----------
    paths : Paths
        Where the study's outputs are.
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
            key = (run.dataset, run.arm, run.seed, protocol)
            folder = paths.protocol(*key)
            if not (folder / "scores.parquet").exists():
                continue
            evaluation = {}
            if (folder / "evaluation.json").exists():
                text = check_sum(folder / "evaluation.json").read_text("utf-8")
                evaluation = json.loads(text)
            scores.evaluations[key] = evaluation
            known = {
                "headline_mv": run.tested_on(protocol).headline_epsilon_mv,
                "masking_ok": evaluation.get("masking_ok"),
            }
            scores.sets.extend(_read_sets(folder, key, known))
    return scores


def _read_sets(folder, run, known):
    """The score sets of one run, by split, attack, view, ε and severity."""
    file = check_sum(folder / "scores.parquet")
    table = pd.read_parquet(file)
    # Not every data set has ages and sexes, not every evaluation corruptions.
    optional = ["age", "sex", "severity"]
    table = table.reindex(columns=table.columns.union(optional, sort=False))
    scored = table.filter(regex="^score_")
    infinite = table[~np.isfinite(scored).all(axis=1)]
    if len(infinite):
        row = infinite.iloc[0]
        raise StudyError(
            f"{file}: record {row['record']!r} has a score under {row['attack']!r} that"
            " is not finite; the model or attack diverged: train or evaluate it again"
        )
    classes = scored.columns.str.removeprefix("score_").to_numpy()
    kinds = ["split", "attack", "view", "epsilon_mv", "severity"]
    for kind, rows in table.groupby(kinds, dropna=False, sort=True):
        *names, epsilon, severity = kind
        names += [round(float(epsilon), 9), None if pd.isna(severity) else severity]
        yield ScoreSet(*run, *names, **known, table=rows, classes=classes)
