"""Every arm's loss and its gradients against plain loops, on random embeddings.

No encoder is involved: the batch's embeddings, features and predictions are filled in
by hand.
"""

import dataclasses

import pytest
import torch
from hand_filled import Case, assert_same, gradients, package_loss
from label_loops import mart, pair_margin, sinkhorn
from loss_loops import clef_original, dclw

from ecgstudy.pretraining import contrast, losses
from ecgstudy.pretraining.inner_attack import next_of_another_cluster
from ecgstudy.pretraining.losses import LOSSES, predicted_labels
from ecgstudy.pretraining.step import adaptive_alpha
from ecgstudy.pretraining.suffixes import arm_names, get_arm

TRAINED = [name for name in arm_names() if get_arm(name).losses]


def hcl(c):
    return c.pairs("1 2", hn=1.0, tau_plus=0.1)


def adv_supcon(c):
    return c.pairs("1 2 1*", labels=True, detach=True)


HN = {"hn": 1.0, "tau_plus": 0.1}
ORACLES = {
    "supervised": lambda c: c.ce("1"),
    "pgd-at": lambda c: c.ce("1*"),
    "trades": lambda c: c.ce("1") + 6 * c.kl("1", "1*"),
    "mart": lambda c: mart(c.logits("1"), c.logits("1*"), c.y, c.multilabel),
    "simclr": lambda c: c.pairs("1 2"),
    "simclr-long": lambda c: c.pairs("1 2"),
    "supcon": lambda c: c.pairs("1 2", labels=True),
    "debiased": lambda c: c.pairs("1 2", tau_plus=0.1),
    "hcl": hcl,
    "dclw": lambda c: dclw(*c.of("1 2"), c.tau, 0.5),
    "clef": lambda c: c.pairs("1 2", clef=True),
    "clef-original": lambda c: clef_original(*c.of("1 2"), 0.07),
    "rocl": lambda c: c.rocl(),
    "rocl-long": lambda c: c.rocl(),
    "rocl-ip": lambda c: c.rocl(ip=0.2),
    "rocl-debiased": lambda c: c.rocl(tau_plus=0.1),
    "rocl-hn": lambda c: c.rocl(**HN),
    "rocl-ip-hn": lambda c: c.rocl(ip=0.2, **HN),
    "rocl-clef": lambda c: c.rocl(clef=True),
    "rocl-clef-ip-hn": lambda c: c.rocl(clef=True, ip=0.2, **HN),
    "acl": lambda c: c.acl(),
    "acl-hn": lambda c: c.acl(**HN),
    "dynacl": lambda c: c.acl(),
    "advcl": lambda c: c.advcl(),
    "advcl-ip": lambda c: c.advcl(ip=0.2),
    "advcl-hn": lambda c: c.advcl(**HN),
    "advcl-ip-hn": lambda c: c.advcl(ip=0.2, **HN),
    "clae": lambda c: c.clae(),
    "clae-supcon": lambda c: c.clae(labels=True),
    "clae-hcl": lambda c: c.clae(**HN),
    "swaro": lambda c: c.swaro(),
    "claf": lambda c: c.claf(),
    "claf-ip-hn": lambda c: c.claf(ip=0.2, **HN),
    "deacl": lambda c: c.deacl(),
    "adv-supcon": adv_supcon,
    "adv-supcon-labels": adv_supcon,
    "adv-supcon-noise": adv_supcon,
    "supcon-margin": lambda c: c.ce("1") + pair_margin(*c.of("1 2"), 0.5, 1.0),
    "anchor": lambda c: (
        c.pairs("1 1*", labels=True, gamma=1.0, detach=True) + c.ce("1*")
    ),
    "ascl": lambda c: (
        c.ce("1*")
        + c.pairs("1 1*", labels=True, alike=True, detach=True)
        + 2 * c.kl("1", "1*")
    ),
    "rocl-hn-temperature": lambda c: c.rocl(),
    "rocl-ip-hn-temperature": lambda c: c.rocl(ip=0.2),
    "hcl-temperature": lambda c: c.pairs("1 2"),
    "clef-shuffled": lambda c: c.pairs("1 2", clef=True),
}
"""Arm → its loss in the study's shared form."""

CASES = {
    "two records of a patient": {},
    "several labels, or none": {
        "patients": (0, 1, 2, 3, 3),
        "multilabel": True,
        "labels": ((1, 1, 0), (1, 0, 0), (0, 0, 1), (0, 0, 0), (0, 1, 1)),
    },
    "batch of two": {"patients": (0, 1), "labels": ((1, 0, 0), (0, 1, 0))},
    "one class": {"labels": ((0, 1, 0),) * 5},
    "one patient": {"patients": (0,) * 5},
    "no labels": {"labels": ((0, 0, 0),) * 5, "multilabel": True},
    "none predicted alike": {"predictions": "all different"},
    "missing metadata": {"missing": 1.0},
}


def test_every_arm_has_an_oracle():
    assert set(TRAINED) <= set(ORACLES)
    assert {name for name in arm_names() if not get_arm(name).losses} == {
        "random",
        "features-lr",
        "features-tree",
        "features-forest",
    }


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ORACLES)
def test_the_loss_of_every_arm_equals_its_loops(name, case, monkeypatch):
    filled = Case(**CASES[case])
    filled.fill(name)
    _, gradient = assert_same(filled, ORACLES[name], monkeypatch)
    if case == "two records of a patient":
        assert gradient.abs().max() > 1e-3, "a vanishing gradient would prove nothing"


@pytest.mark.parametrize("name", ORACLES)
def test_equal_ecgs_leave_loss_and_gradients_finite(name, monkeypatch):
    case = Case(spread=0.0, patients=(0, 1), labels=((1, 0, 0), (0, 1, 0)))
    case.fill(name)
    case.z = {v: x[[0, 0]] for v, x in case.z.items()}
    value = package_loss(case, monkeypatch)
    assert torch.isfinite(value)
    assert torch.isfinite(gradients(value, case)).all()


@pytest.mark.parametrize(
    ("progress", "clean"), [(0.0, 1 / 2), (0.5, 1 / 3), (0.95, 0.5 - 0.95 / 3)]
)
def test_dynacl_moves_its_weight_to_attacked_views(progress, clean, monkeypatch):
    """w = 1 + 2/3 · done; half of 2 − w on clean views, half of w on attacked ones."""
    case = Case()
    state = case.fill("dynacl")
    case.state = dataclasses.replace(state, progress=progress)
    assert_same(case, lambda c: c.acl(clean), monkeypatch)


# ---- the small functions


def test_codes_of_each_row_sum_to_one_and_use_the_prototypes_alike():
    scores = (
        torch.randn(
            12, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64
        )
        / 5
    )
    ours = losses.sinkhorn(scores)
    torch.testing.assert_close(
        ours, torch.tensor(sinkhorn(scores), dtype=torch.float64)
    )
    torch.testing.assert_close(ours.sum(1), torch.ones(12, dtype=torch.float64))
    many = losses.sinkhorn(scores, 200)
    torch.testing.assert_close(
        many.sum(0), torch.full((5,), 12 / 5, dtype=torch.float64)
    )
    assert (ours.sum(0) - 12 / 5).abs().max() < (
        (scores / 0.05).softmax(1).sum(0) - 12 / 5
    ).abs().max()


@pytest.mark.parametrize(
    ("clusters", "others"),
    [([0, 0, 1, 1], [2, 2, 0, 0]), ([0, 1, 0, 2], [1, 2, 3, 0]), ([3, 3], [0, 1])],
)
def test_the_next_record_of_another_cluster_is_attacked_towards(clusters, others):
    assert next_of_another_cluster(torch.tensor(clusters)).tolist() == others


@pytest.mark.parametrize(
    ("distance", "alpha"), [(1.2, 0.2), (1.0, 0.2), (0.7, 0.35), (0.4, 0.5), (0.3, 0.5)]
)
def test_alpha_grows_to_a_half_as_the_adversary_nears(distance, alpha):
    found = adaptive_alpha(torch.tensor(distance), torch.tensor(1.0), 0.2)
    assert found.item() == pytest.approx(alpha)


def test_predictions_are_the_likeliest_class_or_all_likely_labels():
    logits = torch.tensor([[1.0, 3.0, 2.0], [-1.0, -3.0, -2.0]])
    assert predicted_labels(logits, False).tolist() == [[0, 1, 0], [1, 0, 0]]
    assert predicted_labels(logits, True).tolist() == [[1, 1, 1], [0, 0, 0]]


def test_claf_trains_its_head_without_the_encoder():
    case = Case()
    state = case.fill("claf")
    (term,) = (loss for loss in state.arm.losses if loss.name == "head")
    value = LOSSES["head"](case.batch(), term)
    slopes = torch.autograd.grad(value, [*state.model["head"].parameters()])
    assert all(slope.abs().max() > 1e-3 for slope in slopes)
    assert (
        torch.count_nonzero(
            torch.cat(
                [
                    g.flatten()
                    for g in torch.autograd.grad(
                        value,
                        [*case.f.values()],
                        allow_unused=True,
                        materialize_grads=True,
                    )
                ]
            )
        )
        == 0
    )


@pytest.mark.parametrize("multilabel", [False, True])
def test_the_kl_of_predictions_is_torchs(multilabel):
    clean, attacked = torch.randn(
        2, 6, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    if multilabel:
        bernoulli = [torch.distributions.Bernoulli(logits=x) for x in (clean, attacked)]
        expected = torch.distributions.kl_divergence(*bernoulli).sum(1)
    else:
        softmax = [torch.distributions.Categorical(logits=x) for x in (clean, attacked)]
        expected = torch.distributions.kl_divergence(*softmax)
    torch.testing.assert_close(losses.divergence(clean, attacked, multilabel), expected)


def test_a_scheme_that_compares_all_anchors_gets_them_whole_in_large_batches(
    monkeypatch,
):
    monkeypatch.setattr(contrast, "WHOLE_ROWS", 4)
    monkeypatch.setattr(contrast, "BLOCK_ROWS", 3)
    filled = Case()
    filled.fill("dclw")
    assert_same(filled, ORACLES["dclw"], monkeypatch)
