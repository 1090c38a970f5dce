"""AUROC and its uncertainty against scikit-learn, pair enumeration, brute-force jackknifes and t-tests."""

from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from scipy import stats
from sklearn.metrics import average_precision_score, roc_auc_score

from ecgstudy.analysis import statistics as st


@some.composite
def scored(draw, classes=2):
    """(y, scores with many ties, patients): small random data sets."""
    rng = np.random.default_rng(draw(some.integers(0, 2**32 - 1)))
    n, patients = draw(some.integers(4, 40)), draw(some.integers(1, 8))
    y = (rng.random((n, classes)) < draw(some.floats(0.1, 0.9))).astype(float)
    scores = rng.integers(0, draw(some.integers(1, 12)), (n, classes)).astype(float)
    codes = np.unique(rng.integers(0, patients, n), return_inverse=True)[1]
    return y, scores, codes


def pairwise(y, score):
    """AUROC by looking at every pair of a positive and a negative."""
    difference = score[y > 0][:, None] - score[y <= 0][None]
    return (
        np.mean((difference > 0) + 0.5 * (difference == 0))
        if difference.size
        else np.nan
    )


@settings(max_examples=60, deadline=None)
@given(scored())
def test_auroc_and_average_precision_equal_scikit_learn_and_pair_enumeration(data):
    y, scores, _ = data
    defined = st.defined_labels(y)
    found, precision = st.auroc(y, scores), st.average_precision(y, scores)
    assert np.array_equal(np.isnan(found), ~defined)
    assert np.array_equal(np.isnan(precision), ~defined)
    for c in np.flatnonzero(defined):
        assert found[c] == pytest.approx(
            roc_auc_score(y[:, c], scores[:, c]), abs=1e-12
        )
        assert found[c] == pytest.approx(pairwise(y[:, c], scores[:, c]), abs=1e-12)
        assert precision[c] == pytest.approx(
            average_precision_score(y[:, c], scores[:, c]), abs=1e-12
        )


@settings(max_examples=30, deadline=None)
@given(scored(classes=1))
def test_auroc_of_negated_scores_is_the_complement_and_order_alone_counts(data):
    y, scores, _ = data
    found = st.auroc(y, scores)
    np.testing.assert_allclose(st.auroc(y, -scores), 1 - found, atol=1e-12)
    np.testing.assert_array_equal(st.auroc(y, np.exp(scores)), found)


def test_auroc_of_perfectly_wrong_scores_is_zero_and_not_clipped():
    assert (
        st.auroc(np.array([[0], [0], [1], [1]]), np.array([[3.0], [4.0], [1.0], [2.0]]))
        == 0
    )


def test_macro_leaves_out_absent_classes_only():
    assert st.macro(np.array([0.2, np.nan, 0.6])) == pytest.approx(0.4)
    assert np.isnan(st.macro(np.array([np.nan, np.nan])))


@settings(max_examples=60, deadline=None)
@given(scored())
def test_leave_one_out_equals_recomputing_without_each_patient(data):
    y, scores, patients = data
    found = st.leave_one_out(y, scores, patients)
    brute = [
        st.auroc(y[patients != g], scores[patients != g])
        for g in range(patients.max() + 1)
    ]
    brute = np.where(st.defined_labels(y), np.array(brute), np.nan)
    np.testing.assert_allclose(found, brute, atol=1e-12)


def test_a_label_undefined_without_a_patient_keeps_its_value_there():
    y = np.array([[1, 1], [0, 0], [1, 0], [0, 0]])
    scores, patients = (
        np.array([[4, 2], [1, 3], [0, 1], [2, 4]]) * 1.0,
        np.array([0, 0, 1, 1]),
    )
    whole, left_out = st.auroc(y, scores), st.leave_one_out(y, scores, patients)
    assert np.isnan(left_out[0, 1])
    expected = [(left_out[0, 0] + whole[1]) / 2, left_out[1].mean()]
    np.testing.assert_allclose(st.macro_without_each(whole, left_out), expected)


@settings(max_examples=40, deadline=None)
@given(
    scored(), some.sampled_from([5, 40])
)  # more and fewer resamples than patients: two algorithms
def test_resampled_auroc_equals_that_of_repeated_records(data, resamples):
    y, scores, patients = data
    drawn, _ = st.patient_resamples(
        y, patients, resamples, np.random.default_rng(resamples)
    )
    found = st.resampled_auroc(y, scores, patients, drawn, block=2)
    for row, counts in zip(found, drawn, strict=True):
        again = np.repeat(np.arange(len(y)), counts[patients].astype(int))
        expected = np.where(
            st.defined_labels(y), st.auroc(y[again], scores[again]), np.nan
        )
        np.testing.assert_allclose(row, expected, atol=1e-12)


def test_resamples_without_the_only_positive_patient_are_redrawn_and_counted():
    y, patients = np.array([[1], [0], [0], [0]]), np.arange(4)
    drawn, redrawn = st.patient_resamples(y, patients, 500, np.random.default_rng(0))
    assert drawn.shape == (500, 4)
    assert (drawn[:, 0] > 0).all()
    assert (drawn.sum(axis=1) == 4).all()
    # A draw misses patient 0 with probability (3/4)^4, or holds nothing else with (1/4)^4.
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
    ratio = st.critical_ratio(confidence, df, heavy, seeds)
    beyond = (1 - heavy) * stats.t.sf(ratio, df) + heavy * stats.t.sf(
        ratio, (seeds - 1) / 2
    )
    assert 2 * beyond == pytest.approx(1 - confidence, rel=1e-6)
    assert st.two_sided_p(-ratio, df, heavy, seeds) == pytest.approx(
        1 - confidence, rel=1e-6
    )


def test_tails_are_heavy_where_patients_and_seeds_both_matter():
    values, seeds = np.arange(10.0), np.array([3.0, 4.5, 6.0])
    both = st.two_way_t(seeds, left_out_means(values) + seeds[:, None], 9)
    share = seeds.var(ddof=1) / 3 / (seeds.var(ddof=1) / 3 + values.var(ddof=1) / 10)
    assert both.heavy == pytest.approx(share * (1 - share) / 3)
    light = stats.t.ppf(0.975, both.df) * both.se
    assert both.ci_high - both.value > light
    assert both.ci_high - both.value == pytest.approx(
        st.critical_ratio(0.95, both.df, both.heavy, 3) * both.se
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
    found = st.combination_t(by_seed, left_out, np.array([1.0, -1.0, 0.0]), 8)
    expected = st.two_way_t(by_seed[0] - by_seed[1], left_out[0] - left_out[1], 8)
    assert asdict(found) == pytest.approx(asdict(expected))


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
