"""Cardiovascular risk from metadata: the clinical knowledge in CLEF's weights."""

import numpy as np
import pandas as pd

SCORE2_INPUTS = 7
"""Age, sex, smoking, systolic pressure, diabetes, total and HDL cholesterol."""
AVAILABLE_INPUTS = ("age", "sex")
"""Those in ECG data sets; the others are at their centring values and add nothing."""

# Log hazard ratio per year, reference age in years, mean linear predictor, 10-year
# baseline survival.
SCORE2 = {
    "male": (0.3742 / 5, 60.0, 0.0, 0.9605),
    "female": (0.4648 / 5, 60.0, 0.0, 0.9776),
}
SCORE2_OP = {
    "male": (0.0634, 73.0, 0.0929, 0.7576),
    "female": (0.0789, 73.0, 0.2290, 0.8082),
}


def clinical_risk(
    table: pd.DataFrame, training: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """10-year cardiovascular risk of each record's patient, from age and sex alone.

    SCORE2 (Eur Heart J 2021;42:2439) to 69 years, SCORE2-OP (Eur Heart J
    2021;42:2455) from 70, before regional recalibration, with every input that ECG
    data sets lack at its centring value. The risk, not the linear predictor: the two
    models' predictors have different origins, so that the predictor would fall at the
    70th birthday.

    Parameters
    ----------
    table
        Columns `age` (years) and `sex` ("female", "male"); missing allowed, age
        clipped to 40–89.
    training
        Boolean (records,): the records whose median age replaces unknown ages.

    Returns
    -------
    risk
        float32 (records,), in [0, 1].
    missing
        float32 (records,): share of SCORE2's seven inputs that are absent.
    """
    nothing = pd.Series(np.nan, table.index)
    age = pd.to_numeric(table.get("age", nothing)).to_numpy(dtype=float)
    sex = table.get("sex", nothing).to_numpy()
    unknown_age = np.isnan(age)
    known = age[np.asarray(training) & ~unknown_age]
    typical = np.median(known) if len(known) else 60.0
    age = np.clip(np.where(unknown_age, typical, age), 40, 89)
    male, female = _ten_year_risk(age, "male"), _ten_year_risk(age, "female")
    is_male, is_female = sex == "male", sex == "female"
    risk = np.where(is_male, male, np.where(is_female, female, (male + female) / 2))
    absent = SCORE2_INPUTS - len(AVAILABLE_INPUTS)
    missing = (absent + unknown_age + ~(is_male | is_female)) / SCORE2_INPUTS
    return risk.astype(np.float32), missing.astype(np.float32)


def _ten_year_risk(age: np.ndarray, sex: str) -> np.ndarray:
    risks = []
    for per_year, reference, mean, survival in (SCORE2[sex], SCORE2_OP[sex]):
        risks.append(1 - survival ** np.exp(per_year * (age - reference) - mean))
    return np.where(age < 70, *risks)
