"""The universal perturbation against every corner of small balls."""

import weakref
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from toy import toy_records
from victims import curved, ecgs, linear, seeded

from ecgstudy.attacks.api import Budget, Problem, Victim
from ecgstudy.attacks.named import get_attack, scores_problem
from ecgstudy.attacks.universal import universal
from ecgstudy.errors import StudyError
from ecgstudy.evaluation.sample import macro_auroc


def mean_value(problem, delta):
    return problem.values(delta, 64).mean().item()


@pytest.mark.parametrize("masked", ["nowhere", "samples", "records"])
@pytest.mark.parametrize("seed", range(3))
def test_it_finds_the_best_corner_of_a_small_ball(masked, seed):
    """Cross-entropy of a linear model is convex in δ, so that its largest mean is at a
    corner."""
    victim, _ = linear(samples=4, seed=seed)
    signals, labels = ecgs(5, samples=4, seed=seed)
    problem = scores_problem("ce", victim, signals, labels)
    size = {"nowhere": (1, 1, 1), "samples": (1, 1, 4), "records": (5, 1, 4)}[masked]
    free = (
        torch.ones(size)
        if masked == "nowhere"
        else (torch.rand(size, generator=seeded(seed)) < 0.7).float()
    )
    corners = 0.3 * torch.tensor(list(product([-1.0, 1.0], repeat=8))).view(-1, 1, 2, 4)
    best = max(
        mean_value(problem, corner * free.expand_as(signals)) for corner in corners
    )
    found = universal(problem, Budget(0.3, 30, 20, mask=free), seeded())
    assert mean_value(problem, found) == pytest.approx(best, rel=1e-4)


def test_a_universal_shift_changes_no_auroc_of_a_linear_model():
    victim, _ = linear()
    signals, labels = ecgs(9)
    delta = get_attack("universal")(victim, signals, labels, Budget(1.0), seeded())
    before, after = (
        macro_auroc(labels, victim.scores(x)) for x in (signals, signals + delta)
    )
    assert after == pytest.approx(before)


def test_fitted_on_the_records_it_beats_what_was_found_on_others():
    victim, (signals, labels) = curved(samples=20), ecgs(24, samples=20)
    own = scores_problem("ce", victim, signals[:12], labels[:12])
    other = scores_problem("ce", victim, signals[12:], labels[12:])
    budget = Budget(0.2, 40, 3)
    single = mean_value(
        own, get_attack("apgd-ce")(victim, signals[:12], labels[:12], budget, seeded())
    )
    fitted, held_out = (
        mean_value(own, universal(p, budget, seeded())) for p in (own, other)
    )
    assert single > fitted > held_out
    assert fitted > mean_value(own, torch.zeros_like(signals[:12]))


@settings(deadline=None, max_examples=30)
@given(
    shape=some.tuples(some.integers(3, 6), some.integers(1, 3), some.integers(1, 8)),
    epsilon=some.floats(1e-4, 10),
    steps=some.integers(1, 4),
    restarts=some.integers(1, 2),
    batch_size=some.integers(1, 8),
    masked=some.sampled_from(["nowhere", "leads", "samples", "records"]),
    seed=some.integers(0, 1000),
)
def test_it_is_one_perturbation_in_the_ball_that_repeats_and_never_ends_below_none(
    shape, epsilon, steps, restarts, batch_size, masked, seed
):
    records, leads, samples = shape
    victim, (signals, labels) = (
        curved(leads, samples, seed=seed),
        ecgs(records, leads, samples, seed=seed),
    )
    size = {
        "nowhere": (1, 1, 1),
        "leads": (leads, 1),
        "samples": (1, 1, samples),
        "records": (records, 1, 1),
    }
    free = (torch.rand(size[masked], generator=seeded(seed)) < 0.6).float()
    budget = Budget(epsilon, steps, restarts, batch_size=batch_size, mask=free)
    problem = scores_problem("margin", victim, signals, labels)
    delta = universal(problem, budget, seeded(seed))
    assert delta.shape == signals.shape
    assert torch.isfinite(delta).all()
    assert delta.abs().max() <= torch.tensor(epsilon)
    largest = delta.abs().amax(0)
    assert ((delta == 0) | (delta.abs() == largest)).all()
    assert (delta * (1 - free) == 0).all()
    if masked in ("nowhere", "leads", "samples"):
        assert (delta == delta[0]).all()
    assert (
        mean_value(problem, delta)
        >= mean_value(problem, torch.zeros_like(signals)) - 1e-5
    )
    assert torch.equal(delta, universal(problem, budget, seeded(seed)))


def test_batches_do_not_change_the_result():
    victim, (signals, labels) = curved(), ecgs(7)
    problem = scores_problem("margin", victim, signals, labels)
    one, other = (
        mean_value(problem, universal(problem, Budget(0.1, 5, batch_size=n), seeded()))
        for n in (2, 7)
    )
    assert one == pytest.approx(other, rel=1e-3)


def test_only_one_batch_at_a_time_is_kept_for_the_gradient():
    alive, most = weakref.WeakSet(), []

    def objective(perturbed, rows):
        hidden = perturbed.sin()
        alive.add(hidden)
        most.append((len(perturbed), len(alive)))
        return hidden.square().sum((1, 2))

    problem = Problem(torch.randn(40, 1, 8, generator=seeded()), objective)
    universal(problem, Budget(0.1, 3, batch_size=4), seeded())
    assert max(most) <= (4, 2)


def test_more_restarts_never_find_less():
    victim, (signals, labels) = curved(), ecgs(9)
    problem = scores_problem("margin", victim, signals, labels)
    few, many = (
        mean_value(problem, universal(problem, Budget(2.0, 3, n), seeded()))
        for n in (1, 6)
    )
    assert many > few


def test_an_l2_ball_is_an_error():
    victim, (signals, labels) = curved(), ecgs()
    with pytest.raises(StudyError, match="norm 'l2'"):
        get_attack("universal")(
            victim, signals, labels, Budget(0.1, norm="l2"), seeded()
        )


def test_auroc_falls_where_noise_does_nothing():
    """The victim asks whether each class's bump is 1 mV high; one shift makes it so in
    other records."""
    records = toy_records(multilabel=True)
    signals, labels = torch.tensor(records.signals), torch.tensor(records.multi_hot())
    bumps = torch.exp(
        -(((torch.arange(96) - torch.tensor([[24], [48], [72]])) / 5) ** 2)
    )
    bumps = bumps / bumps.square().sum(1, keepdim=True)
    victim = Victim(lambda x: -((x[:, 0] @ bumps.T - 1) ** 2), True)
    noise, delta = (
        get_attack(n)(victim, signals, labels, Budget(0.5), seeded())
        for n in ("noise", "universal")
    )
    clean, noisy, attacked = (
        macro_auroc(labels, victim.scores(signals + d)) for d in (0, noise, delta)
    )
    assert clean - noisy < 0.005
    assert attacked < 0.5
