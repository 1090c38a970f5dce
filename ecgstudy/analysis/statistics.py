"""Uncertainty of AUROC over patients and seeds, paired differences, adjusted tests."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.optimize import brentq
from scipy.special import expit, logit, stdtr, stdtrit

from ecgstudy.metrics import defined_labels, macro

DOMINANCE = 0.8
"""A label with more of its positives in one patient is marked as dominated."""
MIN_SEEDS = 3
"""With fewer seeds their variance is not estimated: no claim beyond the seeds."""
POWER = 0.8
"""Power at which an effect counts as detectable."""

# --- Patients -------------------------------------------------------------------------


def macro_without_each(whole: np.ndarray, left_out: np.ndarray) -> np.ndarray:
    """Macro AUROC without each patient, over the labels that the whole sample defines.

    A label that leaving a patient out makes undefined keeps its whole-sample value
    there: the interval is conditional on that patient, and the label is marked as
    dominated. `whole` is (classes,), `left_out` (patients, classes) is
    of `metrics.leave_one_out`.
    """
    return macro(np.where(np.isnan(left_out), whole, left_out))


def largest_share(y: np.ndarray, patients: np.ndarray) -> np.ndarray:
    """Largest share of each class's positives that one patient holds, (classes,)."""
    held = _per_patient(y > 0, patients)
    with np.errstate(invalid="ignore"):
        return held.max(axis=0) / held.sum(axis=0)


def patient_df(y: np.ndarray, patients: np.ndarray) -> float:
    """Degrees of freedom of the variance between patients: effective number − 1.

    The effective number (Kish 1965) is 1/Σw², w a patient's share of the AUROC: the
    mean over classes and kinds of its share of positives and negatives. Even patients
    give patients − 1, two that hold everything 1, a single one 0.
    `tests/analysis/test_coverage.py` shows the coverage that this gives.
    """
    y = y[:, defined_labels(y)]
    if not y.shape[1] or patients.max() == 0:
        return 0.0
    shares = [_per_patient(k, patients) / k.sum(axis=0) for k in (y > 0, y <= 0)]
    weights = np.mean(shares, axis=(0, 2))
    return max(1.0, 1 / (weights**2).sum() - 1)


def _per_patient(flags, patients):
    return pd.DataFrame(flags).groupby(patients).sum().to_numpy()


def draw_patients(
    y: np.ndarray, patients: np.ndarray, resamples: int, rng: np.random.Generator
) -> tuple[np.ndarray, int]:
    """Bootstrap of patients: how often each was drawn, and the number of redraws.

    Draws that leave a defined label without both values are redrawn.

    Parameters
    ----------
    y, patients : np.ndarray
        As for `metrics.leave_one_out`.
    resamples : int
        Number of draws.
    rng : np.random.Generator
        Source of randomness.

    Returns
    -------
    tuple
        (resamples, patients) counts, and how many draws were redrawn.
    """
    n = int(patients.max()) + 1
    y = y[:, defined_labels(y)]
    kinds = np.hstack([_per_patient(kind, patients) for kind in (y > 0, y <= 0)])
    even = np.full(n, 1 / n)
    drawn = rng.multinomial(n, even, size=resamples)
    redrawn = 0
    while (bad := (drawn @ kinds == 0).any(axis=1)).any():
        redrawn += int(bad.sum())
        drawn[bad] = rng.multinomial(n, even, size=int(bad.sum()))
    return drawn.astype(np.float32), redrawn


# --- Intervals over patients and seeds ------------------------------------------------

HEAVY = 1 / 3
"""By simulation: errors at 5 % and at Holm's 5 % / 8 are then at most nominal."""


class MixedT(NamedTuple):
    """Reference distribution of an estimate over its standard error.

    A share `heavy` of it is a t with (seeds − 1)/2 degrees of freedom, the rest a t
    with `df`. Satterthwaite's t alone has too light tails: a variance between few seeds
    that is small by chance also raises its degrees of freedom.
    """

    df: float
    heavy: float
    seeds: int

    def two_sided_p(self, ratio: float) -> float:
        """P(|t| > |ratio|)."""
        light = 2 * stdtr(self.df, -abs(ratio))
        if not self.heavy:
            return light
        heavy = 2 * stdtr((self.seeds - 1) / 2, -abs(ratio))
        return light + self.heavy * (heavy - light)

    def critical(self, confidence: float) -> float:
        """The ratio whose two-sided p is 1 − `confidence`."""
        upper = (1 + confidence) / 2
        of_seeds = (self.seeds - 1) / 2 if self.heavy else self.df
        ends = stdtrit([self.df, of_seeds], upper)
        low, high = ends.min() * (1 - 1e-6), ends.max() * (1 + 1e-6)
        return brentq(lambda r: self.two_sided_p(r) - (1 - confidence), low, high)

    def detectable(self, confidence: float) -> float:
        """The smallest true ratio that a test at 1 − `confidence` finds, at `POWER`."""
        return self.critical(confidence) + stdtrit(self.df, POWER)


@dataclass(frozen=True)
class Interval:
    """An estimate with its two-way t-interval; NaN is what is not known.

    `p` tests the value 0 (two-sided); `se`, `df` and `heavy` are what interval and p
    come from (`MixedT`); `satterthwaite_low` and `satterthwaite_high` are the plain
    Satterthwaite interval; `mde` is the smallest true value that this test alone finds
    at 5 % with 80 % power; `beyond_seeds` is False below `MIN_SEEDS` seeds, whose
    variance is then left out.
    """

    value: float
    seeds: int
    beyond_seeds: bool
    ci_low: float = np.nan
    ci_high: float = np.nan
    p: float = np.nan
    se: float = np.nan
    df: float = np.nan
    heavy: float = np.nan
    mde: float = np.nan
    satterthwaite_low: float = np.nan
    satterthwaite_high: float = np.nan


def variance_parts(
    by_seed: np.ndarray, left_out: np.ndarray
) -> tuple[float, float, float]:
    """Variance of the mean over seeds: by patients, by seeds, and what both contain.

    A model of one seed errs on its own patients. That interaction, over patients ×
    seeds, is in the patients' variance as well as in the seeds'. These are the mean
    squares of a two-way layout without replication, each over patients × seeds (Searle,
    Casella & McCulloch 1992, ch. 4).

    Parameters
    ----------
    by_seed : np.ndarray
        (seeds,) the quantity (an AUROC, a difference, a factor effect) of each seed.
    left_out : np.ndarray
        (seeds, patients) the same without each patient.

    Returns
    -------
    tuple
        Jackknife over patients of the seed mean; variance between seeds over their
        number; jackknife of the seeds' deviations over seeds × (seeds − 1). The last
        two are 0 with one seed.
    """
    seeds, mean = len(by_seed), left_out.mean(axis=0)
    if seeds == 1:
        return _jackknife(mean), 0.0, 0.0
    of_seeds = float(np.var(by_seed, ddof=1)) / seeds
    of_both = sum(_jackknife(one - mean) for one in left_out) / (seeds * (seeds - 1))
    return _jackknife(mean), of_seeds, of_both


def _jackknife(left_out):
    return (len(left_out) - 1) * float(np.var(left_out))


def two_way_t(
    by_seed: np.ndarray,
    left_out: np.ndarray,
    df_patients: float,
    confidence: float = 0.95,
) -> Interval:
    """Mean over seeds with a t-interval for patients and seeds both being samples.

    The variance is the patients' of `variance_parts`, plus the seeds' beyond what both
    contain; degrees of freedom are Satterthwaite's (1946), tails those of `MixedT` with
    the share `HEAVY` f (1 − f), f the seeds' part of the variance.

    Parameters
    ----------
    by_seed, left_out : np.ndarray
        As for `variance_parts`.
    df_patients : float
        Of `patient_df`; 0 (a single patient) leaves all but the value unknown.
    confidence : float
        Level of the intervals.
    """
    seeds, value = len(by_seed), float(np.mean(by_seed))
    beyond = seeds >= MIN_SEEDS
    if not df_patients > 0 or not np.isfinite(value):
        return Interval(value, seeds, beyond)
    of_patients, of_seeds, of_both = variance_parts(by_seed, left_out)
    added = max(of_seeds - of_both, 0.0) if beyond else 0.0
    se = np.sqrt(of_patients + added)
    if se < 1e-12:  # the same scores in every arm
        p = float(abs(value) < 1e-12)
        same = (value, value, p, 0.0, df_patients, 0.0, 0.0, value, value)
        return Interval(value, seeds, beyond, *same)

    spread = of_patients**2 / df_patients
    spread += of_seeds**2 / (seeds - 1) if added else 0.0
    df = se**4 / spread
    share = of_seeds / (of_patients + of_seeds) if beyond else 0.0
    t = MixedT(df, HEAVY * share * (1 - share), seeds)
    half = t.critical(confidence) * se
    plain = stdtrit(df, (1 + confidence) / 2) * se
    return Interval(
        value,
        seeds,
        beyond,
        ci_low=value - half,
        ci_high=value + half,
        p=t.two_sided_p(value / se),
        se=se,
        df=df,
        heavy=t.heavy,
        mde=t.detectable(0.95) * se,
        satterthwaite_low=value - plain,
        satterthwaite_high=value + plain,
    )


def combine_arms(
    by_seed: np.ndarray,
    left_out: np.ndarray,
    weights: np.ndarray,
    df_patients: float,
    confidence: float = 0.95,
) -> Interval:
    """`two_way_t` of a linear combination of arms, paired by seed and record.

    Parameters
    ----------
    by_seed : np.ndarray
        (arms, seeds) macro AUROC. Where all of it is 0 or 1, scores sit at the floor or
        ceiling, their spread says nothing, and there is no interval.
    left_out : np.ndarray
        (arms, seeds, patients) macro AUROC without each patient.
    weights : np.ndarray
        (arms,): (1, −1) is a contrast, others are factor effects.
    df_patients, confidence : float
        As for `two_way_t`.
    """
    if np.isin(by_seed, (0.0, 1.0)).all():
        df_patients = 0.0
    left_out = np.tensordot(weights, left_out, 1)
    return two_way_t(weights @ by_seed, left_out, df_patients, confidence)


def arm_interval(
    by_seed: np.ndarray,
    left_out: np.ndarray,
    df_patients: float,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """Interval of one arm's AUROC, made on the logit scale.

    Seeds of one arm may differ skewly (one fails, or AUROC is near 0 or 1), which
    cancels in differences of arms but not here: a symmetric t-interval covered 0.85 to
    0.95 at 3 to 5 seeds in simulations, this one 0.91 to 0.97. The half-widths of
    patients and of seeds, each with its own t, add as variances do (Howe 1974).

    Parameters
    ----------
    by_seed : np.ndarray
        (seeds,) macro AUROC.
    left_out : np.ndarray
        (seeds, patients) macro AUROC without each patient.
    df_patients, confidence : float
        As for `two_way_t`.

    Returns
    -------
    tuple
        Low and high end; NaN at AUROC 0 or 1 and with a single patient. Below
        `MIN_SEEDS` seeds it covers the patients only.
    """
    seeds, value = len(by_seed), float(np.mean(by_seed))
    if not df_patients > 0 or not 0 < value < 1:
        return np.nan, np.nan
    of_patients, of_seeds, of_both = variance_parts(by_seed, left_out)
    if seeds < MIN_SEEDS:
        of_seeds = of_both = 0.0
    own = max(of_patients - of_both, 0)
    t_patients, t_seeds = stdtrit(
        [df_patients, max(1, seeds - 1)], (1 + confidence) / 2
    )
    squared = t_patients**2 * own + t_seeds**2 * of_seeds
    half = np.sqrt(squared) / (value * (1 - value))  # d logit(a) = da / (a (1 − a))
    return expit(logit(value) - half), expit(logit(value) + half)


# --- Tests of a family ----------------------------------------------------------------


def equivalence_p(value: float, se: float, t: MixedT, margin: float) -> float:
    """p of two one-sided tests that the true value lies within ±`margin`: the larger.

    Parameters
    ----------
    value, se : float
        Estimate and its standard error; NaN gives NaN.
    t : MixedT
        Reference distribution of value / se.
    margin : float
        Half-width of the region that counts as equal (Schuirmann 1987).
    """
    if se == 0:
        return float(abs(value) >= margin)
    room = (margin - abs(value)) / se
    outside = t.two_sided_p(room) / 2
    return outside if room > 0 else 1 - outside


def holm(p: np.ndarray) -> np.ndarray:
    """Holm's (1979) step-down adjusted p; NaN (not tested) stays and is not counted."""
    p = np.asarray(p, dtype=float)
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    adjusted = np.full(len(p), np.nan)
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * factors))
    return adjusted
