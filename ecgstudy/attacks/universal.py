"""One perturbation for all records."""

from dataclasses import replace

import torch
from torch import Generator, Tensor
from torch.utils.checkpoint import checkpoint

from ecgstudy.attacks.api import Budget, Problem
from ecgstudy.attacks.gradient import apgd
from ecgstudy.errors import StudyError


def universal(problem: Problem, budget: Budget, generator: Generator) -> Tensor:
    """One δ for all records, of largest mean objective (idea: Moosavi-Dezfooli et al. 2017, CVPR).

    By APGD on the mean instead of their record-by-record minimal steps. It is fitted on the very records
    that are scored, so it bounds from above what a δ found on other records could do. Gradients are
    accumulated over batches: memory does not grow with the number of records (each batch is evaluated a
    second time for that). The best of the whole budget is kept; δ = 0 is a candidate, the problem's start
    (one per record) is not. On a model linear in the signal one δ moves all scores of a class alike and
    leaves AUROC as it was. Masks may differ between records: δ is 0 there, and else equal for all.

    Raises
    ------
    StudyError
        In an ℓ2 ball.
    """
    if budget.norm != "linf":
        raise StudyError(
            f"the universal perturbation keeps to the ℓ∞ ball; norm {budget.norm!r} is not its"
        )
    signals, mask = problem.signals, budget.mask
    free = torch.ones_like(signals[:1]) if mask is None else mask
    free = free.expand_as(signals)

    def total(delta: Tensor, rows: slice) -> Tensor:
        return problem.objective(signals[rows] + delta * free[rows], rows).sum()

    def mean(delta: Tensor, _: slice) -> Tensor:
        recompute = {"use_reentrant": False, "preserve_rng_state": False}
        parts = [
            checkpoint(total, delta, rows, **recompute)
            for rows in problem.batches(budget.batch_size)
        ]
        return torch.stack(parts).sum(0, keepdim=True) / len(signals)

    one = Problem(torch.zeros_like(signals[:1]), mean, exact=problem.exact)
    return apgd(one, replace(budget, mask=None), generator) * free
