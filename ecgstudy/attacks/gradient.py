"""Attacks that follow the input gradient, inside a ball in mV on the raw signal."""

import torch
from torch import Generator, Tensor

from ecgstudy.attacks.api import Best, Budget, Problem, first_best, settled
from ecgstudy.attacks.ball import Ball, ascend


def pgd(
    problem: Problem, budget: Budget, generator: Generator, *, random_start: bool = True
) -> Tensor:
    """Projected gradient descent (Madry et al. 2018), keeping each record's best δ of the whole budget.

    AUROC needs the *largest* change of every score, so nothing stops at a label flip. δ = 0 and the
    problem's start are candidates too: the objective never ends below either. Parameters and result as of
    `ecgstudy.attacks.api.Search`; without `random_start` every restart begins at δ = 0 (FGSM).
    """
    met = "start" if problem.start is not None else None if random_start else "zero"
    first = first_best(problem, budget, met=met if problem.exact else None)
    best = Best(first.delta, first.values)
    for restart in range(budget.restarts):
        start = _start(problem, budget.ball, generator, restart, random_start)
        for rows in problem.batches(budget.batch_size):
            _pgd_once(problem, rows, start[rows], budget, best)
    return settled(problem, budget, best, first)


def _pgd_once(
    problem: Problem, rows: slice, start: Tensor, budget: Budget, best: Best
) -> None:
    clean, ball = problem.signals[rows], budget.ball.select(rows, problem.signals)

    def value(x: Tensor) -> Tensor:
        return problem.objective(x, rows)

    def visit(delta: Tensor, values: Tensor) -> None:
        best.visit(rows, delta, values)

    last = ascend(
        value,
        clean,
        start,
        ball,
        steps=budget.steps,
        step_mv=budget.step_mv,
        visit=visit,
    )
    with torch.no_grad():
        visit(last, value(clean + last))


def _start(
    problem: Problem, ball: Ball, generator: Generator, restart: int, random: bool
) -> Tensor:
    if problem.start is not None and restart == 0:
        return ball.project(problem.start)
    return (
        ball.draw(problem.signals, generator)
        if random
        else torch.zeros_like(problem.signals)
    )


MOMENTUM = 0.75
"""Share of the new step in APGD's update; the rest continues the last move (Croce & Hein 2020, section 3)."""
IMPROVED = 0.75
"""APGD halves a record's step when a smaller share of the steps since the last checkpoint improved it."""


def apgd(problem: Problem, budget: Budget, generator: Generator) -> Tensor:
    """Auto-PGD (Croce & Hein 2020, ICML, algorithm 1): momentum, and steps that halve by themselves.

    The first step is 2ε. At checkpoints (0.22 of the steps, then at intervals that shrink by 0.03 to at
    least 0.06) a record's step is halved, and its search goes back to its best δ, when fewer than 75 % of
    the steps since the last checkpoint raised its objective, or when neither step nor best has changed since.

    Parameters and result as of `pgd`; `budget.step` is not used.
    """
    met = "start" if problem.start is not None and problem.exact else None
    first = first_best(problem, budget, met=met)
    best = Best(first.delta, first.values)
    for restart in range(budget.restarts):
        start = _start(problem, budget.ball, generator, restart, True)
        for rows in problem.batches(budget.batch_size):
            found = _apgd_once(problem, rows, start[rows], budget)
            best.visit(rows, found.delta, found.values)
    return settled(problem, budget, best, first)


def checkpoints(steps: int) -> list[int]:
    """Steps after which APGD looks back, for a search of `steps` steps: ⌈p · steps⌉, p in whole percent."""
    ends, percent, period = set(), 0, 22
    while (percent := percent + period) <= 100:
        ends.add(-(-percent * steps // 100))
        period = max(period - 3, 6)
    return sorted(ends)


def _apgd_once(problem: Problem, rows: slice, start: Tensor, budget: Budget) -> Best:
    clean, ball = problem.signals[rows], budget.ball.select(rows, problem.signals)
    here, before, step = (
        start,
        start,
        clean.new_full((len(clean), 1, 1), 2 * ball.epsilon_mv),
    )
    values, gradient = _value_and_gradient(problem, rows, clean, here)
    best, uphill = (
        Best(here, values),
        gradient.clone(),
    )  # `uphill`: the gradient at the best δ
    rises, looked, known = (
        torch.zeros_like(values),
        0,
        values,
    )  # since the last checkpoint
    halved = torch.zeros_like(values, dtype=torch.bool)  # there
    for count in range(1, budget.steps + 1):
        ahead = ball.step(here, step, ball.direction(gradient))
        if count > 1:
            last = torch.sub(
                here, before, out=before
            )  # `start` too is ours to overwrite
            ahead = torch.lerp(here, ahead, MOMENTUM, out=ahead).add_(
                last, alpha=1 - MOMENTUM
            )
        before, here = here, ball.project_(ahead)
        if count == budget.steps:
            break
        old, (values, gradient) = (
            values,
            _value_and_gradient(problem, rows, clean, here),
        )
        rises += values > old
        better = best.visit(slice(None), here, values)
        torch.where(better[:, None, None], gradient, uphill, out=uphill)
        if count in checkpoints(budget.steps):
            idle = ~halved & (best.values == known)
            halved = (rises < IMPROVED * (count - looked)) | idle
            back = halved[:, None, None]
            step, here = (
                torch.where(back, step / 2, step),
                torch.where(back, best.delta, here),
            )
            gradient, values = (
                torch.where(back, uphill, gradient),
                torch.where(halved, best.values, values),
            )
            rises, looked, known = torch.zeros_like(rises), count, best.values.clone()
    with torch.no_grad():
        best.visit(slice(None), here, problem.objective(clean + here, rows))
    return best


def _value_and_gradient(
    problem: Problem, rows: slice, clean: Tensor, delta: Tensor
) -> tuple[Tensor, Tensor]:
    delta = delta.detach().requires_grad_()
    values = problem.objective(clean + delta, rows)
    (gradient,) = torch.autograd.grad(values.sum(), delta)
    return values.detach(), gradient
