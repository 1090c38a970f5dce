"""The label-free attack against plain loops and a fine grid."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from victims import aurocs, curved, ecgs, seeded

from ecgstudy.attacks.api import Budget, Victim
from ecgstudy.attacks.label_free import contrastive_loss
from ecgstudy.attacks.named import get_attack
from ecgstudy.errors import StudyError


def attack(victim, signals, budget, seed=0):
    return get_attack("label-free")(
        victim, signals, torch.zeros(len(signals), 3), budget, seeded(seed)
    )


def looped(perturbed, clean):
    """−log softmax of each perturbed feature's similarity to its own clean one, one
    pair at a time."""
    values = []
    for i, feature in enumerate(perturbed):
        each = []
        for other in clean:
            cosine = sum(a * b for a, b in zip(feature, other, strict=True))
            each.append(
                math.exp(cosine / (math.hypot(*feature) * math.hypot(*other)) / 0.5)
            )
        values.append(-math.log(each[i] / sum(each)))
    return values


def value(victim, signals, delta):
    perturbed, clean = victim.features(signals + delta), victim.features(signals)
    return np.array(looped(perturbed.double().tolist(), clean.double().tolist()))


def test_the_value_is_that_of_a_double_loop():
    victim, (signals, _) = curved(), ecgs(7)
    delta = torch.randn(7, 2, 5, generator=seeded(4))
    found = contrastive_loss(victim.features, signals, batch_size=3)
    for rows in (slice(0, 7), slice(2, 5), torch.tensor([6, 1])):
        np.testing.assert_allclose(
            found((signals + delta)[rows], rows),
            value(victim, signals, delta)[rows],
            rtol=1e-5,
        )


def test_it_finds_the_largest_value_of_a_fine_grid():
    """Features are a point in the plane, which is moved directly: the ball is a
    square."""
    victim = Victim(lambda x: x.flatten(1), True, lambda x: x.flatten(1))
    signals = torch.randn(6, 2, 1, generator=seeded(2))
    ticks = torch.linspace(-0.3, 0.3, 61)
    grid = torch.cartesian_prod(ticks, ticks)[:, None, :, None].expand(-1, 6, -1, -1)
    best = np.max([value(victim, signals, delta) for delta in grid[::1]], axis=0)
    found = value(victim, signals, attack(victim, signals, Budget(0.3, 50, 5)))
    assert (found >= best - 1e-3).all()
    assert (best - value(victim, signals, torch.zeros_like(signals)) > 0.01).all()


def test_labels_and_head_do_not_matter():
    victim, (signals, labels) = curved(), ecgs()
    other = Victim(lambda x: torch.zeros(len(x), 3), True, victim.features)
    budget, name = Budget(0.1, 5), "label-free"
    one = get_attack(name)(victim, signals, labels, budget, seeded())
    assert torch.equal(
        one, get_attack(name)(other, signals, 1 - labels, budget, seeded())
    )


@settings(deadline=None, max_examples=30)
@given(
    shape=some.tuples(some.integers(1, 6), some.integers(1, 3), some.integers(1, 8)),
    epsilon=some.floats(1e-4, 10),
    norm=some.sampled_from(["linf", "l2"]),
    restarts=some.integers(1, 2),
    batch_size=some.integers(1, 8),
    masked=some.sampled_from(["nowhere", "leads", "samples", "records"]),
    seed=some.integers(0, 1000),
)
def test_it_keeps_to_the_ball_repeats_and_never_ends_below_none(
    shape, epsilon, norm, restarts, batch_size, masked, seed
):
    records, leads, samples = shape
    victim = curved(leads, samples, seed=seed)
    signals = torch.randn(shape, generator=seeded(seed))
    size = {
        "nowhere": (1, 1, 1),
        "leads": (leads, 1),
        "samples": (1, 1, samples),
        "records": (records, 1, 1),
    }
    free = (torch.rand(size[masked], generator=seeded(seed)) < 0.6).float()
    budget = Budget(epsilon, 3, restarts, batch_size=batch_size, mask=free, norm=norm)
    delta = attack(victim, signals, budget)
    assert delta.shape == signals.shape
    assert torch.isfinite(delta).all()
    if norm == "linf":
        assert delta.abs().max() <= torch.tensor(epsilon)
    else:
        allowed = epsilon * free.expand_as(signals).sum((1, 2)).sqrt()
        assert (
            torch.linalg.vector_norm(delta, dim=(1, 2)) <= allowed * (1 + 1e-5)
        ).all()
    assert (delta * (1 - free) == 0).all()
    assert (
        value(victim, signals, delta)
        >= value(victim, signals, torch.zeros_like(signals)) - 1e-5
    ).all()
    assert torch.equal(delta, attack(victim, signals, budget))


def test_more_restarts_never_find_less():
    victim, (signals, _) = curved(), ecgs(12)
    few, many = (
        value(victim, signals, attack(victim, signals, Budget(1.0, 3, n)))
        for n in (1, 5)
    )
    assert (many >= few - 1e-6).all()
    assert (many > few + 1e-3).any()


def test_a_model_without_features_is_an_error():
    signals, labels = ecgs()
    with pytest.raises(StudyError, match="label-free needs the features"):
        get_attack("label-free")(
            Victim(lambda x: x, True), signals, labels, Budget(0.1), seeded()
        )


def test_auroc_falls_where_noise_does_nothing():
    clean, noisy, attacked = aurocs("label-free", 0.2)
    assert clean - noisy < 0.005
    assert attacked < 0.7
