"""Square attack: its set, its monotony, and closed forms on linear models."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from torch import Generator, nn

from ecgstudy.attacks.api import Budget, Problem, Victim
from ecgstudy.attacks.objectives import auroc_targets, signed_scores
from ecgstudy.attacks.square import HALVINGS, HORIZON, patch_share, square


def seeded(seed=0):
    return Generator().manual_seed(seed)


def curved(classes=3, leads=2, samples=20, seed=0):
    """A small victim with a curved loss surface."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Flatten(),
            nn.Linear(leads * samples, 16),
            nn.Tanh(),
            nn.Linear(16, classes),
        )
    return Victim(model.requires_grad_(False), True)


def ecgs(records=6, classes=3, leads=2, samples=20, seed=1):
    signals = torch.randn(records, leads, samples, generator=seeded(seed))
    labels = (torch.rand(records, classes, generator=seeded(seed + 1)) < 0.5).float()
    return signals, auroc_targets(labels)


def searched(victim, signals, targets, epsilon, queries, seed=0, **budget):
    """Square's perturbation for the sum of signed scores."""
    problem = Problem.of(victim, signals, signed_scores, targets)
    return square(problem, Budget(epsilon, queries=queries, **budget), seeded(seed))


def gain(victim, signals, targets, delta):
    with torch.no_grad():
        attacked, clean = victim.scores(signals + delta), victim.scores(signals)
    return signed_scores(attacked, targets) - signed_scores(clean, targets)


@settings(max_examples=40, deadline=None)
@given(
    shape=some.tuples(some.integers(1, 6), some.integers(1, 4), some.integers(1, 30)),
    epsilon=some.floats(1e-4, 10),
    queries=some.integers(0, 30),
    batch_size=some.integers(1, 7),
    masked=some.sampled_from(["nowhere", "leads", "samples", "records", "anywhere"]),
    seed=some.integers(0, 1000),
)
def test_perturbations_are_corners_of_the_ball_and_off_the_masked_samples(
    shape, epsilon, queries, batch_size, masked, seed
):
    records, leads, samples = shape
    size = {
        "nowhere": None,
        "leads": (leads, 1),
        "samples": (1, 1, samples),
        "records": (records, 1, 1),
    }
    size = size.get(masked, shape)
    mask = (
        None
        if size is None
        else (torch.rand(size, generator=seeded(seed)) < 0.5).float()
    )
    victim, (signals, targets) = (
        curved(3, leads, samples, seed),
        ecgs(records, 3, leads, samples, seed),
    )
    delta = searched(
        victim,
        signals,
        targets,
        epsilon,
        queries,
        seed,
        batch_size=batch_size,
        mask=mask,
    )
    assert delta.shape == signals.shape
    free = torch.ones(shape) if mask is None else mask.expand(shape)
    assert (delta * (1 - free) == 0).all()
    size = delta.abs()
    untouched = (size == 0).flatten(1).all(1)
    full = ((size == torch.tensor(epsilon)) == (free > 0)).flatten(1).all(1)
    assert (untouched | full).all()
    assert (gain(victim, signals, targets, delta) >= -1e-5).all()


def test_more_queries_never_find_less_and_mostly_find_more():
    victim, (signals, targets) = curved(), ecgs(12)
    gains = [
        gain(victim, signals, targets, searched(victim, signals, targets, 0.2, queries))
        for queries in (0, 1, 5, 20, 80, 300)
    ]
    assert (gains[0] == 0).all()
    for less, more in pairwise(gains):
        assert (more >= less - 1e-6).all()
    assert (gains[-1] > gains[2]).all()


@pytest.mark.parametrize(("leads", "samples", "queries"), [(1, 40, 300), (3, 40, 600)])
def test_on_a_linear_model_it_nears_the_closed_form_optimum(leads, samples, queries):
    weight = torch.randn(1, leads * samples, generator=seeded(4))
    victim = Victim(lambda x: x.flatten(1) @ weight.T, True)
    signals, targets = (
        torch.randn(8, leads, samples, generator=seeded(5)),
        torch.tensor([[1.0], [-1.0]]).repeat(4, 1),
    )
    delta = searched(victim, signals, targets, 0.05, queries)
    share = gain(victim, signals, targets, delta) / (0.05 * weight.abs().sum())
    assert share.min() > 0.97
    assert share.max() < 1 + 1e-4


def test_the_generator_alone_decides_whatever_the_batch_size():
    victim, (signals, targets) = curved(), ecgs(7)
    found = [
        searched(victim, signals, targets, 0.1, 40, seed, batch_size=size)
        for size, seed in ((256, 0), (256, 0), (2, 0), (256, 1))
    ]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    assert not torch.equal(found[0], found[3])


def test_records_do_not_influence_each_other():
    victim, (signals, targets) = curved(), ecgs(6)
    others, other_targets = signals.clone(), targets.clone()
    others[1:] *= -3
    other_targets[1:] *= -1
    found = [
        searched(victim, x, y, 0.1, 40)
        for x, y in ((signals, targets), (others, other_targets))
    ]
    assert torch.equal(found[0][0], found[1][0])
    assert not torch.equal(found[0][1:], found[1][1:])


def test_a_victim_without_gradient_is_attacked_all_the_same():
    """Counts of samples above a level: the gradient is zero everywhere."""
    victim = Victim(lambda x: torch.from_numpy((x.numpy() > 0.5).mean(axis=2)), True)
    signals = torch.rand(10, 2, 50, generator=seeded())
    targets = torch.tensor([1.0, -1.0]).repeat(10, 1)
    delta = searched(victim, signals, targets, 0.2, 400)
    raised = (signals[:, 0] <= 0.5) & (signals[:, 0] + 0.2 > 0.5)
    lowered = (signals[:, 1] > 0.5) & (signals[:, 1] - 0.2 <= 0.5)
    most = raised.float().mean(1) + lowered.float().mean(1)
    share = gain(victim, signals, targets, delta) / most
    assert share.min() > 0.9
    assert share.max() < 1 + 1e-6


def test_the_victim_sees_each_record_once_a_query_and_once_unharmed():
    seen = []

    def model(x):
        seen.append(len(x))
        return x.flatten(1)[:, :3]

    signals, targets = ecgs(5)
    searched(Victim(model, True), signals, targets, 0.1, 7, batch_size=2)
    assert sum(seen) == 5 * (1 + 7)
    assert max(seen) == 2


def test_no_query_is_spent_on_a_patch_that_changes_nothing():
    tried = []

    def model(x):
        tried.append(x.clone())
        return -x.abs().sum((1, 2))[
            :, None
        ]  # the clean signal is zero: no candidate is worse than another

    signals = torch.zeros(4, 2, 15)
    mask = torch.tensor([1.0, 0.0])[:, None]
    searched(Victim(model, True), signals, torch.ones(4, 1), 0.1, 60, mask=mask)
    stripes = tried[1]  # every further candidate ties with it, so that none is accepted
    for candidate in tried[2:]:
        assert (candidate != stripes).flatten(1).any(1).all()
        assert torch.equal(candidate[:, 1], signals[:, 1])


def test_patches_are_one_window_of_time_on_some_leads_and_shrink():
    tried = []

    def model(x):
        tried.append(x.clone())
        return -torch.full(
            (len(x), 1), float(len(tried))
        )  # worse every time: nothing is accepted

    signals, one = torch.zeros(10, 12, 60), torch.ones(10, 1)
    searched(Victim(model, True), signals, one, 0.1, 1000)
    for query in (1, 2, 6, 21, 51, 101, 201, 401, 601, 999):
        changed, share = tried[1 + query] != tried[1], patch_share(query)
        leads, time = changed.any(2).sum(1), changed.any(1)
        extent = time.shape[1] - time.flip(1).float().argmax(1) - time.float().argmax(1)
        width = max(1, round(12 * share**0.5))
        assert leads.max() <= width
        assert extent.max() <= max(1, round(share * 12 * 60 / width))
        assert (
            (leads * extent).float().mean() / (share * 12 * 60)
        ).item() == pytest.approx(0.8, abs=0.3)


def test_the_share_of_the_patch_follows_the_published_schedule():
    """Of 10,000 queries: p = 0.8, halved after 10, 50, 200, 500, 1,000, 2,000, 4,000,
    6,000 and 8,000."""
    scale = 10_000 // HORIZON
    assert patch_share(0) == 0.8
    for i, end in enumerate(HALVINGS):
        assert patch_share(end // scale) == pytest.approx(0.8 / 2**i)
        assert patch_share(end // scale + 1) == pytest.approx(0.8 / 2 ** (i + 1))
    assert patch_share(10 * HORIZON) == pytest.approx(0.8 / 512)


def test_single_label_scores_are_attacked_too():
    victim = Victim(lambda x: x.mean(2), multilabel=False)
    signals, targets = ecgs(4, leads=3)
    delta = searched(victim, signals, targets, 0.3, 50)
    assert (gain(victim, signals, targets, delta) > 0).all()
