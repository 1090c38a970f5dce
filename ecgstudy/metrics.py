"""AUROC and average precision, of all patients, without each, and of resamples."""

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
        ranked = _Ranked(y[:, c], scores[:, c])
        values[c] = ranked.placements[ranked.positive].mean() / ranked.negative.sum()
    return values


def average_precision(y: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Area under the precision–recall steps of each class.

    Shapes and NaN as in `auroc`.
    """
    values = np.full(y.shape[1], np.nan)
    for c in np.flatnonzero(defined_labels(y)):
        ranked = _Ranked(y[:, c], scores[:, c])
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


def leave_one_out(
    y: np.ndarray, scores: np.ndarray, patients: np.ndarray
) -> np.ndarray:
    """AUROC of each class without each patient, exact, from placements.

    Parameters
    ----------
    y, scores : np.ndarray
        (records, classes): 0 or 1, and scores.
    patients : np.ndarray
        (records,) integer codes 0…patients−1.

    Returns
    -------
    np.ndarray
        (patients, classes); NaN where no positive or no negative is left.
    """
    values = np.full((patients.max() + 1, y.shape[1]), np.nan)
    for c in np.flatnonzero(defined_labels(y)):
        values[:, c] = _leave_one_out(y[:, c], scores[:, c], patients)
    return values


def _leave_one_out(y, score, patients):
    """AUROC of one class without each patient, (patients,).

    AUROC is pairs won over pairs. Leaving a patient out takes away the pairs that its
    records take part in; those between two of its own records are then taken away twice
    and are added again.
    """
    ranked = _Ranked(y, score)
    owner, positive = patients[ranked.order], ranked.positive
    # Pairs of each record that are won: positive above negative, ties half.
    lost = ranked.below(positive)
    won_of = np.bincount(
        owner, np.where(positive, ranked.placements, positive.sum() - lost)
    )
    positives_of = np.bincount(owner, positive)
    negatives_of = np.bincount(owner, ranked.negative)

    # Ranked patient by patient: placements count negatives of earlier patients too.
    own = _Ranked(positive, owner * len(y) + ranked.start)
    owner = owner[own.order]
    earlier = (np.cumsum(negatives_of) - negatives_of)[owner]
    own_won = np.bincount(owner, (own.placements - earlier) * own.positive)

    kept = ranked.placements[positive].sum() - won_of + own_won
    pairs = (positive.sum() - positives_of) * (ranked.negative.sum() - negatives_of)
    return np.divide(kept, pairs, out=np.full(len(kept), np.nan), where=pairs > 0)


def resampled_auroc(
    y: np.ndarray, scores: np.ndarray, patients: np.ndarray, drawn: np.ndarray
) -> np.ndarray:
    """AUROC of each class in each resample of patients: one sort, then weighted sums.

    Parameters
    ----------
    y, scores, patients : np.ndarray
        As for `leave_one_out`.
    drawn : np.ndarray
        (resamples, patients) how often each patient was drawn.

    Returns
    -------
    np.ndarray
        (resamples, classes).
    """
    values = np.full((len(drawn), y.shape[1]), np.nan)
    for c in np.flatnonzero(defined_labels(y)):
        ranked = _Ranked(y[:, c], scores[:, c])
        owner, positive = patients[ranked.order], ranked.positive
        start, stop = ranked.start[positive], ranked.stop[positive]
        # In blocks that fit into the processor's cache.
        for block in np.array_split(np.arange(len(drawn)), len(drawn) // 64 + 1):
            weights = np.ascontiguousarray(drawn[block].T)[owner]
            negatives = _counts(weights * ranked.negative[:, None])
            below = (negatives[start] + negatives[stop]) / 2
            won = np.einsum("rb,rb->b", weights[positive], below, dtype=float)
            pairs = weights[positive].sum(axis=0) * negatives[-1]
            values[block, c] = won / pairs
    return values


class _Ranked:
    """One class's records in order of score, with the tie each belongs to.

    `start` and `stop` delimit the tie; `placements` counts the negatives below a record
    (ties half).
    """

    def __init__(self, y, score):
        self.order = np.argsort(score)  # the order within a tie never matters
        ranked = score[self.order]
        new = np.r_[True, ranked[1:] != ranked[:-1]]
        edges = np.r_[np.flatnonzero(new), len(score)]
        tie = np.cumsum(new) - 1
        self.start, self.stop = edges[tie], edges[tie + 1]
        self.positive = y[self.order] > 0
        self.negative = ~self.positive
        self.placements = self.below(self.negative)

    def below(self, flags):
        """Flagged records ranked below each record; those of its own tie count half."""
        count = _counts(flags)
        return (count[self.start] + count[self.stop]) / 2


def _counts(flags):
    return np.concatenate([np.zeros_like(flags[:1]), np.cumsum(flags, axis=0)])
