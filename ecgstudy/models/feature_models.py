"""scikit-learn models on engineered features: references that learn no representation."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from sklearn.ensemble import RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier
from torch import Tensor

from ecgstudy.datasets.features import extract
from ecgstudy.errors import StudyError
from ecgstudy.models.heads import class_scores

MODELS = ("lr", "tree", "forest")


@dataclass(frozen=True)
class FeaturesModel:
    """A fitted `pipeline`: features → class scores, in the convention of `attacks.objectives`."""

    pipeline: Pipeline
    multilabel: bool

    def scores(self, values: np.ndarray) -> np.ndarray:
        """Scores float32 (records, classes) of the features (records, features)."""
        model = self.pipeline[-1]
        if not hasattr(model, "decision_function"):
            values = self.pipeline[:-1].transform(values)
            trees = getattr(model, "estimators_", [model])
            p = np.mean(
                [_leaf_shares(tree, values, self.multilabel) for tree in trees], axis=0
            )
            return (np.log(p) - np.log1p(-p)).astype(np.float32)
        logits = self.pipeline.decision_function(values)
        if logits.ndim == 1:  # two classes: the log odds of the second
            return np.stack([-logits, logits], axis=1).astype(np.float32)
        return class_scores(torch.from_numpy(logits), self.multilabel).float().numpy()


def _leaf_shares(
    tree: DecisionTreeClassifier, values: np.ndarray, multilabel: bool
) -> np.ndarray:
    """Class probabilities (records, classes) of one tree, each leaf shrunk towards the root by two records.

    A large pure leaf is thus surer than a small one, and few scores tie (Provost & Domingos 2003).
    """
    shares, n = tree.tree_.value, tree.tree_.weighted_n_node_samples[:, None]
    shares = shares[:, :, 1] if multilabel else shares[:, 0]
    return ((shares * n + 2 * shares[0]) / (n + 2))[tree.apply(values)]


def fit_features_model(
    kind: str,
    values: np.ndarray,
    labels: np.ndarray,
    multilabel: bool,
    seed: int,
    classes: Sequence[str] | None = None,
) -> FeaturesModel:
    """Fit one of `MODELS`; the same features, labels and seed give the same model.

    Parameters
    ----------
    values, labels
        (records, features), NaN becomes the median; (records, classes), multi-hot or one-hot.

    Raises
    ------
    StudyError
        Naming an unknown `kind`, or a class that no training record has, or every one.
    """
    if kind not in MODELS:
        raise StudyError(f"unknown features model {kind!r}; known: {', '.join(MODELS)}")
    labels = np.asarray(labels) > 0
    for name, share in zip(
        classes or range(labels.shape[1]), labels.mean(0), strict=True
    ):
        if share in (0, 1):
            which = "every" if share else "no"
            raise StudyError(
                f"{kind}: {which} training record has class {name!r}; some must, and some not"
            )
    if kind == "lr":
        model = LogisticRegression(C=0.1, max_iter=1000, random_state=seed)
        steps = [StandardScaler(), OneVsRestClassifier(model) if multilabel else model]
    elif kind == "tree":
        leaf = max(
            5, min(50, len(values) // 40)
        )  # a small training set must be split, too
        steps = [DecisionTreeClassifier(min_samples_leaf=leaf, random_state=seed)]
    else:  # 8,000 records a tree and few features a split: seconds on large data sets, no worse in validation
        few = {"max_samples": min(8000, len(values)), "max_features": "log2"}
        steps = [
            RandomForestClassifier(200, min_samples_leaf=3, random_state=seed, **few)
        ]
    pipeline = make_pipeline(
        SimpleImputer(strategy="median", keep_empty_features=True), *steps
    )
    wanted = labels.astype(int) if multilabel else labels.argmax(1)
    return FeaturesModel(pipeline.fit(values, wanted), multilabel)


@dataclass(frozen=True)
class FeatureVictim:
    """What a black-box attack sees, as `attacks.problem.Victim`; `model` knows the features of `extract`."""

    model: FeaturesModel
    fs: float
    leads: Sequence[str]
    centre: int | None = None
    gradients: Literal["float32"] = "float32"
    """It has none; attacks that ask are told that nothing is approximate."""
    clean_scores: tuple[Tensor, Tensor] | None = None
    """As a `Victim`'s: signals and their scores."""

    @property
    def multilabel(self) -> bool:
        """Whether a record may have several classes or none."""
        return self.model.multilabel

    def scores(self, signals: Tensor) -> Tensor:
        """Class scores float32 (records, classes) of signals (records, leads, samples) in mV."""
        values, _ = extract(
            signals.detach().cpu().numpy(), self.fs, self.leads, self.centre
        )
        return torch.from_numpy(self.model.scores(values)).to(signals.device)
