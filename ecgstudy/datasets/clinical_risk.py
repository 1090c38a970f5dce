"""Cardiovascular risk from metadata, the clinical knowledge behind CLEF's push weights."""

import numpy as np
import pandas as pd

SCORE2_INPUTS = 7
"""Age, sex, smoking, systolic pressure, diabetes, total and HDL cholesterol."""

AVAILABLE_INPUTS = ("age", "sex")
"""Those that ECG data sets carry; the others stand at their centring values and add nothing."""

# (log hazard ratio per year, reference age in years, mean linear predictor, 10-year baseline survival)
_SCORE2 = {
    "male": (0.3742 / 5, 60.0, 0.0, 0.9605),
    "female": (0.4648 / 5, 60.0, 0.0, 0.9776),
}
_SCORE2_OP = {
    "male": (0.0634, 73.0, 0.0929, 0.7576),
    "female": (0.0789, 73.0, 0.2290, 0.8082),
}


def clinical_risk(
    table: pd.DataFrame, training: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """10-year cardiovascular risk of each record's patient, from age and sex alone.

    SCORE2 (Eur Heart J 2021;42:2439) to 69 years, SCORE2-OP (Eur Heart J 2021;42:2455) from 70,
    before regional recalibration, with every input that ECG data sets lack at its centring value.
    The risk, not the linear predictor: the two models' predictors have different origins, so that
    the predictor would fall at the 70th birthday.

    Parameters
    ----------
    table
        Columns `age` (years) and `sex` ("female", "male"); missing allowed, age clipped to 40–89.
    training
        Boolean (records,): the records whose median age replaces unknown ages.

    Returns
    -------
    risk, missing : ndarray
        float32 (records,): risk in [0, 1]; share of SCORE2's seven inputs that are absent.
    """
    age = (
        pd.to_numeric(table["age"]).to_numpy(dtype=float)
        if "age" in table
        else np.full(len(table), np.nan)
    )
    sex = table["sex"] if "sex" in table else pd.Series([None] * len(table))
    unknown_age = np.isnan(age)
    known = age[np.asarray(training) & ~unknown_age]
    age = np.clip(
        np.where(unknown_age, np.median(known) if len(known) else 60.0, age), 40, 89
    )
    risks = {name: _risk(age, name) for name in ("male", "female")}
    is_known = {name: (sex == name).to_numpy() for name in risks}
    unknown_sex = ~(is_known["male"] | is_known["female"])
    risk = np.where(is_known["male"], risks["male"], risks["female"])
    risk = np.where(unknown_sex, (risks["male"] + risks["female"]) / 2, risk)
    absent = SCORE2_INPUTS - len(AVAILABLE_INPUTS) + unknown_age + unknown_sex
    return risk.astype(np.float32), (absent / SCORE2_INPUTS).astype(np.float32)


def _risk(age: np.ndarray, sex: str) -> np.ndarray:
    def ten_year(
        per_year: float, reference: float, mean: float, survival: float
    ) -> np.ndarray:
        return 1 - survival ** np.exp(per_year * (age - reference) - mean)

    return np.where(age < 70, ten_year(*_SCORE2[sex]), ten_year(*_SCORE2_OP[sex]))
