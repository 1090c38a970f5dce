"""Augmentations: two views of a batch of ECGs as batched tensor code on the batch's device.

Every random number comes from the given `torch.Generator`, drawn in a fixed order, so that arms
which share a seed see the same views.
"""

import torch
from torch import Generator, Tensor
from torch.nn.functional import grid_sample

from ecgstudy.distributed import drawn
from ecgstudy.study import ViewOptions

STRENGTHS = (
    "stretch", "shift_s", "amplitude", "noise_mv", "wander_mv", "powerline_mv", "timeout", "lead_dropout",
)  # fmt: skip
"""The options that say how much a view is altered."""


def view(
    signals: Tensor, fs: float, options: ViewOptions, generator: Generator, strength: float = 1.0
) -> Tensor:
    """One random view of each ECG, (records, leads, crop_s · fs) in mV.

    Parameters
    ----------
    signals, fs
        (records, leads, samples) in mV, and their sampling rate in Hz.
    generator
        On the device of `signals`.
    strength
        Factor of every strength of `options` but the crop; 0 gives a crop and nothing else.
    """
    options = options.model_copy(update={name: strength * getattr(options, name) for name in STRENGTHS})
    x = _crop_and_stretch(signals, fs, options, generator)  # a copy: changed in place, for speed
    x *= 1 + options.amplitude * _signed((len(x), 1, 1), x, generator)
    x += _disturbances(x, fs, options, generator)
    return _drop(x, options, generator)


def fast_part(signals: Tensor, fs: float, above_hz: float = 10.0) -> Tensor:
    """The part of `signals` (records, leads, samples) at `fs` Hz above `above_hz`, along time.

    AdvCL's high-frequency view (Fan et al. 2021).
    """
    spectrum = torch.fft.rfft(signals)
    rates = torch.fft.rfftfreq(signals.shape[-1], 1 / fs, device=signals.device)
    return torch.fft.irfft(spectrum * (rates >= above_hz), n=signals.shape[-1])


def _uniform(shape: tuple[int, ...], like: Tensor, generator: Generator) -> Tensor:
    return drawn(torch.rand, shape, like, generator)


def _signed(shape: tuple[int, ...], like: Tensor, generator: Generator) -> Tensor:
    return 2 * _uniform(shape, like, generator) - 1


def _crop_and_stretch(signals: Tensor, fs: float, options: ViewOptions, generator: Generator) -> Tensor:
    """A window of each record, shifted and stretched in time, by linear interpolation."""
    records, _, samples = signals.shape
    length = samples if options.crop_s is None else min(samples, round(options.crop_s * fs))
    stretch = 1 + options.stretch * _signed((records, 1), signals, generator)
    place = _signed((records, 1), signals, generator)
    jitter = options.shift_s * fs * _signed((records, 1), signals, generator)
    room = 0.0 if options.centred else (samples - length * stretch).clamp(min=0) / 2
    centre = (samples - 1) / 2 + place * room + jitter
    steps = torch.arange(length, device=signals.device, dtype=signals.dtype) - (length - 1) / 2
    position = centre + stretch * steps  # (records, length), in samples
    grid = torch.stack([2 * position / (samples - 1) - 1, torch.zeros_like(position)], -1)
    image = signals.unsqueeze(2)
    return grid_sample(image, grid.unsqueeze(1), align_corners=True, padding_mode="border").squeeze(2)


def _disturbances(x: Tensor, fs: float, options: ViewOptions, generator: Generator) -> Tensor:
    """Baseline wander, mains hum and white noise, in mV, of random strength per record."""
    records, leads, samples = x.shape
    time = torch.arange(samples, device=x.device, dtype=x.dtype) / fs

    def hum(low_hz: float, high_hz: float, amplitude_mv: float) -> Tensor:
        rate = low_hz + (high_hz - low_hz) * _uniform((records, 1, 1), x, generator)
        phase = 2 * torch.pi * _uniform((records, 1, 1), x, generator)
        gain = amplitude_mv * _signed((records, leads, 1), x, generator)
        return gain * torch.sin(2 * torch.pi * rate * time + phase)

    noise = drawn(torch.randn, x.shape, x, generator)
    level = options.noise_mv * _uniform((records, 1, 1), x, generator)
    mains = (
        hum(49.0, 51.0, options.powerline_mv) if fs > 102 else hum(fs * 0.4, fs * 0.45, options.powerline_mv)
    )
    return hum(0.05, 0.5, options.wander_mv).add_(mains).add_(noise.mul_(level))


def _drop(x: Tensor, options: ViewOptions, generator: Generator) -> Tensor:
    """Silence a stretch of time in all leads, and whole leads, with the given probabilities."""
    records, leads, samples = x.shape
    width = options.timeout * _uniform((records, 1, 1), x, generator) * samples
    start = _uniform((records, 1, 1), x, generator) * (samples - width)
    time = torch.arange(samples, device=x.device, dtype=x.dtype)
    kept = (time < start) | (time >= start + width)
    lead_kept = _uniform((records, leads, 1), x, generator) >= options.lead_dropout
    lead_kept = lead_kept | ~lead_kept.any(1, keepdim=True)  # never all of them
    return x.mul_(kept).mul_(lead_kept)
