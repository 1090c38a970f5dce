"""Verdicts of the claims table on contrasts whose answer is known."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from ecgstudy.analysis.claims import (
    CLAIMS,
    COLUMNS,
    claimed_pairs,
    compared,
    decider,
    judge,
)


def contrast(
    adaptive,
    standard,
    delta,
    measure="robust",
    se=0.001,
    dataset="mitdb",
    protocol="slf",
    **more,
):
    robust = measure == "robust"
    row = {
        "dataset": dataset,
        "protocol": protocol,
        "attack": "pgd-margin" if robust else "none",
        "adaptive": adaptive,
        "standard": standard,
        "delta": delta,
        "se": se,
        "df": 10.0,
        "heavy": 0.0,
        "seeds": 3,
        "headline": robust,
        "beyond_seeds": True,
        "masking_ok": True,
        "seed_list": "0 1 2",
    }
    return row | more


NO_COST = pd.DataFrame(columns=["dataset", "arm", "seed", "protocol"])


def verdict(number, *rows, cost=NO_COST):
    columns = list(contrast("a", "b", 0.0))
    table = judge(pd.DataFrame(list(rows), columns=columns), cost)
    return table.iloc[number - 1]


def hard_negatives(robust, clean, **more):
    pair = "rocl-hn", "rocl"
    return [contrast(*pair, robust, **more), contrast(*pair, clean, "clean", **more)]


def test_all_fourteen_claims_are_listed_and_untested_without_results():
    table = judge(pd.DataFrame(columns=list(contrast("a", "b", 0.0))), NO_COST)
    assert list(table.columns) == COLUMNS
    assert (
        list(table["claim"].str.split(".").str[0].astype(int))
        == list(CLAIMS)
        == list(range(1, 15))
    )
    assert set(table["verdict"]) == {"not tested"}
    assert table["evidence"].str.startswith("missing: ").all()


@pytest.mark.parametrize(
    ("robust", "clean", "expected"),
    [
        (0.05, 0.05, "supported"),
        (0.05, 0.0, "inconclusive"),
        (0.05, -0.05, "contradicted"),
        (-0.05, -0.05, "contradicted"),
        (0.001, 0.001, "inconclusive"),
    ],
)
def test_a_claim_of_two_parts_needs_both_and_falls_with_one(robust, clean, expected):
    assert verdict(2, *hard_negatives(robust, clean))["verdict"] == expected


@pytest.mark.parametrize(
    ("second", "expected"),
    [(0.05, "supported"), (0.0, "inconclusive"), (-0.05, "inconclusive")],
)
def test_every_data_set_must_agree(second, expected):
    rows = hard_negatives(0.05, 0.05) + hard_negatives(second, second, dataset="ptbxl")
    assert verdict(2, *rows)["verdict"] == expected


def test_a_claim_of_several_parts_is_tested_where_one_data_set_has_them_all():
    bases = "rocl-ip", "rocl-hn", "rocl"
    whole = [contrast("rocl-ip-hn", base, 0.05) for base in bases]
    apart = [
        contrast("rocl-ip-hn", b, 0.05, dataset=d)
        for b, d in zip(bases, "abb", strict=True)
    ]
    assert verdict(4, *apart)["verdict"] == "not tested"
    row = verdict(4, *whole, contrast("rocl-ip-hn", "rocl", 0.05, dataset="ptbxl"))
    assert row["verdict"] == "supported"
    assert (
        "missing: rocl-ip-hn against rocl-ip (robust, slf) on ptbxl, "
        in row["evidence"]
    )
    assert (
        verdict(4, *whole, contrast("rocl-ip-hn", "rocl", 0.0, dataset="ptbxl"))[
            "verdict"
        ]
        == "inconclusive"
    )


def test_a_part_of_one_data_set_contradicts_no_claim_of_two():
    bases = "rocl-ip", "rocl-hn", "rocl"
    rows = [
        contrast("rocl-ip-hn", base, -0.05 if base == "rocl" else 0.05)
        for base in bases
    ]
    assert verdict(4, *rows)["verdict"] == "contradicted"
    assert (
        verdict(4, *rows, contrast("rocl-ip-hn", "rocl-ip", 0.05, dataset="ptbxl"))[
            "verdict"
        ]
        == "inconclusive"
    )


def test_the_runs_that_a_verdict_rests_on_are_named():
    rows = hard_negatives(0.05, 0.05) + hard_negatives(
        0.05, 0.05, dataset="ptbxl", seed_list="1 2"
    )
    assert (
        verdict(2, *rows)["runs"]
        == "mitdb slf: rocl-hn, rocl, seeds 0 1 2; ptbxl slf: rocl-hn, rocl, seeds 1 2"
    )
    assert verdict(2)["runs"] == ""


def test_intervals_are_adjusted_for_the_parts_and_data_sets_of_the_claim():
    row = verdict(2, *hard_negatives(0.05, 0.06))
    half = stats.t.ppf(1 - 0.05 / 2 / 2, 10) * 0.001
    assert (row["effect"], row["ci_low"], row["ci_high"]) == pytest.approx(
        (0.05, 0.05 - half, 0.05 + half)
    )
    borderline = 0.001 * stats.t.ppf(0.975, 10) * 1.01  # beyond 0 alone, not among two
    assert verdict(2, *hard_negatives(borderline, 0.05))["verdict"] == "inconclusive"
    assert (
        verdict(10, contrast("clef", "simclr", borderline, "clean"))["verdict"]
        == "supported"
    )


def test_intervals_have_the_tails_of_their_contrast():
    row = verdict(10, contrast("clef", "simclr", 0.05, "clean", heavy=0.08))
    half = row["effect"] - row["ci_low"]
    ratio = half / 0.001
    assert 0.92 * stats.t.sf(ratio, 10) + 0.08 * stats.t.sf(ratio, 1) == pytest.approx(
        0.025
    )


def test_too_few_seeds_decide_nothing():
    row = verdict(2, *hard_negatives(0.05, 0.05, beyond_seeds=False))
    assert row["verdict"] == "inconclusive"
    assert "fewer than 3 seeds" in row["evidence"]


def test_a_model_that_fails_its_masking_checks_is_named_in_the_evidence():
    assert (
        "masking"
        in verdict(2, *hard_negatives(0.05, 0.05, masking_ok=False))["evidence"]
    )
    assert "masking" not in verdict(2, *hard_negatives(0.05, 0.05))["evidence"]


def test_a_missing_arm_means_not_tested_unless_any_base_will_do():
    row = verdict(4, contrast("rocl-ip-hn", "rocl", 0.05))
    assert row["verdict"] == "not tested"
    assert np.isnan(row["effect"])
    assert "missing: rocl-ip-hn against rocl-ip" in row["evidence"]
    pair = "rocl-ip", "rocl"
    row = verdict(1, contrast(*pair, 0.05), contrast(*pair, 0.05, "clean"))
    assert row["verdict"] == "supported"
    assert "missing: advcl-ip against advcl" in row["evidence"]


def test_robust_claims_read_the_headline_row_only():
    other = contrast("advcl-ip", "advcl", -0.5, headline=False)
    row = verdict(3, other, contrast("advcl-ip", "advcl", 0.05))
    assert (row["verdict"], row["effect"]) == ("supported", 0.05)


@pytest.mark.parametrize(
    ("deltas", "expected"),
    [
        ((0.05, 0.001, 0.001), "supported"),
        ((0.05, 0.05, -0.001), "inconclusive"),
        ((0.05, 0.05, -0.05), "contradicted"),
        ((0.001, 0.001, 0.001), "inconclusive"),
    ],
)
def test_the_gain_must_have_one_sign_under_all_protocols(deltas, expected):
    pair = "rocl-ip-hn", "rocl"
    rows = [
        contrast(*pair, d, protocol=p)
        for d, p in zip(deltas, ("slf", "alf", "aff"), strict=True)
    ]
    assert verdict(8, *rows)["verdict"] == expected
    assert verdict(8, *rows[:2])["verdict"] == "not tested"


def test_transfer_is_read_from_protocols_with_a_target():
    pair = "rocl-ip-hn", "rocl"
    assert verdict(9, contrast(*pair, 0.05))["verdict"] == "not tested"
    assert (
        verdict(9, contrast(*pair, 0.05, protocol="slf@ptbxl"))["verdict"]
        == "supported"
    )


def test_equal_clean_performance_is_a_lower_bound_above_minus_one_hundredth():
    standards = "pgd-at", "advcl", "ascl", "trades"
    rows = [contrast("anchor", s, 0.05) for s in standards]
    equal = [contrast("anchor", s, -0.001, "clean") for s in standards]
    assert verdict(11, *rows, *equal)["verdict"] == "supported"
    worse = [contrast("anchor", s, -0.05, "clean") for s in standards]
    assert verdict(11, *rows, *worse)["verdict"] == "contradicted"


def measured(measure, by_arm):
    rows = [
        {
            "dataset": "mitdb",
            "arm": arm,
            "seed": seed,
            "protocol": "slf",
            measure: value,
        }
        for arm, values in by_arm.items()
        for seed, value in enumerate(values)
    ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("factor", "expected"),
    [(1.0, "supported"), (1.05, "inconclusive"), (1.2, "contradicted")],
)
def test_step_time_is_judged_by_the_upper_bound_of_its_ratio(factor, expected):
    jitter = np.array([1.0, 1.001, 0.999, 1.0])
    slow = {arm: 12 * factor * jitter for arm in ("rocl-ip", "rocl-hn", "rocl-ip-hn")}
    row = verdict(6, cost=measured("step_ms", slow | {"rocl": [12, 12, 12, 12]}))
    assert row["verdict"] == expected
    assert row["effect"] == pytest.approx(factor, rel=1e-3)


def test_attacks_must_confuse_identities_and_inferior_positives_less():
    shares = {
        "simclr": [0.5, 0.51, 0.5],
        "rocl": [0.3, 0.31, 0.3],
        "rocl-ip": [0.2, 0.2, 0.21],
    }
    assert (
        verdict(14, cost=measured("identity_confusion", shares))["verdict"]
        == "supported"
    )
    swapped = shares | {"rocl": [0.02, 0.02, 0.01], "rocl-ip": [0.2, 0.2, 0.2]}
    assert (
        verdict(14, cost=measured("identity_confusion", swapped))["verdict"]
        == "contradicted"
    )
    unmoved = verdict(
        14, cost=measured("identity_confusion", shares | {"simclr": [0.0, 0.2, 0.0]})
    )
    assert unmoved["verdict"] == "inconclusive"
    assert (
        "simclr − unattacked, identity_confusion, mitdb: 0.0667 ["
        in unmoved["evidence"]
    )
    none = {arm: [0.0, 0.0, 0.0] for arm in ("simclr", "rocl", "rocl-ip")}
    assert (
        verdict(14, cost=measured("identity_confusion", none))["verdict"]
        == "inconclusive"
    )
    assert (
        verdict(14, cost=measured("something_else", shares))["verdict"] == "not tested"
    )
    row = verdict(
        14, cost=measured("identity_confusion", shares).assign(masking_ok=False)
    )
    assert row["runs"] == "mitdb slf: simclr, rocl-ip, rocl, seeds 0 1 2"
    assert "seeds alone vary" in row["evidence"]
    assert "masking suspected" in row["evidence"]


def test_pairs_that_claims_compare_are_listed_once():
    pairs = claimed_pairs()
    assert len(pairs) == len(set(pairs))
    assert ("anchor", "trades") in pairs
    assert all(
        "unattacked" not in pair for pair in pairs
    )  # compared by identity confusion, not by AUROC


def test_intervals_of_differences_end_where_auroc_does():
    row = verdict(2, *hard_negatives(-0.05, 0.0, se=5.0, seeds=3, df=2.0))
    assert (row["ci_low"], row["ci_high"]) == (-1.0, 1.0)
    assert "rocl-hn − rocl, clean, mitdb: 0.0000 [-1.0000, 1.0000]" in row["evidence"]


def test_evidence_is_read_as_it_was_written():
    rows = [
        *hard_negatives(0.05, 0.1, masking_ok=False),
        *hard_negatives(-0.2, 0.3, dataset="ptbxl"),
    ]
    row = verdict(2, *rows)
    parts = compared(row["evidence"])
    assert [
        (p["pair"], p["measure"], p["place"], float(p["value"])) for p in parts
    ] == [
        ("rocl-hn − rocl", "robust", "mitdb", 0.05),
        ("rocl-hn − rocl", "robust", "ptbxl", -0.2),
        ("rocl-hn − rocl", "clean", "mitdb", 0.1),
        ("rocl-hn − rocl", "clean", "ptbxl", 0.3),
    ]
    assert [part["verdict"] for part in parts] == [
        "supported",
        "contradicted",
        "supported",
        "supported",
    ]
    assert [part["remark"] for part in parts] == [
        " (gradient masking suspected)",
        "",
        " (gradient masking suspected)",
        "",
    ]
    assert decider(row) == parts[1]
    assert compared(verdict(3)["evidence"]) == compared(np.nan) == []
    assert decider(verdict(3)) == {}
