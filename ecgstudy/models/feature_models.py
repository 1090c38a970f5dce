"""scikit-learn models on engineered features: references without representation."""

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
    """A fitted `pipeline`: features → class scores, as of `class_scores`."""

    pipeline: Pipeline
    multilabel: bool

    def scores(self, values: np.ndarray) -> np.ndarray:
        """Scores float32 (records, classes) of features (records, features)."""
        model = self.pipeline[-1]
        if hasattr(model, "decision_function"):
            logits = self.pipeline.decision_function(values)
            if logits.ndim == 1:  # two classes: the log odds of the second
                return np.stack([-logits, logits], axis=1).astype(np.float32)
            scores = class_scores(torch.from_numpy(logits), self.multilabel)
            return scores.float().numpy()
        values = self.pipeline[:-1].transform(values)
        trees = getattr(model, "estimators_", [model])
        p = np.mean([_leaf_shares(t, values, self.multilabel) for t in trees], axis=0)
        return (np.log(p) - np.log1p(-p)).astype(np.float32)


def _leaf_shares(
    tree: DecisionTreeClassifier, values: np.ndarray, multilabel: bool
) -> np.ndarray:
    """Class probabilities (records, classes) of one tree.

    Each leaf is shrunk towards the root by two records: a large pure leaf is surer than
    a small one, and few scores tie (Provost & Domingos 2003).
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
    """Fit a model to engineered features.

    Parameters
    ----------
    kind
        One of `MODELS`: logistic regression, decision tree or random forest.
    values, labels
        (records, features), where NaN becomes the median, and (records, classes),
        multi-hot or one-hot.
    multilabel
        Whether a record may have several classes or none.
    seed
        Equal ones give equal models.
    classes
        Their names, for errors.

    Raises
    ------
    StudyError
        For an unknown kind, or a class that no training record has, or every one.
    """
    labels = np.asarray(labels) > 0
    names = classes or range(labels.shape[1])
    for name, share in zip(names, labels.mean(0), strict=True):
        if share in (0, 1):
            which = "every" if share else "no"
            raise StudyError(
                f"{kind}: {which} training record has class {name!r}; some must, and "
                "some not"
            )
    if kind == "lr":
        model = LogisticRegression(C=0.1, max_iter=1000, random_state=seed)
        model = OneVsRestClassifier(model) if multilabel else model
        steps = [StandardScaler(), model]
    elif kind == "tree":
        # A small training set must be split, too.
        leaf = max(5, min(50, len(values) // 40))
        steps = [DecisionTreeClassifier(min_samples_leaf=leaf, random_state=seed)]
    elif kind == "forest":
        # At most 8,000 records a tree, and few features a split: seconds on large data
        # sets, no worse in validation.
        forest = RandomForestClassifier(
            n_estimators=200,
            min_samples_leaf=3,
            max_samples=min(8000, len(values)),
            max_features="log2",
            random_state=seed,
        )
        steps = [forest]
    else:
        raise StudyError(f"unknown features model {kind!r}; known: {', '.join(MODELS)}")
    medians = SimpleImputer(strategy="median", keep_empty_features=True)
    pipeline = make_pipeline(medians, *steps)
    wanted = labels.astype(int) if multilabel else labels.argmax(1)
    return FeaturesModel(pipeline.fit(values, wanted), multilabel)


@dataclass(frozen=True)
class FeatureVictim:
    """A features model as a victim of black-box attacks: signals in mV → scores.

    Attributes
    ----------
    model
        It takes the features of `ecgstudy.datasets.features.extract`.
    fs, leads, centre
        How the signals were recorded, as arguments of `extract`.
    gradients, clean_scores
        As of `ecgstudy.attacks.api.Victim`; it has no gradients.
    """

    model: FeaturesModel
    fs: float
    leads: Sequence[str]
    centre: int | None = None
    gradients: Literal["float32"] = "float32"
    clean_scores: tuple[Tensor, Tensor] | None = None

    @property
    def multilabel(self) -> bool:
        """Whether a record may have several classes or none."""
        return self.model.multilabel

    def scores(self, signals: Tensor) -> Tensor:
        """Class scores float32 (records, classes) of signals in mV."""
        array = signals.detach().cpu().numpy()
        values, _ = extract(array, self.fs, self.leads, self.centre)
        return torch.from_numpy(self.model.scores(values)).to(signals.device)
