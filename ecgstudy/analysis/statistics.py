"""AUROC, its uncertainty over patients and seeds, and paired contrasts (numpy and scipy only)."""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.special import stdtr, stdtrit

from ecgstudy.metrics import (
    _counts,
    _Ranked,
    auroc,
    average_precision,
    defined_labels,
    macro,
)

__all__ = ["auroc", "average_precision", "defined_labels", "macro"]

DOMINANCE = 0.8
"""A label with a larger share of its positives in one patient is marked as dominated."""
MIN_SEEDS = 3
"""With fewer seeds the between-seed variance is not estimated and nothing is claimed beyond the seeds."""


def leave_one_out(
    y: np.ndarray, scores: np.ndarray, patients: np.ndarray
) -> np.ndarray:
    """AUROC of each class without each patient, exactly, from placement values instead of recomputation.

    Parameters
    ----------
    y, scores
        (records, classes).
    patients
        Integer codes 0…patients−1, (records,).

    Returns
    -------
    np.ndarray
        (patients, classes); NaN where nothing of one kind is left.
    """
    n_patients = int(patients.max()) + 1
    values = np.full((n_patients, y.shape[1]), np.nan)
    codes = patients.astype(
        np.uint16 if n_patients < 2**16 else np.int64
    )  # 16 bits: radix sort
    for c in np.flatnonzero(defined_labels(y)):
        values[:, c] = _leave_one_out(y[:, c], scores[:, c], codes, n_patients)
    return values


def _leave_one_out(
    y: np.ndarray, score: np.ndarray, codes: np.ndarray, n_patients: int
) -> np.ndarray:
    ranked = _Ranked(y, score)
    positives, negatives = ranked.positive.sum(), ranked.negative.sum()
    # Pairs that a record takes part in and that are won (positive above negative; ties half).
    won = np.where(
        ranked.positive, ranked.placements, positives - ranked.below(ranked.positive)
    )
    wins = np.bincount(codes[ranked.order], won, n_patients)
    positives_of = np.bincount(codes, y > 0, n_patients)
    negatives_of = np.bincount(codes, y <= 0, n_patients)
    own = _Ranked(y, score, within=codes)
    before = np.r_[0, np.cumsum(negatives_of)][
        codes[own.order]
    ]  # negatives of earlier patients
    own_wins = np.bincount(
        codes[own.order], (own.placements - before) * own.positive, n_patients
    )
    total = ranked.placements[ranked.positive].sum()
    pairs = (positives - positives_of) * (negatives - negatives_of)
    with np.errstate(invalid="ignore"):
        return np.where(
            pairs > 0, (total - wins + own_wins) / np.where(pairs > 0, pairs, 1), np.nan
        )


def macro_without_each(whole: np.ndarray, left_out: np.ndarray) -> np.ndarray:
    """Macro AUROC without each patient, over the labels that the whole sample defines.

    Of `whole` (classes,) and `left_out` (patients, classes), which is that of `leave_one_out`. A label that
    leaving a patient out makes undefined keeps its whole-sample value there: the interval is then conditional
    on that patient, and the label is marked as dominated.
    """
    return macro(np.where(np.isnan(left_out), whole, left_out))


def largest_share(y: np.ndarray, patients: np.ndarray) -> np.ndarray:
    """Share of each class's positives that one patient holds, (classes,); NaN without positives."""
    held = _per_patient(y > 0, patients)
    with np.errstate(invalid="ignore"):
        return held.max(axis=0) / held.sum(axis=0)


def patient_df(y: np.ndarray, patients: np.ndarray) -> float:
    """Degrees of freedom of the patient variance: Kish's (1965) effective number of patients − 1, at least 1.

    1/Σw² − 1, with w the patient's share of the AUROC's design weight (mean over classes of y/|P| and of
    (1−y)/|N|). Even patients give patients − 1, two patients that hold everything 1. Chosen by measured
    coverage of 95 % intervals (tests/test_coverage.py).
    """
    y = y[:, defined_labels(y)]
    shares = [
        _per_patient(kind, patients) / kind.sum(axis=0) for kind in (y > 0, y <= 0)
    ]
    weights = np.mean(shares, axis=(0, 2)) if y.shape[1] else np.zeros(1)
    return max(1.0, 1 / (weights**2).sum() - 1) if len(weights) > 1 else 0.0


def _per_patient(flags: np.ndarray, patients: np.ndarray) -> np.ndarray:
    held = np.zeros((patients.max() + 1, flags.shape[1]))
    np.add.at(held, patients, flags)
    return held


def patient_resamples(
    y: np.ndarray, patients: np.ndarray, resamples: int, rng: np.random.Generator
) -> tuple[np.ndarray, int]:
    """How often each patient was drawn, float32 (resamples, patients), and the number of redraws.

    Patients are drawn with replacement; draws that leave a defined label without both values are redrawn.
    """
    n = int(patients.max()) + 1
    y = y[:, defined_labels(y)]
    kinds = np.hstack([_per_patient(y > 0, patients), _per_patient(y <= 0, patients)])
    drawn = rng.multinomial(n, np.full(n, 1 / n), size=resamples)
    redrawn = 0
    while (bad := (drawn @ kinds == 0).any(axis=1)).any():
        redrawn += int(bad.sum())
        drawn[bad] = rng.multinomial(n, np.full(n, 1 / n), size=int(bad.sum()))
    return drawn.astype(np.float32), redrawn


def resampled_auroc(
    y: np.ndarray,
    scores: np.ndarray,
    patients: np.ndarray,
    drawn: np.ndarray,
    block: int = 64,
) -> np.ndarray:
    """AUROC of each class in each resample of patients, (resamples, classes).

    One sort per class, with multiplicities as weights. `y`, `scores` and `patients` are those of
    `leave_one_out`, `drawn` (resamples, patients) is of `patient_resamples`.
    """
    n = drawn.shape[1]
    values = np.full((len(drawn), y.shape[1]), np.nan)
    for c in np.flatnonzero(defined_labels(y)):
        ranked = _Ranked(y[:, c], scores[:, c])
        owner = patients[ranked.order]
        held = np.stack(
            [
                np.bincount(owner, kind, n)
                for kind in (ranked.positive, ranked.negative)
            ],
            axis=1,
        )
        if 4 * n < len(
            drawn
        ):  # few patients: pairs won between each two of them, then a quadratic form
            won_by = np.zeros((n, n))
            np.add.at(
                won_by,
                owner[ranked.positive],
                _below(ranked, owner, np.eye(n, dtype=np.float32)),
            )
            won = np.einsum("bg,bg->b", drawn @ won_by, drawn)
        else:
            won = np.empty(len(drawn))
            for rows in np.array_split(np.arange(len(drawn)), -(-len(drawn) // block)):
                weight = np.ascontiguousarray(drawn[rows].T)
                below = _below(ranked, owner, weight)
                won[rows] = np.einsum(
                    "ib,ib->b", weight[owner[ranked.positive]], below, dtype=np.float64
                )
        values[:, c] = won / np.prod(drawn @ held, axis=1)
    return values


def _below(ranked: _Ranked, owner: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Weight of the negatives below each positive, (positives, columns of `weight` (patients, columns))."""
    below = np.zeros((ranked.negative.sum() + 1, weight.shape[1]), weight.dtype)
    np.cumsum(weight[owner[ranked.negative]], axis=0, out=below[1:])
    low, high = (
        _counts(ranked.negative)[edge[ranked.positive]]
        for edge in (ranked.start, ranked.stop)
    )
    return (below[low] + below[high]) / 2


# --- Intervals over patients and seeds ----------------------------------------------------------


HEAVY = 1 / 3
"""Chosen by simulation so that errors at 5 % and at Holm's 5 % / 8 are at most nominal."""


@dataclass(frozen=True)
class Interval:
    """An estimate with its two-way t-interval.

    `p` tests the value 0 (two-sided); `df` and `heavy` are those of `two_sided_p`; `mde` is that of
    `detectable` for this test alone, at 5 %; `beyond_seeds` is False where fewer than `MIN_SEEDS` seeds leave
    the seeds' variance out.
    """

    value: float
    ci_low: float
    ci_high: float
    p: float
    se: float
    df: float
    heavy: float
    mde: float
    seeds: int
    beyond_seeds: bool


def two_sided_p(ratio: float, df: float, heavy: float, seeds: int) -> float:
    """P(|t| > |ratio|) for an estimate over its standard error that rests on few seeds in part.

    A share `heavy` of t has (seeds − 1)/2 degrees of freedom, the rest `df`. Satterthwaite's t alone has too
    light tails: a variance on seeds − 1 degrees of freedom that is small by chance also raises `df`.
    """
    light = 2 * stdtr(df, -abs(ratio))
    return (
        light + heavy * (2 * stdtr((seeds - 1) / 2, -abs(ratio)) - light)
        if heavy
        else light
    )


def critical_ratio(confidence: float, df: float, heavy: float, seeds: int) -> float:
    """The ratio whose `two_sided_p` is 1 − `confidence`: half an interval in standard errors."""
    ends = [
        stdtrit(k, (1 + confidence) / 2) for k in (df, (seeds - 1) / 2 if heavy else df)
    ]
    low, high = min(ends) * (1 - 1e-6), max(ends) * (1 + 1e-6)
    return brentq(
        lambda ratio: two_sided_p(ratio, df, heavy, seeds) - (1 - confidence), low, high
    )


def detectable(
    se: float, confidence: float, df: float, heavy: float, seeds: int
) -> float:
    """The smallest true value that a test at 1 − `confidence` finds with 80 % power."""
    return (critical_ratio(confidence, df, heavy, seeds) + stdtrit(df, 0.8)) * se


def variance_parts(
    by_seed: np.ndarray, left_out: np.ndarray
) -> tuple[float, float, float]:
    """Variance of the mean over seeds, by patients, by seeds, and the part that both of these contain.

    A model of one seed errs on its own patients; that interaction of patients and seeds, over patients ×
    seeds, is in the patients' variance as well as in the seeds'. As the mean squares of a two-way layout
    without replication, each over patients × seeds (Searle, Casella & McCulloch 1992, ch. 4).

    Parameters
    ----------
    by_seed
        (seeds,) the quantity (an AUROC, a paired difference, a factor effect) of each seed.
    left_out
        (seeds, patients) the same without each patient.

    Returns
    -------
    tuple
        Delete-one-patient jackknife of the seed mean; variance between seeds over their number; and the
        jackknife of the seeds' deviations over seeds × (seeds − 1). The last two are 0 with one seed.
    """
    seeds, mean = len(by_seed), left_out.mean(axis=0)
    if seeds == 1:
        return _jackknife(mean), 0.0, 0.0
    mixed = sum(_jackknife(one - mean) for one in left_out) / (seeds * (seeds - 1))
    return _jackknife(mean), float(np.var(by_seed, ddof=1)) / seeds, mixed


def _jackknife(left_out: np.ndarray) -> float:
    return (len(left_out) - 1) * float(np.var(left_out))


def two_way_t(
    by_seed: np.ndarray,
    left_out: np.ndarray,
    df_patients: float,
    confidence: float = 0.95,
) -> Interval:
    """Mean over seeds, with a t-interval for patients and seeds both being samples.

    Variance: the patients' of `variance_parts`, plus the seeds' beyond what both contain; degrees of freedom
    by Satterthwaite (1946), tails as in `two_sided_p` with the share `HEAVY` f (1 − f), f the seeds' part.
    All is NaN but the value when fewer than two patients leave the variance unknown.

    Parameters
    ----------
    by_seed, left_out
        As for `variance_parts`.
    df_patients
        Of `patient_df`.
    """
    seeds, patients = left_out.shape
    value, beyond = float(np.mean(by_seed)), seeds >= MIN_SEEDS
    if patients < 2 or not df_patients > 0 or not np.isfinite(value):
        return Interval(value, *[np.nan] * 7, seeds, beyond)
    of_patients, of_seeds, of_both = variance_parts(by_seed, left_out)
    added = max(of_seeds - of_both, 0.0) if beyond else 0.0
    se = np.sqrt(of_patients + added)
    if se < 1e-12:  # the same scores in every arm
        p = float(abs(value) < 1e-12)
        return Interval(
            value, value, value, p, 0.0, df_patients, 0.0, 0.0, seeds, beyond
        )
    df = se**4 / (
        of_patients**2 / df_patients + (of_seeds**2 / (seeds - 1) if added else 0.0)
    )
    share = of_seeds / (of_patients + of_seeds) if beyond else 0.0
    heavy = HEAVY * share * (1 - share)
    half = critical_ratio(confidence, df, heavy, seeds) * se
    p = two_sided_p(value / se, df, heavy, seeds)
    mde = detectable(se, 0.95, df, heavy, seeds)
    return Interval(
        value, value - half, value + half, p, se, df, heavy, mde, seeds, beyond
    )


def combination_t(
    by_seed: np.ndarray,
    left_out: np.ndarray,
    weights: np.ndarray,
    df_patients: float,
    confidence: float = 0.95,
) -> Interval:
    """`two_way_t` of a linear combination of arms, paired by seed and record.

    One arm is the weight (1,), a contrast (1, −1), a factor effect a row of `effects.effect_weights`.

    `by_seed` is macro AUROC, (arms, seeds), `left_out` that without each patient, (arms, seeds, patients).
    """
    return two_way_t(
        weights @ by_seed, np.tensordot(weights, left_out, 1), df_patients, confidence
    )


def holm(p: np.ndarray) -> np.ndarray:
    """Holm's (1979) step-down adjusted p-values; NaN (not tested) stays NaN and is not counted."""
    p = np.asarray(p, dtype=float)
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    adjusted = np.full(len(p), np.nan)
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * factors))
    return adjusted
