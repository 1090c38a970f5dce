"""Other leads, rates, bands, scales and lengths, by differentiable operations.

Signals are (records, leads, samples).
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ecgstudy.datasets.leads import derive_leads, lead_weights
from ecgstudy.errors import StudyError
from ecgstudy.models.released import Input

NOTCH_QUALITY = 30.0
FILTER_PAD_S = 3.0
"""By so much a record is continued on both sides before it is filtered: two periods of
0.67 Hz."""


def lead_matrix(wanted: Sequence[str], given: Sequence[str]) -> Tensor:
    """Weights (wanted, given) that make leads of others.

    Raises
    ------
    StudyError
        Naming the leads that do not follow from those given.
    """
    weights = lead_weights((*given, *wanted))
    matrix, possible = derive_leads(weights[len(given) :], weights[: len(given)])
    lost = [lead for lead, able in zip(wanted, possible, strict=True) if not able]
    if lost:
        raise StudyError(
            f"the encoder takes lead {', '.join(lost)}, which cannot be had from the "
            f"data's {', '.join(given)}; give datasets more leads, or choose another "
            "encoder or lead"
        )
    return torch.tensor(np.round(matrix, 9))


def design_resampler(fs: float, to: float) -> tuple[Tensor, int, int]:
    """Kernel, up and down of a polyphase filter from `fs` to `to` Hz.

    That of scipy's ``resample_poly``, but each phase sums to 1, so that a constant
    stays one exactly.
    """
    ratio = Fraction(to / fs).limit_denominator(1000)
    up, down = ratio.numerator, ratio.denominator
    if up == down:
        return torch.ones(1, dtype=torch.float64), 1, 1
    from scipy.signal import firwin  # a second, which every job would wait for

    most = max(up, down)
    kernel = firwin(20 * most + 1, 1 / most, window=("kaiser", 5.0))
    for phase in range(up):
        kernel[phase::up] /= kernel[phase::up].sum()
    return torch.tensor(kernel), up, down


def resample(x: Tensor, kernel: Tensor, up: int, down: int) -> Tensor:
    """`x` at up/down times its rate; beyond its ends it stays as it is there.

    Parameters
    ----------
    x
        Signals.
    kernel, up, down
        Of `design_resampler`.
    """
    half = len(kernel) // 2
    pad = math.ceil(half / up)
    rows = functional.pad(x, (pad, pad), mode="replicate").flatten(0, 1)[:, None]
    # Zeros between samples, then the filter; of its output every `down`-th sample.
    dense = functional.conv_transpose1d(rows, kernel[None, None], stride=up)
    wanted = math.ceil(x.shape[2] * up / down)
    samples = dense[:, 0, pad * up + half :: down][:, :wanted]
    return samples.unflatten(0, x.shape[:2])


def apply_filters(x: Tensor, takes: Input) -> Tensor:
    """`x` through the network's filters without delay.

    It is continued through its ends point by point (odd extension), and the line
    between the new ends is filtered by itself: the transform's end runs into its
    beginning.
    """
    if not (takes.band_hz or takes.notch_hz):
        return x
    pad = min(x.shape[-1] - 1, round(FILTER_PAD_S * takes.fs))
    edges = functional.pad(x, (pad, pad), mode="replicate")
    longer = 2 * edges - functional.pad(x, (pad, pad), mode="reflect")
    samples = longer.shape[-1]
    gain = zero_phase_gain(samples, takes).to(x)
    ramp = torch.linspace(0, 1, samples, dtype=x.dtype).to(x)
    line = torch.lerp(longer[..., :1], longer[..., -1:], ramp)
    passed = torch.fft.irfft(torch.fft.rfft(longer - line) * gain, n=samples)
    return (passed + gain[0] * line).narrow(-1, pad, x.shape[-1])


@cache
def zero_phase_gain(samples: int, takes: Input) -> Tensor:
    """Gain of the network's filters forwards and backwards, as of `rfft`.

    A Butterworth band-pass and a notch of quality 30.
    """
    from scipy import signal  # a second, which every job would wait for

    rates_hz = np.fft.rfftfreq(samples, 1 / takes.fs)
    gain = np.ones(len(rates_hz))
    if takes.band_hz:
        order, band_hz, fs = takes.band_order, takes.band_hz, takes.fs
        band = signal.butter(order, band_hz, "bandpass", output="sos", fs=fs)
        gain *= np.abs(signal.sosfreqz(band, rates_hz, fs=fs)[1]) ** 2
    if takes.notch_hz:
        notch = signal.iirnotch(takes.notch_hz, NOTCH_QUALITY, takes.fs)
        gain *= np.abs(signal.freqz(*notch, rates_hz, fs=takes.fs)[1]) ** 2
    return torch.tensor(gain)


def subtract_median(x: Tensor, takes: Input) -> Tensor:
    """`x` less its running median of `takes.baseline_s`, zeros beyond its ends."""
    if not takes.baseline_s:
        return x
    half = int(takes.baseline_s * takes.fs) // 2
    padded = functional.pad(x, (half, half))
    # Record by record: the windows of all at once would fill the memory.
    medians = [one.unfold(-1, 2 * half + 1, 1).median(-1).values for one in padded]
    return x - torch.stack(medians)


def rescale(x: Tensor, scale: str) -> Tensor:
    """`x` in the network's unit; a silent lead stays finite."""
    if scale == "mv":
        return x
    if scale == "range":
        low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
        return 2 * (x - low) / (high - low + 1e-8) - 1
    over = (-1,) if scale == "lead" else (-2, -1)
    centred = x - x.mean(over, keepdim=True)
    return centred / (centred.square().mean(over, keepdim=True) + 1e-16).sqrt()


def cut_windows(x: Tensor, takes: Input) -> Tensor:
    """As few windows of the network's length as cover the record.

    (records, leads, samples) → (records, windows, leads, the network's samples).
    """
    samples, length = x.shape[-1], takes.samples
    if samples <= length:
        short = length - samples if takes.exact else 0
        return functional.pad(x, (short // 2, short - short // 2)).unsqueeze(1)
    count = math.ceil(samples / length)
    starts = [round(k * (samples - length) / (count - 1)) for k in range(count)]
    return torch.stack([x.narrow(-1, start, length) for start in starts], 1)
