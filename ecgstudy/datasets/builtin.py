"""Simulated 12-lead ECGs, so that a first run needs no download.

The heart is a dipole in three dimensions whose every deflection is a Gaussian: the
model of McSharry et al. 2003 (IEEE TBME 50:289, eq. 1), three-dimensional as in Sameni
et al. 2007 (EURASIP JASP 2007:43407), in closed form, over the time from each R wave.
The matrix of Dower et al. 1980 (Clin Cardiol 3:87) projects it on the leads. Axes: x
left, y inferior, z posterior. Waves (``builtin_waves.csv``), bodies, rhythms and noise
are this project's own.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
from numpy import ndarray
from numpy.random import Generator, default_rng
from pydantic import Field, NonNegativeInt, PositiveInt

from ecgstudy.datasets.leads import CHEST, STANDARD, lead_weights
from ecgstudy.datasets.sources import read_card
from ecgstudy.records import EcgRecords
from ecgstudy.registry import DATASETS

RECORDED = ("I", "II", *CHEST)
"""The other limb leads are derived from I and II."""
ELECTRODES = lead_weights(RECORDED)

DOWER = np.array(  # mV on each recorded lead per mV of dipole
    [
        [0.632, -0.235, 0.059],
        [0.235, 1.066, -0.132],
        [-0.515, 0.157, -0.917],
        [0.044, 0.164, -1.387],
        [0.882, 0.098, -1.277],
        [1.213, 0.127, -0.601],
        [1.125, 0.127, -0.086],
        [0.831, 0.076, 0.230],
    ]
)


def _read_table(name: str) -> pd.DataFrame:
    return pd.read_csv(Path(__file__).with_name(name), float_precision="round_trip")


CONDITIONS = {
    row.condition: row for row in _read_table("builtin_conditions.csv").itertuples()
}
"""Rate a minute (mean, SD, lowest, highest), mean age in years, range of severities:
0 is normal, 1 the waves in the file (in fibrillation: the f waves)."""
CLASSES = tuple(CONDITIONS)
SINUS, TACHYCARDIA, FIBRILLATION, *MINOR, ECTOPY = CLASSES
"""`MINOR`: in traces (severities to 0.35) in records of the other classes, too."""

ROWS = _read_table("builtin_waves.csv")
SHAPES = {
    condition: np.ascontiguousarray(waves.loc[:, "peak_ms":], dtype=float)
    for condition, waves in ROWS.groupby("condition")
}
"""Of each wave: peak after R in ms, width σ in ms at 60/min, dipole x, y, z in mV."""
WAVES = ROWS["wave"].unique()
ATRIAL = np.isin(WAVES, ["P1", "P2"])
LATE = np.isin(WAVES, ["J", "ST", "T1", "T2"])
RATE_EXPONENT = np.array([0.15, 0.15, 0, 0, 0, 0, 0.15, 0.3, 1 / 3, 1 / 3])
"""A wave's delay goes with RR to this power; one third for T is Fridericia's QT."""


@dataclass(frozen=True)
class Body:
    """What all records of a patient share."""

    age: float
    sex: str
    shift: ndarray  # (waves,) ms
    width: ndarray  # (waves,) factor, as is `size`
    size: ndarray
    tilt: ndarray  # (waves, 3) error of the direction, relative
    axis: ndarray  # (3, 3) rotation of the heart; `focus`: of ectopic beats
    focus: ndarray
    torso: ndarray  # (8, 3) mV on each recorded lead per mV of dipole
    rate: float  # in standard deviations of the population's


@DATASETS.register("builtin")
def load(
    rng_seed: NonNegativeInt = 0,
    patients: Annotated[int, Field(ge=27)] = 300,
    records_per_patient: PositiveInt = 4,
    fs: Annotated[float, Field(ge=50)] = 100.0,
    seconds: Annotated[float, Field(ge=5)] = 10.0,
) -> EcgRecords:
    """Simulated 12-lead ECGs, single-label, in mV, split 60 / 15 / 25 % by patient.

    Equal arguments give bit-identical records. Patient p has the same body for any
    number of patients. Two in nine patients, and three in ten of the others' records
    after the first, are in sinus rhythm.

    Parameters
    ----------
    rng_seed
        At least 0.
    patients
        At least 27, so that each class has a patient in each split.
    records_per_patient
        Records of one body at different rates, severities and noise.
    fs
        Sampling rate in Hz, at least 50.
    seconds
        Length of each record in s, at least 5.
    """
    times = np.arange(round(seconds * fs)) / fs
    diseases = [(SINUS, *CLASSES)[p % 9] for p in range(patients)]
    splits = _split_patients(diseases, default_rng([rng_seed, 0]))
    signals, labels, rows = [], [], []
    for p, (disease, split) in enumerate(zip(diseases, splits, strict=True)):
        body = _draw_body(disease, default_rng([rng_seed, 1, p]))
        known_age = np.nan if p % 20 == 10 else round(body.age)
        for r in range(records_per_patient):
            rng = default_rng([rng_seed, 2, p, r])
            condition = disease if r == 0 or rng.random() < 0.7 else SINUS
            signals.append(_simulate(body, condition, times, rng).astype(np.float32))
            labels.append(CLASSES.index(condition))
            rows.append((f"p{p:04d}-{r}", f"p{p:04d}", split, known_age, body.sex))
    table = pd.DataFrame(rows, columns=["record", "patient", "split", "age", "sex"])
    table.insert(3, "attacked", table["split"] != "train")
    counts = np.bincount(labels, minlength=len(CLASSES)).tolist()
    counts = dict(zip(CLASSES, counts, strict=True))
    card = {**read_card("builtin"), "rng_seed": rng_seed, "counts": counts}
    signals, labels = np.stack(signals), np.array(labels)
    return EcgRecords(
        "builtin", signals, float(fs), STANDARD, labels, CLASSES, table, card
    )


def _split_patients(diseases: list[str], rng: Generator) -> ndarray:
    """Split of each patient, 60 / 15 / 25 % within each disease."""
    splits = np.full(len(diseases), "train", dtype=object)
    for disease in CLASSES:
        members = rng.permutation(np.flatnonzero(np.array(diseases) == disease))
        tests = max(1, round(0.25 * len(members)))
        validations = max(1, round(0.15 * len(members)))
        splits[members[:tests]] = "test"
        splits[members[tests : tests + validations]] = "validation"
    return splits


def _draw_body(disease: str, rng: Generator) -> Body:
    # Half a second to import, for which only a simulation should wait.
    from scipy.spatial.transform import Rotation

    age = np.clip(rng.normal(CONDITIONS[disease].age, 14), 25, 90)
    sex = rng.choice(["female", "male"])
    # Age lowers QRS and T and turns the axis to the left; women have a lower QRS, ST
    # and T.
    size = rng.lognormal(0, 0.15, len(WAVES)) * rng.lognormal(0, 0.15)
    size *= 1 - 0.004 * (age - 55)
    if sex == "female":
        size *= np.where(ATRIAL, 1, np.where(LATE, 0.75, 0.9))
    delay = LATE * rng.normal(0, 10) - ATRIAL * rng.gamma(4, 5)  # QT and PR interval
    angles = rng.normal((-0.4 * (age - 55), 0, 0), (14, 10, 6))
    focus = (rng.uniform(0, 360), rng.uniform(-60, 60), 0)
    return Body(
        age=float(age),
        sex=str(sex),
        shift=delay + rng.normal(0, np.where(ATRIAL | LATE, 8, 1.5)),
        width=rng.lognormal(0, 0.06, len(WAVES)) * rng.lognormal(0, 0.05),
        size=size,
        tilt=rng.normal(0, 0.12, (len(WAVES), 3)),
        axis=Rotation.from_euler("zyx", angles, degrees=True).as_matrix(),
        focus=Rotation.from_euler("zyx", focus, degrees=True).as_matrix(),
        torso=DOWER * rng.lognormal(0, 0.08, (8, 1)) + rng.normal(0, 0.04, (8, 3)),
        rate=rng.normal(0, 0.7),
    )


def _simulate(body: Body, condition: str, times: ndarray, rng: Generator) -> ndarray:
    """One ECG, (12, samples) in mV."""
    breathing = 2 * np.pi * (rng.uniform(0.19, 0.32) * times + rng.random())
    known = CONDITIONS[condition]
    severity = rng.uniform(known.severity_min, known.severity_max)
    beats, rr, ectopic = _draw_rhythm(body, condition, breathing, times, rng)
    minor = _shape_waves(body, rng.choice(MINOR), rng.triangular(0, 0, 0.35))
    waves = minor
    if condition in SHAPES:
        waves = _shape_waves(body, condition, severity)
    if condition in (ECTOPY, FIBRILLATION):
        waves[ATRIAL, 2:] = 0  # no P wave
    others = minor if condition == ECTOPY else waves
    of_beats = np.where(ectopic[:, None, None], waves, others)
    dipole = _sum_waves(beats, rr, of_beats, times, rng)
    if condition == FIBRILLATION:
        dipole += _fibrillate(severity, times, rng)
    dipole *= 1 + rng.uniform(0.01, 0.06) * np.sin(breathing + 1)
    noise = ELECTRODES @ _draw_noise(breathing, times, rng)
    i, ii, *chest = body.torso @ dipole + noise
    return np.stack([i, ii, ii - i, -(i + ii) / 2, i - ii / 2, ii - i / 2, *chest])


def _shape_waves(body: Body, condition: str, severity: float) -> ndarray:
    """The patient's waves (waves, 5): normal, moved towards the condition's."""
    normal, changed = SHAPES["normal"], SHAPES[condition].copy()
    if condition == ECTOPY:
        changed[:, 2:] = changed[:, 2:] @ body.focus.T
    waves = normal + severity * (changed - normal)
    waves[:, 0] += body.shift
    waves[:, 1] *= body.width
    vectors = waves[:, 2:]
    tilted = vectors + np.linalg.norm(vectors, axis=1, keepdims=True) * body.tilt
    waves[:, 2:] = body.size[:, None] * tilted @ body.axis.T
    return waves


def _draw_rhythm(
    body: Body, condition: str, breathing: ndarray, times: ndarray, rng: Generator
) -> tuple[ndarray, ndarray, ndarray]:
    """R times and RR intervals before them in s, and which beats are ectopic."""
    known = CONDITIONS[condition]
    rate = known.rate + known.rate_sd * (body.rate + rng.normal(0, 0.7))
    rate = np.clip(rate, known.rate_min, known.rate_max)
    period, end = 60 / rate, times[-1]
    n = int(2 * end / period) + 8
    if condition == FIBRILLATION:
        variation = rng.uniform(0.08, 0.25) ** 2
        rr = np.maximum(period * rng.gamma(1 / variation, variation, n), 0.33)
    else:
        vagal = min(1, 70 / rate) ** 2
        depth = rng.uniform(0.4, 1) * 0.07 * (95 - body.age) / 60 * vagal
        when = np.arange(n) * period
        slow = 0.6 * _draw_sines(when, 0.09, 0.11, rng)
        breath = np.sin(np.interp(when, times, breathing))
        rr = period * (1 + depth * (breath + slow) + rng.normal(0, 0.006, n))
    start, ectopic = -period * (2 + rng.random()), np.zeros(n, bool)
    inside = np.flatnonzero(np.abs(start + np.cumsum(rr) - end / 2) < end / 2 - 0.7)
    if condition == ECTOPY:
        every = rng.choice([2, 3, 4, 6, 10, 20], p=[0.1, 0.1, 0.2, 0.2, 0.2, 0.2])
        first = rng.integers(min(every, len(inside)))
        ectopic[inside[first::every]] = True
        early = (1 - rng.uniform(0.58, 0.74)) * rr * ectopic
        # The compensatory pause: two sinus intervals in all.
        rr = rr - early + np.roll(early, 1)
    elif rng.random() < 0.125:
        premature = rng.choice(inside, rng.integers(1, 4))
        rr[premature] *= rng.uniform(0.65, 0.85)
    return start + np.cumsum(rr), rr, ectopic


def _sum_waves(
    beats: ndarray,
    rr: np.ndarray,
    waves: np.ndarray,
    times: ndarray,
    rng: Generator,
) -> ndarray:
    """Sum of all beats' Gaussians: waves (beats, waves, 5) → (3, samples) in mV."""
    near = (beats > times[0] - 1) & (beats < times[-1] + 1)
    beats, waves, rr = beats[near], waves[near], rr[near]
    stretch = (0.7 * rr.mean() + 0.3 * rr)[:, None] ** RATE_EXPONENT
    timing = stretch[..., None] * waves[..., :2] / 1000
    vectors = waves[..., 2:] * rng.normal(1, 0.025, (len(beats), 1, 1))
    scaled = (times - beats[:, None, None] - timing[..., :1]) / timing[..., 1:]
    return np.einsum("bwa,bwt->at", vectors, np.exp(-0.5 * scaled**2), optimize=True)


def _draw_sines(
    times: ndarray, low: float, high: float, rng: Generator, rows: tuple = ()
) -> ndarray:
    """Sines between `low` and `high` Hz at random phase, one for each of `rows`."""
    return np.sin(2 * np.pi * (rng.uniform(low, high, rows) * times + rng.random(rows)))


def _fibrillate(severity: float, times: ndarray, rng: Generator) -> ndarray:
    """Fibrillatory waves, 5 to 8 Hz, largest in V1 and II; (3, samples) in mV."""
    waves = np.zeros((3, len(times)))
    for direction in ((-0.25, 0.5, -0.55), (0.2, 0.5, -0.2)):
        phase = 2 * np.pi * (rng.uniform(5, 8) * times + rng.random())
        phase += rng.uniform(0.3, 1.5) * _draw_sines(times, 0.2, 0.7, rng)
        swell = 1 + 0.4 * _draw_sines(times, 0.1, 0.5, rng)
        course = swell * (np.sin(phase) + 0.35 * np.sin(2 * phase + 1))
        waves += np.outer(direction, course)
    return 0.06 * severity * waves


def _draw_noise(breathing: ndarray, times: ndarray, rng: Generator) -> ndarray:
    """Noise in mV at the electrodes RA, LA, LL, V1…V6, (9, samples)."""
    shape, each = (9, len(times)), (9, 1)
    spectrum = 1 / (1 + (np.fft.rfftfreq(len(times), times[1]) / 0.12) ** 2) + 0.004
    spectrum *= np.sqrt(len(times) / np.sum(spectrum**2) / 2)  # unit variance
    white = np.fft.rfft(rng.normal(size=shape))
    drift = np.fft.irfft(white * spectrum, len(times))
    breath = np.sin(breathing + rng.uniform(-0.7, 0.7, each))
    muscle = rng.normal(size=shape)
    muscle *= 1 + 0.6 * _draw_sines(times, 0.05, 0.3, rng, each)
    noise = 0.04 * rng.lognormal(0, 0.5) * drift
    noise = noise + 0.02 * rng.lognormal(0, 0.5, each) * breath
    noise += 0.009 * rng.lognormal(0, 0.5) * rng.lognormal(0, 0.3, each) * muscle
    mains = 0.003 * rng.lognormal(0, 0.5, each)
    return noise + mains * _draw_sines(times, 49.95, 50.05, rng)
