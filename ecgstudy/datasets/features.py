"""Engineered ECG features, for the references that learn no representation.

Strips of at least `STRIP_S` get rhythm and wave measures from neurokit2 (Makowski et
al. 2021; waves by the peak prominence of Emrich et al. 2024, 12 times faster than
wavelets). It rejects shorter windows: those hold one beat around a known sample, and
everything about them is computed for all records at once.
"""

import warnings
from collections.abc import Sequence

import numpy as np
import pywt
from numpy import ndarray
from scipy.ndimage import gaussian_filter1d

STRIP_S, BLOCK = 5.0, 2048
BANDS_HZ = ((0.5, 3), (3, 8), (8, 15), (15, 25), (25, 40))
QUANTILES = {
    "min": 0,
    "q01": 0.01,
    "q05": 0.05,
    "median": 0.5,
    "q95": 0.95,
    "q99": 0.99,
    "max": 1,
}
POINTS = "P_Onsets P_Peaks P_Offsets R_Onsets R_Offsets T_Peaks T_Offsets".split()
"""What neurokit2 calls the points of the waves."""
SPANS = {
    "P": ("P_Onsets", "P_Offsets"),
    "PR": ("P_Onsets", "R_Onsets"),
    "QRS": ("R_Onsets", "R_Offsets"),
    "QT": ("R_Onsets", "T_Offsets"),
}
BEAT_S = {
    "P": (-0.26, -0.1),
    "PR": (-0.1, -0.06),
    "ST": (0.08, 0.14),
    "T": (0.14, 0.45),
}
"""Parts of a beat, in s after the R peak."""
TINY = 1e-12
"""mV²: keeps the logarithm of a flat lead's energy finite."""
Columns = dict[str, ndarray]
"""Feature name → values (records,), or (records, leads) when there is one per lead."""


def extract(
    signals: ndarray, fs: float, leads: Sequence[str], centre: int | None = None
) -> tuple[ndarray, list[str]]:
    """Engineered features of each record.

    Parameters
    ----------
    signals
        (records, leads, samples) in mV.
    fs
        Sampling rate in Hz.
    leads
        Lead names; the waves of a strip are found on II, or else on the first.
    centre
        Sample of the R peak in windows shorter than `STRIP_S`; None: the middle.

    Returns
    -------
    values
        float32 (records, features); NaN where a record has no such measure.
    names
        Of the features, with the lead that they are of.
    """
    blocks = [
        _measure(signals[start : start + BLOCK], fs, leads, centre)
        for start in range(0, len(signals), BLOCK)
    ]
    names = []
    for name, column in blocks[0].items():
        if column.ndim == 2:
            names += [f"{name} {lead}" for lead in leads]
        else:
            names.append(name)
    values = np.concatenate([np.column_stack(list(block.values())) for block in blocks])
    values[~np.isfinite(values)] = np.nan
    return values.astype(np.float32), names


def _measure(
    signals: ndarray, fs: float, leads: Sequence[str], centre: int | None
) -> Columns:
    signals = np.asarray(signals, dtype=np.float64)
    samples = signals.shape[2]
    # A flat lead has no skewness: NaN.
    with np.errstate(divide="ignore", invalid="ignore"):
        columns = _measure_amplitudes(signals, fs) | _measure_energies(signals, fs)
        if samples < STRIP_S * fs:
            peak = samples // 2 if centre is None else centre
            return {
                **columns,
                **_measure_beat(signals, peak, fs),
                **_measure_neighbours(signals, peak, fs),
            }
        rhythm_lead = list(leads).index("II") if "II" in leads else 0
        strips = [_measure_strip(record, rhythm_lead, fs) for record in signals]
        for name in strips[0]:
            columns[name] = np.array([strip[name] for strip in strips])
    return columns


def _measure_amplitudes(signals: ndarray, fs: float) -> Columns:
    """Distribution of the samples of each lead, and how fast it moves."""
    quantiles = np.quantile(signals, list(QUANTILES.values()), axis=2)
    deviation = signals.std(axis=2)
    standard = (signals - signals.mean(2, keepdims=True)) / deviation[..., None]
    return {
        **dict(zip(QUANTILES, quantiles, strict=True)),
        "std": deviation,
        "skewness": (standard**3).mean(axis=2),
        "kurtosis": (standard**4).mean(axis=2),
        "line length": np.abs(np.diff(signals)).mean(axis=2) * fs,
        "zero crossings": np.diff(standard > 0).mean(axis=2) * fs,
    }


def _measure_energies(signals: ndarray, fs: float) -> Columns:
    """Log power in `BANDS_HZ`, and log shares of the levels of a db4 wavelet."""
    samples, columns = signals.shape[2], {}
    power = np.abs(np.fft.rfft(signals)) ** 2 / samples**2
    frequency = np.fft.rfftfreq(samples, 1 / fs)
    for low, high in BANDS_HZ:
        if high <= fs / 2:
            band = power[..., (frequency >= low) & (frequency < high)]
            columns[f"{low}-{high} Hz"] = np.log(band.sum(axis=2) + TINY)
    level = min(6, pywt.dwt_max_level(samples, "db4"))
    centred = signals - signals.mean(axis=2, keepdims=True)
    parts = pywt.wavedec(centred, "db4", level=level, axis=2)
    energy = np.stack([(part**2).sum(axis=2) for part in parts]) + TINY
    for number, share in enumerate(np.log(energy / energy.sum(axis=0))):
        columns[f"wavelet {number}"] = share
    return columns


def _measure_strip(record: ndarray, rhythm_lead: int, fs: float) -> Columns:
    """Rhythm, intervals and waves of one record (leads, samples)."""
    with warnings.catch_warnings():
        # Of too few beats: the features say so with NaN.
        warnings.simplefilter("ignore")
        peaks, points = _delineate(record[rhythm_lead], round(fs))
        rhythm = _measure_rhythm(peaks, points, fs)
        return rhythm | _measure_waves(record, peaks, points, fs)


def _delineate(lead: ndarray, fs: int) -> tuple[ndarray, Columns]:
    """R peaks and the points of the waves, (beats,) each, in samples.

    There are none where neurokit2 finds none.
    """
    import neurokit2  # slow to import, and only strips need it

    try:
        clean = neurokit2.ecg_clean(lead, sampling_rate=fs)
        _, found = neurokit2.ecg_peaks(clean, sampling_rate=fs)
        peaks = found["ECG_R_Peaks"]
        _, found = neurokit2.ecg_delineate(
            clean, peaks, sampling_rate=fs, method="prominence"
        )
    except Exception:  # many kinds on what is no ECG, e.g. IndexError without beats
        peaks, found = (), {}
    points = {}
    for name in POINTS:
        samples = np.asarray(found.get(f"ECG_{name}", ()), float)
        # neurokit2 drops a point at sample 0, which can only be the first beat's.
        dropped = np.full(len(peaks) - len(samples), np.nan)
        points[name] = np.r_[dropped, samples]
    return np.asarray(peaks, float), points


def _measure_rhythm(peaks: ndarray, points: Columns, fs: float) -> Columns:
    """Median durations of waves, and RR intervals in s with their variability.

    The latter as in Task Force 1996 (Circulation 93:1043).
    """
    columns = {}
    for name, (start, end) in SPANS.items():
        columns[name] = np.nanmedian(points[end] - points[start]) / fs
    rr = np.diff(peaks) / fs if len(peaks) > 2 else np.full(2, np.nan)
    changes = np.diff(rr)
    # Comparisons hide that there is no interval; the added zero is NaN then.
    missing = 0 * rr.mean()
    return {
        **columns,
        "QTc": columns["QT"] / np.sqrt(rr.mean()),
        "beats": np.float64(len(peaks)),
        "RR mean": rr.mean(),
        "RR min": rr.min(),
        "RR max": rr.max(),
        "SDNN": rr.std(),
        "RMSSD": np.sqrt((changes**2).mean()),
        "pNN50": (np.abs(changes) > 0.05).mean() + missing,
    }


def _measure_waves(
    record: ndarray, peaks: ndarray, points: Columns, fs: float
) -> Columns:
    """Median amplitudes in mV of every lead, (leads,), from the level at QRS onset."""

    def read(samples: ndarray) -> ndarray:
        inside = (samples >= 0) & (samples < record.shape[1])
        place = np.where(inside, samples, 0).astype(int)
        return np.where(inside, record[:, place], np.nan)

    reach = round(0.08 * fs)
    level = read(points["R_Onsets"])
    qrs = read(peaks[:, None] + np.arange(-reach, reach + 1)) - level[..., None]
    of_beats = {
        "R wave": qrs.max(axis=2),
        "S wave": qrs.min(axis=2),
        "QRS area": qrs.sum(axis=2) / fs,
        "P wave": read(points["P_Peaks"]) - level,
        "ST": read(points["R_Offsets"] + 0.06 * fs) - level,
        "T wave": read(points["T_Peaks"]) - level,
    }
    return {name: np.nanmedian(beats, axis=1) for name, beats in of_beats.items()}


def _measure_beat(signals: ndarray, centre: int, fs: float) -> Columns:
    """Shape of the beat whose R peak is at the sample `centre`."""
    level = signals - np.median(signals, axis=2, keepdims=True)
    qrs = _cut(level, centre, -0.12 * fs, 0.12 * fs)
    size, slope = np.abs(qrs), np.diff(qrs) ** 2
    columns = {
        "R wave": qrs.max(axis=2),
        "S wave": qrs.min(axis=2),
        "QRS area": qrs.sum(axis=2) / fs,
        "QRS slope": np.sqrt(slope.max(axis=2)) * fs,
    }
    for height in (0.25, 0.5, 0.75):
        for name, values in (("QRS", size), ("slope", slope)):
            above = values > height * values.max(axis=2, keepdims=True)
            columns[f"{name} width at {height:.0%}"] = above.sum(axis=2) / fs
    for name, (start, end) in BEAT_S.items():
        wave = _cut(level, centre, start * fs, end * fs)
        columns[f"{name} max"] = wave.max(axis=2)
        columns[f"{name} min"] = wave.min(axis=2)
        columns[f"{name} mean"] = wave.mean(axis=2)
    return columns


def _cut(signals: ndarray, centre: int | ndarray, start: float, end: float) -> ndarray:
    """Samples `start` to `end` after `centre`, one number or (records,).

    Beyond an edge its sample is repeated.
    """
    place = np.reshape(centre, (-1, 1, 1)) + np.arange(round(start), round(end) + 1)
    return np.take_along_axis(signals, np.clip(place, 0, signals.shape[2] - 1), axis=2)


def _measure_neighbours(signals: ndarray, centre: int, fs: float) -> Columns:
    """RR intervals in s to the steepest stretch on each side, and how alike it is."""
    gap, end, columns = round(0.2 * fs), signals.shape[2] - 1, {}
    energy = (np.gradient(signals, axis=2) ** 2).sum(axis=1)
    energy = gaussian_filter1d(energy, 0.025 * fs, axis=1, mode="constant")
    start = max(centre - gap // 2, 0)
    near = energy[:, start : centre + gap // 2 + 1]
    top, middle = near.max(axis=1), near.argmax(axis=1) + start
    beat = _cut_centred(signals, middle, gap)
    sides = {
        "before": (slice(0, max(centre - gap, 1)), 0),
        "after": (slice(min(centre + gap, end), end + 1), end),
    }
    for side, (stretch, edge) in sides.items():
        height = energy[:, stretch].max(axis=1)
        peak = energy[:, stretch].argmax(axis=1) + stretch.start
        # A stretch with under a tenth of the slope energy is no beat: the interval
        # ends with the window.
        peak = np.where(height > 0.1 * top, peak, edge)
        other = _cut_centred(signals, peak, gap)
        size = np.sqrt((beat**2).sum(axis=2) * (other**2).sum(axis=2))
        columns[f"RR {side}"] = np.abs(peak - middle) / fs
        columns[f"slope {side}"] = np.log((height + TINY) / (top + TINY))
        columns[f"likeness {side}"] = (beat * other).sum(axis=2) / size
    columns["RR ratio"] = columns["RR before"] / columns["RR after"]
    return columns


def _cut_centred(signals: ndarray, centre: ndarray, gap: int) -> ndarray:
    part = _cut(signals, centre, -gap / 2, gap / 2)
    return part - part.mean(axis=2, keepdims=True)
