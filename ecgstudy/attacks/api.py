"""What every attack is given: the model, the ECGs, what to raise, and what it may spend."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor

from ecgstudy.attacks.ball import Ball
from ecgstudy.attacks.objectives import Objective
from ecgstudy.models.heads import class_scores

CACHED = 6 * 2**20
"""Bytes of signals that a CPU attacks at a time: 128 ECGs of PTB-XL take a seventh less time than 256."""


@dataclass(frozen=True)
class Victim:
    """What an attack sees: signals in mV → class scores, and for label-free attacks features.

    Attributes
    ----------
    model
        Signals (records, leads, samples) in mV → logits (records, classes), in evaluation mode.
    multilabel
        Chooses the score (`ecgstudy.models.heads.class_scores`).
    features
        Signals in mV → features (records, features) of the frozen encoder; None where there is none.
    fs
        Sampling rate of the signals in Hz, for attacks that are shaped in time; None: unknown.
    gradients
        Precision of passes that a gradient is taken through; all others are in float32.
    clean_scores
        Signals and their scores: attacks on these very signals, the same tensor, need no pass to find them.
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


def known_scores(victim: Victim, signals: Tensor) -> Tensor | None:
    """The victim's scores of `signals`, if it is told them; a part or another order of them is unknown."""
    return (
        victim.clean_scores[1]
        if victim.clean_scores is not None and victim.clean_scores[0] is signals
        else None
    )


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
        Records at a time: memory and speed, never the result (up to rounding).
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
    """ECGs to be perturbed, and what shall be raised.

    Attributes
    ----------
    signals
        (records, leads, samples) in mV.
    objective
        Perturbed signals of some records, and which records they are → value per record, to be maximised.
        Records do not influence each other.
    start
        A perturbation known before, of each record: the first start, and a candidate for the result.
    exact
        Whether `objective` is the same under a gradient; if not, results are looked at again without one.
    clean_values
        `objective` of δ = 0, (records,), where it is known; None: passes find it.
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
        """Raise `objective` (`ecgstudy.attacks.objectives`) of the victim's scores, with `targets`."""
        exact = victim.gradients == "float32"
        scores = known_scores(victim, signals)
        unchanged = None if scores is None else objective(scores, targets)
        return Problem(
            signals,
            lambda x, rows: objective(victim.scores(x), targets[rows]),
            start,
            exact,
            unchanged,
        )

    def batches(self, size: int) -> Iterator[slice]:
        """Slices of at most `size` records; on a CPU, of at most `CACHED` bytes."""
        if self.signals.device.type == "cpu":
            size = min(size, max(1, CACHED // max(1, self.signals[:1].nbytes)))
        yield from (
            slice(first, first + size) for first in range(0, len(self.signals), size)
        )

    @torch.no_grad()
    def values(self, delta: Tensor, batch_size: int) -> Tensor:
        """Objective of every record under `delta`, (records,)."""
        parts = [
            self.objective(self.signals[r] + delta[r], r)
            for r in self.batches(batch_size)
        ]
        return torch.cat(parts)


Search = Callable[[Problem, Budget, Generator], Tensor]
"""An algorithm: (problem, budget, generator) → δ in mV, each record's best of the whole budget.

What to raise, what to spend, and the source of random starts, on the signals' device.
"""


class Best:
    """Per record, the perturbation of largest objective met so far; it starts as `delta`."""

    def __init__(self, delta: Tensor, values: Tensor):
        self.delta, self.values = delta.clone(), values.clone()

    def visit(self, rows: slice | Tensor, delta: Tensor, values: Tensor) -> Tensor:
        """Offer perturbations of the records `rows`, with their objective; returns which were better."""
        better = values > self.values[rows]
        taken = better[:, None, None]
        if isinstance(rows, slice):  # straight into the memory kept
            kept, known = self.delta[rows], self.values[rows]
            torch.where(better, values, known, out=known)
            torch.where(taken, delta, kept, out=kept)
        else:
            self.values[rows] = torch.where(better, values, self.values[rows])
            self.delta[rows] = torch.where(taken, delta, self.delta[rows])
        return better


def first_best(
    problem: Problem, budget: Budget, *, met: Literal["zero", "start"] | None = None
) -> Best:
    """δ = 0, or the problem's own start where that is better: no attack ends below either.

    The one that is `met` is left out: the search values it in any case, as its first iterate.
    """
    none, values = torch.zeros_like(problem.signals), problem.clean_values
    if met == "zero":
        values = none.new_full((len(none),), -torch.inf)
    elif values is None:
        values = problem.values(none, budget.batch_size)
    best = Best(none, values)
    if problem.start is not None and met != "start":
        start = budget.ball.project(problem.start)
        best.visit(slice(None), start, problem.values(start, budget.batch_size))
    return best


def settled(problem: Problem, budget: Budget, best: Best, first: Best) -> Tensor:
    """δ of `best`; where the search saw approximate objectives, that of `first` if it is better after all."""
    if problem.exact:
        return best.delta
    kept = problem.values(best.delta, budget.batch_size) >= first.values
    return torch.where(kept[:, None, None], best.delta, first.delta)
