"""Attacks of the evaluation, by name: each maps a victim and ECGs to perturbations in mV."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from torch import Generator, Tensor

from ecgstudy.attacks.gradient import apgd, pgd
from ecgstudy.attacks.objectives import OBJECTIVES
from ecgstudy.attacks.problem import Budget, Problem, Search, Victim
from ecgstudy.attacks.square import square
from ecgstudy.errors import StudyError

Attack = Callable[[Victim, Tensor, Tensor, Budget, Generator], Tensor]
"""(victim, signals in mV, multi-hot labels of the whole sample, budget, generator) -> δ in mV."""


def scores_problem(
    name: str, victim: Victim, signals: Tensor, labels: Tensor, start: Tensor | None = None
) -> Problem:
    """Raise the objective called `name` (`ecgstudy.attacks.objectives.OBJECTIVES`) of the victim's scores."""
    objective, targets = OBJECTIVES[name]
    return Problem.of(victim, signals, objective, targets(labels, victim.multilabel), start)


def on_scores(search: Search, objective: str, **changes: object) -> Attack:
    """`search` on an objective of the scores, with some of the budget changed (``norm="l2"``)."""

    def attack(
        victim: Victim, signals: Tensor, labels: Tensor, budget: Budget, generator: Generator
    ) -> Tensor:
        problem = scores_problem(objective, victim, signals, labels)
        return search(problem, replace(budget, **changes), generator)

    return attack


def noise(victim: Victim, signals: Tensor, labels: Tensor, budget: Budget, generator: Generator) -> Tensor:
    """Uniform noise in the ball: no attack, the yardstick of one."""
    return budget.ball.start(signals, generator)


ATTACKS: dict[str, Attack] = {
    "noise": noise,
    # One step of length ε along the sign of the cross-entropy's gradient (Goodfellow et al. 2015).
    "fgsm": on_scores(partial(pgd, random_start=False), "ce", steps=1, restarts=1, step=1.0),
    "pgd-ce": on_scores(pgd, "ce"),
    "pgd-margin": on_scores(pgd, "margin"),
    "apgd-ce": on_scores(apgd, "ce"),
    "apgd-margin": on_scores(apgd, "margin"),
    "square": on_scores(square, "margin"),
}

BLACK_BOX = ("square",)
"""Attacks that spend queries instead of gradients; a study may run them on some records only."""


def get_attack(name: str) -> Attack:
    """The attack called `name`.

    Raises
    ------
    StudyError
        When there is none, naming those there are.
    """
    if name not in ATTACKS:
        raise StudyError(f"unknown attack {name!r}; known: {', '.join(ATTACKS)}")
    return ATTACKS[name]
