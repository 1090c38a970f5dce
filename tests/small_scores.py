"""Small random data sets with many ties, and AUROC by looking at every pair."""

import numpy as np
from hypothesis import strategies as some


@some.composite
def scored(draw, classes=2):
    """(y, scores with many ties, patients): small random data sets."""
    rng = np.random.default_rng(draw(some.integers(0, 2**32 - 1)))
    n, patients = draw(some.integers(4, 40)), draw(some.integers(1, 8))
    y = (rng.random((n, classes)) < draw(some.floats(0.1, 0.9))).astype(float)
    scores = rng.integers(0, draw(some.integers(1, 12)), (n, classes)).astype(float)
    codes = np.unique(rng.integers(0, patients, n), return_inverse=True)[1]
    return y, scores, codes


def pairwise(y, score):
    """AUROC by looking at every pair of a positive and a negative."""
    difference = score[y > 0][:, None] - score[y <= 0][None]
    return (
        np.mean((difference > 0) + 0.5 * (difference == 0))
        if difference.size
        else np.nan
    )
