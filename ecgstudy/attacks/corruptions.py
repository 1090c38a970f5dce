"""Natural corruptions of ECGs, graded 1 to 5: what happens to recordings without any adversary.

Disturbances arise at electrodes, and one electrode serves several leads. So noise, motion, loss and
interchange act on electrodes here, and reach the leads by the leads' definitions: where Einthoven's
I + III = II held before, it holds after (but for leads that are lost).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn.functional import interpolate

from ecgstudy.datasets.leads import CHEST, electrodes_of, lead_definitions, lead_weights
from ecgstudy.errors import StudyError
from ecgstudy.records import EcgRecords
from ecgstudy.registry import CORRUPTIONS

SEVERITIES = (1, 2, 3, 4, 5)
SNR_DB = (24, 18, 12, 6, 0)
"""Signal-to-noise ratios of the five severities, as in the MIT-BIH Noise Stress Test Database (Moody,
Muldrow & Mark 1984); its −6 dB is left out."""
QRS_MV = 1.0
"""Peak-to-peak QRS that the ratios refer to; the same for all records, so that severities are amplitudes."""
RMS_MV = (0.0, *(QRS_MV / 8**0.5 * 10 ** (-snr / 20) for snr in SNR_DB))
"""Rms of the noise in a bipolar lead, by severity: 0.02, 0.04, 0.09, 0.18, 0.35 mV (signal power as in
Moody's program ``nst``: squared peak-to-peak QRS over 8). As mains hum, severity 5 is an amplitude of half
the QRS, the most in Friesen et al. (1990)."""
LOST = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
"""Share of the record that a single lead loses, by severity."""
MAINS_HZ = {"mitdb": 60.0}
"""Mains frequency where a data set was recorded (MIT-BIH: Boston); elsewhere 50 Hz."""
HARMONICS = {1: 1.0, 3: 0.3, 5: 0.1}
"""Relative amplitudes of the mains frequency's multiples; those above half the sampling rate are left out."""


_NEIGHBOURS = tuple((pair,) for pair in pairwise(CHEST))
_REVERSED = (tuple(zip(CHEST[:3], reversed(CHEST[3:]), strict=True)),)
INTERCHANGES = (
    ((),),
    _NEIGHBOURS,
    ((("LA", "LL"),),),
    ((("RA", "LA"),),),
    _REVERSED,
    ((("RA", "LL"),),),
)
"""By severity, the ways to mix electrodes up (each a tuple of pairs), of which each record gets one: none,
chest neighbours, LA–LL, RA–LA, the chest in reverse order, RA–LL."""


@dataclass(frozen=True)
class Recording:
    """What a corruption has to know of how ECGs were recorded: rate in Hz, lead names, mains in Hz."""

    fs: float
    leads: tuple[str, ...]
    mains_hz: float = 50.0

    @staticmethod
    def of(records: EcgRecords) -> "Recording":
        """How the records of a data set were recorded."""
        return Recording(records.fs, records.leads, MAINS_HZ.get(records.name, 50.0))

    @cached_property
    def definitions(self) -> list[dict[str, float]]:
        """Each lead in terms of electrodes: MIT-BIH's MLII is a II; an unknown lead has two of its own."""
        return lead_definitions(self.leads)

    @cached_property
    def electrodes(self) -> tuple[str, ...]:
        """The standard electrodes, and those of unknown leads."""
        return electrodes_of(self.leads)

    @cached_property
    def weights(self) -> np.ndarray:
        """Share of each electrode in each lead, (leads, electrodes)."""
        return lead_weights(self.leads)

    def weights_like(self, signals: Tensor) -> Tensor:
        """`weights` as a tensor of the kind of `signals`."""
        return torch.tensor(self.weights, dtype=signals.dtype, device=signals.device)


Corruption = Callable[[Tensor, Recording, int, Generator], Tensor]
"""(signals (records, leads, samples) in mV, recording, severity, generator) → corrupted signals.

The generator is on the signals' device. The severity alone must not change what is drawn, so that an ECG
gets the same disturbance, only more of it."""


def _uniform(
    low: float, high: float, shape: tuple[int, ...], like: Tensor, generator: Generator
) -> Tensor:
    drawn = torch.rand(shape, generator=generator, device=like.device, dtype=like.dtype)
    return low + (high - low) * drawn


def _normal(shape: tuple[int, ...], like: Tensor, generator: Generator) -> Tensor:
    return torch.randn(shape, generator=generator, device=like.device, dtype=like.dtype)


def _seconds(signals: Tensor, fs: float) -> Tensor:
    return (
        torch.arange(signals.shape[-1], device=signals.device, dtype=signals.dtype) / fs
    )


def _unit_rms(noise: Tensor) -> Tensor:
    return noise / noise.square().mean(-1, keepdim=True).sqrt()


def _at_electrodes(
    signals: Tensor, noise: Tensor, recording: Recording, severity: int
) -> Tensor:
    """`signals` with `noise` of unit rms (records, electrodes, samples), scaled for a bipolar lead."""
    weights = RMS_MV[severity] / 2**0.5 * recording.weights_like(signals)
    return signals + torch.einsum("le,ret->rlt", weights, noise)


def baseline_wander(
    signals: Tensor, recording: Recording, severity: int, generator: Generator
) -> Tensor:
    """Respiration and drifting contacts: at each electrode four sinusoids of 0.05 to 0.5 Hz."""
    shape, time = (
        (len(signals), len(recording.electrodes), 1),
        _seconds(signals, recording.fs),
    )
    total, power = 0.0, 0.0
    for _ in range(4):
        rate = _uniform(0.05, 0.5, shape, signals, generator)
        phase = _uniform(0, 2 * torch.pi, shape, signals, generator)
        gain = _uniform(0.2, 1, shape, signals, generator)
        total, power = (
            total + gain * torch.sin(2 * torch.pi * rate * time + phase),
            power + gain**2 / 2,
        )
    return _at_electrodes(signals, total / power.sqrt(), recording, severity)


MUSCLE_HZ = (20.0, 150.0)
"""Band of the muscle artefact: where surface EMG begins, and where diagnostic ECG recorders end."""


def muscle(
    signals: Tensor, recording: Recording, severity: int, generator: Generator
) -> Tensor:
    """EMG: noise between 20 Hz and 150 Hz (or half the rate), in bursts of about a quarter of a second."""
    samples, shape = signals.shape[-1], (len(signals), len(recording.electrodes))
    knots = max(2, round(4 * samples / recording.fs))
    bursts = _uniform(0, 1, (*shape, knots), signals, generator) ** 4
    activity = 0.1 + interpolate(bursts, samples, mode="linear", align_corners=True)
    spectrum = torch.fft.rfft(activity * _normal((*shape, samples), signals, generator))
    rates = torch.fft.rfftfreq(samples, 1 / recording.fs, device=signals.device)
    spectrum = spectrum * ((rates >= MUSCLE_HZ[0]) & (rates <= MUSCLE_HZ[1]))
    noise = _unit_rms(torch.fft.irfft(spectrum, n=samples))
    return _at_electrodes(signals, noise, recording, severity)


def electrode_motion(
    signals: Tensor, recording: Recording, severity: int, generator: Generator
) -> Tensor:
    """One electrode of each record slips: steps every two seconds or so that decay in 0.1 to 1 s."""
    time, weights = _seconds(signals, recording.fs), recording.weights_like(signals)
    weights, shape = weights[:, weights.any(0)], (len(signals), 1)
    chosen = torch.randint(
        weights.shape[1], shape[:1], generator=generator, device=signals.device
    )
    motion = 0.0
    for _ in range(max(1, round(float(time[-1]) / 2))):
        start = _uniform(0, 0.8 * float(time[-1]), shape, signals, generator)
        decay = _uniform(0.1, 1, shape, signals, generator)
        since = time - start
        step = torch.exp(-since.clamp(min=0) / decay) * (since >= 0)
        motion = motion + _normal(shape, signals, generator) * step
    return signals + RMS_MV[severity] * weights.T[chosen].unsqueeze(2) * _unit_rms(
        motion
    ).unsqueeze(1)


def powerline(
    signals: Tensor, recording: Recording, severity: int, generator: Generator
) -> Tensor:
    """Mains hum and its odd harmonics: one phase a record, another strength at each electrode.

    The frequency is up to 0.4 % off. At half the sampling rate exactly (50 Hz sampled at 100 Hz) a hum is
    still there, as alternating samples whose size beats slowly; what is above is cut off, as by a
    recorder's filter.
    """
    time, shape = _seconds(signals, recording.fs), (len(signals), 1, 1)
    rate = recording.mains_hz * _uniform(0.996, 1.004, shape, signals, generator)
    hum, power = 0.0, 0.0
    for multiple, gain in HARMONICS.items():
        phase = _uniform(0, 2 * torch.pi, shape, signals, generator)
        if multiple * recording.mains_hz <= recording.fs / 2:
            hum = hum + gain * torch.sin(2 * torch.pi * multiple * rate * time + phase)
            power += gain**2 / 2
    gains = _normal((len(signals), len(recording.electrodes), 1), signals, generator)
    return _at_electrodes(signals, gains * hum / power**0.5, recording, severity)


def lead_loss(
    signals: Tensor, recording: Recording, severity: int, generator: Generator
) -> Tensor:
    """Electrodes fall off, as many as the severity says: every lead that needs one of them is flat, 0.

    A limb electrode takes all chest leads with it. An electrode without which no lead would be left stays
    on; where that is every one (a single lead), a stretch of the record (`LOST`) is flat instead.
    """
    used = torch.tensor(recording.weights != 0, device=signals.device)
    used = used[:, used.any(0)].T  # (electrodes, leads)
    order = _uniform(0, 1, (len(signals), len(used)), signals, generator).argsort(1)
    if used.all():
        return _lose_stretch(signals, LOST[severity], generator)
    lost = torch.zeros(signals.shape[:2], dtype=torch.bool, device=signals.device)
    fallen = torch.zeros(len(signals), dtype=torch.long, device=signals.device)
    for turn in order.T:
        after = lost | used[turn]
        falls = (fallen < severity) & ~after.all(1)
        lost, fallen = torch.where(falls.unsqueeze(1), after, lost), fallen + falls
    return signals.masked_fill(lost.unsqueeze(2), 0.0)


def _lose_stretch(signals: Tensor, share: float, generator: Generator) -> Tensor:
    samples = signals.shape[-1]
    start = _uniform(0, (1 - share) * samples, (len(signals), 1, 1), signals, generator)
    place = torch.arange(samples, device=signals.device)
    return signals.masked_fill(
        (place >= start) & (place < start + share * samples), 0.0
    )


def lead_swap(
    signals: Tensor, recording: Recording, severity: int, generator: Generator
) -> Tensor:
    """Electrodes are mixed up (`INTERCHANGES`): exactly what the leads then show, with no noise added.

    A single bipolar lead is inverted by the interchange of its own two electrodes.

    Raises
    ------
    StudyError
        When what the interchange does cannot be computed from the leads there are.
    """
    mixed = _mixtures(recording, severity)
    if not len(mixed):
        raise StudyError(_unmixable(recording, severity))
    mixed = torch.tensor(mixed, dtype=signals.dtype, device=signals.device)
    chosen = torch.randint(
        len(mixed), (len(signals),), generator=generator, device=signals.device
    )
    return torch.bmm(mixed[chosen], signals)


def _mixtures(recording: Recording, severity: int) -> np.ndarray:
    """Matrices (ways, leads, leads) from leads to leads, of each interchange that changes some lead."""
    ways = INTERCHANGES[severity]
    if severity == SEVERITIES[-1]:  # a lead of unknown electrodes can only be inverted
        ways += tuple(((f"{lead}+", f"{lead}-"),) for lead in recording.leads)
    found = [
        _mixture(recording, way)
        for way in ways
        if {e for p in way for e in p} <= {*recording.electrodes}
    ]
    changing = [
        m
        for m in found
        if m is not None and (severity == 0 or not np.allclose(m, np.eye(len(m))))
    ]
    return np.array(changing)


def _mixture(
    recording: Recording, pairs: tuple[tuple[str, str], ...]
) -> np.ndarray | None:
    """Leads after the interchange as combinations of the leads before; None where they do not suffice."""
    weights, place = (
        recording.weights,
        {name: i for i, name in enumerate(recording.electrodes)},
    )
    order = np.arange(len(place))
    for a, b in pairs:
        order[[place[a], place[b]]] = order[[place[b], place[a]]]
    wanted = weights[:, order]
    solved = wanted @ np.linalg.pinv(weights)
    for row, lead in enumerate(
        wanted
    ):  # a lead that is there, or its negative, is taken as it was recorded
        for sign in (1, -1):
            same = np.flatnonzero(np.isclose(sign * weights, lead).all(1))
            solved[row] = (
                sign * np.eye(len(weights))[same[0]] if len(same) else solved[row]
            )
    return solved if np.allclose(solved @ weights, wanted) else None


def _unmixable(recording: Recording, severity: int) -> str | None:
    if len(_mixtures(recording, severity)):
        return None
    asked = " or ".join(
        ", ".join("–".join(pair) for pair in way) for way in INTERCHANGES[severity]
    )
    return f"the interchange {asked} changes none of the leads {', '.join(recording.leads)}, or needs others"


def _without_muscle(recording: Recording, severity: int) -> str | None:
    fits = recording.fs / 2 > MUSCLE_HZ[0]
    return (
        None
        if fits
        else f"{recording.fs:g} Hz sampling holds nothing above {MUSCLE_HZ[0]:g} Hz"
    )


def _without_hum(recording: Recording, severity: int) -> str | None:
    fits = recording.mains_hz <= recording.fs / 2
    return (
        None
        if fits
        else f"{recording.mains_hz:g} Hz mains is above half of {recording.fs:g} Hz sampling"
    )


CORRUPTIONS.update(
    {
        "baseline-wander": baseline_wander,
        "muscle": muscle,
        "electrode-motion": electrode_motion,
        "powerline": powerline,
        "lead-loss": lead_loss,
        "lead-swap": lead_swap,
    }
)
LIMITS: dict[str, Callable[[Recording, int], str | None]] = {
    "muscle": _without_muscle,
    "powerline": _without_hum,
    "lead-swap": _unmixable,
}
"""Why a corruption does not apply to some recordings at a severity; None where it does."""


def get_corruption(name: str) -> Corruption:
    """The corruption called `name`; an unknown one is a `StudyError` that lists those there are."""
    return CORRUPTIONS.find(name)


def explain_skip(name: str, severity: int, recording: Recording) -> str | None:
    """Why the corruption does not apply to such recordings at this severity; None where it does."""
    get_corruption(name)
    return LIMITS[name](recording, severity) if name in LIMITS else None


def list_skipped(
    names: Iterable[str], severities: Iterable[int], recording: Recording
) -> list[dict]:
    """What of a study's corruptions does not apply: `corruption`, `severity`, `reason`."""
    every = [
        (name, severity, explain_skip(name, severity, recording))
        for name in names
        for severity in severities
    ]
    keys = ("corruption", "severity", "reason")
    return [dict(zip(keys, row, strict=True)) for row in every if row[2] is not None]
