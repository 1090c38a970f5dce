"""APGD against the published algorithm, written again record by record."""

from fractions import Fraction
from math import ceil

import pytest
import torch
from torch import Generator

from ecgstudy.attacks.api import Budget, Problem
from ecgstudy.attacks.gradient import apgd, checkpoints


def seeded(seed=0):
    return Generator().manual_seed(seed)


def test_checkpoints_of_100_steps_are_the_papers():
    assert checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]


def published_checkpoints(steps):
    """p₀ = 0, p₁ = 0.22, p_{j+1} = p_j + max(p_j − p_{j−1} − 0.03, 0.06); ⌈p_j · steps⌉
    (section 3)."""
    p = [Fraction(0), Fraction(22, 100)]
    while p[-1] <= 1:
        p.append(p[-1] + max(p[-1] - p[-2] - Fraction(3, 100), Fraction(6, 100)))
    return [ceil(part * steps) for part in p[1:-1]]


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 10, 20, 40, 50, 100, 1000])
def test_checkpoints_follow_the_published_recursion(steps):
    assert checkpoints(steps) == sorted(set(published_checkpoints(steps)))


def waves(seed=0, leads=2, samples=6):
    """An uneven objective in float64 of signals (records, leads, samples), per
    record."""
    inner = torch.randn(
        leads * samples, 12, generator=seeded(seed), dtype=torch.float64
    )
    outer = torch.randn(12, generator=seeded(seed + 1), dtype=torch.float64)
    return lambda x: torch.sin(1.3 * (x.flatten(1) @ inner)) @ outer


def projected(delta, epsilon, norm):
    if norm == "linf":
        return delta.clamp(-epsilon, epsilon)
    reach = epsilon * delta.numel() ** 0.5
    return delta * min(1.0, reach / float(delta.norm()))


def published_apgd(value, clean, start, epsilon, norm, steps):
    """Algorithm 1 of Croce & Hein 2020 for one record: every point met, the best one,
    and its step sizes."""

    def gradient(delta):
        leaf = delta.clone().requires_grad_()
        value((clean + leaf)[None]).sum().backward()
        g = leaf.grad
        return g.sign() if norm == "linf" else g / g.norm() * g.numel() ** 0.5

    def at(delta):
        return float(value((clean + delta)[None]))

    x, f, raised, halvings = [start], [at(start)], [], 0
    met, best, highest, step = [start], start, f[0], 2 * epsilon
    last, step_then, highest_then = 0, step, highest
    for k in range(1, steps + 1):
        z = projected(x[-1] + step * gradient(x[-1]), epsilon, norm)
        if k > 1:
            z = projected(
                x[-1] + 0.75 * (z - x[-1]) + 0.25 * (x[-1] - x[-2]), epsilon, norm
            )
        x, f, met = [*x, z], [*f, at(z)], [*met, z]
        raised.append(f[-1] > f[-2])
        if f[-1] > highest:
            best, highest = z, f[-1]
        if k in published_checkpoints(steps):
            first = sum(raised[last:k]) < 0.75 * (k - last)
            second = step == step_then and highest == highest_then
            last, step_then, highest_then = k, step, highest
            if first or second:
                step, x[-1], f[-1], halvings = step / 2, best, highest, halvings + 1
    return torch.stack(met), best, highest, halvings


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("steps", [1, 2, 5, 20, 100])
def test_every_iterate_is_that_of_the_published_algorithm(norm, steps):
    value, clean = (
        waves(),
        torch.randn(5, 2, 6, generator=seeded(3), dtype=torch.float64),
    )
    start, seen = (
        torch.rand(5, 2, 6, generator=seeded(4), dtype=torch.float64) - 0.5,
        [],
    )

    def watched(x, rows):
        seen.append(x.detach() - clean[rows])
        return value(x)

    found = apgd(
        Problem(clean, watched, start), Budget(0.4, steps, norm=norm), seeded()
    )
    kept = torch.stack(seen[1:])  # after that of δ = 0
    halvings = []
    for i in range(5):
        first = projected(start[i], 0.4, norm)
        met, best, highest, halved = published_apgd(
            value, clean[i], first, 0.4, norm, steps
        )
        torch.testing.assert_close(
            kept[:, i], met, rtol=0, atol=1e-5
        )  # rounding grows on the way
        none = value(clean[[i]]).item()
        expected = best if highest > none else torch.zeros_like(best)
        torch.testing.assert_close(found[i], expected, rtol=0, atol=1e-5)
        halvings.append(halved)
    if steps == 100:
        assert 1 <= min(halvings) < max(halvings)


def test_step_sizes_halve_for_each_record_alone():
    """A plane is climbed with whole steps while a narrow valley beside it needs smaller
    ones."""
    clean, seen = torch.zeros(2, 1, 1, dtype=torch.float64), []

    def value(x, rows):
        seen.append(x.detach().flatten())
        return torch.stack([x[0].sum(), -(x[1].sum() - 0.1).abs()])

    apgd(Problem(clean, value, torch.zeros_like(clean) - 1), Budget(1.0, 60), seeded())
    moves = torch.stack(seen[2:]).diff(dim=0).abs()
    assert (torch.stack(seen[4:])[:, 0] == 1).all()
    assert moves[-8:, 1].max() < 0.2 * moves[:8, 1].max()
    assert torch.stack(seen)[:, 1].sub(0.1).abs().min() < 0.02


def test_a_plane_in_a_ball_is_climbed_in_one_step():
    weight = torch.randn(2, 6, generator=seeded(5))
    for norm, best in (("linf", weight.abs().sum()), ("l2", 12**0.5 * weight.norm())):
        problem = Problem(
            torch.zeros(3, 2, 6),
            lambda x, rows: (x * weight).sum((1, 2)),
            torch.zeros(3, 2, 6),
        )
        delta = apgd(problem, Budget(0.2, 1, norm=norm), seeded())
        torch.testing.assert_close((delta * weight).sum((1, 2)), (0.2 * best).expand(3))


def test_the_last_point_costs_no_gradient():
    graded = []

    def value(x, rows):
        graded.append(torch.is_grad_enabled())
        return x.sum((1, 2))

    apgd(
        Problem(torch.zeros(2, 1, 3), value), Budget(0.1, steps=7, restarts=2), seeded()
    )
    assert graded == [False, *([True] * 7 + [False]) * 2]


def test_more_steps_find_more_on_average():
    """Not for every record: the schedule of a longer search differs from the first
    step's halving on."""
    value, clean = (
        waves(),
        torch.randn(200, 2, 6, generator=seeded(3), dtype=torch.float64),
    )
    means = []
    for steps in (1, 5, 25, 100):
        delta = apgd(
            Problem(clean, lambda x, rows: value(x)), Budget(0.6, steps), seeded()
        )
        means.append(value(clean + delta).mean().item())
    assert means == sorted(means)
    assert means[-1] > means[1] + 0.1
