"""What every attack is given (model, ECGs, objective, budget), and what it keeps."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor

from ecgstudy.attacks.ball import Ball
from ecgstudy.attacks.objectives import Objective
from ecgstudy.models.heads import class_scores

CPU_BATCH_BYTES = 6 * 2**20
"""Most bytes of signals that a CPU attacks at a time: what fits its cache is faster
(128 ECGs of PTB-XL take a seventh less time each than 256)."""


@dataclass(frozen=True)
class Victim:
    """The model under attack: signals in mV → class scores.

    Attributes
    ----------
    model
        Signals (records, leads, samples) in mV → logits (records, classes), in
        evaluation mode.
    multilabel
        Chooses the score, see `ecgstudy.models.heads.class_scores`.
    features
        Signals in mV → features (records, features) of the frozen encoder, for
        label-free attacks; None where there is none.
    fs
        Sampling rate in Hz, for attacks that are shaped in time; None: unknown.
    gradients
        Precision of the passes that a gradient is taken through; all others are in
        float32.
    clean_scores
        Signals and their scores, where these are known: attacks on these very signals
        (the same tensor) need no pass to find them.
    """

    model: Callable[[Tensor], Tensor]
    multilabel: bool
    features: Callable[[Tensor], Tensor] | None = None
    fs: float | None = None
    gradients: Literal["float32", "bfloat16"] = "float32"
    clean_scores: tuple[Tensor, Tensor] | None = None

    def scores(self, signals: Tensor) -> Tensor:
        """Class scores (records, classes) in float32."""
        short = self.gradients == "bfloat16" and torch.is_grad_enabled()
        with torch.autocast(signals.device.type, torch.bfloat16, enabled=short):
            logits = self.model(signals)
        return class_scores(logits.float(), self.multilabel)


@dataclass(frozen=True)
class Budget:
    """What an attack may do and spend.

    Attributes
    ----------
    epsilon_mv, norm, mask
        Of the `Ball` that δ stays in.
    steps
        Gradient steps per restart.
    restarts
        Independent starts.
    step
        Step length of PGD in units of ε; None: 2.5 / steps (Madry et al. 2018).
    queries
        Perturbed signals per record that a black-box attack may show to the model.
    batch_size
        Records at a time: a matter of memory and speed, not of the result.
    """

    epsilon_mv: float
    steps: int = 20
    restarts: int = 1
    step: float | None = None
    batch_size: int = 256
    norm: Literal["linf", "l2"] = "linf"
    mask: Tensor | None = None
    queries: int = 500

    @property
    def ball(self) -> Ball:
        """Where δ may go."""
        return Ball(self.epsilon_mv, self.norm, self.mask)

    @property
    def step_mv(self) -> float:
        """Step length of PGD in mV."""
        return self.epsilon_mv * (2.5 / self.steps if self.step is None else self.step)


@dataclass(frozen=True)
class Problem:
    """ECGs to be perturbed, and the objective to be maximised.

    Attributes
    ----------
    signals
        (records, leads, samples) in mV.
    objective
        Perturbed signals of some records, and which records these are → objective of
        each. Records must not influence each other.
    start
        A perturbation of each record that is known before: where the first restart
        begins, and a candidate for the result.
    exact
        Whether `objective` has the same value under a gradient (not in bfloat16). If
        not, results are valued again without one.
    clean_values
        `objective` of δ = 0, (records,), where it is known.
    """

    signals: Tensor
    objective: Callable[[Tensor, slice | Tensor], Tensor]
    start: Tensor | None = None
    exact: bool = True
    clean_values: Tensor | None = None

    @staticmethod
    def of(
        victim: Victim,
        signals: Tensor,
        objective: Objective,
        targets: Tensor,
        start: Tensor | None = None,
    ) -> "Problem":
        """Maximise an objective of the victim's scores.

        Parameters
        ----------
        victim
            The model under attack.
        signals, start
            As of the problem.
        objective, targets
            One of `ecgstudy.attacks.objectives`, and its targets (records, classes).
        """

        def value(perturbed: Tensor, rows: slice | Tensor) -> Tensor:
            return objective(victim.scores(perturbed), targets[rows])

        clean_values = None
        if victim.clean_scores and victim.clean_scores[0] is signals:
            clean_values = objective(victim.clean_scores[1], targets)
        exact = victim.gradients == "float32"
        return Problem(signals, value, start, exact, clean_values)

    def batches(self, size: int) -> Iterator[slice]:
        """Slices of at most `size` records; on a CPU, of `CPU_BATCH_BYTES` at most."""
        if self.signals.device.type == "cpu":
            most = CPU_BATCH_BYTES // max(1, self.signals[:1].nbytes)
            size = min(size, max(1, most))
        for first in range(0, len(self.signals), size):
            yield slice(first, first + size)

    @torch.no_grad()
    def values(self, delta: Tensor, batch_size: int) -> Tensor:
        """Objective of every record under `delta`, (records,)."""
        batches = self.batches(batch_size)
        parts = [self.objective(self.signals[r] + delta[r], r) for r in batches]
        return torch.cat(parts)


Search = Callable[[Problem, Budget, Generator], Tensor]
"""A search algorithm: (problem, budget, generator) → the best δ in mV of each record
over the whole budget. The generator is on the signals' device."""


class Best:
    """Of each record, the perturbation of largest objective so far, and that value.

    Parameters
    ----------
    delta, values
        The first candidates, (records, leads, samples) and (records,).
    """

    def __init__(self, delta: Tensor, values: Tensor):
        self.delta, self.values = delta.clone(), values.clone()

    def update(
        self, delta: Tensor, values: Tensor, rows: slice = slice(None)
    ) -> Tensor:
        """Take what is better; returns for which of the `rows` it was.

        Parameters
        ----------
        delta, values
            Candidates for the records `rows`, and their objective.
        rows
            Which records.
        """
        best_delta, best_values = self.delta[rows], self.values[rows]
        better = values > best_values
        torch.where(better, values, best_values, out=best_values)
        torch.where(better[:, None, None], delta, best_delta, out=best_delta)
        return better


def best_candidate(problem: Problem, budget: Budget, with_start: bool = True) -> Best:
    """δ = 0, or the problem's start where that is better: attacks never end below.

    Parameters
    ----------
    problem, budget
        The start is projected into the budget's ball.
    with_start
        False leaves the start out: for searches whose first iterate it is.
    """
    zero, values = torch.zeros_like(problem.signals), problem.clean_values
    if values is None:
        values = problem.values(zero, budget.batch_size)
    best = Best(zero, values)
    if with_start and problem.start is not None:
        start = budget.ball.project(problem.start)
        best.update(start, problem.values(start, budget.batch_size))
    return best
