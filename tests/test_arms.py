"""Arms are rows of factors: names resolve, rows are plain data, impossible combinations are errors."""

import dataclasses
import json

import pandas as pd
import pytest

from ecgstudy import arms, weighting
from ecgstudy.arms import ARMS, HN, IP, ROCL, Arm, arm_row, bases, factor_table, get_arm
from ecgstudy.errors import StudyError


def changed(name):
    """Factors in which an arm differs from its base."""
    arm, base = get_arm(name), get_arm(get_arm(name).base)
    says_who = {"group", "idea", "source", "base", "sets_headline"}
    keys = {field.name for field in dataclasses.fields(Arm)} - says_who
    return {key for key in keys if getattr(arm, key) != getattr(base, key)}


def test_every_base_is_an_arm_and_not_adaptive():
    for name, base in bases().items():
        assert base in ARMS, name
        assert ARMS[base].weighting == (), name


@pytest.mark.parametrize(
    ("name", "factors"),
    [
        ("pgd-at", {"adversary"}),
        ("hcl", {"weighting", "tau_plus"}),
        ("clef", {"weighting"}),
        ("rocl", {"adversary", "side"}),
        ("rocl-ip", {"weighting"}),
        ("rocl-debiased", {"tau_plus"}),
        ("rocl-hn", {"weighting", "tau_plus"}),
        ("rocl-ip-hn", {"weighting", "tau_plus"}),
        ("rocl-clef", {"weighting"}),
    ],
)
def test_an_arm_differs_from_its_base_in_what_it_is_named_for(name, factors):
    assert changed(name) == factors


def test_published_options_are_kept():
    assert ARMS["rocl-ip"].weighting == (("inferior-positives", {"alpha": 0.2}),)
    assert ARMS["hcl"].weighting == ARMS["rocl-hn"].weighting == (("hard-negatives", {"beta": 1.0}),)
    assert {name for name, arm in ARMS.items() if arm.tau_plus == 0.1} == {
        "hcl", "rocl-debiased", "rocl-hn", "rocl-ip-hn",
    }  # fmt: skip
    assert ARMS["rocl-ip-hn"].weighting == ARMS["rocl-ip"].weighting + ARMS["rocl-hn"].weighting


def test_one_arm_chooses_the_headline_epsilon():
    assert [name for name, arm in ARMS.items() if arm.sets_headline] == ["supervised"]


def test_rows_are_plain_json_and_rebuild_the_arm():
    for name in ARMS:
        row = json.loads(json.dumps(arm_row(name)))
        schemes = tuple((scheme, options) for scheme, options in row.pop("weighting"))
        assert Arm(**row, weighting=schemes) == ARMS[name]


def test_the_factor_table_is_the_design_of_the_experiment():
    expected = pd.DataFrame(
        {
            "adversary": [False, True, True, True],
            "debiased": [True, False, True, False],
            "hard_negatives": [True, False, True, False],
            "inferior_positives": [False, False, True, False],
            "clinical_risk": [False, False, False, True],
        },
        index=pd.Index(["hcl", "rocl", "rocl-ip-hn", "rocl-clef"], name="arm"),
    )
    names = ["supervised", "hcl", "rocl", "random", "rocl-ip-hn", "rocl-clef"]
    pd.testing.assert_frame_equal(factor_table(names), expected, check_like=True)
    assert set(factor_table().index) == {name for name, arm in ARMS.items() if arm.objective == "contrast"}


def test_bases_of_some_arms_only():
    assert bases(["simclr", "rocl", "rocl-ip"]) == {"rocl": "simclr", "rocl-ip": "rocl"}


def test_only_arms_with_clinical_weights_use_the_risk():
    assert {name for name, arm in ARMS.items() if arm.uses_risk} == {"clef", "rocl-clef"}


def test_an_unknown_arm_is_an_error_that_names_those_there_are():
    with pytest.raises(StudyError, match=r"unknown arm 'rocl-ipp'; known: random, supervised, .*rocl-clef"):
        get_arm("rocl-ipp")


@pytest.mark.parametrize("adversary", ["none", "record"])
def test_inferior_positives_without_an_adversarial_view_are_an_error(adversary):
    with pytest.raises(StudyError, match="inferior positives weigh clean-adversarial pairs"):
        Arm("adaptive", "", "", weighting=IP, adversary=adversary)
    assert Arm("adaptive", "", "", weighting=IP, **ROCL).weighting == IP


@pytest.mark.parametrize("objective", ["labels", "none"])
def test_weights_without_a_contrastive_loss_are_an_error(objective):
    with pytest.raises(StudyError, match=r"'hard-negatives'.* need the contrastive objective, not"):
        Arm("reference", "", "", objective=objective, weighting=HN)


def test_an_arm_with_an_unregistered_scheme_is_an_error(monkeypatch):
    own = {"mine": Arm("adaptive", "", "", weighting=(("far-negatives", {}),), base="simclr")}
    monkeypatch.setattr(arms, "ARMS", {**ARMS, **own})
    with pytest.raises(
        StudyError, match="arm 'mine' uses the unknown weighting scheme 'far-negatives'; known: h"
    ):
        get_arm("mine")


def test_an_arm_with_a_new_scheme_is_one_row(monkeypatch):
    monkeypatch.setattr(arms, "ARMS", {**ARMS, "mine": Arm("adaptive", "", "", weighting=(("new", {}),))})
    schemes = {**weighting.SCHEMES, "new": lambda similarity, pairs, weights: weights}
    monkeypatch.setattr(weighting, "SCHEMES", schemes)
    monkeypatch.setattr(arms, "SCHEMES", schemes)
    assert get_arm("mine").weighting == (("new", {}),)
    assert bool(factor_table(["mine"]).loc["mine", "new"])
