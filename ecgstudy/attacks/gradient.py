"""PGD and APGD: attacks that follow the input gradient inside a ball in mV."""

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from ecgstudy.attacks.api import Best, Budget, Problem, best_candidate
from ecgstudy.attacks.ball import ascend, value_and_gradient

MOMENTUM = 0.75
"""Share of the new step in APGD's update; the rest continues the last move (α of Croce
& Hein 2020, equation 3)."""
IMPROVED = 0.75
"""APGD halves a record's step when less than this share of the steps since the last
checkpoint raised its objective (their ρ)."""


def pgd(
    problem: Problem, budget: Budget, generator: Generator, *, random_start: bool = True
) -> Tensor:
    """Projected gradient descent (Madry et al. 2018): the best δ of the whole budget.

    AUROC needs the *largest* change of every score, so nothing stops at a label flip.
    δ = 0 and the problem's start are candidates, too.

    Parameters
    ----------
    problem, budget, generator
        As of `ecgstudy.attacks.api.Search`.
    random_start
        False: every restart begins at δ = 0 (FGSM).

    Returns
    -------
    Tensor
        δ in mV, (records, leads, samples).
    """
    return _search(problem, budget, generator, _pgd_once, random_start)


def apgd(problem: Problem, budget: Budget, generator: Generator) -> Tensor:
    """Auto-PGD (Croce & Hein 2020, ICML, algorithm 1): PGD that chooses its own steps.

    The first step is 2ε. At checkpoints a record's step is halved, and its search goes
    back to its best δ, when

    1. fewer than 75 % of the steps since the last checkpoint raised its objective, or
    2. its step was not halved at the last checkpoint, and its best value is the same.

    Parameters
    ----------
    problem, budget, generator
        As of `ecgstudy.attacks.api.Search`; `budget.step` is not used.

    Returns
    -------
    Tensor
        δ in mV, (records, leads, samples).
    """
    return _search(problem, budget, generator, _apgd_once)


def _search(
    problem: Problem,
    budget: Budget,
    generator: Generator,
    search_once: Callable[[Problem, slice, Tensor, Budget], Best],
    random_start: bool = True,
) -> Tensor:
    """Search from each start, batch by batch, and keep the best δ of each record."""
    # The first search values the problem's start in any case; in bfloat16 not exactly.
    first = best_candidate(problem, budget, with_start=not problem.exact)
    best = Best(first.delta, first.values)
    for restart in range(budget.restarts):
        if problem.start is not None and restart == 0:
            start = budget.ball.project(problem.start)
        elif random_start:
            start = budget.ball.draw(problem.signals, generator)
        else:
            start = torch.zeros_like(problem.signals)
        for rows in problem.batches(budget.batch_size):
            found = search_once(problem, rows, start[rows], budget)
            best.update(found.delta, found.values, rows)
    if problem.exact:
        return best.delta
    # Values of the search are approximate: value its result again, and keep it only
    # where it is truly no worse.
    values = problem.values(best.delta, budget.batch_size)
    kept = (values >= first.values)[:, None, None]
    return torch.where(kept, best.delta, first.delta)


def _pgd_once(problem: Problem, rows: slice, start: Tensor, budget: Budget) -> Best:
    """One PGD run for the records `rows`."""
    clean = problem.signals[rows]
    best = Best(start, clean.new_full((len(clean),), -torch.inf))

    def value(perturbed: Tensor) -> Tensor:
        return problem.objective(perturbed, rows)

    how = {"steps": budget.steps, "step_mv": budget.step_mv, "visit": best.update}
    ball = budget.ball.select(rows, problem.signals)
    last = ascend(value, clean, start, ball, **how)
    with torch.no_grad():
        best.update(last, value(clean + last))
    return best


def _apgd_once(problem: Problem, rows: slice, start: Tensor, budget: Budget) -> Best:
    """One APGD run for the records `rows`; each has a step size of its own."""
    clean = problem.signals[rows]
    ball = budget.ball.select(rows, problem.signals)

    def value(perturbed: Tensor) -> Tensor:
        return problem.objective(perturbed, rows)

    step_mv = clean.new_full((len(clean), 1, 1), 2 * budget.epsilon_mv)
    point = previous = start
    values, gradient = value_and_gradient(value, clean, point)
    best, gradient_at_best = Best(point, values), gradient

    rises = torch.zeros_like(values)  # steps since the last checkpoint that went up
    halved = torch.zeros_like(values, dtype=torch.bool)  # at the last checkpoint
    last_checkpoint, best_then = 0, values
    for step in range(1, budget.steps + 1):
        # A gradient step, averaged with the last move: x + ¾ (z − x) + ¼ (x − x′).
        ahead = torch.addcmul(point, step_mv, ball.direction(gradient))
        ahead = ball.project_(ahead)
        if step > 1:
            ahead = torch.lerp(point, ahead, MOMENTUM)
            ahead.add_(point - previous, alpha=1 - MOMENTUM)
        previous, point = point, ball.project_(ahead)
        if step == budget.steps:
            break  # the last point is valued below; its gradient is not needed

        before = values
        values, gradient = value_and_gradient(value, clean, point)
        rises += values > before
        better = best.update(point, values)[:, None, None]
        gradient_at_best = torch.where(better, gradient, gradient_at_best)

        if step in checkpoints(budget.steps):
            too_few_rises = rises < IMPROVED * (step - last_checkpoint)
            no_progress = ~halved & (best.values == best_then)
            halved = too_few_rises | no_progress
            back = halved[:, None, None]
            step_mv = torch.where(back, step_mv / 2, step_mv)
            point = torch.where(back, best.delta, point)
            values = torch.where(halved, best.values, values)
            gradient = torch.where(back, gradient_at_best, gradient)
            rises, last_checkpoint = torch.zeros_like(rises), step
            best_then = best.values.clone()
    with torch.no_grad():
        best.update(point, value(clean + point))
    return best


def checkpoints(steps: int) -> list[int]:
    """Steps after which APGD looks back: ⌈p · steps⌉ for p = 0.22, 0.41, 0.57, …

    The intervals of p shrink by 0.03 to at least 0.06 (Croce & Hein 2020, section 3).
    """
    found, percent, interval = [], 22, 22
    while percent <= 100:
        found.append(-(-percent * steps // 100))
        interval = max(interval - 3, 6)
        percent += interval
    return sorted(set(found))
