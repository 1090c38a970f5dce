"""Where a perturbation may go, and the ascent inside: shared by attacks of training and of evaluation."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor


@dataclass(frozen=True)
class Ball:
    """All perturbations within a budget, in mV on the raw signal.

    Attributes
    ----------
    epsilon_mv
        Budget in mV: of every sample (``"linf"``), or of the root mean square over the samples that may
        change (``"l2"``: ‖δ‖₂ ≤ ε√n). So ε means the same amplitude in both, and the ℓ2 ball holds the other.
    norm
        ``"linf"`` or ``"l2"``.
    mask
        1 where a record may be changed, 0 elsewhere (padding, other leads); broadcastable to the signals.
        None: everywhere.
    """

    epsilon_mv: float
    norm: Literal["linf", "l2"] = "linf"
    mask: Tensor | None = None

    def project(self, delta: Tensor) -> Tensor:
        """The nearest perturbation that is allowed, for `delta` (records, leads, samples)."""
        if self.norm == "linf":
            return self._masked(delta.clamp(-self.epsilon_mv, self.epsilon_mv))
        delta = self._masked(delta)
        return delta * (self.epsilon_mv / self._rms(delta)).clamp(max=1)

    def step(self, delta: Tensor, step: float | Tensor, direction: Tensor) -> Tensor:
        """The nearest allowed perturbation to `delta` + `step` · `direction`; a step for all or one a record.

        Signals are large and memory is slow: nothing is written that is not needed.
        """
        if isinstance(step, Tensor):
            return self.project_(torch.addcmul(delta, step, direction))
        if self.norm == "linf":
            return self.project_(torch.add(delta, direction, alpha=step))
        return self.project_(delta + step * direction)

    def project_(self, delta: Tensor) -> Tensor:
        """`project`, in the memory of `delta` where that is possible."""
        if self.norm == "linf":
            delta = delta.clamp_(-self.epsilon_mv, self.epsilon_mv)
            return delta if self.mask is None else delta.mul_(self.mask)
        return self.project(delta)

    def direction(self, gradient: Tensor) -> Tensor:
        """Steepest ascent along `gradient`, of amplitude 1: its sign, or itself at root mean square 1."""
        if self.norm == "linf":
            return self._masked(gradient.sign())
        gradient = self._masked(gradient)
        largest = gradient.abs().amax(
            (1, 2), keepdim=True
        )  # squares of tiny gradients would vanish
        gradient = gradient / torch.where(largest > 0, largest, 1)
        return gradient / self._rms(gradient)

    def draw(self, signals: Tensor, generator: Generator) -> Tensor:
        """A perturbation of each record, uniform in the ball."""
        draw = {
            "generator": generator,
            "device": signals.device,
            "dtype": signals.dtype,
        }
        if self.norm == "linf":
            return self._masked(
                self.epsilon_mv * (2 * torch.rand(signals.shape, **draw) - 1)
            )
        noise = self._masked(torch.randn(signals.shape, **draw))
        radius = torch.rand((len(signals), 1, 1), **draw) ** (1 / self._count(signals))
        return self.epsilon_mv * radius * noise / self._rms(noise)

    def select(self, rows: slice | Tensor, signals: Tensor) -> "Ball":
        """The ball of some of the records `signals`."""
        mask = None if self.mask is None else self.mask.expand_as(signals)[rows]
        return Ball(self.epsilon_mv, self.norm, mask)

    def _masked(self, delta: Tensor) -> Tensor:
        return delta if self.mask is None else delta * self.mask

    def _count(self, like: Tensor) -> Tensor:
        """Samples of each record that may change, (records, 1, 1), at least 1."""
        mask = (
            torch.ones_like(like)
            if self.mask is None
            else self.mask.expand_as(like).to(like)
        )
        return mask.sum((1, 2), keepdim=True).clamp(min=1)

    def _rms(self, delta: Tensor) -> Tensor:
        """Root mean square over the samples that may change, (records, 1, 1), above 0."""
        norm = torch.linalg.vector_norm(delta, dim=(1, 2), keepdim=True)
        return (norm / self._count(delta).sqrt()).clamp(
            min=torch.finfo(delta.dtype).tiny
        )


def ascend(
    value: Callable[[Tensor], Tensor],
    signals: Tensor,
    delta: Tensor,
    ball: Ball,
    *,
    steps: int,
    step_mv: float,
    visit: Callable[[Tensor, Tensor], None] | None = None,
) -> Tensor:
    """Projected steepest ascent on `value` (Madry et al. 2018); returns the last iterate.

    Parameters
    ----------
    value
        Perturbed signals → objective per record (records,). Records must not influence each other.
    signals, delta
        (records, leads, samples) in mV: clean signals, start.
    ball
        Where δ may go.
    steps, step_mv
        How many steps, and the amplitude of each in mV.
    visit
        Called with (δ, objective) at every iterate before the last, e.g. to keep the best.
    """
    for _ in range(steps):
        delta = delta.detach().requires_grad_()
        values = value(signals + delta)
        (gradient,) = torch.autograd.grad(values.sum(), delta)
        delta = delta.detach()
        if visit is not None:
            visit(delta, values.detach())
        delta = ball.step(delta, step_mv, ball.direction(gradient))
    return delta
