"""Other leads, rates, bands, scales and lengths by differentiable operations on (records, leads, samples)."""

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ecgstudy.datasets.leads import lead_weights
from ecgstudy.errors import StudyError
from ecgstudy.models.released import Input

NOTCH_QUALITY = 30.0
FILTER_PAD_S = 3.0
"""By so much a record is continued on both sides before it is filtered: two periods of 0.67 Hz."""


def lead_matrix(wanted: Sequence[str], given: Sequence[str]) -> Tensor:
    """Weights (wanted, given) that make leads of others: the lead itself, else by Einthoven and Goldberger.

    Raises
    ------
    StudyError
        Naming the leads that cannot be had, and those there are.
    """
    weights = lead_weights((*given, *wanted))
    have, want = weights[: len(given)], weights[len(given) :]
    made = np.round(want @ np.linalg.pinv(have), 9)
    same = np.abs(want[:, None] - have[None]).max(2) < 1e-9
    made[same.any(1)] = np.eye(len(given))[same.argmax(1)][same.any(1)]
    lost = [
        lead
        for lead, far in zip(wanted, np.abs(made @ have - want).max(1), strict=True)
        if far > 1e-6
    ]
    if lost:
        raise StudyError(
            f"the encoder takes lead {', '.join(lost)}, which cannot be had from the data's"
            f" {', '.join(given)}; give datasets more leads, or choose another encoder or lead"
        )
    return torch.tensor(made)


def resampler(fs: float, to: float) -> tuple[Tensor, int, int]:
    """Kernel, up and down of a polyphase filter from `fs` to `to` Hz (that of scipy's ``resample_poly``).

    Each phase sums to 1, so that a constant stays one exactly.
    """
    ratio = Fraction(to / fs).limit_denominator(1000)
    up, down = ratio.numerator, ratio.denominator
    if up == down:
        return torch.ones(1, dtype=torch.float64), 1, 1
    from scipy.signal import firwin  # a second, which every job would wait for

    kernel = firwin(20 * max(up, down) + 1, 1 / max(up, down), window=("kaiser", 5.0))
    for phase in range(up):
        kernel[phase::up] /= kernel[phase::up].sum()
    return torch.tensor(kernel), up, down


def resampled(x: Tensor, kernel: Tensor, up: int, down: int) -> Tensor:
    """`x` at up/down times its rate; beyond its ends it is taken to stay as it is there."""
    records, leads, samples = x.shape
    half = len(kernel) // 2
    pad = math.ceil(half / up)
    rows = functional.pad(x, (pad, pad), mode="replicate").reshape(
        records * leads, 1, -1
    )
    dense = functional.conv_transpose1d(rows, kernel[None, None], stride=up)
    wanted = math.ceil(samples * up / down)
    return dense[..., pad * up + half :: down][..., :wanted].reshape(
        records, leads, wanted
    )


def zero_phase_gain(frequencies: Tensor, takes: Input) -> Tensor:
    """Gain of the network's filters, forwards and backwards, at `frequencies` in Hz.

    A Butterworth band-pass by the bilinear transform, and scipy's ``iirnotch``, in closed form.
    """
    gain, omega = torch.ones_like(frequencies), 2 * torch.pi * frequencies / takes.fs
    if takes.band_hz:
        low, high = (math.tan(math.pi * edge / takes.fs) for edge in takes.band_hz)
        warped = (omega / 2).tan()
        off = (warped**2 - low * high) / (warped * (high - low))
        gain = gain / (1 + off ** (2 * takes.band_order))
    if takes.notch_hz:
        at = 2 * math.pi * takes.notch_hz / takes.fs
        ratio = (
            math.tan(at / NOTCH_QUALITY / 2)
            * omega.sin()
            / (omega.cos() - math.cos(at))
        )
        gain = gain / (1 + ratio**2)
    return gain


def filtered(x: Tensor, takes: Input) -> Tensor:
    """`x` through the network's filters without delay, continued through its ends point by point."""
    if not (takes.band_hz or takes.notch_hz):
        return x
    pad = min(x.shape[-1] - 1, round(FILTER_PAD_S * takes.fs))
    before = 2 * x[..., :1] - x[..., 1 : pad + 1].flip(-1)
    after = 2 * x[..., -1:] - x[..., -pad - 1 : -1].flip(-1)
    long = torch.cat([before, x, after], -1)
    rates = torch.fft.rfftfreq(
        long.shape[-1], 1 / takes.fs, dtype=torch.float64, device=x.device
    )
    gain = zero_phase_gain(rates, takes).to(x.dtype)
    ramp = torch.linspace(0, 1, long.shape[-1], dtype=x.dtype, device=x.device)
    line = torch.lerp(
        long[..., :1], long[..., -1:], ramp
    )  # the transform's end runs into its beginning
    passed = torch.fft.irfft(torch.fft.rfft(long - line) * gain, n=long.shape[-1])
    return (passed + gain[0] * line)[..., pad : pad + x.shape[-1]]


def less_median(x: Tensor, takes: Input) -> Tensor:
    """`x` without its running median, record by record: the windows of all at once would fill the memory."""
    if not takes.baseline_s:
        return x
    width = int(takes.baseline_s * takes.fs) // 2 * 2 + 1
    padded = functional.pad(x, (width // 2, width // 2))
    return x - torch.stack(
        [record.unfold(-1, width, 1).median(-1).values for record in padded]
    )


def scaled(x: Tensor, scale: str) -> Tensor:
    """`x` in the network's unit; a silent lead stays finite."""
    if scale == "mv":
        return x
    if scale == "range":
        low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
        return 2 * (x - low) / (high - low + 1e-8) - 1
    over = (-1,) if scale == "lead" else (-2, -1)
    centred = x - x.mean(over, keepdim=True)
    return centred / (centred.square().mean(over, keepdim=True) + 1e-16).sqrt()


def windows(x: Tensor, takes: Input) -> Tensor:
    """(records, windows, leads, samples): as few windows of the network's length as cover the record."""
    samples, length = x.shape[-1], takes.samples
    if samples <= length:
        short = length - samples if takes.exact else 0
        return functional.pad(x, (short // 2, short - short // 2))[:, None]
    count = math.ceil(samples / length)
    starts = [round(k * (samples - length) / (count - 1)) for k in range(count)]
    return torch.stack([x[..., start : start + length] for start in starts], 1)
