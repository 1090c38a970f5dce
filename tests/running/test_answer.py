"""The verdict follows from the tables alone: hand-made tables, every kind of outcome."""

import numpy as np
import pandas as pd
import pytest

from ecgstudy.running.pages import answer


def contrast(adaptive="rocl-ip", delta=0.03, p=0.01, dataset="mitdb", **other):
    half = 0.01 if p < 0.05 else 0.1
    return {
        "dataset": dataset, "protocol": "slf", "attack": "ensemble", "epsilon_mv": 0.02, "adaptive": adaptive,
        "standard": "rocl", "delta": delta, "ci_low": delta - half, "ci_high": delta + half, "p": p / 2,
        "joint_low": delta - 1.5 * half, "joint_high": delta + 1.5 * half,
        "p_holm": p, "family": "primary", "headline": True, "seeds": 3, "beyond_seeds": True,
        "masking_ok": True, "mde": 0.04, "clean_delta": 0.0,
    } | other  # fmt: skip


def said(*rows):
    return answer.verdict(answer.comparisons(pd.DataFrame(rows), 0.95), 0.95)


@pytest.mark.parametrize(
    ("outcomes", "label"),
    [
        ([0.03, 0.02], "Yes"),
        ([0.03, 0], "In part"),
        ([0.03, -0.02], "Mixed"),
        ([-0.03, 0], "No"),
        ([-0.03, -0.02], "No"),
        ([0, 0], "Undecided"),
    ],
)
def test_the_label_follows_from_the_results(outcomes, label):
    arms = ("rocl-ip", "rocl-hn")
    rows = [
        contrast(a, d or 0.001, 0.01 if d else 0.6)
        for a, d in zip(arms, outcomes, strict=True)
    ]
    assert said(*rows).label == label


def test_decided_comparisons_are_named_with_their_intervals():
    assert said(contrast(delta=0.03), contrast("rocl-hn", -0.004, 0.6)).sentence == (
        "Of 2 comparisons on MIT-BIH, adaptive weighting makes encoders more robust in 1 "
        "(rocl-ip +0.030 [+0.020, +0.040]), undecided in 1."
    )
    assert said(
        contrast(delta=0.03), contrast(delta=-0.02, dataset="ptbxl")
    ).sentence == (
        "Of 2 comparisons on MIT-BIH and PTB-XL, adaptive weighting makes encoders more robust in 1 "
        "(rocl-ip on MIT-BIH +0.030 [+0.020, +0.040]) and less robust in 1 "
        "(rocl-ip on PTB-XL −0.020 [−0.030, −0.010])."
    )


def test_many_undecided_comparisons_are_summed_up():
    arms = ("rocl-ip", "rocl-hn", "rocl-ip-hn", "rocl-clef")
    rows = [
        contrast(arm, d, 1.0)
        for arm, d in zip(arms, (-0.05, 0.005, 0.01, 0.0), strict=True)
    ]
    beyond = "and exclude changes of robust AUROC beyond ±0.200 on MIT-BIH (all but one: ±0.160)."
    assert said(*rows).sentence.endswith(
        f"than the standard loss: the joint 95% intervals of 4 comparisons include 0 {beyond}"
    )
    rows[0] |= {"joint_high": -0.01}  # excludes 0, but not after Holm's correction
    assert said(*rows).sentence.endswith(f"4 comparisons include 0 in 3 {beyond}")


def test_a_tight_null_on_one_data_set_is_not_hidden_by_another():
    rows = [contrast(arm, 0.0, 1.0) for arm in ("rocl-ip", "rocl-hn")]
    rows[1] |= {"joint_low": -0.45}
    rows += [
        row | {"dataset": "ptbxl", "joint_low": -0.01, "joint_high": 0.005}
        for row in rows
    ]
    text = "beyond ±0.010 on PTB-XL (all but one: ±0.010) and ±0.450 on MIT-BIH (all but one: ±0.150)."
    assert said(*rows).sentence.endswith(text)
    assert said(rows[0], rows[2]).sentence.endswith(
        "beyond ±0.010 on PTB-XL and ±0.150 on MIT-BIH."
    )
    assert ": the 95% intervals of 1 comparison include 0" in said(rows[0]).sentence


def test_an_interval_that_excludes_nothing_is_not_said_to():
    rows = [contrast(arm, 0.0, 1.0) for arm in ("rocl-ip", "rocl-hn")]
    rows[1] |= {"joint_low": -1.0, "joint_high": 1.0, "mde": 1.0}
    assert said(*rows).sentence.endswith(
        "exclude changes of robust AUROC beyond ±0.150 on MIT-BIH in 1 of 2."
    )
    assert said(rows[1]).sentence.endswith(
        "nor clearly worse than the standard loss on MIT-BIH."
    )
    size = answer.caveats(rows, {"robust_auroc": robust()}, ["mitdb"], synthetic=False)[
        "Size"
    ]
    assert (
        "True differences smaller than 0.040 to 1 (any), depending on the comparison, would"
        in size
    )


def test_undecided_comparisons_without_intervals_name_the_data():
    row = contrast(delta=0.0, p=1.0) | {"joint_low": np.nan, "joint_high": np.nan}
    assert said(row).sentence.endswith(
        "nor clearly worse than the standard loss on MIT-BIH."
    )


def test_few_seeds_allow_no_claim():
    found = said(
        contrast(seeds=2, beyond_seeds=False),
        contrast("rocl-hn", -0.2, seeds=2, beyond_seeds=False),
    )
    assert found.label == "No claim"
    assert found.sentence == (
        "2 seeds, fewer than 3, allow no claim beyond the models trained here (change of robust AUROC on "
        "MIT-BIH: rocl-ip +0.030 [+0.020, +0.040], rocl-hn −0.200 [−0.210, −0.190])."
    )


def test_a_verdict_on_suspected_models_says_so():
    assert (
        "1 of these by models that may hide their gradients"
        in said(contrast(masking_ok=False)).sentence
    )


def test_without_a_primary_family_adaptive_arms_are_shown_as_exploratory():
    plain = {"family": "exploratory", "p_holm": np.nan}
    rows = [
        contrast("rocl-ip-hn", 0.02, protocol="slf@mitdb", **plain),
        contrast("pgd-at", 0.3, **plain),  # not adaptive
        contrast("rocl-hn-shuffled", 0.1, **plain),  # a control
        contrast("rocl-ip-hn", 0.1, **plain) | {"standard": "rocl-ip"},  # both adaptive
        contrast("rocl-hn", 0.1, **plain)
        | {"standard": "rocl-hn-shuffled"},  # against its control
        contrast("rocl-hn", 0.2, **plain) | {"headline": False},
        contrast("from-a-plugin", -0.1, **plain),
    ]
    found = answer.comparisons(pd.DataFrame(rows), 0.95)
    assert [row["adaptive"] for row in found] == ["rocl-ip-hn", "from-a-plugin"]
    assert answer.verdict(found, 0.95).label == "Exploratory"
    transfer = [contrast("rocl-ip-hn", dataset="ptbxl", protocol="slf@mitdb", **plain)]
    text = answer.verdict(
        answer.comparisons(pd.DataFrame(transfer), 0.95), 0.95
    ).sentence
    assert "change of robust AUROC on MIT-BIH: rocl-ip-hn" in text


def test_a_study_without_comparisons_says_so():
    assert answer.verdict(answer.comparisons(None, 0.95), 0.95).label == "Not tested"
    empty = pd.DataFrame([contrast()]).iloc[:0]
    assert answer.comparisons(empty, 0.95) == []


def robust(seeds=("0", "1", "2", "all")):
    return pd.DataFrame(
        {"dataset": "mitdb", "seed": list(seeds), "n_patients": 21, "n_unidentified": 0}
    )


def test_caveats_tell_size_power_and_data_sets():
    rows = answer.comparisons(
        pd.DataFrame([contrast(), contrast("rocl-hn", mde=0.44)]), 0.95
    )
    found = answer.caveats(rows, {"robust_auroc": robust()}, ["mitdb"], synthetic=False)
    assert found["Size"].startswith(
        "3 seeds and 21 test patients. True differences smaller than 0.040 to 0.440"
    )
    assert found["Data sets"].startswith("One alone, MIT-BIH")
    assert "Simulated ECGs" not in found
    rows += [row | {"dataset": "ptbxl", "mde": 0.01} for row in rows]
    both = pd.concat(
        [robust(), robust().assign(dataset="ptbxl", n_patients=499, n_unidentified=427)]
    )
    assert answer.caveats(
        rows, {"robust_auroc": both}, ["mitdb", "ptbxl"], synthetic=False
    )["Size"] == (
        "3 seeds, 21 test patients on MIT-BIH and 499 test patients on PTB-XL (427 of them records without a "
        "patient id). True differences smaller than 0.040 to 0.440 on MIT-BIH and 0.010 on PTB-XL, depending "
        "on the comparison, would usually be missed (power below 80 %)."
    )
    few = answer.caveats(
        [], {"robust_auroc": robust(["0", "all"])}, ["mitdb", "ptbxl"], synthetic=True
    )
    assert few["Size"].startswith(
        "1 seed and 21 test patients. With fewer than 3 seeds nothing is claimed"
    )
    assert "every data set" in few["Data sets"]
    assert "no evidence about ECGs" in few["Simulated ECGs"]


def test_encoders_that_learned_who_is_who_are_named():
    """−1/17 is the mean cosine of 18 points that lie as far apart as they can."""
    ended = pd.DataFrame({
        "dataset": ["mitdb"] * 3 + ["ptbxl"], "negative_similarity": [-1 / 17, -1 / 17, np.nan, -0.006]
    })  # fmt: skip
    found = answer.caveats(
        [], {"pretraining": ended}, ["mitdb", "ptbxl"], synthetic=False
    )
    assert found["Patients told apart"].startswith(
        "On MIT-BIH the mean cosine of two patients' ECGs ended at −0.059, as low as 18 points can have it"
    )
    assert "PTB-XL" not in found["Patients told apart"]
    assert "Patients told apart" not in answer.caveats(
        [], {"pretraining": ended[3:]}, ["ptbxl"], False
    )


def checks(*verdicts):
    arms = [f"arm{i}" for i in range(len(verdicts))]
    return pd.DataFrame({"dataset": "ptbxl", "arm": arms, "verdict": list(verdicts)})


def test_failed_masking_checks_name_the_models():
    found = answer.caveats(
        [], {"masking_checks": checks("pass", "fail", "no limit")}, ["ptbxl"], False
    )
    assert (
        "1 of 2 checks for that fail: arm1 on PTB-XL (marked †)"
        in found["Gradient masking"]
    )
    found = answer.caveats(
        [], {"masking_checks": checks("pass", "pass")}, ["ptbxl"], False
    )
    assert "All 2 checks for that pass." in found["Gradient masking"]


def test_classes_of_one_patient_and_an_odd_epsilon_are_caveats():
    classes = pd.DataFrame({"dataset": "mitdb", "class": ["F", "F", "N"], "largest_share": [0.93, 0.93, 0.1],
                            "dominated": [True, True, False]})  # fmt: skip
    check = pd.DataFrame({"dataset": "mitdb", "protocol": "slf", "epsilon_mv": [0.05, 0.1],
                          "auroc_shared": [0.7, 0.6],
                          "chosen": [False, True], "in_params": [True, False]})  # fmt: skip
    found = answer.caveats(
        [], {"per_class": classes, "headline_check": check}, ["mitdb"], False
    )
    assert (
        found["Rare classes"]
        == "Most records of these classes come from one patient each: F (93%)."
    )
    assert "the largest is used" in found["Attack budget"]
    assert (
        "On MIT-BIH ε = 0.05 mV is not the 0.1 mV that the rule picks"
        in found["Attack budget"]
    )
    both = pd.concat(
        [
            check.assign(in_params=check["chosen"]),
            check.assign(dataset="ptbxl", protocol="slf@mitdb"),
        ]
    )
    text = answer.caveats([], {"headline_check": both}, ["mitdb"], False)[
        "Attack budget"
    ]
    assert text.count("rule picks") == 1
    assert "On MIT-BIH (encoders from PTB-XL) ε = 0.05 mV is not the 0.1 mV" in text
    fine = check.assign(chosen=[True, False], auroc_shared=0.4)
    assert "Attack budget" not in answer.caveats(
        [], {"headline_check": fine}, ["mitdb"], False
    )


def test_claims_in_short_name_the_deciding_comparison():
    claims = pd.DataFrame({
        "number": [1, 2, 3],
        "claim": ["A helps", "No extra time", "C"],
        "verdict": ["contradicted", "inconclusive", "not tested"],
        "effect": [-0.1, 1.118, np.nan],
        "ci_low": [-0.2, 0.5, np.nan],
        "ci_high": [-0.05, 2.0, np.nan],
        "measure": ["clean", "step_ms", np.nan],
        "evidence": ["a − b, clean, mitdb", "a / b, step_ms, mitdb", np.nan],
        "masking_ok": [False, True, np.nan],
    })  # fmt: skip
    first, second, third = answer.short_claims(claims)
    assert (first["number"], first["text"], first["dagger"]) == (1, "A helps", " †")
    assert first["effect"] == "−0.100 [−0.200, −0.050]"
    assert (first["measure"], first["pair"]) == ("clean AUROC", "a − b, clean, mitdb")
    assert (second["effect"], second["measure"]) == (
        "1.12 [0.5, 2]",
        "ratio of step times",
    )
    assert (third["effect"], third["pair"], third["dagger"]) == ("–", "", "")
    assert answer.short_claims(None) == []


@pytest.mark.parametrize(
    ("place", "name"),
    [
        (("mitdb", "slf"), "MIT-BIH"),
        (("mitdb", "aff"), "MIT-BIH (aff)"),
        (("ptbxl", "slf@mitdb"), "MIT-BIH (encoders from PTB-XL)"),
        (("ward7", "aff@ptbxl"), "PTB-XL (encoders from ward7, aff)"),
    ],
)
def test_places_are_named_by_the_data_tested_on(place, name):
    assert answer.place_name(*place) == name


@pytest.mark.parametrize(
    ("words", "text"), [([], ""), (["a"], "a"), (["a", "b", "c"], "a, b and c")]
)
def test_words_are_listed(words, text):
    assert answer.listed(words) == text
