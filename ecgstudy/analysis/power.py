"""Seeds and patients that a study needs, from the variances that a pilot shows."""

from bisect import bisect_left
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import chi2, nct

from ecgstudy.analysis import statistics as st

ALPHA = 0.05
FAMILY = 8
"""Four primary contrasts, robust and clean: Holm's first step tests at ALPHA / 8."""
PLANNED = 10
"""Seeds of the study for which the number of patients is asked."""
MOST = 1_000_000


@dataclass(frozen=True)
class Components:
    """Variances of a difference of macro AUROC: of one seed, of the pilot's patients.

    With n seeds and k times the patients its mean has variance patients/k + seeds/n +
    models/(n k): what patients have in common for all models, what seeds have in common
    for all patients, and the rest, a model's own errors on its patients.
    """

    patients: float
    seeds: float
    models: float
    df_patients: float
    pilot_seeds: int

    def at_limit(self, level: float) -> "Components":
        """With the one-sided χ² limit of the variance between seeds at `level`."""
        df = self.pilot_seeds - 1
        between = (self.seeds + self.models) * df / chi2.ppf(1 - level, df)
        return replace(self, seeds=max(between - self.models, 0.0))


def components(
    by_seed: np.ndarray, left_out: np.ndarray, df_patients: float
) -> Components:
    """Method of moments; a variance that is estimated as negative is 0.

    Parameters
    ----------
    by_seed : np.ndarray
        (seeds,) differences; at least two seeds.
    left_out : np.ndarray
        (seeds, patients) the same without each patient.
    df_patients : float
        Of `statistics.patient_df`.
    """
    n = len(by_seed)
    of_patients, of_seeds, of_both = st.variance_parts(by_seed, left_out)
    patients = max(of_patients - of_both, 0.0)
    seeds = n * max(of_seeds - of_both, 0.0)
    return Components(patients, seeds, n * of_both, df_patients, n)


def power(
    found: Components,
    effect: float,
    seeds: float,
    alpha: float = ALPHA,
    patients: float = 1.0,
) -> float:
    """Probability that `statistics.two_way_t` finds a true difference.

    Parameters
    ----------
    found : Components
        Of `components`.
    effect : float
        The true difference of macro AUROC.
    seeds : float
        Number of seeds; may be infinite.
    alpha : float
        Two-sided level of the test.
    patients : float
        In multiples of the pilot's; may be infinite.
    """
    models = found.models / seeds / patients
    of_patients = found.patients / patients + models
    of_seeds = found.seeds / seeds
    variance = of_patients + of_seeds
    if variance < 1e-16:
        return 1.0
    spread = of_patients**2 / (found.df_patients * patients)
    spread += (of_seeds + models) ** 2 / (seeds - 1) if of_seeds else 0.0
    df = min(variance**2 / max(spread, 1e-300), 1e6)
    share = (of_seeds + models) / (variance + models)
    t = st.MixedT(df, st.HEAVY * share * (1 - share), seeds)
    critical, shift = t.critical(1 - alpha), effect / np.sqrt(variance)
    above = nct.sf(critical, df, shift)
    # NaN where the tail on the other side underflows.
    below = np.nan_to_num(nct.cdf(-critical, df, shift))
    return float(above + below)


def seeds_needed(found: Components, effect: float, alpha: float = ALPHA) -> float:
    """Fewest seeds that detect `effect` with 80 % power; infinite if none do.

    Parameters
    ----------
    found, effect, alpha
        As for `power`.
    """
    if power(found, effect, np.inf, alpha) < st.POWER:
        return np.inf
    return _first(lambda n: power(found, effect, n, alpha) >= st.POWER, st.MIN_SEEDS)


def patients_needed(
    found: Components, effect: float, alpha: float = ALPHA, seeds: int = PLANNED
) -> float:
    """Multiple of the pilot's patients that detects `effect`; infinite if none does.

    Parameters
    ----------
    found, effect, alpha, seeds
        As for `power`.
    """
    if power(found, effect, seeds, alpha, np.inf) < st.POWER:
        return np.inf

    def enough(hundredths):
        return power(found, effect, seeds, alpha, hundredths / 100) >= st.POWER

    return _first(enough, 100) / 100


def _first(enough, low):
    """Smallest integer from `low` that is enough, if all beyond are; else infinite."""
    numbers = range(low, MOST)
    place = bisect_left(numbers, True, key=enough)
    return numbers[place] if place < len(numbers) else np.inf
