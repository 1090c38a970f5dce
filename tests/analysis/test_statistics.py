"""Uncertainty of AUROC against brute-force jackknifes, resamples and t-tests."""

from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some
from scipy import special, stats

from ecgstudy import metrics
from ecgstudy.analysis import statistics as st


def test_a_label_undefined_without_a_patient_keeps_its_value_there():
    y = np.array([[1, 1], [0, 0], [1, 0], [0, 0]])
    scores, patients = (
        np.array([[4, 2], [1, 3], [0, 1], [2, 4]]) * 1.0,
        np.array([0, 0, 1, 1]),
    )
    whole, left_out = (
        metrics.auroc(y, scores),
        metrics.leave_one_out(y, scores, patients),
    )
    assert np.isnan(left_out[0, 1])
    expected = [(left_out[0, 0] + whole[1]) / 2, left_out[1].mean()]
    np.testing.assert_allclose(st.macro_without_each(whole, left_out), expected)


def test_resamples_without_the_only_positive_patient_are_redrawn_and_counted():
    y, patients = np.array([[1], [0], [0], [0]]), np.arange(4)
    drawn, redrawn = st.draw_patients(y, patients, 500, np.random.default_rng(0))
    assert drawn.shape == (500, 4)
    assert (drawn[:, 0] > 0).all()
    assert (drawn.sum(axis=1) == 4).all()
    # A draw misses patient 0 with probability (3/4)⁴, or holds only it with (1/4)⁴.
    bad = 0.75**4 + 0.25**4
    assert redrawn == pytest.approx(500 * bad / (1 - bad), rel=0.2)


def test_even_patients_give_patients_minus_one_degrees_of_freedom():
    patients = np.repeat(np.arange(22), 10)
    y = np.tile(np.array([[1, 0], [0, 1]]), (110, 1))
    assert st.patient_df(y, patients) == pytest.approx(21)


def test_two_patients_that_hold_almost_everything_give_about_one_degree_of_freedom():
    patients = np.r_[np.zeros(1000, int), np.ones(1000, int), np.arange(2, 22)]
    y = np.tile([[1], [0]], (1010, 1))
    assert st.patient_df(y, patients) == pytest.approx(2020**2 / (2 * 1000**2 + 20) - 1)
    assert st.patient_df(y, np.minimum(patients, 1)) == 1
    assert st.patient_df(y, 0 * patients) == 0


def test_largest_share_is_that_of_the_patient_with_most_positives():
    y = np.array([[1, 0], [1, 0], [1, 1], [0, 0]])
    np.testing.assert_allclose(st.largest_share(y, np.array([0, 0, 1, 1])), [2 / 3, 1])
    assert np.isnan(st.largest_share(np.zeros((3, 1)), np.arange(3)))


def left_out_means(values):
    """Mean without each patient, for values (…, patients)."""
    return (values.sum(axis=-1, keepdims=True) - values) / (values.shape[-1] - 1)


def test_two_way_t_without_seed_variance_is_the_one_sample_t_over_patients():
    values = np.random.default_rng(0).normal(0.3, 1, 15)
    found = st.two_way_t(
        np.full(4, values.mean()), np.tile(left_out_means(values), (4, 1)), 14
    )
    test = stats.ttest_1samp(values, 0)
    interval = test.confidence_interval(0.95)
    np.testing.assert_allclose(
        (found.value, found.ci_low, found.ci_high, found.p, found.df),
        (values.mean(), interval.low, interval.high, test.pvalue, 14),
    )


def test_two_way_t_without_patient_variance_is_the_one_sample_t_over_seeds():
    seeds = np.array([0.1, 0.3, 0.2, 0.6])
    found = st.two_way_t(
        seeds, np.repeat(seeds[:, None], 30, axis=1), 29, confidence=0.9
    )
    test = stats.ttest_1samp(seeds, 0)
    np.testing.assert_allclose((found.p, found.df), (test.pvalue, 3))
    np.testing.assert_allclose(
        (found.ci_low, found.ci_high), tuple(test.confidence_interval(0.9))
    )


def test_two_way_t_adds_variances_and_takes_satterthwaite_degrees_of_freedom():
    values, seeds = np.arange(10.0), np.array([3.0, 4.5, 6.0])
    found = st.two_way_t(seeds, left_out_means(values) + seeds[:, None], 9)
    patients, between = values.var(ddof=1) / 10, seeds.var(ddof=1) / 3
    assert found.se == pytest.approx(np.sqrt(patients + between))
    assert found.df == pytest.approx(
        (patients + between) ** 2 / (patients**2 / 9 + between**2 / 2)
    )
    assert found.beyond_seeds


@given(
    some.floats(0.5, 60),
    some.floats(0, 0.1),
    some.integers(3, 10),
    some.floats(0.8, 0.999),
)
def test_the_critical_ratio_is_exceeded_as_often_as_stated(
    df, heavy, seeds, confidence
):
    ratio = st.MixedT(df, heavy, seeds).critical(confidence)
    beyond = (1 - heavy) * stats.t.sf(ratio, df) + heavy * stats.t.sf(
        ratio, (seeds - 1) / 2
    )
    assert 2 * beyond == pytest.approx(1 - confidence, rel=1e-6)
    assert st.MixedT(df, heavy, seeds).two_sided_p(-ratio) == pytest.approx(
        1 - confidence, rel=1e-6
    )


def test_the_plain_satterthwaite_interval_stands_beside():
    values, seeds = np.arange(10.0), np.array([3.0, 4.5, 6.0])
    found = st.two_way_t(seeds, left_out_means(values) + seeds[:, None], 9)
    half = stats.t.ppf(0.975, found.df) * found.se
    ends = found.satterthwaite_low, found.satterthwaite_high
    assert ends == pytest.approx((found.value - half, found.value + half))
    assert found.ci_low < ends[0] < ends[1] < found.ci_high


def test_tails_are_heavy_where_patients_and_seeds_both_matter():
    values, seeds = np.arange(10.0), np.array([3.0, 4.5, 6.0])
    both = st.two_way_t(seeds, left_out_means(values) + seeds[:, None], 9)
    share = seeds.var(ddof=1) / 3 / (seeds.var(ddof=1) / 3 + values.var(ddof=1) / 10)
    assert both.heavy == pytest.approx(share * (1 - share) / 3)
    light = stats.t.ppf(0.975, both.df) * both.se
    assert both.ci_high - both.value > light
    assert both.ci_high - both.value == pytest.approx(
        st.MixedT(both.df, both.heavy, 3).critical(0.95) * both.se
    )


def test_variance_parts_are_the_mean_squares_of_a_two_way_layout():
    table = np.random.default_rng(2).normal(
        size=(4, 7)
    )  # (seeds, patients), means of the values
    seeds, patients = table.shape
    rows, columns, mean = table.mean(axis=1), table.mean(axis=0), table.mean()
    rest = table - rows[:, None] - columns + mean
    squares = (
        seeds * ((columns - mean) ** 2).sum() / (patients - 1),
        patients * ((rows - mean) ** 2).sum() / (seeds - 1),
        (rest**2).sum() / (patients - 1) / (seeds - 1),
    )
    found = st.variance_parts(rows, left_out_means(table))
    np.testing.assert_allclose(found, np.array(squares) / table.size)


def test_noise_of_single_models_on_patients_is_counted_once():
    noise = np.random.default_rng(3).normal(size=(3, 400))
    noise -= noise.mean(axis=1, keepdims=True)  # the seeds agree on average
    found = st.two_way_t(np.array([0.01, 0.0, -0.01]), left_out_means(noise), 399)
    assert found.se == pytest.approx(noise.mean(axis=0).std(ddof=1) / np.sqrt(400))
    assert found.df == pytest.approx(399)


def test_with_two_seeds_the_interval_speaks_of_patients_only():
    values = np.arange(10.0)
    found = st.two_way_t(
        np.array([0.0, 9.0]), np.tile(left_out_means(values), (2, 1)), 9
    )
    assert not found.beyond_seeds
    assert found.se == pytest.approx(values.std(ddof=1) / np.sqrt(10))
    assert found.df == pytest.approx(9)


def test_one_patient_leaves_the_interval_undefined():
    found = st.two_way_t(np.array([0.7, 0.8, 0.9]), np.full((3, 1), np.nan), 0.0)
    assert found.value == pytest.approx(0.8)
    assert np.isnan([found.ci_low, found.ci_high, found.p, found.mde]).all()


def test_equal_arms_differ_by_exactly_nothing():
    found = st.two_way_t(np.zeros(3), np.zeros((3, 20)), 19)
    assert (found.value, found.ci_low, found.ci_high, found.p) == (0, 0, 0, 1)


def test_the_minimal_detectable_effect_is_found_with_80_percent_power():
    values = np.r_[np.full(50, -1.0), np.full(50, 1.0)]
    found = st.two_way_t(np.zeros(1), left_out_means(values)[None], 99)
    shift = found.mde / found.se
    power = stats.nct.sf(stats.t.ppf(0.975, 99), 99, shift) + stats.nct.cdf(
        stats.t.ppf(0.025, 99), 99, shift
    )
    assert power == pytest.approx(0.8, abs=0.005)


def test_a_contrast_of_arms_is_the_interval_of_their_difference():
    rng = np.random.default_rng(1)
    by_seed, left_out = rng.random((3, 4)), rng.random((3, 4, 9))
    found = st.combine_arms(by_seed, left_out, np.array([1.0, -1.0, 0.0]), 8)
    expected = st.two_way_t(by_seed[0] - by_seed[1], left_out[0] - left_out[1], 8)
    assert asdict(found) == pytest.approx(asdict(expected))


@pytest.mark.parametrize("arms", [[[0.0] * 3], [[1.0] * 3], [[0.0] * 3, [1.0] * 3]])
def test_scores_at_the_floor_or_ceiling_have_no_interval(arms):
    by_seed = np.array(arms)
    weights = np.array([1.0, -1.0])[: len(by_seed)]
    left_out = np.repeat(by_seed[:, :, None], 9, axis=2)
    found = st.combine_arms(by_seed, left_out, weights, 8)
    assert found.value == (weights @ by_seed).mean()
    assert np.isnan([found.ci_low, found.satterthwaite_high, found.p, found.se]).all()
    assert np.isnan(st.arm_interval(by_seed[0], left_out[0], 8)).all()


def test_arms_with_the_same_scores_off_the_floor_have_an_interval_of_zero():
    by_seed = np.array([[0.0, 0.5, 1.0]] * 2)
    left_out = np.repeat(by_seed[:, :, None], 9, axis=2)
    found = st.combine_arms(by_seed, left_out, np.array([1.0, -1.0]), 8)
    assert (found.ci_low, found.ci_high, found.p) == (0, 0, 1)


def test_an_arms_interval_adds_the_half_widths_of_patients_and_seeds_as_logits():
    patients, seeds = np.linspace(-0.1, 0.1, 21), np.array([0.8, 0.85, 0.9])
    left_out = left_out_means(patients) + seeds[:, None]
    low, high = st.arm_interval(seeds, left_out, 20, confidence=0.9)
    of_patients = stats.t.ppf(0.95, 20) * patients.std(ddof=1) / np.sqrt(21)
    of_seeds = stats.t.ppf(0.95, 2) * seeds.std(ddof=1) / np.sqrt(3)
    half = np.hypot(of_patients, of_seeds) / (0.85 * 0.15)
    expected = special.expit(special.logit(0.85) + np.array([-half, half]))
    np.testing.assert_allclose((low, high), expected)


def test_an_arms_interval_of_few_seeds_speaks_of_the_patients_only():
    patients, seeds = np.linspace(-0.1, 0.1, 21), np.array([0.6, 0.8])
    low, high = st.arm_interval(seeds, left_out_means(patients) + seeds[:, None], 20)
    half = stats.t.ppf(0.975, 20) * patients.std(ddof=1) / np.sqrt(21) / (0.7 * 0.3)
    assert special.logit(high) - special.logit(low) == pytest.approx(2 * half)
    assert np.isnan(st.arm_interval(seeds, np.full((2, 1), np.nan), 0.0)).all()


@given(some.floats(-0.05, 0.05), some.floats(0.001, 0.05))
def test_equivalence_is_tested_by_two_one_sided_t_tests(mean, margin):
    values = np.random.default_rng(5).normal(0, 0.05, 12)
    values += mean - values.mean()
    left_out = np.tile(left_out_means(values), (3, 1))
    found = st.two_way_t(np.full(3, mean), left_out, 11)
    above = stats.ttest_1samp(values, -margin, alternative="greater").pvalue
    below = stats.ttest_1samp(values, margin, alternative="less").pvalue
    t = st.MixedT(found.df, found.heavy, found.seeds)
    p = st.equivalence_p(found.value, found.se, t, margin)
    assert p == pytest.approx(max(above, below))


def test_equivalence_within_a_margin_is_an_interval_within_it():
    t = st.MixedT(7.3, 0.08, 5)
    for value in np.linspace(-0.02, 0.02, 41):
        inside = abs(value) + t.critical(0.9) * 0.004 < 0.01
        assert (st.equivalence_p(value, 0.004, t, 0.01) < 0.05) == inside
    assert st.equivalence_p(0.0, 0.0, t, 0.01) == 0
    assert st.equivalence_p(0.01, 0.0, t, 0.01) == 1
    assert np.isnan(st.equivalence_p(0.0, np.nan, t, 0.01))


def test_holm_steps_down_and_ignores_what_was_not_tested():
    adjusted = st.holm(np.array([0.04, np.nan, 0.01, 0.03]))
    np.testing.assert_allclose(adjusted, [0.06, np.nan, 0.03, 0.06])


@given(some.lists(some.floats(0, 1), min_size=1, max_size=8))
def test_holm_lies_between_the_raw_and_the_bonferroni_adjusted_p(p):
    p = np.array(p)
    adjusted = st.holm(p)
    assert (adjusted >= p).all()
    assert (adjusted <= np.minimum(1, p * len(p)) + 1e-12).all()
    assert (np.diff(adjusted[np.argsort(p, kind="stable")]) >= 0).all()
