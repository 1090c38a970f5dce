"""Perturbations of a given shape in time: smooth ones (SAP), and ones that keep to a band of frequencies.

δ is a function of free parameters θ in the ball, and a search of the ball (`pgd`, `apgd`) ascends on θ. So
gradients pass through the shape, and each record keeps the best δ that has it.
"""

from collections.abc import Callable
from dataclasses import replace
from itertools import product

import torch
from torch import Generator, Tensor
from torch.nn import functional

from ecgstudy.attacks.api import Budget, Problem, Search, Victim
from ecgstudy.attacks.gradient import apgd, pgd
from ecgstudy.attacks.objectives import auroc_targets, signed_scores
from ecgstudy.errors import StudyError

Shape = Callable[[Tensor], Tensor]
"""θ (records, leads, samples), within ±ε → δ of the same size, within ±ε up to rounding."""

SAP_RATE_HZ = 300
SAP_TAPS = (5, 7, 11, 15, 19)
SAP_SIGMAS = (1, 3, 5, 7, 10)
"""Widths and standard deviations of SAP's Gaussian kernels, in samples at `SAP_RATE_HZ`."""
ROUNDS = 5
"""Alternations between band and ball. On linear models 20 steps of APGD reach 0.95 to 0.98 of the linear
program's optimum with 5, 0.96 to 0.98 with 10, which take 1.7 times as long, and 0.76 to 0.92 with none."""


def sap(
    victim: Victim,
    signals: Tensor,
    labels: Tensor,
    budget: Budget,
    generator: Generator,
) -> Tensor:
    """Smooth adversarial perturbation (Han et al. 2020, Nature Medicine): δ = mean_k conv(θ, K_k), |θ| ≤ ε.

    θ starts from a PGD perturbation made without random start, and takes twice as many sign steps of the
    same length (further restarts start at random). Other than the original: kernels keep their width in
    seconds at any sampling rate; each record keeps its best δ, not its last; the objective is the
    AUROC-weighted margin. Masked samples are set to 0 after smoothing, as the original does with padding.

    Raises
    ------
    StudyError
        Without the victim's sampling rate, or in an ℓ2 ball.
    """
    kernel = smoothing_kernel(_rate(victim, "sap")).to(signals)
    problem = Problem.of(victim, signals, signed_scores, auroc_targets(labels))
    pointed = pgd(problem, replace(budget, restarts=1), generator, random_start=False)
    step = 2.5 / budget.steps if budget.step is None else budget.step
    longer = replace(budget, steps=2 * budget.steps, step=step)
    return shaped(pgd, lambda theta: smooth(theta, kernel))(
        replace(problem, start=pointed), longer, generator
    )


def band(
    low_hz: float, high_hz: float
) -> Callable[[Victim, Tensor, Tensor, Budget, Generator], Tensor]:
    """The attack by APGD on the AUROC-weighted margin with frequencies of [low_hz, high_hz] only.

    Every frequency of the record's discrete Fourier transform outside the band (capped at half the sampling
    rate) is exactly 0, so that up to rounding no energy of δ lies there; at the record's ends δ is periodic.
    A mask of whole leads keeps that, a mask of samples (padding) cuts δ and spreads its spectrum.

    Raises (the attack)
    -------------------
    StudyError
        Without the victim's sampling rate, in an ℓ2 ball, or when records are too short for the band.
    """

    def attack(
        victim: Victim,
        signals: Tensor,
        labels: Tensor,
        budget: Budget,
        generator: Generator,
    ) -> Tensor:
        passed = passed_frequencies(
            signals, _rate(victim, "band-limited"), low_hz, high_hz
        )
        problem = Problem.of(victim, signals, signed_scores, auroc_targets(labels))
        shape = lambda theta: band_limited(theta, passed, budget.epsilon_mv)  # noqa: E731
        return shaped(apgd, shape)(problem, budget, generator)

    return attack


def shaped(search: Search, shape: Shape) -> Search:
    """`search` over θ in the ball, for perturbations δ = shape(θ), 0 where masked.

    A problem's start is one of θ. Only ℓ∞: a shape that keeps to ±ε need not keep to another ball.
    """

    def shaped_search(problem: Problem, budget: Budget, generator: Generator) -> Tensor:
        if budget.norm != "linf":
            raise StudyError(
                f"shaped perturbations keep to the ℓ∞ ball; norm {budget.norm!r} is not theirs"
            )
        ball = budget.ball

        def delta(theta: Tensor, rows: slice | Tensor) -> Tensor:
            mask = ball.select(rows, problem.signals).mask
            return shape(theta) if mask is None else shape(theta) * mask

        over_theta = Problem(
            torch.zeros_like(problem.signals),
            lambda theta, rows: problem.objective(
                problem.signals[rows] + delta(theta, rows), rows
            ),
            problem.start,
            problem.exact,
            problem.clean_values,
        )
        best = search(over_theta, budget, generator)
        return ball.project(delta(best, slice(None)))  # less than rounding

    return shaped_search


def smoothing_kernel(fs: float) -> Tensor:
    """Mean of SAP's 25 Gaussian kernels at `fs` Hz, (taps,) in float64 of sum 1.

    Each is cut off at its width, the odd number of samples (at least 3) nearest to 17 to 63 ms, and divided
    by its sum. By linearity smoothing with the mean is the mean of smoothing with each.
    """
    halves = [max(1, int(taps * fs / SAP_RATE_HZ / 2)) for taps in SAP_TAPS]
    kernels = []
    for half, sigma in product(halves, SAP_SIGMAS):
        time = torch.arange(-half, half + 1, dtype=torch.float64)
        kernel = torch.exp(-((time / (sigma * fs / SAP_RATE_HZ)) ** 2) / 2)
        kernels.append(functional.pad(kernel / kernel.sum(), [max(halves) - half] * 2))
    return torch.stack(kernels).mean(0)


def smooth(theta: Tensor, kernel: Tensor) -> Tensor:
    """Each lead of `theta` convolved with `kernel` along time, zeros outside the record."""
    rows = theta.flatten(
        0, 1
    )  # as channels, each by itself: up to 35 times faster than as a batch
    each = kernel.expand(len(rows), 1, -1)
    return functional.conv1d(
        rows, each, padding=len(kernel) // 2, groups=len(rows)
    ).view_as(theta)


def passed_frequencies(
    signals: Tensor, fs: float, low_hz: float, high_hz: float
) -> Tensor:
    """1 for frequencies of the records' discrete Fourier transform within the band, else 0."""
    samples = signals.shape[2]
    frequencies = torch.fft.rfftfreq(
        samples, 1 / fs, dtype=torch.float64, device=signals.device
    )
    passed = ((frequencies >= low_hz) & (frequencies <= high_hz)).to(signals.dtype)
    if not passed.any():
        raise StudyError(
            f"no frequency of records of {samples} samples at {fs:g} Hz lies in the band"
            f" {low_hz:g} to {high_hz:g} Hz: longer records or a higher sampling rate are needed"
        )
    return passed


def band_limited(theta: Tensor, passed: Tensor, epsilon_mv: float) -> Tensor:
    """A perturbation near `theta` that has the frequencies `passed` only and keeps to ±ε.

    Projections onto the band and onto the ball alternate; the last one onto the band is then scaled, lead
    by lead, into the ball. Perturbations that meet both are left as they are.
    """
    delta = _filtered(theta, passed)
    for _ in range(ROUNDS):
        delta = _filtered(delta.clamp(-epsilon_mv, epsilon_mv), passed)
    largest = delta.abs().amax(2, keepdim=True).clamp(min=torch.finfo(delta.dtype).tiny)
    return delta * (epsilon_mv / largest).clamp(max=1)


def _filtered(delta: Tensor, passed: Tensor) -> Tensor:
    return torch.fft.irfft(torch.fft.rfft(delta) * passed, n=delta.shape[2])


def _rate(victim: Victim, name: str) -> float:
    if victim.fs is None:
        raise StudyError(
            f"{name} perturbations need the sampling rate of the signals, fs in Hz; it is None"
        )
    return victim.fs
