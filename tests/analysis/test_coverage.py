"""Do intervals cover, and is the family's error kept, where the truth is known?"""

import numpy as np
import pytest
from simulated_studies import (
    AUROCS,
    SAMPLES,
    SHIFTS,
    SKEWED,
    SPREADS,
    arm_coverage,
    expected_auroc,
    fitted,
    simulate,
    verdict_rates,
)

from ecgstudy import metrics
from ecgstudy.analysis import statistics as st

SIMULATIONS = 4000


def coverage(sizes, seeds, spread, simulations=SIMULATIONS):
    """Share of 95 % intervals of the difference of two arms that hold the true one."""
    rng, held = np.random.default_rng([seeds, len(sizes), sizes[0]]), []
    truth = expected_auroc(SHIFTS, spread)
    for _ in range(simulations):
        y, patients, scores = simulate(rng, sizes, seeds, spread, SHIFTS)
        df = st.patient_df(y, patients)
        found = st.combine_arms(*fitted(y, patients, scores), np.array([1.0, -1.0]), df)
        held.append(found.ci_low <= truth[0] - truth[1] <= found.ci_high)
    return np.mean(held)


def record_coverage(sizes, seeds, spread, simulations=300, resamples=200):
    """The same of percentile intervals that draw records, and take seeds as given."""
    rng, held = np.random.default_rng(len(sizes)), []
    truth = expected_auroc(SHIFTS, spread)
    for _ in range(simulations):
        y, _, scores = simulate(rng, sizes, seeds, spread, SHIFTS)
        each = np.arange(len(y))
        drawn, _ = st.draw_patients(y, each, resamples, rng)
        values = [
            [metrics.resampled_auroc(y, one, each, drawn).mean(axis=1) for one in arm]
            for arm in scores
        ]
        low, high = np.quantile(np.subtract(*np.mean(values, axis=1)), [0.025, 0.975])
        held.append(low <= truth[0] - truth[1] <= high)
    return np.mean(held)


def family_error(seeds, spread, simulations=800):
    """Whether Holm finds any of four equal arms to differ, on either of two samples."""
    rng, found, arms = np.random.default_rng(seeds), [], np.eye(5)
    for _ in range(simulations):
        p = []
        for sizes in (SAMPLES["22 even"], SAMPLES["1,000"]):
            y, patients, scores = simulate(rng, sizes, seeds, spread, np.full(5, 0.6))
            whole, left_out = fitted(y, patients, scores)
            df = st.patient_df(y, patients)
            p += [
                st.combine_arms(whole, left_out, arm - arms[0], df).p
                for arm in arms[1:]
            ]
        found.append(st.holm(np.array(p)).min() <= 0.05)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("sample", SAMPLES)
def test_intervals_cover_at_their_nominal_level(sample, spread, seeds):
    """0.93 to 0.97, as far as 4,000 simulated studies can tell (two errors)."""
    found = coverage(SAMPLES[sample], seeds, SPREADS[spread])
    low, high = (2 * np.sqrt(c * (1 - c) / SIMULATIONS) for c in (0.93, 0.97))
    assert 0.93 - low <= found <= 0.97 + high


@pytest.mark.slow
@pytest.mark.parametrize("sample", SAMPLES)
def test_a_bootstrap_of_records_does_not_cover(sample):
    assert record_coverage(SAMPLES[sample], 3, SPREADS["both"]) < 0.85


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("spread", ["both", "models"])
def test_the_primary_family_is_wrong_at_most_at_its_nominal_rate(seeds, spread):
    found = family_error(seeds, SPREADS[spread])
    assert np.mean(found) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / len(found))


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [3, 10])
@pytest.mark.parametrize("difference", [0.0, 0.005, 0.01, 0.02])
def test_a_familys_verdicts_are_wrong_at_most_at_their_nominal_rate(difference, seeds):
    """Better or worse where nothing differs, equivalent where differences are 0.01."""
    simulations = 400
    rates = verdict_rates(seeds, difference, simulations)
    assert rates["any wrong"] <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / simulations)
    if seeds == 10 and difference in (0.0, 0.02):
        assert rates["different" if difference else "equivalent"] > 0.5


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("tail", SKEWED.values(), ids=SKEWED)
@pytest.mark.parametrize("auroc", [0.98, 0.69, 0.02])
def test_intervals_of_one_arm_cover_better_than_the_two_way_t(auroc, tail, seeds):
    plain, ours = arm_coverage(AUROCS[auroc], tail, seeds, 1500)
    assert ours > 0.89
    assert ours > plain or ours > 0.94


def test_simulated_arms_have_the_expected_auroc():
    """The closed form that coverage is measured against, on one large study."""
    rng, spread = np.random.default_rng(0), (0.5, 0.0, 0.4)
    found = [simulate(rng, [3] * 800, 4, spread, SHIFTS) for _ in range(5)]
    values = np.mean([fitted(*one)[0].mean(axis=1) for one in found], axis=0)
    np.testing.assert_allclose(values, expected_auroc(SHIFTS, spread), atol=0.01)
