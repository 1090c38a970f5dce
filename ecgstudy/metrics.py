"""AUROC and average precision of each class, by placements (numpy only)."""

import numpy as np


def defined_labels(y: np.ndarray) -> np.ndarray:
    """Labels with both values in `y` (records, classes): those averaged over."""
    return (y > 0).any(axis=0) & (y <= 0).any(axis=0)


def auroc(y: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Area under the ROC curve of each class: P(positive above negative) + P(tie)/2.

    Below 0.5 under a strong attack, and never clipped; NaN where a class has no
    positive or no negative.

    Parameters
    ----------
    y, scores
        (records, classes): 0 or 1, and scores of which larger ones mean more likely
        positive.
    """
    values = np.full(y.shape[1], np.nan)
    for c in np.flatnonzero(defined_labels(y)):
        ranked = Ranked(y[:, c], scores[:, c])
        values[c] = ranked.placements[ranked.positive].mean() / ranked.negative.sum()
    return values


def average_precision(y: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Area under the precision–recall steps of each class.

    Shapes and NaN as in `auroc`.
    """
    values = np.full(y.shape[1], np.nan)
    for c in np.flatnonzero(defined_labels(y)):
        ranked = Ranked(y[:, c], scores[:, c])
        # The threshold of a record admits its whole tie: the order within it is free.
        start = ranked.start[ranked.positive]
        above = len(y) - start
        hits = ranked.positive.sum() - _counts(ranked.positive)[start]
        values[c] = (hits / above).mean()
    return values


def macro(values: np.ndarray) -> np.ndarray:
    """Mean over the classes (last axis), without those that are NaN everywhere."""
    kept = ~np.isnan(values).all(axis=tuple(range(values.ndim - 1)))
    if not kept.any():
        return np.full(values.shape[:-1], np.nan)
    return values[..., kept].mean(axis=-1)


class Ranked:
    """One class's records in order of score, with the tie each belongs to.

    `start` and `stop` delimit the tie; `placements` counts the negatives below a record
    (ties half).
    """

    def __init__(
        self, y: np.ndarray, score: np.ndarray, within: np.ndarray | None = None
    ):
        self.order = np.argsort(score)  # the order within a tie never matters
        if within is not None:
            self.order = self.order[np.argsort(within[self.order], kind="stable")]
        ranked = score[self.order]
        new = np.r_[True, ranked[1:] != ranked[:-1]]
        if within is not None:
            patient = within[self.order]
            new[1:] |= patient[1:] != patient[:-1]
        tie = np.cumsum(new) - 1
        edges = np.r_[np.flatnonzero(new), len(score)]
        self.start, self.stop = edges[tie], edges[tie + 1]
        self.positive = y[self.order] > 0
        self.negative = ~self.positive
        self.placements = self.below(self.negative)

    def below(self, flags: np.ndarray) -> np.ndarray:
        """Flagged records ranked below each record; those of its own tie count half."""
        count = _counts(flags)
        return (count[self.start] + count[self.stop]) / 2


def _counts(flags: np.ndarray) -> np.ndarray:
    return np.r_[0, np.cumsum(flags)]
