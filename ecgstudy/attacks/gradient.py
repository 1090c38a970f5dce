"""Attacks that follow the input gradient, inside ‖δ‖∞ ≤ ε in mV on the raw signal."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from ecgstudy.attacks.objectives import Objective, class_scores


@dataclass(frozen=True)
class Victim:
    """What an attack sees: signals in mV → class scores.

    Attributes
    ----------
    model
        Signals (records, leads, samples) in mV → logits (records, classes), in evaluation mode.
    multilabel
        Chooses the score (`ecgstudy.attacks.objectives.class_scores`).
    """

    model: Callable[[Tensor], Tensor]
    multilabel: bool

    def scores(self, signals: Tensor) -> Tensor:
        """Class scores (records, classes) in float32."""
        return class_scores(self.model(signals).float(), self.multilabel)


@dataclass(frozen=True)
class Budget:
    """What an attack may spend.

    Attributes
    ----------
    epsilon_mv
        Radius of the ℓ∞ ball in mV.
    steps
        Gradient steps per restart.
    restarts
        Independent uniform starts.
    step
        Step length in units of ε; None: 2.5 / steps (Madry et al. 2018).
    batch_size
        Records at a time. With more than one restart the random starts depend on it.
    """

    epsilon_mv: float
    steps: int = 20
    restarts: int = 1
    step: float | None = None
    batch_size: int = 256

    @property
    def step_mv(self) -> float:
        """Step length in mV."""
        return self.epsilon_mv * (2.5 / self.steps if self.step is None else self.step)


class _Best:
    """Per record, the perturbation of largest objective met so far."""

    def __init__(self, delta: Tensor, values: Tensor):
        self.delta, self.values = delta.clone(), values.clone()

    def __call__(self, delta: Tensor, values: Tensor) -> None:
        better = values > self.values
        self.values = torch.where(better, values, self.values)
        self.delta = torch.where(better[:, None, None], delta, self.delta)


def pgd(
    victim: Victim,
    signals: Tensor,
    objective: Objective,
    targets: Tensor,
    budget: Budget,
    generator: Generator,
    *,
    uniform_start: bool = True,
    start: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Projected gradient descent (Madry et al. 2018), keeping each record's best δ of the whole budget.

    AUROC needs the *largest* change of every score, so nothing stops at a label flip. δ = 0 and
    `start` are candidates too: the objective never ends below either.

    Parameters
    ----------
    victim
        The attacked model.
    signals
        (records, leads, samples) in mV.
    objective, targets
        See `ecgstudy.attacks.objectives`; targets are (records, classes).
    budget
        ε, steps, restarts.
    generator
        Source of the random starts, on the device of `signals`.
    uniform_start
        False: every restart begins at δ = 0 (FGSM).
    start
        Perturbation at which the first restart begins, instead.
    mask
        1 where the attack may change the signal, broadcastable to `signals`.

    Returns
    -------
    Tensor
        δ in mV, the shape of `signals`.
    """
    found = torch.empty_like(signals)
    for first in range(0, len(signals), budget.batch_size):
        rows = slice(first, first + budget.batch_size)
        clean, wanted = signals[rows], targets[rows]
        part = None if mask is None else mask.expand_as(signals)[rows]

        def value(perturbed: Tensor, wanted: Tensor = wanted) -> Tensor:
            return objective(victim.scores(perturbed), wanted)

        with torch.no_grad():
            best = _Best(torch.zeros_like(clean), value(clean))
        for restart in range(budget.restarts):
            delta = torch.zeros_like(clean)
            if start is not None and restart == 0:
                delta = start[rows]
            elif uniform_start:
                delta = random_start(clean, budget.epsilon_mv, generator, part)
            last = ascend(value, clean, delta, budget, part, best)
            with torch.no_grad():
                best(last, value(clean + last))
        found[rows] = best.delta
    return found
