"""One perturbation for all records."""

from dataclasses import replace

import torch
from torch import Generator, Tensor
from torch.utils.checkpoint import checkpoint

from ecgstudy.attacks.api import Budget, Problem
from ecgstudy.attacks.gradient import apgd
from ecgstudy.errors import StudyError


def universal(problem: Problem, budget: Budget, generator: Generator) -> Tensor:
    """One δ of largest mean objective (idea: Moosavi-Dezfooli et al. 2017, CVPR).

    By APGD on the mean instead of their record-by-record minimal steps. δ is fitted on
    the very records that are scored, so it bounds from above what one found on other
    records could do. On a model linear in the signal it moves all scores of a class
    alike and leaves AUROC as it was. δ = 0 is a candidate; the problem's start, one for
    each record, is not. Where masks differ between records, δ is 0 there and else
    equal.

    Parameters
    ----------
    problem, budget, generator
        As of `ecgstudy.attacks.api.Search`.

    Returns
    -------
    Tensor
        δ in mV, (records, leads, samples).

    Raises
    ------
    StudyError
        In an ℓ2 ball.
    """
    if budget.norm != "linf":
        raise StudyError(f"universal keeps to the ℓ∞ ball; norm {budget.norm!r} is not")
    signals = problem.signals
    free = torch.ones_like(signals[:1]) if budget.mask is None else budget.mask
    free = free.expand_as(signals)

    def total(delta: Tensor, rows: slice) -> Tensor:
        return problem.objective(signals[rows] + delta * free[rows], rows).sum()

    def mean(delta: Tensor, _: slice) -> Tensor:
        # Batches are evaluated again for the gradient, so that memory does not grow
        # with the number of records.
        rerun = {"use_reentrant": False, "preserve_rng_state": False}
        batches = problem.batches(budget.batch_size)
        parts = [checkpoint(total, delta, rows, **rerun) for rows in batches]
        return torch.stack(parts).sum(0, keepdim=True) / len(signals)

    one = Problem(torch.zeros_like(signals[:1]), mean, exact=problem.exact)
    return apgd(one, replace(budget, mask=None), generator) * free
