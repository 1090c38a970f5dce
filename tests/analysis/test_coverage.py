"""Simulated studies whose true differences are known: do intervals cover, and is the family's error kept?

A score is shift · y + effects of patient, seed and both + noise of the record; positives and negatives
have effects of their own, so a positive and a negative differ by a normal variable whoever they belong
to, and an arm's expected AUROC is Φ(shift / √(2 (1 + Σ sd²))), whatever the sizes of patients.
"""

import numpy as np
import pytest
from scipy.stats import norm

from ecgstudy.analysis import statistics as st

PREVALENCE = (0.4, 0.25, 0.15)
SHIFTS = np.array([0.8, 0.5])
SAMPLES = {
    "22 even": [40] * 22,
    "1,000": [2] * 1000,
    "two dominate": [200] * 2 + [16] * 20,
}
SPREADS = {
    "patients": (0.7, 0.05, 0.1),
    "both": (0.5, 0.2, 0.3),
    "models": (0.3, 0.1, 0.5),
}
"""Standard deviations of the effects of patient, of seed, and of both (a model's errors on a patient)."""

SIMULATIONS = 4000


def effects(rng, sd, seeds, arms, patients):
    """Normal, (seeds, arms, 2 kinds, labels, patients): an arm's own, common to labels, common to arms."""
    shapes = (arms, 2, len(PREVALENCE)), (arms, 2, 1), (1, 2, 1)
    parts = [rng.normal(size=(seeds, *shape, patients)) for shape in shapes]
    return (
        sd / np.sqrt(3) * sum(np.broadcast_to(part, parts[0].shape) for part in parts)
    )


def simulate(rng, sizes, seeds, spread, shifts):
    """(y, patients, scores (arms, seeds, records, labels), expected AUROC of each arm)."""
    patients, arms = np.repeat(np.arange(len(sizes)), sizes), len(shifts)
    y = rng.random((len(patients), len(PREVALENCE))) < PREVALENCE
    shapes = (1, len(sizes)), (seeds, 1), (seeds, len(sizes))
    moved = sum(
        effects(rng, sd, s, arms, g) for sd, (s, g) in zip(spread, shapes, strict=True)
    )
    moved = np.where(y.T, moved[:, :, 0][..., patients], moved[:, :, 1][..., patients])
    noise = rng.normal(size=y.shape) + rng.normal(
        size=(seeds, arms, *y.shape)
    )  # the record's, the model's
    scores = moved.swapaxes(2, 3) + noise / np.sqrt(2) + shifts[:, None, None] * y
    return (
        y,
        patients,
        scores.swapaxes(0, 1),
        norm.cdf(shifts / np.sqrt(2 * (1 + np.square(spread).sum()))),
    )


def fitted(y, patients, scores):
    """Macro AUROC (arms, seeds), and without each patient (arms, seeds, patients)."""
    whole = np.array([[st.auroc(y, one) for one in arm] for arm in scores])
    each = np.array(
        [[st.leave_one_out(y, one, patients) for one in arm] for arm in scores]
    )
    return whole.mean(axis=-1), st.macro_without_each(whole[:, :, None], each)


def coverage(sizes, seeds, spread, simulations=SIMULATIONS):
    """Share of 95 % intervals of the difference of two arms that hold the true one."""
    rng, held = np.random.default_rng([seeds, len(sizes), sizes[0]]), []
    for _ in range(simulations):
        y, patients, scores, truth = simulate(rng, sizes, seeds, spread, SHIFTS)
        df = st.patient_df(y, patients)
        found = st.combination_t(
            *fitted(y, patients, scores), np.array([1.0, -1.0]), df
        )
        held.append(found.ci_low <= truth[0] - truth[1] <= found.ci_high)
    return np.mean(held)


def record_coverage(sizes, seeds, spread, simulations=300, resamples=200):
    """The same of percentile intervals that draw records instead of patients, and take seeds as given."""
    rng, held = np.random.default_rng(len(sizes)), []
    for _ in range(simulations):
        y, _, scores, truth = simulate(rng, sizes, seeds, spread, SHIFTS)
        each = np.arange(len(y))
        drawn, _ = st.patient_resamples(y, each, resamples, rng)
        values = [
            [st.resampled_auroc(y, one, each, drawn).mean(axis=1) for one in arm]
            for arm in scores
        ]
        low, high = np.quantile(np.subtract(*np.mean(values, axis=1)), [0.025, 0.975])
        held.append(low <= truth[0] - truth[1] <= high)
    return np.mean(held)


def family_error(seeds, spread, simulations=800):
    """Whether Holm finds any of four arms better than their base on two data sets, where none is."""
    rng, found, arms = np.random.default_rng(seeds), [], np.eye(5)
    for _ in range(simulations):
        p = []
        for sizes in (SAMPLES["22 even"], SAMPLES["1,000"]):
            y, patients, scores, _ = simulate(
                rng, sizes, seeds, spread, np.full(5, 0.6)
            )
            whole, left_out = fitted(y, patients, scores)
            df = st.patient_df(y, patients)
            p += [
                st.combination_t(whole, left_out, arm - arms[0], df).p
                for arm in arms[1:]
            ]
        found.append(st.holm(np.array(p)).min() <= 0.05)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("sample", SAMPLES)
def test_intervals_cover_at_their_nominal_level(sample, spread, seeds):
    """True coverage of 0.93 to 0.97, as far as 4,000 simulated studies can tell (two standard errors)."""
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


def test_simulated_arms_have_the_expected_auroc():
    """The closed form that coverage is measured against, on one large study."""
    rng = np.random.default_rng(0)
    found = [simulate(rng, [3] * 800, 4, (0.5, 0.0, 0.4), SHIFTS) for _ in range(5)]
    values = np.mean(
        [fitted(y, p, scores)[0].mean(axis=1) for y, p, scores, _ in found], axis=0
    )
    np.testing.assert_allclose(values, found[0][3], atol=0.01)
