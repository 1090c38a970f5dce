"""Perturbations of a given shape in time: smooth (SAP), or of one frequency band.

δ is a function of free parameters θ in the ball, and PGD or APGD ascends on θ.
Gradients pass through the shape, and each record keeps the best δ that has it.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import product

import torch
from torch import Generator, Tensor
from torch.nn import functional

from ecgstudy.attacks.api import Budget, Problem, Search, Victim
from ecgstudy.attacks.gradient import apgd, pgd
from ecgstudy.attacks.objectives import auroc_targets, signed_scores
from ecgstudy.errors import StudyError
from ecgstudy.registry import ATTACKS

Shape = Callable[[Tensor], Tensor]
"""θ (records, leads, samples) within ±ε → δ of the same size, within ±ε to rounding."""

SAP_RATE_HZ = 300
SAP_TAPS = (5, 7, 11, 15, 19)
SAP_SIGMAS = (1, 3, 5, 7, 10)
"""Widths and standard deviations of SAP's kernels, in samples at `SAP_RATE_HZ`."""
BANDS_HZ = {"band-low": (0.5, 5), "band-mid": (5, 15), "band-high": (15, 40)}
ROUNDS = 5
"""Alternations between band and ball. On linear models 20 steps of APGD reach 0.95 to
0.98 of the optimum (linear program) with 5, 0.96 to 0.98 with 10, which take 1.7 times
as long, and 0.76 to 0.92 with none."""


@ATTACKS.register("sap")
def sap(
    victim: Victim,
    signals: Tensor,
    labels: Tensor,
    budget: Budget,
    generator: Generator,
) -> Tensor:
    """Smooth adversarial perturbation (Han et al. 2020, Nature Medicine).

    δ = mean_k conv(θ, K_k) with 25 Gaussian kernels K_k and |θ| ≤ ε. θ starts from a
    PGD perturbation without random start, and takes twice as many sign steps of the
    same length (further restarts start at random). Other than in the original, kernels
    keep their width in seconds at any rate, each record keeps its best δ instead of its
    last, and the objective is the AUROC-weighted margin. Masked samples are 0 after
    smoothing, as is padding in the original.

    Parameters
    ----------
    victim, signals, labels, budget, generator
        As of `ecgstudy.attacks.named.Attack`.

    Raises
    ------
    StudyError
        Without the victim's sampling rate, or in an ℓ2 ball.
    """
    kernel = smoothing_kernel(_sampling_rate(victim, "sap")).to(signals)
    problem = Problem.of(victim, signals, signed_scores, auroc_targets(labels))
    pointed = pgd(problem, replace(budget, restarts=1), generator, random_start=False)
    step = 2.5 / budget.steps if budget.step is None else budget.step
    longer = replace(budget, steps=2 * budget.steps, step=step)
    problem = replace(problem, start=pointed)
    shape = lambda theta: smooth(theta, kernel)  # noqa: E731
    return search_shaped(pgd, shape, problem, longer, generator)


def band_limited(
    low_hz: float,
    high_hz: float,
    victim: Victim,
    signals: Tensor,
    labels: Tensor,
    budget: Budget,
    generator: Generator,
) -> Tensor:
    """APGD on the AUROC-weighted margin with frequencies of one band only.

    Frequencies of the record's discrete Fourier transform outside [low_hz, high_hz] are
    exactly 0; at the record's ends δ is periodic. A mask of whole leads keeps that; a
    mask of samples cuts δ and spreads its spectrum.

    Parameters
    ----------
    low_hz, high_hz
        Edges of the band in Hz.
    victim, signals, labels, budget, generator
        As of `ecgstudy.attacks.named.Attack`.

    Raises
    ------
    StudyError
        Without the victim's sampling rate, in an ℓ2 ball, or for too short records.
    """
    rate = _sampling_rate(victim, "band-limited")
    passed = passed_frequencies(signals, rate, low_hz, high_hz)
    problem = Problem.of(victim, signals, signed_scores, auroc_targets(labels))
    shape = lambda theta: limit_band(theta, passed, budget.epsilon_mv)  # noqa: E731
    return search_shaped(apgd, shape, problem, budget, generator)


for _name, _edges in BANDS_HZ.items():
    ATTACKS[_name] = partial(band_limited, *_edges)


def search_shaped(
    search: Search,
    shape: Shape,
    problem: Problem,
    budget: Budget,
    generator: Generator,
) -> Tensor:
    """Search over θ in the ball, for perturbations δ = shape(θ), 0 where masked.

    Parameters
    ----------
    search
        `pgd` or `apgd`.
    shape
        θ → δ.
    problem
        Its objective is of δ, its start is a θ.
    budget, generator
        As of a search.

    Raises
    ------
    StudyError
        In an ℓ2 ball: shapes that keep to ±ε need not keep to another ball.
    """
    if budget.norm != "linf":
        raise StudyError(
            f"shaped perturbations keep to the ℓ∞ ball; norm {budget.norm!r} is not"
        )
    signals, ball = problem.signals, budget.ball

    def delta(theta: Tensor, rows: slice | Tensor) -> Tensor:
        mask = ball.select(rows, signals).mask
        return shape(theta) if mask is None else shape(theta) * mask

    def objective(theta: Tensor, rows: slice | Tensor) -> Tensor:
        return problem.objective(signals[rows] + delta(theta, rows), rows)

    # θ is added to zeros in the ECGs' place, so that the searches work as they are.
    zeros = torch.zeros_like(signals)
    over_theta = replace(problem, signals=zeros, objective=objective)
    best = search(over_theta, budget, generator)
    return ball.project(delta(best, slice(None)))  # differs by less than rounding


def smoothing_kernel(fs: float) -> Tensor:
    """Mean of SAP's 25 Gaussian kernels at `fs` Hz, (taps,) in float64 of sum 1.

    Each is cut off at its width, the odd number of samples (at least 3) nearest to 17
    to 63 ms, and divided by its sum. Smoothing with the mean is the mean of smoothing
    with each, since convolution is linear.
    """
    halves = [max(1, int(taps * fs / SAP_RATE_HZ / 2)) for taps in SAP_TAPS]
    kernels = []
    for half, sigma in product(halves, SAP_SIGMAS):
        time = torch.arange(-half, half + 1, dtype=torch.float64)
        kernel = torch.exp(-((time / (sigma * fs / SAP_RATE_HZ)) ** 2) / 2)
        padding = max(halves) - half
        kernels.append(functional.pad(kernel / kernel.sum(), (padding, padding)))
    return torch.stack(kernels).mean(0)


def smooth(theta: Tensor, kernel: Tensor) -> Tensor:
    """Each lead of `theta` convolved with `kernel`, zeros outside the record."""
    # Leads as channels of one row: up to 35 times faster than as a batch.
    rows = theta.flatten(0, 1)
    each = kernel.expand(len(rows), 1, -1)
    padding = len(kernel) // 2
    smoothed = functional.conv1d(rows, each, padding=padding, groups=len(rows))
    return smoothed.view_as(theta)


def passed_frequencies(
    signals: Tensor, fs: float, low_hz: float, high_hz: float
) -> Tensor:
    """1 for frequencies of the records' Fourier transform within the band, else 0.

    Parameters
    ----------
    signals
        (records, leads, samples).
    fs, low_hz, high_hz
        Sampling rate and the band's edges in Hz.

    Raises
    ------
    StudyError
        When no frequency lies in the band.
    """
    samples = signals.shape[2]
    double = {"dtype": torch.float64, "device": signals.device}
    frequencies = torch.fft.rfftfreq(samples, 1 / fs, **double)
    passed = (frequencies >= low_hz) & (frequencies <= high_hz)
    if not passed.any():
        raise StudyError(
            f"no frequency of records of {samples} samples at {fs:g} Hz lies in the "
            f"band {low_hz:g} to {high_hz:g} Hz: use longer records or a higher rate"
        )
    return passed.to(signals.dtype)


def limit_band(theta: Tensor, passed: Tensor, epsilon_mv: float) -> Tensor:
    """A perturbation near `theta` of the frequencies `passed` only, within ±ε.

    Projections onto the band and onto the ball alternate; the last one onto the band is
    scaled, lead by lead, into the ball. What meets both is left as it is.

    Parameters
    ----------
    theta
        (records, leads, samples) in mV.
    passed
        As of `passed_frequencies`.
    epsilon_mv
        Budget in mV.
    """
    delta = _pass_band(theta, passed)
    for _ in range(ROUNDS):
        delta = _pass_band(delta.clamp(-epsilon_mv, epsilon_mv), passed)
    largest = delta.abs().amax(2, keepdim=True).clamp(min=torch.finfo(delta.dtype).tiny)
    return delta * (epsilon_mv / largest).clamp(max=1)


def _pass_band(delta: Tensor, passed: Tensor) -> Tensor:
    return torch.fft.irfft(torch.fft.rfft(delta) * passed, n=delta.shape[2])


def _sampling_rate(victim: Victim, name: str) -> float:
    if victim.fs is None:
        raise StudyError(
            f"{name} perturbations need the sampling rate of the signals, fs in Hz; "
            "it is None"
        )
    return victim.fs
