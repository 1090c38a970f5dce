"""Verdicts of the claims table on contrasts whose answer is known."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from ecgstudy.analysis.claims import (
    CLAIMS,
    claimed_pairs,
    judge_claims,
)
from ecgstudy.analysis.columns import COLUMNS


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


NO_COST = pd.DataFrame(columns=["dataset", "arm", "seed", "protocol", "masking_ok"])


def judged(number, *rows, cost=NO_COST):
    """Row of the claim, and rows of its evidence."""
    columns = list(contrast("a", "b", 0.0))
    claims, evidence = judge_claims(pd.DataFrame(list(rows), columns=columns), cost)
    return claims.iloc[number - 1], evidence[evidence["number"] == number]


def verdict(number, *rows, cost=NO_COST):
    return judged(number, *rows, cost=cost)[0]


def missing(evidence):
    rows = evidence[evidence["verdict"] == "not tested"]
    return rows[["adaptive", "standard", "measure", "dataset"]].values.tolist()


def hard_negatives(robust, clean, **more):
    pair = "rocl-hn", "rocl"
    return [contrast(*pair, robust, **more), contrast(*pair, clean, "clean", **more)]


def test_all_fourteen_claims_are_listed_and_untested_without_results():
    no_contrasts = pd.DataFrame(columns=list(contrast("a", "b", 0.0)))
    claims, evidence = judge_claims(no_contrasts, NO_COST)
    assert list(claims.columns) == COLUMNS["claims"]
    assert list(evidence.columns) == COLUMNS["claim_evidence"]
    assert list(claims["number"]) == list(CLAIMS) == list(range(1, 15))
    assert set(claims["verdict"]) == set(evidence["verdict"]) == {"not tested"}
    assert len(evidence) == sum(len(claim["parts"]) for claim in CLAIMS.values())
    assert not evidence["decides"].any()


@pytest.mark.parametrize(
    ("robust", "clean", "expected"),
    [
        (0.05, 0.05, "supported"),
        (0.05, 0.0, "inconclusive"),
        (0.05, -0.05, "contradicted"),
        (-0.05, -0.05, "contradicted"),
        (0.001, 0.001, "equivalent"),
        (0.05, 0.001, "inconclusive"),
        (0.009, 0.009, "supported"),
        (0.0, 0.0, "equivalent"),
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
    one = contrast("rocl-ip-hn", "rocl", 0.05, dataset="ptbxl")
    row, evidence = judged(4, *whole, one)
    assert row["verdict"] == "supported"
    assert missing(evidence)[0] == ["rocl-ip-hn", "rocl-ip", "robust", "ptbxl"]
    unclear = contrast("rocl-ip-hn", "rocl", 0.0, dataset="ptbxl")
    assert verdict(4, *whole, unclear)["verdict"] == "inconclusive"


def test_a_part_of_one_data_set_contradicts_no_claim_of_two():
    bases = "rocl-ip", "rocl-hn", "rocl"
    rows = [
        contrast("rocl-ip-hn", base, -0.05 if base == "rocl" else 0.05)
        for base in bases
    ]
    assert verdict(4, *rows)["verdict"] == "contradicted"
    other = contrast("rocl-ip-hn", "rocl-ip", 0.05, dataset="ptbxl")
    assert verdict(4, *rows, other)["verdict"] == "inconclusive"


def test_evidence_is_a_row_a_comparison_and_says_which_one_decides():
    rows = [
        *hard_negatives(0.05, 0.1, masking_ok=False),
        *hard_negatives(-0.2, 0.3, dataset="ptbxl", seed_list="1 2"),
    ]
    claim, evidence = judged(2, *rows)
    columns = ["measure", "dataset", "value", "verdict", "seed_list", "masking_ok"]
    assert evidence[columns].values.tolist() == [
        ["robust", "mitdb", 0.05, "supported", "0 1 2", False],
        ["robust", "ptbxl", -0.2, "contradicted", "1 2", True],
        ["clean", "mitdb", 0.1, "supported", "0 1 2", False],
        ["clean", "ptbxl", 0.3, "supported", "1 2", True],
    ]
    assert evidence["decides"].tolist() == [False, True, False, False]
    assert claim["effect"] == -0.2
    assert claim["evidence"] == "rocl-hn − rocl, robust, ptbxl"
    assert not claim["masking_ok"]


def test_of_two_effects_that_look_alike_the_weaker_decides():
    rows = [*hard_negatives(0.05, 0.05), *hard_negatives(0.05, 0.05, se=0.002)]
    rows[2]["dataset"] = rows[3]["dataset"] = "ptbxl"
    claim, evidence = judged(2, *rows)
    assert evidence.loc[evidence["decides"], "dataset"].tolist() == ["ptbxl"]
    assert claim["ci_low"] == evidence.loc[evidence["decides"], "ci_low"].item()


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
    for delta in (0.05, 0.0):
        row, evidence = judged(2, *hard_negatives(delta, delta, beyond_seeds=False))
        assert row["verdict"] == "inconclusive"
        assert set(evidence["verdict"]) == {"inconclusive"}


def test_a_model_that_fails_its_masking_checks_marks_the_claim():
    assert not verdict(2, *hard_negatives(0.05, 0.05, masking_ok=False))["masking_ok"]
    assert verdict(2, *hard_negatives(0.05, 0.05))["masking_ok"]


def test_a_missing_arm_means_not_tested_unless_any_base_will_do():
    row, evidence = judged(4, contrast("rocl-ip-hn", "rocl", 0.05))
    assert row["verdict"] == "not tested"
    assert np.isnan(row["effect"])
    assert ["rocl-ip-hn", "rocl-ip", "robust", "mitdb"] in missing(evidence)
    pair = "rocl-ip", "rocl"
    rows = contrast(*pair, 0.05), contrast(*pair, 0.05, "clean")
    row, evidence = judged(1, *rows)
    assert row["verdict"] == "supported"
    assert ["advcl-ip", "advcl", "clean", "mitdb"] in missing(evidence)


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
            "masking_ok": True,
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
    def confused(**changed):
        shares = {
            "simclr": [0.5, 0.51, 0.5],
            "rocl": [0.3, 0.31, 0.3],
            "rocl_ip": [0.2, 0.2, 0.21],
        }
        shares |= changed
        return measured(
            "identity_confusion", {k.replace("_", "-"): v for k, v in shares.items()}
        )

    assert verdict(14, cost=confused())["verdict"] == "supported"
    swapped = confused(rocl=[0.02, 0.02, 0.01], rocl_ip=[0.2, 0.2, 0.2])
    assert verdict(14, cost=swapped)["verdict"] == "contradicted"
    unmoved, evidence = judged(14, cost=confused(simclr=[0.0, 0.2, 0.0]))
    assert unmoved["verdict"] == "inconclusive"
    first = evidence.iloc[0]
    assert (first["adaptive"], first["standard"]) == ("simclr", "unattacked")
    assert first["value"] == pytest.approx(0.2 / 3)
    none = confused(simclr=[0.0] * 3, rocl=[0.0] * 3, rocl_ip=[0.0] * 3)
    assert verdict(14, cost=none)["verdict"] == "inconclusive"
    other = confused().rename(columns={"identity_confusion": "something_else"})
    assert verdict(14, cost=other)["verdict"] == "not tested"
    assert not verdict(14, cost=confused().assign(masking_ok=False))["masking_ok"]


def test_pairs_that_claims_compare_are_listed_once():
    pairs = claimed_pairs()
    assert len(pairs) == len(set(pairs))
    assert ("anchor", "trades") in pairs
    # Compared by identity confusion, not by AUROC.
    assert all("unattacked" not in pair for pair in pairs)


def test_intervals_of_differences_end_where_auroc_does():
    row = verdict(2, *hard_negatives(-0.05, 0.0, se=5.0, seeds=3, df=2.0))
    assert (row["ci_low"], row["ci_high"]) == (-1.0, 1.0)
