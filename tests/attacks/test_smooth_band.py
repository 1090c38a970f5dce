"""Smooth and band-limited perturbations against loops, closed forms and linear
programs."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from scipy.optimize import linprog
from scipy.signal.windows import gaussian
from victims import aurocs, curved, ecgs, linear, seeded

from ecgstudy.attacks.api import Budget, Victim
from ecgstudy.attacks.named import get_attack, scores_problem
from ecgstudy.attacks.objectives import auroc_targets
from ecgstudy.attacks.smooth_band import (
    limit_band,
    passed_frequencies,
    smooth,
    smoothing_kernel,
)
from ecgstudy.errors import StudyError

BANDS = {"band-low": (0.5, 5), "band-mid": (5, 15), "band-high": (15, 40)}
SHAPED = ["sap", *BANDS]


def smoothed_one_by_one(signal, taps=(5, 7, 11, 15, 19), sigmas=(1, 3, 5, 7, 10)):
    """Han et al.: the mean of 25 smoothed copies, each by a Gaussian that is cut off
    and normalised."""
    copies = []
    for width in taps:
        for sigma in sigmas:
            kernel = gaussian(width, sigma)
            padded = np.pad(signal, width // 2)
            windows = [padded[i : i + width] for i in range(len(signal))]
            copies.append(
                [np.sum(kernel / kernel.sum() * window) for window in windows]
            )
    return np.mean(copies, axis=0)


def reached(name, victim, signals, labels, budget):
    """δ of an attack and how much it raises each record's objective."""
    delta = get_attack(name)(victim, signals, labels, budget, seeded())
    problem = scores_problem("margin", victim, signals, labels)
    none = torch.zeros_like(signals)
    return delta, problem.values(delta, 64) - problem.values(none, 64)


# ---- smooth perturbations ------------------------------------------------------------


def test_smoothing_is_the_mean_of_25_convolutions():
    theta = torch.randn(2, 3, 40, generator=seeded(), dtype=torch.float64)
    found = smooth(theta, smoothing_kernel(300))
    for before, after in zip(theta.flatten(0, 1), found.flatten(0, 1), strict=True):
        np.testing.assert_allclose(after, smoothed_one_by_one(before.numpy()))


@pytest.mark.parametrize(
    ("fs", "taps"),
    [(360, (7, 9, 13, 19, 23)), (500, (9, 11, 19, 25, 31)), (100, (3, 3, 3, 5, 7))],
)
def test_kernels_keep_their_width_in_seconds(fs, taps):
    theta = torch.randn(1, 1, 60, generator=seeded(), dtype=torch.float64)
    expected = smoothed_one_by_one(
        theta[0, 0].numpy(), taps, [s * fs / 300 for s in (1, 3, 5, 7, 10)]
    )
    np.testing.assert_allclose(smooth(theta, smoothing_kernel(fs))[0, 0], expected)


@pytest.mark.parametrize("samples", [3, 40])
def test_on_a_linear_model_sap_reaches_the_closed_form_optimum(samples):
    """max over |θ| ≤ ε of w·M·K·θ is ε Σ |Kᵀ M w|, whatever is masked."""
    victim, weight = linear(samples=samples)
    signals, labels = ecgs(9, samples=samples)
    slopes = torch.einsum("rc,cls->rls", auroc_targets(labels), weight)
    mask = torch.ones(1, 1, samples)
    mask[..., : samples // 3] = 0
    matrix = torch.stack(
        [
            smooth(row[None, None], smoothing_kernel(100).float())[0, 0]
            for row in torch.eye(samples)
        ]
    )
    expected = 0.1 * ((slopes * mask) @ matrix.T * mask).abs().sum((1, 2))
    _, gain = reached("sap", victim, signals, labels, Budget(0.1, 20, mask=mask))
    torch.testing.assert_close(gain, expected, rtol=1e-4, atol=1e-5)


def test_sap_is_smoother_than_pgd_and_weaker():
    victim, (signals, labels) = curved(samples=100, fs=300), ecgs(samples=100)
    sap, gain = reached("sap", victim, signals, labels, Budget(0.05))
    pgd, more = reached("pgd-margin", victim, signals, labels, Budget(0.05))
    rough = [
        delta.diff(dim=2).square().mean().sqrt() / delta.square().mean().sqrt()
        for delta in (sap, pgd)
    ]
    assert rough[0] < 0.4 * rough[1]
    assert gain.mean() < more.mean()


# ---- band-limited perturbations ------------------------------------------------------


def linear_program(slope, fs, low, high):
    """Largest slope·δ over |δ| ≤ 1 that are sums of cosines and sines within the
    band."""
    samples = len(slope)
    orders = [k for k in range(samples // 2 + 1) if low <= k * fs / samples <= high]
    phase = 2 * np.pi * np.outer(np.arange(samples), orders) / samples
    waves = np.hstack([np.cos(phase), np.sin(phase)])
    bounds = np.ones(2 * samples)
    best = linprog(
        -waves.T @ slope, np.vstack([waves, -waves]), bounds, bounds=(None, None)
    )
    return -best.fun


@pytest.mark.parametrize(("steps", "share"), [(20, 0.94), (100, 0.97)])
@pytest.mark.parametrize("name", BANDS)
def test_on_a_linear_model_a_band_comes_near_the_optimum_of_the_linear_program(
    name, steps, share
):
    victim, weight = linear(samples=100)
    signals, labels = ecgs(6, samples=100)
    slopes = torch.einsum("rc,cls->rls", auroc_targets(labels), weight).numpy()
    leads = [
        [linear_program(slope, 100, *BANDS[name]) for slope in record]
        for record in slopes
    ]
    best = 0.1 * np.sum(leads, axis=1)
    _, gain = reached(name, victim, signals, labels, Budget(0.1, steps))
    assert (gain.numpy() <= best * (1 + 1e-4)).all()
    assert (gain.numpy() / best).mean() > share


@pytest.mark.parametrize("leads", [(1, 1), (0, 1)])
@pytest.mark.parametrize("fs", [60, 100, 360])
@pytest.mark.parametrize("name", BANDS)
def test_no_energy_lies_outside_the_band(name, fs, leads):
    victim, (signals, labels) = curved(samples=300, fs=fs), ecgs(samples=300)
    budget = Budget(0.05, 5, mask=torch.tensor(leads)[:, None])
    delta, _ = reached(name, victim, signals, labels, budget)
    energy = np.abs(np.fft.fft(delta.double().numpy())) ** 2
    frequency, (low, high) = np.abs(np.fft.fftfreq(300, 1 / fs)), BANDS[name]
    outside = (frequency < low) | (frequency > high)
    assert energy[..., outside].sum() < 1e-10 * energy.sum()
    assert energy.sum() > 0


def test_what_has_the_band_and_keeps_to_the_ball_is_left_as_it_is():
    time = torch.arange(200) / 100
    waves = torch.stack([torch.sin(2 * torch.pi * f * time) for f in (3, 8, 20)])[
        :, None
    ]
    passed = passed_frequencies(waves, 100, 5, 15)
    found = limit_band(waves, passed, 1.0)
    torch.testing.assert_close(found[1], waves[1], atol=1e-5, rtol=0)
    assert found[[0, 2]].abs().max() < 1e-5


def test_a_record_too_short_for_a_band_is_an_error():
    victim, (signals, labels) = linear(samples=10, fs=360), ecgs(samples=10)
    with pytest.raises(
        StudyError, match=r"10 samples at 360 Hz lies in the band 0.5 to 5 Hz"
    ):
        get_attack("band-low")(victim[0], signals, labels, Budget(0.1), seeded())


# ---- both ----------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(
    name=some.sampled_from(SHAPED),
    shape=some.tuples(some.integers(3, 6), some.integers(1, 3), some.integers(20, 60)),
    epsilon=some.floats(1e-4, 10),
    steps=some.integers(1, 4),
    restarts=some.integers(1, 2),
    batch_size=some.integers(1, 8),
    masked=some.sampled_from(["nowhere", "leads", "samples", "records"]),
    seed=some.integers(0, 1000),
)
def test_shaped_perturbations_keep_to_their_set_repeat_and_never_end_below_none(
    name, shape, epsilon, steps, restarts, batch_size, masked, seed
):
    records, leads, samples = shape
    victim, (signals, labels) = (
        curved(leads, samples, seed=seed),
        ecgs(records, leads, samples, seed=seed),
    )
    size = {
        "nowhere": (1, 1, 1),
        "leads": (leads, 1),
        "samples": (1, 1, samples),
        "records": (records, 1, 1),
    }
    mask = (torch.rand(size[masked], generator=seeded(seed)) < 0.6).float()
    budget = Budget(epsilon, steps, restarts, batch_size=batch_size, mask=mask)
    delta, gain = reached(name, victim, signals, labels, budget)
    assert delta.shape == signals.shape
    assert torch.isfinite(delta).all()
    assert delta.abs().max() <= torch.tensor(epsilon)
    assert (delta * (1 - mask) == 0).all()
    assert gain.min() >= -1e-5
    assert torch.equal(delta, reached(name, victim, signals, labels, budget)[0])


@pytest.mark.parametrize("name", SHAPED)
def test_more_restarts_never_find_less_and_other_generators_differ(name):
    victim, (signals, labels) = curved(samples=50), ecgs(12, samples=50)
    few, some_more = (
        reached(name, victim, signals, labels, Budget(1.0, 3, n))[1] for n in (1, 4)
    )
    assert (some_more >= few).all()
    assert (some_more > few).any()
    attack = get_attack(name)
    one, other = (
        attack(victim, signals, labels, Budget(1.0, 3, 2), seeded(s)) for s in (0, 1)
    )
    assert not torch.equal(one, other)


@pytest.mark.parametrize("name", SHAPED)
def test_batches_do_not_change_the_result(name):
    victim, (signals, labels) = curved(samples=50), ecgs(7, samples=50)
    one, other = (
        reached(name, victim, signals, labels, Budget(0.1, 3, batch_size=n))[1]
        for n in (2, 7)
    )
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", SHAPED)
def test_a_shape_in_time_needs_the_rate_and_the_linf_ball(name):
    victim, (signals, labels) = curved(samples=50), ecgs(samples=50)
    with pytest.raises(
        StudyError, match="need the sampling rate of the signals, fs in Hz"
    ):
        get_attack(name)(
            Victim(victim.model, True), signals, labels, Budget(0.1), seeded()
        )
    with pytest.raises(StudyError, match="norm 'l2' is not"):
        get_attack(name)(victim, signals, labels, Budget(0.1, norm="l2"), seeded())


@pytest.mark.parametrize("name", SHAPED)
def test_auroc_falls_where_noise_does_nothing(name):
    clean, noisy, attacked = aurocs(name, 0.2)
    assert clean - noisy < 0.005
    assert attacked < 0.7
