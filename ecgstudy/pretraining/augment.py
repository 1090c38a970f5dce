"""Augmentations: two views of a batch of ECGs as batched tensor code on the batch's device.

Every random number comes from the given `torch.Generator`, drawn in a fixed order, so that arms
which share a seed see the same views.
"""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn.functional import grid_sample

from ecgstudy.pretraining.distributed import draw
from ecgstudy.study import ViewOptions

STRENGTHS = (
    "stretch", "shift_s", "amplitude", "noise_mv", "wander_mv", "powerline_mv", "timeout", "lead_dropout",
)  # fmt: skip
"""The options that say how much a view is altered."""


@dataclass(frozen=True)
class ViewNoise:
    """The random numbers of one view, of each record: uniform in [0, 1) or, where said, in [−1, 1).

    Attributes
    ----------
    stretch, place, jitter
        (records, 1) in [−1, 1): of the window in time.
    amplitude
        (records, 1, 1) in [−1, 1).
    noise, level
        Normal, of the view's shape; and the noise's strength, (records, 1, 1).
    mains, wander
        Rate and phase (records, 1, 1), and gain (records, leads, 1) in [−1, 1).
    width, start
        (records, 1, 1): of the time that is silenced.
    lead
        (records, leads, 1): leads below the probability of silence are silenced.
    """

    stretch: Tensor
    place: Tensor
    jitter: Tensor
    amplitude: Tensor
    noise: Tensor
    level: Tensor
    mains: tuple[Tensor, Tensor, Tensor]
    wander: tuple[Tensor, Tensor, Tensor]
    width: Tensor
    start: Tensor
    lead: Tensor

    @staticmethod
    def of(
        signals: Tensor, fs: float, options: ViewOptions, generator: Generator
    ) -> "ViewNoise":
        """Drawn for a view of `signals` (records, leads, samples) at `fs` Hz; which options, changes none."""
        records, leads, _ = signals.shape

        def uniform(*shape: int) -> Tensor:
            return draw(torch.rand, (records, *shape), signals, generator)

        def signed(*shape: int) -> Tensor:
            return 2 * uniform(*shape) - 1

        def hum() -> tuple[Tensor, Tensor, Tensor]:
            return uniform(1, 1), uniform(1, 1), signed(leads, 1)

        window, amplitude = (signed(1), signed(1), signed(1)), signed(1, 1)
        shape = (records, leads, _length(signals, fs, options))
        noise, level = draw(torch.randn, shape, signals, generator), uniform(1, 1)
        silence = hum(), hum(), uniform(1, 1), uniform(1, 1), uniform(leads, 1)
        return ViewNoise(*window, amplitude, noise, level, *silence)


def draw_view(
    signals: Tensor,
    fs: float,
    options: ViewOptions,
    generator: Generator,
    strength: float = 1.0,
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
    return render_view(
        signals, fs, options, ViewNoise.of(signals, fs, options, generator), strength
    )


def render_view(
    signals: Tensor,
    fs: float,
    options: ViewOptions,
    chance: ViewNoise,
    strength: float = 1.0,
) -> Tensor:
    """The view that `chance` stands for, parameters as of `view`; the numbers in `chance` are used up."""
    options = options.model_copy(
        update={name: strength * getattr(options, name) for name in STRENGTHS}
    )
    x = _crop_and_stretch(
        signals, fs, options, chance
    )  # a copy: changed in place, for speed
    x *= 1 + options.amplitude * chance.amplitude
    x += _disturbances(x, fs, options, chance)
    return _drop(x, options, chance)


def high_pass(signals: Tensor, fs: float, above_hz: float = 10.0) -> Tensor:
    """The part of `signals` (records, leads, samples) at `fs` Hz above `above_hz`, along time.

    AdvCL's high-frequency view (Fan et al. 2021).
    """
    spectrum = torch.fft.rfft(signals)
    rates = torch.fft.rfftfreq(signals.shape[-1], 1 / fs, device=signals.device)
    return torch.fft.irfft(spectrum * (rates >= above_hz), n=signals.shape[-1])


def _length(signals: Tensor, fs: float, options: ViewOptions) -> int:
    samples = signals.shape[2]
    return (
        samples if options.crop_s is None else min(samples, round(options.crop_s * fs))
    )


def _crop_and_stretch(
    signals: Tensor, fs: float, options: ViewOptions, chance: ViewNoise
) -> Tensor:
    """A window of each record, shifted and stretched in time, by linear interpolation."""
    samples, length = signals.shape[2], _length(signals, fs, options)
    stretch = 1 + options.stretch * chance.stretch
    jitter = options.shift_s * fs * chance.jitter
    room = 0.0 if options.centred else (samples - length * stretch).clamp(min=0) / 2
    centre = (samples - 1) / 2 + chance.place * room + jitter
    steps = (
        torch.arange(length, device=signals.device, dtype=signals.dtype)
        - (length - 1) / 2
    )
    position = centre + stretch * steps  # (records, length), in samples
    grid = torch.stack(
        [2 * position / (samples - 1) - 1, torch.zeros_like(position)], -1
    )
    image = signals.unsqueeze(2)
    return grid_sample(
        image, grid.unsqueeze(1), align_corners=True, padding_mode="border"
    ).squeeze(2)


def _disturbances(
    x: Tensor, fs: float, options: ViewOptions, chance: ViewNoise
) -> Tensor:
    """Baseline wander, mains hum and white noise, in mV, of random strength per record."""
    time = torch.arange(x.shape[2], device=x.device, dtype=x.dtype) / fs

    def hum(
        low_hz: float,
        high_hz: float,
        amplitude_mv: float,
        rate: Tensor,
        phase: Tensor,
        gain: Tensor,
    ) -> Tensor:
        rate, phase = low_hz + (high_hz - low_hz) * rate, 2 * torch.pi * phase
        return amplitude_mv * gain * (2 * torch.pi * rate * time).add_(phase).sin_()

    mains_hz = (49.0, 51.0) if fs > 102 else (fs * 0.4, fs * 0.45)
    mains = hum(*mains_hz, options.powerline_mv, *chance.mains)
    noise = chance.noise.mul_(options.noise_mv * chance.level)
    return hum(0.05, 0.5, options.wander_mv, *chance.wander).add_(mains).add_(noise)


def _drop(x: Tensor, options: ViewOptions, chance: ViewNoise) -> Tensor:
    """Silence a stretch of time in all leads, and whole leads, with the given probabilities."""
    samples = x.shape[2]
    if options.timeout:
        width = options.timeout * chance.width * samples
        start = chance.start * (samples - width)
        time = torch.arange(samples, device=x.device, dtype=x.dtype)
        x.mul_((time < start) | (time >= start + width))
    if options.lead_dropout:
        kept = chance.lead >= options.lead_dropout
        x.mul_(kept | ~kept.any(1, keepdim=True))  # never all of them
    return x
