"""Attacks of the evaluation, by name: each maps a victim and ECGs to perturbations in mV."""

from collections.abc import Callable
from dataclasses import replace

from torch import Generator, Tensor

from ecgstudy.attacks.gradient import Budget, Victim, pgd, random_start
from ecgstudy.attacks.objectives import OBJECTIVES
from ecgstudy.errors import StudyError

Attack = Callable[[Victim, Tensor, Tensor, Budget, Generator], Tensor]
"""(victim, signals in mV, multi-hot labels of the whole sample, budget, generator) -> δ in mV."""


def _pgd(name: str, objective: str) -> Attack:
    def attack(
        victim: Victim, signals: Tensor, labels: Tensor, budget: Budget, generator: Generator
    ) -> Tensor:
        function, targets = OBJECTIVES[objective]
        return pgd(victim, signals, function, targets(labels, victim.multilabel), budget, generator)

    attack.__doc__ = f"PGD on the objective {objective!r}."
    attack.__name__ = name
    return attack


def fgsm(victim: Victim, signals: Tensor, labels: Tensor, budget: Budget, generator: Generator) -> Tensor:
    """One step of length ε along the sign of the cross-entropy's gradient (Goodfellow et al. 2015)."""
    function, targets = OBJECTIVES["ce"]
    single = replace(budget, steps=1, restarts=1, step=1.0)
    wanted = targets(labels, victim.multilabel)
    return pgd(victim, signals, function, wanted, single, generator, uniform_start=False)


def noise(victim: Victim, signals: Tensor, labels: Tensor, budget: Budget, generator: Generator) -> Tensor:
    """Uniform noise in the ball: no attack, the yardstick of one."""
    return random_start(signals, budget.epsilon_mv, generator)


ATTACKS: dict[str, Attack] = {
    "noise": noise,
    "fgsm": fgsm,
    "pgd-ce": _pgd("pgd_ce", "ce"),
    "pgd-margin": _pgd("pgd_margin", "margin"),
}


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
