"""Seeds and patients needed, against closed forms, simulations and the own test."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from ecgstudy.analysis import power as pw
from ecgstudy.analysis import statistics as st

NONE = pw.Components(patients=0.0, seeds=0.0, models=0.0, df_patients=21, pilot_seeds=3)


def study_of(rng, patients, seeds, sd):
    """(by_seed, left_out) of means with effects of patient, of seed and of both."""
    values = rng.normal(0, sd[0], patients) + rng.normal(0, sd[1], (seeds, 1))
    values = values + rng.normal(0, sd[2], (seeds, patients))
    return values.mean(axis=1), (values.sum(axis=1, keepdims=True) - values) / (
        patients - 1
    )


def test_components_are_unbiased_for_known_variances():
    rng = np.random.default_rng(0)
    found = [
        pw.components(*study_of(rng, 400, 8, (0.5, 0.05, 0.4)), 399) for _ in range(400)
    ]
    mean = [
        np.mean([getattr(c, name) for c in found])
        for name in ("patients", "seeds", "models")
    ]
    np.testing.assert_allclose(mean, [0.25 / 400, 0.0025, 0.16 / 400], rtol=0.1)


def test_seeds_needed_without_patients_variance_are_those_of_the_paired_t_test():
    found = replace(NONE, seeds=0.02**2)
    n = pw.seeds_needed(found, 0.02)

    def of_t_test(n, alpha=0.05):
        critical, shift = stats.t.ppf(1 - alpha / 2, n - 1), np.sqrt(n)
        return stats.nct.sf(critical, n - 1, shift) + stats.nct.cdf(
            -critical, n - 1, shift
        )

    assert of_t_test(n - 1) < 0.8 <= of_t_test(n)
    assert n == 10  # Cohen's d = 1: tables of the paired t-test
    assert pw.power(found, 0.02, 15, alpha=0.01) == pytest.approx(of_t_test(15, 0.01))


@pytest.mark.parametrize("df", [1.7, 4.0, 60.0, 1e5])
@pytest.mark.parametrize("alpha", [0.05, 0.05 / 8, 1e-4])
def test_power_rises_with_the_effect_without_holes(df, alpha):
    found = replace(NONE, patients=0.01**2, df_patients=df)
    by_effect = [pw.power(found, e, 5, alpha) for e in np.linspace(0, 20, 401)]
    assert by_effect[0] == pytest.approx(alpha)
    assert (np.diff(by_effect) > -1e-9).all()
    assert by_effect[-1] > 0.99


def test_patients_variance_alone_can_forbid_an_effect_at_any_number_of_seeds():
    found = replace(NONE, patients=0.01**2, df_patients=1000)
    z = stats.norm.ppf(0.975) + stats.norm.ppf(0.8)
    assert pw.seeds_needed(found, 0.01) == np.inf
    assert pw.patients_needed(found, 0.01) == pytest.approx(z**2, rel=0.01)
    assert pw.seeds_needed(found, 0.03) == st.MIN_SEEDS
    assert pw.patients_needed(found, 0.03) == 1


def test_seeds_variance_can_forbid_an_effect_at_any_number_of_patients():
    found = replace(NONE, seeds=1.0)
    assert pw.patients_needed(found, 0.01) == np.inf
    assert np.isfinite(pw.seeds_needed(replace(NONE, seeds=0.1**2), 0.01))


def test_noise_of_models_falls_with_seeds_and_with_patients_alike():
    found = replace(NONE, models=0.03**2, df_patients=1e9)
    assert pw.power(found, 0.01, 400) == pytest.approx(
        pw.power(found, 0.01, 100, patients=4), abs=0.002
    )


def test_no_variance_finds_any_effect_with_the_fewest_seeds():
    assert pw.seeds_needed(NONE, 0.01) == st.MIN_SEEDS
    assert pw.patients_needed(NONE, 0.01) == 1


def test_more_seeds_and_larger_effects_are_found_and_adjustment_costs_seeds():
    found = pw.Components(0.004**2, 0.015**2, 0.01**2, df_patients=21, pilot_seeds=3)
    by_seeds = [pw.power(found, 0.015, n) for n in (3, 5, 10, 50, np.inf)]
    assert (np.diff(by_seeds) > 0).all()
    assert pw.seeds_needed(found, 0.02) < pw.seeds_needed(found, 0.02, 0.05 / 8)
    assert pw.seeds_needed(found, 0.02) < pw.seeds_needed(found.at_limit(0.9), 0.02)


def test_the_upper_end_of_the_variance_between_seeds_holds_nine_times_in_ten():
    rng = np.random.default_rng(1)
    truth = 0.02**2
    between = truth * rng.chisquare(2, 4000) / 2  # three seeds
    upper = [replace(NONE, seeds=one).at_limit(0.9).seeds for one in between]
    assert np.mean(np.array(upper) > truth) == pytest.approx(0.9, abs=0.02)


def test_planned_power_is_that_of_the_studys_own_interval():
    rng, sd, found = np.random.default_rng(2), (0.04, 0.01, 0.05), []
    planned = pw.Components(
        sd[0] ** 2 / 40, sd[1] ** 2, sd[2] ** 2 / 40, df_patients=39, pilot_seeds=3
    )
    for _ in range(1500):
        by_seed, left_out = study_of(rng, 40, 12, sd)
        found.append(st.two_way_t(by_seed + 0.02, left_out + 0.02, 39).p < 0.05)
    assert np.mean(found) == pytest.approx(pw.power(planned, 0.02, 12), abs=0.04)
