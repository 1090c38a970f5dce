"""Attacks of the evaluation, by name: each maps a victim and ECGs to δ in mV."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from torch import Generator, Tensor

# These modules register attacks of their own.
from ecgstudy.attacks import label_free, smooth_band, targeted  # noqa: F401
from ecgstudy.attacks.api import Budget, Problem, Search, Victim
from ecgstudy.attacks.gradient import apgd, pgd
from ecgstudy.attacks.objectives import make_objective
from ecgstudy.attacks.square import square
from ecgstudy.attacks.universal import universal
from ecgstudy.params import split_leads
from ecgstudy.registry import ATTACKS

Attack = Callable[[Victim, Tensor, Tensor, Budget, Generator], Tensor]
"""(victim, signals, labels, budget, generator) → δ.

- signals, δ: (records, leads, samples) in mV
- labels: multi-hot (records, classes) of the whole attacked sample
- generator: source of random starts, on the signals' device

δ stays in `budget.ball`. An attack that uses its ℓ2 counterpart instead has a name that
ends in ``-l2`` and stays out of the ensemble.
"""


def scores_problem(
    objective: str,
    victim: Victim,
    signals: Tensor,
    labels: Tensor,
    start: Tensor | None = None,
) -> Problem:
    """Maximise an objective of the victim's scores.

    Parameters
    ----------
    objective
        One of `ecgstudy.attacks.objectives.OBJECTIVES`.
    victim, signals, labels
        As of an `Attack`.
    start
        A perturbation that is known before, in mV.
    """
    value, targets = make_objective(objective, labels, victim.multilabel)
    return Problem.of(victim, signals, value, targets, start)


def attack_scores(
    search: Search,
    objective: str,
    victim: Victim,
    signals: Tensor,
    labels: Tensor,
    budget: Budget,
    generator: Generator,
    **changes: object,
) -> Tensor:
    """Attack by one search on one objective of the scores.

    Parameters
    ----------
    search
        Such as `pgd`.
    objective
        One of `ecgstudy.attacks.objectives.OBJECTIVES`.
    victim, signals, labels, budget, generator
        As of an `Attack`.
    changes
        What of the budget is fixed (``norm="l2"``).
    """
    problem = scores_problem(objective, victim, signals, labels)
    return search(problem, replace(budget, **changes), generator)


@ATTACKS.register("noise")
def noise(
    victim: Victim,
    signals: Tensor,
    labels: Tensor,
    budget: Budget,
    generator: Generator,
) -> Tensor:
    """Uniform noise in the ball: what every attack is compared with.

    Parameters
    ----------
    victim, signals, labels, budget, generator
        As of an `Attack`; victim and labels are not used.
    """
    return budget.ball.draw(signals, generator)


SEARCHES = {
    "pgd-ce": (pgd, "ce"),
    "pgd-margin": (pgd, "margin"),
    "apgd-ce": (apgd, "ce"),
    "apgd-margin": (apgd, "margin"),
    "apgd-bce": (apgd, "bce"),
    "apgd-margin-even": (apgd, "margin-even"),
    "apgd-dlr": (apgd, "dlr"),
    "square": (square, "margin"),
    "universal": (universal, "margin"),
}
"""Name → search, and the objective of the scores that it maximises."""
for _name, _how in SEARCHES.items():
    ATTACKS[_name] = partial(attack_scores, *_how)
ATTACKS["pgd-l2"] = partial(attack_scores, pgd, "margin", norm="l2")
ATTACKS["apgd-l2"] = partial(attack_scores, apgd, "margin", norm="l2")
# One step of length ε along the sign of the gradient (Goodfellow et al. 2015).
once = {"steps": 1, "restarts": 1, "step": 1.0}
fgsm = partial(pgd, random_start=False)
ATTACKS["fgsm"] = partial(attack_scores, fgsm, "ce", **once)


def get_attack(name: str) -> Attack:
    """The attack called `name`, such as ``apgd-margin``.

    Leads in brackets (``apgd-margin[V1+V2]``) are for the budget's mask to say.
    """
    return ATTACKS.find(split_leads(name)[0])
