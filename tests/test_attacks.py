"""Scores, objectives and gradient attacks against scipy, torch and closed forms on linear models."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from scipy.special import log_softmax, softmax
from sklearn.metrics import roc_auc_score
from torch import Generator, nn

from ecgstudy.attacks import ATTACKS, get_attack
from ecgstudy.attacks.ball import Ball
from ecgstudy.attacks.gradient import pgd
from ecgstudy.attacks.objectives import (
    OBJECTIVES,
    auroc_targets,
    class_scores,
    cross_entropy,
    cross_entropy_targets,
    label_targets,
    signed_scores,
)
from ecgstudy.attacks.problem import Budget, Problem, Victim
from ecgstudy.errors import StudyError


def seeded(seed=0):
    return Generator().manual_seed(seed)


def linear(classes=3, leads=2, samples=5, seed=0, multilabel=True):
    """A linear victim and its weights (classes, leads · samples)."""
    weight = torch.randn(classes, leads * samples, generator=seeded(seed))
    return Victim(lambda x: x.flatten(1) @ weight.T, multilabel), weight


def curved(classes=3, leads=2, samples=5, seed=0, multilabel=True):
    """A small victim with a curved loss surface."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        inner, outer = nn.Linear(leads * samples, 16), nn.Linear(16, classes)
    features = lambda x: torch.sin(3 * inner(x.flatten(1)))  # noqa: E731
    return Victim(lambda x: outer(features(x)), multilabel, features, fs=100.0)


def ecgs(records=6, classes=3, leads=2, samples=5, seed=1, multilabel=True):
    """Random signals in mV and labels that have both kinds in every class."""
    stream = seeded(seed)
    signals = torch.randn(records, leads, samples, generator=stream)
    labels = torch.eye(classes)[torch.arange(records) % classes]
    if multilabel:
        labels[0] = 1 - labels[0]
    return signals, labels


# ---- scores and objectives -------------------------------------------------------------------------


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
    logits, y = torch.randn(12, 4, generator=seeded(), dtype=torch.float64) * 5, torch.arange(12) % 4
    targets = cross_entropy_targets(torch.eye(4, dtype=torch.float64)[y], multilabel=False)
    found = cross_entropy(class_scores(logits, multilabel=False), targets)
    torch.testing.assert_close(found, nn.functional.cross_entropy(logits, y, reduction="none"))
    np.testing.assert_allclose(found, -log_softmax(logits, axis=1)[np.arange(12), y], rtol=1e-9)


def test_multi_label_cross_entropy_sums_the_binary_ones():
    logits = torch.randn(12, 4, generator=seeded(), dtype=torch.float64) * 5
    labels = (torch.rand(12, 4, generator=seeded(1)) < 0.4).double()
    found = cross_entropy(class_scores(logits, True), cross_entropy_targets(labels, multilabel=True))
    expected = nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="none").sum(1)
    torch.testing.assert_close(found, expected)


def test_cross_entropy_has_the_softmax_gradient():
    logits = torch.randn(6, 3, generator=seeded(), dtype=torch.float64).requires_grad_()
    hot = torch.eye(3, dtype=torch.float64).repeat(2, 1)
    cross_entropy(class_scores(logits, False), cross_entropy_targets(hot, multilabel=False)).sum().backward()
    torch.testing.assert_close(logits.grad, logits.detach().softmax(1) - hot)


def test_auroc_targets_weigh_a_record_by_its_share_of_the_pairs():
    labels = torch.tensor([[1.0, 0, 1, 0], [1, 0, 1, 1], [0, 0, 1, 0], [0, 1, 1, 0], [0, 1, 1, 0]])
    targets = auroc_targets(labels)
    for c in range(4):
        positives = [i for i in range(5) if labels[i, c] == 1]
        negatives = [i for i in range(5) if labels[i, c] == 0]
        for i in range(5):
            share = 0.0
            if positives and negatives:
                share = -1 / len(positives) if i in positives else 1 / len(negatives)
            assert targets[i, c].item() == pytest.approx(5 / 2 * share)  # 5/2: a common factor
    assert (targets[:, 2] == 0).all()  # every record is positive: no AUROC


def test_auroc_targets_are_the_gradient_of_the_mean_difference_of_scores():
    """The objective is, up to a factor, Σ_c (mean score of negatives − mean score of positives)."""
    labels = ecgs(7)[1]
    scores = torch.randn(7, 3, generator=seeded(3))
    wanted = sum(scores[labels[:, c] == 0, c].mean() - scores[labels[:, c] == 1, c].mean() for c in range(3))
    torch.testing.assert_close(signed_scores(scores, auroc_targets(labels)).sum() / (7 / 2), wanted)


def test_label_targets_attack_one_label_alone():
    labels = torch.tensor([[1.0, 0], [0, 1], [1, 1]])
    assert label_targets(labels, 1).tolist() == [[0, 1], [0, -1], [0, -1]]


def size_of(delta, mask, norm):
    """Largest amplitude of each record, or root mean square over the samples that may change."""
    if norm == "linf":
        return delta.abs().amax((1, 2))
    count = mask.expand_as(delta).sum((1, 2)).clamp(min=1)
    return (delta.square().sum((1, 2)) / count).sqrt()


# ---- the ball --------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    shape=some.tuples(some.integers(1, 7), some.integers(1, 3), some.integers(1, 8)),
    epsilon=some.floats(1e-4, 10),
    steps=some.integers(1, 4),
    restarts=some.integers(1, 2),
    step=some.one_of(some.none(), some.floats(0.01, 5)),
    batch_size=some.integers(1, 8),
    masked=some.sampled_from(["nowhere", "leads", "samples", "records"]),
    norm=some.sampled_from(["linf", "l2"]),
    name=some.sampled_from(sorted(OBJECTIVES)),
    multilabel=some.booleans(),
    seed=some.integers(0, 1000),
)
def test_perturbations_stay_in_the_ball_and_off_the_masked_samples(
    shape, epsilon, steps, restarts, step, batch_size, masked, norm, name, multilabel, seed
):
    records, leads, samples = shape
    victim = curved(2, leads, samples, seed, multilabel)
    signals, labels = ecgs(records, 2, leads, samples, seed, multilabel)
    size = {"nowhere": (1, 1, 1), "leads": (leads, 1), "samples": (1, 1, samples), "records": (records, 1, 1)}
    mask = (torch.rand(size[masked], generator=seeded(seed)) < 0.5).float()
    objective, targets = OBJECTIVES[name]
    budget = Budget(epsilon, steps, restarts, step, batch_size, norm, mask)
    problem = Problem.of(victim, signals, objective, targets(labels, multilabel))
    delta = pgd(problem, budget, seeded(seed))
    assert delta.shape == signals.shape
    assert torch.isfinite(delta).all()
    assert (size_of(delta, mask, norm) <= epsilon * (1 + 1e-6)).all()
    assert (delta * (1 - mask) == 0).all()


@pytest.mark.parametrize("name", sorted(ATTACKS))
@pytest.mark.parametrize("multilabel", [True, False])
def test_every_attack_stays_in_the_ball_and_repeats_with_its_generator(name, multilabel):
    victim = curved(samples=40, multilabel=multilabel)
    signals, labels = ecgs(samples=40, multilabel=multilabel)
    budget = Budget(0.05, steps=3, restarts=2, batch_size=4)
    one, again, other = (get_attack(name)(victim, signals, labels, budget, seeded(s)) for s in (0, 0, 1))
    assert 0 < one.abs().max() <= torch.tensor(0.05)
    assert torch.equal(one, again)
    if name not in ("fgsm", "sap"):  # without a random start, or with one that may not win
        assert not torch.equal(one, other)


def test_the_signals_are_left_as_they_were():
    victim, (signals, labels) = curved(), ecgs()
    before = signals.clone()
    get_attack("pgd-margin")(victim, signals, labels, Budget(0.1, 3), seeded())
    assert torch.equal(signals, before)
    assert not signals.requires_grad


def test_random_starts_fill_the_ball_evenly():
    noise = Ball(0.02).start(torch.zeros(50, 2, 100), seeded()) / 0.02
    assert noise.abs().max() <= 1
    assert noise.mean().abs() < 0.02
    assert noise.var().item() == pytest.approx(1 / 3, rel=0.03)


# ---- the optimum -----------------------------------------------------------------------------------


@pytest.mark.parametrize("attack", ["fgsm", "pgd-margin"])
@pytest.mark.parametrize("epsilon", [0.01, 0.5])
def test_on_a_linear_model_the_margin_falls_by_epsilon_times_the_l1_norm(attack, epsilon):
    victim, weight = linear(classes=1)
    signals, labels = ecgs(8, 1)
    labels = (torch.arange(8) % 2).float()[:, None]
    budget = Budget(epsilon, steps=20)
    delta = get_attack(attack)(victim, signals, labels, budget, seeded())
    change = (victim.scores(signals + delta) - victim.scores(signals))[:, 0]
    torch.testing.assert_close(
        change, (1 - 2 * labels[:, 0]) * epsilon * weight.abs().sum(), rtol=1e-4, atol=1e-5
    )


def test_on_a_linear_model_the_shared_attack_reaches_the_best_of_all_labels_together():
    victim, weight = linear()
    signals, labels = ecgs(9)
    targets = auroc_targets(labels)
    delta = get_attack("pgd-margin")(victim, signals, labels, Budget(0.1, 20), seeded())
    gain = signed_scores(victim.scores(signals + delta), targets) - signed_scores(
        victim.scores(signals), targets
    )
    torch.testing.assert_close(gain, 0.1 * (targets @ weight).abs().sum(1), rtol=1e-4, atol=1e-5)


def test_pgd_finds_the_largest_objective_of_a_fine_grid():
    """One lead of one sample: the ball is an interval, which a grid covers."""
    victim, (signals, labels) = curved(1, 1, 1), ecgs(10, 1, 1, 1)
    targets = label_targets(labels, 0)
    grid = torch.linspace(-1.5, 1.5, 3001)
    values = torch.stack([signed_scores(victim.scores(signals + d), targets) for d in grid])
    delta = pgd(Problem.of(victim, signals, signed_scores, targets), Budget(1.5, 60, 20), seeded())
    found = signed_scores(victim.scores(signals + delta), targets)
    assert (values.amax(0) - found).max() < 0.01
    assert (values.amax(0) - values.amin(0)).min() > 0.1  # there is something to find


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_an_attack_never_ends_below_its_start_nor_below_no_attack(name):
    victim, (signals, labels) = curved(), ecgs(20)
    objective, targets = OBJECTIVES[name]
    wanted = targets(labels, True)
    start = Ball(0.8).start(signals, seeded(5))
    budget = Budget(0.8, steps=1, step=2.0)  # a step so long that it often overshoots
    delta = pgd(Problem.of(victim, signals, objective, wanted, start), budget, seeded())

    def value(d):
        return objective(victim.scores(signals + d), wanted)

    tolerance = 1e-5
    assert (value(delta) >= value(torch.zeros_like(signals)) - tolerance).all()
    assert (value(delta) >= value(start) - tolerance).all()
    assert (delta == start).flatten(1).all(1).any() or (delta == 0).flatten(1).all(1).any()


@pytest.mark.parametrize("more", [{"steps": 12}, {"restarts": 4}])
def test_more_steps_or_restarts_never_find_less(more):
    """With a fixed step length and generator the smaller budget is a prefix of the larger one."""
    victim, (signals, labels) = curved(), ecgs(30)
    targets = auroc_targets(labels)
    values = []
    for spent in ({}, more):
        budget = Budget(0.5, **{"steps": 3, "restarts": 1, "step": 0.6, **spent})
        delta = pgd(Problem.of(victim, signals, signed_scores, targets), budget, seeded())
        values.append(signed_scores(victim.scores(signals + delta), targets))
    assert (values[1] >= values[0] - 1e-6).all()
    assert (values[1] > values[0] + 1e-3).any()


def test_nothing_stops_at_a_label_flip():
    victim, weight = linear(classes=1)
    signals, labels = torch.zeros(2, 2, 5), torch.tensor([[0.0], [1.0]])  # both on the boundary
    delta = pgd(Problem.of(victim, signals, signed_scores, auroc_targets(labels)), Budget(0.1), seeded())
    reach = 0.1 * weight.abs().sum().item()
    assert victim.scores(delta)[:, 0].tolist() == pytest.approx([reach, -reach], rel=1e-4)


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_the_batch_size_does_not_change_fgsm(batch_size):
    victim, (signals, labels) = curved(), ecgs(7)
    whole = get_attack("fgsm")(victim, signals, labels, Budget(0.05, batch_size=7), seeded())
    parts = get_attack("fgsm")(victim, signals, labels, Budget(0.05, batch_size=batch_size), seeded())
    torch.testing.assert_close(parts, whole)


def test_fgsm_takes_one_step_of_epsilon_along_the_sign_of_the_gradient():
    victim, (signals, labels) = curved(multilabel=False), ecgs(5, multilabel=False)
    leaf = signals.clone().requires_grad_()
    nn.functional.cross_entropy(victim.model(leaf), labels.argmax(1), reduction="sum").backward()
    delta = get_attack("fgsm")(victim, signals, labels, Budget(0.001), seeded())
    torch.testing.assert_close(delta, 0.001 * leaf.grad.sign())


@pytest.mark.parametrize("attack", ["pgd-margin", "pgd-ce"])
def test_attacks_lower_the_auroc_where_noise_does_not(attack):
    victim, signals = linear(multilabel=False)[0], ecgs(90)[0]
    labels = torch.eye(3)[victim.scores(signals).argmax(1)]
    budget = Budget(0.3)

    def auroc(name):
        delta = get_attack(name)(victim, signals, labels, budget, seeded())
        return roc_auc_score(labels, victim.scores(signals + delta))

    clean = roc_auc_score(labels, victim.scores(signals))
    assert auroc(attack) < 0.7 * clean
    assert abs(auroc("noise") - clean) < 0.02


def test_padding_stays_zero():
    victim, (signals, labels) = curved(samples=8), ecgs(samples=8)
    signals[:, :, 6:] = 0
    mask = (torch.arange(8) < 6).float()
    problem = Problem.of(victim, signals, signed_scores, auroc_targets(labels))
    delta = pgd(problem, Budget(0.1, 4, 2, mask=mask), seeded())
    assert (delta[:, :, 6:] == 0).all()
    assert (delta[:, :, :6] != 0).any(0).all()


def test_a_mask_of_leads_means_the_same_in_every_batch():
    victim, (signals, labels) = curved(), ecgs(4)
    mask = torch.tensor([[1.0] * 5, [0.0] * 5])  # (leads, samples): the first lead only
    for batch_size in (1, 2, 4):
        budget = Budget(0.1, 3, batch_size=batch_size, mask=mask)
        delta = pgd(Problem.of(victim, signals, signed_scores, auroc_targets(labels)), budget, seeded())
        assert (delta[:, 1] == 0).all()
        assert (delta[:, 0].abs() > 0).any(1).all()


def test_an_unknown_attack_is_an_error_that_names_those_there_are():
    with pytest.raises(
        StudyError, match="unknown attack 'autoattack'; known: noise, fgsm, pgd-ce, pgd-margin"
    ):
        get_attack("autoattack")


@pytest.mark.parametrize("steps", [1, 5, 20])
def test_the_default_step_lets_any_start_reach_any_corner(steps):
    assert Budget(0.02, steps).step_mv * steps == pytest.approx(2.5 * 0.02)


def test_scores_are_float32_even_where_the_model_is_not():
    victim = Victim(lambda x: x.flatten(1).bfloat16(), True)
    assert victim.scores(torch.zeros(2, 1, 3)).dtype == torch.float32


def test_attacks_on_independent_records_do_not_depend_on_their_company():
    victim, (signals, labels) = curved(), ecgs(6)
    targets = auroc_targets(labels)
    budget, whole = Budget(0.1, 5), Problem.of(victim, signals, signed_scores, targets)
    together = pgd(whole, budget, seeded(), random_start=False)
    for i in range(6):
        part = Problem.of(victim, signals[[i]], signed_scores, targets[[i]])
        alone = pgd(part, budget, seeded(), random_start=False)
        torch.testing.assert_close(alone[0], together[i])
