"""Simulated 12-lead ECGs, so that a first run needs no download.

The heart is a dipole in three dimensions whose every deflection is a Gaussian: the model of McSharry et
al. 2003 (IEEE TBME 50:289, eq. 1), three-dimensional as in Sameni et al. 2007 (EURASIP JASP 2007:43407),
in closed form, over the time from each R wave. The matrix of Dower et al. 1980 (Clin Cardiol 3:87)
projects it on the leads. Axes: x left, y inferior, z posterior. Wave tables, bodies, rhythms and noise
are this project's own.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from ecgstudy.errors import StudyError
from ecgstudy.records import EcgRecords

LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")

# fmt: off
_DOWER = np.array([  # rows I, II, V1…V6; mV on the lead per mV of dipole
    [0.632, -0.235, 0.059], [0.235, 1.066, -0.132], [-0.515, 0.157, -0.917], [0.044, 0.164, -1.387],
    [0.882, 0.098, -1.277], [1.213, 0.127, -0.601], [1.125, 0.127, -0.086], [0.831, 0.076, 0.230],
])
_LIMBS = np.array([[1, 0], [0, 1], [-1, 1], [-0.5, -0.5], [1, -0.5], [-0.5, 1]])  # I…aVF from I, II
_DERIVE = np.block([[_LIMBS, np.zeros((6, 6))], [np.zeros((6, 2)), np.eye(6)]])
_THIRD = np.full((6, 3), -1 / 3)  # Wilson's central terminal
_ELECTRODES = np.block([[np.array([[-1, 1, 0], [-1, 0, 1]]), np.zeros((2, 6))], [_THIRD, np.eye(6)]])

_WAVES = ("P1", "P2", "Q", "R", "S", "end", "J", "ST", "T1", "T2")
_ATRIAL = np.array([wave.startswith("P") for wave in _WAVES])
_LATE = np.array([wave in ("J", "ST", "T1", "T2") for wave in _WAVES])
_RATE_EXPONENT = np.array([0.15, 0.15, 0, 0, 0, 0, 0.15, 0.3, 1 / 3, 1 / 3])
"""A wave's delay goes with RR to this power; one third for T is Fridericia's QT."""

# Wave: peak after R (ms), width σ (ms) at 60/min, then the dipole x, y, z (mV).
_NORMAL = {
    "P1": (-158, 19, 0.020, 0.055, -0.035), "P2": (-128, 20, 0.055, 0.045, 0.035),
    "Q": (-19, 8, -0.14, -0.05, -0.24), "R": (0, 11, 1.00, 0.75, 0.05),
    "S": (19, 11, 0.18, 0.00, 0.80), "end": (35, 8, -0.20, -0.16, 0.12),
    "J": (72, 24, 0.00, 0.00, -0.03), "ST": (130, 45, 0.01, 0.01, -0.02),
    "T1": (215, 48, 0.13, 0.10, -0.09), "T2": (265, 37, 0.24, 0.16, -0.12),
}
_CHANGES = {
    "left bundle branch block": {  # septum from the right, then a slow left ventricle; discordant T
        "P1": (-185, 19, 0.020, 0.055, -0.035), "P2": (-155, 20, 0.055, 0.045, 0.035),
        "Q": (-40, 13, 0.15, 0.08, 0.10), "R": (-5, 18, 0.70, 0.42, 0.60),
        "S": (43, 19, 0.60, 0.22, 0.95), "end": (82, 14, 0.15, 0.00, 0.30),
        "J": (120, 35, -0.08, -0.03, -0.14), "ST": (170, 50, -0.10, -0.05, -0.14),
        "T1": (250, 55, -0.13, -0.05, -0.16), "T2": (310, 38, -0.20, -0.08, -0.20),
    },
    "right bundle branch block": {  # the right ventricle last: R' in V1, broad S in I and V6
        "S": (19, 11, 0.10, 0.00, 0.50), "end": (62, 17, -0.62, -0.10, -0.62),
        "J": (105, 25, 0.00, 0.00, 0.02), "ST": (150, 45, 0.01, 0.01, 0.02),
        "T1": (230, 48, 0.13, 0.10, 0.06), "T2": (282, 37, 0.24, 0.16, 0.10),
    },
    "anterior ST elevation": {  # injury vector to the front and left, septal r lost, hyperacute T
        "Q": (-19, 9, -0.02, -0.03, 0.12), "R": (0, 11, 0.85, 0.68, 0.25),
        "end": (35, 8, -0.05, -0.06, 0.05), "J": (62, 28, 0.12, -0.06, -0.20),
        "ST": (125, 45, 0.15, -0.06, -0.24), "T1": (215, 50, 0.22, 0.04, -0.22),
        "T2": (270, 34, 0.24, 0.10, -0.20),
    },
    "inferior T inversion": {  # T vector turned upwards
        "ST": (130, 45, 0.00, -0.04, -0.02), "T1": (215, 48, 0.14, -0.12, -0.10),
        "T2": (265, 36, 0.22, -0.28, -0.12),
    },
    "ventricular ectopy": {  # of the ectopic beats, in the frame of their focus
        "Q": (-36, 19, 0.30, 0.10, 0.05), "R": (0, 25, 1.15, 0.20, 0.15),
        "S": (36, 26, 0.60, -0.20, 0.25), "end": (78, 20, 0.15, -0.12, 0.05),
        "J": (125, 35, -0.05, 0.00, -0.03), "ST": (185, 50, -0.14, 0.00, -0.05),
        "T1": (245, 52, -0.36, 0.00, -0.10), "T2": (300, 44, -0.32, 0.00, -0.10),
    },
}
# fmt: on

# Rate (per minute: mean, standard deviation, lowest, highest), mean age (years), and severity: 0 is
# normal, 1 the table above (for fibrillation the f waves), the low ends are borderline findings.
_CONDITIONS = {
    "sinus rhythm": ((72, 13, 46, 102), 52, (0, 0)),
    "sinus tachycardia": ((112, 13, 97, 160), 46, (0, 0)),
    "atrial fibrillation": ((92, 20, 55, 150), 70, (0.1, 1.1)),
    "left bundle branch block": ((76, 12, 50, 105), 69, (0.2, 1.1)),
    "right bundle branch block": ((74, 12, 50, 105), 65, (0.15, 1.1)),
    "anterior ST elevation": ((84, 13, 52, 108), 62, (0.1, 1.0)),
    "inferior T inversion": ((76, 12, 50, 105), 63, (0.25, 1.0)),
    "ventricular ectopy": ((74, 11, 50, 100), 62, (0.25, 1.1)),
}
CLASSES = tuple(_CONDITIONS)

_CARD = {
    "synthetic": True,
    "source": "simulated: dipole model of McSharry et al. 2003 (doi:10.1109/TBME.2003.808805) and Sameni "
    "et al. 2007 (doi:10.1155/2007/43407), lead field of Dower et al. 1980",
    "licence": "CC0-1.0 (generated)",
    "adc_mv": None,
    "notes": "No real patient. Classes overlap: severities reach down to borderline findings, beats of the "
    "other classes carry minor changes, rates of sinus rhythm and tachycardia meet at 97 to 102/min, an "
    "eighth of the records without ectopy has premature atrial beats. One age in 20 is missing.",
}


@dataclass(frozen=True)
class _Patient:
    """One body: everything that the patient's records share."""

    age: float
    sex: str
    shift: np.ndarray  # (waves,) ms
    width: np.ndarray  # (waves,) factor, as is `size`
    size: np.ndarray
    tilt: np.ndarray  # (waves, 3) direction error, relative
    axis: np.ndarray  # (3, 3) rotation of the heart; `focus`: of ectopic beats
    focus: np.ndarray
    torso: np.ndarray  # (8, 3) lead field, mV per mV
    rate: float  # standard deviations from the population's


def load(
    rng_seed: int = 0,
    patients: int = 300,
    records_per_patient: int = 4,
    fs: float = 100.0,
    seconds: float = 10.0,
) -> EcgRecords:
    """Simulated 12-lead ECGs, single-label, in mV, split 60 / 15 / 25 % by patient.

    Equal arguments give bit-identical records. Patient p has the same body for any number of patients.
    Two in nine patients, and three in ten of the others' records after the first, are in sinus rhythm.

    Parameters
    ----------
    rng_seed, patients
        At least 0, and at least 27 so that each class has a patient in each split.
    records_per_patient
        Records of one body at different rates, severities and noise.
    fs, seconds
        Sampling rate in Hz (at least 50) and length in s (at least 5).

    Raises
    ------
    StudyError
        Naming the parameter that is out of range.
    """
    least = {
        "rng_seed": 0,
        "patients": 27,
        "records_per_patient": 1,
        "fs": 50,
        "seconds": 5,
    }
    given = (rng_seed, patients, records_per_patient, fs, seconds)
    for (name, bound), value in zip(least.items(), given, strict=True):
        if not bound <= value < np.inf:
            raise StudyError(
                f"builtin: {name} is {value}; it must be finite and at least {bound}"
            )
    diseases = [(CLASSES[0], *CLASSES)[p % 9] for p in range(patients)]
    splits = _splits(diseases, np.random.default_rng([rng_seed, 0]))
    signals = np.empty(
        (patients * records_per_patient, 12, round(seconds * fs)), np.float32
    )
    labels, rows = np.empty(len(signals), np.int64), []
    for p, disease in enumerate(diseases):
        body = _patient(disease, np.random.default_rng([rng_seed, 1, p]))
        for r in range(records_per_patient):
            rng, row = np.random.default_rng([rng_seed, 2, p, r]), len(rows)
            condition = disease if r == 0 or rng.random() < 0.7 else CLASSES[0]
            signals[row] = _record(
                body, condition, np.arange(signals.shape[2]) / fs, rng
            )
            labels[row] = CLASSES.index(condition)
            known_age = np.nan if p % 20 == 10 else round(body.age)
            attacked = splits[p] != "train"
            rows.append(
                (f"p{p:04d}-{r}", f"p{p:04d}", splits[p], attacked, known_age, body.sex)
            )
    table = pd.DataFrame(
        rows, columns=["record", "patient", "split", "attacked", "age", "sex"]
    )
    counts = dict(
        zip(CLASSES, np.bincount(labels, minlength=len(CLASSES)).tolist(), strict=True)
    )
    card = {**_CARD, "rng_seed": rng_seed, "counts": counts}
    return EcgRecords(
        "builtin", signals, float(fs), LEADS, labels, CLASSES, table, card
    )


def _splits(diseases: list[str], rng: np.random.Generator) -> np.ndarray:
    """Split of each patient, 60 / 15 / 25 % within each disease."""
    splits = np.full(len(diseases), "train", dtype=object)
    for disease in CLASSES:
        members = rng.permutation(np.flatnonzero(np.array(diseases) == disease))
        tests, validations = (
            max(1, round(share * len(members))) for share in (0.25, 0.15)
        )
        splits[members[:tests]] = "test"
        splits[members[tests : tests + validations]] = "validation"
    return splits


def _patient(disease: str, rng: np.random.Generator) -> _Patient:
    from scipy.spatial.transform import (
        Rotation,  # half a second that only simulation should wait for
    )

    age, sex = (
        np.clip(rng.normal(_CONDITIONS[disease][1], 14), 25, 90),
        rng.choice(["female", "male"]),
    )
    # Age lowers QRS and T and turns the axis to the left; women have a lower QRS, ST and T.
    size = (
        rng.lognormal(0, 0.15, len(_WAVES))
        * rng.lognormal(0, 0.15)
        * (1 - 0.004 * (age - 55))
    )
    size *= np.where(_ATRIAL, 1, np.where(_LATE, 0.75, 0.9)) if sex == "female" else 1
    delay = _LATE * rng.normal(0, 10) - _ATRIAL * rng.gamma(4, 5)  # QT and PR interval
    angles = rng.normal((-0.4 * (age - 55), 0, 0), (14, 10, 6))
    focus = (rng.uniform(0, 360), rng.uniform(-60, 60), 0)
    return _Patient(
        age=float(age),
        sex=str(sex),
        shift=delay + rng.normal(0, np.where(_ATRIAL | _LATE, 8, 1.5)),
        width=rng.lognormal(0, 0.06, len(_WAVES)) * rng.lognormal(0, 0.05),
        size=size,
        tilt=rng.normal(0, 0.12, (len(_WAVES), 3)),
        axis=Rotation.from_euler("zyx", angles, degrees=True).as_matrix(),
        focus=Rotation.from_euler("zyx", focus, degrees=True).as_matrix(),
        torso=_DOWER * rng.lognormal(0, 0.08, (8, 1)) + rng.normal(0, 0.04, (8, 3)),
        rate=rng.normal(0, 0.7),
    )


def _record(
    body: _Patient, condition: str, times: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """One ECG, (12, samples) in mV; the limb leads are derived, noise and all, from I and II."""
    respiration = 2 * np.pi * (rng.uniform(0.19, 0.32) * times + rng.random())
    severity = rng.uniform(*_CONDITIONS[condition][2])
    beats, rr, ectopic = _rhythm(body, condition, respiration, times, rng)
    minor = _wave_table(
        body, rng.choice(tuple(_CHANGES)[:4]), rng.triangular(0, 0, 0.35)
    )
    waves = _wave_table(body, condition, severity) if condition in _CHANGES else minor
    normal = minor if condition == "ventricular ectopy" else waves
    if condition in ("ventricular ectopy", "atrial fibrillation"):
        waves[_ATRIAL, 2:] = 0  # no P wave
    dipole = _dipole(
        beats, rr, np.where(ectopic[:, None, None], waves, normal), times, rng
    )
    if condition == "atrial fibrillation":
        dipole += _fibrillation(severity, times, rng)
    dipole *= 1 + rng.uniform(0.01, 0.06) * np.sin(respiration + 1)
    return _DERIVE @ (
        body.torso @ dipole + _ELECTRODES @ _noise(respiration, times, rng)
    )


def _wave_table(body: _Patient, condition: str, severity: float) -> np.ndarray:
    """The patient's (waves, 5) table: normal, moved by `severity` towards the condition's."""
    normal = np.array([_NORMAL[wave] for wave in _WAVES], dtype=float)
    changed = np.array(
        [_CHANGES[condition].get(wave, _NORMAL[wave]) for wave in _WAVES], dtype=float
    )
    if condition == "ventricular ectopy":
        changed[:, 2:] = changed[:, 2:] @ body.focus.T
    table = normal + severity * (changed - normal)
    table[:, 0] += body.shift
    table[:, 1] *= body.width
    vectors = (
        table[:, 2:] + np.linalg.norm(table[:, 2:], axis=1, keepdims=True) * body.tilt
    )
    table[:, 2:] = body.size[:, None] * vectors @ body.axis.T
    return table


def _rhythm(
    body: _Patient,
    condition: str,
    respiration: np.ndarray,
    times: np.ndarray,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """R times and preceding RR intervals in s, and which beats are ventricular ectopics; (beats,) each."""
    mean, deviation, lowest, highest = _CONDITIONS[condition][0]
    rate = np.clip(mean + deviation * (body.rate + rng.normal(0, 0.7)), lowest, highest)
    period, end = 60 / rate, times[-1]
    n = int(2 * end / period) + 8
    if condition == "atrial fibrillation":
        variation = rng.uniform(0.08, 0.25) ** 2
        rr = np.maximum(period * rng.gamma(1 / variation, variation, n), 0.33)
    else:
        depth = (
            rng.uniform(0.4, 1) * 0.07 * (95 - body.age) / 60 * min(1, 70 / rate) ** 2
        )
        when = np.arange(n) * period
        slow = 0.6 * _sine(when, 0.09, 0.11, rng)
        breath = np.sin(np.interp(when, times, respiration))
        rr = period * (1 + depth * (breath + slow) + rng.normal(0, 0.006, n))
    start, ectopic = -period * (2 + rng.random()), np.zeros(n, bool)
    inside = np.flatnonzero(np.abs(start + np.cumsum(rr) - end / 2) < end / 2 - 0.7)
    if condition == "ventricular ectopy":
        every = rng.choice([2, 3, 4, 6, 10, 20], p=[0.1, 0.1, 0.2, 0.2, 0.2, 0.2])
        ectopic[inside[rng.integers(min(every, len(inside))) :: every]] = True
        early = (1 - rng.uniform(0.58, 0.74)) * rr * ectopic
        rr = (
            rr - early + np.roll(early, 1)
        )  # the compensatory pause: two sinus intervals in all
    elif rng.random() < 0.125:
        rr[rng.choice(inside, rng.integers(1, 4))] *= rng.uniform(0.65, 0.85)
    return start + np.cumsum(rr), rr, ectopic


def _dipole(
    beats: np.ndarray,
    rr: np.ndarray,
    tables: np.ndarray,
    times: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """Sum of all Gaussians of all beats: tables (beats, waves, 5) → (3, samples) in mV."""
    near = (beats > times[0] - 1) & (beats < times[-1] + 1)
    beats, tables, rr = beats[near], tables[near], rr[near]
    stretch = (0.7 * rr.mean() + 0.3 * rr)[:, None] ** _RATE_EXPONENT
    timing = stretch[..., None] * tables[..., :2] / 1000
    vectors = tables[..., 2:] * rng.normal(1, 0.025, (len(beats), 1, 1))
    scaled = (times - beats[:, None, None] - timing[..., :1]) / timing[..., 1:]
    return np.einsum("bwa,bwt->at", vectors, np.exp(-0.5 * scaled**2), optimize=True)


def _sine(
    times: np.ndarray, low: float, high: float, rng: np.random.Generator, rows=()
) -> np.ndarray:
    """Sines between `low` and `high` Hz at random phase, one a row of shape `rows`."""
    return np.sin(2 * np.pi * (rng.uniform(low, high, rows) * times + rng.random(rows)))


def _fibrillation(
    severity: float, times: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Fibrillatory waves, 5 to 8 Hz, largest in V1 and II; (3, samples) in mV."""
    waves = np.zeros((3, len(times)))
    for direction in ((-0.25, 0.5, -0.55), (0.2, 0.5, -0.2)):
        phase = 2 * np.pi * (rng.uniform(5, 8) * times + rng.random())
        phase += rng.uniform(0.3, 1.5) * _sine(times, 0.2, 0.7, rng)
        swell = 1 + 0.4 * _sine(times, 0.1, 0.5, rng)
        waves += np.outer(
            direction, swell * (np.sin(phase) + 0.35 * np.sin(2 * phase + 1))
        )
    return 0.06 * severity * waves


def _noise(
    respiration: np.ndarray, times: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Drift, respiration, muscle and mains at the electrodes RA, LA, LL, V1…V6; (9, samples) in mV."""
    spectrum = 1 / (1 + (np.fft.rfftfreq(len(times), times[1]) / 0.12) ** 2) + 0.004
    spectrum *= np.sqrt(len(times) / np.sum(spectrum**2) / 2)  # unit variance
    drift = np.fft.irfft(
        np.fft.rfft(rng.normal(size=(9, len(times)))) * spectrum, len(times)
    )
    breath = np.sin(respiration + rng.uniform(-0.7, 0.7, (9, 1)))
    muscle = rng.normal(size=(9, len(times))) * (
        1 + 0.6 * _sine(times, 0.05, 0.3, rng, (9, 1))
    )
    noise = (
        0.04 * rng.lognormal(0, 0.5) * drift
        + 0.02 * rng.lognormal(0, 0.5, (9, 1)) * breath
    )
    noise += 0.009 * rng.lognormal(0, 0.5) * rng.lognormal(0, 0.3, (9, 1)) * muscle
    return noise + 0.003 * rng.lognormal(0, 0.5, (9, 1)) * _sine(
        times, 49.95, 50.05, rng
    )
