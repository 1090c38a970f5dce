"""Attacks of the evaluation, by name: each maps a victim and ECGs to perturbations in mV."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from torch import Generator, Tensor

from ecgstudy.attacks import square, targeted
from ecgstudy.attacks.api import Budget, Problem, Search, Victim
from ecgstudy.attacks.gradient import apgd, pgd
from ecgstudy.attacks.label_free import label_free
from ecgstudy.attacks.objectives import OBJECTIVES
from ecgstudy.attacks.smooth_band import band, sap
from ecgstudy.attacks.universal import universal
from ecgstudy.errors import StudyError
from ecgstudy.params import split_leads
from ecgstudy.registry import ATTACKS

Attack = Callable[[Victim, Tensor, Tensor, Budget, Generator], Tensor]
"""(victim, signals in mV, multi-hot labels of the whole sample, budget, generator) -> δ in mV.

One of your own is one line, ``ATTACKS["mine"] = attack``. It keeps to `budget.ball`; one that uses its ℓ2
counterpart instead has a name that ends in ``-l2`` and stays out of the ensemble.
"""


def scores_problem(
    name: str,
    victim: Victim,
    signals: Tensor,
    labels: Tensor,
    start: Tensor | None = None,
) -> Problem:
    """Raise the objective called `name` (`ecgstudy.attacks.objectives.OBJECTIVES`) of the victim's scores."""
    objective, targets = OBJECTIVES[name](labels, victim.multilabel)
    return Problem.of(victim, signals, objective, targets, start)


def on_scores(search: Search, objective: str, **changes: object) -> Attack:
    """`search` on an objective of the scores, with some of the budget changed (``norm="l2"``)."""

    def attack(
        victim: Victim,
        signals: Tensor,
        labels: Tensor,
        budget: Budget,
        generator: Generator,
    ) -> Tensor:
        problem = scores_problem(objective, victim, signals, labels)
        return search(problem, replace(budget, **changes), generator)

    return attack


def noise(
    victim: Victim,
    signals: Tensor,
    labels: Tensor,
    budget: Budget,
    generator: Generator,
) -> Tensor:
    """Uniform noise in the ball: no attack, the yardstick of one."""
    return budget.ball.draw(signals, generator)


ATTACKS.update(
    {
        "noise": noise,
        # One step of length ε along the sign of the cross-entropy's gradient (Goodfellow et al. 2015).
        "fgsm": on_scores(
            partial(pgd, random_start=False), "ce", steps=1, restarts=1, step=1.0
        ),
        "pgd-ce": on_scores(pgd, "ce"),
        "pgd-margin": on_scores(pgd, "margin"),
        "apgd-ce": on_scores(apgd, "ce"),
        "apgd-margin": on_scores(apgd, "margin"),
        "apgd-bce": on_scores(apgd, "bce"),
        "apgd-margin-even": on_scores(apgd, "margin-even"),
        "apgd-dlr": on_scores(apgd, "dlr"),
        "apgd-dlr-targeted": targeted.targeted,
        "pgd-l2": on_scores(pgd, "margin", norm="l2"),
        "apgd-l2": on_scores(apgd, "margin", norm="l2"),
        "square": on_scores(square.square, "margin"),
        "sap": sap,
        "band-low": band(0.5, 5),
        "band-mid": band(5, 15),
        "band-high": band(15, 40),
        "universal": on_scores(universal, "margin"),
        "label-free": label_free,
    }
)


def get_attack(name: str) -> Attack:
    """The attack called `name`; leads in brackets (``[V1+V2]``) are for the budget's mask to say.

    An unknown one is a `StudyError` that lists those there are.
    """
    known, _ = split_leads(name)
    if known not in ATTACKS:
        raise StudyError(
            f"unknown attack {name!r}; known: {', '.join(ATTACKS)},"
            " each also on some leads only, as 'apgd-margin[V1+V2]'"
        )
    return ATTACKS[known]
