"""The worst of several attacks for AUROC, against every possible choice."""

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from sklearn.metrics import roc_auc_score

from ecgstudy.attacks.ensemble import combine, pairwise_auroc, rank_losses
from ecgstudy.errors import StudyError


def drawn(members, records, classes, seed, single_label=False, levels=None):
    """Scores that mostly tell the labels, in few `levels` with ties, and labels of both
    kinds per class."""
    rng = np.random.default_rng(seed)
    labels = (
        np.eye(classes)[np.arange(records) % classes]
        if single_label
        else rng.random((records, classes)) < 0.5
    )
    labels = np.array(labels, dtype=np.float32)
    if not single_label:
        labels[0], labels[1] = 0, 1
    scores = rng.normal(size=(members, records, classes)) + 1.5 * (2 * labels - 1)
    if levels:
        scores = np.round(scores * levels) / levels
    return torch.tensor(scores, dtype=torch.float32), torch.tensor(labels)


def auroc_of(scores, labels, chosen):
    """Macro AUROC by scikit-learn when record i takes the member chosen[i]."""
    return roc_auc_score(
        labels, scores[list(chosen), range(len(labels))], average="macro"
    )


def lowest(scores, labels):
    """The smallest macro AUROC of all choices, by counting pairs."""
    choices = np.array(list(product(range(len(scores)), repeat=len(labels))))
    joint, each = scores.numpy()[choices, np.arange(len(labels))], []
    for c, y in enumerate(labels.numpy().T):
        score = joint[..., c]
        ahead = score[:, y > 0][:, :, None] - score[:, y <= 0][:, None]
        each.append(((ahead > 0) + 0.5 * (ahead == 0)).mean((1, 2)))
    return np.mean(each, axis=0).min()


@settings(max_examples=100, deadline=None)
@given(
    members=some.integers(1, 5),
    records=some.integers(2, 12),
    classes=some.integers(1, 4),
    levels=some.sampled_from([None, 1, 3]),
    seed=some.integers(0, 10**6),
)
def test_the_result_is_never_above_a_member(members, records, classes, levels, seed):
    scores, labels = drawn(members, records, classes, seed, levels=levels)
    found = auroc_of(scores, labels, combine(scores, labels))
    for member in range(members):
        assert found <= auroc_of(scores, labels, [member] * records) + 1e-12


@pytest.mark.parametrize("levels", [None, 2])
def test_with_one_label_the_result_is_the_lowest_of_all_choices(levels):
    for seed in range(15):
        scores, labels = drawn(3, 6, 1, seed, levels=levels)
        assert auroc_of(scores, labels, combine(scores, labels)) == pytest.approx(
            lowest(scores, labels)
        )


@pytest.mark.parametrize("single_label", [True, False])
def test_with_several_labels_the_result_is_near_the_lowest_of_all_choices(single_label):
    gaps, gains = [], []
    for seed in range(10):
        scores, labels = drawn(2, 8, 3, seed, single_label)
        best = min(auroc_of(scores, labels, [member] * 8) for member in range(2))
        found, least = (
            auroc_of(scores, labels, combine(scores, labels)),
            lowest(scores, labels),
        )
        assert found >= least - 1e-12
        gaps, gains = [*gaps, found - least], [*gains, best - least]
    assert sum(gaps) < 0.15 * sum(gains)


def test_members_of_some_records_are_used_there_and_judged_by_the_rest_alone():
    scores, labels = drawn(3, 10, 2, 4)
    scores[1, :] = 10 * (
        1 - 2 * labels
    )  # perfectly wrong, but of the first four records only
    scores[1, 4:] = torch.nan
    chosen = combine(scores, labels)
    assert (chosen[:4] == 1).all()
    assert (chosen[4:] != 1).all()


def test_without_a_complete_member_it_is_an_error():
    scores, labels = drawn(2, 5, 2, 0)
    scores[0, 1], scores[1, 2, 0] = torch.nan, torch.nan
    with pytest.raises(
        StudyError, match="none of the 2 attacks has scores of all 5 records"
    ):
        combine(scores, labels)


def test_without_a_class_of_both_kinds_a_complete_member_is_taken():
    scores, labels = drawn(2, 4, 2, 0)
    scores[0, 0] = torch.nan
    assert combine(scores, torch.ones_like(labels)).tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("levels", [None, 1])
def test_rank_losses_count_the_pairs_that_a_record_loses(levels):
    scores, labels = drawn(3, 7, 2, 1, levels=levels)
    labels[:, 1] = 1  # a class without AUROC counts nowhere
    current = drawn(1, 7, 2, 2, levels=levels)[0][0]
    found = rank_losses(scores, current, labels)
    positives = [i for i in range(7) if labels[i, 0] > 0]
    negatives = [i for i in range(7) if labels[i, 0] <= 0]
    for m, i in product(range(3), range(7)):
        others, sign = (negatives, 1) if i in positives else (positives, -1)
        own, lost = scores[m, i, 0].item(), 0.0
        for j in others:
            ahead = sign * (current[j, 0].item() - own)
            lost += 1.0 if ahead > 0 else 0.5 if ahead == 0 else 0.0
        assert found[m, i].item() == pytest.approx(
            lost / (len(positives) * len(negatives))
        )


def test_rank_losses_are_the_change_of_macro_auroc_for_one_record():
    scores, labels = drawn(2, 9, 3, 3)
    current = scores[0]
    losses = rank_losses(scores, current, labels)
    for i in range(9):
        changed = current.clone()
        changed[i] = scores[1, i]
        change = pairwise_auroc(labels, current) - pairwise_auroc(labels, changed)
        assert (losses[1, i] - losses[0, i]).item() == pytest.approx(
            change.item(), abs=1e-12
        )


@pytest.mark.parametrize("levels", [None, 1])
def test_macro_auroc_on_the_device_is_scikit_learns(levels):
    for seed in range(10):
        scores, labels = drawn(1, 30, 4, seed, levels=levels)
        labels[:, 3] = 0
        expected = np.mean(
            [roc_auc_score(labels[:, c], scores[0, :, c]) for c in range(3)]
        )
        assert pairwise_auroc(labels, scores[0]).item() == pytest.approx(
            expected, abs=1e-12
        )
