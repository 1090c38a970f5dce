"""The set of allowed perturbations, and projected steepest ascent inside it.

Attacks of the evaluation and the inner attack of adversarial pretraining share this.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor


@dataclass(frozen=True)
class Ball:
    """All perturbations δ within a budget, in mV on the raw signal.

    Attributes
    ----------
    epsilon_mv
        Budget in mV. ``"linf"``: no sample changes by more. ``"l2"``: neither does the
        root mean square of δ over the n samples that may change (‖δ‖₂ ≤ ε√n), so that ε
        is an amplitude for both norms and the ℓ2 ball contains the ℓ∞ ball.
    norm
        ``"linf"`` or ``"l2"``.
    mask
        1 where a record may be changed, 0 elsewhere (padding, other leads),
        broadcastable to the signals. None: everywhere.
    """

    epsilon_mv: float
    norm: Literal["linf", "l2"] = "linf"
    mask: Tensor | None = None

    def project(self, delta: Tensor) -> Tensor:
        """The nearest allowed perturbation to `delta` (records, leads, samples)."""
        return self.project_(delta.clone())

    def project_(self, delta: Tensor) -> Tensor:
        """As `project`, but `delta` may be overwritten: signals are large."""
        if self.norm == "linf":
            delta.clamp_(-self.epsilon_mv, self.epsilon_mv)
            return delta if self.mask is None else delta.mul_(self.mask)
        delta = self._masked(delta)
        return delta * (self.epsilon_mv / self._rms(delta)).clamp(max=1)

    def direction(self, gradient: Tensor) -> Tensor:
        """Steepest ascent of amplitude 1: the sign, or the gradient at unit rms."""
        if self.norm == "linf":
            return self._masked(gradient.sign())
        gradient = self._masked(gradient)
        # Squares of tiny gradients would vanish in float32, so scale them up first.
        largest = gradient.abs().amax((1, 2), keepdim=True)
        gradient = gradient / torch.where(largest > 0, largest, 1)
        return gradient / self._rms(gradient)

    def draw(self, signals: Tensor, generator: Generator) -> Tensor:
        """A perturbation of each of the `signals`, uniform in the ball."""
        form = {"device": signals.device, "dtype": signals.dtype}
        if self.norm == "linf":
            uniform = torch.rand(signals.shape, generator=generator, **form)
            return self._masked(self.epsilon_mv * (2 * uniform - 1))
        # A random direction, at a radius r with P(r ≤ x) = xⁿ in n dimensions.
        noise = self._masked(torch.randn(signals.shape, generator=generator, **form))
        radius = torch.rand((len(signals), 1, 1), generator=generator, **form)
        radius = radius ** (1 / self._count(signals))
        return self.epsilon_mv * radius * noise / self._rms(noise)

    def select(self, rows: slice | Tensor, signals: Tensor) -> "Ball":
        """The ball of the records `rows` among `signals`."""
        mask = None if self.mask is None else self.mask.expand_as(signals)[rows]
        return Ball(self.epsilon_mv, self.norm, mask)

    def _masked(self, delta: Tensor) -> Tensor:
        return delta if self.mask is None else delta * self.mask

    def _count(self, like: Tensor) -> Tensor:
        """Samples of each record that may change, (records, 1, 1), at least 1."""
        free = self._masked(torch.ones_like(like))
        return free.sum((1, 2), keepdim=True).clamp(min=1)

    def _rms(self, delta: Tensor) -> Tensor:
        """Root mean square over the samples that may change, (records, 1, 1), > 0."""
        norm = torch.linalg.vector_norm(delta, dim=(1, 2), keepdim=True)
        smallest = torch.finfo(delta.dtype).tiny
        return (norm / self._count(delta).sqrt()).clamp(min=smallest)


def value_and_gradient(
    value: Callable[[Tensor], Tensor], signals: Tensor, delta: Tensor
) -> tuple[Tensor, Tensor]:
    """Objective of each record at `signals` + `delta`, and its gradient by δ.

    Parameters
    ----------
    value, signals, delta
        As of `ascend`.
    """
    delta = delta.detach().requires_grad_()
    values = value(signals + delta)
    (gradient,) = torch.autograd.grad(values.sum(), delta)
    return values.detach(), gradient


def ascend(
    value: Callable[[Tensor], Tensor],
    signals: Tensor,
    delta: Tensor,
    ball: Ball,
    *,
    steps: int,
    step_mv: float,
    visit: Callable[[Tensor, Tensor], object] | None = None,
) -> Tensor:
    """Projected steepest ascent on `value` (Madry et al. 2018); returns the last δ.

    Parameters
    ----------
    value
        Perturbed signals → objective of each record, (records,). Records must not
        influence each other.
    signals, delta
        Clean signals and the first δ, (records, leads, samples) in mV.
    ball
        Where δ may go.
    steps, step_mv
        Number of steps, and the amplitude of each in mV.
    visit
        Called with (δ, objective) at every iterate before the last, to keep the best.
    """
    for _ in range(steps):
        values, gradient = value_and_gradient(value, signals, delta)
        if visit is not None:
            visit(delta, values)
        delta = ball.project_(delta + step_mv * ball.direction(gradient))
    return delta
