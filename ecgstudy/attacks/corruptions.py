"""Natural corruptions of ECGs, graded 1 to 5: recordings go wrong without an adversary.

Disturbances arise at electrodes, and one electrode serves several leads. So noise,
motion, loss and interchange act on electrodes here, and reach the leads by the leads'
definitions: where Einthoven's I + III = II held before, it holds after (but for lost
leads).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn.functional import interpolate

from ecgstudy.datasets.leads import derive_leads, electrodes_of, lead_weights
from ecgstudy.errors import StudyError
from ecgstudy.records import EcgRecords
from ecgstudy.registry import CORRUPTIONS

SEVERITIES = (1, 2, 3, 4, 5)
SNR_DB = (24, 18, 12, 6, 0)
"""Signal-to-noise ratios of the severities, as in the MIT-BIH Noise Stress Test
Database (Moody, Muldrow & Mark 1984); its −6 dB is left out."""
QRS_MV = 1.0
"""Peak-to-peak QRS that the ratios refer to; the same for all records, so that
severities are amplitudes."""
RMS_MV = (0.0, *(QRS_MV / 8**0.5 * 10 ** (-snr / 20) for snr in SNR_DB))
"""Rms of the noise in a bipolar lead, by severity: 0.02, 0.04, 0.09, 0.18, 0.35 mV
(signal power as in Moody's program ``nst``: squared peak-to-peak QRS over 8). As mains
hum, severity 5 is an amplitude of half the QRS, the most in Friesen et al. (1990)."""
MUSCLE_HZ = (20.0, 150.0)
"""Where surface EMG begins, and where diagnostic ECG recorders end."""
MAINS_HZ = {"mitdb": 60.0}
"""Mains frequency where a data set was recorded (Boston); elsewhere 50 Hz."""
HARMONICS = {1: 1.0, 3: 0.3, 5: 0.1}
"""Relative amplitudes of multiples of the mains frequency."""
INTERCHANGES = (
    [[]],
    [[(f"V{k}", f"V{k + 1}")] for k in range(1, 6)],
    [[("LA", "LL")]],
    [[("RA", "LA")]],
    [[("V1", "V6"), ("V2", "V5"), ("V3", "V4")]],
    [[("RA", "LL")]],
)
"""By severity, the ways to mix electrodes up (lists of pairs), of which each record
gets one: none, two chest neighbours, LA–LL, RA–LA, the chest in reverse order,
RA–LL."""


@dataclass(frozen=True)
class Recording:
    """How ECGs were recorded.

    Attributes
    ----------
    fs, mains_hz
        Sampling rate and mains frequency in Hz.
    leads
        Their names; MIT-BIH's MLII is a lead II, an unknown one has its own electrodes.
    """

    fs: float
    leads: tuple[str, ...]
    mains_hz: float = 50.0

    @staticmethod
    def of(records: EcgRecords) -> "Recording":
        """How the records of a data set were recorded."""
        return Recording(records.fs, records.leads, MAINS_HZ.get(records.name, 50.0))

    def weights(self, signals: Tensor) -> Tensor:
        """Share of each electrode in each lead, (leads, electrodes), as `signals`."""
        return torch.tensor(lead_weights(self.leads)).to(signals)


Corruption = Callable[[Tensor, Recording, int, Generator], Tensor]
"""(signals, recording, severity, generator) → corrupted signals.

- signals: (records, leads, samples) in mV
- severity: 1 to 5; must not change what is drawn, so that an ECG gets the same
  disturbance, only more of it
- generator: on the signals' device
"""


class _Draw:
    """Random numbers in the type and on the device of `signals`."""

    def __init__(self, signals: Tensor, generator: Generator):
        self.how = {"device": signals.device, "dtype": signals.dtype}
        self.how["generator"] = generator

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(shape, **self.how)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, **self.how)

    def index(self, below: int, count: int) -> Tensor:
        return torch.randint(below, (count,), **self.how | {"dtype": torch.long})


def _seconds(signals: Tensor, fs: float) -> Tensor:
    """Time of each sample in s, (samples,)."""
    return torch.arange(signals.shape[-1], device=signals.device).to(signals) / fs


def _unit_rms(noise: Tensor) -> Tensor:
    return noise / noise.square().mean(-1, keepdim=True).sqrt()


def _add_at_electrodes(
    signals: Tensor, noise: Tensor, recording: Recording, severity: int
) -> Tensor:
    """`signals` with noise of unit rms at each electrode, (records, electrodes,
    samples).

    A bipolar lead is the difference of two electrodes, hence the √2.
    """
    weights = RMS_MV[severity] / 2**0.5 * recording.weights(signals)
    return signals + torch.einsum("le,ret->rlt", weights, noise)


@CORRUPTIONS.register("baseline-wander")
def baseline_wander(
    signals: Tensor, recording: Recording, severity: int, generator: Generator
) -> Tensor:
    """Respiration and drifting contacts: four sinusoids of 0.05 to 0.5 Hz an electrode.

    Parameters
    ----------
    signals, recording, severity, generator
        As of a `Corruption`.
    """
    draw, time = _Draw(signals, generator), _seconds(signals, recording.fs)
    shape = len(signals), len(electrodes_of(recording.leads)), 1
    wander = power = 0.0
    for _ in range(4):
        rate_hz = draw.uniform(0.05, 0.5, *shape)
        phase = draw.uniform(0, 2 * torch.pi, *shape)
        gain = draw.uniform(0.2, 1, *shape)
        wander = wander + gain * torch.sin(2 * torch.pi * rate_hz * time + phase)
        power = power + gain**2 / 2
    return _add_at_electrodes(signals, wander / power.sqrt(), recording, severity)


@CORRUPTIONS.register("muscle")
def muscle(
    signals: Tensor, recording: Recording, severity: int, generator: Generator
) -> Tensor:
    """EMG: noise of 20 to 150 Hz (or half the rate), in bursts of about 0.25 s.

    Parameters
    ----------
    signals, recording, severity, generator
        As of a `Corruption`.
    """
    draw, samples = _Draw(signals, generator), signals.shape[-1]
    shape = len(signals), len(electrodes_of(recording.leads))
    bursts = draw.uniform(0, 1, *shape, max(2, round(4 * samples / recording.fs))) ** 4
    activity = 0.1 + interpolate(bursts, samples, mode="linear", align_corners=True)
    spectrum = torch.fft.rfft(activity * draw.normal(*shape, samples))
    rates_hz = torch.fft.rfftfreq(samples, 1 / recording.fs, device=signals.device)
    spectrum *= (rates_hz >= MUSCLE_HZ[0]) & (rates_hz <= MUSCLE_HZ[1])
    noise = _unit_rms(torch.fft.irfft(spectrum, n=samples))
    return _add_at_electrodes(signals, noise, recording, severity)


@CORRUPTIONS.register("electrode-motion")
def electrode_motion(
    signals: Tensor, recording: Recording, severity: int, generator: Generator
) -> Tensor:
    """One electrode slips: a step every two seconds or so that decays in 0.1 to 1 s.

    Parameters
    ----------
    signals, recording, severity, generator
        As of a `Corruption`.
    """
    draw, time = _Draw(signals, generator), _seconds(signals, recording.fs)
    weights = recording.weights(signals)
    used = weights[:, weights.any(0)].T  # (electrodes, leads)
    chosen = draw.index(len(used), len(signals))
    duration, shape = float(time[-1]), (len(signals), 1)
    motion = 0.0
    for _ in range(max(1, round(duration / 2))):
        since = time - draw.uniform(0, 0.8 * duration, *shape)
        decay = torch.exp(-since.clamp(min=0) / draw.uniform(0.1, 1, *shape))
        motion = motion + draw.normal(*shape) * (decay * (since >= 0))
    seen = RMS_MV[severity] * used[chosen].unsqueeze(2)
    return signals + seen * _unit_rms(motion).unsqueeze(1)


@CORRUPTIONS.register("powerline")
def powerline(
    signals: Tensor, recording: Recording, severity: int, generator: Generator
) -> Tensor:
    """Mains hum and odd harmonics: one phase a record, another strength an electrode.

    The frequency is up to 0.4 % off. At half the sampling rate exactly (50 Hz sampled
    at 100 Hz) a hum is still there, as alternating samples whose size beats slowly;
    what is above is cut off, as by a recorder's filter.

    Parameters
    ----------
    signals, recording, severity, generator
        As of a `Corruption`.
    """
    draw, time = _Draw(signals, generator), _seconds(signals, recording.fs)
    records = len(signals)
    rate_hz = recording.mains_hz * draw.uniform(0.996, 1.004, records, 1, 1)
    hum = power = 0.0
    for multiple, gain in HARMONICS.items():
        phase = draw.uniform(0, 2 * torch.pi, records, 1, 1)
        if multiple * recording.mains_hz <= recording.fs / 2:
            angle = 2 * torch.pi * multiple * rate_hz * time + phase
            hum = hum + gain * torch.sin(angle)
            power += gain**2 / 2
    gains = draw.normal(records, len(electrodes_of(recording.leads)), 1)
    return _add_at_electrodes(signals, gains * hum / power**0.5, recording, severity)


@CORRUPTIONS.register("lead-loss")
def lead_loss(
    signals: Tensor, recording: Recording, severity: int, generator: Generator
) -> Tensor:
    """As many electrodes as the severity fall off: leads that need them are flat, 0.

    A limb electrode takes all chest leads with it. An electrode without which no lead
    would be left stays on; where that is every one (a single lead), a stretch of a
    tenth of the record per severity is flat instead.

    Parameters
    ----------
    signals, recording, severity, generator
        As of a `Corruption`.
    """
    draw, (records, leads, samples) = _Draw(signals, generator), signals.shape
    needs = recording.weights(signals) != 0
    needs = needs[:, needs.any(0)].T  # (electrodes, leads)
    order = draw.uniform(0, 1, records, len(needs)).argsort(1)
    if needs.all():
        share = severity / 10
        start = draw.uniform(0, (1 - share) * samples, records, 1, 1)
        place = torch.arange(samples, device=signals.device)
        return signals.masked_fill(
            (place >= start) & (place < start + share * samples), 0.0
        )
    lost = torch.zeros(records, leads, dtype=torch.bool, device=signals.device)
    fallen = torch.zeros(records, dtype=torch.long, device=signals.device)
    for electrode in order.T:
        lost_then = lost | needs[electrode]
        falls = (fallen < severity) & ~lost_then.all(1)
        lost = torch.where(falls.unsqueeze(1), lost_then, lost)
        fallen += falls
    return signals.masked_fill(lost.unsqueeze(2), 0.0)


@CORRUPTIONS.register("lead-swap")
def lead_swap(
    signals: Tensor, recording: Recording, severity: int, generator: Generator
) -> Tensor:
    """Electrodes are interchanged (`INTERCHANGES`): what the leads then show.

    A single bipolar lead is inverted by the interchange of its own two electrodes.

    Parameters
    ----------
    signals, recording, severity, generator
        As of a `Corruption`.

    Raises
    ------
    StudyError
        When the leads do not suffice to compute what the interchange does.
    """
    matrices = _interchanges(recording, severity)
    if not matrices:
        raise StudyError(explain_skip("lead-swap", severity, recording))
    ways = torch.tensor(np.array(matrices)).to(signals)
    chosen = _Draw(signals, generator).index(len(ways), len(signals))
    return torch.bmm(ways[chosen], signals)


def _interchanges(recording: Recording, severity: int) -> list[np.ndarray]:
    """Matrices (leads, leads) of every interchange that changes some lead."""
    electrodes = electrodes_of(recording.leads)
    weights, matrices = lead_weights(recording.leads), []
    ways = INTERCHANGES[severity]
    if severity == SEVERITIES[-1]:  # a lead of unknown electrodes can only be inverted
        ways = ways + [[(f"{lead}+", f"{lead}-")] for lead in recording.leads]
    for pairs in ways:
        other = {**dict(pairs), **{b: a for a, b in pairs}}
        if not {*other} <= {*electrodes}:
            continue
        order = [electrodes.index(other.get(name, name)) for name in electrodes]
        matrix, possible = derive_leads(weights[:, order], weights)
        changes = not np.allclose(matrix, np.eye(len(matrix)))
        if possible.all() and (changes or not pairs):
            matrices.append(matrix)
    return matrices


def explain_skip(name: str, severity: int, recording: Recording) -> str | None:
    """Why a corruption does not apply to such recordings; None where it does.

    Parameters
    ----------
    name, severity
        Of the corruption.
    recording
        How the ECGs were recorded.
    """
    nyquist_hz = recording.fs / 2
    if name == "muscle" and nyquist_hz <= MUSCLE_HZ[0]:
        return f"{recording.fs:g} Hz sampling holds nothing above {MUSCLE_HZ[0]:g} Hz"
    if name == "powerline" and recording.mains_hz > nyquist_hz:
        mains = f"{recording.mains_hz:g} Hz mains"
        return f"{mains} is above half of {recording.fs:g} Hz sampling"
    if name == "lead-swap" and not _interchanges(recording, severity):
        ways = [", ".join(map("–".join, way)) for way in INTERCHANGES[severity]]
        return (
            f"the interchange {' or '.join(ways)} changes none of the leads "
            f"{', '.join(recording.leads)}, or needs others"
        )
    return None
