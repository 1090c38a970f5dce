"""The ball and the ascent in it: nearest points, steepest directions, even starts."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from torch import Generator

from ecgstudy.attacks.ball import Ball, ascend

NORMS = ["linf", "l2"]


def seeded(seed=0):
    return Generator().manual_seed(seed)


def noise(*shape, seed=0, scale=1.0):
    return scale * torch.randn(shape, generator=seeded(seed))


def size_of(delta, norm, mask=None):
    """Largest amplitude of each record, or root mean square over the samples that may
    change."""
    if norm == "linf":
        return delta.abs().amax((1, 2))
    count = torch.ones_like(delta) if mask is None else mask.expand_as(delta).to(delta)
    return (delta.square().sum((1, 2)) / count.sum((1, 2)).clamp(min=1)).sqrt()


some_masks = some.sampled_from([None, "leads", "samples", "records", "everything"])


def mask_of(kind, shape, seed):
    """A random mask of whole leads, samples or records, nothing at all, or no mask."""
    records, leads, samples = shape
    sizes = {
        "leads": (leads, 1),
        "samples": (1, 1, samples),
        "records": (records, 1, 1),
    }
    if kind is None:
        return None
    if kind == "everything":
        return torch.zeros(1)
    return (torch.rand(sizes[kind], generator=seeded(seed)) < 0.5).float()


@settings(max_examples=150, deadline=None)
@given(
    shape=some.tuples(some.integers(1, 5), some.integers(1, 12), some.integers(1, 9)),
    norm=some.sampled_from(NORMS),
    epsilon=some.floats(1e-4, 10),
    scale=some.sampled_from([1e-30, 1e-3, 1.0, 1e6]),
    masked=some_masks,
    double=some.booleans(),
    seed=some.integers(0, 10**6),
)
def test_starts_and_projections_lie_in_the_ball_and_directions_have_amplitude_1(
    shape, norm, epsilon, scale, masked, double, seed
):
    mask = mask_of(masked, shape, seed)
    ball = Ball(epsilon, norm, mask)
    there = noise(*shape, seed=seed, scale=scale).to(
        torch.float64 if double else torch.float32
    )
    free = torch.ones(shape) if mask is None else mask.expand(shape)
    for delta in (ball.draw(there, seeded(seed)), ball.project(there)):
        assert delta.dtype == there.dtype
        assert delta.isfinite().all()
        assert (delta * (1 - free) == 0).all()
        assert (size_of(delta, norm, mask) <= epsilon * (1 + 1e-6)).all()
    direction = ball.direction(there)
    assert direction.isfinite().all()
    assert (direction * (1 - free) == 0).all()
    sizes = size_of(direction, norm, mask)
    torch.testing.assert_close(sizes, (free > 0).flatten(1).any(1).to(sizes))
    outside = size_of(there * free, norm, mask) > epsilon
    assert torch.equal(
        ball.project(there)[~outside], (there * free)[~outside].to(there)
    )


@pytest.mark.parametrize("norm", NORMS)
def test_no_point_of_the_ball_is_nearer_than_the_projection(norm):
    mask = torch.tensor([1.0, 1, 0, 1])
    ball, there = Ball(0.3, norm, mask), noise(20, 2, 4)
    found = (ball.project(there) - there * mask).square().sum((1, 2))
    for seed in range(200):
        other = ball.draw(there, seeded(seed))
        assert (found <= (other - there * mask).square().sum((1, 2))).all()


@pytest.mark.parametrize("norm", NORMS)
def test_no_direction_of_amplitude_1_is_steeper(norm):
    mask = torch.tensor([[1.0], [0.0], [1.0]])
    gradient = noise(5, 3, 4)
    ball = Ball(1.0, norm, mask)
    found = (gradient * ball.direction(gradient)).sum((1, 2))
    free = gradient * mask
    best = (
        free.abs().sum((1, 2))
        if norm == "linf"
        else 8**0.5 * free.square().sum((1, 2)).sqrt()
    )
    torch.testing.assert_close(found, best)
    for seed in range(200):
        assert (
            found >= (gradient * ball.draw(gradient, seeded(seed))).sum((1, 2))
        ).all()


@pytest.mark.parametrize("norm", NORMS)
def test_a_record_without_gradient_stays_where_it_is(norm):
    gradient = noise(3, 1, 5)
    gradient[1] = 0
    direction = Ball(1.0, norm).direction(gradient)
    assert (direction[1] == 0).all()
    assert (direction[[0, 2]] != 0).all()


@pytest.mark.parametrize("norm", NORMS)
def test_starts_fill_the_ball_evenly(norm):
    """In the ℓ∞ ball every sample is uniform; in the ℓ2 ball of n samples P(size ≤ r) =
    rⁿ."""
    ball, n = Ball(0.02, norm, torch.tensor([1.0, 0, 1, 1])), 6
    starts = ball.draw(torch.zeros(20_000, 2, 4), seeded()) / 0.02
    assert starts.mean((0, 1)).abs().max() < 0.02
    if norm == "linf":
        torch.testing.assert_close(starts.var((0, 1)), ball.mask / 3, atol=0.01, rtol=0)
    else:
        sizes = size_of(starts, norm, ball.mask)
        for r in (0.6, 0.8, 0.95):
            assert (sizes <= r).double().mean().item() == pytest.approx(r**n, abs=0.012)


def test_the_l2_ball_holds_the_linf_ball_of_the_same_epsilon():
    corners = 0.1 * noise(50, 2, 7).sign()
    torch.testing.assert_close(Ball(0.1, "l2").project(corners), corners)
    single = torch.zeros(1, 2, 7)
    single[0, 0, 0] = 1
    assert Ball(0.1, "l2").project(single).max().item() == pytest.approx(0.1 * 14**0.5)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("rows", [slice(1, 3), torch.tensor([2, 0])])
@pytest.mark.parametrize("size", [(1, 1, 4), (3, 2, 1), (4,)])
def test_the_ball_of_some_records_is_that_of_all_of_them(norm, rows, size):
    mask = (noise(*size, seed=3) > -0.5).float()
    ball, there = Ball(0.3, norm, mask), noise(3, 2, 4)
    torch.testing.assert_close(
        ball.select(rows, there).project(there[rows]), ball.project(there)[rows]
    )


def test_boolean_masks_mean_the_same():
    there, mask = noise(3, 2, 4), torch.tensor([True, False, True, True])
    for norm in NORMS:
        one, other = Ball(0.3, norm, mask), Ball(0.3, norm, mask.float())
        assert torch.equal(one.project(there), other.project(there))
        assert torch.equal(one.draw(there, seeded()), other.draw(there, seeded()))
        assert torch.equal(one.direction(there), other.direction(there))


def test_the_ascent_visits_every_iterate_but_the_last_and_steps_by_the_step():
    weight, signals, visited = noise(2, 3), noise(4, 2, 3), []

    def value(x):
        return (x * weight).sum((1, 2))

    last = ascend(
        value,
        signals,
        torch.zeros_like(signals),
        Ball(0.25),
        steps=4,
        step_mv=0.1,
        visit=lambda *seen: visited.append(seen),
    )
    for k, (delta, values) in enumerate(visited):
        torch.testing.assert_close(
            delta, (min(0.1 * k, 0.25) * weight.sign()).expand(4, 2, 3)
        )
        torch.testing.assert_close(values, value(signals + delta))
        assert not delta.requires_grad
    assert len(visited) == 4
    torch.testing.assert_close(last, (0.25 * weight.sign()).expand(4, 2, 3))
