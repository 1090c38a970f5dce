"""Attacks whose name says which leads they may change."""

import numpy as np
import pytest
import torch
from toy import toy_records, toy_run
from victims import attack_run, fitted

from ecgstudy.attacks.named import ATTACKS, get_attack
from ecgstudy.errors import StudyError
from ecgstudy.params import split_leads
from ecgstudy.study import AttackOptions, Study


def attacked(names, **options):
    """The run, and δ of the attacks `names` on the toy records at 0.1 mV."""
    options = AttackOptions(steps=3, queries=3, **options)
    one = attack_run(fitted()[0], toy_records(multilabel=True), options)
    return one, {name: one.attack(name, 0.1) for name in names}


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("apgd-margin", ("apgd-margin", ())),
        ("apgd-margin[II]", ("apgd-margin", ("II",))),
        ("sap[V1+aVF+MLII]", ("sap", ("V1", "aVF", "MLII"))),
    ],
)
def test_leads_stand_in_brackets_behind_the_attack(name, parts):
    assert split_leads(name) == parts
    assert get_attack(name) is ATTACKS[parts[0]]


@pytest.mark.parametrize(
    "name",
    [
        "fgsm[]",
        "fgsm[II",
        "fgsm[I+]",
        "fgsm[+I]",
        "fgsm[I]x",
        "fgsm[I][II]",
        "[I]",
        "slow[I]",
        "fgsm[[I]]",
    ],
)
def test_a_name_that_cannot_be_read_is_an_error(name):
    with pytest.raises(StudyError, match=r"unknown attack .*known: noise, fgsm"):
        get_attack(name)
    content = toy_run("simclr").study.model_dump(mode="json")
    with pytest.raises(StudyError, match="unknown attack"):
        Study.model_validate({**content, "evaluation": {"attacks": [name]}})


def test_a_study_may_name_leads():
    content = toy_run("simclr").study.model_dump(mode="json")
    study = Study.model_validate(
        {**content, "evaluation": {**content["evaluation"], "attacks": ["sap[I+II]"]}}
    )
    assert study.evaluation.attacks == ["sap[I+II]"]


@pytest.mark.parametrize(
    "base",
    [
        "noise",
        "fgsm",
        "apgd-margin",
        "square",
        "sap",
        "band-mid",
        "universal",
        "label-free",
    ],
)
def test_the_other_leads_stay_as_they_were(base):
    one, seen = attacked([f"{base}[II]"], query_records=None)
    delta = seen[f"{base}[II]"]
    assert (delta[:, 0] == 0).all()
    assert 0 < delta[:, 1].abs().max() <= torch.tensor(0.1)
    stored, again = (
        one.scores(f"{base}[II]", 0.1),
        one.victim.scores(one.signals + delta),
    )
    np.testing.assert_allclose(stored, again, rtol=1e-4, atol=1e-5)


def test_all_leads_by_name_are_no_restriction():
    _, seen = attacked(["fgsm[I+II]"])
    _, whole = attacked(["fgsm"])
    assert torch.equal(seen["fgsm[I+II]"], whole["fgsm"])


def test_queries_are_spent_on_few_records_on_some_leads_too():
    one, seen = attacked(["square[I]"], query_records=7)
    for values in (seen["square[I]"], one.scores("square[I]", 0.1)):
        assert (~values.flatten(1).isnan()).all(1).sum() == 7


def test_an_unknown_lead_is_an_error_that_names_those_there_are():
    with pytest.raises(
        StudyError, match="no lead 'V7' to attack; leads of the records: I, II"
    ):
        attacked(["fgsm[I+V7]"])
