"""Each wrong class as a target of its own."""

import torch
from torch import Generator, Tensor
from torch.nn.functional import one_hot

from ecgstudy.attacks.api import Budget, Problem, Victim, best_candidate
from ecgstudy.attacks.gradient import apgd
from ecgstudy.attacks.objectives import best_wrong_margin, check_classes, targeted_dlr
from ecgstudy.registry import ATTACKS


@ATTACKS.register("apgd-dlr-targeted")
def targeted(
    victim: Victim,
    signals: Tensor,
    labels: Tensor,
    budget: Budget,
    generator: Generator,
) -> Tensor:
    """APGD on the targeted DLR for each wrong class, likeliest first (APGD-T).

    Spends the whole budget on each target (Croce & Hein 2020), and keeps the δ of
    largest `best_wrong_margin`.

    Parameters
    ----------
    victim, signals, labels, budget, generator
        As of `ecgstudy.attacks.named.Attack`.

    Raises
    ------
    StudyError
        For multi-label data, or fewer than 4 classes.
    """
    classes = labels.shape[1]
    check_classes("the targeted attack", classes, victim.multilabel, 4)
    margin = Problem.of(victim, signals, best_wrong_margin, labels)
    best = best_candidate(margin, budget)
    with torch.no_grad():
        batches = margin.batches(budget.batch_size)
        scores = torch.cat([victim.scores(signals[rows]) for rows in batches])
    wrong_first = scores.masked_fill(labels > 0, -torch.inf).argsort(1, descending=True)
    for target in wrong_first[:, :-1].unbind(1):
        towards = one_hot(target, classes) - labels
        problem = Problem.of(victim, signals, targeted_dlr, towards)
        delta = apgd(problem, budget, generator)
        best.update(delta, margin.values(delta, budget.batch_size))
    return best.delta
