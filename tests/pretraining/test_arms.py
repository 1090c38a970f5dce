"""Arms: names resolve, rows are data, impossible combinations are errors."""

import dataclasses
import json

import pandas as pd
import pytest

from ecgstudy.errors import StudyError
from ecgstudy.pretraining import suffixes as factors
from ecgstudy.pretraining.arms import (
    ARMS,
    HARD_NEGATIVES,
    ROCL_LOSSES,
    TWO_VIEWS,
    Adversary,
    Arm,
    Loss,
)
from ecgstudy.pretraining.inner_attack import OBJECTIVES
from ecgstudy.pretraining.losses import LOSSES, PARTS
from ecgstudy.pretraining.suffixes import (
    arm_names,
    bases,
    control_pairs,
    describe_arm,
    factor_table,
    get_arm,
)
from ecgstudy.registry import WEIGHTINGS

IP, RISK = (("inferior-positives", {"alpha": 0.2}),), (("clinical-risk", {}),)
DESIGN = """
    random supervised pgd-at trades mart features-lr features-tree features-forest
    simclr simclr-long supcon debiased hcl dclw clef clef-original rocl acl advcl clae
    swaro claf dynacl deacl rocl-ip rocl-debiased rocl-hn rocl-ip-hn advcl-ip advcl-hn
    advcl-ip-hn acl-hn claf-ip-hn rocl-clef rocl-clef-ip-hn adv-supcon
    adv-supcon-labels adv-supcon-noise supcon-margin anchor ascl clae-supcon clae-hcl
    rocl-long
""".split()


def changed(name, base=None):
    """Factors in which an arm differs from its base."""
    arm, base = get_arm(name), get_arm(base or get_arm(name).base)
    says_who = {"group", "idea", "source", "base", "sets_headline", "original"} | {
        "original_attack"
    }
    keys = {field.name for field in dataclasses.fields(Arm)} - says_who
    return {key for key in keys if getattr(arm, key) != getattr(base, key)}


def test_every_arm_of_the_design_is_there_once():
    assert sorted(arm_names()) == sorted(DESIGN)


def test_every_base_is_an_arm():
    for name, base in bases().items():
        assert base in arm_names(), name
        assert base != name


def test_bases_lead_to_a_reference_or_simclr():
    for name in arm_names():
        seen = [name]
        while (base := get_arm(seen[-1]).base) is not None:
            assert base not in seen
            seen.append(base)
        assert seen[-1] in (
            "simclr",
            "supervised",
            "random",
            "features-lr",
            "features-tree",
            "features-forest",
        )


@pytest.mark.parametrize(
    ("name", "factors"),
    [
        ("pgd-at", {"adversary", "losses"}),
        ("simclr-long", {"epochs"}),
        ("supcon", {"weighting"}),
        ("debiased", {"tau_plus"}),
        ("hcl", {"weighting", "tau_plus"}),
        ("clef", {"weighting"}),
        ("dclw", {"weighting", "loss_options"}),
        ("rocl", {"adversary", "losses"}),
        ("rocl-long", {"epochs"}),
        ("rocl-ip", {"weighting"}),
        ("rocl-debiased", {"tau_plus"}),
        ("rocl-hn", {"weighting", "tau_plus"}),
        ("rocl-ip-hn", {"weighting", "tau_plus"}),
        ("rocl-clef", {"weighting"}),
        ("rocl-clef-ip-hn", {"weighting", "tau_plus"}),
        ("acl-hn", {"weighting", "tau_plus"}),
        ("advcl-ip", {"weighting"}),
        ("claf-ip-hn", {"weighting", "tau_plus"}),
        ("clae", {"adversary", "losses"}),
        ("clae-supcon", {"adversary", "losses"}),
        ("clae-hcl", {"adversary", "losses"}),
        ("adv-supcon", {"adversary", "losses"}),
        ("adv-supcon-labels", {"adversary"}),
        ("adv-supcon-noise", {"adversary"}),
    ],
)
def test_an_arm_differs_from_its_base_in_what_it_is_named_for(name, factors):
    assert changed(name) == factors


@pytest.mark.parametrize("base", ["supcon", "adv-supcon", "clae-supcon", "anchor"])
def test_hard_negatives_on_a_row_with_weights_are_compared_with_that_row(base):
    assert get_arm(f"{base}-hn").base == base


def test_long_arms_take_the_published_form_of_their_base():
    assert get_arm("rocl-long").original == get_arm("rocl").original


def test_single_step_arms_differ_from_their_base_in_the_attack_alone():
    for stem in ("rocl", "rocl-ip-hn", "pgd-at"):
        for suffix, budget in {
            "rsfgsm": (1, 1.25, True),
            "nfgsm": (1, 1.0, 2.0),
        }.items():
            arm, base = get_arm(f"{stem}-{suffix}"), get_arm(stem)
            assert arm.base == stem
            assert (
                arm.adversary.steps,
                arm.adversary.step,
                arm.adversary.random_start,
            ) == budget
            kept = {
                "adversary": base.adversary,
                "idea": base.idea,
                "source": base.source,
                "base": base.base,
            }
            kept["original_attack"] = base.original_attack
            assert dataclasses.replace(arm, **kept) == base
            assert arm.original_attack == {}
    assert describe_arm("rocl-nfgsm").endswith(
        "attack contrast(1* 2) steps=1 step=1 random_start=2"
    )
    for name in ("simclr-nfgsm", "adv-supcon-noise-rsfgsm"):
        with pytest.raises(
            StudyError, match=f"arm '{name}': .* shortens an inner attack"
        ):
            get_arm(name)


def test_factors_add_up_in_any_order_on_one_base():
    for name in ("rocl-ip-hn", "rocl-hn-ip"):
        assert sorted(get_arm(name).schemes) == ["hard-negatives", "inferior-positives"]
        assert get_arm(name).base == "rocl"
    assert get_arm("rocl-clef-ip-hn").weighting == (*RISK, *IP, *HARD_NEGATIVES)
    assert (
        get_arm("advcl-clef").weighting == RISK
    )  # combinations that the study does not run
    assert get_arm("claf-debiased").tau_plus == 0.1


@pytest.mark.parametrize(
    "name", ["rocl-ip-ip", "rocl-hn-hn", "hcl-hn", "rocl-hn-ip-hn"]
)
def test_a_factor_given_twice_is_an_error(name):
    with pytest.raises(StudyError, match="twice"):
        get_arm(name)


def test_hcl_and_debiased_are_simclr_with_factors():
    assert get_arm("hcl") == get_arm("simclr-hn")
    assert get_arm("debiased") == get_arm("simclr-debiased")


def test_published_options_are_kept():
    assert get_arm("rocl-ip").weighting == (("inferior-positives", {"alpha": 0.2}),)
    assert (
        get_arm("hcl").weighting
        == get_arm("rocl-hn").weighting
        == (("hard-negatives", {"beta": 1.0}),)
    )
    assert get_arm("dclw").weighting == (("hard-positive-logits", {"sigma": 0.5}),)
    assert get_arm("clef-original").temperature_factor * 0.5 == pytest.approx(0.07)
    assert {name for name in arm_names() if get_arm(name).tau_plus == 0.1} == {
        "debiased",
        "hcl",
        "rocl-debiased",
        "rocl-hn",
        "rocl-ip-hn",
        "rocl-clef-ip-hn",
        "advcl-hn",
        "advcl-ip-hn",
        "acl-hn",
        "claf-ip-hn",
        "clae-hcl",
    }


def test_one_arm_chooses_the_headline_epsilon():
    assert [name for name in arm_names() if get_arm(name).sets_headline] == [
        "supervised"
    ]


def test_parameters_are_plain_json_and_rebuild_what_decides_the_encoder():
    for name in [*arm_names(), "rocl-hn-shuffled", "hcl-temperature"]:
        row, arm = get_arm(name).parameters(), get_arm(name)
        assert json.loads(json.dumps(row)) == row
        row["losses"] = tuple(Loss(**loss) for loss in row["losses"])
        if "adversary" in row:
            row["adversary"] = Adversary(**row["adversary"])
        row["weighting"] = tuple(map(tuple, row.get("weighting", ())))
        said = {"group": arm.group, "idea": arm.idea, "source": arm.source}
        said |= {"base": arm.base, "sets_headline": arm.sets_headline}
        assert Arm(**row, **said) == arm


def test_words_about_an_arm_are_no_parameters_of_it():
    arm = get_arm("rocl-ip-hn")
    other = dataclasses.replace(
        arm, group="adaptive", idea="other", source="other", base=None
    )
    assert other.parameters() == arm.parameters()
    other = dataclasses.replace(arm, tau_plus=0.2)
    assert other.parameters() != arm.parameters()


def test_rows_name_losses_adversaries_and_arms_that_there_are():
    for name in arm_names():
        arm = get_arm(name)
        assert {loss.name for loss in arm.losses} <= set(LOSSES) == set(PARTS)
        assert arm.adversary is None or arm.adversary.loss in (*OBJECTIVES, "noise")
        assert arm.needs is None or arm.needs in arm_names()
        assert arm.idea
        assert arm.source


def test_weighted_arms_are_paired_with_their_controls():
    names = [
        "rocl",
        "rocl-hn",
        "rocl-hn-shuffled",
        "rocl-hn-temperature",
        "rocl-clef-shuffled",
    ]
    assert control_pairs(names) == [
        ("rocl-hn", "rocl-hn-temperature"),
        ("rocl-hn", "rocl-hn-shuffled"),
    ]


def test_the_factor_table_is_the_design_of_the_experiment():
    expected = pd.DataFrame(
        {
            "adversary": [False, True, True, True, False],
            "debiased": [True, False, True, False, False],
            "hard_negatives": [True, False, True, False, False],
            "inferior_positives": [False, False, True, False, False],
            "clinical_risk": [False, False, False, True, False],
            "labels": [False, False, False, False, True],
        },
        index=pd.Index(
            ["hcl", "rocl", "rocl-ip-hn", "rocl-clef", "supcon"], name="arm"
        ),
    )
    # Arms that differ in more than these factors are left out: epochs, losses,
    # adversary, options, τ.
    left = [
        "supervised",
        "random",
        "rocl-long",
        "adv-supcon",
        "acl",
        "dclw",
        "hcl-temperature",
        "features-lr",
    ]
    table = factor_table([*left, *expected.index])
    pd.testing.assert_frame_equal(table[expected.columns], expected)
    assert not table.drop(columns=expected.columns).any(axis=None)
    assert set(factor_table().index) == {
        "simclr",
        "supcon",
        "debiased",
        "hcl",
        "clef",
        "rocl",
        "rocl-ip",
        "rocl-debiased",
        "rocl-hn",
        "rocl-ip-hn",
        "rocl-clef",
        "rocl-clef-ip-hn",
    }


def test_bases_of_some_arms_only():
    assert bases(["simclr", "rocl", "rocl-ip"]) == {"rocl": "simclr", "rocl-ip": "rocl"}


def test_attacked_views_have_their_own_norm_where_contrast_meets_an_adversary():
    dual = {name for name in arm_names() if get_arm(name).dual}
    assert not dual & {
        "random",
        "supervised",
        "pgd-at",
        "trades",
        "mart",
        "simclr",
        "clef",
        "deacl",
        "ascl",
    }
    assert {
        "rocl",
        "acl",
        "advcl",
        "clae",
        "swaro",
        "claf",
        "dynacl",
        "adv-supcon",
        "anchor",
    } <= dual


def test_arms_that_classify_are_evaluated_with_their_own_head():
    own = {name for name in arm_names() if get_arm(name).own_head}
    assert own == {"supervised", "pgd-at", "trades", "mart", "supcon-margin", "ascl"}


def test_the_temperature_control_sharpens_instead_of_weighing():
    assert changed("rocl-hn-temperature", "rocl") == {"temperature_factor"}
    assert changed("hcl-temperature", "simclr") == {"temperature_factor"}
    assert changed("rocl-ip-hn-temperature", "rocl-ip") == {"temperature_factor"}
    assert get_arm("rocl-hn-temperature").temperature_factor == 0.5  # 1/(1 + β)
    assert get_arm("rocl-hn-temperature").base == "rocl"


def test_the_shuffled_control_keeps_the_weights_it_permutes():
    assert changed("rocl-hn-shuffled", "rocl-hn") == {"weighting"}
    assert get_arm("rocl-hn-shuffled").weighting == (*HARD_NEGATIVES, ("shuffled", {}))
    assert changed("clef-shuffled", "clef") == {"permuted_risk"}
    assert changed("rocl-clef-ip-hn-shuffled", "rocl-clef-ip-hn") == {
        "weighting",
        "permuted_risk",
    }


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (
            "rocl-temperature",
            "'rocl-temperature': .* replaces hard negatives, and this arm has none",
        ),
        (
            "rocl-ip-shuffled",
            "'rocl-ip-shuffled': .* permutes the weights of negatives",
        ),
        ("acl-ip", "'acl-ip': inferior positives weight clean-adversarial pairs"),
        ("simclr-ip", "'simclr-ip': inferior positives weight clean-adversarial pairs"),
        ("acl-ip-hn", "'acl-ip': inferior positives"),
        (
            "swaro-hn",
            "'swaro-hn': hard-negatives needs a contrastive loss with pairwise",
        ),
        (
            "supervised-clef",
            "'supervised-clef': clinical-risk needs a contrastive loss",
        ),
        ("random-debiased", "'random-debiased': debiasing needs a contrastive loss"),
        ("deacl-hn", "'deacl-hn': hard-negatives needs a contrastive loss"),
        ("dclw-hn", "'dclw-hn': debiasing needs the positive in the denominator"),
        ("features-lr-hn", "'features-lr-hn': hard-negatives needs a contrastive loss"),
    ],
)
def test_impossible_combinations_are_errors_that_say_why(name, reason):
    with pytest.raises(StudyError, match=reason):
        get_arm(name)


@pytest.mark.parametrize(
    "name", ["rocl-ipp", "rocl-", "-hn", "", "hn", "moco-hn", "rocl-shuffle"]
)
def test_an_unknown_arm_is_an_error_that_names_those_there_are(name):
    known = "known: random, supervised, .*rocl-clef.*suffixes: ip, hn, .*shuffled"
    with pytest.raises(StudyError, match=rf"unknown arm '.*'; {known}"):
        get_arm(name)


@pytest.mark.parametrize(
    "losses", [TWO_VIEWS, (Loss("contrast", "1 2"), Loss("contrast", "1* 2*"))]
)
def test_inferior_positives_without_a_mixed_pair_are_an_error(losses):
    with pytest.raises(
        StudyError, match="inferior positives weight clean-adversarial pairs"
    ):
        Arm("adaptive", "", "", losses, Adversary("1* 2*"), weighting=IP)
    assert (
        Arm("adaptive", "", "", ROCL_LOSSES, Adversary("1* 2"), weighting=IP).weighting
        == IP
    )


@pytest.mark.parametrize(
    "losses", [(), (Loss("ce", "1"),), (Loss("contrast", "1 2", plain=True),)]
)
def test_weights_without_a_contrastive_loss_to_weigh_are_an_error(losses):
    with pytest.raises(StudyError, match="hard-negatives needs a contrastive loss"):
        Arm("reference", "", "", losses, weighting=HARD_NEGATIVES)


def test_an_attacked_view_that_no_adversary_makes_is_an_error():
    with pytest.raises(
        StudyError, match=r"takes the view '2\*', and no adversary makes it"
    ):
        Arm("adversarial", "", "", (Loss("contrast", "1 2*"),), Adversary("1*"))


def test_selection_by_prediction_without_predictions_is_an_error():
    with pytest.raises(StudyError, match="leaked-local selects by predictions"):
        Arm("with labels", "", "", TWO_VIEWS, weighting=(("leaked-local", {}),))


def test_an_arm_with_a_new_scheme_is_one_row(monkeypatch):
    row = Arm("adaptive", "", "", TWO_VIEWS, weighting=(("new", {}),))
    monkeypatch.setattr(factors, "ARMS", {**ARMS, "mine": row})
    monkeypatch.setitem(WEIGHTINGS, "new", lambda similarity, pairs, weights: weights)
    assert get_arm("mine").weighting == (("new", {}),)
    assert bool(factor_table(["mine"]).loc["mine", "new"])


def test_a_factor_is_one_entry_for_every_row(monkeypatch):
    factor = (
        "pairs count double",
        "ours",
        {"weighting": (("hard-negatives", {"beta": 2.0}),)},
    )
    monkeypatch.setattr(factors, "FACTORS", {**factors.FACTORS, "hard": factor})
    assert changed("rocl-hard") == {"weighting"}
    assert get_arm("acl-hard").base == "acl"
