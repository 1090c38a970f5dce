import math

import numpy as np
import pandas as pd
import pytest

from ecgstudy.datasets.clinical_risk import clinical_risk


def risk_of(ages, sexes, training=None):
    table = pd.DataFrame({"age": ages, "sex": sexes})
    risk, missing = clinical_risk(
        table, np.ones(len(table), bool) if training is None else training
    )
    assert risk.dtype == missing.dtype == np.float32
    return risk, missing


# SCORE2 (2021), supplementary table: log hazard ratio per 5 years from 60, baseline
# survival. SCORE2-OP (2021): log hazard ratio per year from 73, mean linear predictor,
# baseline survival.
BY_HAND = [
    (40, "male", 1 - 0.9605 ** math.exp(0.3742 * -4)),
    (60, "male", 1 - 0.9605),
    (65, "male", 1 - 0.9605 ** math.exp(0.3742)),
    (50, "female", 1 - 0.9776 ** math.exp(0.4648 * -2)),
    (60, "female", 1 - 0.9776),
    (69, "female", 1 - 0.9776 ** math.exp(0.4648 * 9 / 5)),
    (70, "male", 1 - 0.7576 ** math.exp(0.0634 * -3 - 0.0929)),
    (73, "female", 1 - 0.8082 ** math.exp(-0.2290)),
    (85, "female", 1 - 0.8082 ** math.exp(0.0789 * 12 - 0.2290)),
]


@pytest.mark.parametrize(("age", "sex", "expected"), BY_HAND)
def test_risk_is_score2_and_from_70_score2_op(age, sex, expected):
    risk, missing = risk_of([age], [sex])
    assert risk[0] == pytest.approx(expected, rel=1e-5)
    assert missing[0] == pytest.approx(5 / 7)


def test_risk_at_60_in_per_cent():
    risk, _ = risk_of([60, 60], ["male", "female"])
    np.testing.assert_allclose(100 * risk, [3.95, 2.24], atol=1e-4)


@pytest.mark.parametrize("sex", ["male", "female", None])
def test_risk_rises_with_age_also_from_one_model_to_the_other(sex):
    ages = np.arange(40, 89.5, 0.5)
    risk, _ = risk_of(ages, [sex] * len(ages))
    assert (np.diff(risk) > 0).all()
    assert risk.min() > 0
    assert risk.max() < 1


def test_men_have_the_higher_risk():
    ages = np.arange(40, 80)
    assert (risk_of(ages, ["male"] * 40)[0] > risk_of(ages, ["female"] * 40)[0]).all()


def test_ages_are_clipped_to_40_and_89():
    risk, _ = risk_of([18, 40, 89, 300], ["male"] * 4)
    assert risk[0] == risk[1]
    assert risk[2] == risk[3]


def test_an_unknown_age_is_the_training_median_and_counts_as_missing():
    training = np.array([True, True, True, True, False, False])
    ages, sexes = [50, np.nan, 55, 80, 89, np.nan], ["male"] * 6
    risk, missing = risk_of(ages, sexes, training)
    median, _ = risk_of([55], ["male"])
    assert risk[1] == risk[5] == median[0]
    np.testing.assert_allclose(missing, np.array([5, 6, 5, 5, 5, 6]) / 7, rtol=1e-6)


def test_an_unknown_sex_is_the_mean_of_both_and_counts_as_missing():
    risk, missing = risk_of([50, 50, 50, 50], ["male", "female", None, "other"])
    assert risk[2] == risk[3] == pytest.approx((risk[0] + risk[1]) / 2)
    np.testing.assert_allclose(missing, np.array([5, 5, 6, 6]) / 7, rtol=1e-6)


def test_without_any_metadata_all_risks_are_equal_and_all_is_missing():
    risk, missing = clinical_risk(pd.DataFrame(index=range(3)), np.ones(3, bool))
    assert len(set(risk)) == 1
    np.testing.assert_array_equal(missing, [1, 1, 1])


def test_ages_that_nobody_in_training_knows_do_not_stop_it():
    risk, _ = risk_of([np.nan, 80], ["male", "male"], np.array([True, False]))
    assert risk[0] == pytest.approx(1 - 0.9605, rel=1e-5)


def test_risk_survives_the_tables_parquet_file(tmp_path):
    table = pd.DataFrame({"age": [50, np.nan, 70], "sex": ["male", None, "female"]})
    table.to_parquet(tmp_path / "table.parquet")
    stored = clinical_risk(
        pd.read_parquet(tmp_path / "table.parquet"), np.ones(3, bool)
    )
    np.testing.assert_array_equal(stored[0], risk_of(table["age"], table["sex"])[0])
