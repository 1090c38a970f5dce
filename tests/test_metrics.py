"""AUROC against scikit-learn, enumerated pairs, and computing it again."""

import numpy as np
import pytest
from hypothesis import given, settings
from sklearn.metrics import average_precision_score, roc_auc_score
from small_scores import pairwise, scored

from ecgstudy import metrics
from ecgstudy.analysis.statistics import draw_patients


@settings(max_examples=60, deadline=None)
@given(scored())
def test_auroc_and_average_precision_equal_scikit_learn_and_pair_enumeration(data):
    y, scores, _ = data
    defined = metrics.defined_labels(y)
    found, precision = metrics.auroc(y, scores), metrics.average_precision(y, scores)
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
    found = metrics.auroc(y, scores)
    np.testing.assert_allclose(metrics.auroc(y, -scores), 1 - found, atol=1e-12)
    np.testing.assert_array_equal(metrics.auroc(y, np.exp(scores)), found)


def test_auroc_of_perfectly_wrong_scores_is_zero_and_not_clipped():
    assert (
        metrics.auroc(
            np.array([[0], [0], [1], [1]]), np.array([[3.0], [4.0], [1.0], [2.0]])
        )
        == 0
    )


def test_macro_leaves_out_absent_classes_only():
    assert metrics.macro(np.array([0.2, np.nan, 0.6])) == pytest.approx(0.4)
    assert np.isnan(metrics.macro(np.array([np.nan, np.nan])))


@settings(max_examples=60, deadline=None)
@given(scored())
def test_leave_one_out_equals_recomputing_without_each_patient(data):
    y, scores, patients = data
    found = metrics.leave_one_out(y, scores, patients)
    brute = [
        metrics.auroc(y[patients != g], scores[patients != g])
        for g in range(patients.max() + 1)
    ]
    brute = np.where(metrics.defined_labels(y), np.array(brute), np.nan)
    np.testing.assert_allclose(found, brute, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(scored())
def test_resampled_auroc_equals_that_of_repeated_records(data):
    y, scores, patients = data
    drawn, _ = draw_patients(y, patients, 20, np.random.default_rng(0))
    found = metrics.resampled_auroc(y, scores, patients, drawn)
    for row, counts in zip(found, drawn, strict=True):
        again = np.repeat(np.arange(len(y)), counts[patients].astype(int))
        expected = np.where(
            metrics.defined_labels(y), metrics.auroc(y[again], scores[again]), np.nan
        )
        np.testing.assert_allclose(row, expected, atol=1e-12)
