"""Each wrong class as a goal of its own."""

import torch
from torch import Generator, Tensor
from torch.nn.functional import one_hot

from ecgstudy.attacks.api import Budget, Problem, Victim, first_best, known_scores
from ecgstudy.attacks.gradient import apgd
from ecgstudy.attacks.objectives import best_wrong_margin, check_classes, targeted_dlr


def targeted(
    victim: Victim,
    signals: Tensor,
    labels: Tensor,
    budget: Budget,
    generator: Generator,
) -> Tensor:
    """APGD on the targeted DLR towards each wrong class, likeliest first (Croce & Hein 2020, APGD-T).

    Spends the whole budget on each target, and keeps per record the δ of the largest `best_wrong_margin`.

    Raises
    ------
    StudyError
        For multi-label data, or less than 4 classes.
    """
    check_classes("the targeted attack", labels.shape[1], victim.multilabel, 4)
    margin = Problem.of(victim, signals, best_wrong_margin, labels)
    best, scores = first_best(margin, budget), known_scores(victim, signals)
    if scores is None:
        with torch.no_grad():
            scores = torch.cat(
                [
                    victim.scores(signals[rows])
                    for rows in margin.batches(budget.batch_size)
                ]
            )
    order = scores.masked_fill(labels > 0, -torch.inf).argsort(1, descending=True)
    for wrong in order[:, :-1].unbind(1):
        targets = one_hot(wrong, labels.shape[1]) - labels
        delta = apgd(
            Problem.of(victim, signals, targeted_dlr, targets), budget, generator
        )
        best.visit(slice(None), delta, margin.values(delta, budget.batch_size))
    return best.delta
