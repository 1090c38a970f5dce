"""Augmentations: random views of a batch of ECGs, computed on the batch's device.

Random numbers come from the given generator in a fixed order, so that arms which share
a seed see the same views.
"""

import torch
from torch import Generator, Tensor
from torch.nn.functional import grid_sample

from ecgstudy.params import ViewOptions
from ecgstudy.pretraining.distributed import draw

STRENGTHS = (
    "stretch",
    "shift_s",
    "amplitude",
    "noise_mv",
    "wander_mv",
    "powerline_mv",
    "timeout",
    "lead_dropout",
)
"""The options that say how much a view is altered."""

Wave = tuple[Tensor, Tensor, Tensor]
"""Of sine waves: frequency and phase (records, 1, 1) in [0, 1), and gain
(records, leads, 1) in [−1, 1)."""


def draw_view(
    signals: Tensor,
    fs: float,
    options: ViewOptions,
    generator: Generator,
    strength: float = 1.0,
    render: bool = True,
) -> Tensor | None:
    """One random view of each ECG, (records, leads, crop_s · fs) in mV.

    Parameters
    ----------
    signals
        (records, leads, samples) in mV.
    fs
        Sampling rate in Hz.
    options
        Strengths of the augmentations.
    generator
        On the device of `signals`. The same numbers are drawn whatever the strengths
        are.
    strength
        Factor of all strengths; 0 gives a crop and nothing else.
    render
        False: the numbers are drawn, and no view is made.
    """
    scaled = {name: strength * getattr(options, name) for name in STRENGTHS}
    options = options.model_copy(update=scaled)
    records, leads, samples = signals.shape
    length = samples
    if options.crop_s is not None:
        length = min(samples, round(options.crop_s * fs))

    def uniform(*shape: int) -> Tensor:
        return draw(torch.rand, (records, *shape), signals, generator)

    def signed(*shape: int) -> Tensor:
        return 2 * uniform(*shape) - 1

    stretch, place, jitter = signed(1), signed(1), signed(1)
    amplitude = signed(1, 1)
    noise = draw(torch.randn, (records, leads, length), signals, generator)
    level = uniform(1, 1)
    powerline = uniform(1, 1), uniform(1, 1), signed(leads, 1)
    wander = uniform(1, 1), uniform(1, 1), signed(leads, 1)
    width, start = uniform(1, 1), uniform(1, 1)
    lead = uniform(leads, 1)
    if not render:
        return None

    # A window, stretched in time, that lies inside the record but for its jitter.
    stretch = 1 + options.stretch * stretch
    room = 0.0 if options.centred else (samples - length * stretch).clamp(min=0) / 2
    centre = (samples - 1) / 2 + place * room + options.shift_s * fs * jitter
    x = _interpolate(signals, centre, stretch, length)

    # Memory is slower than arithmetic: from here on all is done in place.
    x *= 1 + options.amplitude * amplitude
    time = torch.arange(length, device=x.device, dtype=x.dtype)
    # Below the Nyquist frequency where 50 Hz is above it.
    band = (49.0, 51.0) if fs > 102 else (fs * 0.4, fs * 0.45)
    hum = _wave(time / fs, band, options.powerline_mv, powerline)
    white = noise.mul_(options.noise_mv * level)
    x += _wave(time / fs, (0.05, 0.5), options.wander_mv, wander).add_(hum).add_(white)

    # A stretch of time in all leads, and whole leads but never all, become zero.
    if options.timeout:
        width = options.timeout * width * length
        start = start * (length - width)
        x.mul_((time < start) | (time >= start + width))
    if options.lead_dropout:
        kept = lead >= options.lead_dropout
        x.mul_(kept | ~kept.any(1, keepdim=True))
    return x


def _interpolate(
    signals: Tensor, centre: Tensor, stretch: Tensor, length: int
) -> Tensor:
    """`length` samples around `centre` (records, 1), `stretch` samples apart."""
    samples = signals.shape[2]
    steps = torch.arange(length, device=signals.device, dtype=signals.dtype)
    position = centre + stretch * (steps - (length - 1) / 2)  # (records, length)
    # grid_sample takes images, here of height 1, and positions in [−1, 1].
    across = 2 * position / (samples - 1) - 1
    grid = torch.stack([across, torch.zeros_like(position)], -1).unsqueeze(1)
    image = signals.unsqueeze(2)
    view = grid_sample(image, grid, align_corners=True, padding_mode="border")
    return view.squeeze(2)


def _wave(
    time: Tensor, band_hz: tuple[float, float], amplitude_mv: float, wave: Wave
) -> Tensor:
    """Sine waves (records, leads, samples) of random frequency, phase and gain."""
    low, high = band_hz
    frequency, phase, gain = wave
    frequency = low + (high - low) * frequency
    angle = (2 * torch.pi * frequency * time).add_(2 * torch.pi * phase)
    return amplitude_mv * gain * angle.sin_()


def high_pass(signals: Tensor, fs: float, above_hz: float = 10.0) -> Tensor:
    """Frequencies from `above_hz` on: AdvCL's high-frequency view (Fan et al. 2021).

    Parameters
    ----------
    signals
        (records, leads, samples).
    fs, above_hz
        Sampling rate and limit, in Hz.
    """
    spectrum = torch.fft.rfft(signals)
    frequency = torch.fft.rfftfreq(signals.shape[-1], 1 / fs, device=signals.device)
    return torch.fft.irfft(spectrum * (frequency >= above_hz), n=signals.shape[-1])
