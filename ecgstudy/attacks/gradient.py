"""Attacks that follow the input gradient, inside a ball in mV on the raw signal."""

import math

import torch
from torch import Generator, Tensor

from ecgstudy.attacks.ball import Ball, ascend
from ecgstudy.attacks.problem import Best, Budget, Problem, first_best


def pgd(problem: Problem, budget: Budget, generator: Generator, *, random_start: bool = True) -> Tensor:
    """Projected gradient descent (Madry et al. 2018), keeping each record's best δ of the whole budget.

    AUROC needs the *largest* change of every score, so nothing stops at a label flip. δ = 0 and the
    problem's start are candidates too: the objective never ends below either.

    Parameters
    ----------
    problem, budget
        What to raise; ε, norm, mask, steps, restarts.
    generator
        Source of the random starts, on the device of the signals.
    random_start
        False: every restart begins at δ = 0 (FGSM).

    Returns
    -------
    Tensor
        δ in mV, the shape of the signals.
    """
    best = first_best(problem, budget)
    for restart in range(budget.restarts):
        start = _start(problem, budget.ball, generator, restart, random_start)
        for rows in problem.batches(budget.batch_size):
            clean, ball = problem.signals[rows], budget.ball.rows(rows, problem.signals)

            def value(x: Tensor, rows: slice = rows) -> Tensor:
                return problem.objective(x, rows)

            def visit(delta: Tensor, values: Tensor, rows: slice = rows) -> None:
                best.visit(rows, delta, values)

            last = ascend(
                value, clean, start[rows], ball, steps=budget.steps, step_mv=budget.step_mv, visit=visit
            )
            with torch.no_grad():
                visit(last, value(clean + last))
    return best.delta


def _start(problem: Problem, ball: Ball, generator: Generator, restart: int, random: bool) -> Tensor:
    if problem.start is not None and restart == 0:
        return ball.project(problem.start)
    return ball.start(problem.signals, generator) if random else torch.zeros_like(problem.signals)


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
    best = first_best(problem, budget)
    for restart in range(budget.restarts):
        start = _start(problem, budget.ball, generator, restart, True)
        for rows in problem.batches(budget.batch_size):
            found = _apgd_once(problem, rows, start[rows], budget)
            best.visit(rows, found.delta, found.values)
    return best.delta


def checkpoints(steps: int) -> list[int]:
    """Steps after which APGD looks back, for a search of `steps` steps."""
    ends, last, period = [], 0.0, 0.22
    while (last := last + period) < 1 + 1e-9:
        ends.append(math.ceil(last * steps))
        period = max(period - 0.03, 0.06)
    return sorted(set(ends))


def _apgd_once(problem: Problem, rows: slice, start: Tensor, budget: Budget) -> Best:
    clean, ball = problem.signals[rows], budget.ball.rows(rows, problem.signals)
    here, step = start, torch.full((len(clean), 1, 1), 2 * ball.epsilon_mv).to(clean)
    values, gradient = _value_and_gradient(problem, rows, clean, here)
    best, uphill = Best(here, values), gradient.clone()  # `uphill`: the gradient at the best δ
    before, rises, looked = here, torch.zeros_like(values), 0
    unchanged, known = torch.zeros_like(values, dtype=torch.bool), values.clone()
    ends = set(checkpoints(budget.steps))
    for count in range(1, budget.steps + 1):
        share = MOMENTUM if count > 1 else 1.0
        target = ball.project(here + step * ball.direction(gradient))
        after = ball.project(here + share * (target - here) + (1 - share) * (here - before))
        before, here, old = here, after, values
        values, gradient = _value_and_gradient(problem, rows, clean, here)
        rises += values > old
        better = (values > best.values)[:, None, None]
        uphill = torch.where(better, gradient, uphill)
        best.visit(slice(None), here, values)
        if count in ends:
            stuck = rises < IMPROVED * (count - looked)
            idle = unchanged & (best.values == known)
            halve = stuck | idle
            step = torch.where(halve[:, None, None], step / 2, step)
            here = torch.where(halve[:, None, None], best.delta, here)
            gradient = torch.where(halve[:, None, None], uphill, gradient)
            values = torch.where(halve, best.values, values)
            unchanged, known, rises, looked = ~halve, best.values.clone(), torch.zeros_like(rises), count
    return best


def _value_and_gradient(problem: Problem, rows: slice, clean: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
    delta = delta.detach().requires_grad_()
    values = problem.objective(clean + delta, rows)
    (gradient,) = torch.autograd.grad(values.sum(), delta)
    return values.detach(), gradient
