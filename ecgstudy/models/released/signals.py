"""Other leads, rates, bands, scales and lengths, by differentiable operations.

Signals are (records, leads, samples).
"""

import math
from collections.abc import Sequence
from fractions import Fraction

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
            f"the encoder takes lead {', '.join(lost)}, which does not follow from the "
            f"data's {', '.join(given)}; give datasets more leads, or choose another "
            "encoder or lead"
        )
    return torch.tensor(np.round(matrix, 9))


def time_matrix(samples: int, fs: float, takes: Input) -> Tensor:
    """Resampling and filters as one matrix, (the network's samples, `samples`).

    What scipy does to each single sample: ``resample_poly``, then filters forwards and
    backwards. Records are continued beyond their ends, as they are there for the first
    and point by point for the second.

    Parameters
    ----------
    samples, fs
        Of the data: length, and rate in Hz.
    takes
        What the network takes.
    """
    from scipy import signal  # a second, which every job would wait for

    ratio = Fraction(takes.fs / fs).limit_denominator(1000)
    up, down = ratio.numerator, ratio.denominator
    matrix = signal.resample_poly(np.eye(samples), up, down, padtype="edge")
    matrix /= matrix.sum(1, keepdims=True)  # so that a constant stays one exactly
    pad = min(len(matrix) - 1, round(FILTER_PAD_S * takes.fs))
    if takes.band_hz:
        order, rate = takes.band_order, takes.fs
        band = signal.butter(order, takes.band_hz, "bandpass", output="sos", fs=rate)
        matrix = signal.sosfiltfilt(band, matrix, axis=0, padlen=pad)
    if takes.notch_hz:
        notch = signal.iirnotch(takes.notch_hz, NOTCH_QUALITY, takes.fs)
        matrix = signal.filtfilt(*notch, matrix, axis=0, padlen=pad)
    return torch.tensor(matrix[: takes.samples].copy())


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


def cut_windows(x: Tensor, length: int) -> Tensor:
    """As few windows of at most `length` samples as cover the records.

    (records, leads, samples) → (records, windows, leads, samples of a window).
    """
    samples = x.shape[-1]
    if samples <= length:
        return x.unsqueeze(1)
    count = math.ceil(samples / length)
    starts = [round(k * (samples - length) / (count - 1)) for k in range(count)]
    return torch.stack([x.narrow(-1, start, length) for start in starts], 1)


def pad_to_length(x: Tensor, takes: Input) -> Tensor:
    """Zeros on both sides of what is too short for a network of one exact length."""
    if not takes.exact:
        return x
    short = takes.samples - x.shape[-1]
    return functional.pad(x, (short // 2, short - short // 2))
