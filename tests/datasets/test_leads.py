"""Leads from other leads, against Einthoven's and Goldberger's formulas by hand."""

import numpy as np
import pytest

from ecgstudy.datasets.leads import derive_leads, lead_weights


def derived(wanted, given):
    weights = lead_weights((*given, *wanted))
    return derive_leads(weights[len(given) :], weights[: len(given)])


BY_HAND = {
    "III": (-1, 1),
    "aVR": (-1 / 2, -1 / 2),
    "aVL": (1, -1 / 2),
    "aVF": (-1 / 2, 1),
    "I": (1, 0),
    "MLII": (0, 1),
}
"""As combinations of I and II."""


@pytest.mark.parametrize("lead", BY_HAND)
def test_two_limb_leads_give_the_other_limb_leads(lead):
    matrix, possible = derived([lead], ["I", "II"])
    np.testing.assert_allclose(matrix[0], BY_HAND[lead], atol=1e-12)
    assert possible.all()


def test_a_lead_that_is_given_is_taken_as_it_was_recorded():
    given = ["I", "II", "III", "aVR", "V1"]
    matrix, _ = derived(given, given)
    assert (matrix == np.eye(5)).all()


def test_the_negative_of_a_given_lead_is_taken_as_it_was_recorded():
    weights = lead_weights(["I", "II", "III"])
    matrix, possible = derive_leads(-weights[1:2], weights)
    assert (matrix == [[0, -1, 0]]).all()
    assert possible.all()


def test_leads_of_other_electrodes_cannot_be_derived():
    _, possible = derived(["III", "V2", "ECG"], ["I", "II", "V1"])
    assert possible.tolist() == [True, False, False]
