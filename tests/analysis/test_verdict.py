"""Verdicts on families whose answer is known."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from ecgstudy.analysis import statistics as st
from ecgstudy.analysis.verdict import (
    MARGINS,
    adjust_family,
    decide,
    in_words,
    judge_family,
)

ARMS = ("rocl-ip", "rocl-hn", "rocl-ip-hn", "rocl-clef")


def family(deltas, se=0.001, **more):
    """Rows of ``contrasts``: four arms, robust and then clean, with 30 df."""
    rows = []
    for index, delta in enumerate(deltas):
        measure = "ensemble" if index < 4 else "none"
        p = 2 * stats.t.sf(abs(delta) / se, 30)
        row = {
            "dataset": "ptbxl",
            "protocol": "slf",
            "attack": measure,
            "epsilon_mv": 0.02,
            "adaptive": ARMS[index % 4],
            "standard": "rocl",
            "family": "primary",
            "delta": delta,
            "p": p,
            "se": se,
            "df": 30.0,
            "heavy": 0.0,
            "seeds": 3,
            "beyond_seeds": True,
            "ci_low": delta - 2 * se,
            "ci_high": delta + 2 * se,
            "p_holm": np.nan,
            "joint_low": np.nan,
            "joint_high": np.nan,
            "mde": 0.5,
            "masking_ok": True,
        }
        rows.append(row | more)
    return pd.DataFrame(rows)


def judged(contrasts):
    return judge_family(adjust_family(contrasts, 0.95))


@pytest.mark.parametrize(
    ("delta", "p", "p_equivalence", "beyond", "expected"),
    [
        (0.03, 0.05, 0.9, True, "better"),
        (-0.03, 0.01, 0.9, True, "worse"),
        (0.005, 0.01, 0.05, True, "better, by less than 0.01"),
        (-0.005, 0.01, 0.01, True, "worse, by less than 0.01"),
        (0.001, 0.6, 0.01, True, "equivalent"),
        (0.001, 0.051, 0.051, True, "undecided"),
        (0.03, 0.0, 0.0, False, "no claim"),
        (0.0, np.nan, np.nan, True, "undecided"),
    ],
)
def test_a_verdict_follows_from_the_two_adjusted_p(
    delta, p, p_equivalence, beyond, expected
):
    assert decide(delta, p, p_equivalence, beyond) == expected


def test_the_family_is_adjusted_over_its_eight_tests():
    table = adjust_family(
        family([0.003, 0.002, 0.001, 0.0, 0.0025, 0.0, 0.0, 0.0]), 0.95
    )
    p = table["p"].to_numpy()
    assert table["p_holm"][0] == pytest.approx(8 * p[0])
    assert table["p_holm"][4] == pytest.approx(7 * p[4])
    assert table["p_holm"][1] == pytest.approx(6 * p[1])
    half = 0.001 * stats.t.ppf(1 - 0.05 / 8 / 2, 30)
    np.testing.assert_allclose(table["joint_low"], table["delta"] - half)
    np.testing.assert_allclose(table["mde"], half + 0.001 * stats.t.ppf(0.8, 30))


def test_exploratory_rows_are_left_as_they_are():
    rows = family([0.003] * 8).assign(family=["primary"] * 3 + ["exploratory"] * 5)
    table = adjust_family(rows, 0.95)
    rest = table.iloc[3:]
    assert rest[["p_holm", "joint_low", "joint_high"]].isna().all(axis=None)
    assert (rest["mde"] == 0.5).all()
    np.testing.assert_allclose(table["p_holm"][:3], 3 * table["p"][:3])


def test_joint_intervals_and_detectable_differences_end_at_1():
    row = adjust_family(family([0.05], se=0.5), 0.95).iloc[0]
    assert row["joint_low"] == pytest.approx(0.05 - 0.5 * stats.t.ppf(0.975, 30))
    assert (row["joint_high"], row["mde"]) == (1.0, 1.0)


def test_equivalence_is_adjusted_over_the_family_too():
    table = judged(family([0.0] * 7 + [0.009]))
    planned = table[table["margin"] == 0.01]
    each = stats.t.sf(0.01 / 0.001, 30)
    last = stats.t.sf(0.001 / 0.001, 30)
    np.testing.assert_allclose(planned["p_equivalence"], [each] * 7 + [last])
    np.testing.assert_allclose(planned["p_equivalence_holm"], [8 * each] * 7 + [last])
    assert planned["verdict"].tolist()[:7] == ["equivalent"] * 7
    assert planned["verdict"].iloc[7] == "better"


def test_verdicts_are_shown_for_three_margins():
    table = judged(family([0.0] * 8, se=0.0022))
    assert sorted(table["margin"].unique()) == sorted(MARGINS)
    by = table.groupby("margin")["verdict"].agg(set)
    assert by.to_dict() == {
        0.005: {"undecided"},
        0.01: {"equivalent"},
        0.02: {"equivalent"},
    }


def test_a_comparison_without_interval_is_undecided_and_not_counted():
    rows = family([0.003] * 8)
    rows.loc[0, ["p", "se", "df", "heavy"]] = np.nan
    table = judged(rows)
    planned = table[table["margin"] == 0.01]
    assert planned["verdict"].iloc[0] == "undecided"
    np.testing.assert_allclose(planned["p_holm"][1:], 7 * rows["p"][1:])


def test_identical_scores_are_equivalent():
    rows = family([0.0] * 8, se=1.0).assign(se=0.0, p=1.0)
    assert set(judged(rows)["verdict"]) == {"equivalent"}


def test_a_study_without_primary_family_has_no_verdicts():
    table = judged(family([0.003] * 8, family="exploratory"))
    assert table.empty
    assert in_words(table) == {}


def test_the_answer_names_every_arm_once_for_each_measure():
    rows = family([0.03, 0.0, -0.03, 0.0, 0.0, 0.0, 0.0, 0.0])
    rows.loc[2, "masking_ok"] = False
    assert in_words(judged(rows)) == {
        "ptbxl": "Robust AUROC against rocl: better: rocl-ip; equivalent: rocl-hn and"
        " rocl-clef; worse: rocl-ip-hn †. Clean AUROC against rocl: equivalent:"
        " rocl-ip, rocl-hn, rocl-ip-hn and rocl-clef."
    }


def test_too_few_seeds_make_no_claim():
    rows = family([0.03] * 8, seeds=2, beyond_seeds=False)
    assert set(judged(rows)["verdict"]) == {"no claim"}
    assert "2 seeds" in in_words(judged(rows))["ptbxl"]


def test_a_mixed_reference_distribution_is_used_for_both_tests():
    rows = family([0.002] * 8).assign(heavy=0.08, df=10.0, seeds=3)
    t = st.MixedT(10.0, 0.08, 3)
    found = judged(rows)
    planned = found[found["margin"] == 0.01]
    outside = 0.92 * stats.t.sf(8, 10) + 0.08 * stats.t.sf(8, 1)
    assert planned["p_equivalence"].tolist() == pytest.approx([outside] * 8)
    assert t.two_sided_p(8) / 2 == pytest.approx(outside)
