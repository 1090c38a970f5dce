"""Scores and objectives against scipy, torch and the papers' formulas written out."""

import numpy as np
import pytest
import torch
from scipy.special import expit, log_softmax, softmax
from torch import nn
from victims import ecgs, seeded

from ecgstudy.attacks.objectives import (
    OBJECTIVES,
    auroc_targets,
    dlr,
    label_targets,
    make_objective,
    signed_scores,
    targeted_dlr,
)
from ecgstudy.errors import StudyError
from ecgstudy.models.heads import class_scores, cross_entropy, cross_entropy_targets


@pytest.mark.parametrize("classes", [2, 4])
def test_single_label_scores_are_the_log_odds_of_the_softmax(classes):
    logits = 4 * np.random.default_rng(0).normal(size=(20, classes))
    p = softmax(logits, axis=1)
    found = class_scores(torch.tensor(logits), multilabel=False).numpy()
    np.testing.assert_allclose(found, np.log(p / (1 - p)), rtol=1e-9)


def test_single_label_scores_do_not_saturate_where_probabilities_do():
    logits = torch.tensor([[200.0, 0.0, -50.0], [220.0, 0.0, -50.0]])
    scores = class_scores(logits, multilabel=False)
    assert scores[:, 0].tolist() == [200.0, 220.0]
    assert torch.isfinite(scores).all()


def test_multi_label_scores_are_the_logits():
    logits = torch.randn(4, 3)
    assert torch.equal(class_scores(logits, multilabel=True), logits)


def test_single_label_cross_entropy_is_that_of_the_softmax():
    logits, y = (
        torch.randn(12, 4, generator=seeded(), dtype=torch.float64) * 5,
        torch.arange(12) % 4,
    )
    targets = cross_entropy_targets(
        torch.eye(4, dtype=torch.float64)[y], multilabel=False
    )
    found = cross_entropy(class_scores(logits, multilabel=False), targets)
    torch.testing.assert_close(
        found, nn.functional.cross_entropy(logits, y, reduction="none")
    )
    np.testing.assert_allclose(
        found, -log_softmax(logits, axis=1)[np.arange(12), y], rtol=1e-9
    )


def test_multi_label_cross_entropy_sums_the_binary_ones():
    logits = torch.randn(12, 4, generator=seeded(), dtype=torch.float64) * 5
    labels = (torch.rand(12, 4, generator=seeded(1)) < 0.4).double()
    found = cross_entropy(
        class_scores(logits, True), cross_entropy_targets(labels, multilabel=True)
    )
    expected = nn.functional.binary_cross_entropy_with_logits(
        logits, labels, reduction="none"
    ).sum(1)
    torch.testing.assert_close(found, expected)


def test_cross_entropy_has_the_softmax_gradient():
    logits = torch.randn(6, 3, generator=seeded(), dtype=torch.float64).requires_grad_()
    hot = torch.eye(3, dtype=torch.float64).repeat(2, 1)
    cross_entropy(
        class_scores(logits, False), cross_entropy_targets(hot, multilabel=False)
    ).sum().backward()
    torch.testing.assert_close(logits.grad, logits.detach().softmax(1) - hot)


def test_auroc_targets_weigh_a_record_by_its_share_of_the_pairs():
    labels = torch.tensor(
        [[1.0, 0, 1, 0], [1, 0, 1, 1], [0, 0, 1, 0], [0, 1, 1, 0], [0, 1, 1, 0]]
    )
    targets = auroc_targets(labels)
    for c in range(4):
        positives = [i for i in range(5) if labels[i, c] == 1]
        negatives = [i for i in range(5) if labels[i, c] == 0]
        for i in range(5):
            share = 0.0
            if positives and negatives:
                share = -1 / len(positives) if i in positives else 1 / len(negatives)
            assert targets[i, c].item() == pytest.approx(
                5 / 2 * share
            )  # 5/2: a common factor
    assert (targets[:, 2] == 0).all()  # every record is positive: no AUROC


def test_auroc_targets_are_the_gradient_of_the_mean_difference_of_scores():
    """The objective is, up to a factor, Σ_c (mean score of negatives − mean score of
    positives)."""
    labels = ecgs(7)[1]
    scores = torch.randn(7, 3, generator=seeded(3))
    wanted = sum(
        scores[labels[:, c] == 0, c].mean() - scores[labels[:, c] == 1, c].mean()
        for c in range(3)
    )
    torch.testing.assert_close(
        signed_scores(scores, auroc_targets(labels)).sum() / (7 / 2), wanted
    )


def test_label_targets_attack_one_label_alone():
    labels = torch.tensor([[1.0, 0], [0, 1], [1, 1]])
    assert label_targets(labels, 1).tolist() == [[0, 1], [0, -1], [0, -1]]


# ---- the further objectives, from logits written out ---------------------------------


def single(classes, records=40):
    """Logits in float64, the true class, and one-hot labels."""
    logits = 4 * torch.randn(records, classes, generator=seeded(2), dtype=torch.float64)
    y = torch.arange(records) % classes
    return logits, y, torch.eye(classes, dtype=torch.float64)[y]


def value_of(name, logits, labels, multilabel):
    objective, targets = make_objective(name, labels, multilabel)
    return objective(class_scores(logits, multilabel), targets)


@pytest.mark.parametrize("classes", [2, 5])
def test_bce_of_single_label_data_sums_one_class_against_the_rest(classes):
    logits, y, labels = single(classes)
    p = softmax(logits.numpy(), axis=1)
    p[np.arange(40), y] = 1 - p[np.arange(40), y]
    expected = -np.log1p(-p).sum(1)
    np.testing.assert_allclose(
        value_of("bce", logits, labels, False), expected, rtol=1e-9
    )


def test_bce_of_multi_label_data_is_its_cross_entropy():
    logits, _, _ = single(4)
    labels = (torch.rand(40, 4, generator=seeded(1)) < 0.4).double()
    p = expit(logits.numpy())
    expected = -np.log(np.where(labels > 0, p, 1 - p)).sum(1)
    for name in ("ce", "bce"):
        np.testing.assert_allclose(
            value_of(name, logits, labels, True), expected, rtol=1e-9
        )


@pytest.mark.parametrize("classes", [2, 5])
def test_ce_of_single_label_data_is_that_of_the_softmax(classes):
    logits, y, labels = single(classes)
    expected = nn.functional.cross_entropy(logits, y, reduction="none")
    torch.testing.assert_close(value_of("ce", logits, labels, False), expected)


def test_losses_of_sure_predictions_are_told_apart_in_float32_and_have_gradients():
    scores, labels = (
        torch.tensor([[-30.0, 25.0], [-29.9, 25.0]]),
        torch.tensor([[0.0, 1], [0, 1]]),
    )
    leaf = scores.clone().requires_grad_()
    value_of("bce", leaf, labels, True).sum().backward()
    expected = np.log1p(np.exp([-30, -29.9])) + np.log1p(np.exp(-25))
    np.testing.assert_allclose(
        value_of("bce", scores, labels, True), expected, rtol=1e-5
    )
    slopes = torch.sigmoid(-scores.abs().double()) * (1 - 2 * labels)
    np.testing.assert_allclose(leaf.grad, slopes, rtol=1e-5)


def test_the_cross_entropy_of_a_sure_prediction_has_the_softmax_gradient_in_float32():
    logits, y = torch.tensor([[40.0, 2, 0], [25, -5, 3]]), torch.tensor([0, 0])
    found, wanted = logits.clone().requires_grad_(), logits.double().requires_grad_()
    value_of("ce", found, torch.eye(3)[y], False).sum().backward()
    nn.functional.cross_entropy(wanted, y, reduction="sum").backward()
    np.testing.assert_allclose(found.grad[:, 1:], wanted.grad[:, 1:], rtol=1e-4)


@pytest.mark.parametrize("classes", [2, 3, 6])
def test_the_even_margin_is_of_the_best_wrong_class(classes):
    logits, y, labels = single(classes)
    expected = [
        max(z[c] for c in range(classes) if c != t) - z[t]
        for z, t in zip(logits, y, strict=True)
    ]
    torch.testing.assert_close(
        value_of("margin-even", logits, labels, False), torch.stack(expected)
    )


def test_the_even_margin_of_multi_label_data_counts_every_label_alike():
    logits, labels = (
        torch.tensor([[1.0, 2, 4], [8, 16, 32]]),
        torch.tensor([[1.0, 0, 0], [0, 1, 1]]),
    )
    assert value_of("margin-even", logits, labels, True).tolist() == [5, -40]


def ratio(z, y, target=None):
    """(Targeted) difference of logits ratio of one record, as AutoAttack's authors
    print it."""
    order = sorted(z, reverse=True)
    if target is not None:
        return -(z[y] - z[target]) / (order[0] - (order[2] + order[3]) / 2)
    return -(z[y] - max(v for c, v in enumerate(z) if c != y)) / (order[0] - order[2])


@pytest.mark.parametrize("classes", [3, 4, 7])
def test_dlr_is_the_papers_equation(classes):
    logits, y, labels = single(classes)
    expected = [ratio(z, t) for z, t in zip(logits.tolist(), y.tolist(), strict=True)]
    for changed in (
        logits,
        3 * logits - 7,
    ):  # neither scale nor shift of the logits matters
        found = value_of("dlr", changed, labels, False)
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_targeted_dlr_is_the_papers_equation():
    logits, y, labels = single(5)
    aim = (y + 2) % 5
    targets = torch.eye(5, dtype=torch.float64)[aim] - labels
    triples = zip(logits.tolist(), y.tolist(), aim.tolist(), strict=True)
    expected = [ratio(*triple) for triple in triples]
    np.testing.assert_allclose(
        targeted_dlr(class_scores(logits, False), targets), expected, rtol=1e-6
    )


def test_dlr_has_its_gradient_where_the_softmax_is_saturated():
    z = torch.tensor([[90.0, 0, -30, -60]], requires_grad=True)
    y = torch.eye(4)[:1]
    (found,) = torch.autograd.grad(dlr(class_scores(z, False), y).sum(), z)
    expected = torch.tensor(
        [[-1 / 120 + 90 / 120**2, 1 / 120, -90 / 120**2, 0]]
    )  # of (z₂ − z₁)/(z₁ − z₃)
    torch.testing.assert_close(found, expected)


def test_equal_logits_leave_dlr_and_its_gradient_finite():
    z = torch.zeros(2, 4, requires_grad=True)
    for objective, targets in (
        (dlr, torch.eye(4)[:2]),
        (targeted_dlr, torch.eye(4)[:2] - torch.eye(4)[2:]),
    ):
        value = objective(class_scores(z, False), targets)
        (gradient,) = torch.autograd.grad(value.sum(), z)
        assert value.tolist() == [0, 0]
        assert gradient.isfinite().all()


@pytest.mark.parametrize(
    ("classes", "multilabel", "told"),
    [(2, False, "single-label, of 2"), (5, True, "multi-label, of 5")],
)
def test_dlr_without_enough_classes_is_an_error(classes, multilabel, told):
    with pytest.raises(
        StudyError, match=f"'dlr' needs single-label data of at least 3 classes.*{told}"
    ):
        make_objective("dlr", torch.zeros(4, classes), multilabel)


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_every_objective_grows_with_wrongness_and_is_finite_at_extreme_logits(name):
    labels = torch.eye(4)[[0, 1]]
    right, wrong = 100 * (2 * labels - 1), 100 * (2 * labels.flip(0) - 1)
    for multilabel in (False,) if name == "dlr" else (False, True):
        values = [value_of(name, z, labels, multilabel) for z in (right, wrong)]
        assert torch.stack(values).isfinite().all()
        assert (values[1] > values[0]).all()
